//! Whole stacks over real connections: that their order is the one told shows in what each layer knows.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::{MatchedPath, Path};
use axum::routing::get;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_flow::coalesce::CoalesceLayer;
use tower_flow::connection::Connections;
use tower_flow::deadline::Deadline;
use tower_flow::error::Reason;
use tower_flow::grpc::{GrpcClientLayer, GrpcHandle, GrpcServerLayer};
use tower_flow::inspect::Value;
use tower_flow::outcome::{self, Outcome};
use tower_flow::pool::{ConnPool, connect};
use tower_flow::preset::Transport;
use tower_flow::route::Route;
use tower_flow::shed::{Queue, ShedLayer};
use tower_flow::throttle::ThrottleLayer;
use tower_flow::timing::{RouteSnapshot, TimingHandle, TimingLayer};
use tower_flow::{BoxError, Flow, Rejection, clock, preset};

use crate::http as client;
use crate::interop::*;

const UNARY: &str = "/grpc.testing.TestService/UnaryCall";

// ===== what stands inside the stacks =====

/// Counts the requests that come to it, and holds them until the test lets them go.
#[derive(Clone, Default)]
struct Door {
    calls: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
}

#[derive(Clone)]
struct Behind<S>(S, Door);

impl Door {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn open(&self) {
        self.open.send_replace(true);
    }
}

impl<S> Layer<S> for Door {
    type Service = Behind<S>;

    fn layer(&self, inner: S) -> Behind<S> {
        Behind(inner, self.clone())
    }
}

impl<S, B> Service<Request<B>> for Behind<S>
where
    S: Service<Request<B>, Future: Send + 'static, Response: Send, Error: Send>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, req: Request<B>) -> Self::Future {
        self.1.calls.fetch_add(1, Ordering::SeqCst);
        let mut open = self.1.open.subscribe();
        let future = self.0.call(req);
        Box::pin(async move {
            let _ = open.wait_for(|open| *open).await;
            future.await
        })
    }
}

// ===== what the layers know =====

/// Of the one attached layer of this kind, what it shows of itself.
fn shown(flow: &Flow, kind: &str) -> Value {
    let layers = flow.attached();
    let mut found = layers.iter().filter(|layer| layer.kind() == kind);
    let shown = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "several of {kind}");
    shown.snapshot()
}

fn number(shown: &Value, key: &str) -> u64 {
    match shown.get(key) {
        Some(Value::Whole(number)) => *number,
        other => panic!("{key} is {other:?} in {shown}"),
    }
}

/// Lets the preset's profile look at every call, as its knob on the page does.
fn profile_all(flow: &Flow) {
    let layers = flow.attached();
    let profile = layers.iter().find(|layer| layer.kind() == "profile");
    let profile = profile.unwrap();
    assert_eq!(number(&profile.snapshot(), "every"), 64);
    profile.turn("every", &Value::Whole(1)).unwrap();
}

/// How many requests came to where the profile stands.
fn profiled(flow: &Flow) -> u64 {
    let shown = shown(flow, "profile");
    let Some(Value::List(polls)) = shown.get("polls") else {
        panic!("no polls in {shown}")
    };
    let calls = polls
        .iter()
        .filter(|row| row.get("stage") == Some(&"call".into()));
    calls.map(|row| number(row, "polls")).sum()
}

fn handled(handle: &GrpcHandle) -> Vec<(outcome::Code, u64)> {
    let mut all = Vec::new();
    for method in handle.snapshot() {
        for (code, count) in method.handled {
            match all.iter_mut().find(|(known, _)| *known == code) {
                Some((_, sum)) => *sum += count,
                None => all.push((code, count)),
            }
        }
    }
    all.sort_by_key(|(code, _)| *code as u32);
    all
}

fn ended(handle: &TimingHandle) -> Vec<(Outcome, u64)> {
    let routes = handle.snapshot().into_iter();
    routes.flat_map(|route| route.ended).collect()
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

// ===== servers =====

fn incoming() -> (TcpIncoming, SocketAddr) {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = incoming.local_addr().unwrap();
    (incoming.with_nodelay(Some(true)), addr)
}

async fn channel(addr: SocketAddr) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{addr}")).unwrap();
    endpoint.connect().await.unwrap()
}

