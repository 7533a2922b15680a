use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::service::AdminService;

/// Connections open at a time; for a further one the oldest is closed.
const CONNECTIONS: usize = 64;
/// How long a request's headers may take.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// How large they may be.
const HEADERS_UP_TO: usize = 16 * 1024;
/// How long a connection may last: one request and its answer.
const LIFETIME: Duration = Duration::from_secs(15);

/// A bound endpoint; [`run`](Self::run) serves it.
#[derive(Debug)]
#[must_use = "it answers only while it runs"]
pub struct AdminServer {
    listener: TcpListener,
    addr: SocketAddr,
    service: AdminService,
}

impl AdminServer {
    pub(super) async fn bind(addr: SocketAddr, service: AdminService) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
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
        let mut connections = JoinSet::new();
        let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    while connections.try_join_next().is_some() {}
                    oldest_first.retain(|connection| !connection.is_finished());
                    if oldest_first.len() >= CONNECTIONS
                        && let Some(oldest) = oldest_first.pop_front()
                    {
                        oldest.abort();
                    }
                    oldest_first.push_back(connections.spawn(serve(stream, self.service.clone())));
                }
                // Out of file descriptors, most likely: accepting again at once would only spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

async fn serve(stream: TcpStream, service: AdminService) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADERS_UP_TO)
        // A scraper comes every few seconds at most; what it keeps open somebody else cannot have.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    // How a connection broke is of no interest to anybody here.
    let _ = tokio::time::timeout(LIFETIME, connection).await;
}
