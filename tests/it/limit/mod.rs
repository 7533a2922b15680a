//! Limits for clients that have a pool of their own: over paused time, in memory, and on real sockets.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{Connect, Connected, Connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_flow::error::Reason;
use tower_flow::inspect::{Inspect, Value};
use tower_flow::pool::limit::{ConnLimit, LimitHandle, RequestLimit};
use tower_flow::{BoxError, Flow, Rejection};

use crate::support::{Steps, allocations, broken, classic, data, value};

mod client;
mod connector;
mod requests;
mod sockets;

// ===== connections that are counted from outside =====

/// How many there are now, and how many there were at most.
#[derive(Debug, Clone, Default)]
struct Peak(Arc<[AtomicUsize; 2]>);

impl Peak {
    fn enter(&self) -> Inside {
        let now = self.0[0].fetch_add(1, Relaxed) + 1;
        self.0[1].fetch_max(now, Relaxed);
        Inside(self.clone())
    }

    fn now(&self) -> usize {
        self.0[0].load(Relaxed)
    }

    fn most(&self) -> usize {
        self.0[1].load(Relaxed)
    }
}

#[derive(Debug)]
struct Inside(Peak);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0[0].fetch_sub(1, Relaxed);
    }
}

/// An IO that counts until it is dropped.
#[derive(Debug)]
struct Counted<IO> {
    io: IO,
    h2: bool,
    _inside: Vec<Inside>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<IO> Connection for Counted<IO> {
    fn connected(&self) -> Connected {
        match self.h2 {
            true => Connected::new().negotiated_h2(),
            false => Connected::new(),
        }
    }
}

/// What connections there are, dials included: in all, and by port.
#[derive(Debug, Clone, Default)]
struct Dialled {
    all: Peak,
    hosts: Arc<Mutex<HashMap<u16, Peak>>>,
    dials: Arc<AtomicUsize>,
}

impl Dialled {
    fn host(&self, port: u16) -> Peak {
        self.hosts.lock().unwrap().entry(port).or_default().clone()
    }

    fn enter(&self, to: &Uri) -> Vec<Inside> {
        self.dials.fetch_add(1, Relaxed);
        let port = to.port_u16().unwrap_or_default();
        vec![self.all.enter(), self.host(port).enter()]
    }

    async fn tcp(self, to: Uri) -> Result<TokioIo<Counted<TcpStream>>, BoxError> {
        let inside = self.enter(&to);
        let addr: SocketAddr = to.authority().unwrap().as_str().parse()?;
        let io = TcpStream::connect(addr).await?;
        Ok(TokioIo::new(Counted {
            io,
            h2: false,
            _inside: inside,
        }))
    }

    /// To a server in memory.
    async fn memory(self, to: Uri, h2: bool) -> Result<TokioIo<Counted<DuplexStream>>, BoxError> {
        let inside = self.enter(&to);
        let (io, peer) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(answer);
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(peer), service)
                .await;
        });
        tokio::task::yield_now().await;
        Ok(TokioIo::new(Counted {
            io,
            h2,
            _inside: inside,
        }))
    }
}

async fn answer<B>(req: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    match req.uri().path() {
        "/slow" => tokio::time::sleep(Duration::from_millis(2)).await,
        "/never" => std::future::pending().await,
        _ => tokio::task::yield_now().await,
    }
    let mut response = Response::new(Full::from("a body"));
    if req.uri().path() == "/close" && req.version() < http::Version::HTTP_2 {
        let close = http::HeaderValue::from_static("close");
        response.headers_mut().insert("connection", close);
    }
    Ok(response)
}

// ===== clients =====

type Body = Empty<Bytes>;
type Answered = Result<Bytes, BoxError>;

fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(Empty::new()).unwrap()
}

/// Asks and reads the answer to its end.
async fn ask<S, B>(client: S, uri: &str) -> Answered
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let response = client.oneshot(get(uri)).await.map_err(Into::into)?;
    let body = response.into_body().collect().await.map_err(Into::into)?;
    Ok(body.to_bytes())
}

fn rejection(error: &BoxError) -> Rejection {
    let found = Rejection::find(error.as_ref());
    found.unwrap_or_else(|| panic!("{error:?}")).clone()
}

fn refused<T: std::fmt::Debug>(result: Result<T, BoxError>) -> Reason {
    let rejection = rejection(&result.unwrap_err());
    assert_eq!(rejection.layer(), "pool");
    rejection.reason()
}

fn legacy() -> legacy::Builder {
    Client::builder(TokioExecutor::new())
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Until what the tasks beside this one do has settled.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Waits, not for long, until `done`.
async fn until(done: impl Fn() -> bool, what: &str) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

fn uri(host: &str) -> Uri {
    format!("http://{host}/").parse().unwrap()
}
