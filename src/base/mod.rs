//! Tier 1: what every middleware stands on. Nothing here knows of any middleware.
pub mod body;
pub mod clock;
#[cfg(feature = "metrics")]
pub(crate) mod cost;
pub mod deadline;
#[cfg(any(feature = "coalesce", feature = "grpc"))]
pub(crate) mod descriptor;
pub(crate) mod error;
pub mod executor;
#[cfg(feature = "metrics")]
pub(crate) mod flow;
pub(crate) mod header;
#[cfg(feature = "metrics")]
pub mod inspect;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod outcome;
#[cfg(any(feature = "batch", feature = "coalesce"))]
pub(crate) mod pertype;
#[cfg(any(feature = "pool", feature = "timing"))]
pub mod phases;
pub mod priority;
#[cfg(any(feature = "perf", feature = "protobuf"))]
pub(crate) mod protobuf;
#[cfg(any(feature = "profile", feature = "timing"))]
pub mod route;
pub mod signal;
pub mod stats;
#[cfg(any(feature = "batch", feature = "coalesce"))]
pub(crate) mod timer;
pub mod watch;
