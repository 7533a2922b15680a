//! How many requests may run at once: one trait, one file for each algorithm.
//!
//! An algorithm sees the traffic through [`Window`]s and answers each with a [`Step`]: keep watching, or close the
//! window with a limit for the next one. It has no clock, no lock and no queue of its own; whoever owns it passes
//! everything in, one look at a time.
//!
//! ```
//! use std::time::Duration;
//! use tower_flow::shed::limit::{Limit, Next, Step, Window};
//!
//! /// Twice as many as were busy on average.
//! #[derive(Debug)]
//! struct Twice;
//!
//! impl Limit for Twice {
//!     fn start(&self) -> usize { 8 }
//!     fn look(&mut self, window: &Window) -> Step {
//!         if window.samples < 100 {
//!             return Step::Wait(Duration::from_millis(100));
//!         }
//!         Step::Close(Next::of((2.0 * window.mean_in_flight()) as usize, Duration::from_secs(1)))
//!     }
//! }
//! ```

mod aimd;
mod bdp;
mod bounded;
mod fixed;
mod gradient2;
mod settable;
mod vegas;

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::time::Duration;

pub use aimd::Aimd;
pub use bdp::Bdp;
pub use bounded::Bounded;
pub use fixed::Fixed;
pub use gradient2::Gradient2;
pub use settable::Settable;
pub use vegas::Vegas;

/// Decides how many requests may run at once.
///
/// One thread at a time calls it, never on the path of a request that only wants to be admitted.
pub trait Limit: Debug + Send + 'static {
    /// The limit before anything is known.
    fn start(&self) -> usize;

    /// When to look for the first time. Default: after 100 ms.
    fn first_look(&self) -> Duration {
        Duration::from_millis(100)
    }

    /// Looks at what happened since the window was opened.
    fn look(&mut self, window: &Window) -> Step;

    /// What it knows, for metrics and for the queue in front.
    fn facts(&self) -> Facts {
        Facts::default()
    }

    /// Whether it looks at latencies at all. When it does not, only one request in 64 reads the clock, for snapshots and
    /// for `Retry-After`.
    fn samples(&self) -> bool {
        true
    }
}

/// What happened since a window was opened. Times are those of the requests that ended within it.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Window {
    /// The time since the limit was made.
    pub now: Duration,
    /// The time since the window was opened.
    pub elapsed: Duration,
    /// The limit in force.
    pub limit: usize,
    /// Requests that ended well.
    pub completions: u64,
    /// How many of them were timed: all, or one in so many where there are plenty.
    pub samples: u64,
    /// Their mean round trip, from admission to the response.
    pub mean: Duration,
    /// Its relative standard error: the standard deviation over the mean and the root of [`samples`](Self::samples).
    pub error: f64,
    /// The median round trip, to a fifth.
    pub p50: Duration,
    /// The 90th percentile, to a fifth.
    pub p90: Duration,
    /// How long responses took on average from their headers to the end of their bodies, their slots held.
    pub body: Duration,
    /// The most that were in flight at an admission.
    pub most_in_flight: usize,
    /// Requests that asked to be admitted.
    pub offered: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Requests that ended in a sign of overload: a timeout, "too many requests", a late cancellation.
    pub overloads: u64,
    /// Requests that failed in a way that says nothing about load, or were cancelled early.
    pub ignored: u64,
}

/// What comes after a look at a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The window stays open; look again after this time.
    Wait(Duration),
    /// The window is closed.
    Close(Next),
}

/// The limit from now on, and the next window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// The limit from now on, at least 1.
    pub limit: usize,
    /// How long to let requests pass that were admitted under the old limit, before the window is opened.
    pub settle: Duration,
    /// When to look for the first time once it is open.
    pub look: Duration,
}

/// What an algorithm knows. All of it is optional: [`Fixed`] knows nothing.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Facts {
    /// The round trip without any queueing.
    pub floor: Option<Duration>,
    /// How the floor relates to the last round trip: 1 without queueing, less with.
    pub gradient: Option<f64>,
    /// Whether it is measuring the floor at this moment, at a lower limit.
    pub probing: bool,
}

// ===== impl Window =====

impl Window {
    /// How many were in flight on average, by Little's law: completions times round trip over elapsed time.
    pub fn mean_in_flight(&self) -> f64 {
        self.throughput() * (self.mean + self.body).as_secs_f64()
    }

    /// Completions per second.
    pub fn throughput(&self) -> f64 {
        self.completions as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Whether the limit was reached.
    pub fn hit(&self) -> bool {
        self.most_in_flight >= self.limit
    }
}

// ===== impl Next =====

impl Next {
    /// `limit` from now on, and a first look at the next window after `look`.
    pub fn of(limit: usize, look: Duration) -> Self {
        Self {
            limit: limit.max(1),
            settle: Duration::ZERO,
            look,
        }
    }

    /// Lets `settle` pass before the window is opened.
    #[must_use]
    pub fn after(mut self, settle: Duration) -> Self {
        self.settle = settle;
        self
    }
}

/// `limit`, unless it would refuse everything.
fn positive(which: &str, limit: usize) -> usize {
    assert!(
        limit > 0,
        "the {which} limit must be at least 1, not {limit}"
    );
    limit
}

/// The ends of `bounds`, unless they would refuse everything or are the wrong way round.
fn ordered(bounds: RangeInclusive<usize>) -> (usize, usize) {
    let (min, max) = bounds.into_inner();
    let min = positive("least", min);
    assert!(
        min <= max,
        "the least limit, {min}, must not be above the highest, {max}"
    );
    (min, max)
}