fn asking_for(code: i32) -> SimpleRequest {
    let message = "as asked".into();
    SimpleRequest {
        response_status: (code != 0).then_some(EchoStatus { code, message }),
        ..SimpleRequest::default()
    }
}

/// A hyper server of HTTP/1 and HTTP/2.
async fn serve<S, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

fn get_from(addr: SocketAddr, path: &str) -> Request<Empty<Bytes>> {
    let uri = format!("http://{addr}{path}");
    Request::get(uri).body(Empty::new()).unwrap()
}

/// One at once, and nobody waits.
fn one_slot() -> ShedLayer {
    ShedLayer::fixed(1).queue(Queue::none())
}

#[tokio::test]
async fn a_refused_grpc_call_is_counted_and_timed_and_never_profiled() {
    let flow = Flow::new("server");
    let door = Door::default();
    let accounting = GrpcServerLayer::new();
    let books = accounting.handle();
    let layer = preset::grpc_server_with(accounting, one_slot().grpc(), &flow);
    profile_all(&flow);
    let connections = Connections::server("grpc");
    let (incoming, addr) = incoming();
    tokio::spawn(
        Server::builder()
            .layer(layer)
            .layer(connections.streams())
            .layer(door.clone())
            .add_service(service())
            .serve_with_incoming(connections.incoming(incoming)),
    );
    let client = TestServiceClient::new(channel(addr).await);
    let held = tokio::spawn({
        let mut client = client.clone();
        async move { client.unary_call(asking_for(0)).await }
    });
    eventually("it is held", || door.calls() == 1).await;
    for _ in 0..3 {
        let refused = client.clone().unary_call(asking_for(0)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));
    }
    door.open();
    held.await.unwrap().unwrap();

    let (ok, unavailable) = (outcome::Code::Ok, outcome::Code::Unavailable);
    eventually("the books are closed", || {
        handled(&books) == [(ok, 1), (unavailable, 3)]
    })
    .await;
    let timed = shown(&flow, "timing").to_string();
    assert!(timed.contains(r#""started":4"#), "{timed}");
    let refused = crate::support::sum(&flow.families(), "tower_flow_shed_rejected", &[]);
    assert_eq!(refused, 3.0);
    assert_eq!(
        profiled(&flow),
        1,
        "only what was let in takes anybody's time"
    );
    let seen = connections.snapshot();
    assert_eq!((seen.opened, seen.streams), (1, 1), "the connection is one");
}

#[tokio::test]
async fn a_refused_http_request_is_timed_and_never_profiled() {
    let flow = Flow::new("server");
    let door = Door::default();
    let timing = TimingLayer::new("web");
    let times = timing.handle();
    let layer = preset::http_server_with(timing, one_slot().http(), &flow);
    profile_all(&flow);
    let service = ServiceBuilder::new().layer(layer).layer(door.clone());
    let addr = serve(service.service(service_fn(hello))).await;
    let held = tokio::spawn(client::send(get_from(addr, "/")));
    eventually("it is held", || door.calls() == 1).await;
    for _ in 0..3 {
        let refused = client::send(get_from(addr, "/")).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key("retry-after"));
    }
    door.open();
    assert_eq!(held.await.unwrap().body(), "hello");
    let expected = [(Outcome::Success, 1), (Outcome::Failure, 3)];
    eventually("all have ended", || ended(&times) == expected).await;
    assert_eq!((profiled(&flow), door.calls()), (1, 1));
}

#[tokio::test]
async fn a_wait_for_a_slot_is_in_the_time_and_in_no_profile() {
    let flow = Flow::new("server");
    let door = Door::default();
    let timing = TimingLayer::new("web");
    let times = timing.handle();
    let shed = ShedLayer::fixed(1).queue(Queue::fifo()).http();
    let layer = preset::http_server_with(timing, shed, &flow);
    profile_all(&flow);
    let service = ServiceBuilder::new().layer(layer).layer(door.clone());
    let addr = serve(service.service(service_fn(hello))).await;
    let calls: Vec<_> = (0..2)
        .map(|_| tokio::spawn(client::send(get_from(addr, "/"))))
        .collect();
    eventually("one is held, the other waits", || {
        times.snapshot()[0].in_flight == 2
    })
    .await;
    assert_eq!((door.calls(), profiled(&flow)), (1, 1));
    let waited = Duration::from_millis(50);
    tokio::time::sleep(waited).await;
    door.open();
    for call in calls {
        assert_eq!(call.await.unwrap().body(), "hello");
    }
    eventually("both have ended", || times.snapshot()[0].window.count == 2).await;
    let least = times.snapshot()[0].window.min;
    assert!(least >= waited, "{least:?}");
}

