//! A server on a thread of its own: its CPU time is not the clients'.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use crate::support;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    Http2,
}

#[derive(Clone)]
pub struct Setup {
    pub speaks: Speaks,
    /// How long an answer takes.
    pub think: Duration,
    /// And how long before a handshake begins.
    pub tls: Option<(TlsAcceptor, Duration)>,
}

/// Answers every request with 16 bytes.
pub struct Server {
    pub address: SocketAddr,
    pub memory: Memory,
    hired: Arc<AtomicU64>,
}

/// Connects to a server in memory.
#[derive(Clone)]
pub struct Memory(mpsc::UnboundedSender<DuplexStream>);

pub struct MemoryIo(TokioIo<DuplexStream>);

/// Counts what a server spawns, since every task of the process has a number of the same row.
#[derive(Clone)]
struct Hiring(Arc<AtomicU64>);

// ===== impl Server =====

impl Server {
    pub fn start(speaks: Speaks) -> Self {
        Self::with(Setup {
            speaks,
            think: Duration::ZERO,
            tls: None,
        })
    }

    pub fn with(setup: Setup) -> Self {
        let (memory, mut dialled) = mpsc::unbounded_channel::<DuplexStream>();
        let (bound, address) = std::sync::mpsc::channel();
        let hiring = Hiring(Arc::default());
        let hired = hiring.0.clone();
        std::thread::spawn(move || {
            support::pin(1);
            runtime().block_on(async {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
                let listener = listener.await.expect("a port");
                let address = listener.local_addr().expect("an address");
                bound.send(address).expect("the client waits");
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (socket, _) = accepted.expect("a connection");
                            socket.set_nodelay(true).expect("a socket");
                            hiring.spawn(greet(setup.clone(), socket, hiring.clone()));
                        }
                        Some(io) = dialled.recv() => {
                            hiring.spawn(serve(setup.clone(), TokioIo::new(io), hiring.clone()));
                        }
                    }
                }
            });
        });
        Self {
            address: address.recv().expect("the server starts"),
            memory: Memory(memory),
            hired,
        }
    }

    /// Tasks it has spawned.
    pub fn hired(&self) -> u64 {
        self.hired.load(Ordering::SeqCst)
    }
}

async fn greet(setup: Setup, socket: TcpStream, hiring: Hiring) {
    let Some((acceptor, handshake)) = setup.tls.clone() else {
        return serve(setup, TokioIo::new(socket), hiring).await;
    };
    tokio::time::sleep(handshake).await;
    if let Ok(io) = acceptor.accept(socket).await {
        serve(setup, TokioIo::new(io), hiring).await;
    }
}

async fn serve<T>(setup: Setup, io: T, hiring: Hiring)
where
    T: Read + Write + Unpin + Send + 'static,
{
    let think = setup.think;
    let service = service_fn(move |_: Request<Incoming>| async move {
        if !think.is_zero() {
            tokio::time::sleep(think).await;
        }
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(
            b"sixteen bytes ok",
        ))))
    });
    // Clients that go away are no concern of the server's.
    let _ = match setup.speaks {
        Speaks::Http1 => http1::Builder::new().serve_connection(io, service).await,
        Speaks::Http2 => {
            let builder = http2::Builder::new(hiring);
            builder.serve_connection(io, service).await
        }
    };
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

// ===== impl Hiring =====

impl Hiring {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        self.0.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(future);
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Hiring {
    fn execute(&self, future: F) {
        self.0.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(future);
    }
}

// ===== impl Memory =====

impl Service<Uri> for Memory {
    type Response = MemoryIo;
    type Error = Infallible;
    type Future = std::future::Ready<Result<MemoryIo, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.0.send(theirs).expect("the server runs");
        std::future::ready(Ok(MemoryIo(TokioIo::new(ours))))
    }
}

impl Connection for MemoryIo {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for MemoryIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for MemoryIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
