//! Messages that two readers could read in two ways. What is sent behind them must never reach an upstream as a request.

use std::time::Duration;

use super::raw::Conn;
use super::upstream::Upstream;
use super::{Gateway, get};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// This status, and the connection closed.
    Refused(u16),
    /// An answer of the upstream; whether the connection was closed after it.
    Passed { closed: bool },
    /// Closed without an answer.
    Cut,
}

/// Sends `request` with another right behind it on a gateway of its own.
fn fate(request: &[u8]) -> (Fate, Upstream) {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let fate = send(&gateway, &[request, SMUGGLED.as_bytes()].concat());
    let paths: Vec<_> = upstream
        .requests()
        .iter()
        .map(|r| r.head.target().to_owned())
        .collect();
    let shown = String::from_utf8_lossy(request);
    assert!(
        !paths.iter().any(|path| path == "/smuggled"),
        "{shown:?} got one through: {paths:?}"
    );
    assert!(paths.len() <= 1, "{shown:?}: {paths:?}");
    assert!(
        gateway.program.ended().is_none(),
        "{shown:?} ended the gateway"
    );
    // The next one fares well.
    let (head, _) = gateway.ask(get("/next"));
    assert_eq!(head.status(), 200, "after {shown:?}");
    (fate, upstream)
}

fn send(gateway: &Gateway, bytes: &[u8]) -> Fate {
    let mut client = gateway.client();
    let _ = client.try_send(bytes);
    let Ok(head) = client.try_head() else {
        return Fate::Cut;
    };
    let status = head.status();
    let _ = client.body(&head);
    client
        .stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let closed = client.closed();
    match status {
        200 => Fate::Passed { closed },
        _ => {
            assert!(
                closed,
                "{status} leaves the connection open: {:?}",
                String::from_utf8_lossy(bytes)
            );
            Fate::Refused(status)
        }
    }
}

#[track_caller]
fn refused(requests: &[&str]) {
    for request in requests {
        let (fate, _) = fate(request.as_bytes());
        assert!(
            matches!(fate, Fate::Refused(400 | 501)),
            "{request:?}: {fate:?}"
        );
    }
}

#[test]
fn both_framings_at_once_are_refused() {
    refused(&[
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
    ]);
}

#[test]
fn lengths_that_disagree_are_refused() {
    refused(&[
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ncontent-length: 5\r\n\r\nhello",
    ]);
}

#[test]
fn lengths_that_are_none_are_refused() {
    for length in [
        "-1",
        "+5",
        "5 5",
        "0x5",
        "5;",
        "five",
        "",
        "1e1",
        "18446744073709551616",
        "99999999999999999999999999",
        "5\t6",
        "\u{ff15}",
    ] {
        refused(&[&format!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\nhello"
        )]);
    }
}

#[test]
fn equal_lengths_are_one_or_none() {
    for fields in [
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5, 5",
    ] {
        let upstream = Upstream::echo();
        let gateway = Gateway::start(&upstream.url(), &[]);
        let mut client = gateway.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\nhello"
        ));
        let (head, _) = client.response();
        assert!(matches!(head.status(), 200 | 400), "{head:?}");
        for seen in upstream.requests() {
            assert_eq!(
                seen.head.get("content-length"),
                Some("5"),
                "one, and a number"
            );
        }
    }
}

#[test]
fn codings_that_are_not_chunked_once_and_last_are_refused() {
    for coding in [
        "chunked, chunked",
        "chunked\r\ntransfer-encoding: chunked",
        "identity",
        "chunked, identity",
        "gzip",
        "chunked, gzip",
        "gzip, chunked",
        "xchunked",
        "chunkedx",
        "\"chunked\"",
        "chunked;q=1",
        ", chunked x",
        "cow",
        "\x0bchunked",
        "chun ked",
    ] {
        refused(&[&format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: {coding}\r\n\r\n0\r\n\r\n"
        )]);
    }
}

#[test]
fn old_clients_have_no_codings() {
    let (fate, _) = fate(b"POST / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n");
    // RFC 9112 6.1: faulty framing, and the connection is closed whatever becomes of it.
    assert!(
        matches!(
            fate,
            Fate::Refused(400 | 501) | Fate::Passed { closed: true }
        ),
        "{fate:?}"
    );
}

