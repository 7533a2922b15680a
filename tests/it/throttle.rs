//! Adaptive throttling of a client, all under paused time.

use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use proptest::prelude::*;
use tower::retry::{Policy, RetryLayer};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_flow::error::Reason;
use tower_flow::outcome::Code;
use tower_flow::priority::Priority;
use tower_flow::throttle::{BackendSnapshot, Pushback, RetryBudget, ThrottleHandle, ThrottleLayer};
use tower_flow::{BoxError, Flow, Rejection};

use crate::support::{Step, Steps, broken, message, value};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The numbers of the only backend.
fn only(handle: &ThrottleHandle) -> BackendSnapshot {
    let mut all = handle.snapshot();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn named(handle: &ThrottleHandle, name: &str) -> BackendSnapshot {
    let mut all = handle.snapshot().into_iter();
    all.find(|backend| backend.backend == name).unwrap()
}

fn is_ours(error: &BoxError) -> bool {
    Rejection::find(error.as_ref())
        .is_some_and(|found| found.layer() == "throttle" && found.reason() == Reason::Throttled)
}

// ===== a backend of some capacity =====

/// Takes so many requests a second and refuses the rest.
#[derive(Clone)]
struct Limited {
    per_second: Arc<AtomicU64>,
    start: tokio::time::Instant,
    taken: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
}

impl Limited {
    fn new(per_second: u64) -> Self {
        Self {
            per_second: Arc::new(per_second.into()),
            start: tokio::time::Instant::now(),
            taken: Arc::default(),
            asked: Arc::default(),
        }
    }

    fn take(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let second = self.start.elapsed().as_secs() << 32;
        let taken = self.taken.load(Ordering::Relaxed).max(second);
        let free = taken - second < self.per_second.load(Ordering::Relaxed);
        self.taken.store(taken + u64::from(free), Ordering::Relaxed);
        free
    }
}

impl Service<u32> for Limited {
    type Response = u32;
    type Error = io::Error;
    type Future = Ready<io::Result<u32>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, n: u32) -> Self::Future {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        ready(if self.take() { Ok(n) } else { Err(refused()) })
    }
}

/// What one stretch of time came to.
#[derive(Debug, Default)]
struct Came {
    offered: u64,
    reached: u64,
    accepted: u64,
}

/// Offers so many requests a second, evenly, for so many seconds.
async fn offer<S>(service: &mut S, backend: &Limited, per_second: u64, seconds: u64) -> Came
where
    S: Service<u32, Response = u32, Error = BoxError>,
{
    let before = backend.asked.load(Ordering::Relaxed);
    let mut came = Came::default();
    for _ in 0..per_second * seconds {
        tokio::time::advance(secs(1) / per_second as u32).await;
        came.offered += 1;
        let answered = service.ready().await.unwrap().call(7).await;
        came.accepted += u64::from(answered.is_ok());
    }
    came.reached = backend.asked.load(Ordering::Relaxed) - before;
    came
}

