//! The only place that reads the time.
//!
//! Everything in this crate measures with tokio's [`Instant`], so a test that pauses tokio's clock drives it all.
//! In a build without tokio's `test-util` feature a reading costs what [`std::time::Instant::now`] costs.

use std::time::{Duration, SystemTime};

pub use tokio::time::Instant;

/// The time now.
#[inline]
pub fn now() -> Instant {
    Instant::now()
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
