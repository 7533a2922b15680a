use tower_layer::Stack;

use crate::Flow;
use crate::coalesce::{CoalesceLayer, GrpcCoalesceLayer, HttpKey, HttpShare};
use crate::timing::{HttpTimingLayer, TimingLayer};

use super::{GrpcClient, grpc_client};
#[cfg(feature = "shed")]
use super::{GrpcServerObserved, grpc_server_observed};

/// The layer of [`http_client_coalesced`].
pub type HttpClientCoalesced = Stack<CoalesceLayer<HttpKey, HttpShare>, HttpTimingLayer>;

/// The layer of [`http_server_coalesced`].
#[cfg(feature = "shed")]
pub type HttpServerCoalesced =
    Stack<crate::shed::HttpShedLayer, Stack<CoalesceLayer<HttpKey, HttpShare>, HttpTimingLayer>>;

/// The layer of [`grpc_client_coalesced`].
#[cfg(not(feature = "tonic"))]
pub type GrpcClientCoalesced = Stack<GrpcCoalesceLayer, GrpcClient>;
/// The layer of [`grpc_client_coalesced`].
#[cfg(feature = "tonic")]
pub type GrpcClientCoalesced =
    Stack<crate::grpc::TonicBodyLayer, Stack<GrpcCoalesceLayer, GrpcClient>>;

/// The layer of [`grpc_server_coalesced`].
#[cfg(feature = "shed")]
pub type GrpcServerCoalesced =
    Stack<crate::shed::GrpcShedLayer, Stack<GrpcCoalesceLayer, GrpcServerObserved>>;

/// For an HTTP client: timing of all requests as one route, and inside it coalescing of equal reads.
///
/// What one flight answers, many callers get: put nothing between them that knows who asks.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Empty;
/// use tower::{Layer as _, service_fn};
/// use tower_flow::{Flow, coalesce::CoalesceLayer, preset};
///
/// let flow = Flow::new("shop");
/// let layer = CoalesceLayer::http().name("stock");
/// let client = preset::http_client_coalesced(layer, &flow);
/// # let _ = client.layer(service_fn(async |_: http::Request<Empty<Bytes>>| {
/// #     Ok::<_, std::io::Error>(http::Response::new(Empty::<Bytes>::new()))
/// # }));
/// ```
pub fn http_client_coalesced(
    layer: CoalesceLayer<HttpKey, HttpShare>,
    flow: &Flow,
) -> HttpClientCoalesced {
    let timing = TimingLayer::new("http_client").attach(flow).http();
    Stack::new(layer.name_or("http_client").attach(flow), timing)
}

/// For an HTTP server: timing of all requests as one route, inside it coalescing of equal reads, and innermost adaptive
/// shedding, so that those who follow take no slot. Failures of the coalescing are responses.
///
/// Authentication belongs outside, or its header into the key; see [`CoalesceLayer::authorization`].
#[cfg(feature = "shed")]
pub fn http_server_coalesced(
    layer: CoalesceLayer<HttpKey, HttpShare>,
    flow: &Flow,
) -> HttpServerCoalesced {
    let shed = crate::shed::ShedLayer::adaptive()
        .name("http_server")
        .http();
    let timing = TimingLayer::new("http_server").attach(flow).http();
    let layer = layer.name_or("http_server").respond(true);
    let coalesced = Stack::new(layer.attach(flow), timing);
    Stack::new(shed.attach(flow), coalesced)
}

/// For a gRPC client: accounting and timing per method outermost, as [`grpc_client`] has them, and inside them coalescing
/// of the methods `layer` lists. With feature `tonic` the inner service gets tonic's own request bodies, as its
/// `Channel` wants.
///
/// ```
/// use tower_flow::{Flow, coalesce::CoalesceLayer, preset};
///
/// let flow = Flow::new("shop");
/// let layer = CoalesceLayer::grpc(["/shop.Stock/Get"]).name("stock");
/// let layer = preset::grpc_client_coalesced(layer, &flow);
/// # let _ = layer;
/// ```
pub fn grpc_client_coalesced(layer: GrpcCoalesceLayer, flow: &Flow) -> GrpcClientCoalesced {
    let layer = layer.with(|layer| layer.name_or("grpc_client"));
    let layer = Stack::new(layer.attach(flow), grpc_client(flow));
    #[cfg(feature = "tonic")]
    let layer = Stack::new(crate::grpc::TonicBodyLayer::new(), layer);
    layer
}

/// For a tonic server, or one of its services: accounting and timing per method outermost, inside them coalescing of the
/// methods `layer` lists, and innermost adaptive shedding, so that those who follow take no slot. Failures of the
/// coalescing are responses.
///
/// Authentication belongs outside, or its metadata into the key; see [`GrpcCoalesceLayer::authorization`].
#[cfg(feature = "shed")]
pub fn grpc_server_coalesced(layer: GrpcCoalesceLayer, flow: &Flow) -> GrpcServerCoalesced {
    let shed = crate::shed::ShedLayer::adaptive()
        .name("grpc_server")
        .grpc();
    let layer = layer.with(|layer| layer.name_or("grpc_server"));
    let coalesced = Stack::new(layer.respond(true).attach(flow), grpc_server_observed(flow));
    Stack::new(shed.attach(flow), coalesced)
}