#[test]
fn fields_that_are_folded_or_misshapen_are_refused() {
    for field in [
        "x: a\r\n b",
        "x: a\r\n\tb",
        "transfer-encoding:\r\n chunked",
        "content-length: 5\r\n 5",
        "transfer-encoding : chunked",
        "content-length : 5",
        "content-length\t: 5",
        " x: leading",
        "no colon",
        ": no name",
        "x(y): a",
        "x y: a",
        "x\x00y: a",
        "x: a\x00b",
        "x: a\x07b",
        "x: a\x7fb",
        "x: a\rb",
        "x: a\r\r\n",
        "x\r: a",
    ] {
        refused(&[&format!("POST / HTTP/1.1\r\nhost: a\r\n{field}\r\n\r\n")]);
        refused(&[&format!("POST / HTTP/1.1\r\n{field}\r\nhost: a\r\n\r\n")]);
    }
    // Between the request line and the first field white space must not pass as one.
    refused(&[
        "GET / HTTP/1.1\r\n \r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\thost: b\r\nhost: a\r\n\r\n",
    ]);
}

#[test]
fn a_bare_line_feed_ends_nothing() {
    // The gateway promises to refuse them; a reader that takes them for line ends would be within RFC 9112 2.2.
    for request in [
        "GET / HTTP/1.1\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\nx: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\n",
        "GET / HTTP/1.1\r\nhost: a\n\n",
        "GET / HTTP/1.1\nhost: a\n\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: y\n transfer-encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\nx: y\ncontent-length: 40\r\n\r\n",
    ] {
        let (fate, _) = fate(request.as_bytes());
        assert_eq!(fate, Fate::Refused(400), "{request:?}");
    }
}

#[test]
fn chunks_with_sizes_that_are_none_are_never_a_whole_body() {
    for body in [
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\r\n0\r\n\r\n\"\r\nhello\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nx y: 1\r\n\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        let (_, upstream) = fate(request.as_bytes());
        // A body that was read to an end is one that CRLF and sizes make, or there is none at all.
        for seen in upstream
            .requests()
            .iter()
            .filter(|seen| seen.head.target() == "/")
        {
            let data = String::from_utf8_lossy(&seen.body.data).into_owned();
            assert!(
                matches!(&*data, "" | "hello" | "abc") && body.contains(";a=")
                    || body.contains("x y"),
                "{body:?} became {data:?}"
            );
        }
    }
}

#[test]
fn chunk_extensions_and_leading_zeros_are_read_and_forgotten() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, body) = gateway.ask(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n0005;name=value;other=\"x\"\r\nhello\r\n00\r\n\r\n",
    );
    assert_eq!((head.status(), &*body.data), (200, &b"hello"[..]));
}

#[test]
fn a_request_that_is_never_whole_is_never_whole_upstream() {
    for request in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nff\r\nhello",
    ] {
        let upstream = Upstream::echo();
        let gateway = Gateway::start(&upstream.url(), &[]);
        let mut client = gateway.client();
        client.send(request);
        client.finish();
        let _ = client.rest();
        std::thread::sleep(Duration::from_millis(50));
        assert!(upstream.requests().is_empty(), "{request:?} was made whole");
    }
}

#[test]
fn line_ends_before_a_request_are_passed_over() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, _) = gateway.ask(format!("\r\n{}", get("/")));
    assert_eq!(head.status(), 200, "RFC 9112 2.2");
}

#[test]
fn nonsense_is_answered_or_cut() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"<policy-file-request/>\0\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        let mut client = gateway.client();
        let _ = client.try_send(bytes);
        client.finish();
        let answer = client.rest().unwrap_or_default();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            !answer.starts_with("HTTP/1.1 2") || bytes.starts_with(b"GET"),
            "{bytes:?}: {answer}"
        );
    }
    assert_eq!(gateway.ask(get("/")).0.status(), 200);
}

#[test]
fn a_request_target_that_would_be_a_second_line_is_refused() {
    let mut conn: Conn;
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    for target in [
        "/a\rb",
        "/a\x00b",
        "/a\tb",
        "/a b",
        "http://a\r/b",
        "/%0d%0aGET",
    ] {
        conn = gateway.client();
        conn.send(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n"));
        let status = conn.bodiless().status();
        // What is escaped is a name like others.
        assert_eq!(
            status,
            if target.contains('%') { 200 } else { 400 },
            "{target:?}"
        );
    }
}