#[tokio::test]
async fn followers_of_a_server_take_one_slot_and_are_all_counted() {
    let flow = Flow::new("server");
    let door = Door::default();
    let layer = preset::grpc_server_coalesced(CoalesceLayer::grpc([UNARY]), &flow);
    profile_all(&flow);
    let (incoming, addr) = incoming();
    tokio::spawn(
        Server::builder()
            .layer(layer)
            .layer(door.clone())
            .add_service(service())
            .serve_with_incoming(incoming),
    );
    let client = TestServiceClient::new(channel(addr).await);
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.unary_call(asking_for(0)).await })
        })
        .collect();
    eventually("all wait", || {
        number(&shown(&flow, "coalesce"), "waiters") == 10
    })
    .await;
    let held = number(&shown(&flow, "shed"), "in_flight");
    assert_eq!((held, door.calls(), profiled(&flow)), (1, 1, 1));
    door.open();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let counted = || {
        let labels = [("grpc_code", "OK")];
        crate::support::sum(&flow.families(), "grpc_server_handled", &labels)
    };
    eventually("all are counted", || counted() == 10.0).await;
}

#[tokio::test]
async fn followers_of_a_client_take_one_connection_and_are_one_request_of_the_backend() {
    let flow = Flow::new("client");
    let door = Door::default();
    let addr = serve(door.layer(service_fn(hello))).await;
    let pool = ConnPool::builder(connect::http()).build();
    let layer = preset::http_client_coalesced(CoalesceLayer::http(), &flow);
    let client = layer.layer(pool.clone());
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let response = client.oneshot(get_from(addr, "/")).await?;
                response.into_body().collect().await
            })
        })
        .collect();
    eventually("all wait", || {
        number(&shown(&flow, "coalesce"), "waiters") == 10 && door.calls() == 1
    })
    .await;
    door.open();
    for call in calls {
        let body: Result<_, BoxError> = call.await.unwrap();
        assert_eq!(body.unwrap().to_bytes(), "hello");
    }
    let stats = pool.stats();
    assert_eq!((stats.peak_open, stats.requests), (1, 1));
    let accepted = "tower_flow_throttle_accepted";
    assert_eq!(crate::support::sum(&flow.families(), accepted, &[]), 1.0);
    let timed = shown(&flow, "timing").to_string();
    assert!(timed.contains(r#""started":10"#), "{timed}");
}

#[tokio::test]
async fn a_throttled_request_never_asks_for_a_connection_and_is_timed() {
    let flow = Flow::new("client");
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = asked.clone();
    let addr = serve(service_fn(move |_: Request<Incoming>| {
        seen.fetch_add(1, Ordering::SeqCst);
        let answer = Response::builder().status(503);
        std::future::ready(answer.body(Full::<Bytes>::default()))
    }))
    .await;
    let pool = ConnPool::builder(connect::http()).build();
    let timing = TimingLayer::new("stock");
    let times = timing.handle();
    let throttle = ThrottleLayer::new("stock");
    let layer = preset::http_client_with(timing, throttle, &flow);
    let client = layer.layer(pool.clone());
    // What is known of a backend is worked out ten times a second.
    let (mut made, mut throttled) = (0, 0);
    while throttled < 20 {
        made += 1;
        assert!(made < 100_000, "nothing is ever throttled");
        match client.clone().oneshot(get_from(addr, "/")).await {
            Ok(response) => _ = response.into_body().collect().await.unwrap(),
            Err(error) => {
                let rejection = Rejection::find(error.as_ref()).unwrap();
                assert_eq!(rejection.reason(), Reason::Throttled);
                throttled += 1;
            }
        }
    }
    let sent = made - throttled;
    assert_eq!(asked.load(Ordering::SeqCst), sent);
    assert_eq!(pool.stats().requests, sent as u64);
    let timed: u64 = ended(&times).iter().map(|(_, count)| count).sum();
    assert_eq!(timed, made as u64);
}

#[tokio::test]
async fn a_throttled_call_is_counted_and_never_leaves() {
    let flow = Flow::new("client");
    let server = GrpcServerLayer::new();
    let served = server.handle();
    let (incoming, addr) = incoming();
    tokio::spawn(
        Server::builder()
            .layer(server)
            .add_service(service())
            .serve_with_incoming(incoming),
    );
    let accounting = GrpcClientLayer::new();
    let books = accounting.handle();
    let throttle = ThrottleLayer::new("backend");
    let here = throttle.handle();
    let layer = preset::grpc_client_with(accounting, throttle, &flow);
    let mut client = TestServiceClient::new(layer.layer(channel(addr).await));
    let throttled = || -> u64 { here.snapshot().iter().map(|seen| seen.throttled).sum() };
    let mut made = 0;
    while throttled() < 20 {
        made += 1;
        assert!(made < 100_000, "nothing is ever throttled");
        let refused = client.unary_call(asking_for(14)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }
    let unavailable = outcome::Code::Unavailable;
    assert_eq!(handled(&books), [(unavailable, made)]);
    eventually("the server's books are closed", || {
        handled(&served) == [(unavailable, made - throttled())]
    })
    .await;
}

#[tokio::test]
async fn a_transport_ends_a_request_at_its_own_deadline() {
    let door = Door::default();
    let addr = serve(door.layer(service_fn(hello))).await;
    let transport = Transport::tuned("backends").build();
    let soon = clock::now() + Duration::from_millis(30);
    let mut req = get_from(addr, "/");
    req.extensions_mut().insert(Deadline::at(soon));
    let told = {
        let mut req = get_from(addr, "/");
        let timeout = http::HeaderValue::from_static("30m");
        req.headers_mut().insert("grpc-timeout", timeout);
        req
    };
    for req in [req, told] {
        let failed = transport.client().oneshot(req).await.unwrap_err();
        let rejection = Rejection::find(failed.as_ref()).unwrap();
        assert_eq!(rejection.reason(), Reason::Deadline, "{failed}");
    }
    assert!(clock::now() >= soon);
}

/// As `examples/axum_server.rs` has it.
#[derive(Clone)]
struct Matched;

impl Route<axum::extract::Request> for Matched {
    fn of<'a>(&self, req: &'a axum::extract::Request) -> Option<&'a str> {
        req.extensions().get().map(MatchedPath::as_str)
    }
}

