//! Several connections to one server or cluster.

mod buckets;
mod builder;
mod core;
mod handle;
mod lease;
mod metrics;
mod service;
mod shared;
mod tasks;
#[cfg(test)]
mod tests;

pub use builder::NatsPoolBuilder;
pub use handle::{NatsPoolHandle, NatsPoolStats};
pub use service::NatsPool;