#[tokio::test(start_paused = true)]
async fn a_backend_offered_ten_times_its_capacity_gets_k_times_of_it() {
    for k in [1.25, 2.0, 3.0] {
        let backend = Limited::new(20);
        let layer = ThrottleLayer::new("b").k(k);
        let mut service = layer.layer(backend.clone());
        offer(&mut service, &backend, 200, 120).await;
        let came = offer(&mut service, &backend, 200, 120).await;
        let share = came.reached as f64 / came.accepted as f64;
        assert!((share / k - 1.0).abs() < 0.15, "k {k}: {share} {came:?}");
        assert!(came.accepted as f64 >= 0.95 * 20.0 * 120.0, "{came:?}");
        let now = only(&layer.handle());
        assert!((now.probability - (1.0 - k / 10.0)).abs() < 0.05, "{now:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_refuses_everything_gets_probes_only_and_is_found_well_again() {
    let backend = Limited::new(0);
    let layer = ThrottleLayer::new("b");
    let mut service = layer.layer(backend.clone());
    let came = offer(&mut service, &backend, 100, 120).await;
    assert_eq!(came.accepted, 0);
    let share = came.reached as f64 / came.offered as f64;
    assert!((0.08..0.12).contains(&share), "{came:?}");
    backend.per_second.store(1_000, Ordering::Relaxed);
    offer(&mut service, &backend, 100, 40).await;
    let came = offer(&mut service, &backend, 100, 5).await;
    assert_eq!(came.reached, 500, "well within the window of two minutes");
    assert_eq!(only(&layer.handle()).probability, 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_well_backend_and_half_a_bad_one_are_left_alone() {
    let backend = Limited::new(50);
    let layer = ThrottleLayer::new("b");
    let mut service = layer.layer(backend.clone());
    let came = offer(&mut service, &backend, 100, 300).await;
    assert_eq!(
        came.reached, came.offered,
        "K = 2 allows one refusal for each accept"
    );
    assert_eq!(only(&layer.handle()).throttled, 0);
}

#[tokio::test(start_paused = true)]
async fn too_few_requests_throttle_nothing() {
    let backend = Limited::new(0);
    let layer = ThrottleLayer::new("b").min_requests(50);
    let mut service = layer.layer(backend.clone());
    let came = offer(&mut service, &backend, 1, 49).await;
    assert_eq!(came.reached, 49);
    // 0 only watches.
    let layer = ThrottleLayer::new("b").max_probability(0.0);
    let mut service = layer.layer(backend.clone());
    let came = offer(&mut service, &backend, 100, 10).await;
    assert_eq!(
        (came.reached, only(&layer.handle()).refused),
        (1_000, 1_000)
    );
}

#[tokio::test(start_paused = true)]
async fn silence_forgets_everything() {
    let backend = Limited::new(0);
    let layer = ThrottleLayer::new("b").window(secs(10));
    let mut service = layer.layer(backend.clone());
    offer(&mut service, &backend, 100, 5).await;
    assert_eq!(only(&layer.handle()).probability, 0.9);
    tokio::time::advance(secs(11)).await;
    assert_eq!(only(&layer.handle()).probability, 0.0);
    assert!(!is_ours(
        &service.ready().await.unwrap().call(1).await.unwrap_err()
    ));
}

#[tokio::test(start_paused = true)]
async fn clones_and_all_services_of_a_layer_know_the_same() {
    let backend = Limited::new(0);
    let layer = ThrottleLayer::new("b");
    let mut one = layer.layer(backend.clone());
    offer(&mut one, &backend, 100, 5).await;
    let mut refused = [0; 3];
    let others = [
        one.clone(),
        layer.layer(backend.clone()),
        layer.clone().layer(backend),
    ];
    for (mut service, refused) in others.into_iter().zip(&mut refused) {
        for _ in 0..1_000 {
            let error = service.ready().await.unwrap().call(1).await.unwrap_err();
            *refused += u32::from(is_ours(&error));
        }
    }
    assert!(
        refused.iter().all(|refused| (850..950).contains(refused)),
        "{refused:?}"
    );
    assert_eq!(only(&layer.handle()).requests, 3_500);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_who_why_and_what_to_do() {
    let backend = Limited::new(0);
    let mut service = ThrottleLayer::new("stock").layer(backend.clone());
    offer(&mut service, &backend, 100, 5).await;
    let error = loop {
        let error = service.ready().await.unwrap().call(1).await.unwrap_err();
        if is_ours(&error) {
            break error;
        }
    };
    assert_eq!(Code::from_error(&error), Code::Unavailable);
    assert_eq!(
        Rejection::find(error.as_ref()).unwrap().reason().as_str(),
        "throttled"
    );
    assert_eq!(
        error.to_string(),
        "throttle: stock refuses too much, so 90 % of its requests are refused here; try elsewhere or later"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The layer against the formula, over a window nothing leaves.
    #[test]
    fn the_probability_is_the_formula_of_what_was_counted(
        answers in proptest::collection::vec(any::<bool>(), 1..400),
        k in 1.0f64..4.0,
        max in 0.0f64..0.99,
    ) {
        let layer = ThrottleLayer::new("b").k(k).max_probability(max);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(async {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let inner = service_fn(move |ok: bool| ready(if ok { Ok(()) } else { Err(refused()) }));
            let mut service = layer.layer(inner);
            for ok in answers {
                tokio::time::advance(ms(100)).await;
                let _ = service.ready().await.unwrap().call(ok).await;
                let now = only(&layer.handle());
                let requests = (now.accepted + now.refused + now.throttled) as f64;
                let formula = (requests - k * now.accepted as f64) / (requests + 1.0);
                let expected = if requests < 10.0 { 0.0 } else { formula.clamp(0.0, max) };
                // Once it throttles, quiet steps may forgive.
                let forgiven = now.probability < expected && now.throttled > 0;
                assert!((now.probability - expected).abs() < 1e-9 || forgiven, "{now:?} {expected}");
            }
        });
    }
}

// ===== cancellation and panics =====

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_is_neither_a_request_nor_an_accept() {
    let layer = ThrottleLayer::new("b").min_requests(1);
    let mut service = layer.layer(service_fn(async |_: ()| {
        std::future::pending::<Result<(), BoxError>>().await
    }));
    for _ in 0..100 {
        tokio::time::advance(ms(100)).await;
        let call = service.ready().await.unwrap().call(());
        assert!(tokio::time::timeout(ms(50), call).await.is_err());
    }
    let now = only(&layer.handle());
    assert_eq!(
        (now.dropped, now.pending, now.accepted, now.refused),
        (100, 0, 0, 0)
    );
    assert_eq!((now.probability, now.retry_tokens), (0.0, 10.0));
}

#[tokio::test(start_paused = true)]
async fn calls_under_way_count_for_nothing() {
    let layer = ThrottleLayer::new("b");
    let service = layer.layer(service_fn(async |_: ()| {
        tokio::time::sleep(secs(60)).await;
        Ok::<_, BoxError>(())
    }));
    let calls: Vec<_> = (0..1_000)
        .map(|_| tokio::spawn(service.clone().oneshot(())))
        .collect();
    tokio::time::sleep(secs(30)).await;
    let now = only(&layer.handle());
    assert_eq!(
        (now.pending, now.throttled, now.probability),
        (1_000, 0, 0.0)
    );
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(only(&layer.handle()).accepted, 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_panic_gives_back_wherever_it_is() {
    let layer = ThrottleLayer::new("b");
    let mut in_call = layer.layer(service_fn(|_: ()| -> Ready<Result<(), BoxError>> {
        panic!("told to")
    }));
    let mut in_poll = layer.layer(service_fn(|_: ()| {
        poll_fn(|_| -> Poll<Result<(), BoxError>> { panic!("told to") })
    }));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let panicked = catch_unwind(AssertUnwindSafe(|| drop(in_call.call(()))));
    assert!(panicked.is_err());
    let mut future = Box::pin(in_poll.call(()));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        future.as_mut().poll(&mut cx).is_ready()
    }));
    assert!(panicked.is_err());
    // The future is still there.
    let now = only(&layer.handle());
    assert_eq!((now.dropped, now.pending, now.requests), (2, 0, 2));
}

#[tokio::test]
async fn errors_are_asked_what_they_mean() {
    let layer = ThrottleLayer::new("b");
    let mut service = layer.layer(service_fn(|error: BoxError| ready(Err::<(), _>(error))));
    let quota: BoxError = Rejection::new("shed", Reason::Quota, "used up").into();
    let late: BoxError = tower::timeout::error::Elapsed::new().into();
    let errors: [(BoxError, [u64; 3]); 6] = [
        (
            io::Error::from(io::ErrorKind::ConnectionReset).into(),
            [0, 1, 0],
        ),
        (quota, [0, 2, 0]),
        (late, [0, 3, 0]),
        (tonic::Status::resource_exhausted("full").into(), [0, 4, 0]),
        (tonic::Status::not_found("nobody").into(), [1, 4, 0]),
        (tonic::Status::cancelled("gone").into(), [1, 4, 1]),
    ];
    for (error, expected) in errors {
        let text = error.to_string();
        assert_eq!(
            service.call(error).await.unwrap_err().to_string(),
            text,
            "passed through"
        );
        let now = only(&layer.handle());
        assert_eq!([now.accepted, now.refused, now.dropped], expected, "{text}");
    }
}

#[tokio::test]
async fn what_a_refusal_is_can_be_said() {
    let layer = ThrottleLayer::new("b").refusals([Code::Internal, Code::Cancelled]);
    let mut service = layer.layer(service_fn(|status: tonic::Status| {
        ready(Err::<(), _>(status))
    }));
    for status in [
        tonic::Status::unavailable(""),
        tonic::Status::internal(""),
        tonic::Status::cancelled(""),
    ] {
        let _ = service.call(status).await;
    }
    let now = only(&layer.handle());
    assert_eq!((now.accepted, now.refused, now.dropped), (1, 1, 1));
}

#[test]
fn many_threads_lose_no_call() {
    let layer = ThrottleLayer::new("b").window(secs(1));
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    let service = layer.layer(service_fn(move |n: u32| {
        ready(if n.is_multiple_of(5) {
            Ok(n)
        } else {
            Err(refused())
        })
    }));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                for n in 0..20_000 {
                    // Some are dropped before they are polled.
                    let mut future = Box::pin(service.clone().call(n));
                    if n % 7 > 0 {
                        assert!(future.as_mut().poll(&mut cx).is_ready());
                    }
                }
            });
        }
    });
    let now = only(&layer.handle());
    assert_eq!((now.requests, now.pending), (160_000, 0), "{now:?}");
    assert!(now.throttled > 0 && now.dropped > 0, "{now:?}");
}

