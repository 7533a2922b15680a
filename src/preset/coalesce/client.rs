use tower_layer::Stack;

use super::super::observed::{Accounted, ForChannel, accounted, for_channel};
use crate::Flow;
use crate::coalesce::{CoalesceLayer, GrpcCoalesceLayer, HttpKey, HttpShare};
use crate::grpc::GrpcClientLayer;
use crate::throttle::{HttpThrottleLayer, ThrottleLayer};
use crate::timing::{HttpTimingLayer, TimingLayer};

/// The layer of [`http_client_coalesced`].
pub type HttpClientCoalesced =
    Stack<HttpThrottleLayer, Stack<CoalesceLayer<HttpKey, HttpShare>, HttpTimingLayer>>;

/// The layer of [`grpc_client_coalesced`].
pub type GrpcClientCoalesced =
    ForChannel<Stack<HttpThrottleLayer, Stack<GrpcCoalesceLayer, Accounted>>>;

/// For an HTTP client: timing of all requests as one route, inside it coalescing of equal reads, and innermost a throttle
/// for each authority, to which those who follow are no requests.
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
    let layer = layer.name_or("http_client").attach(flow);
    let throttle = ThrottleLayer::new("http_client").attach(flow).http();
    Stack::new(throttle, Stack::new(layer, timing))
}

/// For a gRPC client: accounting and timing per method outermost, as [`grpc_client`](super::super::grpc_client) has them,
/// inside them coalescing of the methods `layer` lists, and innermost a throttle for each authority, to which those who
/// follow are no requests. With feature `tonic` the inner service gets tonic's own request bodies, as its `Channel` wants.
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
    let accounted = accounted(GrpcClientLayer::new(), flow);
    let coalesced = Stack::new(layer.attach(flow), accounted);
    let throttle = ThrottleLayer::new("grpc_client").attach(flow).grpc();
    for_channel(Stack::new(throttle, coalesced))
}
