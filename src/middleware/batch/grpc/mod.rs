//! A batch as one unary gRPC call.

mod guard;
mod method;
mod unary;

pub use unary::GrpcBatch;

#[cfg(test)]
mod tests;
