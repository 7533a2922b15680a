//! Real hyper servers and clients on loopback.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_flow::connection::{Connection, Connections};
use tower_flow::outcome::Outcome;
use tower_flow::timing::{TimingHandle, TimingLayer};
use tower_flow::{Flow, ServiceBuilderExt};

use crate::http as client;
use crate::support::{Steps, data};

/// An HTTP/1 server whose every layer is on.
async fn serve(timing: TimingLayer, connections: Connections) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let timed = timing
        .http()
        .layer(service_fn(async |req: Request<Incoming>| {
            let response = match req.uri().path() {
                "/missing" => Response::builder()
                    .status(404)
                    .body(Full::new(Bytes::new())),
                "/broken" => Response::builder().status(500).body(Full::from("oh")),
                _ => Response::builder().body(Full::from("hello")),
            };
            Ok::<_, Infallible>(response.unwrap())
        }));
    tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let io = connections.accept_from(stream, peer);
            let service = io.connection().service(timed.clone());
            tokio::spawn(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(io), TowerToHyperService::new(service)),
            );
        }
    });
    addr
}

fn outcomes(handle: &TimingHandle) -> Vec<(Outcome, u64)> {
    handle.snapshot()[0].ended.clone()
}

// grpc-metrics test 8
#[tokio::test]
async fn an_http1_body_of_known_size_keeps_its_length_and_ends_with_it() {
    let timing = TimingLayer::new("http");
    let handle = timing.handle();
    let connections = Connections::server("http");
    let addr = serve(timing, connections.clone()).await;
    let answer = client::raw(
        addr,
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.contains("content-length: 5\r\n"), "{answer}");
    assert!(!answer.contains("transfer-encoding"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
    assert_eq!(outcomes(&handle), [(Outcome::Success, 1)]);
    let seen = connections.snapshot();
    assert_eq!((seen.opened, seen.streams), (1, 1));
}

#[tokio::test]
async fn statuses_heads_and_half_read_answers_are_told_apart() {
    let timing = TimingLayer::new("http");
    let handle = timing.handle();
    let addr = serve(timing, Connections::server("http")).await;
    for path in ["/missing", "/broken", "/"] {
        client::get(&format!("http://{addr}{path}"), "*/*").await;
    }
    let head = Request::head(format!("http://{addr}/"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let head = client::send(head).await;
    assert_eq!(
        (&head.headers()["content-length"], head.body().len()),
        (&"5".parse().unwrap(), 0)
    );
    let expected = [
        (Outcome::Success, 2),
        (Outcome::Failure, 1),
        (Outcome::NotFound, 1),
    ];
    assert_eq!(
        outcomes(&handle),
        expected,
        "the answer to a HEAD is no cancelled body"
    );
}

#[tokio::test]
async fn a_client_is_timed_to_the_end_of_the_body_and_knows_its_connections() {
    let flow = Flow::new("client");
    let addr = serve(TimingLayer::new("server"), Connections::server("server")).await;
    let connections = Connections::client("stock").attach(&flow);
    let connector = connections.connector().layer(HttpConnector::new());
    let hyper: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let mut service = ServiceBuilder::new()
        .http_timing("stock", &flow)
        .layer(connections.streams())
        .service(hyper);
    for _ in 0..3 {
        let req = Request::get(format!("http://{addr}/"))
            .body(Empty::new())
            .unwrap();
        let response = service.ready().await.unwrap().call(req).await.unwrap();
        let connection = response.extensions().get::<Connection>().unwrap().clone();
        assert_eq!(connection.peer(), addr.to_string());
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "hello"
        );
    }
    let seen = connections.snapshot();
    assert_eq!(
        (seen.opened, seen.open, seen.streams),
        (1, 1, 3),
        "one connection, used three times"
    );
    drop(service);
    for _ in 0..100 {
        if connections.snapshot().open == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the connection outlives its client");
}

#[tokio::test]
async fn streams_of_connections_that_close_at_once_are_not_lost() {
    let addr = serve(TimingLayer::new("server"), Connections::server("server")).await;
    let connections = Connections::client("brief");
    let connector = connections.connector().layer(HttpConnector::new());
    let hyper: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let mut service = connections.streams().layer(hyper);
    for _ in 0..50 {
        let req = Request::get(format!("http://{addr}/"))
            .header("connection", "close")
            .body(Empty::new())
            .unwrap();
        service
            .ready()
            .await
            .unwrap()
            .call(req)
            .await
            .unwrap()
            .into_body()
            .collect()
            .await
            .unwrap();
    }
    assert_eq!(
        (
            connections.snapshot().opened,
            connections.snapshot().streams
        ),
        (50, 50)
    );
}

#[tokio::test]
async fn a_dial_that_fails_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let connections = Connections::client("dead");
    let connector = connections.connector().layer(HttpConnector::new());
    let hyper: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let uri = format!("http://{addr}/").parse().unwrap();
    hyper.get(uri).await.unwrap_err();
    assert_eq!(
        (connections.snapshot().failed, connections.snapshot().opened),
        (1, 0)
    );
    // A dial somebody gave up on failed as well.
    let connector = connections
        .connector()
        .layer(service_fn(async |_: http::Uri| {
            std::future::pending::<Result<(), Infallible>>().await
        }));
    drop(connector.oneshot("http://x/".parse().unwrap()));
    let dial = tokio::time::timeout(
        Duration::from_millis(1),
        connections
            .connector()
            .layer(service_fn(async |_: http::Uri| {
                std::future::pending::<Result<(), Infallible>>().await
            }))
            .oneshot("http://x/".parse().unwrap()),
    );
    assert!(dial.await.is_err());
    assert_eq!(connections.snapshot().failed, 2);
}

#[tokio::test]
async fn a_body_that_breaks_after_its_headers_failed() {
    let timing = TimingLayer::new("http");
    let handle = timing.handle();
    let breaking = service_fn(async |_: Request<()>| {
        let body = Steps::new([data(b"a"), crate::support::broken("cut off")]);
        Ok::<_, Infallible>(Response::new(body))
    });
    let response = timing
        .http()
        .layer(breaking)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    response.into_body().collect().await.unwrap_err();
    assert_eq!(outcomes(&handle), [(Outcome::Failure, 1)]);
}
