//! The fifteen tests of the pool's contract, by number.

use std::collections::HashSet;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_test::{assert_pending, task};
use tower::Service;
use tower_flow::BoxError;
use tower_flow::phases::Phase;
use tower_flow::pool::{ConnPool, ErrorKind};

use super::network::{Dial, Network, Speak};
use super::{Asked, Pool, ask, conn, fails, fetch, get, ms, named, post, rest, secs, tasks, text};

// ===== 1 =====

#[tokio::test(start_paused = true)]
async fn t01_a_grant_that_is_dropped_before_its_poll_goes_to_the_next() {
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
        let a = ask(&pool, named("a", host.uri("/hold")));
        rest().await;
        let mut b = task::spawn(Box::pin(pool.clone().call(named("b", host.uri("/")))));
        assert_pending!(b.poll());
        let mut c = task::spawn(Box::pin(pool.clone().call(named("c", host.uri("/")))));
        assert_pending!(c.poll());
        rest().await;
        assert!(
            !b.is_woken() && !c.is_woken(),
            "one connection, and it is taken"
        );

        host.release();
        assert_eq!(text(a.response().await).await, "held");
        rest().await;
        assert!(b.is_woken(), "granted");
        assert!(!c.is_woken(), "not yet");
        drop(b);
        rest().await;
        assert!(c.is_woken(), "the grant has gone on");
        assert_eq!(text(c.into_inner().await.unwrap()).await, "hello");
        assert_eq!(net.log(), ["a", "c"]);
        assert_eq!((host.open.peak(), host.open.total()), (1, 1), "h2: {h2}");
        assert_eq!(pool.stats().waiting, 0);
    }
}

// ===== 2 =====

#[tokio::test(start_paused = true)]
async fn t02_a_death_with_three_waiters_makes_one_dial_and_keeps_their_order() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    let a = ask(&pool, named("a", host.uri("/hold")));
    rest().await;
    let mut waiters = Vec::new();
    for id in ["b", "c", "d"] {
        waiters.push(ask(&pool, named(id, host.uri("/"))));
        rest().await;
    }
    assert_eq!(pool.stats().waiting, 3);
    host.dial(Dial::Takes(ms(10)));
    host.conn().close();
    let error = a.error().await;
    assert_eq!(error.kind(), ErrorKind::Send { sent: true }, "{error}");
    for waiter in waiters {
        assert_eq!(text(waiter.response().await).await, "hello");
    }
    assert_eq!(net.log(), ["a", "b", "c", "d"]);
    assert_eq!(host.open.total(), 2, "the first dial, and one more");
    assert_eq!(host.open.peak(), 1);
}

// ===== 3 =====

#[tokio::test(start_paused = true)]
async fn t03_streams_are_counted_against_the_peers_live_limit() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(2);
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(2)
        .acquire_timeout(secs(600))
        .build();
    let mut asked = Vec::new();
    for id in 0..5 {
        asked.push(ask(&pool, named(id, host.uri("/stream"))));
        rest().await;
    }
    // The heads of four have arrived, and that frees nothing.
    assert_eq!((host.streams(), host.conns().len()), (4, 2));
    let stats = pool.stats();
    assert_eq!((stats.waiting, stats.streams), (1, 4));
    assert!(
        host.conns()
            .iter()
            .all(|conn| conn.wire.lock().unwrap().streams() == 2)
    );

    // A body ends and is read to its end: now the fifth runs.
    let last = asked.pop().unwrap();
    let first = asked.remove(0).response().await;
    drop(host.stream_of("0"));
    assert_eq!(text(first).await, "");
    let last = last.response().await;
    assert_eq!((host.arrived(), pool.stats().waiting), (5, 0));

    // The limit falls to one while each connection has two.
    let conns = host.conns();
    conns.iter().for_each(|conn| conn.settings(1));
    rest().await;
    assert!(
        conns
            .iter()
            .all(|conn| conn.wire.lock().unwrap().limit == 1)
    );
    let sixth = ask(&pool, named("5", host.uri("/")));
    rest().await;
    assert_eq!(pool.stats().waiting, 1);
    // One ends on each: both are still full.
    let mut open = vec![("4".to_owned(), last)];
    for (id, asked) in (1..4).zip(asked) {
        open.push((id.to_string(), asked.response().await));
    }
    for conn_of in conns.iter().map(|conn| conn.id) {
        let at = open
            .iter()
            .position(|(_, response)| conn(response) == conn_of);
        let (id, response) = open.remove(at.unwrap());
        drop(host.stream_of(&id));
        text(response).await;
    }
    rest().await;
    assert_eq!(
        (pool.stats().waiting, pool.stats().streams),
        (1, 2),
        "at the limit of one"
    );
    assert_eq!(host.arrived(), 5);
    let (id, response) = open.pop().unwrap();
    drop(host.stream_of(&id));
    text(response).await;
    assert_eq!(text(sixth.response().await).await, "hello");
    for conn in host.conns() {
        let wire = conn.wire.lock().unwrap();
        assert_eq!((wire.peak, wire.over), (2, 0));
    }
    // And rises again: the next wait ends by that alone.
    let seventh = ask(&pool, named("6", host.uri("/stream")));
    rest().await;
    let eighth = ask(&pool, named("7", host.uri("/")));
    rest().await;
    assert_eq!(pool.stats().waiting, 1);
    conns.iter().for_each(|conn| conn.settings(2));
    assert_eq!(text(eighth.response().await).await, "hello");
    drop((seventh, open));
}

