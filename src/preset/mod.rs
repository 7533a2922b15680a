//! Whole stacks in the right order.
//!
//! A preset is a layer like any other: `Server::builder().layer(preset::grpc_server(&flow))`. None needs an option; those
//! with `_with` take layers with options of your own. Where one of its layers is not wanted, stack the others by hand in
//! the order below.
//!
//! ```text
//!            a server                                      a client
//!  socket  ─▶ Connections                                  caller
//!             grpc accounting, timing                      grpc accounting, timing
//!             coalesce                                     coalesce
//!             shed                                         (retries of your own)
//!             profile                                      throttle
//!             handler                                      request timeout
//!                                                          pool ─▶ socket
//! ```
//!
//! # A server, from the outside in
//!
//! | layer | why it stands there | the other way round |
//! |---|---|---|
//! | [`Connections`](crate::connection) | sees the socket itself: `incoming` or `accept` where connections are accepted, and a `streams` layer for its requests | bytes and peers are known nowhere else |
//! | [accounting](crate::grpc) | counts whatever the caller got, refusals too | inside of `shed` a server that refuses half of its calls has no errors |
//! | [timing](crate::timing) | shares accounting's wrapper and its readings of the clock; has the wait for a slot in it | inside of `shed` it would tell how long handlers take, and never what callers wait |
//! | [coalesce](crate::coalesce) | who follows takes no slot | inside of `shed` a hundred equal reads take a hundred slots, and some of them are refused |
//! | [shed](crate::shed) | refuses before anything was spent | further in, what a refusal saves has been paid already |
//! | [profile](crate::profile) | tells what handlers take from their workers | outside of `shed` refusals pay for it, and a rush looks like slow handlers |
//!
//! Authentication belongs outside of coalescing, or what tells callers apart into its key. Compression, bodies that are
//! parsed and whatever else costs something belongs inside of `shed`.
//!
//! # A client, from the outside in
//!
//! | layer | why it stands there | the other way round |
//! |---|---|---|
//! | accounting, timing | count what was refused here too, and have the wait for a connection in them | inside of the throttle a client that sends nothing looks like one that has nothing to send |
//! | coalesce | who follows takes no connection and counts for no backend | inside of the throttle one answer is a hundred accepts |
//! | retries | each try is judged by itself | inside of the throttle it sees one request where the backend saw three |
//! | [throttle](crate::throttle) | what it refuses never waits, and never asks for a connection | inside of the pool, refused requests hold connections others wait for |
//! | timeout | has the wait for a connection in it | inside of the pool a full pool is waited for without an end |
//! | [pool](crate::pool) | is the client | |
//!
//! # Which there are
//!
//! | preset | layers | features, beside `grpc` and `timing` |
//! |---|---|---|
//! | [`grpc_server`] | accounting, timing, shed, profile | `shed`, `profile` |
//! | [`grpc_server_coalesced`] | the same with coalesce | and `coalesce` |
//! | [`grpc_server_observed`] | accounting, timing | |
//! | [`http_server`] | timing, shed, profile | `shed`, `profile` |
//! | [`http_server_coalesced`] | the same with coalesce | and `coalesce` |
//! | [`grpc_client`] | accounting, timing, throttle | `throttle` |
//! | [`grpc_client_coalesced`] | the same with coalesce | and `coalesce` |
//! | [`grpc_client_observed`] | accounting, timing | |
//! | [`http_client`] | timing, throttle | `throttle` |
//! | [`http_client_coalesced`] | the same with coalesce | and `coalesce` |
//! | [`Transport`] | timing, throttle, timeout, pool | `throttle`, `pool` |
//! | [`batched`] | timing of items, batch, timing of batches | `batch` |
//!
//! A preset exists where all of its layers do: no feature changes what one does.
//!
//! # Priorities and deadlines
//!
//! A [`Priority`](crate::priority::Priority) and a [`Deadline`](crate::deadline::Deadline) among a request's extensions
//! count in every layer that refuses or waits; `grpc-timeout` is read as a deadline. A header for priorities is believed
//! only where one is named, since whoever may write it is served first:
//! [`priority_header`](crate::shed::ShedLayer::priority_header), with [`grpc_server_with`] or [`http_server_with`].
//!
//! # The accept side
//!
//! A layer sees requests, not sockets, so this part is a line of the program that accepts:
//!
//! ```
//! # #[cfg(all(feature = "connection", feature = "shed", feature = "profile", feature = "tonic"))] {
//! use tonic::transport::server::TcpIncoming;
//! use tower_flow::{Flow, connection::Connections, preset};
//!
//! # async fn serve(routes: tonic::service::Routes) -> Result<(), Box<dyn std::error::Error>> {
//! let flow = Flow::new("orders");
//! let connections = Connections::server("grpc").attach(&flow);
//! let incoming = TcpIncoming::bind("127.0.0.1:50051".parse()?)?;
//! tonic::transport::Server::builder()
//!     .layer(preset::grpc_server(&flow))
//!     .layer(connections.streams())
//!     .add_routes(routes)
//!     .serve_with_incoming(connections.incoming(incoming))
//!     .await?;
//! # Ok(()) } }
//! ```
//!
//! # Cost
//!
//! What its layers cost. `profile` looks at one call in 64, so that [hot paths](crate::profile::ProfileHandle::hot) are
//! there from the start; its knob `every` turns that up, and at 0 off, while the server runs. No preset allocates for a
//! call, but for coalescing's keys, and for bodies in a box: those that tonic's `Channel` wants, and a [`Transport`]'s.

