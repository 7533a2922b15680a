//! One service of batches for each destination.

mod error;
mod future;
mod service;
mod table;

pub use error::DestinationError;
pub use future::DestinationFuture;
pub use service::Destinations;

#[cfg(test)]
mod tests;
