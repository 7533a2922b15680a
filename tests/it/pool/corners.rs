//! Where two things meet: what a busy week in production brings once.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Version, header};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::Instant;
use tokio_test::{assert_pending, task};
use tower::Service;
use tower_flow::BoxError;
use tower_flow::phases::{Phase, Timings};
use tower_flow::pool::{CloseReason, ConnPool, ErrorKind, PoolEvents, Protocol};
use tower_flow::signal::Signal;

use super::network::{Dial, Network, Speak};
use super::{
    Payload, Pool, ask, conn, empty, fails, fetch, get, ms, named, post, rest, secs, tasks, text,
};

// ===== between a grant and its use =====

#[tokio::test(start_paused = true)]
async fn a_grant_whose_connection_dies_before_its_poll_is_made_good() {
    for h2 in [false, true] {
        let net = Network::new();
        let host = net.host("a.test");
        if h2 {
            host.http2(1);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(1)
            .build();
        let first = ask(&pool, get(host.uri("/hold")));
        rest().await;
        let mut waiter = task::spawn(Box::pin(pool.clone().call(named("w", host.uri("/")))));
        assert_pending!(waiter.poll());
        host.release();
        text(first.response().await).await;
        rest().await;
        assert!(waiter.is_woken(), "granted, and not yet polled");
        host.conn().close();
        rest().await;
        assert_eq!(host.alive.now(), 0, "the granted connection has gone");
        let result = waiter.into_inner().await;
        let response = result.unwrap_or_else(|error| panic!("h2: {h2}: {error:?}"));
        assert_eq!(text(response).await, "hello");
        assert_eq!((host.open.total(), host.open.peak()), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_granted_and_given_up_while_its_connection_dies_is_lost_to_nobody() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    let first = ask(&pool, get(host.uri("/hold")));
    rest().await;
    let mut leaves = task::spawn(Box::pin(pool.clone().call(get(host.uri("/")))));
    assert_pending!(leaves.poll());
    let stays = ask(&pool, get(host.uri("/")));
    rest().await;
    host.release();
    text(first.response().await).await;
    rest().await;
    assert!(leaves.is_woken());
    host.conn().close();
    rest().await;
    drop(leaves);
    assert_eq!(text(stays.response().await).await, "hello");
}

// ===== draining =====

#[tokio::test(start_paused = true)]
async fn a_draining_connection_that_closes_takes_no_healthy_one_along() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(100);
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .draining_allowance(1)
        .build();
    let old = ask(&pool, get(host.uri("/stream"))).response().await;
    host.conn().goaway();
    rest().await;
    let new = ask(&pool, get(host.uri("/stream"))).response().await;
    let healthy = conn(&new);
    assert_eq!(host.alive.now(), 2);
    // Both end in the same moment.
    drop((old, new));
    rest().await;
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.0, healthy);
    assert_eq!(host.open.total(), 2);
}

#[tokio::test(start_paused = true)]
async fn shutdown_tells_of_upgraded_connections_it_cannot_cut() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector()).build();
    let req = Request::get(host.uri("/upgrade"))
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "echo");
    let response = ask(&pool, req.body(empty()).unwrap()).response().await;
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    let unfinished = pool.shutdown(secs(5)).await.expect_err("it is still there");
    assert_eq!((unfinished.connections, host.open.now()), (1, 1));
    drop(upgraded);
    pool.shutdown(secs(5)).await.expect("now it has gone");
    rest().await;
    assert_eq!((net.open.now(), tasks()), (0, 0));
}

/// Two hosts with a stream that never ends, as a gRPC watch, and short calls beside it; a third finds no room.
#[tokio::test(start_paused = true)]
async fn a_host_that_finds_no_room_takes_none_from_those_who_cannot_give_it() {
    let net = Network::new();
    let hosts = [net.host("a.test"), net.host("b.test")];
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections(2)
        .acquire_timeout(secs(5))
        .build();
    let mut watches = Vec::new();
    for host in &hosts {
        host.http2(100);
        watches.push(ask(&pool, get(host.uri("/stream"))).response().await);
    }
    for _ in 0..10 {
        for host in &hosts {
            assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
        }
    }
    let third = net.host("c.test");
    let asked = ask(&pool, get(third.uri("/")));
    rest().await;
    for round in 0..10 {
        for host in &hosts {
            let result = ask(&pool, get(host.uri("/sleep/1"))).result().await;
            let response = result.unwrap_or_else(|error| panic!("round {round}: {error}"));
            text(response).await;
        }
    }
    assert_eq!(asked.error().await.kind(), ErrorKind::AcquireTimeout);
    for host in &hosts {
        assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
    }
    drop(watches);
}

