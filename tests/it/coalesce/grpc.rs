//! Coalescing of unary calls, over real tonic servers and clients.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::join_all;
use http::HeaderName;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};
use tower::{Layer, Service, ServiceBuilder};
use tower_flow::coalesce::{CoalesceHandle, CoalesceLayer, Credentials, GrpcCoalesceLayer};
use tower_flow::deadline::grpc_timeout;
use tower_flow::grpc::TonicBodyLayer;
use tower_flow::{Flow, ServiceBuilderExt as _, preset};

use super::{assert_quiet, bypassed, ended, ms, secs};
use crate::interop::*;
use crate::support::{sum, value};

const UNARY: &str = "/grpc.testing.TestService/UnaryCall";
const TRAILING: &str = "x-grpc-test-echo-trailing-bin";

// ===== the server =====

/// Counts the calls that reach the handlers, and holds them until the test lets them go.
#[derive(Clone, Default)]
struct Door {
    calls: Arc<AtomicUsize>,
    timeouts: Arc<Mutex<Vec<Option<Duration>>>>,
    open: tokio::sync::watch::Sender<bool>,
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

    fn close(&self) {
        self.open.send_replace(false);
    }
}

impl<S> Layer<S> for Door {
    type Service = Behind<S>;

    fn layer(&self, inner: S) -> Behind<S> {
        Behind(inner, self.clone())
    }
}

impl<S, B> Service<http::Request<B>> for Behind<S>
where
    S: Service<http::Request<B>, Future: Send + 'static, Response: Send, Error: Send>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, req: http::Request<B>) -> Self::Future {
        let timeout = req.headers().get("grpc-timeout").and_then(grpc_timeout);
        self.1.timeouts.lock().unwrap().push(timeout);
        self.1.calls.fetch_add(1, Ordering::SeqCst);
        let mut open = self.1.open.subscribe();
        let future = self.0.call(req);
        Box::pin(async move {
            let _ = open.wait_for(|open| *open).await;
            future.await
        })
    }
}

fn incoming() -> (TcpIncoming, SocketAddr) {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = incoming.local_addr().unwrap();
    (incoming.with_nodelay(Some(true)), addr)
}

/// A server that coalesces, or not.
fn serve(layer: Option<GrpcCoalesceLayer>, door: Door) -> SocketAddr {
    let (incoming, addr) = incoming();
    let server = Server::builder();
    tokio::spawn(async move {
        let served = match layer {
            Some(layer) => {
                let stack = server.layer(layer).layer(door).layer(EchoMetadata);
                let routes = { stack }.add_service(service());
                routes.serve_with_incoming(incoming).await
            }
            None => {
                let stack = server.layer(door).layer(EchoMetadata);
                let routes = { stack }.add_service(service());
                routes.serve_with_incoming(incoming).await
            }
        };
        served.unwrap();
    });
    addr
}

async fn channel(addr: SocketAddr) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{addr}")).unwrap();
    endpoint.connect().await.unwrap()
}

fn layer() -> GrpcCoalesceLayer {
    CoalesceLayer::grpc([UNARY])
}

fn note(size: i32, code: i32) -> Request<SimpleRequest> {
    Request::new(SimpleRequest {
        response_size: size,
        response_status: (code != 0).then(|| EchoStatus {
            code,
            message: "as asked".into(),
        }),
        ..SimpleRequest::default()
    })
}

async fn wait_for(what: &str, done: impl Fn() -> bool) {
    for _ in 0..5_000 {
        if done() {
            return;
        }
        tokio::time::sleep(ms(1)).await;
    }
    panic!("never: {what}");
}

type Answered = Result<Response<SimpleResponse>, Status>;

