use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::Client;
use tower_service::Service;

use super::error::Error;
use super::exchange::{ResponseFuture, exchange};
use super::line::{Line, Seat};
use super::message::{NatsRequest, NatsResponse};
use crate::base::clock;

/// Requests and replies over one connection; see the [module docs](super).
pub struct NatsService {
    line: Arc<Line>,
    seat: Seat,
    timeout: Duration,
}

// ===== impl NatsService =====

impl NatsService {
    /// A service over `client`'s connection, which others may use too.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime: a task hands out what comes.
    pub fn new(client: Client) -> Self {
        let line = Line::new(client);
        Self {
            seat: line.seat(),
            line,
            timeout: Duration::from_secs(10),
        }
    }

    /// 10 seconds (default) is how long a request may take that has no timeout of its own.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The client of the connection.
    pub fn client(&self) -> &Client {
        self.line.client()
    }

    /// How many answers came for which nobody waited any more.
    pub fn late_answers(&self) -> u64 {
        self.line.late()
    }
}

impl Service<NatsRequest> for NatsService {
    type Response = NatsResponse;
    type Error = Error;
    type Future = ResponseFuture;

    /// Ready while there is a connection. It reserves nothing.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.seat.poll_up(cx)
    }

    fn call(&mut self, req: NatsRequest) -> ResponseFuture {
        ResponseFuture::new(exchange(self.line.clone(), req, clock::now(), self.timeout))
    }
}

impl Clone for NatsService {
    /// Over the same connection; it waits for nothing yet.
    fn clone(&self) -> Self {
        Self {
            line: self.line.clone(),
            seat: self.seat.clone(),
            timeout: self.timeout,
        }
    }
}

impl fmt::Debug for NatsService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsService")
            .field("line", &self.line)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