#[tokio::test]
async fn an_axum_router_is_timed_by_its_patterns_and_shares_one_limit() {
    let flow = Flow::new("web");
    let timing = TimingLayer::new("web").route_with(Matched);
    let times = timing.handle();
    let door = Door::default();
    let layer = preset::http_server_with(timing, one_slot().http(), &flow);
    let held = door.clone();
    let app = axum::Router::new()
        .route("/hello/{name}", get(async |Path(name): Path<String>| name))
        .route(
            "/held",
            get(move || async move {
                held.calls.fetch_add(1, Ordering::SeqCst);
                let _ = held.open.subscribe().wait_for(|open| *open).await;
                "done"
            }),
        )
        .layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    for name in ["a", "b", "c"] {
        let answer = client::send(get_from(addr, &format!("/hello/{name}"))).await;
        assert_eq!(answer.body(), name);
    }
    let unknown = client::send(get_from(addr, "/wp-login.php")).await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let first = tokio::spawn(client::send(get_from(addr, "/held")));
    eventually("it is held", || door.calls() == 1).await;
    let other = client::send(get_from(addr, "/hello/d")).await;
    assert_eq!(other.status(), StatusCode::SERVICE_UNAVAILABLE);
    door.open();
    assert_eq!(first.await.unwrap().body(), "done");
    let routes: Vec<_> = times.snapshot().into_iter().map(named).collect();
    // What matched nothing is the layer's own.
    for (name, started) in [("/hello/{name}", 3), ("other", 2), ("web", 1)] {
        let known = (name.to_owned(), started);
        assert!(routes.contains(&known), "{routes:?}");
    }
}

/// The first call of a pattern makes it known, and is billed to `other`.
fn named(route: RouteSnapshot) -> (String, u64) {
    (route.route, route.started)
}
