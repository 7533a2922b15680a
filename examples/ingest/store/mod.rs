//! Where items are between their acknowledgement and their processing.
//!
//! A store is two things: a service of batches, which answers for each item when it is stored, and a source of deliveries
//! for the workers. An item leaves when a worker says that it is done.

mod memory;
mod nats;
mod record;
mod seen;
mod wal;

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tower::util::BoxCloneSyncService;
use tower_flow::batch::Batch;
use tower_flow::priority::Priority;
use tower_flow::signal::Pressure;
use tower_flow::{BoxError, Flow};

use crate::options::{Serve, Where};

use memory::Memory;
use nats::Nats;

/// What somebody wants processed.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) id: Arc<str>,
    pub(crate) payload: Bytes,
    pub(crate) priority: Priority,
    /// The same for all items of a call: a call is shed as a whole.
    pub(crate) cohort: u64,
}

/// How an item was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    New,
    /// It was there before.
    Duplicate,
}

/// Why an item was not.
#[derive(Debug, Clone)]
pub(crate) enum StoreError {
    /// There is no room for now.
    Full(String),
    /// There never will be.
    TooLarge(String),
    /// What stores it does not work.
    Unavailable(String),
}

/// What stores batches.
pub(crate) type Storing =
    BoxCloneSyncService<Batch<Item>, Vec<Result<Stored, StoreError>>, BoxError>;

/// One of the stores.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    Memory(Arc<Memory>),
    Nats(Arc<Nats>),
}

/// An item to be processed.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) id: Arc<str>,
    pub(crate) payload: Bytes,
    receipt: Receipt,
}

#[derive(Debug)]
enum Receipt {
    Memory(u64),
    Nats(Box<nats::Receipt>),
}

// ===== impl Store =====

impl Store {
    /// Opens it, with what is left from before.
    pub(crate) async fn open(options: &Serve, flow: &Flow) -> Result<Self, BoxError> {
        match &options.store {
            Where::Memory { wal, wal_max } => {
                let memory = Memory::open(options, wal.as_deref(), *wal_max)?;
                let memory = Arc::new(memory);
                flow.attach(memory.clone());
                Ok(Self::Memory(memory))
            }
            Where::Nats(stream) => Ok(Self::Nats(Nats::open(options, stream, flow).await?)),
        }
    }

    /// What stores batches.
    pub(crate) fn storing(&self) -> Storing {
        match self {
            Self::Memory(memory) => memory.clone().storing(),
            Self::Nats(nats) => nats.clone().storing(),
        }
    }

    /// How many batches it stores at once.
    pub(crate) fn at_once(&self) -> usize {
        match self {
            // In order, and one sync for all that came meanwhile.
            Self::Memory(_) => 1,
            Self::Nats(_) => 4,
        }
    }

    /// How far the workers are behind. From 40 % of the queue on what can be sent later is shed, a part that grows with the
    /// lag; at 80 % it is all.
    pub(crate) fn pressure(&self, queue: usize) -> Pressure {
        let pressure = match self {
            Self::Memory(memory) => Pressure::new(memory.clone()),
            Self::Nats(nats) => Pressure::new(nats.lag()),
        };
        pressure
            .named("lag")
            .warn(0.0)
            .critical(0.8 * queue as f64)
            .dwell(Duration::ZERO, Duration::ZERO)
            .every(Duration::from_millis(5))
            .stale_after(Duration::from_secs(5))
    }

    /// The next item to be processed; none when there never will be one.
    pub(crate) async fn next(&self) -> Option<Delivery> {
        match self {
            Self::Memory(memory) => memory.next().await,
            Self::Nats(nats) => nats.next().await,
        }
    }

    /// It was processed.
    pub(crate) async fn done(&self, delivery: Delivery) {
        match (self, delivery.receipt) {
            (Self::Memory(memory), Receipt::Memory(seq)) => {
                memory.clone().done(seq, delivery.payload.len()).await;
            }
            (Self::Nats(nats), Receipt::Nats(receipt)) => nats.done(receipt).await,
            _ => unreachable!("a delivery goes back where it came from"),
        }
    }

    /// Keeps the item for whoever is processing it; to be polled meanwhile.
    pub(crate) async fn hold(&self, delivery: &Delivery) -> Infallible {
        match (self, &delivery.receipt) {
            (Self::Nats(nats), Receipt::Nats(receipt)) => nats.hold(receipt).await,
            _ => std::future::pending().await,
        }
    }

    /// The last step, when the workers have ended.
    pub(crate) async fn finish(&self) {
        if let Self::Nats(nats) = self {
            nats.finish().await;
        }
    }

    /// Nothing more is stored: the workers end when there is nothing left, or at once where what is left is safe.
    pub(crate) fn close(&self) {
        match self {
            Self::Memory(memory) => memory.close(),
            Self::Nats(nats) => nats.close(),
        }
    }
}

// ===== impl StoreError =====

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(what) | Self::TooLarge(what) | Self::Unavailable(what) => f.write_str(what),
        }
    }
}

impl Error for StoreError {}
