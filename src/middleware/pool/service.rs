use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use http_body::Body;
use tower_service::Service;

use super::body::ResponseBody;
use super::builder::Builder;
use super::error::Error;
use super::future::ResponseFuture;
use super::handle::PoolHandle;
use super::shared::Shared;
use super::stats::Stats;
use super::warm;
use crate::base::clock;
use crate::base::error::BoxError;

/// An HTTP client that never holds more connections than it may; see [the module](crate::pool).
///
/// Clones are the same pool. With the last of them idle connections close at once; requests and bodies under way go on,
/// and their connections close after them.
pub struct ConnPool<B: Send + 'static>(Arc<Owner<B>>);

/// What the clones hold. Tasks, futures and handles hold what is inside.
struct Owner<B: Send + 'static>(Arc<Shared<B>>);

/// A pool that was not empty when its time to shut down was over: somebody keeps an upgraded connection, or a runtime
/// stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// How many connections were still open.
    pub connections: usize,
}

impl ConnPool<()> {
    /// A pool over `connector`: any `Service<Uri>` whose IO hyper can use.
    pub fn builder<C>(connector: C) -> Builder<C> {
        Builder::new(connector)
    }
}

impl<B: Send + 'static> ConnPool<B> {
    pub(super) fn new(shared: Arc<Shared<B>>) -> Self {
        Self(Arc::new(Owner(shared)))
    }

    fn shared(&self) -> &Arc<Shared<B>> {
        &self.0.0
    }

    /// Opens connections to the host of `uri` until `connections` are there, or as many as the limits allow: of the
    /// host, in total, and of idle ones. How many there are then, or after the acquire timeout.
    ///
    /// # Errors
    ///
    /// When a dial fails, the host is backing off, the pool shut down, or `uri` names no host.
    pub async fn warm(&self, uri: &Uri, connections: usize) -> Result<usize, Error> {
        warm::warm(self.shared(), uri, connections).await
    }

    /// Closes all connections that have nothing to do. How many that were.
    pub fn close_idle(&self) -> usize {
        self.shared().event(|core| core.close_idle())
    }

    /// Replaces the connections to the host of `uri`, as after a change of its addresses: idle ones close now, busy ones
    /// after what they carry. A pause after a failed dial ends. How many connections that were.
    pub fn refresh(&self, uri: &Uri) -> usize {
        let Some(host) = self.shared().find(uri) else {
            return 0;
        };
        let now = clock::now();
        let known = |core: &super::core::Core| core.knows(host);
        self.shared()
            .event(|core| known(core).then(|| core.refresh(now, host)))
            .unwrap_or(0)
    }

    /// Shuts the pool down: new requests and those that wait fail, idle connections close, and what is under way may
    /// take until `deadline` from now before it is cut off. Returns when every socket is gone and every task has ended, a
    /// second after `deadline` at the latest.
    ///
    /// # Errors
    ///
    /// When connections are left that only their owners can close: upgraded ones.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), Unfinished> {
        let shared = self.shared();
        let now = clock::now();
        shared.event(|core| core.shut(now));
        shared.ring_keeper();
        if tokio::time::timeout(deadline, ended(shared)).await.is_ok() {
            return Ok(());
        }
        shared.close_all();
        // What is told to stop does so when it is next polled; only sockets of others are left after that.
        let cut = tokio::time::timeout(Duration::from_secs(1), ended(shared)).await;
        cut.map_err(|_| Unfinished {
            connections: shared.lock().core.all().len(),
        })
    }

    /// Its numbers now.
    pub fn stats(&self) -> Stats {
        Stats::of(self.shared())
    }

    /// The handle that reads and tunes it. It keeps no connection open.
    pub fn handle(&self) -> PoolHandle {
        PoolHandle::new(self.shared().clone())
    }
}

/// Until nothing is open and no task is left.
async fn ended<B: Send + 'static>(shared: &Arc<Shared<B>>) {
    loop {
        let mut changed = std::pin::pin!(shared.ended.notified());
        changed.as_mut().enable();
        if shared.lock().core.over() && shared.tasks() == 0 {
            return;
        }
        changed.await;
    }
}

impl<B> Service<Request<B>> for ConnPool<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Error;
    type Future = ResponseFuture<B>;

    /// Always ready: only the request says which host it is for.
    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, req: Request<B>) -> ResponseFuture<B> {
        ResponseFuture::new(self.shared(), req)
    }
}

impl<B: Send + 'static> Clone for ConnPool<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Send + 'static> Drop for Owner<B> {
    fn drop(&mut self) {
        self.0.event(|core| core.retire());
        self.0.ring_keeper();
    }
}

impl<B: Send + 'static> fmt::Debug for ConnPool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnPool")
            .field("name", &self.shared().options.name)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} connections are still open: they were upgraded, and whoever has them must drop them, or their runtime \
             stands still",
            self.connections
        )
    }
}

impl std::error::Error for Unfinished {}

/// A future of a pool is `Send` wherever its request bodies are.
const _: () = {
    fn _assert<B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static>() {
        fn send<T: Send>() {}
        send::<ResponseFuture<B>>();
        send::<ConnPool<B>>();
        fn output<F: Future>() {}
        output::<ResponseFuture<B>>();
    }
};
