//! hyper-util's client held to so many connections: `cargo run --features full --example hyper_legacy_limit`
//!
//! 64 callers ask a server of their own, first without a limit, then with one of 4. The server counts its connections.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_flow::BoxError;
use tower_flow::pool::limit::ConnLimit;

/// A server whose answers take 5 ms each, and the most connections it has had at once.
async fn server() -> Result<(SocketAddr, Arc<AtomicUsize>), std::io::Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (addr, most) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
    let (open, peak) = (Arc::new(AtomicUsize::new(0)), most.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            peak.fetch_max(open.fetch_add(1, Relaxed) + 1, Relaxed);
            let open = open.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(async |_: Request<Incoming>| {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello\n")))
                });
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
                open.fetch_sub(1, Relaxed);
            });
        }
    });
    Ok((addr, most))
}

/// 64 callers with ten requests each.
async fn ask<S>(client: S, addr: SocketAddr) -> Result<Duration, BoxError>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<Incoming>, Future: Send>,
    S: Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
{
    let (began, mut callers) = (Instant::now(), JoinSet::new());
    for _ in 0..64 {
        let client = client.clone();
        callers.spawn(async move {
            for _ in 0..10 {
                let req = Request::get(format!("http://{addr}/")).body(Empty::new())?;
                let response = client.clone().oneshot(req).await.map_err(Into::into)?;
                response.into_body().collect().await?;
            }
            Ok::<_, BoxError>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(began.elapsed())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut builder = Client::builder(TokioExecutor::new());
    // Without a timer the client never closes an idle connection, which then keeps its place for ever.
    builder.pool_timer(TokioTimer::new());

    let (addr, most) = server().await?;
    let took = ask(builder.build(HttpConnector::new()), addr).await?;
    println!("without a limit: {most:?} connections, 640 answers in {took:?}");

    let (addr, most) = server().await?;
    let limit = ConnLimit::new(512).max_connections_per_host(4);
    let handle = limit.handle();
    // Both layers: one makes dials wait, the other ends those whose requests have got another connection.
    let client = ServiceBuilder::new()
        .layer(limit.request_layer())
        .service(builder.build(limit.connector_layer().layer(HttpConnector::new())));
    let took = ask(client, addr).await?;
    let now = handle.snapshot();
    println!("with a limit of 4: {most:?} connections, 640 answers in {took:?}");
    println!("{} dials ended as ghosts, {} left", now.ghosts, now.waiting);
    Ok(())
}