/// All of them at once; let go when `waiters` wait.
async fn all<F>(calls: Vec<F>, door: &Door, handle: &CoalesceHandle, waiters: u64) -> Vec<Answered>
where
    F: Future<Output = Answered> + Send + 'static,
{
    let calls: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
    wait_for("they wait", || {
        handle.snapshot().waiters == waiters && door.calls() > 0
    })
    .await;
    door.open();
    let all = tokio::time::timeout(secs(20), join_all(calls)).await;
    let all = all.expect("they end").into_iter();
    all.map(|call| call.unwrap()).collect()
}

// ===== many calls, one call =====

#[tokio::test]
async fn a_server_runs_its_handler_once_and_everybody_gets_message_status_and_trailers() {
    let layer = layer();
    let handle = layer.handle();
    let door = Door::default();
    let addr = serve(Some(layer), door.clone());
    let mut calls = Vec::new();
    for _ in 0..4 {
        // Connections of their own have services of their own.
        let client = TestServiceClient::new(channel(addr).await);
        for _ in 0..5 {
            let mut client = client.clone();
            let mut req = note(1_000, 0);
            let trailing = tonic::metadata::MetadataValue::from_bytes(b"told");
            req.metadata_mut().insert_bin(TRAILING, trailing);
            calls.push(async move { client.unary_call(req).await });
        }
    }
    for answer in all(calls, &door, &handle, 20).await {
        let answer = answer.unwrap();
        let trailing = answer.metadata().get_bin(TRAILING).unwrap();
        assert_eq!(trailing.to_bytes().unwrap(), "told".as_bytes());
        assert_eq!(answer.metadata().get("grpc-status").unwrap(), "0");
        assert_eq!(answer.into_inner().payload.unwrap().body.len(), 1_000);
    }
    assert_eq!((door.calls(), handle.snapshot().shared), (1, 19));
    assert_quiet(&handle);
}

#[tokio::test]
async fn a_client_sends_equal_calls_once() {
    let door = Door::default();
    let addr = serve(None, door.clone());
    let flow = Flow::new("client");
    let layer = layer().name("echo").attach(&flow);
    let handle = layer.handle();
    let stack = ServiceBuilder::new()
        .layer(layer)
        .layer(TonicBodyLayer::new())
        .service(channel(addr).await);
    let client = TestServiceClient::new(stack);
    let calls = (0..20).map(|_| {
        let mut client = client.clone();
        async move { client.unary_call(note(10, 0)).await }
    });
    for answer in all(calls.collect(), &door, &handle, 20).await {
        assert_eq!(answer.unwrap().into_inner().payload.unwrap().body.len(), 10);
    }
    let shared = value(
        &flow.families(),
        "tower_flow_coalesce_shared",
        &[("name", "echo")],
    );
    assert_eq!((door.calls(), shared), (1, Some(19.0)));
    assert_quiet(&handle);
}

// ===== statuses =====

#[tokio::test]
async fn failures_of_the_service_are_shared_and_those_of_a_caller_are_not() {
    let shared = [
        Code::Unavailable,
        Code::NotFound,
        Code::Internal,
        Code::ResourceExhausted,
    ];
    let own = [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Unauthenticated,
    ];
    for (codes, once) in [(&shared[..], true), (&own[..], false)] {
        for code in codes {
            let layer = layer();
            let handle = layer.handle();
            let door = Door::default();
            let addr = serve(Some(layer), door.clone());
            let client = TestServiceClient::new(channel(addr).await);
            let calls = (0..6).map(|_| {
                let mut client = client.clone();
                let req = note(10, *code as i32);
                async move { client.unary_call(req).await }
            });
            for answer in all(calls.collect(), &door, &handle, 6).await {
                let status = answer.unwrap_err();
                assert_eq!((status.code(), status.message()), (*code, "as asked"));
            }
            let (calls, how) = if once { (1, "shared") } else { (6, "retry") };
            assert_eq!((door.calls(), ended(&handle, how)), (calls, 1), "{code:?}");
            assert_eq!(handle.snapshot().remembered, 0, "{code:?}");
            assert_quiet(&handle);
        }
    }
}

