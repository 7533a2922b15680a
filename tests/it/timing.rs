//! Round-trip timing, all under paused time.

use std::convert::Infallible;
use std::task::Poll;
use std::time::Duration;

use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_flow::metrics::Value;
use tower_flow::outcome::Outcome;
use tower_flow::phases::{Dial, Phase, Timings};
use tower_flow::signal::Signal;
use tower_flow::stats::{Bounds, Window};
use tower_flow::timing::{TimingHandle, TimingLayer};
use tower_flow::{BoxError, Flow, clock};
use tower_http::classify::{ServerErrorsAsFailures, StatusInRangeAsFailures};
use tower_test::{assert_request_eq, mock};

use crate::support::{Steps, classic, data, value};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn near(measured: Duration, expected: Duration) -> bool {
    (measured.as_secs_f64() / expected.as_secs_f64() - 1.0).abs() < 0.012
}

async fn sleep(time: Duration) -> Result<(), BoxError> {
    tokio::time::sleep(time).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_window_forgets_and_the_counters_do_not() {
    let layer = TimingLayer::new("db");
    let mut service = layer.layer(service_fn(sleep));
    for n in 1..=100 {
        service.ready().await.unwrap().call(ms(n)).await.unwrap();
    }
    let now = &layer.handle().snapshot()[0];
    assert_eq!(
        (now.started, now.in_flight, now.window.count),
        (100, 0, 100)
    );
    assert!(
        near(now.window.p50, ms(50)) && near(now.window.p95, ms(95)),
        "{now:?}"
    );
    assert!(
        near(now.window.p99, ms(99)) && near(now.window.p999, ms(100)),
        "{now:?}"
    );
    assert!(
        near(now.window.min, ms(1)) && near(now.window.max, ms(100)),
        "{now:?}"
    );
    assert_eq!(now.window.mean, Duration::from_micros(50_500));
    tokio::time::advance(Duration::from_secs(61)).await;
    let later = &layer.handle().snapshot()[0];
    assert_eq!(
        (later.window.count, later.started, later.ended[0]),
        (0, 100, (Outcome::Success, 100))
    );
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_readiness_is_noted_on_the_service_that_gets_ready() {
    let (mock, mut handle) = mock::pair::<&str, &str>();
    let layer = TimingLayer::new("queue");
    let mut service = layer.layer(mock);
    handle.allow(0);
    let mut ready = tokio_test::task::spawn(std::future::poll_fn(|cx| {
        <_ as Service<&str>>::poll_ready(&mut service, cx)
    }));
    assert!(ready.poll().is_pending());
    tokio::time::advance(ms(40)).await;
    handle.allow(1);
    assert!(ready.poll().is_ready());
    drop(ready);
    let call = service.call("hello");
    assert_request_eq!(handle, "hello").send_response("world");
    call.await.unwrap();
    let now = &layer.handle().snapshot()[0];
    assert_eq!((now.ready, now.window.max.as_millis()), (ms(40), 0));
}

#[tokio::test(start_paused = true)]
async fn phases_of_a_response_add_up() {
    let flow = Flow::new("phases");
    let layer = TimingLayer::new("http").attach(&flow);
    let inner = service_fn(async |_: Request<()>| {
        tokio::time::sleep(ms(20)).await;
        Ok::<_, BoxError>(Response::new(Steps::new([data(b"a"), None, data(b"b")])))
    });
    let response = layer
        .clone()
        .http()
        .layer(inner)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    tokio::time::advance(ms(100)).await; // nobody asks: the consumer's time
    let mut next = tokio_test::task::spawn(body.frame());
    assert!(next.poll().is_pending());
    tokio::time::advance(ms(30)).await; // asked, and nothing there: the producer's
    assert!(matches!(next.poll(), Poll::Ready(Some(Ok(_)))));
    drop(next);
    assert!(body.frame().await.is_none());
    let now = &layer.handle().snapshot()[0];
    assert_eq!(now.first_byte, Some(ms(20)));
    assert_eq!((now.producer_stall, now.consumer_stall), (ms(30), ms(100)));
    assert!(near(now.window.max, ms(150)), "{now:?}");
    let families = flow.families();
    let first = families
        .get("tower_flow_timing_first_byte_seconds")
        .unwrap();
    let Value::Histogram(first) = &first.series[0].value else {
        panic!()
    };
    assert_eq!((first.count(), first.sum), (1, 0.02));
}

/// A client that dials for its first request and then reuses the connection, and tells of both.
async fn pooled(first: bool) -> Result<Response<Steps>, BoxError> {
    let start = clock::now();
    let dial = Dial::new(start);
    if first {
        for (phase, time) in [(Phase::Dns, 5), (Phase::Connect, 20), (Phase::Tls, 40)] {
            dial.scope(phase.mark(sleep(ms(time)))).await?;
        }
    }
    sleep(ms(1)).await?;
    let granted = clock::now();
    sleep(ms(10)).await?;
    let timings = Timings::new(
        start,
        granted,
        clock::now(),
        (!first).then_some(ms(300)),
        first.then_some(&dial),
    );
    let mut response = Response::new(Steps::default().known());
    response.extensions_mut().insert(timings);
    Ok(response)
}

#[tokio::test(start_paused = true)]
async fn what_a_pool_tells_of_its_connections_becomes_histograms() {
    let flow = Flow::new("phases");
    let layer = TimingLayer::new("stock").attach(&flow);
    let inner = service_fn(|req: Request<bool>| pooled(req.into_body()));
    let mut service = layer.clone().http().layer(inner);
    for first in [true, false, false] {
        let req = Request::new(first);
        service.ready().await.unwrap().call(req).await.unwrap();
    }
    let families = flow.families();
    let seen = |phase| {
        let labels = [("name", "stock"), ("route", "stock"), ("phase", phase)];
        value(&families, "tower_flow_timing_phase_seconds", &labels)
    };
    assert_eq!(
        ["wait", "dns", "connect", "tls", "handshake"].map(seen),
        [Some(3.0), Some(1.0), Some(1.0), Some(1.0), None],
        "only what happened, and only its wait on a reused connection"
    );
    let reused = |reused| {
        let labels = [("route", "stock"), ("reused", reused)];
        value(&families, "tower_flow_timing_connections", &labels)
    };
    assert_eq!((reused("true"), reused("false")), (Some(2.0), Some(1.0)));
    let text = classic(&flow);
    for line in [
        r#"tower_flow_timing_connections_total{name="stock",route="stock",reused="true"} 2"#,
        r#"tower_flow_timing_phase_seconds_sum{name="stock",route="stock",phase="tls"} 0.04"#,
        r#"tower_flow_timing_phase_seconds_sum{name="stock",route="stock",phase="wait"} 0.068"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }

    let now = layer.handle().snapshot()[0].connections.clone().unwrap();
    assert_eq!((now.reused, now.new), (2, 1));
    let means: Vec<_> = now
        .phases
        .iter()
        .map(|spent| (spent.phase, spent.count, spent.mean.as_millis()))
        .collect();
    let expected = [
        (Phase::Wait, 3, 22),
        (Phase::Dns, 1, 5),
        (Phase::Connect, 1, 20),
        (Phase::Tls, 1, 40),
    ];
    assert_eq!(means, expected);
    let shown = flow.snapshot().to_string();
    let expected = r#""connections":{"reused":2,"new":1,"phases":{"wait":{"count":3,"#;
    assert!(shown.contains(expected), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn routes_whose_responses_tell_nothing_show_no_phases() {
    let flow = Flow::new("quiet");
    let layer = TimingLayer::new("stock")
        .route_by(|req: &Request<bool>| req.uri().path())
        .attach(&flow);
    let inner = service_fn(async |req: Request<bool>| match req.uri().path() {
        "/local" => {
            let mut response = Response::new(Steps::default().known());
            response.extensions_mut().insert("something else");
            Ok(response)
        }
        _ => pooled(req.into_body()).await,
    });
    let mut service = layer.clone().http().layer(inner);
    let mut get = async |path: &str| {
        let req = Request::get(path).body(true).unwrap();
        service.ready().await.unwrap().call(req).await.unwrap();
    };
    get("/local").await;
    get("/local").await;
    let text = classic(&flow);
    assert!(!text.contains("timing_phase") && !text.contains("timing_connections"));
    get("/far").await;
    get("/far").await;
    let connections = layer
        .handle()
        .snapshot()
        .into_iter()
        .map(|route| (route.route, route.connections.map(|told| told.new)));
    let expected = [("/far", Some(1)), ("/local", None), ("other", Some(1))];
    assert_eq!(
        connections.collect::<Vec<_>>(),
        expected.map(|(route, told)| (route.to_owned(), told))
    );
}

#[tokio::test(start_paused = true)]
async fn routes_are_learned_when_somebody_serves_them_and_bounded() {
    let layer = TimingLayer::new("http")
        .route_by(|req: &Request<()>| req.uri().path())
        .max_routes(2);
    let inner = service_fn(async |req: Request<()>| {
        let mut response = Response::new(Steps::default().known());
        if req.uri().path().starts_with("/no") {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        Ok::<_, Infallible>(response)
    });
    let mut service = layer.clone().http().layer(inner);
    let mut get = async |path: &str| {
        let req = Request::get(path.to_owned()).body(()).unwrap();
        service.ready().await.unwrap().call(req).await.unwrap();
    };
    for n in 0..1_000 {
        get(&format!("/no{n}")).await;
    }
    for path in ["/a", "/a", "/b", "/b", "/c", "/c"] {
        get(path).await;
    }
    let routes: Vec<_> = layer
        .handle()
        .snapshot()
        .into_iter()
        .map(|route| (route.route, route.started))
        .collect();
    // The first call of each stays with `other`; so does the third route.
    let expected = [("/a", 1), ("/b", 1), ("other", 1_004)];
    assert_eq!(
        routes,
        expected.map(|(route, count)| (route.to_owned(), count))
    );
}

#[tokio::test(start_paused = true)]
async fn a_signal_reads_the_window_of_its_route() {
    let layer = TimingLayer::new("db").window(Window::new(Duration::from_secs(10), 5));
    assert!(
        layer.handle().signal("elsewhere", 0.95).is_none(),
        "it has the one route"
    );
    let signal = layer.handle().signal("db", 0.95).unwrap();
    assert_eq!((signal.name(), signal.sample()), ("db", None));
    let mut service = layer.layer(service_fn(sleep));
    for _ in 0..100 {
        service.ready().await.unwrap().call(ms(20)).await.unwrap();
    }
    assert!((signal.sample().unwrap() - 0.02).abs() < 0.0003);
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(signal.sample(), None, "the window has moved on");
}

#[tokio::test(start_paused = true)]
async fn an_expected_interval_corrects_snapshots_and_never_series() {
    let flow = Flow::new("corrected");
    let layer = TimingLayer::new("db")
        .expected_interval(ms(10))
        .attach(&flow);
    let mut service = layer.layer(service_fn(sleep));
    for _ in 0..99 {
        service.ready().await.unwrap().call(ms(10)).await.unwrap();
    }
    service
        .ready()
        .await
        .unwrap()
        .call(Duration::from_secs(1))
        .await
        .unwrap();
    let now = &layer.handle().snapshot()[0];
    let corrected = now.corrected.unwrap();
    assert_eq!(now.window.count, 100);
    assert!((195..=200).contains(&corrected.count), "{corrected:?}");
    assert!(
        near(now.window.p90, ms(10)) && corrected.p90 > ms(700),
        "{corrected:?}"
    );
    let counted = value(&flow.families(), "tower_flow_timing_duration_seconds", &[]);
    assert_eq!(counted, Some(100.0));
}

#[tokio::test(start_paused = true)]
async fn the_hdr_log_is_read_back_by_hdrhistogram() {
    let layer = TimingLayer::new("db, main");
    let mut service = layer.layer(service_fn(sleep));
    for n in 1..=20 {
        service
            .ready()
            .await
            .unwrap()
            .call(ms(500 * (n % 2) + 500))
            .await
            .unwrap();
    }
    let mut log = Vec::new();
    layer.handle().hdr_log("db, main", &mut log).unwrap();
    let mut counted = 0;
    let mut slices = 0;
    for entry in IntervalLogIterator::new(&log) {
        if let LogEntry::Interval(interval) = entry.unwrap() {
            assert_eq!(interval.tag().unwrap().as_str(), "db__main");
            let text = interval.encoded_histogram();
            let bytes = base64_decoded(text);
            let histogram: hdrhistogram::Histogram<u64> = Deserializer::new()
                .deserialize(&mut bytes.as_slice())
                .unwrap();
            counted += histogram.len();
            slices += 1;
        }
    }
    assert_eq!(
        (counted, slices),
        (20, 2),
        "fifteen seconds in slices of ten"
    );
    let missing = layer.handle().hdr_log("nowhere", Vec::new()).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

fn base64_decoded(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text
        .bytes()
        .take_while(|byte| *byte != b'=')
        .map(value)
        .collect();
    digits
        .chunks(4)
        .flat_map(|group| {
            let bits = group
                .iter()
                .fold(0u32, |bits, digit| bits << 6 | u32::from(*digit))
                << (6 * (4 - group.len()));
            bits.to_be_bytes()[1..group.len()].to_vec()
        })
        .collect()
}

#[tokio::test]
async fn classifiers_of_tower_http_fit() {
    let answer = |status: u16| {
        service_fn(move |_: Request<()>| async move {
            let mut response = Response::new(Steps::default().known());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok::<_, BoxError>(response)
        })
    };
    let told = |handle: TimingHandle| handle.snapshot()[0].ended.clone();
    let layer = TimingLayer::new("t");
    let strict = layer.clone().http().classify_by(
        StatusInRangeAsFailures::new_for_client_and_server_errors().into_make_classifier(),
    );
    strict
        .layer(answer(429))
        .oneshot(Request::new(()))
        .await
        .unwrap();
    assert_eq!(told(layer.handle()), [(Outcome::Failure, 1)]);
    let layer = TimingLayer::new("t");
    let usual = layer
        .clone()
        .http()
        .classify_by(ServerErrorsAsFailures::make_classifier());
    usual
        .layer(answer(429))
        .oneshot(Request::new(()))
        .await
        .unwrap();
    assert_eq!(told(layer.handle()), [(Outcome::Success, 1)]);
}

#[tokio::test(start_paused = true)]
async fn errors_of_a_generic_service_have_outcomes() {
    let layer = TimingLayer::new("t");
    let inner = service_fn(async |late: bool| {
        let error: BoxError = match late {
            true => tokio::time::timeout(ms(1), std::future::pending::<()>())
                .await
                .unwrap_err()
                .into(),
            false => "no".into(),
        };
        Err::<(), _>(error)
    });
    let mut service = layer.layer(inner);
    for late in [true, false] {
        service.ready().await.unwrap().call(late).await.unwrap_err();
    }
    let ended = &layer.handle().snapshot()[0].ended;
    assert_eq!(
        *ended,
        [(Outcome::Failure, 1), (Outcome::DeadlineExceeded, 1)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_is_told_by_its_deadline() {
    let layer = TimingLayer::new("t");
    let never =
        service_fn(|_: Request<()>| std::future::pending::<Result<Response<Steps>, BoxError>>());
    for wait in [10, 50] {
        let req = Request::builder()
            .header("grpc-timeout", "50m")
            .body(())
            .unwrap();
        let call = layer.clone().http().layer(never).oneshot(req);
        assert!(tokio::time::timeout(ms(wait), call).await.is_err());
    }
    let ended = &layer.handle().snapshot()[0].ended;
    assert_eq!(
        *ended,
        [(Outcome::Cancelled, 1), (Outcome::DeadlineExceeded, 1)]
    );
}

#[tokio::test]
async fn a_classifier_that_panics_loses_no_count() {
    #[derive(Clone)]
    struct Panics;
    impl tower_http::classify::ClassifyResponse for Panics {
        type FailureClass = Outcome;
        type ClassifyEos = tower_http::classify::NeverClassifyEos<Outcome>;
        fn classify_response<B>(
            self,
            _: &Response<B>,
        ) -> tower_http::classify::ClassifiedResponse<Outcome, Self::ClassifyEos> {
            panic!("told to")
        }
        fn classify_error<E>(self, _: &E) -> Outcome {
            panic!("told to")
        }
    }
    let layer = TimingLayer::new("t");
    let handle = layer.handle();
    let grpc = tower_flow::grpc::GrpcServerLayer::new();
    let books = grpc.handle();
    let timed = layer
        .http()
        .classify_by(tower_http::classify::SharedClassifier::new(Panics));
    let inner = service_fn(|_: Request<tower_flow::grpc::RequestBody<Steps>>| {
        let answer = crate::support::grpc_response([crate::support::trailers("0")]);
        std::future::ready(Ok::<_, BoxError>(answer))
    });
    let mut service = grpc.along(timed).layer(inner);
    let call = service.call(crate::support::grpc_request("/pkg.Svc/Method"));
    let mut call = tokio_test::task::spawn(call);
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call.poll().is_ready()));
    assert!(panicked.is_err());
    let timed = &handle.snapshot()[0];
    assert_eq!(
        (timed.in_flight, &*timed.ended),
        (0, &[(Outcome::Panic, 1)][..])
    );
    let counted = &books.snapshot()[0];
    assert_eq!(
        (counted.in_flight, &*counted.handled),
        (0, &[(tower_flow::outcome::Code::Internal, 1)][..])
    );
}

#[tokio::test]
async fn an_unread_error_page_is_a_failure() {
    let layer = TimingLayer::new("t");
    let inner = service_fn(async |_: Request<()>| {
        let mut response = Response::new(Steps::new([data(b"sorry")]));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        Ok::<_, BoxError>(response)
    });
    drop(
        layer
            .clone()
            .http()
            .layer(inner)
            .oneshot(Request::new(()))
            .await
            .unwrap(),
    );
    assert_eq!(layer.handle().snapshot()[0].ended, [(Outcome::Failure, 1)]);
}

#[tokio::test]
async fn answers_of_a_guard_make_no_routes() {
    let layer = TimingLayer::new("t").route_by(|req: &Request<()>| req.uri().path());
    let inner = service_fn(async |_: Request<()>| {
        let mut response = Response::new(Steps::default().known());
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        Ok::<_, BoxError>(response)
    });
    for n in 0..50 {
        let req = Request::get(format!("/{n}")).body(()).unwrap();
        layer
            .clone()
            .http()
            .layer(inner)
            .oneshot(req)
            .await
            .unwrap();
    }
    let routes = layer.handle().snapshot();
    assert_eq!((routes.len(), routes[0].route.as_str()), (1, "other"));
}

#[tokio::test(start_paused = true)]
async fn two_layers_of_one_name_add_counts_and_not_quantiles() {
    let flow = Flow::new("t");
    for _ in 0..2 {
        let mut service = TimingLayer::new("db")
            .attach(&flow)
            .layer(service_fn(sleep));
        service.ready().await.unwrap().call(ms(20)).await.unwrap();
    }
    let families = flow.families();
    assert_eq!(
        value(&families, "tower_flow_timing_started", &[]),
        Some(2.0)
    );
    let p50 = value(
        &families,
        "tower_flow_timing_window_seconds",
        &[("stat", "p50")],
    )
    .unwrap();
    assert!((p50 - 0.02).abs() < 0.0003, "{p50}");
}

#[test]
fn native_buckets_never_hold_less_than_the_classic_ones() {
    let flow = Flow::new("t");
    let layer = TimingLayer::new("t").attach(&flow);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut service =
                layer.layer(service_fn(|()| std::future::ready(Ok::<_, Infallible>(()))));
            let over = &over;
            scope.spawn(move || {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = tokio_test::task::spawn(service.call(())).poll();
                }
            });
        }
        for _ in 0..500 {
            let families = flow.families();
            let duration = families.get("tower_flow_timing_duration_seconds").unwrap();
            let Value::Histogram(duration) = &duration.series[0].value else {
                panic!()
            };
            assert!(duration.native.as_ref().unwrap().count() >= duration.count());
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
#[should_panic(expected = "set options before its handle")]
fn a_route_function_after_the_handle_is_refused() {
    let layer = TimingLayer::new("t");
    let _handle = layer.handle();
    let _ = layer.route_by(|req: &Request<()>| req.uri().path());
}

#[test]
#[should_panic(expected = "set options before its handle")]
fn an_option_after_the_handle_is_refused() {
    let layer = TimingLayer::new("t");
    let _handle = layer.handle();
    let _ = layer.buckets(Bounds::seconds([1.0]));
}
