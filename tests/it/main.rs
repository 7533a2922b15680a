//! All integration tests, in one binary.

#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]

mod alloc;
mod contract;
mod proto;
mod support;
