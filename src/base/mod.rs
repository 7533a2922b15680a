//! Tier 1: what every middleware stands on. Nothing here knows of any middleware.
pub mod body;
pub mod clock;
pub mod deadline;
pub mod error;
#[cfg(feature = "metrics")]
pub mod flow;
#[cfg(feature = "metrics")]
pub mod inspect;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod outcome;
pub mod priority;
pub mod signal;
pub mod stats;
