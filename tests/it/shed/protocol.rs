//! HTTP and gRPC: what holds a slot (test 6), how refusals read, what headers can and cannot do; real hyper and tonic.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use tokio_test::{assert_pending, task};
use tonic::transport::Server;
use tower::{Layer, Service, service_fn};
use tower_flow::deadline::Deadline;
use tower_flow::error::Reason;
use tower_flow::priority::Priority;
use tower_flow::shed::limit::Bdp;
use tower_flow::shed::{
    AsError, ByGrpcStatus, Hold, Http, HttpTriage, Queue, Refusal, Refuse, Reject, ShedHandle,
    ShedLayer, Verdict,
};
use tower_flow::{BoxError, Flow, Rejection, clock};

use super::{Recorded, cx, ended, ms, refused, secs};
use crate::http as client;
use crate::interop::*;
use crate::support::{Step, Steps, broken, data, grpc_request, message, trailers};

/// Answers at once with a body of `steps`.
fn answers(
    status: u16,
    steps: fn() -> Vec<Step>,
) -> impl Service<Request<Steps>, Response = Response<Steps>, Error = BoxError, Future: Send> + Clone
{
    service_fn(move |_: Request<Steps>| {
        let response = Response::builder().status(status);
        std::future::ready(Ok::<_, BoxError>(
            response.body(Steps::new(steps())).unwrap(),
        ))
    })
}

fn get(path: &str) -> Request<Steps> {
    Request::get(path).body(Steps::default().known()).unwrap()
}

/// The response of a future that is ready at once.
fn now<T: std::fmt::Debug, E: std::fmt::Debug>(future: impl Future<Output = Result<T, E>>) -> T {
    match task::spawn(future).poll() {
        Poll::Ready(Ok(response)) => response,
        other => panic!("{other:?}"),
    }
}

fn in_flight(handle: &ShedHandle) -> usize {
    handle.snapshot().in_flight
}

// ===== 6 =====

#[test]
fn a_body_holds_its_slot_to_its_end_its_error_its_trailers_or_its_drop() {
    let ways: [(&str, fn() -> Vec<Step>, usize); 4] = [
        ("end", || vec![data(b"a")], 2),
        ("error", || vec![data(b"a"), broken("cut")], 2),
        ("trailers", || vec![data(b"a"), trailers("0")], 2),
        ("drop", || vec![data(b"a"), None], 1),
    ];
    for (way, steps, polls) in ways {
        let layer = ShedLayer::fixed(1).queue(Queue::none()).http();
        let handle = layer.handle();
        let service = layer.layer(answers(200, steps));
        let mut body = now(service.clone().call(get("/"))).into_body();
        for _ in 0..polls {
            assert_eq!(in_flight(&handle), 1, "{way}");
            let response = now(service.clone().call(get("/")));
            assert_eq!(response.status(), 503, "{way}: the slot is held");
            let _ = Pin::new(&mut body).poll_frame(&mut cx());
        }
        if way != "drop" {
            assert_eq!(in_flight(&handle), 0, "{way}, with the body still there");
        }
        drop(body);
        assert_eq!(in_flight(&handle), 0, "{way}");
    }
    let layer = ShedLayer::fixed(1).http().hold(Hold::Headers);
    let handle = layer.handle();
    let response = now(layer
        .layer(answers(200, || vec![data(b"a")]))
        .call(get("/")));
    assert_eq!(in_flight(&handle), 0);
    drop(response);
}

#[test]
fn an_answer_to_head_holds_nothing() {
    let layer = ShedLayer::fixed(1).http();
    let handle = layer.handle();
    let mut req = get("/");
    *req.method_mut() = Method::HEAD;
    let response = now(layer.layer(answers(200, || vec![data(b"a")])).call(req));
    assert_eq!(in_flight(&handle), 0);
    drop(response);
    assert_eq!(ended(&handle, Verdict::Success), 1);
}

