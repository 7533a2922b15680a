use super::GrpcTiming;
use crate::Flow;
use crate::grpc::{GrpcLayer, GrpcServerLayer, Server};

/// The layer of [`grpc_server_observed`].
pub type GrpcServerObserved = GrpcLayer<Server, GrpcTiming>;

/// For a tonic server, or one of its services, that is watched and not held back: accounting, and with it timing per
/// method.
///
/// Methods are learned from traffic, so their `grpc_type` is `unknown`; alerts and dashboards that ask for
/// `grpc_type="unary"` want [`grpc_server_observed_with`].
pub fn grpc_server_observed(flow: &Flow) -> GrpcServerObserved {
    grpc_server_observed_with(GrpcServerLayer::new(), flow)
}

/// As [`grpc_server_observed`], round an accounting layer with options of your own, most of all the service's
/// descriptor set.
///
/// ```
/// use tower_flow::{Flow, grpc::GrpcServerLayer, preset};
///
/// # const DESCRIPTORS: &[u8] = b"";
/// let flow = Flow::new("orders");
/// let accounting = GrpcServerLayer::new().register_fds(DESCRIPTORS)?;
/// let layer = preset::grpc_server_observed_with(accounting, &flow);
/// # let _ = layer;
/// # Ok::<(), tower_flow::grpc::DescriptorError>(())
/// ```
pub fn grpc_server_observed_with(layer: GrpcServerLayer, flow: &Flow) -> GrpcServerObserved {
    layer.attach(flow).along(super::timing("grpc_server", flow))
}
