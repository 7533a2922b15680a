//! Hosts that fail in every way they can: the error says how, the slot comes back, and no other host notices.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use http::{Request, Version};
use tokio::time::Instant;
use tower_flow::phases::Phase;
use tower_flow::pool::{ConnPool, ErrorKind, Protocol};

use super::network::{Dial, Host, Network, Speak};
use super::{Pool, ask, empty, fails, fetch, get, ms, rest, secs, tasks};

/// What a request to a host of that setup fails with, and that nothing else suffers.
async fn failure(protocol: Protocol, path: &str, set: impl FnOnce(&Host) -> &Host) -> ErrorKind {
    let net = Network::new();
    let (sick, well) = (net.host("sick.test"), net.host("well.test"));
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections(2)
        .max_connections_per_host(1)
        .connect_timeout(secs(3))
        .acquire_timeout(secs(10))
        .backoff(ms(100), secs(1))
        .protocol(protocol)
        .build();
    if protocol == Protocol::Http2 {
        well.http2(100);
    }
    set(&sick);
    fetch(&pool, get(well.uri("/"))).await;
    rest().await;
    let before = (tasks(), net.open.now());
    let mut kind = None;
    for _ in 0..3 {
        let asked = ask(&pool, get(sick.uri(path)));
        rest().await;
        let began = Instant::now();
        assert_eq!(fetch(&pool, get(well.uri("/"))).await.1, "hello");
        assert!(
            began.elapsed() < ms(10),
            "the well one waits for the sick one"
        );
        let began = Instant::now();
        let error = asked.error().await;
        assert!(began.elapsed() <= secs(3), "{:?}", began.elapsed());
        assert_eq!(error.host(), "http://sick.test");
        assert!(!error.to_string().is_empty() && !format!("{error:?}").is_empty());
        assert_eq!(*kind.get_or_insert(error.kind()), error.kind(), "{error}");
        rest().await;
        assert_eq!(sick.open.now(), 0, "{error:?}: the slot comes back");
        // Longer than any backoff.
        tokio::time::sleep(secs(5)).await;
    }
    assert_eq!((tasks(), net.open.now()), before);
    let stats = pool.stats();
    assert_eq!(
        (stats.waiting, stats.dialling, stats.active, stats.open),
        (0, 0, 0, 1),
        "{stats:?}"
    );
    assert_eq!(sick.open.peak().max(1), 1);
    // Healed, it is served.
    sick.dial(Dial::Connects);
    if protocol == Protocol::Http2 {
        sick.http2(100);
    } else {
        sick.speaks(Speak::Http1);
    }
    sick.set(|setup| setup.alpn_h2 = None);
    assert_eq!(fetch(&pool, get(sick.uri("/"))).await.1, "hello");
    drop(pool);
    rest().await;
    assert_eq!((net.open.now(), net.served.now(), tasks()), (0, 0, 0));
    kind.unwrap()
}

