use tower_layer::Stack;

use super::GrpcTiming;
use crate::Flow;
use crate::grpc::GrpcClientLayer;

/// The layer of [`grpc_client`].
#[cfg(not(feature = "tonic"))]
pub type GrpcClient = Stack<GrpcTiming, GrpcClientLayer>;
/// The layer of [`grpc_client`].
#[cfg(feature = "tonic")]
pub type GrpcClient = Stack<Stack<crate::grpc::TonicBodyLayer, GrpcTiming>, GrpcClientLayer>;

/// For a gRPC client: accounting outermost, so that it counts whatever the layers inside it refuse, then timing per
/// method. With feature `tonic` the inner service gets tonic's own request bodies, as its `Channel` wants.
pub fn grpc_client(flow: &Flow) -> GrpcClient {
    let timing = super::timing("grpc_client", flow);
    #[cfg(feature = "tonic")]
    let timing = Stack::new(crate::grpc::TonicBodyLayer::new(), timing);
    Stack::new(timing, GrpcClientLayer::new().attach(flow))
}
