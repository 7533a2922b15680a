//! Pure arithmetic for numbers that are written on every request and read now and then.
//!
//! - [`Striped`]: counters with a stripe for every thread, so that nobody shares a cache line with anybody;
//! - [`Bounds`]: the exact buckets of a classic Prometheus histogram;
//! - [`Exponential`]: a fine histogram, the source of quantiles and of native histograms;
//! - [`Sliding`]: an [`Exponential`] seen through a sliding window;
//! - [`Quantiles`]: what a window says;
//! - [`Stopwatch`]: one request's time, split into phases;
//! - [`Ewma`]: a moving average that forgets by time;
//! - [`Lease`]: a shared pointer whose clones touch no shared counter;
//! - [`Names`]: a bounded set of names, looked up without a lock.

mod bounds;
#[cfg(feature = "metrics")]
mod dice;
mod ewma;
mod exponential;
#[cfg(feature = "timing")]
mod hdr;
mod lease;
mod names;
#[cfg(any(feature = "grpc", feature = "timing"))]
mod pooled;
mod quantiles;
mod stopwatch;
mod striped;
mod window;

pub use bounds::Bounds;
#[cfg(feature = "metrics")]
pub(crate) use dice::once_in;
pub use ewma::Ewma;
pub use exponential::{Counts, Exponential};
#[cfg(feature = "timing")]
pub(crate) use hdr::interval_log;
pub use lease::{Lease, Leased, Spares};
pub use names::Names;
#[cfg(any(feature = "grpc", feature = "timing"))]
pub(crate) use pooled::{Pool, Pooled, Records, pooled};
pub use quantiles::Quantiles;
pub use stopwatch::{Phases, Stopwatch};
pub use striped::{Stripe, Striped};
pub use window::{Slice, Sliding, Window};
