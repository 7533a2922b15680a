//! "How pressed are we": numbers that a layer which sheds can read, and anybody can provide.

#[cfg(feature = "timing")]
mod latency;

use std::fmt::Debug;

#[cfg(feature = "timing")]
pub use latency::LatencySignal;

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