#[tokio::test(start_paused = true)]
async fn a_unary_call_is_one_sample_and_a_long_stream_is_none() {
    let seen = Recorded::default();
    let layer = ShedLayer::new(seen.clone()).grpc();
    let service = layer.layer(service_fn(async |req: Request<Steps>| {
        let path = req.uri().path().to_owned();
        tokio::time::sleep(ms(20)).await;
        let steps = match path.as_str() {
            "/pkg.Svc/Stream" => (0..60).map(|_| message(b"tick")).collect(),
            _ => vec![message(b"answer"), trailers("0")],
        };
        Ok::<_, BoxError>(Response::new(Steps::new(steps)))
    }));
    let call = async |path: &str, pace: Duration| {
        let response = service.clone().call(grpc_request(path)).await.unwrap();
        let mut body = response.into_body();
        while let Poll::Ready(Some(_)) = Pin::new(&mut body).poll_frame(&mut cx()) {
            tokio::time::sleep(pace).await;
        }
    };
    for _ in 0..50 {
        call("/pkg.Svc/Unary", Duration::ZERO).await;
    }
    assert_eq!(
        seen.sum(|window| window.samples),
        seen.sum(|window| window.completions)
    );
    let samples = seen.sum(|window| window.samples);
    assert!((40..=50).contains(&samples), "{samples}");
    call("/pkg.Svc/Stream", secs(1)).await;
    for _ in 0..50 {
        call("/pkg.Svc/Unary", Duration::ZERO).await;
    }
    let later = seen.sum(|window| window.samples);
    assert!((90..=100).contains(&later), "{later}");
    for window in seen.windows().iter().filter(|window| window.samples > 0) {
        assert!((ms(19)..ms(23)).contains(&window.mean), "{:?}", window.mean);
    }
}

#[tokio::test(start_paused = true)]
async fn a_minute_long_stream_moves_neither_limit_nor_floor() {
    let layer = ShedLayer::new(Bdp::default())
        .grpc()
        .streaming(["/pkg.Svc/Listed"]);
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |req: Request<Steps>| {
        let stream = req.uri().path() != "/pkg.Svc/Unary";
        tokio::time::sleep(ms(20)).await;
        let steps = if stream {
            (0..60).map(|_| message(b"tick")).collect()
        } else {
            vec![message(b"answer"), trailers("0")]
        };
        Ok::<_, BoxError>(Response::new(Steps::new(steps)))
    }));
    let unary = async |times: usize| {
        for _ in 0..times {
            let call = service.clone().call(grpc_request("/pkg.Svc/Unary"));
            let mut body = call.await.unwrap().into_body();
            while let Poll::Ready(Some(_)) = Pin::new(&mut body).poll_frame(&mut cx()) {}
        }
    };
    unary(500).await;
    let before = handle.snapshot();
    for path in ["/pkg.Svc/Listed", "/pkg.Svc/Unlisted"] {
        let stream = service.clone().call(grpc_request(path)).await.unwrap();
        let mut body = stream.into_body();
        for _ in 0..60 {
            let _ = Pin::new(&mut body).poll_frame(&mut cx());
            unary(50).await;
        }
        let during = handle.snapshot();
        let listed = usize::from(path == "/pkg.Svc/Listed");
        assert_eq!((during.streams, during.in_flight), (listed, 1 - listed));
        drop(body);
    }
    let after = handle.snapshot();
    assert_eq!(after.limit, before.limit);
    let (was, is) = (before.round_trip, after.round_trip);
    assert!(
        is < was + ms(2) && was < is + ms(2),
        "{was:?} became {is:?}"
    );
    assert_eq!((after.streams_admitted, after.in_flight), (1, 0));
}

// ===== refusals =====

fn full<C, K>(layer: ShedLayer<HttpTriage, Http<C, K>>) -> ShedLayer<HttpTriage, Http<C, K>> {
    layer.queue(Queue::none())
}

