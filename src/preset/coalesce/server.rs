use tower_layer::Stack;

use super::super::server::profiled;
use super::super::{ByPath, GrpcServerObserved, grpc_server_observed};
use crate::Flow;
use crate::coalesce::{CoalesceLayer, GrpcCoalesceLayer, HttpKey, HttpShare};
use crate::profile::HttpProfileLayer;
use crate::route::OneRoute;
use crate::shed::{GrpcShedLayer, HttpShedLayer, ShedLayer};
use crate::timing::{HttpTimingLayer, TimingLayer};

/// The layer of [`http_server_coalesced`].
pub type HttpServerCoalesced = Stack<
    HttpProfileLayer,
    Stack<HttpShedLayer, Stack<CoalesceLayer<HttpKey, HttpShare>, HttpTimingLayer>>,
>;

/// The layer of [`grpc_server_coalesced`].
pub type GrpcServerCoalesced = Stack<
    HttpProfileLayer<ByPath>,
    Stack<GrpcShedLayer, Stack<GrpcCoalesceLayer, GrpcServerObserved>>,
>;

/// For an HTTP server: timing of all requests as one route, inside it coalescing of equal reads, inside that adaptive
/// shedding, so that those who follow take no slot, and innermost a profile of one request in 64. Failures of the
/// coalescing are responses.
///
/// Authentication belongs outside, or its header into the key; see [`CoalesceLayer::authorization`].
pub fn http_server_coalesced(
    layer: CoalesceLayer<HttpKey, HttpShare>,
    flow: &Flow,
) -> HttpServerCoalesced {
    let shed = ShedLayer::adaptive().name("http_server").http();
    let timing = TimingLayer::new("http_server").attach(flow).http();
    let layer = layer.name_or("http_server").answer();
    let coalesced = Stack::new(layer.attach(flow), timing);
    let shed = Stack::new(shed.attach(flow), coalesced);
    Stack::new(profiled("http_server", OneRoute, flow), shed)
}

/// For a tonic server, or one of its services: accounting and timing per method outermost, inside them coalescing of the
/// methods `layer` lists, inside that adaptive shedding, so that those who follow take no slot, and innermost a profile of
/// one call in 64. Failures of the coalescing are responses.
///
/// Authentication belongs outside, or its metadata into the key; see [`GrpcCoalesceLayer::authorization`].
pub fn grpc_server_coalesced(layer: GrpcCoalesceLayer, flow: &Flow) -> GrpcServerCoalesced {
    let shed = ShedLayer::adaptive().name("grpc_server").grpc();
    let layer = layer.with(|layer| layer.name_or("grpc_server"));
    let coalesced = Stack::new(layer.answer().attach(flow), grpc_server_observed(flow));
    let shed = Stack::new(shed.attach(flow), coalesced);
    Stack::new(profiled("grpc_server", ByPath, flow), shed)
}