// ===== the last handle =====

#[tokio::test(start_paused = true)]
async fn a_dial_nobody_waits_for_ends_with_the_last_handle() {
    for handle_first in [true, false] {
        let net = Network::new();
        let host = net.host("a.test");
        host.dial(Dial::Hangs(Phase::Connect));
        let pool: Pool = ConnPool::builder(net.connector())
            .connect_timeout(secs(3_600))
            .build();
        let asked = ask(&pool, get(host.uri("/")));
        rest().await;
        assert_eq!(host.dialling.now(), 1);
        if handle_first {
            drop(pool);
            rest().await;
            asked.cancel();
        } else {
            asked.cancel();
            rest().await;
            drop(pool);
        }
        rest().await;
        assert_eq!(
            (host.open.now(), tasks()),
            (0, 0),
            "handle first: {handle_first}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn handles_and_signals_keep_nothing_open() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(2)
        .build();
    let handle = pool.handle();
    let signal = handle.pressure(host.uri("/"));
    assert_eq!(signal.sample(), None, "nothing is known");
    fetch(&pool, get(host.uri("/"))).await;
    rest().await;
    assert_eq!(signal.sample(), Some(0.0));
    let asked: Vec<_> = (0..3).map(|_| ask(&pool, get(host.uri("/hold")))).collect();
    rest().await;
    assert_eq!(signal.sample(), Some(1.5), "two of two, and one waits");
    let seen = handle.host(&host.uri("/")).unwrap();
    assert_eq!(
        (seen.open, seen.active, seen.waiting, seen.streams),
        (2, 2, 1, 2)
    );
    for asked in asked {
        while host.release().is_none() {
            rest().await;
        }
        text(asked.response().await).await;
    }
    rest().await;
    drop(pool);
    rest().await;
    assert_eq!((net.open.now(), tasks()), (0, 0));
    assert_eq!((handle.stats().open, signal.sample()), (0, Some(0.0)));
}

// ===== limits that contradict each other =====

#[tokio::test(start_paused = true)]
async fn a_minimum_of_idle_connections_beyond_the_maximum_makes_no_churn() {
    type Set = fn(
        tower_flow::pool::Builder<super::network::Connector>,
    ) -> tower_flow::pool::Builder<super::network::Connector>;
    let sets: [Set; 3] = [
        |builder| builder.min_idle_per_host(3).max_idle_per_host(2),
        |builder| builder.min_idle_per_host(2).max_idle(3),
        |builder| builder.min_idle_per_host(2).max_idle(0),
    ];
    for (at, set) in sets.into_iter().enumerate() {
        let net = Network::new();
        let hosts = [net.host("a.test"), net.host("b.test")];
        let pool: Pool = set(ConnPool::builder(net.connector())).build();
        for host in &hosts {
            host.dial(Dial::Takes(ms(1)));
            fetch(&pool, get(host.uri("/"))).await;
        }
        tokio::time::sleep(secs(1)).await;
        let dials = net.open.total();
        assert!(
            dials <= 20,
            "{at}: {dials} dials in a second, and nobody asked"
        );
    }
}

/// As a balancer does that has nobody behind it: the dial succeeds, and the connection is good for nothing.
#[tokio::test(start_paused = true)]
async fn a_host_that_hangs_up_on_every_connection_is_not_stormed() {
    let net = Network::new();
    let host = net.host("a.test");
    host.dial(Dial::Takes(ms(1)));
    let pool: Pool = ConnPool::builder(net.connector())
        .min_idle_per_host(2)
        .build();
    fetch(&pool, get(host.uri("/"))).await;
    tokio::time::sleep(secs(1)).await;
    host.speaks(Speak::stray());
    host.conns().iter().for_each(|conn| conn.close());
    let before = host.open.total();
    tokio::time::sleep(secs(10)).await;
    let kept = host.open.total() - before;
    let before = host.open.total();
    let warm = pool.warm(&host.uri("/"), 2).await;
    let warmed = host.open.total() - before;
    assert!(
        kept <= 200 && warmed <= 200,
        "{kept} dials in ten seconds, and {warmed} to warm up ({warm:?})"
    );
}

/// On a thread of its own: what this is about is a loop without end.
#[test]
fn a_minimum_of_idle_connections_and_no_time_to_idle_end() {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let net = Network::new();
            let host = net.host("a.test");
            host.dial(Dial::Takes(ms(1)));
            let pool: Pool = ConnPool::builder(net.connector())
                .min_idle_per_host(1)
                .idle_timeout(Duration::ZERO)
                .build();
            fetch(&pool, get(host.uri("/"))).await;
            tokio::time::sleep(secs(1)).await;
            done.send(host.open.total()).unwrap();
        });
    });
    let dials = ended.recv_timeout(secs(20)).expect("it comes to an end");
    assert!(dials <= 1_100, "{dials} dials in a second");
}

