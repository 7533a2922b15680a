//! Tier 1: what every middleware stands on. Nothing here knows of any middleware.

pub mod body;
pub mod clock;
pub mod deadline;
pub mod error;

//flow

//inspect

//metrics
pub mod outcome;
pub mod priority;
pub mod signal;
pub mod stats;
