//! All integration tests, in one binary.

#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::type_complexity)] // A test that fails here has failed.

mod admin;
mod alloc;
mod batch;
mod batch_adapters;
mod coalesce;
mod connect;
mod connection;
mod contract;
#[cfg(target_os = "linux")] // Whose signals and /proc it uses.
mod gateway;
mod grpc;
mod http;
#[cfg(target_os = "linux")] // Whose signals it uses.
mod ingest;
mod interop;
mod limit;
mod nats;
mod observability;
#[cfg(target_os = "linux")] // Whose processes it can end as a group.
mod page;
mod pool;
mod preset;
mod profile;
#[cfg(target_os = "linux")]
mod profiler;
mod proto;
mod shed;
mod stack_hyper;
mod stack_tonic;
mod support;
mod throttle;
mod timing;
mod tls;
mod transport;
mod tree;
mod validators;
