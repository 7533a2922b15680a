//! Bodies and framing, over HTTP/1.

use super::raw::Conn;
use super::upstream::{Upstream, ok, response};
use super::{Gateway, get, post};

/// Not compressible, not text, and longer than any buffer.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

pub fn chunked(data: &[u8], size: usize, trailers: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in data.chunks(size) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n");
    bytes.extend(trailers.bytes());
    bytes.extend(b"\r\n");
    bytes
}

#[test]
fn bodies_of_known_length_are_the_same_at_the_other_end() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    for length in [0, 1, 16_383, 16_384, 3_000_000] {
        let body = noise(length);
        client.send(format!(
            "POST /{length} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"
        ));
        let mut writer = Conn::of(client.stream.try_clone().unwrap());
        let sent = body.clone();
        let writing = std::thread::spawn(move || writer.send(sent));
        let (head, echoed) = client.response();
        writing.join().unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(head.get("content-length"), Some(&*length.to_string()));
        assert!(echoed.data == body, "{length} bytes");
        let seen = upstream.requests().pop().unwrap();
        assert_eq!(seen.head.get("content-length"), Some(&*length.to_string()));
        assert_eq!(seen.head.target(), format!("/{length}"));
    }
    assert_eq!(upstream.connections(), 1, "connections are used again");
}

#[test]
fn bodies_in_chunks_are_the_same_at_the_other_end() {
    let upstream = Upstream::answering(|request| {
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        [head, chunked(&request.body.data, 5_000, "")].concat()
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    for length in [0, 1, 100_000] {
        let body = noise(length);
        client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        client.send(chunked(&body, 7_777, ""));
        let (head, echoed) = client.response();
        assert_eq!(head.get("transfer-encoding"), Some("chunked"));
        assert!(echoed.data == body, "{length} bytes");
        let seen = upstream.requests().pop().unwrap();
        // Either framing is right, as long as there is one.
        assert!(
            seen.head.get("transfer-encoding").is_some()
                != seen.head.get("content-length").is_some()
        );
    }
}

#[test]
fn requests_without_bodies_are_given_none() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PURGE"] {
        let mut client = gateway.client();
        client.send(format!("{method} /x HTTP/1.1\r\nhost: a\r\n\r\n"));
        let head = client.bodiless();
        let seen = upstream.requests().pop().unwrap();
        assert_eq!((head.status(), seen.head.method()), (200, method));
        assert_eq!(
            seen.head.get("transfer-encoding"),
            None,
            "{method}: {seen:?}"
        );
        assert!(
            matches!(seen.head.get("content-length"), None | Some("0")),
            "{method}: {seen:?}"
        );
    }
}

#[test]
fn a_get_with_a_body_keeps_it() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, body) = gateway.ask("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
    assert_eq!((head.status(), &*body.data), (200, &b"hello"[..]));
}

