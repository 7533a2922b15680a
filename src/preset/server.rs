use super::GrpcTiming;
use crate::Flow;
use crate::grpc::{GrpcLayer, GrpcServerLayer, Server};

/// The layer of [`grpc_server`].
pub type GrpcServer = GrpcLayer<Server, GrpcTiming>;

/// For a tonic server, or one of its services: accounting outermost, so that it counts whatever the layers inside it
/// refuse, and with it timing per method.
///
/// Methods are learned from traffic, so their `grpc_type` is `unknown`; alerts and dashboards that ask for
/// `grpc_type="unary"` want [`grpc_server_with`].
pub fn grpc_server(flow: &Flow) -> GrpcServer {
    grpc_server_with(GrpcServerLayer::new(), flow)
}

/// As [`grpc_server`], round an accounting layer with options of your own, most of all the service's descriptor set.
///
/// ```
/// use tower_flow::{Flow, grpc::GrpcServerLayer, preset};
///
/// # const DESCRIPTORS: &[u8] = b"";
/// let flow = Flow::new("orders");
/// let layer = preset::grpc_server_with(GrpcServerLayer::new().register_fds(DESCRIPTORS)?, &flow);
/// # let _ = layer;
/// # Ok::<(), tower_flow::grpc::DescriptorError>(())
/// ```
pub fn grpc_server_with(layer: GrpcServerLayer, flow: &Flow) -> GrpcServer {
    layer.attach(flow).along(super::timing("grpc_server", flow))
}
