//! What each option and method of the pool promises.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_test::task;
use tower::Service;
use tower_flow::BoxError;
use tower_flow::phases::Phase;
use tower_flow::pool::{ConnPool, ErrorKind, Protocol};

use super::network::{Dial, Network};
use super::{
    Pool, ask, conn, empty, fails, fetch, get, header, ms, named, post, rest, secs, tasks, text,
};

// ===== waiting =====

#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_the_order_they_came() {
    for h2 in [false, true] {
        let net = Network::new();
        let host = net.host("a.test");
        if h2 {
            host.http2(1);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(1)
            .acquire_timeout(secs(60))
            .build();
        let asked: Vec<_> = (0..50)
            .map(|id| ask(&pool, named(id, host.uri("/sleep/5"))))
            .collect();
        let readers: Vec<_> = asked
            .into_iter()
            .map(|asked| tokio::spawn(async { text(asked.response().await).await }))
            .collect();
        for reader in readers {
            assert_eq!(reader.await.unwrap(), "slept");
        }
        let order: Vec<_> = (0..50).map(|id: u8| id.to_string()).collect();
        assert_eq!(net.log(), order, "h2: {h2}");
        assert_eq!(host.open.total(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_dial_under_way_does_not_count_as_pending() {
    // envoy#11326
    let net = Network::new();
    let host = net.host("a.test");
    host.dial(Dial::Takes(ms(100)));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connecting_per_host(10)
        .max_pending_per_host(1)
        .protocol(Protocol::Http1)
        .build();
    let asked: Vec<_> = (0..10).map(|_| ask(&pool, get(host.uri("/")))).collect();
    for asked in asked {
        assert_eq!(text(asked.response().await).await, "hello");
    }
    assert_eq!(pool.stats().rejected_queue_full, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_outlasts_its_waiters_serves_the_next() {
    let net = Network::new();
    let host = net.host("a.test");
    host.dial(Dial::Takes(secs(8)));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .acquire_timeout(secs(5))
        .connect_timeout(secs(10))
        .build();
    let error = fails(&pool, get(host.uri("/"))).await;
    assert_eq!(error.kind(), ErrorKind::AcquireTimeout);
    assert!(error.phase().is_some(), "it waited for a dial");
    let began = Instant::now();
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
    assert!(began.elapsed() < ms(3_100));
    assert_eq!(host.open.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_waits_its_turn_is_not_begun_when_its_waiter_has_gone() {
    let net = Network::new();
    let host = net.host("a.test");
    host.dial(Dial::Takes(secs(1)));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connecting_per_host(1)
        .protocol(Protocol::Http1)
        .build();
    let asked: Vec<_> = (0..10).map(|_| ask(&pool, get(host.uri("/")))).collect();
    rest().await;
    asked.into_iter().for_each(super::Asked::cancel);
    tokio::time::sleep(secs(60)).await;
    assert_eq!((host.open.total(), pool.stats().waiting), (1, 0));
}

// ===== backoff =====

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_be_reached_is_asked_by_one_probe_at_a_time() {
    let net = Network::new();
    let host = net.host("a.test");
    host.dial(Dial::Refuses);
    let pool: Pool = ConnPool::builder(net.connector())
        .backoff(secs(1), secs(8))
        .acquire_timeout(secs(60))
        .build();
    assert_eq!(
        fails(&pool, get(host.uri("/"))).await.kind(),
        ErrorKind::Connect
    );
    assert_eq!(host.open.total(), 1);
    let mut delays = Vec::new();
    for round in 2..=6 {
        // At once, without a dial, and with the time to come back.
        let mut soon = task::spawn(Box::pin(pool.clone().call(get(host.uri("/")))));
        let Poll::Ready(Err(error)) = soon.poll() else {
            panic!("it backs off")
        };
        assert_eq!(error.kind(), ErrorKind::BackingOff, "{error}");
        assert!(error.is_retryable());
        let delay = error.retry_delay().expect("a time to come back");
        assert!(delay > ms(0) && delay <= secs(8), "{delay:?}");
        delays.push(delay);
        assert_eq!(host.open.total(), round - 1);
        tokio::time::sleep(delay + ms(1)).await;
        // Many come back at once: one dial.
        host.dial(Dial::Fails(ms(100)));
        let asked: Vec<_> = (0..20).map(|_| ask(&pool, get(host.uri("/")))).collect();
        for asked in asked {
            let kind = asked.error().await.kind();
            assert!(
                matches!(kind, ErrorKind::Connect | ErrorKind::BackingOff),
                "{kind:?}"
            );
        }
        assert_eq!(host.open.total(), round, "one probe");
    }
    assert!(delays[4] > delays[0] * 2, "longer and longer: {delays:?}");
    // The probe gets through: all is well at once.
    host.dial(Dial::Connects);
    tokio::time::sleep(secs(9)).await;
    let asked: Vec<_> = (0..20).map(|_| ask(&pool, get(host.uri("/")))).collect();
    for asked in asked {
        assert_eq!(text(asked.response().await).await, "hello");
    }
    // And the next failure begins with the shortest wait again.
    pool.close_idle();
    host.dial(Dial::Refuses);
    assert_eq!(
        fails(&pool, get(host.uri("/"))).await.kind(),
        ErrorKind::Connect
    );
    let delay = fails(&pool, get(host.uri("/")))
        .await
        .retry_delay()
        .unwrap();
    assert!(delay <= secs(1) + ms(500), "{delay:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_fails_nobody_whom_a_connection_will_serve() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(2)
        .protocol(Protocol::Http1)
        .build();
    let held = ask(&pool, get(host.uri("/hold")));
    rest().await;
    host.dial(Dial::Fails(secs(1)));
    let waiter = ask(&pool, get(host.uri("/")));
    tokio::time::sleep(secs(2)).await;
    assert!(
        !waiter.is_finished(),
        "the connection that is there will come free"
    );
    host.release();
    text(held.response().await).await;
    assert_eq!(text(waiter.response().await).await, "hello");
}

// ===== warm, idle, refresh =====

#[tokio::test(start_paused = true)]
async fn warm_connections_are_there_before_the_first_request() {
    for h2 in [false, true] {
        let net = Network::new();
        let host = net.host("a.test");
        if h2 {
            host.http2(2);
        }
        host.dial(Dial::Takes(ms(50)));
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(8)
            .build();
        assert_eq!(pool.warm(&host.uri("/"), 5).await.unwrap(), 5);
        assert_eq!((host.alive.now(), pool.stats().idle), (5, 5), "h2: {h2}");
        let began = Instant::now();
        let asked: Vec<_> = (0..5).map(|_| ask(&pool, get(host.uri("/")))).collect();
        for asked in asked {
            assert_eq!(text(asked.response().await).await, "hello");
        }
        assert!(began.elapsed() < ms(10));
        rest().await;
        assert_eq!(host.open.total(), 5);
        // No more than there may be, and no more than are missing.
        assert_eq!(pool.warm(&host.uri("/"), 100).await.unwrap(), 8);
        assert_eq!(
            (host.alive.now(), host.open.peak(), host.open.total()),
            (8, 8, 8)
        );
    }
    let net = Network::new();
    let host = net.host("a.test");
    host.dial(Dial::Refuses);
    let pool: Pool = ConnPool::builder(net.connector()).build();
    let error = pool
        .warm(&host.uri("/"), 5)
        .await
        .expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::Connect);
    drop(pool);
    rest().await;
    assert_eq!((host.open.now(), tasks()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn idle_connections_close_when_told_and_by_their_clock() {
    for h2 in [false, true] {
        let net = Network::new();
        let (a, b) = (net.host("a.test"), net.host("b.test"));
        if h2 {
            a.http2(100);
            b.http2(100);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .idle_timeout(secs(90))
            .build();
        fetch(&pool, get(a.uri("/"))).await;
        fetch(&pool, get(b.uri("/"))).await;
        let long = ask(&pool, get(b.uri("/stream"))).response().await;
        rest().await;
        assert_eq!(pool.close_idle(), 1);
        rest().await;
        assert_eq!((a.alive.now(), b.alive.now()), (0, 1));
        drop(b.stream());
        text(long).await;
        tokio::time::sleep(secs(89)).await;
        assert_eq!(b.alive.now(), 1);
        tokio::time::sleep(secs(2)).await;
        assert_eq!((net.alive.now(), net.served.now()), (0, 0));
        assert_eq!(pool.stats().open, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_starts_the_idle_clock_anew() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .idle_timeout(secs(90))
        .build();
    for _ in 0..10 {
        fetch(&pool, get(host.uri("/"))).await;
        tokio::time::sleep(secs(80)).await;
    }
    assert_eq!(host.open.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn refresh_closes_what_is_idle_and_drains_what_runs_of_that_host_only() {
    for h2 in [false, true] {
        let net = Network::new();
        let (a, b) = (net.host("a.test"), net.host("b.test"));
        if h2 {
            a.http2(1);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(2)
            .draining_allowance(1)
            .build();
        fetch(&pool, get(b.uri("/"))).await;
        let long = ask(&pool, get(a.uri("/stream"))).response().await;
        fetch(&pool, get(a.uri("/"))).await;
        rest().await;
        assert_eq!(a.alive.now(), 2);
        assert_eq!(pool.refresh(&a.uri("/")), 2, "h2: {h2}");
        rest().await;
        assert_eq!((a.alive.now(), b.alive.now()), (1, 1));
        let old = conn(&long);
        assert_ne!(fetch(&pool, get(a.uri("/"))).await.0, old);
        drop(a.stream());
        text(long).await;
        rest().await;
        assert!(a.conns().iter().all(|conn| conn.id != old));
        // With one stream each, HTTP/2 has one more in hand.
        assert_eq!((a.open.total(), b.open.total()), (3 + usize::from(h2), 1));
        assert_eq!(pool.refresh(&"http://nowhere.test/".parse().unwrap()), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_was_under_way_at_a_refresh_is_not_of_the_old_ones() {
    let net = Network::new();
    let host = net.host("a.test");
    host.dial(Dial::Takes(secs(1)));
    let pool: Pool = ConnPool::builder(net.connector()).build();
    let asked = ask(&pool, get(host.uri("/")));
    rest().await;
    pool.refresh(&host.uri("/"));
    assert_eq!(
        text(asked.response().await).await,
        "hello",
        "served by the old dial or a new one"
    );
    rest().await;
    assert!(host.open.now() <= 1);
}

#[tokio::test(start_paused = true)]
async fn idle_caps_close_the_one_used_longest_ago() {
    let net = Network::new();
    let hosts: Vec<_> = (0..4).map(|n| net.host(&format!("h{n}.test"))).collect();
    let pool: Pool = ConnPool::builder(net.connector()).max_idle(2).build();
    for host in &hosts {
        fetch(&pool, get(host.uri("/"))).await;
        rest().await;
    }
    let alive: Vec<_> = hosts.iter().map(|host| host.alive.now()).collect();
    assert_eq!(alive, [0, 0, 1, 1]);
    // Used again, the older of the two outlives the younger.
    fetch(&pool, get(hosts[2].uri("/"))).await;
    rest().await;
    fetch(&pool, get(hosts[0].uri("/"))).await;
    rest().await;
    let alive: Vec<_> = hosts.iter().map(|host| host.alive.now()).collect();
    assert_eq!(alive, [1, 0, 1, 0]);

    let host = net.host("many.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_idle_per_host(3)
        .build();
    let asked: Vec<_> = (0..10)
        .map(|_| ask(&pool, get(host.uri("/sleep/10"))))
        .collect();
    for asked in asked {
        text(asked.response().await).await;
    }
    rest().await;
    assert_eq!((host.alive.now(), pool.stats().idle), (3, 3));

    // None at all: every connection serves once.
    let host = net.host("none.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_idle_per_host(0)
        .build();
    for n in 1..=3 {
        fetch(&pool, get(host.uri("/"))).await;
        rest().await;
        assert_eq!((host.alive.now(), host.open.total()), (0, n));
    }
}

#[tokio::test(start_paused = true)]
async fn the_least_idle_are_kept_and_replaced() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .min_idle_per_host(3)
        .idle_timeout(secs(10))
        .build();
    fetch(&pool, get(host.uri("/"))).await;
    tokio::time::sleep(secs(1)).await;
    assert_eq!(
        pool.stats().idle,
        4,
        "three in hand, and that of the request"
    );
    tokio::time::sleep(secs(60)).await;
    assert_eq!(host.alive.now(), 3, "no clock takes the last three");
    host.conns()[0].close();
    tokio::time::sleep(secs(1)).await;
    assert_eq!(host.alive.now(), 3, "one was replaced");
    // A host that refuses is not stormed.
    host.dial(Dial::Refuses);
    let before = host.open.total();
    host.conns().iter().for_each(|conn| conn.close());
    tokio::time::sleep(secs(60)).await;
    let dials = host.open.total() - before;
    assert!(dials <= 20, "{dials} dials in a minute");
    drop(pool);
    rest().await;
    assert_eq!((net.open.now(), tasks()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_connection_serves_no_more_requests_than_it_may() {
    for h2 in [false, true] {
        let net = Network::new();
        let host = net.host("a.test");
        if h2 {
            host.http2(100);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(2)
            .max_requests_per_connection(3)
            .build();
        let mut conns = Vec::new();
        for _ in 0..9 {
            conns.push(fetch(&pool, get(host.uri("/"))).await.0);
            rest().await;
        }
        conns.dedup();
        assert_eq!((conns.len(), host.open.total()), (3, 3), "h2: {h2}");
        assert_eq!(host.alive.now(), 0);
        // All at once, too.
        let asked: Vec<_> = (0..30)
            .map(|_| ask(&pool, get(host.uri("/sleep/10"))))
            .collect();
        for asked in asked {
            text(asked.response().await).await;
        }
        rest().await;
        assert!(host.open.peak() <= 2);
        assert!(host.open.total() >= 13, "{}", host.open.total());
        assert_eq!(host.arrived(), 39);
    }
}

// ===== shutdown and drop =====

#[tokio::test(start_paused = true)]
async fn shutdown_cuts_at_its_deadline_what_has_not_ended() {
    for h2 in [false, true] {
        let net = Network::new();
        let (host, hangs) = (net.host("a.test"), net.host("b.test"));
        if h2 {
            host.http2(100);
        }
        hangs.dial(Dial::Hangs(Phase::Connect));
        let pool: Pool = ConnPool::builder(net.connector()).build();
        let response = ask(&pool, get(host.uri("/stream"))).response().await;
        let held = ask(&pool, get(host.uri("/hold")));
        let dials = ask(&pool, get(hangs.uri("/")));
        rest().await;
        let began = Instant::now();
        pool.shutdown(secs(5))
            .await
            .expect("cut, and nothing is left");
        assert!(began.elapsed() >= secs(5) && began.elapsed() < ms(5_100));
        rest().await;
        assert_eq!((net.open.now(), net.served.now()), (0, 0), "h2: {h2}");
        response.into_body().collect().await.expect_err("cut");
        assert!(matches!(
            held.error().await.kind(),
            ErrorKind::Send { .. } | ErrorKind::Closed
        ));
        assert_eq!(dials.error().await.kind(), ErrorKind::Closed);
        // Twice is no harm.
        pool.shutdown(secs(5)).await.expect("nothing is left");
        drop(pool);
        rest().await;
        assert_eq!(tasks(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_of_an_idle_pool_ends_at_once() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector()).build();
    let began = Instant::now();
    fetch(&pool, get(host.uri("/"))).await;
    rest().await;
    pool.shutdown(secs(60)).await.unwrap();
    assert!(began.elapsed() < ms(100));
    rest().await;
    assert_eq!((net.open.now(), tasks()), (0, 0));
    assert_eq!(
        pool.warm(&host.uri("/"), 1)
            .await
            .expect_err("closed")
            .kind(),
        ErrorKind::Closed
    );
}

#[tokio::test(start_paused = true)]
async fn what_runs_outlives_the_last_handle() {
    for h2 in [false, true] {
        let net = Network::new();
        let (host, idle) = (net.host("a.test"), net.host("b.test"));
        if h2 {
            host.http2(100);
        }
        let pool: Pool = ConnPool::builder(net.connector()).build();
        fetch(&pool, get(idle.uri("/"))).await;
        let response = ask(&pool, get(host.uri("/stream"))).response().await;
        let held = ask(&pool, get(host.uri("/hold")));
        rest().await;
        drop(pool);
        rest().await;
        assert_eq!(idle.alive.now(), 0, "idle ones close at once");
        let mut writer = host.stream();
        for _ in 0..20 {
            tokio::time::sleep(secs(60)).await;
            writer.send_data("piece".into()).await.unwrap();
            rest().await;
        }
        drop(writer);
        host.release();
        assert_eq!(text(held.response().await).await, "held");
        assert_eq!(text(response).await, "piece".repeat(20));
        rest().await;
        assert_eq!(
            (net.open.now(), net.served.now(), tasks()),
            (0, 0, 0),
            "h2: {h2}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn waiters_and_dials_outlive_the_last_handle_they_came_by() {
    // A future under way is a handle, too: `ServiceExt::oneshot` drops the pool it was given.
    let net = Network::new();
    let host = net.host("a.test");
    host.dial(Dial::Takes(secs(1)));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    let asked: Vec<_> = (0..5).map(|_| ask(&pool, get(host.uri("/")))).collect();
    drop(pool);
    for asked in asked {
        assert_eq!(text(asked.response().await).await, "hello");
    }
    rest().await;
    assert_eq!((net.open.now(), tasks()), (0, 0));
}

// ===== HTTP/1 =====

#[tokio::test(start_paused = true)]
async fn a_connection_is_not_returned_before_the_request_body_is_written() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .acquire_timeout(secs(60))
        .build();
    let (mut upload, body) = Channel::<Bytes, BoxError>::new(8);
    let response = ask(&pool, post("a", host.uri("/early"), body.boxed()))
        .response()
        .await;
    drop(host.stream());
    text(response).await;
    let waiter = ask(&pool, get(host.uri("/")));
    tokio::time::sleep(ms(500)).await;
    assert_eq!(pool.stats().waiting, 1, "half of the exchange still runs");
    upload.send_data("the rest".into()).await.unwrap();
    drop(upload);
    assert_eq!(text(waiter.response().await).await, "hello");
    assert_eq!(host.open.peak(), 1);
}

/// A peer that answers before it has the request, and then stops reading.
#[tokio::test(start_paused = true)]
async fn an_early_answer_keeps_its_slot_for_a_second_at_most() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .acquire_timeout(secs(60))
        .build();
    for read in [true, false] {
        let (_upload, body) = Channel::<Bytes, BoxError>::new(8);
        let response = ask(&pool, post("a", host.uri("/early"), body.boxed()))
            .response()
            .await;
        if read {
            drop(host.stream());
            text(response).await;
        } else {
            drop(response);
        }
        let began = tokio::time::Instant::now();
        assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
        assert!(began.elapsed() < ms(1_100), "{:?}", began.elapsed());
    }
    assert_eq!(host.open.peak(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_answer_is_over_is_not_cut_as_idle() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(10);
    let pool: Pool = ConnPool::builder(net.connector())
        .max_requests_per_connection(1)
        .idle_timeout(ms(10))
        .build();
    let (mut upload, body) = Channel::<Bytes, BoxError>::new(8);
    let response = ask(&pool, post("a", host.uri("/early"), body.boxed()))
        .response()
        .await;
    drop(host.stream());
    text(response).await;
    tokio::time::sleep(secs(1)).await;
    assert_eq!((pool.stats().draining, host.alive.now()), (1, 1));
    upload.send_data("the rest".into()).await.unwrap();
    drop(upload);
    tokio::time::sleep(secs(1)).await;
    assert_eq!((pool.stats().open, host.alive.now()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn for_ever_is_a_lifetime_a_pause_and_a_timeout() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_lifetime(Duration::MAX, 0.0)
        .idle_timeout(Duration::MAX)
        .connect_timeout(Duration::MAX)
        .acquire_timeout(Duration::MAX)
        .backoff(Duration::MAX, Duration::MAX)
        .max_connections_per_host(usize::MAX)
        .draining_allowance(usize::MAX)
        .build();
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
    host.dial(Dial::Refuses);
    pool.close_idle();
    rest().await;
    let kinds = [ErrorKind::Connect, ErrorKind::BackingOff];
    for kind in kinds {
        let error = ask(&pool, get(host.uri("/"))).error().await;
        assert_eq!(error.kind(), kind);
    }
}

/// A connector that cannot be cloned at first.
struct Skittish<C>(C, Arc<std::sync::atomic::AtomicUsize>);

impl<C: Clone> Clone for Skittish<C> {
    fn clone(&self) -> Self {
        let left = &self.1;
        let panics = left.load(std::sync::atomic::Ordering::Relaxed) > 0;
        if panics {
            left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            panic!("no clone of this one");
        }
        Self(self.0.clone(), left.clone())
    }
}

impl<C: Service<http::Uri>> Service<http::Uri> for Skittish<C> {
    type Response = C::Response;
    type Error = C::Error;
    type Future = C::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), C::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: http::Uri) -> C::Future {
        self.0.call(uri)
    }
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_in_its_clone_gives_every_slot_back() {
    let net = Network::new();
    let host = net.host("a.test");
    let connector = Skittish(net.connector(), Arc::new(2.into()));
    let pool: Pool = ConnPool::builder(connector)
        .protocol(Protocol::Http1)
        .max_connections_per_host(2)
        .backoff(Duration::ZERO, Duration::ZERO)
        .build();
    let asked: Vec<_> = (0..2).map(|_| ask(&pool, get(host.uri("/")))).collect();
    for asked in asked {
        assert_eq!(asked.error().await.kind(), ErrorKind::Connect);
    }
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
    assert_eq!((pool.stats().dialling, pool.stats().open), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_first_hosts_have_series_and_keep_them() {
    let net = Network::new();
    let flow = tower_flow::Flow::new("caller");
    let pool: Pool = ConnPool::builder(net.connector())
        .host_metrics(1)
        .attach(&flow)
        .build();
    for name in ["a.test", "b.test", "c.test"] {
        fetch(&pool, get(net.host(name).uri("/"))).await;
        let text = flow.encode(tower_flow::metrics::Format::Classic);
        let text = String::from_utf8(text).unwrap();
        let series = |host: &str| text.matches(&format!("server_address=\"{host}\"")).count();
        assert_eq!((series("a.test"), series(name).max(2)), (2, 2), "{text}");
        assert_eq!(series("b.test") + series("c.test"), 0, "{text}");
        pool.close_idle();
        rest().await;
        // Idle or not, whoever had series has them again.
        fetch(&pool, get(net.host("a.test").uri("/"))).await;
    }
}

/// A task that lives by its waker alone is dropped with it, and with the task whatever it has of the pool.
#[tokio::test(start_paused = true)]
async fn wakers_and_errors_may_use_the_pool_when_they_are_dropped() {
    struct Nosy(Pool);
    impl std::task::Wake for Nosy {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for Nosy {
        fn drop(&mut self) {
            self.0.stats();
        }
    }
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    let held = ask(&pool, get(host.uri("/hold")));
    rest().await;
    let mut waiting = Box::pin(pool.clone().call(get(host.uri("/"))));
    for _ in 0..3 {
        let waker = std::task::Waker::from(Arc::new(Nosy(pool.clone())));
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
    }
    drop(waiting);
    host.release();
    text(held.response().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_closes_its_http1_connection_and_only_its_http2_stream() {
    for h2 in [false, true] {
        let net = Network::new();
        let host = net.host("a.test");
        if h2 {
            host.http2(1);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(1)
            .build();
        for _ in 0..10 {
            let asked = ask(&pool, get(host.uri("/hold")));
            rest().await;
            assert_eq!(host.held(), 1);
            asked.cancel();
            rest().await;
            assert_eq!(host.held(), 0, "the server has learned of it");
            assert_eq!((pool.stats().active, pool.stats().streams), (0, 0));
        }
        assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
        assert_eq!(host.open.total(), if h2 { 1 } else { 11 });
        assert_eq!(host.open.peak(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_host_header_is_set_when_it_is_absent_and_kept_when_it_is_there() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector()).build();
    for (uri, given, expected) in [
        ("http://a.test/path?query", None, "a.test"),
        ("http://a.test:8080/path?query", None, "a.test:8080"),
        ("http://a.test:80/path?query", None, "a.test"),
        ("http://user:secret@a.test/path?query", None, "a.test"),
        ("http://a.test/path?query", Some("other.test"), "other.test"),
    ] {
        let mut req = get(uri.parse().unwrap());
        if let Some(given) = given {
            req.headers_mut()
                .insert(header::HOST, given.parse().unwrap());
        }
        let response = ask(&pool, req).response().await;
        assert_eq!(header(&response, "x-host"), expected, "{uri}");
        assert_eq!(header(&response, "x-uri"), "/path?query", "origin form");
    }
    assert_eq!(host.arrived(), 5);
}

#[tokio::test(start_paused = true)]
async fn http2_requests_carry_no_headers_of_http1() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(100);
    let pool: Pool = ConnPool::builder(net.connector()).build();
    let req = Request::get(host.uri("/path"))
        .header(header::CONNECTION, "keep-alive")
        .body(empty())
        .unwrap();
    let response = ask(&pool, req).response().await;
    assert_eq!(header(&response, "x-connection"), "");
    assert_eq!(header(&response, "x-uri"), "http://a.test/path");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_is_asked_in_absolute_form_and_tunnels_in_authority_form() {
    let net = Network::new();
    let host = net.host("a.test");
    for proxied in [true, false] {
        host.set(|setup| setup.proxied = proxied);
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(1)
            .acquire_timeout(secs(60))
            .build();
        let response = ask(&pool, get(host.uri("/path"))).response().await;
        let expected = if proxied {
            "http://a.test/path"
        } else {
            "/path"
        };
        assert_eq!(header(&response, "x-uri"), expected);
        text(response).await;

        let req = Request::connect("http://a.test:443").body(empty()).unwrap();
        let response = ask(&pool, req).response().await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "x-uri"), "a.test:443");
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        io.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        io.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
        drop(io);
        rest().await;
        assert_eq!(
            host.alive.now(),
            1,
            "the tunnel's is gone, that of the request idles"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn schemes_and_ports_are_hosts_of_their_own() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector()).build();
    for uri in ["http://a.test/", "http://A.test/", "http://a.test:80/"] {
        fetch(&pool, get(uri.parse().unwrap())).await;
        rest().await;
    }
    let same = host.open.total();
    for uri in ["http://a.test:8080/", "https://a.test/"] {
        fetch(&pool, get(uri.parse().unwrap())).await;
        rest().await;
    }
    assert_eq!(host.open.total(), same + 2);
    assert_eq!(pool.stats().hosts as usize, host.open.total());
}

// ===== HTTP/2 =====

#[tokio::test(start_paused = true)]
async fn http2_scales_out_before_the_last_stream_is_taken() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(10);
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(3)
        .scale_at(0.8)
        .build();
    let mut open = Vec::new();
    let mut conns = Vec::new();
    for n in 1..=30 {
        open.push(ask(&pool, get(host.uri("/stream"))).response().await);
        rest().await;
        conns.push(host.alive.now());
        let over: usize = host
            .conns()
            .iter()
            .map(|conn| conn.wire.lock().unwrap().over)
            .sum();
        assert_eq!((over, pool.stats().streams), (0, n));
    }
    assert_eq!(conns[..7], [1; 7], "no sooner than needed");
    assert_eq!(conns[10], 2, "the eleventh has one to go to");
    assert!(conns[9] == 2, "made before the first was full: {conns:?}");
    assert_eq!(conns[29], 3);
    let waiter = ask(&pool, get(host.uri("/")));
    rest().await;
    assert_eq!(pool.stats().waiting, 1);
    drop(open);
    assert_eq!(text(waiter.response().await).await, "hello");
    rest().await;
    assert_eq!(pool.stats().streams, 0);
    assert_eq!(host.open.peak(), 3);
}

#[tokio::test(start_paused = true)]
async fn our_own_limit_of_streams_stands_below_the_peers() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(100);
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(2)
        .max_streams_per_connection(3)
        .build();
    let asked: Vec<_> = (0..10)
        .map(|_| ask(&pool, get(host.uri("/hold"))))
        .collect();
    rest().await;
    assert_eq!((host.held(), pool.stats().waiting), (6, 4));
    for asked in asked {
        while host.release().is_some() {}
        text(asked.response().await).await;
        rest().await;
    }
    for conn in host.conns() {
        assert!(conn.wire.lock().unwrap().peak <= 3);
    }
}

#[tokio::test(start_paused = true)]
async fn http2_is_offered_only_after_the_peers_settings() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(2).set(|setup| setup.greets_after = secs(1));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .acquire_timeout(secs(60))
        .build();
    let asked: Vec<_> = (0..10)
        .map(|id| ask(&pool, named(id, host.uri("/sleep/10"))))
        .collect();
    tokio::time::sleep(ms(900)).await;
    assert_eq!(host.arrived(), 0);
    assert_eq!(
        host.conn().wire.lock().unwrap().peak,
        0,
        "no stream is open yet"
    );
    for asked in asked {
        text(asked.response().await).await;
    }
    let conn = host.conn();
    let wire = conn.wire.lock().unwrap();
    assert_eq!((wire.peak, wire.over), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn the_protocol_is_learned_anew_when_a_host_changes_its_mind() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(100);
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(4)
        .build();
    fetch(&pool, get(host.uri("/"))).await;
    for round in 0..4 {
        if round % 2 == 0 {
            host.speaks(super::network::Speak::Http1);
        } else {
            host.http2(100);
        }
        host.conns().iter().for_each(|conn| conn.close());
        rest().await;
        let asked: Vec<_> = (0..20).map(|_| ask(&pool, get(host.uri("/")))).collect();
        for asked in asked {
            assert_eq!(text(asked.response().await).await, "hello");
        }
        rest().await;
        assert!(host.open.peak() <= 4);
    }
}

#[tokio::test(start_paused = true)]
async fn prior_knowledge_needs_no_alpn() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(100).set(|setup| setup.alpn_h2 = Some(false));
    let pool: Pool = ConnPool::builder(net.connector())
        .protocol(Protocol::Http2)
        .build();
    let asked: Vec<_> = (0..20)
        .map(|_| ask(&pool, get(host.uri("/sleep/10"))))
        .collect();
    for asked in asked {
        assert_eq!(text(asked.response().await).await, "slept");
    }
    assert_eq!(host.open.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_goaway_that_cuts_off_a_stream_is_answered_or_fails_and_is_never_sent_twice() {
    for yields in 0..30 {
        let net = Network::new();
        let host = net.host("a.test");
        host.http2(100);
        let pool: Pool = ConnPool::builder(net.connector()).build();
        let long = ask(&pool, get(host.uri("/stream"))).response().await;
        // The stream that runs is the first; nothing after it is served.
        host.conn().goaway_after(1);
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        let asked = ask(&pool, named("racer", host.uri("/")));
        match asked.result().await {
            Ok(response) => {
                assert_eq!(text(response).await, "hello");
                assert_eq!(net.seen("racer"), 1, "after {yields} yields");
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Send { .. }), "{error:?}");
                assert_eq!(net.seen("racer"), 0, "after {yields} yields");
            }
        }
        let mut writer = host.stream();
        writer.send_data("to the end".into()).await.unwrap();
        drop(writer);
        assert_eq!(text(long).await, "to the end");
        assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
        rest().await;
        assert_eq!(host.open.now(), 1);
    }
}
