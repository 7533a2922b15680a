//! A batch as one HTTP request.

mod codec;
mod collect;
mod error;
mod service;

pub use codec::HttpCodec;
pub use error::HttpBatchError;
pub use service::HttpBatch;

#[cfg(test)]
mod tests;