// ===== 11 =====

/// 11, over gRPC: timeouts differ, the key does not.
#[tokio::test]
async fn a_grpc_timeout_ends_one_wait_and_the_flights_own_goes_upstream() {
    let door = Door::default();
    let addr = serve(None, door.clone());
    let layer = layer();
    let handle = layer.handle();
    let stack = ServiceBuilder::new()
        .layer(layer)
        .layer(TonicBodyLayer::new())
        .service(channel(addr).await);
    let client = TestServiceClient::new(stack);
    let within = |timeout| {
        let mut client = client.clone();
        let mut req = note(10, 0);
        req.set_timeout(timeout);
        tokio::spawn(async move { client.unary_call(req).await })
    };
    let leader = within(ms(300));
    wait_for("it is sent", || door.calls() == 1).await;
    let follower = within(secs(20));
    wait_for("it follows", || handle.snapshot().waiters == 2).await;
    let status = leader.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(handle.snapshot().waiters, 1);
    door.open();
    follower.await.unwrap().unwrap();
    assert_eq!((door.calls(), ended(&handle, "deadline")), (1, 1));
    let sent = door.timeouts.lock().unwrap()[0];
    assert_eq!(sent, Some(secs(30)), "the flight's, not the leader's");
    assert_quiet(&handle);
}

// ===== what is not equal =====

#[tokio::test]
async fn what_differs_by_message_method_metadata_or_user_never_meets() {
    let layer = layer().metadata(HeaderName::from_static("x-tenant"));
    let handle = layer.handle();
    let door = Door::default();
    let addr = serve(Some(layer), door.clone());
    let client = TestServiceClient::new(channel(addr).await);
    let with = |size, name: &'static str, value: &'static str| {
        let mut req = note(size, 0);
        req.metadata_mut().insert(name, value.parse().unwrap());
        req
    };
    let requests = [
        (note(1, 0), 1),
        (note(2, 0), 2),
        (with(1, "x-tenant", "a"), 1),
        (with(1, "x-tenant", "b"), 1),
        (with(1, "authorization", "Bearer x"), 1),
        (with(1, "authorization", "Bearer x"), 1),
        // These are nobody's business.
        (with(1, "x-request-id", "1"), 1),
        (with(1, "user-agent", "other"), 1),
    ];
    let calls = requests.map(|(req, size)| {
        let mut client = client.clone();
        async move {
            let answer = client.unary_call(req).await?;
            let got = answer.get_ref().payload.as_ref().unwrap().body.len();
            assert_eq!(got, size);
            Ok(answer)
        }
    });
    for answer in all(calls.into(), &door, &handle, 6).await {
        answer.unwrap();
    }
    assert_eq!((door.calls(), bypassed(&handle, "no_key")), (6, 2));

    // A method that is not listed is not even looked at.
    let calls = door.calls();
    let empty = (0..3).map(|_| {
        let mut client = client.clone();
        async move { client.empty_call(Request::new(Empty {})).await }
    });
    for answer in join_all(empty).await {
        answer.unwrap();
    }
    assert_eq!(door.calls(), calls + 3);

    // Users may be told apart instead.
    let layer = super::grpc::layer().authorization(Credentials::InKey);
    let handle = layer.handle();
    let door = Door::default();
    let addr = serve(Some(layer), door.clone());
    let client = TestServiceClient::new(channel(addr).await);
    let calls = ["Bearer x", "Bearer x", "Bearer y"].map(|user| {
        let mut client = client.clone();
        let req = with(1, "authorization", user);
        async move { client.unary_call(req).await }
    });
    for answer in all(calls.into(), &door, &handle, 3).await {
        answer.unwrap();
    }
    assert_eq!(door.calls(), 2);
}

