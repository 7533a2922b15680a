//! A batch as one unary gRPC call, or over a stream that is kept.

mod error;
mod guard;
mod line;
mod lines;
mod method;
mod outbox;
mod pairing;
mod reading;
mod stream;
mod talk;
mod unary;

pub use error::GrpcStreamError;
pub use pairing::{ById, Ordered};
pub use stream::GrpcStreamBatch;
pub use unary::GrpcBatch;

#[cfg(test)]
mod tests;
