use super::GrpcTiming;
use crate::Flow;
use crate::grpc::{GrpcLayer, GrpcServerLayer, Server};

/// The layer of [`grpc_server`].
pub type GrpcServer = GrpcLayer<Server, GrpcTiming>;

/// For a tonic server, or one of its services: accounting outermost, so that it counts whatever the layers inside it
/// refuse, and with it timing per method.
pub fn grpc_server(flow: &Flow) -> GrpcServer {
    GrpcServerLayer::new()
        .attach(flow)
        .along(super::timing("grpc_server", flow))
}