// ===== 4 =====

#[tokio::test(start_paused = true)]
async fn t04_at_the_total_cap_the_longest_idle_connection_makes_room() {
    let net = Network::new();
    let (a, b) = (net.host("a.test"), net.host("b.test"));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections(4)
        .build();
    let asked: Vec<_> = (0..4).map(|_| ask(&pool, get(a.uri("/hold")))).collect();
    rest().await;
    // They go idle one after the other.
    let mut idle = Vec::new();
    for asked in asked {
        a.release();
        let response = asked.response().await;
        idle.push(conn(&response));
        text(response).await;
        tokio::time::sleep(secs(1)).await;
    }
    assert_eq!((pool.stats().idle, net.open.now()), (4, 4));
    for left in [3, 2, 1] {
        // Each round of B needs one more.
        let asked: Vec<_> = (left..4).map(|_| ask(&pool, get(b.uri("/hold")))).collect();
        rest().await;
        assert_eq!(b.held(), 4 - left);
        let alive: Vec<_> = a.conns().iter().map(|conn| conn.id).collect();
        assert_eq!(alive, idle[4 - left..], "those idle for longest have gone");
        for asked in asked {
            b.release();
            assert_eq!(text(asked.response().await).await, "held");
        }
        rest().await;
    }
    assert_eq!((net.open.peak(), net.open.now()), (4, 4));
}

// ===== 5 =====

#[tokio::test(start_paused = true)]
async fn t05_a_thousand_first_requests_dial_once_for_h2_and_within_bounds_for_h1() {
    for h2 in [true, false] {
        let net = Network::new();
        let host = net.host("a.test");
        host.dial(Dial::Takes(ms(10)));
        if h2 {
            host.http2(2_000);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(64)
            .max_connecting_per_host(8)
            .build();
        let asked: Vec<_> = (0..1_000)
            .map(|id| ask(&pool, named(id, host.uri("/sleep/20"))))
            .collect();
        for asked in asked {
            assert_eq!(text(asked.response().await).await, "slept");
        }
        if h2 {
            assert_eq!(host.open.total(), 1, "one handshake");
        } else {
            assert!(host.dialling.peak() <= 8, "{}", host.dialling.peak());
            assert!(host.open.peak() <= 64, "{}", host.open.peak());
            assert_eq!(host.alive.peak(), 64, "all that may be had");
        }
        assert_eq!(net.seen_twice(), [""; 0]);
    }
}

// ===== 6 =====

#[tokio::test(start_paused = true)]
async fn t06_shutdown_refuses_who_waits_and_ends_with_what_runs() {
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
        let running = ask(&pool, get(host.uri("/stream")));
        rest().await;
        let response = running.response().await;
        let waiter = ask(&pool, get(host.uri("/")));
        rest().await;
        let closing = {
            let pool = pool.clone();
            tokio::spawn(async move { pool.shutdown(secs(60)).await })
        };
        rest().await;
        assert_eq!(waiter.error().await.kind(), ErrorKind::Closed);
        assert_eq!(
            fails(&pool, get(host.uri("/"))).await.kind(),
            ErrorKind::Closed
        );
        assert!(!closing.is_finished(), "something still runs");
        let mut writer = host.stream();
        writer.send_data("all of it".into()).await.unwrap();
        drop(writer);
        assert_eq!(text(response).await, "all of it");
        let began = Instant::now();
        closing.await.unwrap().unwrap();
        assert!(
            began.elapsed() < ms(100),
            "by the return, not by the deadline"
        );
        rest().await;
        let stats = pool.stats();
        assert_eq!((stats.open, stats.waiting, stats.streams), (0, 0, 0));
        assert_eq!(
            (net.open.now(), net.served.now(), tasks()),
            (0, 0, 0),
            "h2: {h2}"
        );
    }
}

