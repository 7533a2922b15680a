use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::service::AdminService;

/// Connections open at a time; further ones wait to be accepted.
const CONNECTIONS: usize = 64;
/// How long a request's headers may take.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// How large they may be.
const HEADERS_UP_TO: usize = 16 * 1024;
/// How long a connection may last, and then how long its last answer may take.
const LIFETIME: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(5);

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
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        // Dropped with this future, and every connection with it.
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let place = room.clone().acquire_owned().await;
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let service = self.service.clone();
                    connections.spawn(async move {
                        serve(stream, service).await;
                        drop(place);
                    });
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
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    // How a connection broke is of no interest to anybody here.
    if tokio::time::timeout(LIFETIME, connection.as_mut())
        .await
        .is_err()
    {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(GRACE, connection).await;
    }
}
