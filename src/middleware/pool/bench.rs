//! The pool without HTTP, for the benches: checking out and giving back as requests do it. No promise is made of it.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;

use http::Uri;

use super::builder::Builder;
use super::connection::Connection;
use super::core::Version;
use super::driver::unless_stopped;
use super::error::Error;
use super::shared::{Asked, Dialler, Shared};
use super::warm::warm;
use crate::base::clock;

/// A pool whose connections lead nowhere.
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct Checkout(Arc<Shared<()>>);

/// A connection that is checked out; dropped, it is given back.
#[allow(missing_debug_implementations)]
pub struct Held(Arc<Connection<()>>);

/// Connects to nothing, at once.
struct Nowhere;

impl Dialler<()> for Nowhere {
    fn run(&self, connection: Arc<Connection<()>>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let slot = connection.slot();
        Box::pin(async move {
            let _slot = slot;
            let now = clock::now();
            connection
                .shared
                .event(|core| core.connected(now, connection.id, Version::Http1, 1));
            unless_stopped(&connection, pending::<()>()).await;
        })
    }
}

impl Checkout {
    /// With the limits of `builder`.
    pub fn new<C>(builder: Builder<C>) -> Self {
        let (_, options, limits, _) = builder.settled();
        Self(Arc::new(Shared::new(options, limits, Box::new(Nowhere))))
    }

    /// Opens connections, as [`ConnPool::warm`](super::ConnPool::warm).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn warm(&self, uri: &Uri, connections: usize) -> Result<usize, Error> {
        warm(&self.0, uri, connections).await
    }

    /// Connections there are.
    pub fn open(&self) -> usize {
        self.0.lock().core.all().len()
    }

    /// Closes what is not checked out.
    pub fn close_idle(&self) -> usize {
        self.0.event(|core| core.close_idle())
    }

    /// What a request does before it sends; `None` when nothing is idle.
    #[inline]
    pub fn get(&self, uri: &Uri) -> Option<Held> {
        let now = clock::now();
        match self.0.ask(now, uri, false)? {
            Asked::Granted(_, connection) => Some(Held(connection)),
            Asked::Queued(waiter) => {
                drop(self.0.event(|core| core.cancel(now, waiter)));
                None
            }
            Asked::Refused(_) => None,
        }
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        self.0.free(true);
    }
}
