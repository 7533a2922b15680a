//! How to put the layers to work.
//!
//! | page | tells |
//! |---|---|
//! | [`choosing`] | which layer for which trouble, and what not to do |
//! | [`sizing`] | how large limits, queues and pools shall be, with numbers |
//! | [`page`] | how to read the live page, and what moves first when there is too much to do |
//! | [`moving`] | from tower's `LoadShed` and `ConcurrencyLimit`, from `tonic_prometheus_layer`, from hyper-util's client |
//! | [`protocols`] | what is particular to gRPC and to HTTP |
//!
//! In a hurry: [`preset::grpc_server`](crate::preset::grpc_server) or [`http_server`](crate::preset::http_server) round what
//! you serve, [`preset::Transport`](crate::preset::Transport) for what you call, and
//! [`Flow::admin`](crate::Flow::admin) to look at both.

// The examples use all layers: they are tests where all features are on, and text everywhere.

#[cfg_attr(any(feature = "full", not(doctest)), doc = include_str!("choosing.md"))]
pub mod choosing {}
#[cfg_attr(any(feature = "full", not(doctest)), doc = include_str!("moving.md"))]
pub mod moving {}
#[cfg_attr(any(feature = "full", not(doctest)), doc = include_str!("page.md"))]
pub mod page {}
#[cfg_attr(any(feature = "full", not(doctest)), doc = include_str!("protocols.md"))]
pub mod protocols {}
#[cfg_attr(any(feature = "full", not(doctest)), doc = include_str!("sizing.md"))]
pub mod sizing {}
