//! The layers by their flags.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::upstream::{Peer, Upstream, eventually, ok, response};
use super::{Gateway, get, post};

/// Answers each request once it is let go.
fn held() -> (std::sync::mpsc::Sender<()>, Upstream) {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::scripted(move |peer: &mut Peer| {
        while let Some(request) = peer.request() {
            if wait.lock().unwrap().recv().is_err() {
                return;
            }
            peer.conn.send(ok(request.head.target().as_bytes()));
        }
    });
    (go, upstream)
}

#[test]
fn equal_reads_in_flight_are_one() {
    let (go, upstream) = held();
    let gateway = Gateway::start(&upstream.url(), &["--coalesce"]);
    let mut clients: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(get("/same?q=1"));
    }
    eventually("it is there", || upstream.requests().len() == 1);
    std::thread::sleep(Duration::from_millis(150));
    go.send(()).unwrap();
    for client in &mut clients {
        let (head, body) = client.response();
        assert_eq!((head.status(), &*body.data), (200, &b"/same?q=1"[..]));
    }
    assert_eq!(upstream.requests().len(), 1);
    go.send(()).unwrap();
    assert_eq!(gateway.ask(get("/same?q=1")).0.status(), 200);
    assert_eq!(upstream.requests().len(), 2, "in flight, not kept");
}

#[test]
fn what_differs_or_changes_things_or_is_somebodys_own_is_not_shared() {
    for requests in [
        [get("/a"), get("/b")],
        [post("/a", "1"), post("/a", "1")],
        [
            "GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer one\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer two\r\n\r\n".to_owned(),
        ],
        [
            "GET / HTTP/1.1\r\nhost: a\r\ncookie: user=one\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nhost: a\r\ncookie: user=two\r\n\r\n".to_owned(),
        ],
        [
            "GET / HTTP/1.1\r\nhost: one\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nhost: two\r\n\r\n".to_owned(),
        ],
        [
            "GET / HTTP/1.1\r\nhost: a\r\nrange: bytes=0-1\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nhost: a\r\nrange: bytes=2-3\r\n\r\n".to_owned(),
        ],
    ] {
        let (go, upstream) = held();
        let gateway = Gateway::start(&upstream.url(), &["--coalesce"]);
        let mut clients = requests.each_ref().map(|request| {
            let mut client = gateway.client();
            client.send(request);
            client
        });
        eventually(&format!("both are there: {requests:?}"), || {
            upstream.requests().len() == 2
        });
        go.send(()).unwrap();
        go.send(()).unwrap();
        for client in &mut clients {
            assert_eq!(client.response().0.status(), 200);
        }
    }
}

#[test]
fn an_answer_that_varies_goes_to_those_it_is_for() {
    let upstream = Upstream::answering(|request| {
        std::thread::sleep(Duration::from_millis(100));
        let language = request.head.get("accept-language").unwrap();
        response("200 OK", "vary: accept-language\r\n", language.as_bytes())
    });
    let gateway = Gateway::start(&upstream.url(), &["--coalesce"]);
    let mut clients = ["en", "de", "en", "fr"].map(|language| {
        let mut client = gateway.client();
        client.send(format!(
            "GET / HTTP/1.1\r\nhost: a\r\naccept-language: {language}\r\n\r\n"
        ));
        (client, language)
    });
    for (client, language) in &mut clients {
        assert_eq!(client.response().1.data, language.as_bytes());
    }
}

#[test]
fn a_private_answer_is_its_askers_alone() {
    for control in ["private", "no-store"] {
        let upstream = Upstream::answering(move |_| {
            std::thread::sleep(Duration::from_millis(100));
            response(
                "200 OK",
                &format!("cache-control: {control}\r\nset-cookie: session=1\r\n"),
                b"mine",
            )
        });
        let gateway = Gateway::start(&upstream.url(), &["--coalesce"]);
        let mut clients = [(); 4].map(|()| gateway.client());
        for client in &mut clients {
            client.send(get("/"));
        }
        for client in &mut clients {
            assert_eq!(client.response().1.data, b"mine");
        }
        assert_eq!(upstream.requests().len(), 4, "{control}");
    }
}

#[test]
fn a_full_queue_is_503_and_says_when_to_come_back() {
    let (go, upstream) = held();
    let gateway = Gateway::start(&upstream.url(), &["--shed", "--limit", "1", "--queue", "1"]);
    let mut first = gateway.client();
    first.send(get("/first"));
    eventually("it is there", || upstream.requests().len() == 1);
    let mut others: Vec<_> = (0..5).map(|_| gateway.client()).collect();
    for other in &mut others {
        other.send(get("/other"));
    }
    // Whoever waits may be refused later, when it has waited for too long; the others are at once.
    let refused = AtomicUsize::new(0);
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for other in &mut others {
            scope.spawn(|| {
                let (head, _) = other.response();
                match head.status() {
                    503 => {
                        head.get("retry-after")
                            .expect("Retry-After")
                            .parse::<u32>()
                            .expect("seconds");
                        refused.fetch_add(1, Ordering::SeqCst);
                        // A refusal is an answer: the connection stays.
                        other.send(get("/again"));
                        other.response();
                    }
                    200 => drop(served.fetch_add(1, Ordering::SeqCst)),
                    other => panic!("{other}"),
                }
            });
        }
        eventually("four are refused", || refused.load(Ordering::SeqCst) >= 4);
        for _ in 0..12 {
            go.send(()).unwrap();
        }
    });
    assert_eq!(first.response().0.status(), 200);
    assert_eq!(upstream.peak(), 1, "one at a time");
}

