//! The echo service with something scarce behind it, which is what shedding protects.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore};
use tonic::{Request, Response, Status, Streaming};

use super::proto::{self, Note, Summary};
use super::{Echo, EchoServer};

/// Answers as [`Echo`] does; each `Say` first needs one of a few slots for a while, as a query does in a database.
#[derive(Debug, Clone)]
pub(crate) struct Bounded(Arc<Database>);

#[derive(Debug)]
struct Database {
    slots: Semaphore,
    time: Duration,
    draws: AtomicU32,
}

// ===== impl Bounded =====

impl Bounded {
    /// So many slots, and so long in one, give or take a quarter.
    pub(crate) fn new(slots: usize, time: Duration) -> Self {
        Self(Arc::new(Database {
            slots: Semaphore::new(slots),
            time,
            draws: AtomicU32::new(0),
        }))
    }

    /// The tonic service.
    pub(crate) fn server(&self) -> EchoServer<Self> {
        EchoServer::new(self.clone())
    }

    /// Drops all work that waits for a slot, and all that is still to come.
    pub(crate) fn close(&self) {
        self.0.slots.close();
    }
}

impl Database {
    async fn query(&self) -> Result<(), AcquireError> {
        let _slot = self.slots.acquire().await?;
        // Spread evenly: the golden ratio's multiples fill the circle without gaps.
        let draw = self.draws.fetch_add(0x9e37_79b9, Relaxed);
        let spread = f64::from(draw) / f64::from(u32::MAX) - 0.5;
        tokio::time::sleep(self.time.mul_f64(1.0 + 0.5 * spread)).await;
        // And a fifth of a millisecond of a processor, more or less.
        black_box((0..50_000_u64).fold(1, |sum, n| black_box(sum ^ n)));
        Ok(())
    }
}

#[tonic::async_trait]
impl proto::echo_server::Echo for Bounded {
    async fn say(&self, req: Request<Note>) -> Result<Response<Note>, Status> {
        // A task of its own: what a caller that has given up left behind is still done, as a database finishes its
        // queries. Behind a server that lets everybody in this is what kills: all it does is for those who have left.
        let database = self.0.clone();
        let query = tokio::spawn(async move { database.query().await });
        match query.await {
            Ok(Ok(())) => Echo.say(req).await,
            _ => Err(Status::aborted("the database is gone")),
        }
    }

    async fn gather(&self, req: Request<Streaming<Note>>) -> Result<Response<Summary>, Status> {
        Echo.gather(req).await
    }

    type ScatterStream = <Echo as proto::echo_server::Echo>::ScatterStream;

    async fn scatter(&self, req: Request<Note>) -> Result<Response<Self::ScatterStream>, Status> {
        Echo.scatter(req).await
    }

    type ChatStream = <Echo as proto::echo_server::Echo>::ChatStream;

    async fn chat(
        &self,
        req: Request<Streaming<Note>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        Echo.chat(req).await
    }
}
