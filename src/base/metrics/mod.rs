//! Prometheus: the model every exposition is written from.
//!
//! Layers keep their numbers in sharded cells and describe them as [`Families`] when somebody asks. From that one
//! model come OpenMetrics 1.0.0, the classic text format 0.0.4, with feature `protobuf` the protobuf exposition with
//! native histograms, and a [`Collector`](prometheus_client::collector::Collector) for a registry of one's own.
//! [`Format::negotiate`] picks by the scraper's `Accept` header.

mod collector;
mod family;
pub(crate) mod import;
mod label;
#[cfg(feature = "protobuf")]
mod protobuf;
mod text;

pub use collector::FlowCollector;
pub use family::{Exemplar, Families, Family, Histogram, Kind, Native, Series, Value};
pub use label::Labels;
pub use text::Format;

#[cfg(test)]
mod tests;
