use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_nats::{Client, ToServerAddrs};
use tower_service::Service;

use super::super::error::Error;
use super::super::exchange::{ResponseFuture, exchange};
use super::super::message::{NatsRequest, NatsResponse};
use super::builder::NatsPoolBuilder;
use super::handle::NatsPoolHandle;
use super::lease::Seat;
use super::shared::Shared;
use crate::base::clock::{self, Instant};

/// Requests and replies over several connections; see the [module docs](crate::nats#pool).
///
/// Clones share the connections. With the last of them these close, after all that was asked is answered.
#[derive(Clone)]
pub struct NatsPool {
    shared: Arc<Shared>,
    seat: Seat,
    alive: Arc<Alive>,
}

/// Closes the pool when it is dropped.
struct Alive(Arc<Shared>);

/// Notes how a request ended, if only by being dropped.
struct Ending {
    shared: Arc<Shared>,
    /// The last service may be gone before its last request is.
    #[allow(dead_code)] // Held for its drop.
    alive: Arc<Alive>,
    start: Instant,
    result: &'static str,
}

// ===== impl NatsPool =====

impl NatsPool {
    /// Sets up a pool of connections to `servers`: an address, or several of one cluster.
    pub fn builder(servers: impl ToServerAddrs) -> NatsPoolBuilder {
        NatsPoolBuilder::new(servers)
    }

    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            seat: shared.seat(),
            alive: Arc::new(Alive(shared.clone())),
            shared,
        }
    }

    /// The client of the connection that has least to do; one is made if there is none. What is sent by it is not
    /// counted.
    ///
    /// # Errors
    ///
    /// As those of a request that gets no connection.
    pub async fn client(&self) -> Result<Client, Error> {
        let lease = self.shared.acquire(clock::now(), None).await?;
        Ok(lease.line.client().clone())
    }

    /// Connects so often, up to the limit, and keeps so many from now on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Connect`](super::super::ErrorKind::Connect) when a dial fails; those that went well stay.
    pub async fn warm(&self, connections: usize) -> Result<(), Error> {
        self.shared.warm(connections).await
    }

    /// Reads and tunes it.
    pub fn handle(&self) -> NatsPoolHandle {
        NatsPoolHandle::new(self.shared.clone())
    }

    /// Takes no more requests, fails those that wait, and is ready when none is in flight any more.
    pub async fn shutdown(&self) {
        self.shared.close();
        self.shared.idle().await;
    }
}

impl Service<NatsRequest> for NatsPool {
    type Response = NatsResponse;
    type Error = Error;
    type Future = ResponseFuture;

    /// Ready unless every connection it has lost its server. It reserves nothing.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.seat.poll_ready(cx)
    }

    fn call(&mut self, req: NatsRequest) -> ResponseFuture {
        let start = clock::now();
        let mut ending = Ending {
            shared: self.shared.clone(),
            alive: self.alive.clone(),
            start,
            result: "cancelled",
        };
        ResponseFuture::new(async move {
            let answer = answer(&ending.shared, req, start).await;
            ending.answered(&answer);
            answer
        })
    }
}

async fn answer(
    shared: &Arc<Shared>,
    req: NatsRequest,
    start: Instant,
) -> Result<NatsResponse, Error> {
    let timeout = shared.options.timeout;
    let (until, is_deadline) = req.until(start, timeout);
    if is_deadline && until <= Some(start) {
        return Err(Error::deadline(req.subject(), false));
    }
    let lease = match shared.acquire(start, until).await {
        Err(_) if is_deadline && until <= Some(clock::now()) => {
            return Err(Error::deadline(req.subject(), false));
        }
        acquired => acquired?,
    };
    exchange(lease.line.clone(), req, start, timeout).await
}

impl Ending {
    fn answered(&mut self, answer: &Result<NatsResponse, Error>) {
        self.result = match answer {
            Ok(_) => "ok",
            Err(error) => error.kind().as_str(),
        };
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let took = clock::now().saturating_duration_since(self.start);
        self.shared.ended(self.result, took);
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for NatsPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsPool")
            .field("name", &self.shared.options.name)
            .finish_non_exhaustive()
    }
}
