//! Who waits, in which order, and how long.

mod codel;
mod lanes;

use std::time::Duration;

pub(super) use codel::Tally;
pub(super) use lanes::{Entry, Lanes, Left, Refused, Ticket};

/// No wait is longer than a year.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3_600);

/// The place to wait in front of a limit.
///
/// Higher priorities go first, whatever the order; a full queue turns out the lowest priority.
///
/// ```
/// use std::time::Duration;
/// use tower_flow::shed::Queue;
///
/// let queue = Queue::codel().max(256).timeout(Duration::from_millis(500));
/// # let _ = queue;
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    pub(super) order: Order,
    pub(super) max: Option<usize>,
    pub(super) timeout: Duration,
    pub(super) patience: Option<Duration>,
    pub(super) interval: Option<Duration>,
}

/// Who of one priority goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Fifo,
    Lifo,
    /// First in, first out while the queue is short; the newest first, and long waits shed, once it stands.
    Codel,
}

impl Queue {
    fn ordered(order: Order) -> Self {
        Self {
            order,
            max: None,
            timeout: Duration::from_secs(1),
            patience: None,
            interval: None,
        }
    }

    /// CoDel with adaptive order (default): first come, first served while the queue empties now and then. Once it
    /// stands, the newest goes first and whoever waited longer than the [`patience`](Self::patience) is shed.
    ///
    /// # How it works
    ///
    /// ```text
    /// patience = max(10 ms, floor * (0.5 + 13 * max(0, 1 - refused / 0.3)))
    /// interval = max(100 ms, 5 * floor)
    /// ```
    ///
    /// `floor` is the service's own round trip and `refused` the part of all requests refused lately. The queue stands
    /// when its shortest wait within an interval was longer than half the patience, or when 30 % are refused. Only the
    /// lowest priority that waits is shed, and only it is served newest first.
    ///
    /// Source: folly's CoDel after Nichols and Jacobson, "Controlling Queue Delay"; that patience shrinks with the part
    /// that is refused is this crate's, and measured in `cargo bench --bench overload`.
    pub fn codel() -> Self {
        Self::ordered(Order::Codel)
    }

    /// First come, first served.
    pub fn fifo() -> Self {
        Self::ordered(Order::Fifo)
    }

    /// The newest first: under overload the one whose caller most likely still waits.
    pub fn lifo() -> Self {
        Self::ordered(Order::Lifo)
    }

    /// Nobody waits: a request finds a slot or is refused.
    pub fn none() -> Self {
        Self::fifo().max(0)
    }

    /// Sixteen places for each slot, at least 64 and at most 512 (default), or exactly `max`.
    #[must_use]
    pub fn max(mut self, max: usize) -> Self {
        self.max = Some(max);
        self
    }

    /// A second (default) is the longest anybody waits, or `timeout`, at most a year; a request's own deadline may end
    /// its wait sooner.
    ///
    /// # Panics
    ///
    /// When `timeout` is zero; [`none`](Self::none) is the queue in which nobody waits.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        assert!(
            !timeout.is_zero(),
            "a queue timeout of {timeout:?} lets nobody wait; use Queue::none()"
        );
        // Further away than anybody waits, and near enough to be added to any moment.
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// By the service's own round trip and the part that is refused (default), or `patience`: how long anybody waits
    /// once a [`codel`](Self::codel) queue stands.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience.min(LONGEST));
        self
    }

    /// Five of the service's own round trips, at least 100 ms (default), or `interval`: how long waits must be long
    /// before a [`codel`](Self::codel) queue counts as standing.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval.min(LONGEST));
        self
    }

    /// How many places there are at this limit.
    pub(super) fn places(&self, limit: usize) -> usize {
        self.max
            .unwrap_or_else(|| limit.saturating_mul(16).clamp(64, 512))
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self::codel()
    }
}