// ===== 7 =====

#[tokio::test(start_paused = true)]
async fn t07_a_body_dropped_half_read_costs_the_connection_only_when_much_is_left() {
    for (path, reused) in [("/bytes/100", true), ("/bytes/10000000", false)] {
        let net = Network::new();
        let host = net.host("a.test");
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(1)
            .build();
        let response = ask(&pool, get(host.uri(path))).response().await;
        let first = conn(&response);
        let waiter = ask(&pool, get(host.uri("/")));
        rest().await;
        // A small body has been read off the connection by now, whoever holds it.
        assert_eq!(waiter.is_finished(), reused, "{path}");
        drop(response);
        let response = waiter.response().await;
        assert_eq!(conn(&response) == first, reused, "{path}");
        assert_eq!(text(response).await, "hello");
        rest().await;
        assert_eq!((host.open.peak(), host.open.now()), (1, 1));
        assert_eq!(pool.stats().idle, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn t07_a_body_dropped_between_frames_frees_its_slot() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    let mut response = ask(&pool, get(host.uri("/stream"))).response().await;
    let first = conn(&response);
    let mut writer = host.stream();
    writer.send_data("one".into()).await.unwrap();
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "one");
    // The rest is already here when the body goes.
    writer.send_data("two".into()).await.unwrap();
    drop(writer);
    rest().await;
    drop(response);
    let response = ask(&pool, get(host.uri("/"))).response().await;
    assert_eq!(conn(&response), first, "one more read came to the end");
    text(response).await;

    let mut response = ask(&pool, get(host.uri("/stream"))).response().await;
    let mut writer = host.stream();
    writer.send_data("one".into()).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    // Nobody knows when the rest will come.
    drop(response);
    let response = ask(&pool, get(host.uri("/"))).response().await;
    assert_ne!(conn(&response), first);
    text(response).await;
    assert_eq!((host.open.peak(), host.open.total()), (1, 2));
}

// ===== 8 =====

#[tokio::test(start_paused = true)]
async fn t08_followers_get_the_connection_when_the_leader_of_its_dial_is_cancelled() {
    for h2 in [true, false] {
        let net = Network::new();
        let host = net.host("a.test");
        host.dial(Dial::Takes(ms(100)));
        if h2 {
            host.http2(100);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(1)
            .build();
        let leader = ask(&pool, named("leader", host.uri("/")));
        rest().await;
        let followers: Vec<_> = (0..10)
            .map(|id| ask(&pool, named(id, host.uri("/"))))
            .collect();
        rest().await;
        leader.cancel();
        for follower in followers {
            assert_eq!(text(follower.response().await).await, "hello");
        }
        assert_eq!((net.seen("leader"), host.open.total()), (0, 1));
    }
}

// ===== 9 =====

#[tokio::test(start_paused = true)]
async fn t09_a_request_goes_past_a_draining_connection_within_the_allowance() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(100);
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .draining_allowance(1)
        .build();
    let long = ask(&pool, get(host.uri("/stream"))).response().await;
    let old = host.conn();
    old.goaway();
    rest().await;
    let response = ask(&pool, named("next", host.uri("/"))).response().await;
    assert_ne!(conn(&response), old.id);
    assert_eq!(text(response).await, "hello");
    assert_eq!((host.open.now(), pool.stats().draining), (2, 1));
    // No third beyond the allowance: both drain now, and the next must wait for one of them.
    let longer = ask(&pool, get(host.uri("/stream"))).response().await;
    host.conns()[1].goaway();
    rest().await;
    let waiter = ask(&pool, get(host.uri("/")));
    rest().await;
    assert_eq!((host.open.now(), pool.stats().waiting), (2, 1));

    let mut writer = host.stream();
    writer.send_data("to the end".into()).await.unwrap();
    drop(writer);
    assert_eq!(text(long).await, "to the end");
    assert_eq!(text(waiter.response().await).await, "hello");
    drop(host.stream());
    assert_eq!(text(longer).await, "");
    rest().await;
    assert_eq!(
        (host.open.now(), host.open.peak(), net.served.now()),
        (1, 2, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn t09_a_request_that_races_goaway_is_sent_exactly_once() {
    // From a GOAWAY nobody has read yet to one that has long been known.
    for yields in 0..30 {
        let net = Network::new();
        let host = net.host("a.test");
        host.http2(100);
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(1)
            .draining_allowance(1)
            .build();
        let long = ask(&pool, get(host.uri("/stream"))).response().await;
        host.conn().goaway();
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        let asked = ask(
            &pool,
            post("racer", host.uri("/echo"), super::payload("body")),
        );
        assert_eq!(
            text(asked.response().await).await,
            "body",
            "after {yields} yields"
        );
        assert_eq!(net.seen("racer"), 1, "after {yields} yields");
        assert!(host.open.peak() <= 2);
        drop(host.stream());
        text(long).await;
    }
}

// ===== 10 =====

#[tokio::test(start_paused = true)]
async fn t10_a_request_on_a_connection_that_just_closed_is_retried_when_nothing_was_sent() {
    let mut retried = 0;
    for yields in 0..10 {
        let net = Network::new();
        let host = net.host("a.test");
        let pool: Pool = ConnPool::builder(net.connector()).build();
        fetch(&pool, get(host.uri("/"))).await;
        rest().await;
        host.conn().close();
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        let asked = ask(
            &pool,
            post("racer", host.uri("/echo"), super::payload("body")),
        );
        assert_eq!(
            text(asked.response().await).await,
            "body",
            "after {yields} yields"
        );
        assert_eq!((net.seen("racer"), host.open.total()), (1, 2));
        retried += pool.stats().retried;
    }
    assert!(
        retried > 0,
        "one of them met the connection before its end was known"
    );
}

#[tokio::test(start_paused = true)]
async fn t10_what_was_sent_in_part_is_never_sent_again() {
    // The server reads one byte of the second request and closes.
    let net = Network::new();
    let host = net.host("a.test");
    host.speaks(Speak::answers_once());
    let pool: Pool = ConnPool::builder(net.connector()).build();
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "ok");
    rest().await;
    let error = fails(&pool, get(host.uri("/"))).await;
    assert_eq!(error.kind(), ErrorKind::Send { sent: true }, "{error}");
    assert_eq!(host.open.total(), 1);

    // The head and part of the body have arrived and had their effect.
    let host = net.host("b.test");
    fetch(&pool, get(host.uri("/"))).await;
    rest().await;
    let (mut writer, body) = Channel::<Bytes, BoxError>::new(8);
    writer.send_data("part".into()).await.unwrap();
    let asked = ask(&pool, post("effect", host.uri("/hold"), body.boxed()));
    rest().await;
    assert_eq!(host.held(), 1);
    host.conn().close();
    let error = asked.error().await;
    assert_eq!(error.kind(), ErrorKind::Send { sent: true }, "{error}");
    assert!(!error.is_retryable(), "the caller must know better");
    assert_eq!((net.seen("effect"), host.open.total()), (1, 1));
    rest().await;
    assert_eq!(net.open.now(), 0);
}

// ===== 11 =====

// Its other half, the layers for clients with a pool of their own, is in `limit.rs`.

#[tokio::test(start_paused = true)]
async fn t11_ten_thousand_waits_leave_no_dial_and_no_task_behind() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    fetch(&pool, get(host.uri("/"))).await;
    rest().await;
    let before = tasks();
    let mut running = ask(&pool, get(host.uri("/hold")));
    for _ in 0..10_000 {
        while host.held() == 0 {
            tokio::task::yield_now().await;
        }
        let next = ask(&pool, get(host.uri("/hold")));
        while pool.stats().waiting == 0 {
            tokio::task::yield_now().await;
        }
        host.release();
        assert_eq!(text(running.response().await).await, "held");
        running = next;
    }
    while host.release().is_none() {
        tokio::task::yield_now().await;
    }
    text(running.response().await).await;
    rest().await;
    assert_eq!(
        (host.open.total(), host.dialling.now(), host.open.peak()),
        (1, 0, 1)
    );
    assert_eq!(tasks(), before, "no task more than after the first request");
    drop(pool);
    rest().await;
    assert_eq!((net.open.now(), net.served.now(), tasks()), (0, 0, 0));
}

// ===== 12 =====

#[tokio::test(start_paused = true)]
async fn t12_a_dial_that_hangs_ends_by_its_deadline_and_hurts_nobody_else() {
    // Name service, SYN, TLS: no answer; or all of it, and no HTTP/2 preface.
    for phase in [Phase::Dns, Phase::Connect, Phase::Tls, Phase::Handshake] {
        let net = Network::new();
        let (sick, well) = (net.host("sick.test"), net.host("well.test"));
        if phase == Phase::Handshake {
            sick.speaks(Speak::silent())
                .set(|setup| setup.alpn_h2 = Some(true));
        } else {
            sick.dial(Dial::Hangs(phase));
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections(4)
            .connect_timeout(secs(3))
            .acquire_timeout(secs(60))
            .build();
        let began = Instant::now();
        let asked: Vec<_> = (0..10).map(|_| ask(&pool, get(sick.uri("/")))).collect();
        rest().await;
        assert_eq!(fetch(&pool, get(well.uri("/"))).await.1, "hello");
        assert!(began.elapsed() < ms(100), "the other host is not affected");
        for asked in asked {
            let error = asked.error().await;
            assert_eq!(error.kind(), ErrorKind::ConnectTimeout, "{error}");
            assert_eq!(error.phase(), Some(phase), "{error}");
            assert!(error.is_retryable(), "nothing was sent");
        }
        assert!(
            began.elapsed() >= secs(3) && began.elapsed() < secs(4),
            "{:?}",
            began.elapsed()
        );
        rest().await;
        assert_eq!((sick.open.now(), sick.open.total()), (0, 1));
        assert_eq!(pool.stats().connects_timed_out, 1);
        assert_eq!(fetch(&pool, get(well.uri("/"))).await.1, "hello");
        // Healed, it serves again.
        sick.speaks(Speak::Http1)
            .dial(Dial::Connects)
            .set(|setup| setup.alpn_h2 = None);
        tokio::time::sleep(secs(20)).await;
        assert_eq!(fetch(&pool, get(sick.uri("/"))).await.1, "hello");
    }
}

// ===== 13 =====

#[tokio::test(start_paused = true)]
async fn t13_a_hundred_connections_of_one_age_do_not_expire_together() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(100)
        .max_idle(100)
        .max_idle_per_host(100)
        .idle_timeout(secs(100_000))
        .max_lifetime(secs(600), 0.1)
        .build();
    let asked: Vec<_> = (0..100)
        .map(|_| ask(&pool, get(host.uri("/hold"))))
        .collect();
    rest().await;
    while host.release().is_some() {}
    for asked in asked {
        text(asked.response().await).await;
    }
    rest().await;
    assert_eq!((host.alive.now(), pool.stats().idle), (100, 100));
    let began = Instant::now();
    let mut alive = 100;
    let mut at_once = 0;
    let mut ends = Vec::new();
    while alive > 0 && began.elapsed() < secs(1_000) {
        tokio::time::sleep(secs(1)).await;
        let now = host.alive.now();
        at_once = at_once.max(alive - now);
        ends.extend(std::iter::repeat_n(began.elapsed().as_secs(), alive - now));
        alive = now;
    }
    assert_eq!(ends.len(), 100);
    assert!(at_once <= 20, "{at_once} expired within one second");
    let (first, last) = (ends[0], ends[99]);
    assert!(first >= 539 && last <= 662, "from {first} s to {last} s");
    assert!(last - first > 20, "from {first} s to {last} s");
    assert_eq!(host.open.total(), 100);
}

#[tokio::test(start_paused = true)]
async fn t13_a_connection_that_expires_in_use_is_drained_and_not_cut() {
    for h2 in [false, true] {
        let net = Network::new();
        let host = net.host("a.test");
        if h2 {
            host.http2(100);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections_per_host(2)
            .max_lifetime(secs(10), 0.0)
            .build();
        let long = ask(&pool, get(host.uri("/stream"))).response().await;
        let old = conn(&long);
        tokio::time::sleep(secs(30)).await;
        assert_eq!(
            (host.alive.now(), pool.stats().draining),
            (1, 1),
            "h2: {h2}"
        );
        assert_ne!(fetch(&pool, get(host.uri("/"))).await.0, old);
        let mut writer = host.stream();
        writer.send_data("to the end".into()).await.unwrap();
        drop(writer);
        assert_eq!(text(long).await, "to the end");
        rest().await;
        assert!(host.conns().iter().all(|conn| conn.id != old), "h2: {h2}");
    }
}

#[tokio::test(start_paused = true)]
async fn t13_a_connection_with_a_silent_stream_is_not_idle() {
    for h2 in [true, false] {
        let net = Network::new();
        let host = net.host("a.test");
        if h2 {
            host.http2(100);
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .idle_timeout(secs(5))
            .build();
        let long = ask(&pool, get(host.uri("/stream"))).response().await;
        for _ in 0..10 {
            tokio::time::sleep(secs(100)).await;
            assert_eq!(host.conns()[0].id, conn(&long));
            if h2 {
                assert_eq!(fetch(&pool, get(host.uri("/"))).await.0, conn(&long));
            }
        }
        assert_eq!((host.open.total(), pool.stats().idle), (1, 0));
        drop(host.stream());
        text(long).await;
        tokio::time::sleep(secs(4)).await;
        assert_eq!(host.alive.now(), 1);
        tokio::time::sleep(secs(2)).await;
        assert_eq!(host.alive.now(), 0, "idle from the end of the stream on");
    }
}

// ===== 14 =====

#[tokio::test(start_paused = true)]
async fn t14_hosts_that_starve_under_the_total_cap_take_turns() {
    let net = Network::new();
    let (a, b, c) = (net.host("a.test"), net.host("b.test"), net.host("c.test"));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections(1)
        .acquire_timeout(secs(60))
        .build();
    let first = ask(&pool, named("c", c.uri("/hold")));
    rest().await;
    let mut asked = Vec::new();
    for (name, host) in [("a", &a), ("b", &b)] {
        for _ in 0..5 {
            asked.push(ask(&pool, named(name, host.uri("/"))));
            rest().await;
        }
    }
    assert_eq!(pool.stats().waiting, 10);
    c.release();
    text(first.response().await).await;
    let readers: Vec<_> = asked
        .into_iter()
        .map(|asked| tokio::spawn(async { text(asked.response().await).await }))
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), "hello");
    }
    assert_eq!(net.log()[1..], ["a", "b"].repeat(5));
    assert_eq!(net.open.peak(), 1);
}

#[tokio::test(start_paused = true)]
async fn t14_a_newcomer_cannot_take_what_was_granted_to_another() {
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
        let a = ask(&pool, named("a", host.uri("/hold")));
        rest().await;
        let mut b = task::spawn(Box::pin(pool.clone().call(named("b", host.uri("/hold")))));
        assert_pending!(b.poll());
        host.release();
        text(a.response().await).await;
        rest().await;
        assert!(b.is_woken(), "granted, and not yet polled");
        let mut barging = task::spawn(Box::pin(pool.clone().call(named("c", host.uri("/")))));
        assert_pending!(barging.poll());
        rest().await;
        assert!(!barging.is_woken());
        assert_eq!(net.log(), ["a"]);
        assert_pending!(b.poll());
        rest().await;
        assert_eq!(net.log(), ["a", "b"]);
        host.release();
        text(b.into_inner().await.unwrap()).await;
        assert_eq!(text(barging.into_inner().await.unwrap()).await, "hello");
        assert_eq!(net.log(), ["a", "b", "c"]);
    }
}

