//! Many small requests become one.

mod board;
mod collector;
mod crew;
mod dedup;
mod desk;
mod future;
mod gate;
mod handle;
mod hub;
mod items;
mod layer;
mod list;
mod metrics;
mod plan;
mod request;
mod results;
mod service;
mod shard;
mod state;
mod task;

pub use dedup::{Dedup, DedupBy, Distinct};
pub use future::ResponseFuture;
pub use handle::{BatchHandle, BatchSnapshot, Drain};
pub use layer::BatchLayer;
pub use plan::Plan;
pub use request::{Batch, Flush};
pub use results::{All, Answers, IntoResults, Keys};
pub use service::Batched;
pub use state::{OnError, Oversize};

#[cfg(test)]
#[cfg(not(tower_flow_loom))]
mod tests;
