use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::streams::{Streams, StreamsWatch};
use crate::base::clock::{self, Instant, nanos};
use crate::base::watch::Watched;

/// One connection, as long as anybody cares about it; cheap to clone.
///
/// It travels in the extensions of the requests that arrive on it, and of the responses hyper-util's client gets.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Facts>);

#[derive(Debug)]
struct Facts {
    id: u64,
    peer: String,
    opened: Instant,
    read: AtomicU64,
    written: AtomicU64,
    /// Nanoseconds after `opened`.
    active: AtomicU64,
    started: AtomicU64,
    ended: AtomicU64,
    /// The streams of all connections of its list: one may be counted after its connection is closed.
    all: Arc<AtomicU64>,
}

/// What an open connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// No stream is open.
    Idle,
    /// This many streams are open.
    Active(u64),
}

impl Connection {
    pub(super) fn open(peer: String, all: Arc<AtomicU64>) -> Self {
        /// Never reused within a process.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(Arc::new(Facts {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            peer,
            opened: clock::now(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            active: AtomicU64::new(0),
            started: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            all,
        }))
    }

    /// Its number: unique in the process, rising, never reused.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Who is at the other end, as far as is known.
    pub fn peer(&self) -> &str {
        &self.0.peer
    }

    /// How long it has been open.
    pub fn age(&self) -> Duration {
        clock::now().saturating_duration_since(self.0.opened)
    }

    /// How long ago it last read or wrote anything, or was opened.
    pub fn quiet(&self) -> Duration {
        let active = Duration::from_nanos(self.0.active.load(Ordering::Relaxed));
        self.age().saturating_sub(active)
    }

    /// Bytes read from it.
    pub fn bytes_read(&self) -> u64 {
        self.0.read.load(Ordering::Relaxed)
    }

    /// Bytes written to it.
    pub fn bytes_written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// Streams that were started on it.
    pub fn streams(&self) -> u64 {
        self.0.started.load(Ordering::Relaxed)
    }

    /// What it is doing.
    pub fn state(&self) -> ConnectionState {
        // The Acquire pairs with the Release in `ended`: who sees the end sees the start.
        let ended = self.0.ended.load(Ordering::Acquire);
        match self.streams().saturating_sub(ended) {
            0 => ConnectionState::Idle,
            open => ConnectionState::Active(open),
        }
    }

    /// `inner`, with every request counted as a stream of this connection and carrying it in its extensions. For
    /// servers that make a service for each connection, as hyper-util's do.
    pub fn service<S>(&self, inner: S) -> Streams<S> {
        Watched::new(inner, StreamsWatch::bound(self.clone()))
    }

    pub(super) fn read(&self, bytes: u64) {
        self.0.read.fetch_add(bytes, Ordering::Relaxed);
        self.touch();
    }

    pub(super) fn written(&self, bytes: u64) {
        self.0.written.fetch_add(bytes, Ordering::Relaxed);
        self.touch();
    }

    pub(super) fn started(&self) {
        self.0.started.fetch_add(1, Ordering::Relaxed);
        self.0.all.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ended(&self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }

    fn touch(&self) {
        self.0.active.store(nanos(self.age()), Ordering::Relaxed);
    }
}
