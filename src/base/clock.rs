//! The only place that reads the time.
//!
//! Everything in this crate measures with tokio's [`Instant`], so a test that pauses tokio's clock drives it all.
//! In a build without tokio's `test-util` feature a reading costs what [`std::time::Instant::now`] costs.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

pub use tokio::time::Instant;

/// The time now.
#[inline]
pub fn now() -> Instant {
    Instant::now()
}

/// The time of one event: read when somebody first asks, and the same for everybody who asks after that.
///
/// All who observe one response share one reading of the clock for each thing that happens to it.
#[derive(Debug, Default)]
pub struct Moment(Cell<Option<Instant>>);

impl Moment {
    /// A moment nobody has asked about.
    #[inline]
    pub fn new() -> Self {
        Self::default()
    }

    /// When it is.
    #[inline]
    pub fn now(&self) -> Instant {
        self.0.get().unwrap_or_else(|| {
            let now = now();
            self.0.set(Some(now));
            now
        })
    }
}

/// The wall clock, for what leaves the process: exemplar and log time stamps. Never used to measure.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// The nanoseconds in `duration`, saturating after 584 years.
#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()))
}