#[cfg(feature = "batch")]
mod batch;
#[cfg(feature = "throttle")]
mod client;
#[cfg(feature = "coalesce")]
mod coalesce;
mod observed;
#[cfg(all(feature = "profile", feature = "shed"))]
mod server;
#[cfg(all(feature = "pool", feature = "throttle"))]
mod transport;

use tower_http::classify::SharedClassifier;

use crate::Flow;
use crate::outcome::GrpcClassifier;
use crate::route::Route;
use crate::timing::{HttpTimingLayer, TimingLayer};

#[cfg(feature = "batch")]
pub use batch::{Batched, batched, batched_with};
#[cfg(feature = "throttle")]
pub use client::{
    GrpcClient, HttpClient, grpc_client, grpc_client_with, http_client, http_client_with,
};
#[cfg(all(feature = "coalesce", feature = "throttle"))]
pub use coalesce::client::{
    GrpcClientCoalesced, HttpClientCoalesced, grpc_client_coalesced, http_client_coalesced,
};
#[cfg(all(feature = "coalesce", feature = "profile", feature = "shed"))]
pub use coalesce::server::{
    GrpcServerCoalesced, HttpServerCoalesced, grpc_server_coalesced, http_server_coalesced,
};
pub use observed::{
    GrpcClientObserved, GrpcServerObserved, grpc_client_observed, grpc_client_observed_with,
    grpc_server_observed, grpc_server_observed_with,
};
#[cfg(all(feature = "profile", feature = "shed"))]
pub use server::{
    GrpcServer, HttpServer, grpc_server, grpc_server_with, http_server, http_server_with,
};
#[cfg(all(feature = "pool", feature = "throttle"))]
pub use transport::{
    Connector, Transport, TransportBody, TransportBuilder, TransportClient, TransportFuture,
    TransportGrpcClient, TransportService,
};

/// Timing per method, as the presets use it.
pub type GrpcTiming = HttpTimingLayer<ByPath, SharedClassifier<GrpcClassifier>>;

/// The request's path is its route: `/pkg.Service/Method`.
#[derive(Debug, Clone, Copy)]
pub struct ByPath;

impl<B> Route<http::Request<B>> for ByPath {
    #[inline]
    fn of<'a>(&self, req: &'a http::Request<B>) -> Option<&'a str> {
        Some(req.uri().path())
    }
}

/// What each gRPC preset has of timing.
fn methods(name: &str, flow: &Flow) -> GrpcTiming {
    let layer = TimingLayer::new(name)
        .route_with(ByPath)
        .max_routes(MAX_METHODS);
    layer.attach(flow).http().grpc()
}

/// As many as accounting learns.
const MAX_METHODS: usize = 512;
