use std::hash::Hash;
use std::time::Duration;

use crate::base::deadline::Deadline;
use crate::base::priority::Priority;

/// Which requests are equal. Every closure from a request to an `Option` of a key is one.
///
/// Its methods run outside of any lock, `key` once a call; only the `Eq` of keys runs under the lock of a shard, and must
/// not call the layer.
pub trait KeyBy<Req> {
    /// What equal requests have in common.
    type Key: Hash + Eq + Send + 'static;

    /// The key of `req`; `None` for a request that goes alone.
    fn key(&self, req: &Req) -> Option<Self::Key>;

    /// How long the caller of `req` waits, and how much it matters. Default: for as long as it takes, and as any other.
    fn terms(&self, req: &Req) -> Terms {
        let _ = req;
        Terms::default()
    }

    /// Whether `req` means the same only to one service, and is equal to none that is sent to another of the layer's.
    /// Default: no.
    fn is_local(&self, req: &Req) -> bool {
        let _ = req;
        false
    }

    /// Prepares the request that is sent for all who wait for it. Default: as it is.
    fn prepare(&self, req: &mut Req, flight: Facts) {
        let _ = (req, flight);
    }
}

impl<Req, K, F> KeyBy<Req> for F
where
    F: Fn(&Req) -> Option<K>,
    K: Hash + Eq + Send + 'static,
{
    type Key = K;

    #[inline]
    fn key(&self, req: &Req) -> Option<K> {
        self(req)
    }
}

/// What one caller asks for beside the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terms {
    /// When it waits no longer. It ends its own wait, never the flight.
    pub deadline: Option<Deadline>,
    /// How much it matters.
    pub priority: Priority,
}

/// What all who wait for a flight ask for, at the moment its request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// The greatest priority among them.
    pub priority: Priority,
    /// How long the flight may take; its callers have deadlines of their own.
    pub timeout: Option<Duration>,
}

/// A key, and for whose requests it is: those of one service, or with 0 of all.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Scoped<K> {
    pub(super) scope: u64,
    pub(super) key: K,
}

// ===== impl Terms =====

impl Terms {
    /// Of a caller that waits until `deadline`.
    #[must_use]
    pub fn deadline(mut self, deadline: Option<Deadline>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Of a caller that matters as much as `priority` says.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }
}
