use tower_layer::Stack;

use super::{GrpcServerObserved, grpc_server_observed_with};
use crate::Flow;
use crate::grpc::GrpcServerLayer;
use crate::shed::{GrpcShedLayer, HttpShedLayer, ShedLayer};
use crate::timing::{HttpTimingLayer, TimingLayer};

/// The layer of [`grpc_server`].
pub type GrpcServer = Stack<GrpcShedLayer, GrpcServerObserved>;

/// The layer of [`http_server`].
pub type HttpServer = Stack<HttpShedLayer, HttpTimingLayer>;

/// For a tonic server, or one of its services: accounting outermost, so that it counts what is refused too, with it
/// timing per method, and inside them adaptive shedding.
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
/// use tower_flow::{Flow, grpc::GrpcServerLayer, preset, shed::ShedLayer};
///
/// # const DESCRIPTORS: &[u8] = b"";
/// let flow = Flow::new("orders");
/// let accounting = GrpcServerLayer::new().register_fds(DESCRIPTORS)?;
/// let shed = ShedLayer::adaptive().streams(10_000).grpc();
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
    Stack::new(shed, grpc_server_observed_with(accounting, flow))
}

/// For an HTTP server: timing of all requests as one route, and inside it adaptive shedding.
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
    let timing = TimingLayer::new("http_server").attach(flow).http();
    Stack::new(shed.attach(flow), timing)
}