#[test]
fn a_refused_request_gets_503_and_is_told_when_to_come_back() {
    let layer = full(ShedLayer::fixed(1).http());
    let handle = layer.handle();
    let service = layer.layer(answers(200, || vec![data(b"a")]));
    let held = now(service.clone().call(get("/")));
    let response = now(service.clone().call(get("/")));
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["x-shed-reason"], "limit");
    let after: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=45).contains(&after));
    assert!(response.body().is_end_stream());
    // Health checks pass by whatever happens, and are counted.
    let healthy = now(service.clone().call(get("/healthz")));
    assert_eq!(healthy.status(), 200);
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.bypassed, snapshot.in_flight), (1, 1));
    assert_eq!(snapshot.refused, [(Reason::Limit, Priority::Default, 1)]);
    drop(held);
}

#[test]
fn a_tenant_that_used_its_share_gets_429() {
    let layer = full(ShedLayer::fixed(4).http());
    let layer = layer
        .partition("small", 0.25)
        .partition_header(HeaderName::from_static("x-tenant"));
    let service = layer.layer(answers(200, || vec![data(b"a")]));
    let of = |tenant: &'static str| {
        let mut req = get("/");
        let tenant = http::HeaderValue::from_static(tenant);
        req.headers_mut().insert("x-tenant", tenant);
        now(service.clone().call(req))
    };
    let held: Vec<_> = (0..4).map(|_| of("unknown")).collect();
    assert_eq!(of("unknown").status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(of("small").status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(held);
    let held: Vec<_> = (0..4).map(|_| of("small")).collect();
    assert_eq!(of("small").status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(of("unknown").status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(held);
}

#[test]
fn a_refused_call_gets_trailers_only_and_a_push_back_that_is_a_number() {
    let layer = full(ShedLayer::fixed(1).grpc());
    let service = layer.layer(answers(200, || vec![message(b"a"), trailers("0")]));
    let held = now(service.clone().call(grpc_request("/pkg.Svc/M")));
    let response = now(service.clone().call(grpc_request("/pkg.Svc/M")));
    assert_eq!(response.status(), 200);
    let headers = response.headers();
    assert_eq!(headers["content-type"], "application/grpc");
    assert_eq!(headers["grpc-status"], "14");
    assert_eq!(
        headers["grpc-message"],
        "1 of 1 slots busy; retry later or raise the limit"
    );
    let pushback: i32 = headers["grpc-retry-pushback-ms"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(pushback > 0);
    assert!(response.body().is_end_stream(), "headers and no more");
    let mut req = grpc_request("/grpc.health.v1.Health/Check");
    *req.version_mut() = http::Version::HTTP_2;
    assert!(
        now(service.clone().call(req))
            .headers()
            .get("grpc-status")
            .is_none()
    );
    drop(held);

    let mut req = grpc_request("/pkg.Svc/M");
    let now_gone = http::HeaderValue::from_static("0n");
    req.headers_mut().insert("grpc-timeout", now_gone);
    let late = now(service.clone().call(req));
    assert_eq!(late.headers()["grpc-status"], "4");
    let pushback = late.headers()["grpc-retry-pushback-ms"].to_str().unwrap();
    assert_eq!(
        pushback.parse::<i32>().unwrap(),
        -1,
        "nobody waits any more"
    );
}

#[test]
fn a_service_that_cannot_fail_stays_one_that_cannot() {
    fn infallible<S: Service<Request<Steps>, Error = Infallible>>(_: &S) {}
    let router =
        service_fn(async |_: Request<Steps>| Ok::<_, Infallible>(Response::new(Steps::default())));
    infallible(&ShedLayer::fixed(1).http().layer(router));
    infallible(&ShedLayer::fixed(1).grpc().layer(router));
    // An error that cannot be made is an error all the same.
    let layer = full(ShedLayer::fixed(1).http()).reject(Reject::<AsError>::error());
    let service = layer.layer(answers(200, || vec![data(b"a")]));
    let held = now(service.clone().call(get("/")));
    let rejection = refused(
        task::spawn(service.clone().call(get("/")))
            .poll()
            .map_ok(|_| ()),
    );
    assert_eq!(rejection.reason(), Reason::Limit);
    drop(held);
    // And any answer of one's own.
    let layer = full(ShedLayer::fixed(1).http()).reject_by(|refusal: &Refusal| {
        let status = if refusal.limit == 1 { 529 } else { 500 };
        Response::builder().status(status).body(()).unwrap()
    });
    let service = layer.layer(answers(200, || vec![data(b"a")]));
    let held = now(service.clone().call(get("/")));
    assert_eq!(now(service.clone().call(get("/"))).status(), 529);
    drop(held);
}

#[test]
fn a_rejection_inside_a_tonic_server_is_a_status() {
    let rejection = Rejection::new("shed", Reason::Quota, "used up").retry_after(ms(250));
    let status = tonic::Status::try_from_error(rejection.into()).unwrap();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(status.message(), "shed: used up; retry after 250ms");
    assert_eq!(
        status.metadata().get("grpc-retry-pushback-ms").unwrap(),
        "250"
    );
}

// ===== what requests say =====

#[tokio::test(start_paused = true)]
async fn absurd_and_malformed_headers_count_as_not_there() {
    let layer = ShedLayer::fixed(1)
        .queue(Queue::fifo().max(8))
        .http()
        .priority_header(HeaderName::from_static("x-priority"));
    let handle = layer.handle();
    let service = layer.layer(answers(200, || vec![data(b"a")]));
    for (name, value) in [
        ("grpc-timeout", &b"99999999999H"[..]),
        ("grpc-timeout", b"-1S"),
        ("grpc-timeout", b"\xff"),
        ("grpc-timeout", b"99999999H"),
        ("x-envoy-expected-rq-timeout-ms", b"1e9"),
        ("x-envoy-expected-rq-timeout-ms", b"-5"),
        ("x-envoy-expected-rq-timeout-ms", b"99999999999999999999"),
        ("x-priority", b"urgent!!"),
        ("x-priority", b"\xfe\xff"),
    ] {
        let mut req = get("/");
        let value = http::HeaderValue::from_bytes(value).unwrap();
        req.headers_mut().insert(name, value);
        assert_eq!(now(service.clone().call(req)).status(), 200, "{name}");
    }
    let snapshot = handle.snapshot();
    assert_eq!(snapshot.admitted, [0, 0, 9, 0]);
    // 99,999,999 hours is absurd and well-formed.
    assert_eq!((snapshot.malformed, snapshot.in_flight), (8, 0));
    // What can be read counts.
    let mut req = get("/");
    let zero = http::HeaderValue::from_static("0");
    req.headers_mut()
        .insert("x-envoy-expected-rq-timeout-ms", zero);
    assert_eq!(now(service.clone().call(req)).status(), 504);
    let mut req = get("/");
    let level = http::HeaderValue::from_static("critical");
    req.headers_mut().insert("x-priority", level);
    now(service.clone().call(req));
    let mut req = get("/");
    req.extensions_mut().insert(Priority::BestEffort);
    req.extensions_mut()
        .insert(Deadline::at(clock::now() + secs(1)));
    now(service.clone().call(req));
    assert_eq!(handle.snapshot().admitted, [1, 0, 9, 1]);
}

#[tokio::test(start_paused = true)]
async fn readiness_of_the_service_is_awaited_with_the_slot_in_hand() {
    let (mock, mut driver) = tower_test::mock::pair::<Request<Steps>, Response<Steps>>();
    driver.allow(0);
    let layer = full(ShedLayer::fixed(1).http());
    let handle = layer.handle();
    let mut service = layer.layer(mock);
    assert!(service.poll_ready(&mut cx()).is_ready());
    let mut call = task::spawn(service.call(get("/")));
    assert_pending!(call.poll());
    assert_eq!(in_flight(&handle), 1);
    driver.allow(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    let (_, answer) = driver.next_request().await.unwrap();
    answer.send_response(Response::new(Steps::default().known()));
    assert!(matches!(call.poll(), Poll::Ready(Ok(_))));
    assert_eq!(in_flight(&handle), 0);

    // A service that fails to get ready fails the request, and gives the slot back.
    let mut call = task::spawn(service.call(get("/")));
    assert_pending!(call.poll());
    driver.send_error("gone");
    assert!(matches!(call.poll(), Poll::Ready(Err(_))));
    assert_eq!(in_flight(&handle), 0);
}

// ===== real hyper =====

/// An HTTP/1 server with one slot, which `/hold` holds for ever.
async fn serve_http1() -> (SocketAddr, ShedHandle) {
    use hyper_util::rt::TokioIo;
    use hyper_util::service::TowerToHyperService;

    let layer = full(ShedLayer::fixed(1).http());
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |req: Request<hyper::body::Incoming>| {
        if req.uri().path() == "/hold" {
            std::future::pending::<()>().await;
        }
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("hello"))))
    }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            let io = TokioIo::new(stream);
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.half_close(true);
            tokio::spawn(builder.serve_connection(io, service));
        }
    });
    (addr, handle)
}

