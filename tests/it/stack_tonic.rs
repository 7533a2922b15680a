//! Real tonic servers and clients on loopback, and peers nobody here wrote.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tower::{Layer, ServiceBuilder};
use tower_flow::connection::Connections;
use tower_flow::grpc::{
    GrpcClientLayer, GrpcHandle, GrpcServerLayer, MethodSnapshot, TonicBodyLayer,
};
use tower_flow::outcome::Code;
use tower_flow::{Flow, preset};

use crate::interop::*;
use crate::support;

const FDS: &[u8] = include_bytes!("../interop/gen/interop.fds");

fn incoming() -> (TcpIncoming, SocketAddr) {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap())
        .unwrap()
        .with_nodelay(Some(true));
    let addr = incoming.local_addr().unwrap();
    (incoming, addr)
}

/// A server that counts its calls, on a free port.
fn serve(layer: &GrpcServerLayer, connections: &Connections) -> SocketAddr {
    let (incoming, addr) = incoming();
    let server = Server::builder()
        .layer(layer.clone())
        .layer(connections.streams())
        .layer(EchoMetadata)
        .add_service(service())
        .serve_with_incoming(connections.incoming(incoming));
    tokio::spawn(server);
    addr
}

fn server_layer() -> GrpcServerLayer {
    GrpcServerLayer::new().register_fds(FDS).unwrap()
}

async fn channel(addr: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

/// Waits, briefly, until `done`: what a peer does last may reach us after it has gone.
async fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..200 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn method(handle: &GrpcHandle, name: &str) -> MethodSnapshot {
    let mut found = handle
        .snapshot()
        .into_iter()
        .filter(|method| method.method == name && method.started > 0);
    found.next().unwrap_or_else(|| panic!("no calls of {name}"))
}

// 4, with a network
#[tokio::test]
async fn a_stream_its_client_leaves_is_cancelled_once() {
    let layer = server_layer();
    let addr = serve(&layer, &Connections::server("t"));
    let mut client = TestServiceClient::new(channel(addr).await);
    let size = |interval_us| ResponseParameters {
        size: 10,
        interval_us,
        ..Default::default()
    };
    let request = StreamingOutputCallRequest {
        response_parameters: vec![size(0), size(0), size(60_000_000)],
        ..Default::default()
    };
    let mut answers = client
        .streaming_output_call(request)
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap().unwrap();
    answers.message().await.unwrap().unwrap();
    let handle = layer.handle();
    assert_eq!(method(&handle, "StreamingOutputCall").in_flight, 1);
    drop(answers);
    eventually("the reset arrives", || {
        method(&handle, "StreamingOutputCall").in_flight == 0
    })
    .await;
    let left = method(&handle, "StreamingOutputCall");
    assert_eq!(
        (left.handled, left.messages_sent),
        (vec![(Code::Cancelled, 1)], 2)
    );
}

// 5, under tonic's own timeout
#[tokio::test]
async fn a_deadline_under_tonics_timeout_is_one_on_both_sides() {
    let layer = server_layer();
    let (incoming, addr) = incoming();
    let slow = tower::service_fn(
        |_: http::Request<tower_flow::grpc::RequestBody<tonic::body::Body>>| async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok::<_, std::convert::Infallible>(http::Response::new(tonic::body::Body::empty()))
        },
    );
    let routes = layer.layer(slow);
    tokio::spawn(Server::builder().serve_with_incoming(routes, incoming));

    let clients = GrpcClientLayer::new();
    let stack = ServiceBuilder::new()
        .layer(clients.clone())
        .layer(TonicBodyLayer::new());
    let mut client = TestServiceClient::new(stack.service(channel(addr).await));
    let mut request = tonic::Request::new(Empty {});
    request.set_timeout(Duration::from_millis(50));
    client.empty_call(request).await.unwrap_err();
    eventually("the server gives up", || {
        method(&layer.handle(), "EmptyCall").in_flight == 0
    })
    .await;
    assert_eq!(
        method(&layer.handle(), "EmptyCall").handled,
        [(Code::DeadlineExceeded, 1)]
    );
    assert_eq!(
        method(&clients.handle(), "EmptyCall").handled,
        [(Code::DeadlineExceeded, 1)]
    );
}

