//! SIGTERM: what was accepted is finished, and then it is over.

use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::raw::Conn;
use super::upstream::{Upstream, eventually, ok};
use super::{Gateway, get};

const LONG: Duration = Duration::from_secs(10);

/// Answers after so long.
fn slow(time: Duration) -> Upstream {
    Upstream::answering(move |request| {
        std::thread::sleep(time);
        ok(request.head.target().as_bytes())
    })
}

#[test]
fn with_nothing_to_do_it_ends_at_once() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &["--admin", "127.0.0.1:0"]);
    gateway.ask(get("/"));
    let _idle = gateway.client();
    let mut used = gateway.client();
    used.send(get("/"));
    used.response();
    let start = Instant::now();
    gateway.program.terminate();
    let status = gateway.program.wait(LONG);
    assert_eq!(status.code(), Some(0), "{}", gateway.program.stderr());
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    assert!(used.closed());
    assert!(TcpStream::connect(gateway.addr).is_err());
}

#[test]
fn a_request_that_is_under_way_is_answered() {
    let upstream = slow(Duration::from_millis(600));
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut clients: Vec<_> = (0..5).map(|_| gateway.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(get(&format!("/{n}")));
    }
    eventually("all are there", || upstream.open() == 5);
    gateway.program.terminate();
    for (n, client) in clients.iter_mut().enumerate() {
        let (head, body) = client.response();
        assert_eq!(
            (head.status(), body.data),
            (200, format!("/{n}").into_bytes())
        );
        assert!(
            head.list("connection")
                .iter()
                .any(|option| option == "close"),
            "told not to come back: {head:?}"
        );
        assert!(client.closed());
    }
    assert_eq!(gateway.program.wait(LONG).code(), Some(0));
}

#[test]
fn a_request_half_of_which_has_come_is_served() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut head_only = gateway.client();
    head_only.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello");
    eventually("it is there", || upstream.open() == 1);
    let mut half = gateway.client();
    half.send("GET /half HTTP/1.1\r\nho");
    std::thread::sleep(Duration::from_millis(50));
    gateway.program.terminate();
    std::thread::sleep(Duration::from_millis(200));
    head_only.send("world");
    let (head, body) = head_only.response();
    assert_eq!((head.status(), &*body.data), (200, &b"helloworld"[..]));
    half.send("st: a\r\n\r\n");
    assert_eq!(
        half.response().0.status(),
        200,
        "its first bytes had been accepted"
    );
    assert_eq!(gateway.program.wait(LONG).code(), Some(0));
}