async fn held(addr: SocketAddr, handle: &ShedHandle) -> tokio::net::TcpStream {
    use tokio::io::AsyncWriteExt;
    let mut holder = tokio::net::TcpStream::connect(addr).await.unwrap();
    let hold = b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n";
    holder.write_all(hold).await.unwrap();
    while in_flight(handle) == 0 {
        tokio::task::yield_now().await;
    }
    holder
}

#[tokio::test]
async fn a_refused_upload_keeps_its_connection_when_it_is_short() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (addr, handle) = serve_http1().await;
    let holder = held(addr, &handle).await;
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let mut upload = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n".to_vec();
    upload.resize(upload.len() + 60_000, b'x');
    for _ in 0..3 {
        stream.write_all(&upload).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    drop(holder);
}

#[tokio::test]
async fn a_refused_upload_of_sixteen_mebibytes_reads_its_503_before_the_connection_closes() {
    let (addr, handle) = serve_http1().await;
    let holder = held(addr, &handle).await;
    for _ in 0..5 {
        let body = Full::new(Bytes::from(vec![b'x'; 16 << 20]));
        let upload = Request::post(format!("http://{addr}/")).body(body).unwrap();
        let answer = client::send(upload).await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["connection"], "close");
        assert_eq!(answer.headers()["x-shed-reason"], "limit");
    }
    drop(holder);
}