#[tokio::test(start_paused = true)]
async fn dials_that_fail_say_connect() {
    for dial in [Dial::Refuses, Dial::Fails(secs(1))] {
        let kind = failure(Protocol::Auto, "/", |host| host.dial(dial)).await;
        assert_eq!(kind, ErrorKind::Connect, "{dial:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn dials_that_hang_say_connect_timeout() {
    for dial in [Dial::Hangs(Phase::Tls), Dial::Takes(secs(100))] {
        let kind = failure(Protocol::Auto, "/", |host| host.dial(dial)).await;
        assert_eq!(kind, ErrorKind::ConnectTimeout, "{dial:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_fails_its_dial_only() {
    for dial in [Dial::PanicsInCall, Dial::PanicsInPoll] {
        let kind = failure(Protocol::Auto, "/", |host| host.dial(dial)).await;
        assert_eq!(kind, ErrorKind::Connect, "{dial:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_host_says_connect() {
    let net = Network::new();
    let pool: Pool = ConnPool::builder(net.connector()).build();
    let error = fails(&pool, get("http://nowhere.test/".parse().unwrap())).await;
    assert_eq!(error.kind(), ErrorKind::Connect);
    // The cause is in the chain, in the connector's own words.
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    assert!(cause.to_string().contains("no such host"), "{cause}");
    rest().await;
    assert_eq!((pool.stats().open, net.open.now()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn half_spoken_http1_says_send() {
    for speak in [
        Speak::garbage(),
        Speak::oversize_headers(),
        Speak::closes_at_first_byte(),
    ] {
        let kind = failure(Protocol::Auto, "/", |host| host.speaks(speak)).await;
        assert_eq!(kind, ErrorKind::Send { sent: true });
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_hangs_up_before_a_byte_is_sent_says_so() {
    let kind = failure(Protocol::Auto, "/", |host| {
        host.speaks(Speak::closes_at_once())
    })
    .await;
    assert!(
        matches!(kind, ErrorKind::Send { .. } | ErrorKind::Connect),
        "{kind:?}"
    );
    // Words nobody asked for make the connection unusable.
    let kind = failure(Protocol::Auto, "/", |host| host.speaks(Speak::stray())).await;
    assert!(
        matches!(kind, ErrorKind::Send { .. } | ErrorKind::Connect),
        "{kind:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn half_spoken_http2_says_connect() {
    for (speak, expected) in [
        (Speak::garbage(), ErrorKind::Connect),
        (Speak::preface_cut_off(), ErrorKind::Connect),
        (Speak::closes_at_once(), ErrorKind::Connect),
        (Speak::closes_at_first_byte(), ErrorKind::Connect),
        (Speak::silent(), ErrorKind::ConnectTimeout),
        // HTTP/1 where HTTP/2 was agreed on.
        (Speak::Http1, ErrorKind::Connect),
    ] {
        for protocol in [Protocol::Auto, Protocol::Http2] {
            let speak = speak.clone();
            let kind = failure(protocol, "/", |host| {
                host.speaks(speak).set(|setup| setup.alpn_h2 = Some(true))
            })
            .await;
            assert_eq!(kind, expected, "{protocol:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn oversize_headers_over_http2_fail_that_stream_only() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(100);
    let pool: Pool = ConnPool::builder(net.connector()).build();
    let (first, _) = fetch(&pool, get(host.uri("/"))).await;
    let held = ask(&pool, get(host.uri("/hold")));
    rest().await;
    let error = fails(&pool, get(host.uri("/head/60000"))).await;
    assert!(matches!(error.kind(), ErrorKind::Send { .. }), "{error:?}");
    rest().await;
    assert_eq!(pool.stats().streams, 1, "its stream is given back");
    host.release();
    assert_eq!(super::text(held.response().await).await, "held");
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.0, first);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stops_half_way_fails_its_body_and_frees_the_slot() {
    let net = Network::new();
    let host = net.host("a.test");
    host.speaks(Speak::answer_cut_off());
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    for _ in 0..3 {
        let response = ask(&pool, get(host.uri("/"))).response().await;
        http_body_util::BodyExt::collect(response.into_body())
            .await
            .expect_err("96 bytes are missing");
        rest().await;
        assert_eq!((host.open.now(), pool.stats().open), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn uris_without_a_host_are_refused_without_a_dial() {
    let net = Network::new();
    let pool: Pool = ConnPool::builder(net.connector()).build();
    for uri in ["/", "/only/a/path", "*"] {
        let req = Request::get(uri).body(empty()).unwrap();
        let error = fails(&pool, req).await;
        assert_eq!(error.kind(), ErrorKind::Uri, "{uri}: {error}");
        assert!(!error.is_retryable());
    }
    assert_eq!(net.open.total(), 0);
    let stats = pool.stats();
    assert_eq!((stats.hosts, stats.open, stats.waiting), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn http2_asked_of_a_connection_that_has_only_http1_is_a_version_error() {
    let net = Network::new();
    let host = net.host("a.test");
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections_per_host(1)
        .build();
    for _ in 0..3 {
        let mut req = get(host.uri("/"));
        *req.version_mut() = Version::HTTP_2;
        let error = fails(&pool, req).await;
        assert_eq!(error.kind(), ErrorKind::Version, "{error}");
        assert!(!error.is_retryable());
        assert_eq!(host.arrived(), 0);
    }
    rest().await;
    assert_eq!((pool.stats().active, pool.stats().waiting), (0, 0));
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
    assert_eq!(host.open.peak(), 1);
    // The other way round nothing stands in the way.
    let host = net.host("b.test");
    host.http2(100);
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
}

#[tokio::test(start_paused = true)]
async fn settings_nothing_can_work_with_are_refused_by_value() {
    let net = Network::new();
    let builder = || ConnPool::builder(net.connector());
    type Make<'a> = &'a dyn Fn() -> Pool;
    let makes: [(&str, Make<'_>); 6] = [
        ("0", &|| builder().max_connections(0).build()),
        ("0", &|| builder().max_connections_per_host(0).build()),
        ("0", &|| builder().max_connecting_per_host(0).build()),
        ("0", &|| builder().max_streams_per_connection(0).build()),
        ("-1", &|| builder().max_lifetime(secs(1), -1.0).build()),
        ("NaN", &|| builder().max_lifetime(secs(1), f64::NAN).build()),
    ];
    for (at, (value, make)) in makes.into_iter().enumerate() {
        let panic = catch_unwind(AssertUnwindSafe(|| drop(make())));
        let panic = panic
            .err()
            .unwrap_or_else(|| panic!("{at}: built with {value}"));
        let message = panic.downcast_ref::<String>().cloned();
        let message =
            message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let message = message.unwrap();
        assert!(message.contains(value), "{at}: {message}");
    }
    // The largest of everything is no overflow.
    let pool: Pool = builder()
        .max_connections(usize::MAX)
        .max_connections_per_host(usize::MAX)
        .draining_allowance(usize::MAX)
        .max_idle(usize::MAX)
        .max_idle_per_host(usize::MAX)
        .idle_timeout(Duration::MAX)
        .max_lifetime(Duration::MAX, 1.0)
        .max_requests_per_connection(u64::MAX)
        .max_connecting_per_host(usize::MAX)
        .connect_timeout(Duration::MAX)
        .backoff(Duration::MAX, Duration::MAX)
        .max_pending_per_host(usize::MAX)
        .acquire_timeout(Duration::MAX)
        .max_streams_per_connection(usize::MAX)
        .max_hosts(usize::MAX)
        .build();
    let host = net.host("a.test");
    assert_eq!(fetch(&pool, get(host.uri("/"))).await.1, "hello");
    drop(pool);
    rest().await;
    assert_eq!(net.open.now(), 0);
}
