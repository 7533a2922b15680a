//! What was made of `ingest.proto`.

#![allow(dead_code, missing_docs, unreachable_pub)]

include!("tower_flow.ingest.v1.rs");

/// What `protoc --descriptor_set_out` made of it: it tells tower-flow each method's type.
pub(crate) const FDS: &[u8] = include_bytes!("ingest.fds");
