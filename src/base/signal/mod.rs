//! "How pressed are we": numbers that a layer which sheds can read, and anybody can provide.
//!
//! # How it works
//!
//! A [`Signal`] is a number in a unit of its own: a share, seconds, messages. A [`Pressure`] makes it comparable: 0 up
//! to its warn level, 1 from its critical level on, and a [`PressureState`] that does not flap. [`Pressures`] samples
//! several from time to time and combines them by their maximum.
//!
//! | signal | unit | what it sees |
//! |---|---|---|
//! | [`CpuSignal`] | share of the usable cores | the process, or the group it is limited in, computes |
//! | [`ThrottlingSignal`] | share of time, summed over cores | the kernel holds the group back: its quota is used up |
//! | [`PsiSignal`] | share of time | somebody waits for a core, for memory or for a disk |
//! | `SchedulerSignal` (feature `signal`) | share of the workers | a tokio runtime is busy, or blocked |
//! | `WakeupSignal` (feature `signal`) | seconds | tasks wait before they run |
//! | `LatencySignal` (feature `timing`) | seconds | a quantile of what a route takes |
//! | [`LagSignal`] | the pusher's | a queue elsewhere grows |
//!
//! Whatever goes wrong fails open: a signal that has nothing to say, says nonsense, panics or stops presses nobody,
//! and is counted.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use tower_flow::clock;
//! use tower_flow::signal::{LagSignal, Pressure, PressureState, Pressures};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let lag = LagSignal::new("orders");
//! let pressures = Pressures::new([
//!     Pressure::cpu(),
//!     Pressure::new(lag.clone()).warn(1_000.0).critical(10_000.0),
//! ]);
//!
//! lag.push(7_300.0);
//! let combined = pressures.poll(clock::now());
//! assert_eq!(combined.state, PressureState::Warning);
//! assert!((combined.pressure - 0.7).abs() < 1e-9);
//!
//! // The pusher stops: half a minute later nobody is pressed by what it once said.
//! tokio::time::advance(Duration::from_secs(32)).await;
//! assert_eq!(pressures.poll(clock::now()).state, PressureState::Inactive);
//! # }
//! ```
//!
//! # Cost
//!
//! Nothing on the path of a request but [`Pressures::due`]: a subtraction, one relaxed load and a comparison.

mod cpu;
mod lag;
#[cfg(feature = "timing")]
mod latency;
mod meter;
mod pressure;
mod psi;
#[cfg(feature = "signal")]
mod scheduler;
#[cfg(feature = "signal")]
mod wakeup;

use std::fmt::Debug;
use std::sync::Arc;

#[cfg(feature = "profile")]
pub(crate) use cpu::process_cpu;
pub use cpu::{CpuSignal, ThrottlingSignal};
pub use lag::LagSignal;
#[cfg(feature = "timing")]
pub use latency::LatencySignal;
pub use pressure::{Combined, Pressure, PressureSnapshot, PressureState, Pressures};
pub use psi::PsiSignal;
#[cfg(feature = "signal")]
pub use scheduler::SchedulerSignal;
#[cfg(feature = "signal")]
pub use wakeup::WakeupSignal;

/// A number that tells how pressed something is, in its own unit.
///
/// A signal is read from time to time, never on every request; it must not block.
///
/// ```
/// use tower_flow::signal::Signal;
///
/// #[derive(Debug)]
/// struct OpenFiles;
///
/// impl Signal for OpenFiles {
///     fn name(&self) -> &str { "open_files" }
///     fn sample(&self) -> Option<f64> {
///         Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as f64)
///     }
/// }
/// ```
pub trait Signal: Debug + Send + Sync {
    /// A short, stable name; it becomes a label value.
    fn name(&self) -> &str;

    /// The number now; `None` when there is none to be had. Nothing is shed for a signal that says nothing.
    fn sample(&self) -> Option<f64>;
}

impl<T: Signal + ?Sized> Signal for Arc<T> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn sample(&self) -> Option<f64> {
        (**self).sample()
    }
}