#[tokio::test(start_paused = true)]
async fn limits_lowered_live_close_what_is_idle_now_and_what_is_busy_later() {
    use tower_flow::inspect::{Inspect, Value};
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector()).build();
    let handle = pool.handle();
    let asked: Vec<_> = (0..10)
        .map(|_| ask(&pool, get(host.uri("/hold"))))
        .collect();
    rest().await;
    for _ in 0..4 {
        host.release();
    }
    rest().await;
    let mut asked = asked.into_iter();
    for asked in asked.by_ref().take(4) {
        text(asked.response().await).await;
    }
    rest().await;
    assert_eq!((host.alive.now(), pool.stats().idle), (10, 4));
    handle
        .turn("max_connections_per_host", &Value::Whole(3))
        .unwrap();
    rest().await;
    assert_eq!((host.alive.now(), pool.stats().idle), (6, 0));
    let waiter = ask(&pool, get(host.uri("/")));
    rest().await;
    assert_eq!(pool.stats().waiting, 1, "six are open and three may be");
    while host.release().is_some() {}
    for asked in asked {
        text(asked.response().await).await;
    }
    assert_eq!(text(waiter.response().await).await, "hello");
    rest().await;
    assert_eq!(host.open.total(), 10);
    assert!(host.alive.now() <= 3, "{}", host.alive.now());
    // And raised again.
    handle
        .turn("max_connections_per_host", &Value::Whole(5))
        .unwrap();
    let asked: Vec<_> = (0..6).map(|_| ask(&pool, get(host.uri("/hold")))).collect();
    rest().await;
    assert_eq!((host.held(), pool.stats().waiting), (5, 1));
    drop(asked);
}

#[tokio::test(start_paused = true)]
async fn hosts_that_are_only_remembered_are_bounded() {
    let net = Network::new();
    let pool: Pool = ConnPool::builder(net.connector()).max_hosts(100).build();
    for n in 0..1_000 {
        let uri = format!("http://h{n}.test/").parse().unwrap();
        assert_eq!(fails(&pool, get(uri)).await.kind(), ErrorKind::Connect);
    }
    rest().await;
    let stats = pool.stats();
    assert!(stats.hosts <= 101, "{}", stats.hosts);
    assert_eq!((stats.open, stats.waiting), (0, 0));
}

// ===== runtimes =====

#[test]
fn a_runtime_that_ends_takes_no_clock_of_another_with_it() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, second) = (runtime(), runtime());
    let net = Network::new();
    let (a, b) = (net.host("a.test"), net.host("b.test"));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .acquire_timeout(ms(100))
        .build();
    // The first runtime is where the pool begins to look at the time.
    first.block_on(async {
        fetch(&pool, get(a.uri("/"))).await;
    });
    second.block_on(async {
        let held = ask(&pool, get(b.uri("/hold")));
        while b.held() == 0 {
            tokio::task::yield_now().await;
        }
        let waiter = ask(&pool, get(b.uri("/")));
        while pool.stats().waiting == 0 {
            tokio::task::yield_now().await;
        }
        first.shutdown_background();
        let error = tokio::time::timeout(secs(10), waiter.error()).await;
        let error = error.expect("its time is over after 100 ms");
        assert_eq!(error.kind(), ErrorKind::AcquireTimeout);
        b.release();
        text(held.response().await).await;
    });
}