#[tokio::test(start_paused = true)]
async fn t14_a_wait_that_times_out_leaves_nothing_and_a_full_queue_answers_at_once() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .max_pending_per_host(100)
        .acquire_timeout(secs(5))
        .build();
    let held = ask(&pool, get(host.uri("/hold")));
    rest().await;
    let before = tasks();
    for round in 1..=3 {
        let began = Instant::now();
        let waiters: Vec<_> = (0..100).map(|_| ask(&pool, get(host.uri("/")))).collect();
        rest().await;
        assert_eq!(pool.stats().waiting, 100);
        // Full: no wait, not even a poll.
        let mut over = task::spawn(Box::pin(pool.clone().call(get(host.uri("/")))));
        let std::task::Poll::Ready(Err(error)) = over.poll() else {
            panic!("the queue is full")
        };
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        assert!(error.is_retryable(), "nothing was sent");
        for waiter in waiters {
            let error = waiter.error().await;
            assert_eq!(error.kind(), ErrorKind::AcquireTimeout, "{error}");
            assert!(error.is_retryable(), "nothing was sent");
            assert!(
                error.waited() >= secs(5) && error.waited() < ms(5_100),
                "{:?}",
                error.waited()
            );
        }
        assert!(began.elapsed() < ms(5_100), "all at their own time");
        let stats = pool.stats();
        assert_eq!(stats.waiting, 0);
        assert!(tasks() <= before);
        assert_eq!(
            (stats.rejected_timeout, stats.rejected_queue_full),
            (100 * round, round)
        );
    }
    host.release();
    text(held.response().await).await;
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
    assert_eq!((host.open.total(), host.arrived()), (1, 2));
}

