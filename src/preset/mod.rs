//! Whole stacks in the right order.
//!
//! A preset is a layer like any other: `Server::builder().layer(preset::grpc_server(&flow))`. Where one of its layers
//! needs an option, stack them by hand in the order the preset's documentation gives.

#[cfg(feature = "batch")]
mod batch;
mod client;
#[cfg(feature = "coalesce")]
mod coalesce;
mod server;
#[cfg(feature = "shed")]
mod shed;
#[cfg(all(feature = "pool", feature = "throttle"))]
mod transport;

use tower_http::classify::SharedClassifier;

use crate::Flow;
use crate::outcome::GrpcClassifier;
use crate::route::Route;
use crate::timing::{HttpTimingLayer, TimingLayer};

#[cfg(feature = "batch")]
pub use batch::{Batched, batched, batched_with};
pub use client::{GrpcClient, grpc_client, grpc_client_with};
#[cfg(feature = "coalesce")]
pub use coalesce::{
    GrpcClientCoalesced, HttpClientCoalesced, grpc_client_coalesced, http_client_coalesced,
};
#[cfg(all(feature = "coalesce", feature = "shed"))]
pub use coalesce::{
    GrpcServerCoalesced, HttpServerCoalesced, grpc_server_coalesced, http_server_coalesced,
};
pub use server::{GrpcServerObserved, grpc_server_observed, grpc_server_observed_with};
#[cfg(feature = "shed")]
pub use shed::{GrpcServer, HttpServer, grpc_server, grpc_server_with, http_server};
#[cfg(all(feature = "pool", feature = "throttle"))]
pub use transport::{
    Connector, Transport, TransportBody, TransportBuilder, TransportClient, TransportFuture,
    TransportGrpcClient, TransportService,
};

/// Timing per method, as the presets use it.
pub type GrpcTiming = HttpTimingLayer<ByPath, SharedClassifier<GrpcClassifier>>;

/// The request's path is its route: `/pkg.Service/Method`.
#[derive(Debug, Clone, Copy)]
pub struct ByPath;

impl<B> Route<http::Request<B>> for ByPath {
    #[inline]
    fn of<'a>(&self, req: &'a http::Request<B>) -> Option<&'a str> {
        Some(req.uri().path())
    }
}

fn timing(name: &str, flow: &Flow) -> GrpcTiming {
    let layer = TimingLayer::new(name).route_with(ByPath).max_routes(512);
    layer.attach(flow).http().grpc()
}
