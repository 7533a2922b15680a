use tower_layer::Stack;

use super::GrpcTiming;
use crate::Flow;
use crate::grpc::{Client, GrpcClientLayer, GrpcLayer, GrpcServerLayer, Server};

/// The layer of [`grpc_server_observed`].
pub type GrpcServerObserved = GrpcLayer<Server, GrpcTiming>;

/// The layer of [`grpc_client_observed`].
pub type GrpcClientObserved = ForChannel<Accounted>;

/// Accounting, and timing along with it.
pub(super) type Accounted = GrpcLayer<Client, GrpcTiming>;

/// A client's layers, and innermost what gives a `Channel` the bodies it takes.
#[cfg(feature = "tonic")]
pub(super) type ForChannel<L> = Stack<crate::grpc::TonicBodyLayer, L>;
/// A client's layers: without tonic there is no `Channel` to do anything for.
#[cfg(not(feature = "tonic"))]
pub(super) type ForChannel<L> = Stack<tower_layer::Identity, L>;

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
    let timing = super::methods("grpc_server", flow);
    layer.attach(flow).along(timing)
}

/// For a gRPC client that is watched and not held back: accounting, and with it timing per method. With feature `tonic`
/// the inner service gets tonic's own request bodies, as its `Channel` wants.
pub fn grpc_client_observed(flow: &Flow) -> GrpcClientObserved {
    grpc_client_observed_with(GrpcClientLayer::new(), flow)
}

/// As [`grpc_client_observed`], round an accounting layer with options of your own.
pub fn grpc_client_observed_with(layer: GrpcClientLayer, flow: &Flow) -> GrpcClientObserved {
    for_channel(accounted(layer, flow))
}

pub(super) fn accounted(layer: GrpcClientLayer, flow: &Flow) -> Accounted {
    let timing = super::methods("grpc_client", flow);
    layer.attach(flow).along(timing)
}

pub(super) fn for_channel<L>(layer: L) -> ForChannel<L> {
    Stack::new(Default::default(), layer)
}
