//! reqwest held to so many requests: `cargo run --features full --example reqwest_limit`
//!
//! 64 callers ask a server of their own, first without a limit, then with one of 4. The server counts its connections.
//! No layer can limit reqwest's connections; limiting requests comes close, and only close.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower_flow::BoxError;
use tower_flow::pool::limit::RequestLimit;

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

/// One request, whose permit is held to the end of its response's body.
async fn get(
    client: &reqwest::Client,
    limit: Option<&RequestLimit>,
    url: &str,
) -> Result<Bytes, BoxError> {
    let Some(limit) = limit else {
        return Ok(client.get(url).send().await?.bytes().await?);
    };
    let permit = limit.acquire(&url.parse()?).await?;
    let response: Response<reqwest::Body> = client.get(url).send().await?.into();
    Ok(permit
        .hold(response)
        .into_body()
        .collect()
        .await?
        .to_bytes())
}

/// 64 callers with ten requests each.
async fn ask(limit: Option<RequestLimit>, addr: SocketAddr) -> Result<Duration, BoxError> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let (began, mut callers) = (Instant::now(), JoinSet::new());
    for _ in 0..64 {
        let (client, limit) = (client.clone(), limit.clone());
        callers.spawn(async move {
            for _ in 0..10 {
                get(&client, limit.as_ref(), &format!("http://{addr}/")).await?;
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
    let (addr, most) = server().await?;
    let took = ask(None, addr).await?;
    println!("without a limit: {most:?} connections, 640 answers in {took:?}");

    let (addr, most) = server().await?;
    let limit = RequestLimit::new(512).max_requests_per_host(4);
    let handle = limit.handle();
    let took = ask(Some(limit), addr).await?;
    println!("with a limit of 4 requests: {most:?} connections, 640 answers in {took:?}");
    println!("{} of 640 requests waited", handle.snapshot().waited);
    Ok(())
}
