//! The sampling profiler: `Profiler` says how it works, and what it costs.
//!
//! `tags` is where it meets the layer, which enters and leaves routes: in a build without a profiler that is nothing.

#[cfg(feature = "perf")]
mod error;
#[cfg(all(feature = "perf", target_os = "linux"))]
mod join;
#[cfg(feature = "perf")]
mod modules;
#[cfg(feature = "perf")]
mod profiler;
#[cfg(feature = "perf")]
mod report;
#[cfg(all(feature = "perf", target_os = "linux"))]
mod ring;
#[cfg(all(feature = "perf", target_os = "linux"))]
mod sampler;
#[cfg(all(feature = "perf", target_os = "linux"))]
mod stacks;
#[cfg(all(feature = "perf", target_os = "linux"))]
mod symbols;
#[cfg(all(feature = "perf", target_os = "linux"))]
pub(super) mod tags;
#[cfg(not(all(feature = "perf", target_os = "linux")))]
#[path = "off.rs"]
// Public with the feature, on other systems.
#[allow(unreachable_pub, dead_code)]
pub(super) mod tags;
#[cfg(all(feature = "perf", target_os = "linux"))]
mod threads;

#[cfg(feature = "perf")]
pub use error::ProfilerError;
#[cfg(feature = "perf")]
pub use profiler::{Phase, Profiler, ProfilerState};
#[cfg(feature = "perf")]
pub use report::{Counts, Profile, RouteShare};
#[cfg(feature = "perf")]
pub use tags::Tag;

/// The rates a profiler takes.
#[cfg(feature = "perf")]
const RATES: std::ops::RangeInclusive<u32> = 1..=999;
/// The longest a profile lasts.
#[cfg(feature = "perf")]
const LONGEST: std::time::Duration = std::time::Duration::from_secs(60);

/// Where there is no Linux.
#[cfg(all(feature = "perf", not(target_os = "linux")))]
mod sampler {
    use std::sync::Arc;

    use super::profiler::Shared;
    use super::{Profile, ProfilerError};

    pub(super) fn run(_shared: &Arc<Shared>) -> Result<Profile, ProfilerError> {
        Err(ProfilerError::Unsupported)
    }
}