#[test]
fn whoever_is_critical_goes_first() {
    let (go, upstream) = held();
    let gateway = Gateway::start(
        &upstream.url(),
        &[
            "--shed",
            "--limit",
            "1",
            "--queue",
            "10",
            "--priority-header",
            "x-priority",
        ],
    );
    let mut first = gateway.client();
    first.send(get("/first"));
    eventually("it is there", || upstream.requests().len() == 1);
    let mut waiting = Vec::new();
    for priority in [
        "best-effort",
        "sheddable",
        "default",
        "nonsense",
        "critical",
    ] {
        let mut client = gateway.client();
        client.send(format!(
            "GET /{priority} HTTP/1.1\r\nhost: a\r\nx-priority: {priority}\r\n\r\n"
        ));
        waiting.push(client);
        std::thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..6 {
        go.send(()).unwrap();
    }
    let paths = || -> Vec<String> {
        upstream
            .requests()
            .iter()
            .map(|r| r.head.target().to_owned())
            .collect()
    };
    eventually("the next is there", || paths().len() > 1);
    assert_eq!(paths()[1], "/critical", "{:?}", paths());
}

#[test]
fn an_upstream_that_refuses_is_asked_less() {
    let upstream =
        Upstream::answering(|_| response("503 Service Unavailable", "retry-after: 1\r\n", b"no"));
    let gateway = Gateway::start(&upstream.url(), &["--throttle"]);
    let mut client = gateway.client();
    let mut ask = |count: usize| {
        for _ in 0..count {
            client.send(get("/"));
            assert_eq!(client.response().0.status(), 503);
        }
    };
    // It takes a while to know.
    let learning = Instant::now() + Duration::from_secs(1);
    while Instant::now() < learning {
        ask(50);
    }
    let before = upstream.requests().len();
    ask(400);
    let asked = upstream.requests().len() - before;
    assert!((1..200).contains(&asked), "{asked} of 400 went through");
}

#[test]
fn an_upstream_that_is_well_is_not_throttled() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &["--throttle", "--shed", "--coalesce"]);
    let mut client = gateway.client();
    for _ in 0..300 {
        client.send(post("/", "x"));
        assert_eq!(client.response().0.status(), 200);
    }
}

/// How many connections to these ports the kernel knows of at the moment, opened or being opened.
pub fn established(ports: &[u16]) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remotes: Vec<_> = ports
        .iter()
        .map(|port| format!("0100007F:{port:04X}"))
        .collect();
    // Those of the connecting side: their remote end is the port; 01 is ESTABLISHED, 02 SYN_SENT. The table is read
    // piece by piece while it changes, and may have a line twice.
    let locals: std::collections::HashSet<_> = table
        .lines()
        .filter_map(|line| {
            let mut parts = line.split_whitespace().skip(1);
            let (local, remote, state) = (parts.next()?, parts.next()?, parts.next()?);
            let counts =
                remotes.iter().any(|wanted| wanted == remote) && matches!(state, "01" | "02");
            counts.then_some(local)
        })
        .collect();
    locals.len()
}

#[test]
fn connections_to_the_upstream_stay_within_the_cap() {
    let upstream = Upstream::answering(|_| {
        std::thread::sleep(Duration::from_millis(2));
        ok(b"x")
    });
    for (flag, cap) in [("--max-connections", 4), ("--max-connections-per-host", 3)] {
        let gateway = Gateway::start(&upstream.url(), &[flag, &cap.to_string()]);
        let peak = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..40)
                .map(|_| {
                    scope.spawn(|| {
                        let mut client = gateway.client();
                        for _ in 0..15 {
                            client.send(get("/"));
                            assert_eq!(client.response().0.status(), 200);
                        }
                    })
                })
                .collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                peak.fetch_max(established(&[upstream.addr.port()]), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let peak = peak.load(Ordering::SeqCst);
        assert!((2..=cap).contains(&peak), "{flag} {cap}: {peak}");
        drop(gateway);
        eventually("they are gone", || upstream.open() == 0);
    }
    assert!(upstream.peak() <= 4, "{}", upstream.peak());
}

#[test]
fn the_cap_is_for_all_upstreams_together() {
    let slow = || {
        Upstream::answering(|_| {
            std::thread::sleep(Duration::from_millis(5));
            ok(b"x")
        })
    };
    let (a, b) = (slow(), slow());
    let gateway = Gateway::before(&[&a.url(), &b.url()], &["--max-connections", "3"]);
    let over = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = gateway.client();
                    for _ in 0..10 {
                        client.send(get("/"));
                        assert_eq!(client.response().0.status(), 200);
                    }
                })
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            let now = established(&[a.addr.port(), b.addr.port()]);
            over.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let over = over.load(Ordering::SeqCst);
    assert!((1..=3).contains(&over), "{over}");
}