/// One host never lacks requests; another has one.
#[tokio::test(start_paused = true)]
async fn t14_a_busy_host_starves_no_other_under_the_total_cap() {
    let net = Network::new();
    let (busy, other) = (net.host("busy.test"), net.host("other.test"));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections(1)
        .acquire_timeout(secs(5))
        .build();
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let (pool, busy) = (pool.clone(), busy.clone());
            tokio::spawn(async move {
                loop {
                    fetch(&pool, get(busy.uri("/sleep/10"))).await;
                }
            })
        })
        .collect();
    tokio::time::sleep(secs(1)).await;
    let response = ask(&pool, get(other.uri("/"))).result().await;
    workers.iter().for_each(tokio::task::JoinHandle::abort);
    let response = response.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(text(response).await, "hello");
    assert_eq!(net.open.peak(), 1);
}

// ===== 15 =====

#[tokio::test(start_paused = true)]
async fn t15_an_upgraded_connection_keeps_its_slot_until_its_io_is_dropped() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .acquire_timeout(secs(3_600))
        .build();
    let req = Request::get(host.uri("/upgrade"))
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "echo")
        .body(super::empty())
        .unwrap();
    let response = ask(&pool, req).response().await;
    assert_eq!(response.status(), 101);
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    let mut io = TokioIo::new(upgraded);
    io.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    io.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");

    let waiter = ask(&pool, get(host.uri("/")));
    tokio::time::sleep(secs(600)).await;
    assert_eq!(
        (pool.stats().waiting, pool.stats().open, host.open.now()),
        (1, 1, 1)
    );
    drop(io);
    assert_eq!(text(waiter.response().await).await, "hello");
    assert_eq!((host.open.peak(), host.open.total()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn t15_a_connection_that_says_close_is_never_used_again() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    let mut seen = HashSet::new();
    let asked: Vec<_> = (0..10)
        .map(|_| ask(&pool, get(host.uri("/close"))))
        .collect();
    for asked in asked {
        let response = asked.response().await;
        assert!(seen.insert(conn(&response)), "used again");
        assert_eq!(text(response).await, "last");
    }
    rest().await;
    assert_eq!(
        (host.open.total(), host.open.peak(), host.open.now()),
        (10, 1, 0)
    );
    assert_eq!(pool.stats().retried, 0);
}

#[test]
fn t15_an_executor_dropped_mid_flight_releases_every_permit() {
    let net = Network::new();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let (h1, h2, hangs) = (net.host("a.test"), net.host("b.test"), net.host("c.test"));
    h2.http2(100);
    hangs.dial(Dial::Hangs(Phase::Connect));
    let first = runtime();
    let (pool, asked): (Pool, Vec<Asked>) = first.block_on(async {
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections(6)
            .max_connections_per_host(2)
            .build();
        let mut asked = Vec::new();
        for host in [&h1, &h2, &hangs] {
            asked.extend((0..5).map(|_| ask(&pool, get(host.uri("/hold")))));
        }
        // One that is idle.
        fetch(&pool, get(h2.uri("/"))).await;
        rest().await;
        (pool, asked)
    });
    assert_eq!(net.open.now(), 4, "two of HTTP/1, one of HTTP/2, one dial");
    drop(first);
    assert_eq!((net.open.now(), net.served.now()), (0, 0));
    let stats = pool.stats();
    assert_eq!(
        (stats.open, stats.dialling, stats.streams),
        (0, 0, 0),
        "{stats:?}"
    );
    drop(asked);
    assert_eq!(pool.stats().waiting, 0);
    // What is left of the pool may be used or dropped elsewhere; it need not work, it must not block or panic.
    runtime().block_on(async {
        let _ = tokio::time::timeout(secs(60), pool.clone().call(get(h1.uri("/")))).await;
        drop(pool);
        rest().await;
    });
    assert_eq!(net.open.now(), 0);
}
