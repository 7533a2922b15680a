//! Upstreams and clients that are dead, slow, silent or false.

use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::raw::PATIENCE;
use super::upstream::{Upstream, eventually, ok};
use super::{Gateway, get, post};

/// A port nobody listens at.
pub fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// An upstream that takes requests and never answers.
pub fn silent() -> Upstream {
    Upstream::scripted(|peer| {
        peer.request();
        peer.conn.stream.set_read_timeout(None).unwrap();
        peer.conn.closed();
    })
}

#[test]
fn an_upstream_that_refuses_is_502() {
    let gateway = Gateway::start(&nobody(), &[]);
    let mut client = gateway.client();
    for request in [get("/"), post("/", "hello")] {
        client.send(request);
        let (head, body) = client.response();
        assert_eq!(head.status(), 502);
        let text = String::from_utf8_lossy(&body.data).into_owned();
        assert!(
            !text.contains("127.0.0.1") && !text.contains("os error"),
            "it tells of the inside: {text}"
        );
    }
}

#[test]
fn garbage_is_502() {
    for garbage in [
        &b"SSH-2.0-OpenSSH_9.6\r\n"[..],
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 99 Low\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"<html>hello</html>",
        b"",
    ] {
        let upstream = Upstream::scripted(move |peer| {
            if peer.request().is_some() {
                let _ = peer.conn.try_send(garbage);
            }
        });
        let gateway = Gateway::start(&upstream.url(), &[]);
        let (head, _) = gateway.ask(get("/"));
        assert_eq!(head.status(), 502, "{:?}", String::from_utf8_lossy(garbage));
    }
}

#[test]
fn an_upstream_that_has_closed_its_half_is_502() {
    // It still reads, and will never answer.
    let upstream = Upstream::scripted(|peer| {
        peer.conn.finish();
        peer.conn.closed();
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    for request in [get("/"), post("/", "x")] {
        assert_eq!(gateway.ask(request).0.status(), 502);
    }
}

#[test]
fn an_answer_whose_head_has_no_end_is_502() {
    let upstream = Upstream::scripted(|peer| {
        if peer.request().is_some() {
            peer.conn.send("HTTP/1.1 200 OK\r\n");
            let field = format!("x-long: {}\r\n", "y".repeat(8_000));
            while peer.conn.try_send(&field).is_ok() {}
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, _) = gateway.ask(get("/"));
    assert_eq!(head.status(), 502);
}

#[test]
fn a_post_is_never_sent_twice() {
    let closing = || {
        Upstream::scripted(|peer| {
            peer.request();
        })
    };
    let upstreams = [closing(), closing()];
    let urls = upstreams.each_ref().map(Upstream::url);
    let gateway = Gateway::before(&[&urls[0], &urls[1]], &[]);
    let (head, _) = gateway.ask(post("/buy", "one"));
    assert_eq!(head.status(), 502);
    std::thread::sleep(Duration::from_millis(100));
    let count: usize = upstreams.iter().map(|one| one.requests().len()).sum();
    assert_eq!(count, 1, "bought twice");
}

#[test]
fn a_post_on_a_connection_closed_meanwhile_is_sent_once_elsewhere() {
    // The upstream closes what is idle after each answer, without saying so in it.
    let upstream = Upstream::scripted(|peer| {
        if let Some(request) = peer.request() {
            peer.conn.send(ok(&request.body.data));
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    for n in 0..30 {
        client.send(post(&format!("/{n}"), "x"));
        let (head, _) = client.response();
        assert_eq!(head.status(), 200, "{n}");
        // Long enough for the end to arrive here.
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut paths: Vec<_> = upstream
        .requests()
        .iter()
        .map(|r| r.head.target().to_owned())
        .collect();
    paths.dedup();
    assert_eq!(paths.len(), 30);
    assert_eq!(upstream.requests().len(), 30);
}

#[test]
fn silence_is_504() {
    let upstream = silent();
    let gateway = Gateway::start(&upstream.url(), &["--timeout", "300ms"]);
    let mut client = gateway.client();
    let start = Instant::now();
    client.send(post("/", "x"));
    let (head, _) = client.response();
    assert_eq!(head.status(), 504);
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(290)..Duration::from_secs(2)).contains(&took),
        "{took:?}"
    );
    eventually("the upstream's connection is given up", || {
        upstream.open() == 0
    });
    assert_eq!(upstream.requests().len(), 1, "asked once");
}

#[test]
fn silence_amid_an_answer_cuts_it() {
    for head in ["content-length: 10", "transfer-encoding: chunked"] {
        let upstream = Upstream::scripted(move |peer| {
            if peer.request().is_some() {
                peer.conn.send(
                    format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n").replace(
                        "\r\n\r\n5\r\nhello\r\n",
                        if head.starts_with('c') {
                            "\r\n\r\nhello"
                        } else {
                            "\r\n\r\n5\r\nhello\r\n"
                        },
                    ),
                );
                peer.conn.closed();
            }
        });
        let gateway = Gateway::start(&upstream.url(), &["--timeout", "300ms"]);
        let mut client = gateway.client();
        client.send(get("/"));
        let head = client.head();
        assert_eq!(head.status(), 200);
        let start = Instant::now();
        assert!(client.body(&head).is_err());
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn slow_is_not_silent() {
    let upstream = Upstream::scripted(|peer| {
        if peer.request().is_some() {
            peer.conn
                .send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n");
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(100));
                peer.conn.send("x");
            }
        }
    });
    let gateway = Gateway::start(&upstream.url(), &["--timeout", "400ms"]);
    let (head, body) = gateway.ask(get("/"));
    assert_eq!((head.status(), body.data.len()), (200, 10));
}

#[test]
fn a_client_that_reads_slowly_is_not_an_upstream_that_is_silent() {
    let upstream = Upstream::answering(|_| ok(&vec![b'x'; 20_000_000]));
    let gateway = Gateway::start(&upstream.url(), &["--timeout", "300ms"]);
    let mut client = gateway.client();
    client.send(get("/"));
    let head = client.head();
    std::thread::sleep(Duration::from_millis(900));
    let body = client.body(&head).expect("the upstream was never silent");
    assert_eq!(body.data.len(), 20_000_000);
}

#[test]
fn a_client_that_sends_slowly_is_not_an_upstream_that_is_silent() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &["--timeout", "400ms"]);
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n");
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        client.send("x");
    }
    let (head, body) = client.response();
    assert_eq!((head.status(), body.data.len()), (200, 10));
}

#[test]
fn half_a_request_does_not_hold_a_connection_for_ever() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &["--timeout", "300ms"]);
    for half in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: a\r\nx: "] {
        let mut client = gateway.client();
        client.send(half);
        if half.is_empty() {
            // One that says nothing is idle, and may stay as idle ones may.
            continue;
        }
        let start = Instant::now();
        assert!(
            client.closed(),
            "{half:?} is still waited for after {PATIENCE:?}"
        );
        assert!(start.elapsed() < PATIENCE);
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn half_a_body_does_not_hold_a_request_for_ever() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &["--timeout", "300ms"]);
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello");
    assert!(client.closed(), "still waited for");
    let answer = String::from_utf8_lossy(&client.read).into_owned();
    // It was the client who was silent.
    assert!(
        answer.is_empty()
            || answer.starts_with("HTTP/1.1 408")
            || answer.starts_with("HTTP/1.1 504"),
        "{answer}"
    );
    assert!(upstream.requests().is_empty());
    eventually("its connection is given up", || upstream.open() == 0);
}

