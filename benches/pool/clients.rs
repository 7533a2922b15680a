//! Ways to send a request again and again, and what one costs.

use std::fmt::Debug;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::client::legacy::connect::Connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::runtime::Runtime;
use tower_flow::BoxError;
use tower_flow::pool::{ConnPool, Protocol};
use tower_service::Service;

use crate::server::{Server, Speaks};
use crate::support;

pub type Nothing = Empty<Bytes>;

/// Callers of one kind of client, all of which call at once.
pub trait Client {
    fn callers(&self) -> usize;

    /// So many requests of each.
    fn run(&mut self, runtime: &Runtime, calls: usize);
}

/// What one request costs the thread that makes it.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Nanoseconds of CPU.
    pub cpu: f64,
    pub allocations: f64,
    pub tasks: f64,
}

/// Makes one request and reads its answer to the end.
trait Caller: Send + 'static {
    fn call(&mut self) -> impl Future<Output = ()> + Send;
}

struct Callers<C>(Vec<C>);

impl<C: Caller> Client for Callers<C> {
    fn callers(&self) -> usize {
        self.0.len()
    }

    fn run(&mut self, runtime: &Runtime, calls: usize) {
        let callers = self.0.drain(..).map(|mut caller| async move {
            for _ in 0..calls {
                caller.call().await;
            }
            caller
        });
        self.0 = runtime.block_on(async {
            let callers: Vec<_> = callers.map(tokio::spawn).collect();
            let mut done = Vec::with_capacity(callers.len());
            for caller in callers {
                done.push(caller.await.expect("no request fails"));
            }
            done
        });
    }
}

/// Runs `client` and says what a request cost.
pub fn measured(client: &mut dyn Client, runtime: &Runtime, server: &Server, calls: usize) -> Cost {
    let callers = client.callers();
    let each = (callers * calls) as f64;
    let first = runtime.block_on(number()) - server.hired();
    let (allocated, cpu) = (support::allocations(), support::cpu());
    client.run(runtime, calls);
    let cpu = support::cpu() - cpu;
    let allocated = support::allocations() - allocated;
    let last = runtime.block_on(number()) - server.hired();
    Cost {
        cpu: cpu.as_secs_f64() * 1e9 / each,
        allocations: allocated as f64 / each,
        // Less the callers, and the one that tells the number.
        tasks: (last - first - 1 - callers as u64) as f64 / each,
    }
}

/// What the next task is called: a number higher by one for each task of the process.
async fn number() -> u64 {
    let id = tokio::spawn(async { tokio::task::id() }).await;
    let id = id.expect("it only tells").to_string();
    id.parse().expect("a number")
}

async fn drain<B: Body<Error: Debug> + Unpin>(mut body: B) {
    while let Some(frame) = body.frame().await {
        frame.expect("the whole body");
    }
}

// ===== floor =====

struct Http1(http1::SendRequest<Nothing>, HeaderValue);

impl Caller for Http1 {
    async fn call(&mut self) {
        let mut req = Request::new(Nothing::new());
        req.headers_mut().insert(header::HOST, self.1.clone());
        self.0.ready().await.expect("it stays open");
        let response = self.0.send_request(req).await.expect("an answer");
        drain(response.into_body()).await;
    }
}

struct Http2(http2::SendRequest<Nothing>, Uri);

impl Caller for Http2 {
    async fn call(&mut self) {
        let mut req = Request::new(Nothing::new());
        *req.uri_mut() = self.1.clone();
        self.0.ready().await.expect("it stays open");
        let response = self.0.send_request(req).await.expect("an answer");
        drain(response.into_body()).await;
    }
}

/// hyper's own connections, as many as there are callers; one for all with HTTP/2.
pub fn floor<C>(
    runtime: &Runtime,
    mut connector: C,
    speaks: Speaks,
    uri: &Uri,
    callers: usize,
) -> Box<dyn Client>
where
    C: Service<Uri, Error: Debug>,
    C::Response: Read + Write + Unpin + Send + 'static,
{
    runtime.block_on(async {
        let host = uri.authority().expect("a host").as_str();
        let host = HeaderValue::from_str(host).expect("a header");
        let mut made = Vec::new();
        let open = match speaks {
            Speaks::Http1 => callers,
            Speaks::Http2 => 1,
        };
        let mut multiplexed = None;
        for _ in 0..open {
            std::future::poll_fn(|cx| connector.poll_ready(cx))
                .await
                .expect("ready");
            let io = connector.call(uri.clone()).await.expect("a connection");
            match speaks {
                Speaks::Http1 => {
                    let (sender, conn) = http1::handshake(io).await.expect("a handshake");
                    tokio::spawn(conn);
                    made.push(Http1(sender, host.clone()));
                }
                Speaks::Http2 => {
                    let (sender, conn) = http2::handshake(TokioExecutor::new(), io)
                        .await
                        .expect("a handshake");
                    tokio::spawn(conn);
                    multiplexed = Some(Http2(sender, uri.clone()));
                }
            }
        }
        match multiplexed {
            None => Box::new(Callers(made)) as Box<dyn Client>,
            Some(one) => {
                let all = (0..callers).map(|_| Http2(one.0.clone(), one.1.clone()));
                Box::new(Callers(all.collect::<Vec<_>>()))
            }
        }
    })
}

// ===== pools =====

struct Pooled<S>(S, Uri);

impl<S, B> Caller for Pooled<S>
where
    S: Service<Request<Nothing>, Response = Response<B>, Error: Debug, Future: Send>,
    S: Send + 'static,
    B: Body<Error: Debug> + Unpin + Send,
    B::Data: Send,
{
    async fn call(&mut self) {
        let mut req = Request::new(Nothing::new());
        *req.uri_mut() = self.1.clone();
        let response = self.0.call(req).await.expect("an answer");
        drain(response.into_body()).await;
    }
}

fn pooled<S, B>(service: S, uri: &Uri, callers: usize) -> Box<dyn Client>
where
    S: Service<Request<Nothing>, Response = Response<B>, Error: Debug, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Error: Debug, Data: Send> + Unpin + Send + 'static,
{
    let all = (0..callers).map(|_| Pooled(service.clone(), uri.clone()));
    Box::new(Callers(all.collect::<Vec<_>>()))
}

/// hyper-util's `Client`, whose idle connections end as ours do.
pub fn legacy<C>(connector: C, speaks: Speaks, uri: &Uri, callers: usize) -> Box<dyn Client>
where
    C: hyper_util::client::legacy::connect::Connect + Clone + Send + Sync + 'static,
{
    let client = Legacy::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .http2_only(speaks == Speaks::Http2)
        .build::<_, Nothing>(connector);
    pooled(client, uri, callers)
}

pub fn ours<C>(
    connector: C,
    speaks: Speaks,
    uri: &Uri,
    callers: usize,
    timings: bool,
) -> Box<dyn Client>
where
    C: Service<Uri, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    C::Response: Read + Write + Connection + Unpin + Send + 'static,
{
    let protocol = match speaks {
        Speaks::Http1 => Protocol::Http1,
        Speaks::Http2 => Protocol::Http2,
    };
    let pool: ConnPool<Nothing> = ConnPool::builder(connector)
        .protocol(protocol)
        // The other one has no limit.
        .max_connections_per_host(256)
        .max_idle(256)
        .max_idle_per_host(256)
        .timings(timings)
        .build();
    pooled(pool, uri, callers)
}