// ===== real tonic =====

async fn tonic_server<K>(layer: ShedLayer<HttpTriage, Http<ByGrpcStatus, K>>) -> SocketAddr
where
    K: Refuse<Infallible, Error: Into<BoxError> + Send> + Clone + Send + Sync + 'static,
{
    let addr = "127.0.0.1:0".parse().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::bind(addr).unwrap();
    let addr = incoming.local_addr().unwrap();
    let server = Server::builder().layer(layer).add_service(service());
    tokio::spawn(server.serve_with_incoming(incoming));
    addr
}

/// Holds the only slot with a stream, and tells how another call is refused.
async fn refused_by(addr: SocketAddr, handle: &ShedHandle) -> tonic::Status {
    let channel = tonic::transport::Channel::from_shared(format!("http://{addr}")).unwrap();
    let mut client = TestServiceClient::new(channel.connect().await.unwrap());
    let pause = |interval_us| ResponseParameters {
        size: 10,
        interval_us,
        ..Default::default()
    };
    let request = StreamingOutputCallRequest {
        response_parameters: vec![pause(0), pause(60_000_000)],
        ..Default::default()
    };
    let mut stream = client
        .streaming_output_call(request)
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap().unwrap();
    assert_eq!(in_flight(handle), 1, "held beyond the headers");
    let status = client.empty_call(Empty {}).await.unwrap_err();
    drop(stream);
    for _ in 0..200 {
        if in_flight(handle) == 0 {
            break;
        }
        tokio::time::sleep(ms(10)).await;
    }
    client.empty_call(Empty {}).await.unwrap();
    status
}

