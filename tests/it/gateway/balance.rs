//! Several upstreams, of which some are dead.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::faults::nobody;
use super::upstream::{Upstream, ok};
use super::{Gateway, get, post};

#[test]
fn a_dead_upstream_of_several_costs_no_request() {
    let alive = Upstream::answering(|_| ok(b"alive"));
    let dead = nobody();
    let gateway = Gateway::before(&[&dead, &alive.url(), &dead], &[]);
    for n in 0..60 {
        let request = if n % 2 == 0 { get("/") } else { post("/", "x") };
        let (head, body) = gateway.ask(request);
        assert_eq!((head.status(), &*body.data), (200, &b"alive"[..]), "{n}");
    }
    assert_eq!(alive.requests().len(), 60);
}

#[test]
fn several_upstreams_share_the_work_and_one_that_comes_back_has_its_part() {
    let upstreams = [
        Upstream::answering(|_| ok(b"a")),
        Upstream::answering(|_| ok(b"b")),
    ];
    let urls = upstreams.each_ref().map(Upstream::url);
    let gateway = Gateway::before(&[&urls[0], &urls[1]], &[]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = gateway.client();
                for _ in 0..25 {
                    client.send(get("/"));
                    assert_eq!(client.response().0.status(), 200);
                }
            });
        }
    });
    let counts = upstreams.each_ref().map(|one| one.requests().len());
    assert_eq!(counts.iter().sum::<usize>(), 200);
    assert!(counts.iter().all(|count| *count > 40), "{counts:?}");
}

#[test]
fn one_of_two_dies_under_load_and_no_get_fails() {
    let staying = Upstream::answering(|_| ok(b"fine"));
    let leaving = Upstream::answering(|_| ok(b"fine"));
    let gateway = Gateway::before(&[&staying.url(), &leaving.url()], &[]);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = gateway.client();
                let until = Instant::now() + Duration::from_millis(1500);
                while Instant::now() < until {
                    client.send(get("/"));
                    let (head, _) = client.response();
                    if head.status() != 200 {
                        failed.lock().unwrap().push(head.first);
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        assert!(!leaving.requests().is_empty());
        drop(leaving);
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} failed: {:?}",
        failed.len(),
        failed.first()
    );
    // And it goes on without the other.
    assert_eq!(gateway.ask(post("/", "x")).0.status(), 200);
}
