use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::base::deadline::Deadline;

/// What is said of a request.
pub(super) type Says<Req, T> = Arc<dyn Fn(&Req) -> T + Send + Sync>;

/// Whether an error is of a kind.
type Test = Arc<dyn Fn(&(dyn Error + 'static)) -> bool + Send + Sync>;

/// The functions of a layer, by which requests are put into batches. What a [`Batched`](super::Batched) is typed by.
pub struct Plan<Req, K, D> {
    pub(super) shard: Says<Req, K>,
    pub(super) weigh: Option<Says<Req, usize>>,
    pub(super) deadline: Option<Says<Req, Option<Deadline>>>,
    /// How to send a part of a batch again, if that is wanted.
    pub(super) copy: Option<fn(&Req) -> Req>,
    pub(super) worth_splitting: Test,
    pub(super) dedup: Arc<D>,
}

impl<Req, K, D> Plan<Req, K, D> {
    pub(super) fn new(shard: Says<Req, K>, dedup: D) -> Self {
        Self {
            shard,
            weigh: None,
            deadline: None,
            copy: None,
            worth_splitting: Arc::new(|_| true),
            dedup: Arc::new(dedup),
        }
    }

    pub(super) fn shard_by<L>(self, shard: Says<Req, L>) -> Plan<Req, L, D> {
        Plan {
            shard,
            weigh: self.weigh,
            deadline: self.deadline,
            copy: self.copy,
            worth_splitting: self.worth_splitting,
            dedup: self.dedup,
        }
    }

    pub(super) fn dedup_by<E>(self, dedup: E) -> Plan<Req, K, E> {
        Plan {
            shard: self.shard,
            weigh: self.weigh,
            deadline: self.deadline,
            copy: self.copy,
            worth_splitting: self.worth_splitting,
            dedup: Arc::new(dedup),
        }
    }

    /// What `req` weighs; 1 when the layer does not weigh.
    pub(super) fn weight(&self, req: &Req) -> usize {
        self.weigh.as_ref().map_or(1, |weigh| weigh(req))
    }
}

impl<Req, K, D> Clone for Plan<Req, K, D> {
    fn clone(&self) -> Self {
        Self {
            shard: self.shard.clone(),
            weigh: self.weigh.clone(),
            deadline: self.deadline.clone(),
            copy: self.copy,
            worth_splitting: self.worth_splitting.clone(),
            dedup: self.dedup.clone(),
        }
    }
}

impl<Req, K, D> fmt::Debug for Plan<Req, K, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("weighs", &self.weigh.is_some())
            .field("deadlines", &self.deadline.is_some())
            .field("bisects", &self.copy.is_some())
            .finish_non_exhaustive()
    }
}