// ===== HTTP =====

/// Answers with the status and `retry-after` the path names.
fn by_path(req: Request<()>) -> Ready<Result<Response<Steps>, Infallible>> {
    let mut parts = req.uri().path().splitn(3, '/').skip(1);
    let status: u16 = parts.next().unwrap().parse().unwrap();
    let mut response = Response::builder().status(status);
    if let Some(after) = parts.next() {
        let after = after.replace("%20", " ");
        response = response.header("retry-after", after);
    }
    ready(Ok(response.body(Steps::default().known()).unwrap()))
}

fn get(uri: impl AsRef<str>) -> Request<()> {
    Request::get(uri.as_ref()).body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn http_statuses_are_read_at_the_headers() {
    let layer = ThrottleLayer::new("web");
    let handle = layer.handle();
    let mut service = layer.http().layer(service_fn(by_path));
    let expected = [
        (200, [1, 0]),
        (404, [2, 0]),
        (429, [2, 1]),
        (500, [3, 1]),
        (502, [3, 2]),
        (503, [3, 3]),
        (504, [3, 4]),
    ];
    for (status, counts) in expected {
        let response = service
            .call(get(format!("http://a.test/{status}")))
            .await
            .unwrap();
        assert_eq!(response.status(), status, "passed through");
        let now = named(&handle, "a.test");
        assert_eq!([now.accepted, now.refused], counts, "{status}");
        drop(response);
    }
    let now = named(&handle, "a.test");
    assert_eq!((now.requests, now.pending, now.dropped), (7, 0, 0));
    // 10 − 1 (429), full to 10 before; 500 is neither success nor refusal.
    assert_eq!(now.retry_tokens, 6.0);
}

#[tokio::test(start_paused = true)]
async fn backends_are_told_apart_by_authority_and_do_not_pay_for_each_other() {
    let layer = ThrottleLayer::new("web");
    let handle = layer.handle();
    let mut service = layer.http().layer(service_fn(by_path));
    for _ in 0..500 {
        tokio::time::advance(ms(20)).await;
        let _ = service.call(get("http://bad.test:81/503")).await;
        service
            .call(get("http://me:secret@good.test/200"))
            .await
            .unwrap();
        service.call(get("/200")).await.unwrap();
    }
    let all = handle.snapshot();
    let names: Vec<_> = all.iter().map(|now| now.backend.as_str()).collect();
    assert_eq!(
        names,
        ["web", "bad.test:81", "good.test"],
        "no secret among them"
    );
    assert_eq!(all[1].probability, 0.9);
    assert!(all[1].throttled > 350, "{all:?}");
    assert_eq!(
        [&all[0], &all[2]].map(|now| (now.accepted, now.throttled)),
        [(500, 0); 2]
    );
}

#[tokio::test(start_paused = true)]
async fn names_are_bounded_and_those_beyond_are_never_throttled() {
    let layer = ThrottleLayer::new("web").max_backends(2);
    let handle = layer.handle();
    let mut service = layer.http().layer(service_fn(by_path));
    for n in 0..1_000 {
        tokio::time::advance(ms(20)).await;
        service
            .call(get(format!("http://host{n}.test/503")))
            .await
            .unwrap();
    }
    service
        .call(get(format!("http://{}.test/503", "x".repeat(300))))
        .await
        .unwrap();
    let all = handle.snapshot();
    let names: Vec<_> = all
        .iter()
        .map(|now| (now.backend.as_str(), now.requests))
        .collect();
    assert_eq!(
        names,
        [("host0.test", 1), ("host1.test", 1), ("other", 999)]
    );
    assert_eq!((all[2].throttled, all[2].probability), (0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_never_answers_becomes_no_backend() {
    let layer = ThrottleLayer::new("proxy").max_backends(1);
    let handle = layer.handle();
    let mut service = layer.http().layer(service_fn(async |req: Request<()>| {
        match req.uri().host() {
            Some("real.test") => Ok(Response::new(Steps::default())),
            _ => Err(io::Error::from(io::ErrorKind::HostUnreachable)),
        }
    }));
    for n in 0..100 {
        assert!(
            service
                .call(get(format!("http://scan{n}.test/")))
                .await
                .is_err()
        );
    }
    service.call(get("http://real.test/")).await.unwrap();
    assert_eq!(named(&handle, "real.test").accepted, 1);
    let other = named(&handle, "other");
    assert_eq!((other.refused, other.pending), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn the_user_may_name_the_backends() {
    let layer = ThrottleLayer::new("web").backend_by(|req: &Request<()>| {
        req.headers()
            .get("x-shard")
            .map_or("none", |shard| shard.to_str().unwrap_or("none"))
    });
    let handle = layer.handle();
    let mut service = layer.http().layer(service_fn(by_path));
    let mut req = get("http://a.test/200");
    req.headers_mut().insert("x-shard", "7".parse().unwrap());
    service.call(req).await.unwrap();
    assert_eq!(named(&handle, "7").accepted, 1);
}

#[tokio::test(start_paused = true)]
async fn critical_requests_are_refused_last() {
    let layer = ThrottleLayer::new("web").max_probability(0.5);
    let mut service = layer.http().layer(service_fn(by_path));
    let mut through = [0; 2];
    for n in 0..8_000 {
        tokio::time::advance(ms(5)).await;
        let mut req = get("http://a.test/503");
        let critical = n % 2 == 1;
        if critical {
            req.extensions_mut().insert(Priority::Critical);
        }
        let passed = service.call(req).await.is_ok();
        through[usize::from(critical)] += u32::from(passed && n >= 2_000);
    }
    // A half, and three quarters.
    assert!((1_350..1_650).contains(&through[0]), "{through:?}");
    assert!((2_100..2_400).contains(&through[1]), "{through:?}");
}

// ===== push-back =====

#[tokio::test(start_paused = true)]
async fn a_push_back_is_a_fact_and_bounded() {
    let flow = Flow::new("pushed");
    let layer = ThrottleLayer::new("web").attach(&flow);
    let budget = layer.handle().budget("a.test");
    let mut service = layer.http().layer(service_fn(by_path));
    assert!(budget.may_retry() && budget.pushback().is_none());
    service.call(get("http://a.test/503/5")).await.unwrap();
    assert_eq!(budget.pushback(), Some(secs(5)));
    assert!(!budget.may_retry() && !budget.withdraw());
    // Not honoured unless told to: others may still try.
    assert!(service.call(get("http://a.test/200")).await.is_ok());
    tokio::time::advance(secs(5)).await;
    assert!(budget.may_retry() && budget.pushback().is_none());
    for absurd in [
        "3600",
        "99999999999999999999999999",
        "Fri,%2031%20Dec%209999%2023:59:59%20GMT",
    ] {
        service
            .call(get(format!("http://a.test/429/{absurd}")))
            .await
            .unwrap();
        assert_eq!(budget.pushback(), Some(secs(30)), "{absurd}");
    }
    let labels = [("name", "web"), ("backend", "a.test")];
    let families = flow.families();
    let seconds = value(&families, "tower_flow_throttle_pushback_seconds", &labels);
    assert_eq!(seconds, Some(30.0));
    tokio::time::advance(secs(30)).await;
    assert_eq!(budget.pushback(), None);
    for malformed in ["soon", "-1", "1.5", "5s", "0x10"] {
        service
            .call(get(format!("http://a.test/503/{malformed}")))
            .await
            .unwrap();
        assert_eq!(
            budget.pushback(),
            None,
            "{malformed}: as if it were not there"
        );
    }
    // Only a refusal can ask for a pause.
    service.call(get("http://a.test/200/9")).await.unwrap();
    assert_eq!(budget.pushback(), None);
    let kinds = [
        ("delay", 1.0),
        ("capped", 3.0),
        ("malformed", 5.0),
        ("never", 0.0),
    ];
    for (kind, count) in kinds {
        let labels = [("backend", "a.test"), ("kind", kind)];
        let counted = value(&flow.families(), "tower_flow_throttle_pushbacks", &labels);
        assert_eq!(counted, Some(count), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_honoured_push_back_holds_everybody_back_and_ends() {
    let layer = ThrottleLayer::new("web")
        .honour_pushback(true)
        .max_pushback(secs(10));
    let mut service = layer.http().layer(service_fn(by_path));
    service.call(get("http://a.test/503/3600")).await.unwrap();
    tokio::time::advance(secs(4)).await;
    let error = service.call(get("http://a.test/200")).await.unwrap_err();
    let rejection = Rejection::find(error.as_ref()).unwrap();
    assert_eq!(
        (rejection.layer(), rejection.retry_delay()),
        ("throttle", Some(secs(6)))
    );
    assert_eq!(
        error.to_string(),
        "throttle: a.test asked for a pause; try elsewhere or later; retry after 6s"
    );
    assert!(
        service.call(get("http://b.test/200")).await.is_ok(),
        "another backend"
    );
    let mut critical = get("http://a.test/200");
    critical.extensions_mut().insert(Priority::Critical);
    assert!(service.call(critical).await.is_err(), "whatever it matters");
    tokio::time::advance(secs(6)).await;
    assert!(service.call(get("http://a.test/200")).await.is_ok());
}

// ===== gRPC =====

/// What the gRPC backend of these tests answers.
type Answer = fn() -> Result<Response<Steps>, BoxError>;

fn grpc_service(
    layer: ThrottleLayer,
) -> impl Service<
    Request<Answer>,
    Response = Response<impl http_body::Body<Data = bytes::Bytes, Error = BoxError> + Unpin>,
    Error = BoxError,
> {
    layer
        .grpc()
        .layer(service_fn(|req: Request<Answer>| ready(req.into_body()())))
}

fn grpc(answer: Answer) -> Request<Answer> {
    Request::post("http://a.test/pkg.Svc/Method")
        .body(answer)
        .unwrap()
}

fn with_trailers(pairs: &[(&'static str, &'static str)]) -> Step {
    let trailers = pairs.iter().map(|(name, value)| {
        let value = http::HeaderValue::from_static(value);
        (http::HeaderName::from_static(name), value)
    });
    Some(Ok(http_body::Frame::trailers(trailers.collect())))
}

#[tokio::test(start_paused = true)]
async fn trailers_only_unavailable_with_a_push_back_is_understood() {
    let layer = ThrottleLayer::new("grpc");
    let handle = layer.handle();
    let budget = handle.budget("a.test");
    let mut service = grpc_service(layer);
    let refused: Answer = || {
        let response = Response::builder()
            .header("grpc-status", "14")
            .header("grpc-retry-pushback-ms", "1500");
        Ok(response.body(Steps::default().known())?)
    };
    let response = service.call(grpc(refused)).await.unwrap();
    assert_eq!(
        Pushback::grpc(response.headers()),
        Some(Pushback::After(ms(1_500)))
    );
    let now = named(&handle, "a.test");
    assert_eq!((now.refused, now.accepted, now.pending), (1, 0, 0));
    assert_eq!((budget.tokens(), budget.pushback()), (9.0, Some(ms(1_500))));
    assert!(!budget.may_retry());
    tokio::time::advance(ms(1_500)).await;
    assert!(budget.may_retry());
}

#[tokio::test(start_paused = true)]
async fn the_status_is_read_wherever_it_comes() {
    let layer = ThrottleLayer::new("grpc");
    let handle = layer.handle();
    let mut service = grpc_service(layer);
    // What is answered; then accepted, refused, dropped, and tenths of tokens spent, all in total.
    let answers: [(&str, Answer, [u64; 3], f64); 11] = [
        (
            "refused in trailers",
            || {
                Ok(Response::new(Steps::new([
                    None,
                    with_trailers(&[("grpc-status", "8")]),
                ])))
            },
            [0, 1, 0],
            9.0,
        ),
        (
            "taken",
            || {
                Ok(Response::new(Steps::new([
                    message(b"x"),
                    with_trailers(&[("grpc-status", "0")]),
                ])))
            },
            [1, 1, 0],
            9.1,
        ),
        (
            "no such thing, and do not try again",
            || {
                let trailers = [("grpc-status", "5"), ("grpc-retry-pushback-ms", "-1")];
                Ok(Response::new(Steps::new([with_trailers(&trailers)])))
            },
            [2, 1, 0],
            8.1,
        ),
        (
            "a push-back nobody can read forbids as well",
            || {
                let trailers = [("grpc-status", "14"), ("grpc-retry-pushback-ms", "later")];
                Ok(Response::new(Steps::new([with_trailers(&trailers)])))
            },
            [2, 2, 0],
            7.1,
        ),
        (
            "a stream that breaks after a message was taken",
            || {
                Ok(Response::new(Steps::new([
                    message(b"x"),
                    broken(io::Error::from(io::ErrorKind::ConnectionReset)),
                ])))
            },
            [3, 2, 0],
            6.1,
        ),
        (
            "a body that breaks before any",
            || {
                Ok(Response::new(Steps::new([broken(io::Error::from(
                    io::ErrorKind::ConnectionReset,
                ))])))
            },
            [3, 3, 0],
            5.1,
        ),
        (
            "no status at all",
            || Ok(Response::new(Steps::default())),
            [4, 3, 0],
            5.1,
        ),
        (
            "cancelled by the server",
            || {
                Ok(Response::new(Steps::new([with_trailers(&[(
                    "grpc-status",
                    "1",
                )])])))
            },
            [4, 3, 1],
            5.1,
        ),
        (
            "an unreadable status is no refusal",
            || {
                Ok(Response::new(Steps::new([with_trailers(&[(
                    "grpc-status",
                    "banana",
                )])])))
            },
            [5, 3, 1],
            5.1,
        ),
        (
            "a proxy in between",
            || {
                let response = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
                Ok(response
                    .header("retry-after", "2")
                    .body(Steps::new([message(b"<html>")]))?)
            },
            [5, 4, 1],
            4.1,
        ),
        (
            "an error of the transport",
            || Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
            [5, 5, 1],
            3.1,
        ),
    ];
    for (what, answer, counts, tokens) in answers {
        if let Ok(response) = service.call(grpc(answer)).await {
            let _ = response.into_body().collect().await;
        }
        let now = named(&handle, "a.test");
        assert_eq!([now.accepted, now.refused, now.dropped], counts, "{what}");
        assert_eq!((now.retry_tokens, now.pending), (tokens, 0), "{what}");
    }
    let now = named(&handle, "a.test");
    assert_eq!(now.pushback, secs(2), "the proxy's");
    assert_eq!(
        now.pushbacks,
        [("delay", 1), ("never", 1), ("capped", 0), ("malformed", 1)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_counts_with_its_first_message() {
    let layer = ThrottleLayer::new("grpc");
    let handle = layer.handle();
    let mut service = grpc_service(layer);
    let endless: Answer = || Ok(Response::new(Steps::new([message(b"1"), message(b"2")])));
    let mut body = service.call(grpc(endless)).await.unwrap().into_body();
    assert_eq!(named(&handle, "a.test").pending, 1, "headers say nothing");
    body.frame().await.unwrap().unwrap();
    let now = named(&handle, "a.test");
    assert_eq!((now.accepted, now.pending), (1, 0));
    drop(body);
    let unread = service.call(grpc(endless)).await.unwrap();
    drop(unread);
    let now = named(&handle, "a.test");
    assert_eq!(
        (now.accepted, now.dropped, now.requests),
        (2, 0, 2),
        "it was answered"
    );
}

// ===== retries =====

/// At most so many tries of each request, and only while the budget allows.
#[derive(Clone)]
struct Patient {
    budget: RetryBudget,
    left: usize,
}

impl<B> Policy<Request<()>, Response<B>, BoxError> for Patient {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<()>,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Ready<()>> {
        let failed = match result {
            Ok(response) => response.status().is_server_error(),
            Err(error) => !is_ours(error),
        };
        let again = failed && self.left > 0 && self.budget.may_retry();
        self.left = self.left.saturating_sub(1);
        again.then(|| ready(()))
    }

    fn clone_request(&mut self, req: &Request<()>) -> Option<Request<()>> {
        Some(get(req.uri().to_string()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_policy_reads_the_budget() {
    let tries = Arc::new(AtomicU64::new(0));
    let counted = tries.clone();
    let layer = ThrottleLayer::new("web");
    let budget = layer.handle().budget("a.test");
    let policy = Patient {
        budget: budget.clone(),
        left: 3,
    };
    let mut service = ServiceBuilder::new()
        .layer(RetryLayer::new(policy))
        .layer(layer.http())
        .service(service_fn(move |req: Request<()>| {
            counted.fetch_add(1, Ordering::Relaxed);
            by_path(req)
        }));
    let mut tried = async |path: &str| {
        let before = tries.load(Ordering::Relaxed);
        let req = get(format!("http://a.test/{path}"));
        let _ = service.ready().await.unwrap().call(req).await;
        tries.load(Ordering::Relaxed) - before
    };
    assert_eq!(tried("200").await, 1);
    assert_eq!(tried("503/7").await, 1, "the backend asked for a pause");
    tokio::time::advance(secs(7)).await;
    // The tenth token is gone; five are left when the fourth of these has failed.
    assert_eq!(tried("503").await, 4);
    assert_eq!(budget.tokens(), 5.0);
    for _ in 0..3 {
        assert_eq!(tried("503").await, 1, "the budget is spent");
    }
    // Thirty-one successes bring it back over the half.
    for _ in 0..31 {
        tried("200").await;
    }
    assert!(budget.may_retry());
    assert_eq!(
        tried("503").await,
        1,
        "and one failure takes it under again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_budget_can_be_drawn_on_by_hand() {
    let layer = ThrottleLayer::new("db").retry_tokens(4, 0.5);
    let budget = layer.handle().budget("db");
    let same = budget.clone();
    assert!(budget.withdraw() && same.withdraw());
    assert!(!budget.withdraw(), "half of them are left");
    assert_eq!(
        (same.tokens(), same.backend(), same.probability()),
        (2.0, "db", 0.0)
    );
    let mut service = layer.layer(service_fn(async |()| Ok::<_, BoxError>(())));
    service.ready().await.unwrap().call(()).await.unwrap();
    assert!(budget.may_retry());
}

// ===== what is shown =====

#[tokio::test(start_paused = true)]
async fn metrics_add_up() {
    let flow = Flow::new("shown");
    let backend = Limited::new(10);
    let mut service = ThrottleLayer::new("b").attach(&flow).layer(backend.clone());
    offer(&mut service, &backend, 100, 60).await;
    let families = flow.families();
    let read = |name: &str| {
        let name = format!("tower_flow_throttle_{name}");
        value(&families, &name, &[("name", "b"), ("backend", "b")]).unwrap()
    };
    let parts = ["accepted", "refused", "throttled", "dropped"].map(read);
    assert_eq!(parts.iter().sum::<f64>(), 6_000.0);
    assert_eq!(read("requests"), 6_000.0);
    assert!(parts.iter().take(3).all(|part| *part > 0.0) && read("probability") > 0.5);
    assert!(read("retry_tokens") <= 5.0, "too few for a retry");
    let snapshot = flow.snapshot().to_string();
    assert!(snapshot.contains("\"throttled\":"), "{snapshot}");
}

#[test]
#[should_panic(expected = "set options before its handle")]
fn options_come_before_the_handle() {
    let layer = ThrottleLayer::new("late");
    let _ = layer.handle();
    let _ = layer.k(3.0);
}

#[test]
fn absurd_settings_are_refused_with_the_value_in_the_message() {
    let message = |set: fn(ThrottleLayer) -> ThrottleLayer| {
        let panic = catch_unwind(|| set(ThrottleLayer::new("absurd"))).unwrap_err();
        *panic.downcast::<String>().unwrap()
    };
    assert!(message(|layer| layer.k(f64::NAN)).contains("NaN"));
    assert!(message(|layer| layer.k(0.99)).contains("0.99"));
    assert!(message(|layer| layer.k(f64::INFINITY)).contains("inf"));
    assert!(message(|layer| layer.max_probability(1.0)).contains("1 is not within"));
    assert!(message(|layer| layer.max_probability(f64::NAN)).contains("NaN"));
    assert!(message(|layer| layer.window(Duration::ZERO)).contains("0ns"));
    assert!(message(|layer| layer.window(Duration::MAX)).contains("not within"));
    assert!(message(|layer| layer.max_backends(65_537)).contains("65537"));
    assert!(message(|layer| layer.retry_tokens(0, 0.1)).contains("not 0"));
}
