//! Bodies as they flow, stop and break off.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::forward::chunked;
use super::raw::PATIENCE;
use super::upstream::{Request, Upstream, eventually};
use super::{Gateway, get};

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

#[test]
fn an_answer_arrives_while_it_is_made() {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::scripted(move |peer| {
        if peer.request().is_some() {
            peer.conn.send(CHUNKED);
            for part in ["one", "two", "six"] {
                wait.lock().unwrap().recv().unwrap();
                peer.conn.send(format!("3\r\n{part}\r\n"));
            }
            wait.lock().unwrap().recv().unwrap();
            peer.conn.send("0\r\n\r\n");
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(get("/"));
    // The head does not wait for the body, nor a part for the next.
    assert_eq!(client.head().status(), 200);
    for part in ["one", "two", "six"] {
        go.send(()).unwrap();
        assert_eq!(client.chunk().unwrap().unwrap(), part.as_bytes());
    }
    go.send(()).unwrap();
    assert_eq!(client.chunk().unwrap(), None);
}

#[test]
fn a_request_arrives_while_it_is_made_and_may_be_answered_meanwhile() {
    let upstream = Upstream::scripted(|peer| {
        let Some(_) = peer.head() else { return };
        peer.conn.send(CHUNKED);
        while let Ok(Some(chunk)) = peer.conn.chunk() {
            peer.conn
                .send(chunked(&chunk, 99, "").strip_suffix(b"0\r\n\r\n").unwrap());
        }
        peer.conn.send("0\r\n\r\n");
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(client.head().status(), 200, "before there is a body");
    for part in ["ping", "pong"] {
        client.send(format!("4\r\n{part}\r\n"));
        assert_eq!(client.chunk().unwrap().unwrap(), part.as_bytes());
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk().unwrap(), None);
}

#[test]
fn a_client_that_does_not_read_stops_the_upstream() {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let upstream = Upstream::scripted(move |peer| {
        if peer.request().is_none() {
            return;
        }
        peer.conn
            .send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        let part = vec![b'x'; 100_000];
        peer.conn
            .stream
            .set_write_timeout(Some(Duration::from_millis(700)))
            .unwrap();
        while peer.conn.stream.write_all(&part).is_ok() {
            count.fetch_add(part.len(), Ordering::SeqCst);
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(get("/"));
    assert_eq!(client.head().status(), 200);
    eventually("the upstream is stopped", || {
        let before = written.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        before > 0 && before == written.load(Ordering::SeqCst)
    });
    // What the sockets of both connections hold, which the system sets, and a little between them.
    let written = written.load(Ordering::SeqCst);
    assert!(written < 30_000_000, "{written} bytes went somewhere");
    assert!(
        resident(gateway.program.id()) < 80_000_000,
        "and not into memory"
    );
}

#[test]
fn an_upstream_that_does_not_read_stops_the_client() {
    let (done, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::scripted(move |peer| {
        peer.head();
        let _ = wait.lock().unwrap().recv();
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n");
    client
        .stream
        .set_write_timeout(Some(Duration::from_millis(700)))
        .unwrap();
    let part = vec![b'x'; 100_000];
    let mut written = 0;
    while client.stream.write_all(&part).is_ok() {
        written += part.len();
        assert!(written < 30_000_000, "{written} bytes went somewhere");
    }
    drop(done);
}

fn resident(id: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{id}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Answers with these bytes and breaks off, by an end or by a reset.
fn breaking(bytes: &'static str, reset: bool) -> Upstream {
    Upstream::scripted(move |peer| {
        if peer.request().is_some() {
            peer.conn.send(bytes);
            // Long enough for what was sent to be read: a reset overtakes what lies unread.
            std::thread::sleep(Duration::from_millis(100));
            peer.reset = reset;
        }
    })
}

/// How the answer to a GET ends for the client.
fn ends_whole(upstream: &Upstream) -> bool {
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(get("/"));
    let Ok(head) = client.try_head() else {
        return false;
    };
    if head.status() >= 500 {
        return false;
    }
    client.body(&head).is_ok()
}

#[test]
fn an_answer_that_breaks_off_is_never_whole() {
    for (bytes, reset) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", false),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            false,
        ),
        ("HTTP/1.1 200 OK\r\nx: half a he", false),
        ("HTTP/1.1 200 OK\r\n\r\nno length, and reset", true),
    ] {
        assert!(
            !ends_whole(&breaking(bytes, reset)),
            "{bytes:?}, reset {reset}"
        );
    }
}

#[test]
fn an_old_client_is_told_of_a_break_by_a_reset() {
    // It knows no chunks, and its end of a body is the end of the connection: only a reset is no end.
    let upstream = breaking(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        false,
    );
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    let head = client.head();
    assert_eq!(head.status(), 200);
    assert!(
        client.body(&head).is_err(),
        "a body that is half is taken for whole"
    );
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let (told, left) = channel();
    let told = Mutex::new(told);
    let upstream = Upstream::scripted(move |peer| {
        if peer.request().is_some() {
            let closed = peer.conn.closed();
            told.lock().unwrap().send(closed).unwrap();
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    for reset in [false, true] {
        let mut client = gateway.client();
        client.send(get("/"));
        eventually("it is there", || upstream.open() == 1);
        std::thread::sleep(Duration::from_millis(50));
        if reset {
            client.reset();
        } else {
            drop(client);
        }
        assert!(
            left.recv_timeout(Duration::from_secs(5)).unwrap(),
            "the upstream is told"
        );
        eventually("and its connection is gone", || upstream.open() == 0);
    }
}

#[test]
fn a_client_that_leaves_amid_an_answer_stops_it() {
    let (told, left) = channel();
    let told = Mutex::new(told);
    let upstream = Upstream::scripted(move |peer| {
        if peer.request().is_some() {
            peer.conn.send(CHUNKED);
            let mut sent = Ok(());
            for _ in 0..500 {
                sent = peer.conn.try_send("3\r\nabc\r\n");
                if sent.is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            told.lock().unwrap().send(sent.is_err()).unwrap();
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(get("/"));
    client.head();
    client.chunk().unwrap();
    client.reset();
    assert!(left.recv_timeout(PATIENCE).unwrap(), "the upstream notices");
}

#[test]
fn an_upstream_that_answers_early_need_not_read_the_rest() {
    let upstream = Upstream::scripted(|peer| {
        if let Some(head) = peer.head() {
            peer.conn.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig");
            peer.keep(&Request {
                head,
                body: Default::default(),
            });
            // It closes in order: a reset would take the answer along.
            peer.conn.finish();
            peer.conn.closed();
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nthe beginning");
    let (head, body) = client.response();
    assert_eq!((head.status(), &*body.data), (413, &b"big"[..]));
}

#[test]
fn trailers_pass_both_ways() {
    let upstream = Upstream::answering(|request| {
        let head =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n".to_vec();
        [
            head,
            chunked(&request.body.data, 4, "x-sum: 42\r\nx-more: yes\r\n"),
        ]
        .concat()
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\nconnection: te\r\nte: trailers\r\ntrailer: x-in\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(chunked(b"hello", 2, "x-in: 7\r\n"));
    let (head, body) = client.response();
    assert_eq!((head.status(), &*body.data), (200, &b"hello"[..]));
    let sum = ("x-sum".to_owned(), "42".to_owned());
    assert!(body.trailers.contains(&sum), "{:?}", body.trailers);
    let seen = upstream.request();
    assert_eq!(
        seen.body.trailers,
        [("x-in".to_owned(), "7".to_owned())],
        "{seen:?}"
    );
}

#[test]
fn trailers_cannot_frame_or_route() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ntrailer: x-in\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(chunked(b"hello", 5, "content-length: 99\r\nhost: evil\r\ntransfer-encoding: chunked\r\nconnection: x-in\r\nx-in: 7\r\n"));
    let (head, _) = client.response();
    assert!(matches!(head.status(), 200 | 400), "{head:?}");
    for seen in upstream.requests() {
        for (name, _) in &seen.body.trailers {
            assert!(
                !matches!(
                    &**name,
                    "content-length" | "host" | "transfer-encoding" | "connection"
                ),
                "{seen:?}"
            );
        }
    }
}