#[test]
fn responses_that_have_no_body_end_at_their_head() {
    let upstream = Upstream::answering(|request| match request.head.target() {
        "/204" => b"HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n".to_vec(),
        "/304" => {
            b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 1234\r\n\r\n".to_vec()
        }
        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 98765\r\netag: \"y\"\r\n\r\n".to_vec(),
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(get("/204"));
    let head = client.bodiless();
    assert_eq!(head.status(), 204);
    assert_eq!(
        (head.get("content-length"), head.get("transfer-encoding")),
        (None, None)
    );
    client.send(get("/304"));
    let head = client.bodiless();
    assert_eq!((head.status(), head.get("etag")), (304, Some("\"x\"")));
    assert_eq!(head.get("transfer-encoding"), None);
    client.send("HEAD /head HTTP/1.1\r\nhost: a\r\n\r\n");
    let head = client.bodiless();
    assert_eq!(
        (head.status(), head.get("content-length")),
        (200, Some("98765"))
    );
    assert_eq!(
        (head.get("transfer-encoding"), head.get("etag")),
        (None, Some("\"y\""))
    );
    // And the connection is in step.
    client.send(get("/204"));
    assert_eq!(client.bodiless().status(), 204);
}

#[test]
fn a_head_request_to_a_chunked_resource_has_no_body() {
    let upstream = Upstream::answering(|request| match request.head.method() {
        "HEAD" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
        _ => ok(b"whole"),
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.bodiless().status(), 200);
    client.send(get("/"));
    let (head, body) = client.response();
    assert_eq!((head.status(), &*body.data), (200, &b"whole"[..]));
}

#[test]
fn an_old_client_gets_a_body_it_can_read() {
    let upstream = Upstream::answering(|_| {
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        [head, chunked(b"hello, old world", 5, "")].concat()
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let (head, body) = client.response();
    assert_eq!(head.status(), 200);
    assert_eq!(
        head.get("transfer-encoding"),
        None,
        "HTTP/1.0 knows no chunks"
    );
    assert_eq!(body.data, b"hello, old world");
    assert!(client.closed(), "its end is the end of the connection");
    let seen = upstream.request();
    assert!(
        seen.head.first.ends_with("HTTP/1.1"),
        "an intermediary speaks its own version: {seen:?}"
    );
}

#[test]
fn an_old_client_that_asks_for_it_keeps_its_connection() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    for _ in 0..2 {
        client.send(
            "POST / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi",
        );
        let (head, body) = client.response();
        assert_eq!((head.status(), &*body.data), (200, &b"hi"[..]));
        assert!(
            head.list("connection")
                .iter()
                .any(|option| option.eq_ignore_ascii_case("keep-alive"))
        );
    }
}

#[test]
fn a_body_that_ends_with_the_connection_arrives_whole() {
    let upstream =
        Upstream::answering(|_| b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nto the end".to_vec());
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, body) = gateway.ask(get("/"));
    assert_eq!((head.status(), &*body.data), (200, &b"to the end"[..]));
    let upstream =
        Upstream::answering(|_| b"HTTP/1.0 200 OK\r\nx: Connection: close\r\n\r\nold end".to_vec());
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (_, body) = gateway.ask(get("/"));
    assert_eq!(body.data, b"old end");
}

#[test]
fn requests_sent_at_once_are_answered_in_order() {
    let upstream = Upstream::answering(|request| ok(request.head.target().as_bytes()));
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    let all: String = (0..20).map(|n| get(&format!("/{n}"))).collect();
    client.send(all);
    for n in 0..20 {
        let (_, body) = client.response();
        assert_eq!(body.data, format!("/{n}").into_bytes());
    }
}

#[test]
fn statuses_reasons_and_fields_come_back_as_they_are() {
    let upstream = Upstream::answering(|_| {
        let fields = "set-cookie: a=1\r\nset-cookie: b=2\r\nx-bytes: caf\u{e9}\r\nx-empty:\r\nserver: theirs\r\n";
        response("418 I'm a teapot", fields, b"short and stout")
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, body) = gateway.ask(get("/a%2Fb//c/../d?q=%20&r=;?"));
    assert_eq!(head.status(), 418);
    assert_eq!(head.all("set-cookie"), ["a=1", "b=2"], "never joined");
    assert_eq!(head.get("x-bytes"), Some("caf\u{e9}"));
    assert_eq!(head.get("x-empty"), Some(""));
    assert_eq!(head.get("server"), Some("theirs"));
    assert_eq!(body.data, b"short and stout");
    assert_eq!(
        upstream.request().head.target(),
        "/a%2Fb//c/../d?q=%20&r=;?",
        "to the letter"
    );
}

#[test]
fn a_client_that_says_close_is_closed() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("GET /1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let (head, _) = client.response();
    assert!(
        head.list("connection")
            .iter()
            .any(|option| option == "close")
    );
    assert!(client.closed());
    // That was about the client's connection only.
    gateway.ask(post("/2", "x"));
    assert_eq!(upstream.connections(), 1);
}
