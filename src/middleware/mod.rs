//! Tier 2: one folder for each layer. None imports another; what two of them need lives in `base`.

#[cfg(feature = "batch")]
pub mod batch;
#[cfg(feature = "coalesce")]
pub mod coalesce;
#[cfg(feature = "connection")]
pub mod connection;
#[cfg(feature = "grpc")]
pub mod grpc;
#[cfg(feature = "pool")]
pub mod pool;
#[cfg(feature = "profile")]
pub mod profile;
#[cfg(feature = "shed")]
pub mod shed;
#[cfg(feature = "throttle")]
pub mod throttle;
#[cfg(feature = "timing")]
pub mod timing;
