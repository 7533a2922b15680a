//! Several connections to one server or cluster.

mod builder;
mod core;
mod handle;
mod metrics;
mod service;
mod shared;
#[cfg(test)]
mod tests;

pub use builder::NatsPoolBuilder;
pub use handle::{NatsPoolHandle, NatsPoolStats};
pub use service::NatsPool;
