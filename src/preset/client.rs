use super::GrpcTiming;
use crate::Flow;
use crate::grpc::{Client, GrpcClientLayer, GrpcLayer};

/// The layer of [`grpc_client`].
#[cfg(not(feature = "tonic"))]
pub type GrpcClient = GrpcLayer<Client, GrpcTiming>;
/// The layer of [`grpc_client`].
#[cfg(feature = "tonic")]
pub type GrpcClient =
    tower_layer::Stack<crate::grpc::TonicBodyLayer, GrpcLayer<Client, GrpcTiming>>;

/// For a gRPC client: accounting outermost, so that it counts whatever the layers inside it refuse, and with it timing
/// per method. With feature `tonic` the inner service gets tonic's own request bodies, as its `Channel` wants.
pub fn grpc_client(flow: &Flow) -> GrpcClient {
    grpc_client_with(GrpcClientLayer::new(), flow)
}

/// As [`grpc_client`], round an accounting layer with options of your own.
pub fn grpc_client_with(layer: GrpcClientLayer, flow: &Flow) -> GrpcClient {
    let layer = layer.attach(flow).along(super::timing("grpc_client", flow));
    #[cfg(feature = "tonic")]
    let layer = tower_layer::Stack::new(crate::grpc::TonicBodyLayer::new(), layer);
    layer
}
