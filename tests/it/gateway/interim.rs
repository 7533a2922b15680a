//! Interim answers, expectations and upgrades, HTTP/1 at both ends.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::forward::noise;
use super::raw::Conn;
use super::upstream::{Request, Upstream, ok};
use super::{Gateway, get};

const EXPECT: &str =
    "POST /e HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const QUIET: Duration = Duration::from_millis(250);

#[test]
fn continue_is_said_by_the_upstream_and_not_before() {
    let (say, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::scripted(move |peer| {
        let Some(head) = peer.head() else { return };
        assert!(
            head.get("expect")
                .unwrap()
                .eq_ignore_ascii_case("100-continue")
        );
        assert!(
            peer.conn.silent(QUIET),
            "the body before anybody asked for it"
        );
        wait.lock().unwrap().recv().unwrap();
        peer.conn.send(CONTINUE);
        let body = peer.conn.body(&head).unwrap();
        let request = Request { head, body };
        peer.keep(&request);
        peer.conn.send(ok(&request.body.data));
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(EXPECT);
    assert!(client.silent(QUIET), "a 100 nobody has said");
    say.send(()).unwrap();
    assert_eq!(client.head().status(), 100);
    client.send("hello");
    let (head, body) = client.response();
    assert_eq!((head.status(), &*body.data), (200, &b"hello"[..]));
    assert_eq!(upstream.request().body.data, b"hello");
}

#[test]
fn an_upstream_that_declines_is_heard_without_the_body() {
    let upstream = Upstream::scripted(|peer| {
        let Some(_) = peer.head() else { return };
        peer.conn.send(
            "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 4\r\nconnection: close\r\n\r\nnope",
        );
        assert!(
            peer.conn.rest().is_ok_and(|rest| rest.is_empty()),
            "no body"
        );
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(EXPECT);
    let head = client.head();
    assert_eq!(head.status(), 417, "and no 100 before it");
    assert_eq!(client.body(&head).unwrap().data, b"nope");
    // The client may send the body yet or not: what follows must not be taken for one and the other. Closing is safe.
    let _ = client.try_send(get("/next"));
    match client.try_head() {
        Ok(head) => assert_ne!(
            head.status(),
            200,
            "five bytes of the next request were the body of the first"
        ),
        Err(_) => assert!(client.closed()),
    }
}

#[test]
fn a_final_answer_without_continue_is_final() {
    let upstream = Upstream::scripted(|peer| {
        let Some(_) = peer.head() else { return };
        peer.conn
            .send("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
        peer.conn.closed();
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(EXPECT);
    assert_eq!(client.head().status(), 401);
}

#[test]
fn an_upstream_that_answers_without_continue_but_reads_gets_the_body() {
    // A client that will not wait for ever sends the body anyway.
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(EXPECT);
    client.send("hello");
    let (head, body) = client.response();
    assert_eq!((head.status(), &*body.data), (200, &b"hello"[..]));
}

#[test]
fn interim_answers_are_passed_on_as_they_come() {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::scripted(move |peer| {
        while peer.request().is_some() {
            peer.conn.send(
                "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.css>\r\n\r\n",
            );
            wait.lock().unwrap().recv().unwrap();
            peer.conn.send(
                "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </c.js>\r\n\r\n",
            );
            peer.conn.send(ok(b"at last"));
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    for _ in 0..2 {
        client.send(get("/"));
        let hints = client.head();
        assert_eq!(hints.status(), 103);
        assert_eq!(hints.all("link"), ["</a.css>; rel=preload", "</b.css>"]);
        // The final answer is not there yet: this one did not wait for it.
        go.send(()).unwrap();
        assert_eq!(client.head().status(), 102);
        let hints = client.head();
        assert_eq!((hints.status(), hints.get("link")), (103, Some("</c.js>")));
        let (head, body) = client.response();
        assert_eq!((head.status(), &*body.data), (200, &b"at last"[..]));
    }
}

#[test]
fn an_old_client_gets_no_interim_answers() {
    let upstream = Upstream::answering(|_| {
        [
            &b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"[..],
            &ok(b"final"),
        ]
        .concat()
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    assert_eq!(client.head().status(), 200, "RFC 9110 15.2");
}

#[test]
fn a_continue_nobody_asked_for_does_no_harm() {
    let upstream = Upstream::answering(|_| [CONTINUE, &ok(b"final")].concat());
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, body) = gateway.ask(get("/"));
    assert_eq!((head.status(), &*body.data), (200, &b"final"[..]));
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-own: 1\r\n\r\n";

fn echo(conn: &mut Conn) {
    while let Ok(byte) = conn.exactly(1) {
        let _ = conn.try_send(byte);
    }
}

#[test]
fn an_upgraded_connection_is_a_pipe() {
    let upstream = Upstream::scripted(|peer| {
        let Some(head) = peer.head() else { return };
        assert_eq!(head.get("upgrade"), Some("websocket"));
        assert!(
            head.list("connection")
                .iter()
                .any(|option| option.eq_ignore_ascii_case("upgrade"))
        );
        assert_eq!(
            head.get("sec-websocket-key"),
            Some("dGhlIHNhbXBsZSBub25jZQ==")
        );
        peer.conn.send(format!("{SWITCHING}server first;"));
        assert_eq!(peer.conn.exactly(13).unwrap(), b"client first;");
        let body = peer.conn.exactly(1_000_000).unwrap();
        peer.conn.send(body);
        assert!(
            peer.conn.rest().unwrap().is_empty(),
            "the client's end arrives"
        );
        peer.conn.send("goodbye");
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(format!("{UPGRADE}client first;"));
    let head = client.head();
    assert_eq!(head.status(), 101);
    assert_eq!(
        (head.get("upgrade"), head.get("x-own")),
        (Some("websocket"), Some("1"))
    );
    assert!(
        head.list("connection")
            .iter()
            .any(|option| option.eq_ignore_ascii_case("upgrade"))
    );
    assert_eq!(client.exactly(13).unwrap(), b"server first;");
    let sent = noise(1_000_000);
    let mut writer = Conn::of(client.stream.try_clone().unwrap());
    let writing = std::thread::spawn({
        let sent = sent.clone();
        move || writer.send(sent)
    });
    assert!(client.exactly(1_000_000).unwrap() == sent);
    writing.join().unwrap();
    client.finish();
    assert_eq!(
        client.rest().unwrap(),
        b"goodbye",
        "half-closed, the other half goes on"
    );
}

#[test]
fn upgrades_of_several_clients_do_not_mix() {
    let upstream = Upstream::scripted(|peer| {
        if peer.head().is_some() {
            peer.conn.send(SWITCHING);
            echo(&mut peer.conn);
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut clients: Vec<_> = (0..8).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(UPGRADE);
        assert_eq!(client.head().status(), 101);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(format!("client {n}"));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(
            client.exactly(8).unwrap(),
            format!("client {n}").into_bytes()
        );
    }
}

#[test]
fn an_upgrade_that_is_refused_is_an_answer_like_others() {
    let upstream = Upstream::answering(|request| {
        match request.head.target() {
        "/ws" => b"HTTP/1.1 426 Upgrade Required\r\nconnection: upgrade\r\nupgrade: other\r\ncontent-length: 2\r\n\r\nno".to_vec(),
        _ => ok(b"still here"),
    }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(UPGRADE);
    let (head, body) = client.response();
    assert_eq!((head.status(), &*body.data), (426, &b"no"[..]));
    client.send(get("/"));
    let (_, body) = client.response();
    assert_eq!(body.data, b"still here");
}

#[test]
fn an_upgrade_nobody_asked_for_is_a_broken_upstream() {
    let upstream = Upstream::scripted(|peer| {
        if peer.head().is_some() {
            let _ = peer.conn.try_send(SWITCHING);
            peer.conn.closed();
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(get("/"));
    assert_eq!(client.bodiless().status(), 502);
}

#[test]
fn when_either_end_of_a_pipe_dies_so_does_the_other() {
    let (told, ended) = channel();
    let told = Mutex::new(told);
    let upstream = Arc::new(Upstream::scripted(move |peer| {
        let Some(head) = peer.head() else { return };
        peer.conn.send(SWITCHING);
        if head.target() == "/ws" {
            told.lock().unwrap().send(peer.conn.closed()).unwrap();
        }
    }));
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(UPGRADE);
    client.head();
    client.reset();
    assert!(
        ended.recv_timeout(Duration::from_secs(5)).unwrap(),
        "the upstream's end is closed"
    );
    let mut client = gateway.client();
    client.send(UPGRADE.replace("/ws", "/gone"));
    client.head();
    assert!(client.closed(), "the client's end is closed");
}
