//! What is read from: a hyper server that is slow, has few slots, and counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tower_flow::BoxError;

pub(super) struct Backend {
    pub(super) addr: SocketAddr,
    desk: Arc<Desk>,
    accepting: JoinHandle<()>,
}

struct Desk {
    slots: Semaphore,
    time: Duration,
    calls: AtomicU64,
}

// ===== impl Backend =====

impl Backend {
    /// So many slots, and so long in one.
    pub(super) async fn start(slots: usize, time: Duration) -> Result<Self, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let desk = Arc::new(Desk {
            slots: Semaphore::new(slots),
            time,
            calls: AtomicU64::new(0),
        });
        let serving = desk.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let desk = serving.clone();
                let service = service_fn(move |req| answer(desk.clone(), req));
                let mut http = http2::Builder::new(TokioExecutor::new());
                // Those who wait do so for a slot, not for a stream.
                http.max_concurrent_streams(None);
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(Self {
            addr,
            desk,
            accepting,
        })
    }

    /// How many calls came.
    pub(super) fn calls(&self) -> u64 {
        self.desk.calls.load(Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Answers with the path that was asked for.
async fn answer(
    desk: Arc<Desk>,
    req: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, BoxError> {
    desk.calls.fetch_add(1, Relaxed);
    let _slot = desk.slots.acquire().await?;
    tokio::time::sleep(desk.time).await;
    Ok(Response::new(req.uri().path().to_owned().into()))
}
