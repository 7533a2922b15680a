use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tower_service::Service;

use super::link::Link;
use super::service::AdminService;
use super::socket::watched;
use crate::base::clock::{self, Instant};

/// Ordinary connections open at a time; for a further one the oldest is closed.
const CONNECTIONS: usize = 64;
/// How long it is left alone even so.
const GRACE: Duration = Duration::from_millis(100);
/// How long a request's headers may take.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// How large they may be.
const HEADERS_UP_TO: usize = 16 * 1024;
/// How long an ordinary connection may last: one request and its answer.
pub(super) const LIFETIME: Duration = Duration::from_secs(15);
/// What the kernel keeps of answers that are not read. Left alone it would take in megabytes for each connection, and
/// minutes of events before anybody noticed that nobody reads them.
const UNREAD: u32 = 64 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A bound endpoint; [`run`](Self::run) serves it.
#[derive(Debug)]
#[must_use = "it answers only while it runs"]
pub struct AdminServer {
    listener: TcpListener,
    addr: SocketAddr,
    service: AdminService,
}

/// A connection.
struct Open {
    task: AbortHandle,
    accepted: Instant,
    link: Arc<Link>,
}

impl AdminServer {
    pub(super) fn bind(addr: SocketAddr, service: AdminService) -> io::Result<Self> {
        let socket = if addr.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // Elsewhere it would let two programs have one port.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        // Accepted connections inherit it.
        socket.set_send_buffer_size(UNREAD)?;
        socket.bind(addr)?;
        let listener = socket.listen(BACKLOG)?;
        Ok(Self {
            addr: listener.local_addr()?,
            listener,
            service,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        // Dropped with this future, and every connection with it.
        let mut tasks = JoinSet::new();
        tasks.spawn(self.service.hub().run());
        let mut open = VecDeque::new();
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    while tasks.try_join_next().is_some() {}
                    if let Some(oldest) = crowding(&mut open) {
                        // Many may come at once and each be served at once, if only they get to say what they want.
                        tokio::time::sleep_until(open[oldest].accepted + GRACE).await;
                    }
                    if let Some(oldest) = crowding(&mut open)
                        && let Some(oldest) = open.remove(oldest)
                    {
                        oldest.task.abort();
                    }
                    let local =
                        self.addr.ip().is_loopback() && peer.ip().to_canonical().is_loopback();
                    let link = Link::new(local);
                    let connection = serve(stream, self.service.clone(), link.clone());
                    open.push_back(Open {
                        task: tasks.spawn(connection),
                        accepted: clock::now(),
                        link,
                    });
                }
                // Out of file descriptors, most likely: accepting again at once would only spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// The oldest ordinary one, when there are as many as there may be. Those that are held have limits of their own, and
/// are ordinary again when they are no more.
fn crowding(open: &mut VecDeque<Open>) -> Option<usize> {
    open.retain(|open| !open.task.is_finished());
    let mut ordinary = (0..open.len()).filter(|n| !open[*n].link.is_held());
    let oldest = ordinary.next()?;
    (1 + ordinary.count() >= CONNECTIONS).then_some(oldest)
}

async fn serve(stream: TcpStream, service: AdminService, link: Arc<Link>) {
    let known = link.clone();
    let linked = service_fn(move |mut req: http::Request<hyper::body::Incoming>| {
        req.extensions_mut().insert(known.clone());
        service.clone().call(req)
    });
    let (socket, peer) = watched(stream, link.clone());
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADERS_UP_TO)
        // A scraper comes every few seconds at most; what it keeps open somebody else cannot have.
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), linked);
    let (mut connection, mut over) = (pin!(connection), pin!(link.over()));
    let mut gone = pin!(peer.gone());
    poll_fn(|cx| {
        // How a connection broke is of no interest to anybody here.
        let ended = connection.as_mut().poll(cx).is_ready() || over.as_mut().poll(cx).is_ready();
        if ended || link.is_held() && gone.as_mut().poll(cx).is_ready() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}