/// As with a runtime per core, but worse: they end while their connections carry requests of others.
#[test]
fn runtimes_that_come_and_go_share_a_pool_within_its_caps() {
    let net = Network::new();
    let hosts = [net.host("a.test"), net.host("b.test"), net.host("c.test")];
    hosts[1].http2(5);
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections(6)
        .max_connections_per_host(3)
        .acquire_timeout(ms(500))
        .backoff(ms(1), ms(5))
        .build();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (pool, hosts) = (pool.clone(), hosts.clone());
            std::thread::spawn(move || {
                let mut served = 0;
                for round in 0..40 {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    served += runtime.block_on(async {
                        let asked: Vec<_> = (0..15)
                            .map(|n| {
                                let path = if n % 5 == 0 { "/hold" } else { "/bytes/20000" };
                                ask(&pool, get(hosts[(n + thread + round) % 3].uri(path)))
                            })
                            .collect();
                        let mut served = 0;
                        for (n, asked) in asked.into_iter().enumerate() {
                            // What is held, or kept from others by it, goes with the runtime.
                            if n % 5 == 0 || n > 10 {
                                continue;
                            }
                            let answer = tokio::time::timeout(ms(50), asked.result()).await;
                            if let Ok(Ok(response)) = answer {
                                let body = response.into_body().collect();
                                let body = tokio::time::timeout(ms(50), body).await;
                                served += usize::from(matches!(body, Ok(Ok(_))));
                            }
                        }
                        served
                    });
                    match round % 3 {
                        0 => runtime.shutdown_background(),
                        1 => runtime.shutdown_timeout(ms(10)),
                        _ => drop(runtime),
                    }
                }
                served
            })
        })
        .collect();
    let served: usize = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert!(served > 0);
    assert!(net.open.peak() <= 6, "{}", net.open.peak());
    for host in &hosts {
        assert!(host.open.peak() <= 3, "{}", host.open.peak());
    }
    assert_eq!(
        (net.open.now(), net.served.now()),
        (0, 0),
        "they have gone with their runtimes"
    );
    let stats = pool.stats();
    assert_eq!(
        (stats.open, stats.waiting, stats.streams, stats.dialling),
        (0, 0, 0, 0),
        "{stats:?}"
    );
    // In a runtime that stays, it works on.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::sleep(ms(20)).await;
        for host in &hosts {
            assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
        }
    });
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector()).build();
    let mut asked = task::spawn(Box::pin(pool.clone().call(get(host.uri("/")))));
    let std::task::Poll::Ready(Err(error)) = asked.poll() else {
        panic!("nobody can dial")
    };
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert_eq!((net.open.now(), pool.stats().open), (0, 0));
}

// ===== HTTP/2 =====

#[tokio::test(start_paused = true)]
async fn a_peer_that_names_no_limit_of_streams_has_none() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(u32::MAX);
    let pool: Pool = ConnPool::builder(net.connector())
        .protocol(Protocol::Http2)
        .build();
    let asked: Vec<_> = (0..1_000)
        .map(|_| ask(&pool, get(host.uri("/sleep/10"))))
        .collect();
    for asked in asked {
        assert_eq!(text(asked.response().await).await, "slept");
    }
    assert_eq!(host.open.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_no_streams_yet_is_waited_for() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(5).set(|setup| setup.first_streams = Some(0));
    let pool: Pool = ConnPool::builder(net.connector())
        .connect_timeout(secs(3))
        .build();
    let error = fails(&pool, get(host.uri("/"))).await;
    assert_eq!(error.kind(), ErrorKind::ConnectTimeout, "{error}");
    tokio::time::sleep(secs(1)).await;
    let asked = ask(&pool, get(host.uri("/")));
    tokio::time::sleep(secs(1)).await;
    host.conn().settings(5);
    assert_eq!(text(asked.response().await).await, "hello");
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_without_streams_hides_no_idle_one_of_http1() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(2)
        .build();
    let old = ask(&pool, get(host.uri("/stream"))).response().await;
    let first = conn(&old);
    host.http2(100);
    let (second, _) = fetch(&pool, get(host.uri("/"))).await;
    let new = ask(&pool, get(host.uri("/stream"))).response().await;
    assert_eq!(conn(&new), second);
    drop(host.stream());
    text(old).await;
    rest().await;
    drop(host.stream());
    text(new).await;
    host.conns()[1].settings(0);
    rest().await;
    assert_eq!(pool.stats().idle, 2);
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.0, first);
}