#[tokio::test]
async fn large_requests_and_large_answers_go_alone() {
    let layer = layer().max_key_bytes(64).max_message(1_000);
    let handle = layer.handle();
    let door = Door::default();
    let addr = serve(Some(layer), door.clone());
    let client = TestServiceClient::new(channel(addr).await);
    door.open();
    let large = |body: usize, size: i32| {
        let mut req = note(size, 0);
        req.get_mut().payload = Some(Payload {
            body: vec![0; body],
            ..Payload::default()
        });
        req
    };
    // More than is compared.
    for body in [65, 100_000] {
        let answer = client.clone().unary_call(large(body, 10)).await.unwrap();
        assert_eq!(answer.into_inner().payload.unwrap().body.len(), 10);
    }
    assert_eq!(handle.snapshot().leaders, 0, "{:?}", handle.snapshot());
    // More than is shared.
    door.close();
    let calls = (0..3).map(|_| {
        let mut client = client.clone();
        let req = large(10, 100_000);
        async move { client.unary_call(req).await }
    });
    for answer in all(calls.collect(), &door, &handle, 3).await {
        assert_eq!(
            answer.unwrap().into_inner().payload.unwrap().body.len(),
            100_000
        );
    }
    assert_eq!(handle.snapshot().shared, 0);
    assert_eq!(door.calls(), 2 + 3);
    assert_quiet(&handle);
}

#[tokio::test]
async fn the_builder_makes_the_grpc_form() {
    let door = Door::default();
    let addr = serve(None, door.clone());
    let flow = Flow::new("built");
    let stack = ServiceBuilder::new()
        .grpc_coalesce("echo", &flow, [UNARY])
        .layer(TonicBodyLayer::new())
        .service(channel(addr).await);
    door.open();
    let mut client = TestServiceClient::new(stack);
    client.unary_call(note(10, 0)).await.unwrap();
    let labels = [("name", "echo"), ("role", "leader")];
    let led = value(&flow.families(), "tower_flow_coalesce_requests", &labels);
    assert_eq!(led, Some(1.0));
}

#[tokio::test]
async fn the_presets_coalesce_on_both_sides_and_count_every_caller() {
    let (front, back) = (Flow::new("front"), Flow::new("back"));
    let door = Door::default();
    let (incoming, addr) = incoming();
    let server = layer().with(|layer| layer.name("behind"));
    let server = preset::grpc_server_coalesced(server, &back);
    let (stack, held) = (Server::builder().layer(server), door.clone());
    tokio::spawn(async move {
        let routes = { stack }
            .layer(held)
            .layer(EchoMetadata)
            .add_service(service());
        routes.serve_with_incoming(incoming).await.unwrap();
    });
    // Two clients, each with a layer of its own: what they have in common only the server sees.
    let clients = [0, 1].map(|_| preset::grpc_client_coalesced(layer(), &front));
    let mut calls = Vec::new();
    for client in clients {
        let stack = ServiceBuilder::new()
            .layer(client)
            .service(channel(addr).await);
        let client = TestServiceClient::new(stack);
        for _ in 0..10 {
            let mut client = client.clone();
            calls.push(tokio::spawn(
                async move { client.unary_call(note(10, 0)).await },
            ));
        }
    }
    let waiting = |flow: &Flow, name, count| {
        let found = value(
            &flow.families(),
            "tower_flow_coalesce_waiters",
            &[("name", name)],
        );
        found == Some(count)
    };
    wait_for("all wait", || {
        waiting(&front, "grpc_client", 20.0) && waiting(&back, "behind", 2.0)
    })
    .await;
    door.open();
    for call in calls {
        let answer = call.await.unwrap().unwrap().into_inner();
        assert_eq!(answer.payload.unwrap().body.len(), 10);
    }
    assert_eq!(door.calls(), 1);
    let labels = [("grpc_code", "OK")];
    for (flow, name, count) in [
        (&front, "grpc_client_handled", 20.0),
        (&back, "grpc_server_handled", 2.0),
    ] {
        assert_eq!(sum(&flow.families(), name, &labels), count);
    }
}
