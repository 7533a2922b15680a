//! tower Layers for any hyper or tonic stack: adaptive load shedding, request coalescing and batching, client throttling,
//! connection pools, gRPC accounting, round-trip timing, connection tracking, and a live endpoint that shows them.
//!
//! # Quick start
//!
//! ```no_run
//! # #[cfg(feature = "full")] {
//! use tower_flow::{Flow, preset};
//!
//! # async fn serve(routes: tonic::service::Routes) -> Result<(), Box<dyn std::error::Error>> {
//! let flow = Flow::new("orders");
//! tokio::spawn(flow.admin().serve("127.0.0.1:9090".parse()?));
//! tonic::transport::Server::builder()
//!     .layer(preset::grpc_server(&flow))
//!     .add_routes(routes)
//!     .serve("127.0.0.1:50051".parse()?)
//!     .await?;
//! # Ok(()) } }
//! ```
//!
//! Every layer also stands alone, over any `Service<Req>`; none needs a [`Flow`], a registry or HTTP. The [`guide`] tells
//! which layer is for which trouble, how large limits and pools shall be, how to read the live page, and how to move here
//! from other crates.
//!
//! # Map
//!
//! Three tiers; arrows point up this list only.
//!
//! - *base*, what layers stand on: [`Flow`], [`inspect`], [`metrics`], [`signal`], [`stats`], [`outcome`], [`body`], [`watch`],
//!   [`deadline`], [`executor`], [`phases`], [`priority`], [`route`], [`error`], [`clock`];
//! - *middleware*, one folder each, none imports another: [`grpc`], [`timing`], [`connection`], [`pool`],
//!   [`batch`], [`coalesce`], [`shed`], [`throttle`], [`profile`];
//! - *stacks*: [`ServiceBuilderExt`], [`preset`], [`admin`], [`nats`].
//!
//! # Features
//!
//! None is on by default; each adds API and changes no behaviour.
//!
//! | feature | adds |
//! |---|---|
//! | `grpc` | [`grpc`] |
//! | `timing` | [`timing`], [`signal::LatencySignal`] |
//! | `connection` | [`connection`] |
//! | `batch` | [`batch`] |
//! | `coalesce` | [`coalesce`] |
//! | `pool` | [`pool`] |
//! | `tls` | TLS for the pool's connector: rustls with ring |
//! | `throttle` | [`throttle`] |
//! | `shed` | [`shed`] |
//! | `profile` | [`profile`]: where the time goes, by route, by thread, by worker |
//! | `perf` | `profile::Profiler`, which samples call chains; Linux only |
//! | `nats` | [`nats`]: NATS as a service, JetStream publishing in batches, its lag as a signal |
//! | `signal` | the signals that watch a tokio runtime: [`signal::SchedulerSignal`], [`signal::WakeupSignal`] |
//! | `admin` | [`admin`] |
//! | `metrics` | [`Flow`], [`inspect`], [`metrics`]; on with any of the above |
//! | `protobuf` | the protobuf exposition with native histograms |
//! | `tonic` | what only tonic needs: `NamedService`, `Connected`, `Status` in error chains |
//! | `hyper` | what only hyper needs: its IO traits, its causes of errors |
//! | `full` | all of these |

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "admin")]
pub mod admin;
mod base;
mod builder;
pub mod guide;
mod middleware;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(all(feature = "grpc", feature = "timing"))]
pub mod preset;

pub use base::error::{BoxError, Rejection};
#[cfg(feature = "metrics")]
pub use base::flow::Flow;
#[cfg(any(feature = "pool", feature = "timing"))]
pub use base::phases;
#[cfg(any(feature = "profile", feature = "timing"))]
pub use base::route;
pub use base::{body, clock, deadline, executor, outcome, priority, signal, stats, watch};
#[cfg(feature = "metrics")]
pub use base::{inspect, metrics};
pub use builder::ServiceBuilderExt;
#[cfg(feature = "batch")]
pub use middleware::batch;
#[cfg(feature = "coalesce")]
pub use middleware::coalesce;
#[cfg(feature = "connection")]
pub use middleware::connection;
#[cfg(feature = "grpc")]
pub use middleware::grpc;
#[cfg(feature = "pool")]
pub use middleware::pool;
#[cfg(feature = "profile")]
pub use middleware::profile;
#[cfg(feature = "shed")]
pub use middleware::shed;
#[cfg(feature = "throttle")]
pub use middleware::throttle;
#[cfg(feature = "timing")]
pub use middleware::timing;

/// Why a layer refused, and how to find a cause in a chain of errors.
pub mod error {
    pub use crate::base::error::{Reason, SharedError, find};
}

// The README's examples are tests.
#[cfg(all(doctest, feature = "full"))]
#[doc = include_str!("../README.md")]
mod readme {}
