use tower_layer::Stack;

use super::{ByPath, GrpcServerObserved, MAX_METHODS, grpc_server_observed_with};
use crate::Flow;
use crate::grpc::GrpcServerLayer;
use crate::inspect::Inspect as _;
use crate::profile::{HttpProfileLayer, ProfileLayer};
use crate::route::OneRoute;
use crate::shed::{GrpcShedLayer, HttpShedLayer, ShedLayer};
use crate::timing::{HttpTimingLayer, TimingLayer};

/// The layer of [`grpc_server`].
pub type GrpcServer = Stack<HttpProfileLayer<ByPath>, Stack<GrpcShedLayer, GrpcServerObserved>>;

/// The layer of [`http_server`].
pub type HttpServer<R = OneRoute> =
    Stack<HttpProfileLayer<R>, Stack<HttpShedLayer, HttpTimingLayer<R>>>;

/// One call in so many is profiled.
const PROFILED: u32 = 64;

/// For a tonic server, or one of its services: accounting outermost, so that it counts what is refused too, with it
/// timing per method, inside them adaptive shedding, and innermost a profile of one call in 64.
///
/// Methods are learned from traffic: their `grpc_type` is `unknown`, and streams are told from unary calls by how they
/// go. Register the service's descriptor set with [`grpc_server_with`] to know from the start.
pub fn grpc_server(flow: &Flow) -> GrpcServer {
    grpc_server_with(
        GrpcServerLayer::new(),
        ShedLayer::adaptive().name("grpc_server").grpc(),
        flow,
    )
}

/// As [`grpc_server`], of an accounting and a shedding layer with options of your own. Registered methods that stream
/// hold slots of the streams' own pool.
///
/// ```
/// use http::HeaderName;
/// use tower_flow::{Flow, grpc::GrpcServerLayer, preset, shed::ShedLayer};
///
/// # const DESCRIPTORS: &[u8] = b"";
/// let flow = Flow::new("orders");
/// let accounting = GrpcServerLayer::new().register_fds(DESCRIPTORS)?;
/// let shed = ShedLayer::adaptive()
///     .streams(10_000)
///     .grpc()
///     // Behind a gateway that writes it; strangers would all be critical.
///     .priority_header(HeaderName::from_static("x-priority"));
/// let layer = preset::grpc_server_with(accounting, shed, &flow);
/// # let _ = layer;
/// # Ok::<(), tower_flow::grpc::DescriptorError>(())
/// ```
pub fn grpc_server_with(
    accounting: GrpcServerLayer,
    shed: GrpcShedLayer,
    flow: &Flow,
) -> GrpcServer {
    let shed = shed.streaming(accounting.streaming()).attach(flow);
    let observed = grpc_server_observed_with(accounting, flow);
    let profile = profiled("grpc_server", ByPath, flow);
    Stack::new(profile, Stack::new(shed, observed))
}

/// For an HTTP server: timing of all requests as one route, inside it adaptive shedding, and innermost a profile of one
/// request in 64. A service that cannot fail still cannot: refusals are responses.
///
/// ```
/// use tower::{Layer as _, service_fn};
/// use tower_flow::{Flow, preset};
///
/// let flow = Flow::new("orders");
/// let service = preset::http_server(&flow).layer(service_fn(async |_: http::Request<String>| {
///     Ok::<_, std::convert::Infallible>(http::Response::new(String::from("hello")))
/// }));
/// # let _ = service;
/// ```
pub fn http_server(flow: &Flow) -> HttpServer {
    let shed = ShedLayer::adaptive().name("http_server").http();
    http_server_with(TimingLayer::new("http_server"), shed, flow)
}

/// As [`http_server`], of a timing and a shedding layer with options of your own. The profile has the name and the routes
/// of `timing`.
///
/// A route is what a request is for, not the path somebody sent: with axum its `MatchedPath`, as `examples/axum_server.rs`
/// has it.
///
/// ```
/// use http::Request;
/// use tower_flow::{Flow, preset, shed::ShedLayer, timing::TimingLayer};
///
/// let flow = Flow::new("shop");
/// let timing = TimingLayer::new("shop").route_by(|req: &Request<String>| match req.uri().path() {
///     path if path.starts_with("/items/") => "/items/{id}",
///     _ => "rest",
/// });
/// let layer = preset::http_server_with(timing, ShedLayer::adaptive().http(), &flow);
/// # let _ = layer;
/// ```
pub fn http_server_with<R: Clone>(
    timing: TimingLayer<R>,
    shed: HttpShedLayer,
    flow: &Flow,
) -> HttpServer<R> {
    let timing = timing.attach(flow);
    let shed = shed.attach(flow);
    let profile = profiled(&timing.handle().name(), timing.route().clone(), flow);
    Stack::new(profile, Stack::new(shed, timing.http()))
}

pub(super) fn profiled<R>(name: &str, route: R, flow: &Flow) -> HttpProfileLayer<R> {
    let layer = ProfileLayer::new(name)
        .route_with(route)
        .max_routes(MAX_METHODS)
        .every(PROFILED);
    layer.attach(flow).http()
}