// ===== bodies and versions =====

#[tokio::test(start_paused = true)]
async fn a_request_body_that_fails_or_panics_costs_its_request_and_leaks_nothing() {
    for h2 in [false, true] {
        for panics in [false, true] {
            let net = Network::new();
            let host = net.host("a.test");
            if h2 {
                host.http2(100);
            }
            let pool: Pool = ConnPool::builder(net.connector())
                .max_connections_per_host(1)
                .build();
            fetch(&pool, get(host.uri("/"))).await;
            rest().await;
            let body = StreamBody::new(futures_util::stream::poll_fn(
                move |_| -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
                    assert!(!panics, "told to panic in a body");
                    std::task::Poll::Ready(Some(Err("told to fail".into())))
                },
            ));
            let body: Payload = BodyExt::boxed(SyncBody(body));
            let asked = ask(&pool, post("broken", host.uri("/echo"), body));
            let error = tokio::time::timeout(secs(60), asked.error())
                .await
                .expect("it ends");
            assert!(matches!(error.kind(), ErrorKind::Send { .. }), "{error:?}");
            rest().await;
            let stats = pool.stats();
            assert_eq!(
                (stats.active, stats.streams, stats.waiting),
                (0, 0, 0),
                "h2: {h2}"
            );
            assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
            assert_eq!(host.open.peak(), 1);
            if h2 && !panics {
                assert_eq!(host.open.total(), 1, "it was only a stream");
            }
            drop(pool);
            rest().await;
            assert_eq!((net.open.now(), tasks()), (0, 0));
        }
    }
}

/// A body need not be Sync to be boxed as one that is: nobody shares it.
struct SyncBody<B>(B);