// 6
#[tokio::test]
async fn trailers_only_stays_one_frame_of_headers() {
    let layer = server_layer();
    let addr = serve(&layer, &Connections::server("t"));
    let (mut h2, connection) = h2::client::handshake(TcpStream::connect(addr).await.unwrap())
        .await
        .unwrap();
    tokio::spawn(connection);
    let req = http::Request::post(format!(
        "http://{addr}/grpc.testing.TestService/UnimplementedCall"
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .body(())
    .unwrap();
    let (response, mut body) = h2.send_request(req, false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true)
        .unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
    assert!(
        response.body().is_end_stream(),
        "END_STREAM is on the HEADERS frame"
    );
    assert_eq!(
        method(&layer.handle(), "UnimplementedCall").handled,
        [(Code::Unimplemented, 1)]
    );
}

#[tokio::test]
async fn client_and_server_books_agree() {
    let flow = Flow::new("books");
    let server = preset::grpc_server_observed(&flow);
    let (incoming, addr) = incoming();
    tokio::spawn(
        Server::builder()
            .layer(server.clone())
            .add_service(service())
            .serve_with_incoming(incoming),
    );
    let clients = GrpcClientLayer::new();
    let stack = ServiceBuilder::new()
        .layer(clients.clone())
        .layer(TonicBodyLayer::new());
    let mut client = TestServiceClient::new(stack.service(channel(addr).await));
    for n in 0..20 {
        client.empty_call(Empty {}).await.unwrap();
        let status = EchoStatus {
            code: 9,
            message: "no".into(),
        };
        let failing = SimpleRequest {
            response_status: (n % 2 == 1).then_some(status),
            response_size: 1000 * n,
            ..Default::default()
        };
        let _ = client.unary_call(failing).await;
        let request = tokio_stream::iter((0..n).map(|_| StreamingInputCallRequest::default()));
        client.streaming_input_call(request).await.unwrap();
    }
    let (server, client) = (server.handle(), clients.handle());
    eventually("the server is done", || {
        server.snapshot().iter().all(|method| method.in_flight == 0)
    })
    .await;
    for ours in client.snapshot() {
        let theirs = method(&server, &ours.method);
        // A server learns a method from its first call, which stays with `other`; a client knows it before.
        assert_eq!(theirs.started + 1, ours.started, "{}", ours.method);
    }
    let total = |handle: &GrpcHandle, of: fn(&MethodSnapshot) -> u64| {
        handle.snapshot().iter().map(of).sum::<u64>()
    };
    assert_eq!(total(&server, |m| m.started), 60);
    assert_eq!(total(&client, |m| m.started), 60);
    assert_eq!(
        total(&client, |m| m.messages_sent),
        total(&server, |m| m.messages_received)
    );
    assert_eq!(
        total(&client, |m| m.messages_received),
        total(&server, |m| m.messages_sent)
    );
    assert_eq!(
        total(&client, |m| m.bytes_sent),
        total(&server, |m| m.bytes_received)
    );
    assert_eq!(
        total(&client, |m| m.bytes_received),
        total(&server, |m| m.bytes_sent)
    );
}

#[tokio::test]
async fn one_tonic_service_can_be_wrapped_alone() {
    let flow = Flow::new("one");
    let layer = preset::grpc_server_observed(&flow);
    let (incoming, addr) = incoming();
    let wrapped = layer.layer(service());
    tokio::spawn(
        Server::builder()
            .add_service(wrapped)
            .serve_with_incoming(incoming),
    );
    TestServiceClient::new(channel(addr).await)
        .empty_call(Empty {})
        .await
        .unwrap();
    assert_eq!(
        method(&layer.handle(), "other").handled,
        [(Code::Ok, 1)],
        "the call that made it known"
    );
}

#[tokio::test]
async fn a_call_to_a_dead_server_is_unavailable() {
    let (incoming, addr) = incoming();
    drop(incoming);
    let clients = GrpcClientLayer::new();
    let lazy = Channel::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect_lazy();
    let stack = ServiceBuilder::new()
        .layer(clients.clone())
        .layer(TonicBodyLayer::new());
    let mut client = TestServiceClient::new(stack.service(lazy));
    client.empty_call(Empty {}).await.unwrap_err();
    assert_eq!(
        method(&clients.handle(), "EmptyCall").handled,
        [(Code::Unavailable, 1)]
    );
}

#[tokio::test]
async fn connections_and_their_streams_are_seen_from_both_ends() {
    let (servers, dialled) = (Connections::server("s"), Connections::client("c").otel());
    let addr = serve(&server_layer(), &servers);
    let mut connector = hyper_util::client::legacy::connect::HttpConnector::new();
    connector.enforce_http(false);
    let connector = dialled.connector().layer(connector);
    let endpoint = Channel::from_shared(format!("http://{addr}")).unwrap();
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut client = TestServiceClient::new(channel);
    client.empty_call(Empty {}).await.unwrap();
    client.empty_call(Empty {}).await.unwrap();
    let (server, dialler) = (servers.snapshot(), dialled.snapshot());
    assert_eq!((server.opened, server.open, server.streams), (1, 1, 2));
    assert_eq!((dialler.opened, dialler.open), (1, 1));
    assert_eq!(dialler.connections[0].peer, addr.to_string());
    assert!(
        server.connections[0].peer.starts_with("127.0.0.1:"),
        "{server:?}"
    );
    assert!(server.bytes_read > 0 && dialler.bytes_read > 0);
    drop(client);
    eventually("both ends close", || {
        servers.snapshot().open == 0 && dialled.snapshot().open == 0
    })
    .await;
    // All that one end wrote the other has read.
    assert_eq!(
        dialled.snapshot().bytes_written,
        servers.snapshot().bytes_read
    );
    assert_eq!(dialled.snapshot().closed, 1);
}

#[tokio::test]
async fn a_handler_still_knows_its_peer() {
    #[derive(Debug)]
    struct Knows;
    #[tonic::async_trait]
    impl TestService for Knows {
        async fn empty_call(
            &self,
            req: tonic::Request<Empty>,
        ) -> Result<tonic::Response<Empty>, tonic::Status> {
            let peer = req
                .remote_addr()
                .ok_or_else(|| tonic::Status::internal("no address"))?;
            let connection = req.extensions().get::<tower_flow::connection::Connection>();
            let connection = connection.ok_or_else(|| tonic::Status::internal("no connection"))?;
            assert_eq!(connection.peer(), peer.to_string());
            Ok(tonic::Response::new(Empty {}))
        }
        async fn unary_call(
            &self,
            _: tonic::Request<SimpleRequest>,
        ) -> Result<tonic::Response<SimpleResponse>, tonic::Status> {
            Err(tonic::Status::unimplemented(""))
        }
        async fn streaming_input_call(
            &self,
            _: tonic::Request<tonic::Streaming<StreamingInputCallRequest>>,
        ) -> Result<tonic::Response<StreamingInputCallResponse>, tonic::Status> {
            Err(tonic::Status::unimplemented(""))
        }
        type StreamingOutputCallStream =
            tokio_stream::Empty<Result<StreamingOutputCallResponse, tonic::Status>>;
        async fn streaming_output_call(
            &self,
            _: tonic::Request<StreamingOutputCallRequest>,
        ) -> Result<tonic::Response<Self::StreamingOutputCallStream>, tonic::Status> {
            Err(tonic::Status::unimplemented(""))
        }
        type FullDuplexCallStream = Self::StreamingOutputCallStream;
        async fn full_duplex_call(
            &self,
            _: tonic::Request<tonic::Streaming<StreamingOutputCallRequest>>,
        ) -> Result<tonic::Response<Self::FullDuplexCallStream>, tonic::Status> {
            Err(tonic::Status::unimplemented(""))
        }
        async fn unimplemented_call(
            &self,
            _: tonic::Request<Empty>,
        ) -> Result<tonic::Response<Empty>, tonic::Status> {
            Err(tonic::Status::unimplemented(""))
        }
    }
    let connections = Connections::server("s");
    let (incoming, addr) = incoming();
    let server = Server::builder()
        .layer(connections.streams())
        .add_service(TestServiceServer::new(Knows))
        .serve_with_incoming(connections.incoming(incoming));
    tokio::spawn(server);
    TestServiceClient::new(channel(addr).await)
        .empty_call(Empty {})
        .await
        .unwrap();
}

// 13: every interop case, by a client nobody here wrote, compared to the byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_client_and_our_counters_agree_to_the_byte() {
    let Some(python) = support::python() else {
        return;
    };
    let layer = server_layer();
    let addr = serve(&layer, &Connections::server("interop"));
    let script = support::script("client.py");
    let output = tokio::task::spawn_blocking(move || {
        support::run(
            Command::new(python)
                .arg("-B")
                .arg(script)
                .args(["--target", &addr.to_string()]),
            b"",
        )
    });
    let output = output.await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["cases"].as_array().unwrap().len(), 18, "{told}");

    let handle = layer.handle();
    let quiet = || handle.snapshot().iter().all(|method| method.in_flight == 0);
    eventually("the last resets arrive", quiet).await;
    let number =
        |what: &str, method: &str, field: &str| told[what][method][field].as_u64().unwrap_or(0);
    for method in handle
        .snapshot()
        .into_iter()
        .filter(|method| method.service == "grpc.testing.TestService")
    {
        let key = format!("{}/{}", method.service, method.method);
        let both = |field: &str| number("methods", &key, field) + number("uncertain", &key, field);
        assert_eq!(method.started, both("calls"), "{key}: calls");
        assert_eq!(
            method.messages_received,
            both("messages_sent"),
            "{key}: messages to us"
        );
        assert_eq!(
            method.messages_sent,
            both("messages_received"),
            "{key}: messages from us"
        );
        assert_eq!(
            method.bytes_received,
            both("bytes_sent"),
            "{key}: bytes to us"
        );
        assert_eq!(
            method.bytes_sent,
            both("bytes_received"),
            "{key}: bytes from us"
        );
        for (code, count) in &method.handled {
            let code = code.as_otel();
            let seen = ["methods", "uncertain"]
                .map(|what| told[what][&key]["codes"][code].as_u64().unwrap_or(0));
            // The client's deadline and its cancel both reach a server as a reset, in either order with its own timer.
            if !matches!(code, "CANCELLED" | "DEADLINE_EXCEEDED") {
                assert_eq!(*count, seen[0] + seen[1], "{key}: {code}");
            }
        }
        let handled: u64 = method.handled.iter().map(|(_, count)| count).sum();
        assert_eq!(handled, method.started, "{key}: handled");
    }
    let unserved = handle
        .snapshot()
        .into_iter()
        .find(|method| method.service == "grpc.testing.UnimplementedService");
    assert_eq!(unserved.unwrap().handled, [(Code::Unimplemented, 1)]);
}
