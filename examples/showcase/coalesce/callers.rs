//! Who reads what when, and what came of it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, sleep_until};
use tower::{Layer, Service, ServiceExt as _};
use tower_flow::BoxError;

use crate::arrivals::{Answers, Random, apart};

pub(super) type HyperClient = Client<HttpConnector, Empty<Bytes>>;

#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    /// From the start.
    due: Duration,
    key: usize,
}

/// What callers read within `time` who read `rate` times a second together, each whenever it likes: a Poisson process.
pub(super) fn plan(rate: f64, time: Duration, keys: usize) -> Vec<Read> {
    // Up to each key, the sum of the parts that Zipf's law with exponent 1 gives them.
    let sums: Vec<f64> = (1..=keys)
        .scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        })
        .collect();
    let all = sums.last().copied().unwrap_or_default();
    let mut random = Random(19);
    let mut reads = Vec::new();
    let mut due = random.gap(rate);
    while due < time {
        let draw = random.draw() * all;
        let key = sums.partition_point(|sum| *sum < draw);
        reads.push(Read { due, key });
        due += random.gap(rate);
    }
    reads
}

/// All `reads` by hyper's client behind `layer`, each made when it is due.
pub(super) async fn drive<L, B>(
    addr: SocketAddr,
    layer: L,
    reads: Vec<Read>,
) -> Result<Answers, BoxError>
where
    L: Layer<HyperClient> + Send + 'static,
    L::Service: Service<Request<Empty<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
    L::Service: Service<Request<Empty<Bytes>>, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    apart(async move {
        let mut http = Client::builder(TokioExecutor::new());
        let client = layer.layer(http.http2_only(true).build(HttpConnector::new()));
        let start = Instant::now();
        let mut callers = Vec::with_capacity(reads.len());
        for read in reads {
            sleep_until(start + read.due).await;
            let path = format!("/things/{}", read.key);
            let client = client.clone();
            callers.push(tokio::spawn(async move {
                ask(client, addr, path).await?;
                Ok::<_, BoxError>((start + read.due).elapsed())
            }));
        }
        Answers::of(start, callers).await
    })
    .await
}

/// The answer has to be the one to this very question.
async fn ask<S, B>(client: S, addr: SocketAddr, path: String) -> Result<(), BoxError>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let req = Request::get(format!("http://{addr}{path}")).body(Empty::new())?;
    let response = client.oneshot(req).await.map_err(Into::into)?;
    let body = response.into_body().collect().await.map_err(Into::into)?;
    let body = body.to_bytes();
    if body != path {
        return Err(format!("asked for {path}, got {body:?}").into());
    }
    Ok(())
}
