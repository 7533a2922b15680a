use tower_layer::Stack;

use super::GrpcTiming;
use crate::Flow;
use crate::grpc::GrpcServerLayer;

/// The layer of [`grpc_server`].
pub type GrpcServer = Stack<GrpcTiming, GrpcServerLayer>;

/// For a tonic server, or one of its services: accounting outermost, so that it counts whatever the layers inside it
/// refuse, then timing per method.
pub fn grpc_server(flow: &Flow) -> GrpcServer {
    Stack::new(
        super::timing("grpc_server", flow),
        GrpcServerLayer::new().attach(flow),
    )
}
