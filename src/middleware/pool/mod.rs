//! How many connections a hyper client or a tonic channel may hold.
//!
//! hyper-util's legacy client, reqwest and tonic have no maximum, and a `ConcurrencyLimitLayer` in the place of a
//! connector caps only how many dials go on at a time: it lets go when the connect future ends. [`ConnPool`] is a client
//! of its own over hyper's connections, with limits that hold: counted from the dial's beginning until the socket is
//! gone. For those who keep another client there is [`limit`].
//!
//! # How it works
//!
//! A pure state machine (`core`) decides, under one short lock; a thin shell drives hyper by what it decides.
//!
//! ```text
//! request ──► place on a connection? ──► 1. HTTP/2 with room, the least loaded
//!                                        2. HTTP/1 idle, the one used last
//!                                        3. wait, first come first served; the pool dials as far as it may
//! dial ──► DNS, TCP, TLS, SETTINGS: one deadline ──► idle ◄──► busy ──► closing ──► gone: the slot is free
//! ```
//!
//! - **Dials belong to the pool**: as many as there are waiters that nothing else will serve, up to the limits. A request
//!   that is dropped takes no dial with it, and a dial nobody waits for any more becomes an idle connection.
//! - **One dial while the protocol is unknown** (TLS with ALPN): a thousand first requests make one handshake and then
//!   share one HTTP/2 connection, or dial in parallel for HTTP/1. What a host speaks is remembered.
//! - **HTTP/2 streams are counted** against what the peer allows at the moment, from its SETTINGS on, and given back at
//!   the end of the response's body. Hosts whose streams are used up get another connection; a connection that got a
//!   GOAWAY takes no more and drains.
//! - **A full pool** closes the connection idle for the longest, of whichever host; when none is idle, hosts that lack
//!   one take turns, and a host makes room for one that has none as soon as a connection of its own has nothing to do.
//! - **A failed dial** fails only those whom nothing else can serve, with its cause. Then the host is left alone for a
//!   while, and requests to it fail at once; after that one dial goes ahead of the others.
//! - **A request that provably was never sent** is tried again elsewhere: its connection closed between the two.
//!
//! # Example
//!
//! ```
//! use http_body_util::{BodyExt, Empty};
//! use tower::{Service, ServiceExt};
//! use tower_flow::pool::{ConnPool, connect};
//!
//! # async fn fetch(uri: http::Uri) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let mut pool = ConnPool::builder(connect::http())
//!     .max_connections_per_host(8)
//!     .build();
//! let req = http::Request::get(uri).body(Empty::<bytes::Bytes>::new())?;
//! let response = pool.ready().await?.call(req).await?;
//! let body = response.into_body().collect().await?.to_bytes();
//! # let _ = body; Ok(()) }
//! ```
//!
//! # Example: a tonic client without a `Channel`
//!
//! Generated clients take any service by `with_origin`. Over a pool they get as many HTTP/2 connections as their streams
//! need, without a buffer in between; `examples/tonic_pool.rs` runs.
//!
//! ```
//! # #[cfg(feature = "tonic")] {
//! use std::time::Duration;
//! use tower_flow::Flow;
//! use tower_flow::pool::{ConnPool, Protocol, connect};
//!
//! let flow = Flow::new("orders");
//! let pool: ConnPool<tonic::body::Body> = ConnPool::builder(connect::http())
//!     .name("stock")
//!     .protocol(Protocol::Http2)
//!     .max_connections_per_host(4)
//!     .max_lifetime(Duration::from_secs(600), 0.1)
//!     .http2(|http2| {
//!         http2.keep_alive_interval(Duration::from_secs(20));
//!     })
//!     .attach(&flow)
//!     .build();
//! // let client = StockClient::with_origin(pool, "http://stock.internal:50051".parse()?);
//! # let _ = pool; }
//! ```
//!
//! # Readiness
//!
//! `poll_ready` is always ready and takes nothing: only the request says which host it is for. Clones share the pool.
//!
//! # Cancellation
//!
//! A dropped response future leaves the queue; what it was granted and had not used goes to the next. A request under way
//! closes its HTTP/1 connection, for which HTTP/1 has no other way, or resets its HTTP/2 stream and leaves the
//! connection. A body dropped half-read keeps its connection when the rest is already there, else the connection closes.
//! With the last clone of a pool idle connections close at once, and those in use after what they carry.
//! [`ConnPool::shutdown`] waits for that, and for the pool's tasks.
//!
//! # Errors
//!
//! [`Error`]: which host, what kind ([`ErrorKind`]), the limit that was in the way, how long it waited and in which phase
//! where it did, whether a retry may help, and the cause as its source. With feature `tonic` a `tonic::Status` is in between, so that callers of a generated client
//! see UNAVAILABLE or RESOURCE_EXHAUSTED.
//!
//! # Metrics
//!
//! All with label `name`. Those that OpenTelemetry names have its names.
//!
//! | name | type | more labels |
//! |---|---|---|
//! | `http_client_open_connections` | gauge | `http_connection_state` (`idle`, `active`); with [`Builder::host_metrics`] `server_address`, `server_port` |
//! | `http_client_active_requests` | gauge | |
//! | `http_client_connection_duration_seconds` | histogram | |
//! | `tower_flow_pool_connections` | gauge | `state` (`dialling`, `idle`, `active`, `draining`, `closing`) |
//! | `tower_flow_pool_max_connections` | gauge | `scope` (`total`, `host`) |
//! | `tower_flow_pool_peak_connections`, `tower_flow_pool_hosts`, `tower_flow_pool_pending_requests` | gauge | |
//! | `tower_flow_pool_reuse_ratio` | gauge | |
//! | `tower_flow_pool_requests_total`, `…_reused_total`, `…_retried_total` | counter | |
//! | `tower_flow_pool_connects_total` | counter | `result` (`ok`, `error`, `timeout`) |
//! | `tower_flow_pool_closed_total` | counter | `reason` ([`CloseReason`]) |
//! | `tower_flow_pool_rejected_total` | counter | `reason` (`queue_full`, `timeout`, `backing_off`, `closed`) |
//! | `tower_flow_pool_wait_seconds` | histogram, of requests that waited | `outcome` (`granted`, `failed`, `timeout`, `closed`) |
//! | `tower_flow_pool_connect_seconds` | histogram | `phase` (`dns`, `connect`, `tls`, `handshake`, `total`), `result` |
//! | `tower_flow_pool_requests_per_connection` | histogram | |
//!
//! Each response carries [`Timings`](crate::phases::Timings) in its extensions, which `timing`'s HTTP form makes
//! histograms of. [`PoolEvents`] has the names of Go's `httptrace`.
//!
//! # Cost
//!
//! A request that finds a connection idle takes the pool's lock twice, to get the connection and to give it back, and that
//! of the connection as often. It spawns nothing and allocates nothing of its own beyond the entries of its response's
//! extensions, which [`Builder::timings`] saves. **Each connection is one task**, which also runs what hyper would spawn
//! for HTTP/2: bodies of requests are polled in it, so that one that blocks or panics does so to its neighbours on the
//! connection. **A pool with anything to wait for has one more task**, which looks at the time. `benches/README.md` has the
//! figures.
//!
//! # Where in the stack
//!
//! Innermost: it is the client. Put `timing`, `throttle` or a retry layer round it;
//! [`preset::Transport`](crate::preset::Transport) does.
//!
//! # Design
//!
//! - Every limit counts from the outside: a connection that dials, drains or is being closed still has a socket. A limit
//!   that a draining connection uses up stalls a host with a limit of 1 until its last stream ends;
//!   [`Builder::draining_allowance`] trades the limit for that.
//! - An HTTP/2 connection is ready when the peer's SETTINGS came, as in gRPC's own implementations. That costs up to a
//!   round trip on a new connection, and no stream is ever refused for being one too many.
//! - An HTTP/1 connection whose answer was read to its end while its request is still being written closes after a second:
//!   the peer may have stopped reading, and nothing else would ever end it.
//! - The upload of a request whose HTTP/2 response ended before it, and the tunnel of a CONNECT, are no streams any more to
//!   the pool, and hyper's own count keeps the peer's limit. The connection is busy till they end.
//! - A host whose HTTP/2 connections never fall idle makes no room for others when the pool is full: draining one for them
//!   would stop its host as long as its longest stream runs, and gain nothing till then. Give the pool more room than it
//!   has hosts.
//! - A pool belongs to runtimes that run. A connection lives in the runtime its first request was sent from, and stands
//!   still when that is blocked or no longer driven.
//! - hyper-util's `client::pool` was not built upon: it has no limits, no clock, and hands out dead connections.

#[doc(hidden)]
pub mod bench;
mod body;
mod builder;
pub mod connect;
mod connection;
mod core;
mod crew;
mod dial;
mod driver;
mod error;
mod events;
mod future;
mod handle;
mod io;
mod keeper;
mod lease;
pub mod limit;
mod link;
mod metrics;
mod request;
mod sender;
mod service;
mod shared;
mod stats;
mod warm;

pub use self::core::CloseReason;
pub use body::ResponseBody;
pub use builder::{Builder, Protocol};
pub use connection::Slot;
pub use crew::Crew;
pub use error::{Error, ErrorKind};
pub use events::PoolEvents;
pub use future::ResponseFuture;
pub use handle::{PoolHandle, PoolSignal};
pub use io::Held;
pub use service::{ConnPool, Unfinished};
pub use stats::{HostStats, PhaseStats, Stats};
