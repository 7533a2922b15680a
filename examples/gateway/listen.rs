//! Connections of clients: HTTP/1.1 and HTTP/2 on one port.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower_flow::BoxError;

use crate::drain::{Drain, Open};
use crate::edge::Edge;
use crate::flags::Flags;
use crate::interim::Interim;
use crate::stack::Stacks;
use crate::tls;
use crate::wire::{Abort, Line, Patience, Wire};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request's head may take, and how long a connection may be idle before it.
const HEAD: Duration = Duration::from_secs(60);
/// How large it may be.
const LARGEST: usize = 64 * 1024;
/// How long a connection stays open for what its client may have sent before it could know of the end.
const LAST_WORDS: Duration = Duration::from_millis(500);
const STREAMS: u32 = 1_024;
/// What a client may send that nobody has read yet. One upload that nobody reads is not to stop all others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Streams that clients reset faster than they are answered: each deadline that passes is one.
const RESETS: usize = 8_192;
const BACKLOG: u32 = 4_096;

pub(crate) struct Listener {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    addr: SocketAddr,
}

impl Listener {
    pub(crate) async fn bind(flags: &Flags) -> Result<Self, BoxError> {
        let tls = flags.tls.as_ref().map(tls::acceptor).transpose()?;
        let bind = || {
            let socket = match flags.listen {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            #[cfg(unix)]
            socket.set_reuseaddr(true)?;
            socket.bind(flags.listen)?;
            socket.listen(BACKLOG)
        };
        let listener = bind().map_err(|error: io::Error| format!("{}: {error}", flags.listen))?;
        let addr = listener.local_addr()?;
        Ok(Self {
            listener,
            tls,
            addr,
        })
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Serves until a drain begins, and then until nothing is open any more.
    pub(crate) async fn serve(self, stacks: Stacks, drain: Drain) {
        let server = Arc::new(server());
        let serve = |accepted: (TcpStream, SocketAddr)| {
            let (stream, peer) = accepted;
            // Answers are written whole.
            let _ = stream.set_nodelay(true);
            let connection = Connection {
                server: server.clone(),
                tls: self.tls.clone(),
                stacks: stacks.clone(),
                drain: drain.clone(),
                peer,
                open: drain.hold(),
            };
            tokio::spawn(connection.serve(stream));
        };
        let mut ending = pin!(drain.begun());
        loop {
            tokio::select! {
                () = &mut ending => break,
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => serve(accepted),
                    Err(error) => failed(&error).await,
                },
            }
        }
        // Who is connected already is served: the kernel would reset them.
        if let Ok(listener) = self.listener.into_std() {
            loop {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        if stream.set_nonblocking(true).is_ok()
                            && let Ok(stream) = TcpStream::from_std(stream)
                        {
                            serve((stream, peer));
                        }
                    }
                    Err(error) if is_gone(&error) => {}
                    // There is no more.
                    Err(_) => break,
                }
            }
        }
        drain.emptied().await;
    }
}

/// Out of files, say, or gone before it was accepted.
async fn failed(error: &io::Error) {
    if !is_gone(error) {
        eprintln!("gateway: cannot accept a connection: {error}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Whether only the one connection failed.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

type Server = auto::Builder<TokioExecutor>;

fn server() -> Server {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LARGEST);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD)
        .max_header_list_size(LARGEST as u32)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS);
    server
}

struct Connection {
    server: Arc<Server>,
    tls: Option<TlsAcceptor>,
    stacks: Stacks,
    drain: Drain,
    peer: SocketAddr,
    open: Open,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        match &self.tls {
            None => self.speak(stream).await,
            Some(tls) => {
                let drain = self.drain.clone();
                let end = async {
                    drain.begun().await;
                    sleep(LAST_WORDS).await;
                };
                let shaken = tokio::select! {
                    shaken = tls.accept(stream) => shaken,
                    _ = timeout(HANDSHAKE, end) => return,
                };
                // Who cannot speak TLS is told so by rustls.
                if let Ok(stream) = shaken {
                    self.speak(stream).await;
                }
            }
        }
    }

    async fn speak<IO: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static>(self, io: IO) {
        let interim = Interim::default();
        let line = Line::default();
        let patience = Patience {
            first: HEAD,
            head: self.stacks.timeout.min(HEAD),
            unread: HEAD,
        };
        let wire = TokioIo::new(Wire::new(io, interim.clone(), line.clone(), patience));
        let spoke_http2 = Arc::new(AtomicBool::new(false));
        let edge = Edge::new(self.peer, self.stacks, self.drain.clone(), interim, line);
        let (edge, seen) = (Arc::new(edge), spoke_http2.clone());
        let service = service_fn(move |req| {
            let edge = edge.clone();
            if req.version() >= http::Version::HTTP_2 {
                seen.store(true, Relaxed);
            }
            async move { Ok::<_, Infallible>(edge.answer(req).await) }
        });
        let mut serving = pin!(self.server.serve_connection_with_upgrades(wire, service));
        let drain = self.drain;
        let last_words = async {
            drain.begun().await;
            // HTTP/2 says which streams it still takes. HTTP/1 says so in its next answer, and has no other way: what was
            // sent before that is lost if the connection is closed meanwhile.
            if !spoke_http2.load(Relaxed) {
                sleep(LAST_WORDS).await;
            }
        };
        tokio::select! {
            // However it failed, the client knows.
            _ = serving.as_mut() => return,
            () = last_words => {}
        }
        serving.as_mut().graceful_shutdown();
        let _ = serving.await;
        drop(self.open);
    }
}
