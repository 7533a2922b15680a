//! Equal GETs of a hyper client become one: `cargo run --features full --example coalesce_reads`
//!
//! 200 callers at once ask a server of their own for ten items. It has four desks and takes 20 ms for an answer. They ask
//! bare, then coalesced on the client's side, then coalesced on the server's. The server counts what its desks did.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_flow::{BoxError, coalesce::CoalesceLayer};

static DESKS: Semaphore = Semaphore::const_new(4);
static ANSWERS: AtomicU64 = AtomicU64::new(0);

async fn item(req: Request<Incoming>) -> Result<Response<Full<Bytes>>, BoxError> {
    let _desk = DESKS.acquire().await?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    ANSWERS.fetch_add(1, Relaxed);
    Ok(Response::new(req.uri().path().to_owned().into()))
}

async fn serve<S, B>(service: S) -> Result<SocketAddr, BoxError>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = BoxError, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(addr)
}

/// 200 callers at once; what they got and when.
async fn ask<S, B>(what: &str, client: S, addr: SocketAddr) -> Result<(), BoxError>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Future: Send>
        + Clone
        + Send
        + 'static,
    S::Error: Into<BoxError> + Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let (start, before, mut callers) = (Instant::now(), ANSWERS.load(Relaxed), JoinSet::new());
    for caller in 0..200 {
        let req = Request::get(format!("http://{addr}/items/{}", caller % 10)).body(Empty::new())?;
        let answer = client.clone().oneshot(req);
        callers.spawn(async move {
            let body = answer.await.map_err(Into::into)?.into_body();
            body.collect().await.map_err(Into::into)?;
            Ok::<_, BoxError>(start.elapsed())
        });
    }
    let answered: Result<Vec<_>, _> = callers.join_all().await.into_iter().collect();
    let mut times = answered?;
    times.sort_unstable();
    let (answers, p50, p99) = (ANSWERS.load(Relaxed) - before, times[99], times[197]);
    println!("{what}: {answers} calls for 200 callers, p50 {p50:.0?}, p99 {p99:.0?}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let addr = serve(service_fn(item)).await?;
    ask("bare", client.clone(), addr).await?;

    let layer = CoalesceLayer::http();
    let coalesced = ServiceBuilder::new().layer(&layer).service(client.clone());
    ask("coalesced by the client", coalesced, addr).await?;
    let seen = layer.handle().snapshot();
    println!("  {} calls sent, {} saved", seen.leaders, seen.shared);

    // A server answers its callers when a flight fails; an error would cut their connections.
    let layer = CoalesceLayer::http().respond(true);
    let service = ServiceBuilder::new().layer(&layer).service_fn(item);
    ask("coalesced by the server", client, serve(service).await?).await?;
    let seen = layer.handle().snapshot();
    println!("  {} calls handled, {} saved", seen.leaders, seen.shared);
    Ok(())
}
