use tower_layer::Stack;

use super::observed::{Accounted, ForChannel, accounted, for_channel};
use crate::Flow;
use crate::grpc::GrpcClientLayer;
use crate::route::OneRoute;
use crate::throttle::{HttpThrottleLayer, OneBackend, ThrottleLayer};
use crate::timing::{HttpTimingLayer, TimingLayer};

/// The layer of [`grpc_client`].
pub type GrpcClient<T = OneBackend> = ForChannel<Stack<HttpThrottleLayer<T>, Accounted>>;

/// The layer of [`http_client`].
pub type HttpClient<R = OneRoute, T = OneBackend> = Stack<HttpThrottleLayer<T>, HttpTimingLayer<R>>;

/// For a gRPC client: accounting outermost, so that it counts whatever the layers inside it refuse, with it timing per
/// method, and inside them a throttle for each authority. With feature `tonic` the inner service gets tonic's own request
/// bodies, as its `Channel` wants.
///
/// A call the throttle refuses fails as UNAVAILABLE, and no connection is asked for it.
pub fn grpc_client(flow: &Flow) -> GrpcClient {
    let throttle = ThrottleLayer::new("grpc_client");
    grpc_client_with(GrpcClientLayer::new(), throttle, flow)
}

/// As [`grpc_client`], of an accounting layer and a throttle with options of your own.
///
/// ```
/// use tower_flow::{Flow, grpc::GrpcClientLayer, preset, throttle::ThrottleLayer};
///
/// let flow = Flow::new("shop");
/// let accounting = GrpcClientLayer::new().both().target("dns:///stock:50051");
/// let throttle = ThrottleLayer::new("stock").k(1.5);
/// let layer = preset::grpc_client_with(accounting, throttle, &flow);
/// # let _ = layer;
/// ```
pub fn grpc_client_with<T>(
    accounting: GrpcClientLayer,
    throttle: ThrottleLayer<T>,
    flow: &Flow,
) -> GrpcClient<T> {
    let throttle = throttle.attach(flow).grpc();
    for_channel(Stack::new(throttle, accounted(accounting, flow)))
}

/// For an HTTP client, round hyper's, a [`ConnPool`](crate::pool::ConnPool) or any other: timing of all requests as one
/// route, and inside it a throttle for each authority.
///
/// A request the throttle refuses fails with a [`Rejection`](crate::Rejection) of
/// [`Reason::Throttled`](crate::error::Reason::Throttled), and no connection is asked for it. With a pool and a time limit
/// it is a [`Transport`](super::Transport).
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Empty;
/// use hyper_util::client::legacy::{Client, connect::HttpConnector};
/// use hyper_util::rt::TokioExecutor;
/// use tower::ServiceBuilder;
/// use tower_flow::{Flow, preset};
///
/// let flow = Flow::new("shop");
/// let hyper: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
/// let client = ServiceBuilder::new().layer(preset::http_client(&flow)).service(hyper);
/// # let _ = client;
/// ```
pub fn http_client(flow: &Flow) -> HttpClient {
    let timing = TimingLayer::new("http_client");
    http_client_with(timing, ThrottleLayer::new("http_client"), flow)
}

/// As [`http_client`], of a timing layer and a throttle with options of your own.
///
/// ```
/// use http::Request;
/// use tower_flow::{Flow, preset, throttle::ThrottleLayer, timing::TimingLayer};
///
/// let flow = Flow::new("shop");
/// let timing = TimingLayer::new("stock").route_by(|req: &Request<String>| match req.uri().path() {
///     "/items" => "list",
///     _ => "item",
/// });
/// let layer = preset::http_client_with(timing, ThrottleLayer::new("stock"), &flow);
/// # let _ = layer;
/// ```
pub fn http_client_with<R, T>(
    timing: TimingLayer<R>,
    throttle: ThrottleLayer<T>,
    flow: &Flow,
) -> HttpClient<R, T> {
    let throttle = throttle.attach(flow).http();
    Stack::new(throttle, timing.attach(flow).http())
}