#[test]
fn an_answer_that_flows_is_not_cut() {
    let upstream = Upstream::scripted(|peer| {
        if peer.request().is_some() {
            peer.conn
                .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            for _ in 0..10 {
                peer.conn.send("4\r\ntick\r\n");
                std::thread::sleep(Duration::from_millis(80));
            }
            peer.conn.send("0\r\n\r\n");
        }
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(get("/"));
    let head = client.head();
    gateway.program.terminate();
    assert_eq!(client.body(&head).unwrap().data.len(), 40);
    assert_eq!(gateway.program.wait(LONG).code(), Some(0));
}

#[test]
fn an_upgraded_connection_has_the_grace_and_no_more() {
    let upstream = Upstream::scripted(|peer| {
        if peer.head().is_some() {
            peer.conn.send(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            );
            while let Ok(byte) = peer.conn.exactly(1) {
                peer.conn.send(byte);
            }
        }
    });
    let gateway = Gateway::start(&upstream.url(), &["--grace", "700ms"]);
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
    assert_eq!(client.head().status(), 101);
    gateway.program.terminate();
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(200));
    client.send("still");
    assert_eq!(client.exactly(5).unwrap(), b"still");
    gateway.program.wait(LONG);
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn grace_is_the_longest_it_takes() {
    let upstream = super::faults::silent();
    let gateway = Gateway::start(&upstream.url(), &["--grace", "400ms"]);
    let mut client = gateway.client();
    client.send(get("/"));
    eventually("it is there", || upstream.requests().len() == 1);
    let start = Instant::now();
    gateway.program.terminate();
    gateway.program.wait(LONG);
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(350)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
    // Cut or answered with an error, but never with success.
    if let Ok(head) = client.try_head() {
        assert!(head.status() >= 500, "{head:?}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let upstream = super::faults::silent();
    let gateway = Gateway::start(&upstream.url(), &["--grace", "60s"]);
    let mut client = gateway.client();
    client.send(get("/"));
    eventually("it is there", || upstream.requests().len() == 1);
    gateway.program.terminate();
    std::thread::sleep(Duration::from_millis(200));
    assert!(gateway.program.ended().is_none());
    gateway.program.terminate();
    gateway.program.wait(Duration::from_secs(3));
}

#[test]
fn busy_clients_lose_no_request_to_the_end() {
    let upstream = Upstream::answering(|_| ok(b"fine"));
    let gateway = Gateway::start(&upstream.url(), &[]);
    let answered = AtomicUsize::new(0);
    let (told, failures) = channel();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            let told = told.clone();
            let (gateway, answered) = (&gateway, &answered);
            scope.spawn(move || {
                // Until nobody listens any more. A connection is left when it says so, as RFC 9112 9.6 has it.
                while let Ok(stream) = TcpStream::connect(gateway.addr) {
                    let mut client = Conn::of(stream);
                    let mut close = false;
                    let mut used = 0;
                    while !close {
                        let whole = client.try_send(get("/")).and_then(|()| client.try_head());
                        let whole =
                            whole.and_then(|head| client.body(&head).map(|body| (head, body)));
                        match whole {
                            Ok((head, body)) if head.status() == 200 && body.data == b"fine" => {
                                answered.fetch_add(1, Ordering::Relaxed);
                                used += 1;
                                close = head
                                    .list("connection")
                                    .iter()
                                    .any(|option| option == "close");
                            }
                            Ok((head, _)) => {
                                told.send(format!("{} after {used}", head.first)).unwrap();
                                close = true;
                            }
                            // One that was in the queue of the listener when that was closed was never accepted.
                            Err(_) if used == 0 && gateway.program.ended().is_some() => return,
                            Err(error) => {
                                told.send(format!("{error} after {used}")).unwrap();
                                close = true;
                            }
                        }
                    }
                }
            });
        }
        drop(told);
        eventually("there is traffic", || {
            answered.load(Ordering::Relaxed) > 1000
        });
        gateway.program.terminate();
    });
    let failures: Vec<_> = failures.iter().collect();
    assert!(
        failures.is_empty(),
        "{} of {answered:?} failed: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    assert_eq!(gateway.program.wait(LONG).code(), Some(0));
}

#[test]
fn requests_that_wait_for_a_connection_are_served_too() {
    let upstream = slow(Duration::from_millis(150));
    let gateway = Gateway::start(&upstream.url(), &["--max-connections", "1"]);
    let mut clients: Vec<_> = (0..4).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    eventually("one is there", || upstream.open() == 1);
    std::thread::sleep(Duration::from_millis(30));
    gateway.program.terminate();
    for client in &mut clients {
        assert_eq!(client.response().0.status(), 200);
    }
    assert_eq!(gateway.program.wait(LONG).code(), Some(0));
}

#[test]
fn requests_sent_at_once_are_all_answered() {
    // Three in one write: all were accepted when the first was.
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::answering(move |request| {
        if request.head.target() == "/1" {
            wait.lock().unwrap().recv().unwrap();
        }
        ok(request.head.target().as_bytes())
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send([get("/1"), get("/2"), get("/3")].concat());
    eventually("the first is there", || upstream.open() == 1);
    std::thread::sleep(Duration::from_millis(50));
    gateway.program.terminate();
    std::thread::sleep(Duration::from_millis(100));
    go.send(()).unwrap();
    // Those behind one that says close were not processed, and the client knows (RFC 9112 9.6).
    for path in ["/1", "/2", "/3"] {
        let (head, body) = client.response();
        assert_eq!((head.status(), body.data), (200, path.as_bytes().to_vec()));
        if head
            .list("connection")
            .iter()
            .any(|option| option == "close")
        {
            break;
        }
    }
    assert_eq!(gateway.program.wait(LONG).code(), Some(0));
}