impl<B: http_body::Body + Unpin> http_body::Body for SyncBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body_give_the_connection_back_at_once() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    let mut held = Vec::new();
    for _ in 0..3 {
        let req = Request::builder()
            .method(Method::HEAD)
            .uri(host.uri("/bytes/100000"));
        // The response itself is kept: there is nothing to read from it.
        held.push(ask(&pool, req.body(empty()).unwrap()).response().await);
    }
    assert_eq!((host.open.total(), host.arrived()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn http_1_0_and_a_request_that_says_close_use_their_connection_once() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    for n in 1..=3 {
        let req = Request::get(host.uri("/")).header(header::CONNECTION, "close");
        let response = ask(&pool, req.body(empty()).unwrap()).response().await;
        assert_eq!(text(response).await, "hello");
        assert_eq!(host.open.total(), n);
    }
    let host = net.host("b.test");
    host.speaks(Speak::http_1_0());
    for n in 1..=3 {
        let response = ask(&pool, get(host.uri("/"))).response().await;
        assert_eq!(text(response).await, "to the end of the connection");
        assert_eq!(host.open.total(), n);
    }
    rest().await;
    assert_eq!((net.open.now(), pool.stats().open), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn versions_nobody_speaks_are_errors_and_cost_nothing() {
    for h2 in [false, true] {
        let net = Network::new();
        let host = net.host("a.test");
        if h2 {
            host.http2(100);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(1)
            .build();
        for version in [Version::HTTP_09, Version::HTTP_3] {
            let mut req = get(host.uri("/"));
            *req.version_mut() = version;
            let result = tokio::time::timeout(secs(60), ask(&pool, req).result()).await;
            if let Ok(response) = result.expect("it ends") {
                // Over HTTP/2 the version of a request is of no account.
                assert!(h2, "{version:?}");
                text(response).await;
            }
            rest().await;
            assert_eq!(
                (pool.stats().active, pool.stats().streams),
                (0, 0),
                "{version:?}"
            );
        }
        assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
    }
}

// ===== what is told =====

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn push(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl PoolEvents for Told {
    fn get_conn(&self, host: &str) {
        self.push(format!("get {host}"));
    }

    fn got_conn(&self, _: &str, reused: bool, idle: Option<Duration>) {
        self.push(format!(
            "got reused={reused} idle={:?}",
            idle.map(|idle| idle.as_secs())
        ));
    }

    fn put_idle_conn(&self, _: &str) {
        self.push("put idle");
    }

    fn got_first_response_byte(&self, _: &str) {
        self.push("first byte");
    }

    fn connect_start(&self, _: &str) {
        self.push("connect start");
    }

    fn connect_done(&self, _: &str, failed: bool) {
        self.push(format!("connect done failed={failed}"));
    }

    fn retried(&self, _: &str) {
        self.push("retried");
    }

    fn closed(&self, _: &str, reason: CloseReason) {
        self.push(format!("closed {}", reason.as_str()));
    }
}

#[tokio::test(start_paused = true)]
async fn events_tell_the_story_of_each_request_in_order() {
    let net = Network::new();
    let host = net.host("a.test");
    let told = Told::default();
    let pool: Pool = ConnPool::builder(net.connector())
        .events(told.clone())
        .build();
    fetch(&pool, get(host.uri("/"))).await;
    rest().await;
    assert_eq!(
        told.take(),
        [
            "get http://a.test",
            "connect start",
            "connect done failed=false",
            "got reused=false idle=None",
            "first byte",
            "put idle",
        ]
    );
    tokio::time::sleep(secs(7)).await;
    fetch(&pool, get(host.uri("/"))).await;
    rest().await;
    assert_eq!(
        told.take(),
        [
            "get http://a.test",
            "got reused=true idle=Some(7)",
            "first byte",
            "put idle"
        ]
    );
    // The server has closed it by the time the request is sent, and nobody knows.
    host.conn().close();
    fetch(&pool, get(host.uri("/"))).await;
    rest().await;
    let story = told.take();
    let at = |what: &str| story.iter().position(|told| told.starts_with(what));
    assert!(at("got reused=true") < at("retried"), "{story:?}");
    assert!(at("retried") < at("got reused=false"), "{story:?}");
    assert_eq!(
        story
            .iter()
            .filter(|told| told.starts_with("closed"))
            .count(),
        1,
        "{story:?}"
    );
    pool.close_idle();
    rest().await;
    assert_eq!(told.take(), ["closed asked"]);
    host.dial(Dial::Refuses);
    fails(&pool, get(host.uri("/"))).await;
    rest().await;
    assert_eq!(
        told.take(),
        [
            "get http://a.test",
            "connect start",
            "connect done failed=true",
            "closed dial"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn each_reason_to_close_is_counted_under_its_name() {
    let net = Network::new();
    let (h1, h2) = (net.host("a.test"), net.host("b.test"));
    h2.http2(100);
    let make = || ConnPool::builder(net.connector());
    let one = |pool: &Pool, reason: CloseReason| {
        let stats = pool.stats();
        let all: Vec<_> = CloseReason::ALL
            .into_iter()
            .filter(|reason| stats.closed(*reason) > 0)
            .collect();
        assert_eq!(all, [reason]);
    };
    let pool: Pool = make().idle_timeout(secs(1)).build();
    fetch(&pool, get(h1.uri("/"))).await;
    tokio::time::sleep(secs(2)).await;
    one(&pool, CloseReason::IdleTimeout);

    let pool: Pool = make().max_lifetime(secs(1), 0.0).build();
    fetch(&pool, get(h1.uri("/"))).await;
    tokio::time::sleep(secs(2)).await;
    one(&pool, CloseReason::MaxLifetime);

    let pool: Pool = make().max_requests_per_connection(1).build();
    fetch(&pool, get(h1.uri("/"))).await;
    rest().await;
    one(&pool, CloseReason::MaxRequests);

    let pool: Pool = make().max_connections(1).build();
    fetch(&pool, get(h1.uri("/"))).await;
    fetch(&pool, get(h2.uri("/"))).await;
    rest().await;
    one(&pool, CloseReason::Evicted);

    let pool: Pool = make().max_idle(0).build();
    fetch(&pool, get(h1.uri("/"))).await;
    rest().await;
    one(&pool, CloseReason::Surplus);

    for host in [&h1, &h2] {
        let pool: Pool = make().build();
        fetch(&pool, get(host.uri("/"))).await;
        rest().await;
        host.conns().last().unwrap().close();
        rest().await;
        let stats = pool.stats();
        let by_peer = stats.closed(CloseReason::Peer)
            + stats.closed(CloseReason::GoAway)
            + stats.closed(CloseReason::Error);
        assert_eq!((by_peer, stats.open), (1, 0), "{stats:?}");
    }

    let pool: Pool = make().build();
    let running = ask(&pool, get(h2.uri("/stream"))).response().await;
    h2.conns().last().unwrap().goaway();
    rest().await;
    drop(h2.stream());
    text(running).await;
    rest().await;
    one(&pool, CloseReason::GoAway);

    let pool: Pool = make().build();
    let asked = ask(&pool, get(h1.uri("/hold")));
    rest().await;
    asked.cancel();
    rest().await;
    one(&pool, CloseReason::Cancelled);

    let pool: Pool = make().build();
    fails(&pool, get("http://nowhere.test/".parse().unwrap())).await;
    rest().await;
    one(&pool, CloseReason::Dial);

    let pool: Pool = make().build();
    fetch(&pool, get(h1.uri("/"))).await;
    rest().await;
    pool.shutdown(secs(1)).await.unwrap();
    one(&pool, CloseReason::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn timings_tell_the_wait_the_dial_and_the_reuse() {
    let net = Network::new();
    let host = net.host("a.test");
    host.dial(Dial::Takes(ms(40)));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    let response = ask(&pool, get(host.uri("/sleep/10"))).response().await;
    let timings = response.extensions().get::<Timings>().unwrap().clone();
    assert!(!timings.reused());
    assert_eq!(timings.connect(), Some(ms(40)));
    assert_eq!((timings.wait(), timings.first_byte()), (ms(40), ms(50)));
    let waiter = ask(&pool, get(host.uri("/")));
    text(response).await;
    let response = waiter.response().await;
    let timings = response.extensions().get::<Timings>().unwrap().clone();
    assert!(timings.reused());
    assert_eq!(timings.connect(), None);
    text(response).await;
    assert!(timings.end().is_some());
}

#[tokio::test(start_paused = true)]
async fn warming_beside_a_full_house_ends_with_what_there_is() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections(2)
        .acquire_timeout(secs(5))
        .build();
    let other = net.host("b.test");
    let held: Vec<_> = (0..2)
        .map(|_| ask(&pool, get(other.uri("/hold"))))
        .collect();
    rest().await;
    let began = Instant::now();
    let open = pool.warm(&host.uri("/"), 2).await.unwrap();
    assert_eq!(open, 0, "both slots are taken");
    assert!(began.elapsed() < secs(6));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn an_upload_under_way_counts_until_it_ends() {
    // The response is over, the request's body is not: HTTP/2 has half a stream left.
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(1);
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .acquire_timeout(secs(600))
        .build();
    let (mut upload, body) = Channel::<Bytes, BoxError>::new(8);
    let response = ask(&pool, post("a", host.uri("/early"), body.boxed()))
        .response()
        .await;
    drop(host.stream());
    text(response).await;
    let next = ask(&pool, get(host.uri("/")));
    rest().await;
    let over = host.conn().wire.lock().unwrap().over;
    assert_eq!(over, 0, "the peer's limit is kept");
    upload.send_data("the rest".into()).await.unwrap();
    drop(upload);
    assert_eq!(text(next.response().await).await, "hello");
}
