//! The form for gRPC: unary calls are collected whole, in both directions, so that messages are compared and the status
//! in the trailers says who may share.

mod body;
mod collect;
mod gather;
mod key;
mod layer;
mod options;
mod service;
mod share;

pub use body::GrpcBody;
pub use key::{GrpcKey, GrpcRequestKey};
pub use layer::GrpcCoalesceLayer;
pub use service::{GrpcCoalesce, GrpcResponseFuture};
pub use share::GrpcShare;

#[cfg(test)]
mod tests;