#[test]
fn heads_that_are_too_long_are_431() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let many: String = (0..20_000).map(|n| format!("x-{n}: y\r\n")).collect();
    for fields in [format!("x: {}\r\n", "y".repeat(2_000_000)), many] {
        let mut client = gateway.client();
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        let mut writer = super::raw::Conn::of(client.stream.try_clone().unwrap());
        let writing = std::thread::spawn(move || {
            let _ = writer.try_send(request);
        });
        let head = client.try_head();
        writing.join().unwrap();
        assert_eq!(
            head.expect("an answer, and no reset before it").status(),
            431
        );
        assert!(client.closed());
    }
    let mut client = gateway.client();
    client.send(get(&format!("/{}", "y".repeat(70_000))));
    assert!(matches!(client.bodiless().status(), 414 | 431 | 200));
    // What browsers send is served: RFC 9110 4.1 and 9112 3 ask for 8,000 at least.
    let (head, _) = gateway.ask(format!(
        "GET /{} HTTP/1.1\r\nhost: a\r\ncookie: {}\r\n\r\n",
        "p".repeat(8_000),
        "c".repeat(16_000)
    ));
    assert_eq!(head.status(), 200);
    assert!(upstream.requests().len() <= 2);
}

#[test]
fn bodies_that_are_too_long_are_413() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &["--max-body", "1000"]);
    let (head, _) = gateway.ask(post("/", &"x".repeat(1_000)));
    assert_eq!(head.status(), 200, "as long as it may be");
    let mut client = gateway.client();
    client.send(post("/told", &"x".repeat(1_001)));
    assert_eq!(client.bodiless().status(), 413);
    let mut client = gateway.client();
    client.send("POST /untold HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(super::forward::chunked(&[b'x'; 1_001], 100, ""));
    assert_eq!(client.bodiless().status(), 413);
    let reached = upstream.requests();
    assert_eq!(
        reached.len(),
        1,
        "and no more than the first arrived whole: {reached:?}"
    );
}

#[test]
fn a_full_pool_is_503_and_says_when_to_come_back() {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::scripted(move |peer| {
        while peer.request().is_some() {
            wait.lock().unwrap().recv().unwrap();
            peer.conn.send(ok(b"slow"));
        }
    });
    let gateway = Gateway::start(
        &upstream.url(),
        &["--max-connections", "1", "--acquire-timeout", "150ms"],
    );
    let mut first = gateway.client();
    first.send(get("/first"));
    eventually("it is there", || upstream.requests().len() == 1);
    let start = Instant::now();
    let (head, _) = gateway.ask(get("/second"));
    assert_eq!(head.status(), 503);
    let seconds: u32 = head
        .get("retry-after")
        .expect("Retry-After")
        .parse()
        .expect("seconds");
    assert!(seconds < 3600);
    assert!(start.elapsed() >= Duration::from_millis(140));
    go.send(()).unwrap();
    assert_eq!(
        first.response().0.status(),
        200,
        "the first is none the worse for it"
    );
    go.send(()).unwrap();
    assert_eq!(gateway.ask(get("/third")).0.status(), 200);
    assert_eq!(upstream.peak(), 1);
}