#[tokio::test]
async fn a_tonic_client_sees_unavailable_with_a_push_back_whatever_the_form() {
    let responds = full(ShedLayer::fixed(1).grpc());
    let handle = responds.handle();
    let status = refused_by(tonic_server(responds).await, &handle).await;
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert_eq!(status.metadata().get("x-shed-reason").unwrap(), "limit");
    let said = status.message().to_owned();
    assert!(said.contains("1 of 1 slots busy"), "{said}");

    let errs = full(ShedLayer::fixed(1).grpc()).reject(Reject::<AsError>::error());
    let handle = errs.handle();
    let other = refused_by(tonic_server(errs).await, &handle).await;
    assert_eq!(other.code(), tonic::Code::Unavailable, "not a reset stream");
    assert!(other.message().contains("1 of 1 slots busy"));
    for status in [status, other] {
        let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
        let pushback: i32 = pushback.to_str().unwrap().parse().unwrap();
        assert!(pushback > 0);
    }
}

#[tokio::test]
async fn one_tonic_service_can_be_wrapped_alone() {
    let layer = full(ShedLayer::fixed(1).grpc());
    let handle = layer.handle();
    let addr = "127.0.0.1:0".parse().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::bind(addr).unwrap();
    let addr = incoming.local_addr().unwrap();
    let server = Server::builder().add_service(layer.layer(service()));
    tokio::spawn(server.serve_with_incoming(incoming));
    let status = refused_by(addr, &handle).await;
    assert_eq!(status.code(), tonic::Code::Unavailable);
}

#[test]
fn attached_it_appears_in_metrics_and_snapshot() {
    let flow = Flow::new("orders");
    let layer = full(ShedLayer::fixed(1).http())
        .name("inbound")
        .attach(&flow);
    let service = layer.layer(answers(200, || vec![data(b"a")]));
    let held = now(service.clone().call(get("/")));
    now(service.clone().call(get("/")));
    let families = flow.families();
    let value =
        |name: &str, labels: &[(&str, &str)]| crate::support::value(&families, name, labels);
    assert_eq!(
        value("tower_flow_shed_inflight", &[("name", "inbound")]),
        Some(1.0)
    );
    let refused = [("reason", "limit"), ("priority", "default")];
    assert_eq!(value("tower_flow_shed_rejected", &refused), Some(1.0));
    let text = flow.snapshot().to_string();
    assert!(text.contains(r#""kind":"shed","name":"inbound""#), "{text}");
    // Knobs turn, and say what they cannot do.
    let attached = flow.attached().remove(0);
    let names: Vec<_> = attached.knobs().iter().map(|knob| knob.name).collect();
    assert_eq!(names, ["limit", "pause", "dry_run"]);
    attached
        .turn("limit", &tower_flow::inspect::Value::Whole(7))
        .unwrap();
    assert_eq!(layer.handle().snapshot().limit_effective, 7);
    let error = attached.turn("limit", &tower_flow::inspect::Value::Whole(0));
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains(r#"cannot set "limit" to 0"#)
    );
    drop(held);
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_its_body_is_refused_without_it() {
    let (addr, handle) = serve_http1().await;
    let holder = held(addr, &handle).await;
    let start = std::time::Instant::now();
    let upload = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    let answer = client::raw(addr, upload).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(start.elapsed() < ms(200), "nobody waited for the body");
    drop(holder);
}

/// Frames of nothing, always ready.
#[derive(Debug)]
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::new()))))
    }
}

#[test]
fn a_body_of_endless_empty_frames_is_read_no_further_than_any_other() {
    let layer = full(ShedLayer::fixed(1).http());
    let service = layer.layer(service_fn(|_: Request<Endless>| {
        std::future::pending::<Result<Response<Steps>, BoxError>>()
    }));
    let mut held = task::spawn(service.clone().call(Request::new(Endless)));
    assert_pending!(held.poll());
    let response = now(service.clone().call(Request::new(Endless)));
    assert_eq!(response.headers()["connection"], "close");
}
