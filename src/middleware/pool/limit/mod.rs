//! Limits for clients that have a pool of their own: hyper-util's legacy `Client`, tonic's channels, reqwest.
//!
//! # How it works
//!
//! None of these clients limits its connections. hyper-util's dials whenever no connection is idle, and the
//! `ConcurrencyLimitLayer` that is often put round its connector limits dials: it forgets a connection once it is made.
//!
//! [`ConnLimit`] is two layers. The [`connector_layer`](ConnLimit::connector_layer) grants a dial a permit, and puts
//! the permit into the IO it makes. So a place is taken from the first packet of a dial until the socket is closed,
//! whatever became of the connection in between: idle in a pool, drained after a GOAWAY, upgraded. Dials that find no
//! room wait, first come first served for each host, and hosts that wait for the total take turns.
//!
//! hyper-util's client waits for two things at once, its dial and the return of a connection. If the second is first it
//! leaves the dial to a task of its own, which would queue for ever: a *ghost*. The
//! [`request_layer`](ConnLimit::request_layer) notes which requests are being polled. A dial that was begun inside one
//! and is polled outside of any is such a ghost, and ends at once.
//!
//! ```text
//!   request_layer ── Client ── connector_layer ── TLS ── HttpConnector
//!        │             │ pool       │
//!        │             └── IO(permit)         ConnLimit: held ≤ max_connections, for each host ≤ …_per_host
//!        └─ notes who is polled ────┘
//! ```
//!
//! [`RequestLimit`] is for clients whose connections are out of reach: it limits requests, each until its response's
//! body ends.
//!
//! # Example: hyper-util's client
//!
//! ```
//! use http_body_util::Empty;
//! use hyper_util::client::legacy::{Client, connect::HttpConnector};
//! use hyper_util::rt::{TokioExecutor, TokioTimer};
//! use tower::{Layer, ServiceBuilder};
//! use tower_flow::pool::limit::ConnLimit;
//!
//! let limit = ConnLimit::new(512);
//! let connector = limit.connector_layer().layer(HttpConnector::new());
//! let client: Client<_, Empty<bytes::Bytes>> = Client::builder(TokioExecutor::new())
//!     .pool_timer(TokioTimer::new()) // or idle connections are never closed
//!     .build(connector);
//! let client = ServiceBuilder::new().layer(limit.request_layer()).service(client);
//! # let _ = client;
//! ```
//!
//! # Example: tonic's channels, and options
//!
//! ```
//! # #[cfg(feature = "tonic")] {
//! use std::time::Duration;
//! use hyper_util::client::legacy::connect::HttpConnector;
//! use tower::Layer;
//! use tower_flow::{Flow, pool::limit::ConnLimit};
//!
//! # async fn connect() -> Result<(), tonic::transport::Error> {
//! let limit = ConnLimit::new(64)
//!     .name("backends")
//!     .max_connections_per_host(2)
//!     .acquire_timeout(Duration::from_secs(2))
//!     .attach(&Flow::new("orders"));
//! let mut http = HttpConnector::new();
//! http.enforce_http(false);
//! let connector = limit.connector_layer().layer(http);
//! let channel = tonic::transport::Endpoint::from_static("http://stock.test:50051")
//!     .connect_with_connector(connector)
//!     .await?;
//! # let _ = channel; Ok(()) } }
//! ```
//!
//! A channel keeps its one connection for ever, so more channels than permits means that the last ones never connect,
//! and a limit of 1 for a host means that nothing can be asked while a connection the server has sent away still has a
//! stream: the channel waits for its next connection, and all its calls with it. A channel waits for its own dial and
//! leaves no ghosts, so it needs no request layer. `Channel::balance_list` takes no connector and cannot be limited.
//!
//! # Example: reqwest
//!
//! ```
//! use bytes::Bytes;
//! use http_body_util::BodyExt;
//! use tower_flow::{BoxError, pool::limit::RequestLimit};
//!
//! async fn get(client: &reqwest::Client, limit: &RequestLimit, url: &str) -> Result<Bytes, BoxError> {
//!     let permit = limit.acquire(&url.parse()?).await?;
//!     let response: http::Response<reqwest::Body> = client.get(url).send().await?.into();
//!     Ok(permit.hold(response).into_body().collect().await?.to_bytes())
//! }
//! ```
//!
//! As a layer it fits every `Service<http::Request<B>>` that answers with an `http::Response`. This makes one of
//! reqwest:
//!
//! ```
//! use tower::{Layer, service_fn};
//! use tower_flow::pool::limit::RequestLimit;
//!
//! # fn adapt(client: reqwest::Client) {
//! let adapted = service_fn(move |req: http::Request<reqwest::Body>| {
//!     let client = client.clone();
//!     async move {
//!         let response = client.execute(req.try_into()?).await?;
//!         Ok::<http::Response<reqwest::Body>, reqwest::Error>(response.into())
//!     }
//! });
//! let limited = RequestLimit::new(512).max_requests_per_host(64).layer(adapted);
//! # let _ = limited; }
//! ```
//!
//! Why there is no connector layer for reqwest: what `ClientBuilder::connector_layer` takes must be a
//! `Service<Unnameable, Response = Conn>`, and both are private types of reqwest's. A layer can delay a dial or fail
//! it. It cannot see where the dial goes, and it cannot wrap the connection, so it never learns when that is closed.
//!
//! Why a limit of requests is not one of connections: a body ends, and its permit with it, a moment before the
//! connection is idle again, so the next request may find none and dial; a dial that is overtaken by a returned
//! connection goes on and becomes an idle one; and idle connections are not requests. With HTTP/1 expect a few
//! connections more than requests; `pool_max_idle_per_host` bounds how many stay.
//!
//! # Readiness
//!
//! The connector and [`LimitedRequests`] are always ready, since in `poll_ready` the host is not known. A permit is
//! asked for in `call` and waited for in the future, and then the inner service's readiness, on a clone. [`Paired`] is
//! as ready as its client.
//!
//! # Cancellation
//!
//! Whoever stops waiting leaves the queue and gives nothing away; a permit that was granted and not taken goes to the
//! next. A dial that fails gives its permit back in that poll; one that is dropped, or panics and then is dropped, when
//! nothing is left of it. A connection gives it back after its IO is dropped. A request gives it back when its body
//! ends, fails or is dropped, when its future fails or is dropped, or in the unwinding of a panic. The answer to a
//! request that upgrades has no body: only [`ConnLimit`] counts what comes after it.
//!
//! # Errors
//!
//! What gets no permit fails with a [`BoxError`](crate::BoxError) that holds a [`Rejection`](crate::Rejection) of layer
//! `pool`; in hyper-util's and tonic's errors it is among the sources.
//!
//! | [`Reason`](crate::error::Reason) | when |
//! |---|---|
//! | `QueueFull` | `max_pending_per_host` wait for that host already |
//! | `QueueTimeout` | there was no room within `acquire_timeout` |
//! | `Closed` | the limit was [closed](LimitHandle::close) |
//!
//! Errors of the inner service pass through, boxed.
//!
//! # Metrics
//!
//! All with labels `name` and `of` (`connections`, `requests`):
//!
//! | name | type |
//! |---|---|
//! | `tower_flow_pool_limit_max`, `…_max_per_host` | gauge |
//! | `tower_flow_pool_limit_held`, `…_waiting`, `…_hosts` | gauge |
//! | `tower_flow_pool_limit_connections` (and `state`: `open`, `dialling`) | gauge |
//! | `tower_flow_pool_limit_granted_total`, `…_abandoned_total` | counter |
//! | `tower_flow_pool_limit_refused_total` (and `reason`: `queue_full`, `queue_timeout`, `closed`) | counter |
//! | `tower_flow_pool_limit_ghosts_total`, `…_failed_dials_total`, of connections | counter |
//! | `tower_flow_pool_limit_wait_seconds`, of those granted after a wait | histogram |
//!
//! No host is a label. The snapshot lists the 64 busiest; knobs `max` and `max_per_host` change the limits.
//!
//! # Cost
//!
//! A permit that is free takes a lock and a hash look-up to get and a lock to give back, and allocates nothing for a
//! host that was asked before. A dial takes one lock more when it has become a connection, and a clone of the
//! connector. A wait allocates a timer, reads the clock twice, and takes a lock each time it is polled. Reads and
//! writes pass straight through. The request layer notes an address in its thread for the time of a poll: no lock, no
//! clock.
//!
//! Waits are timed by tokio: they need its timer.
//!
//! # Where in the stack
//!
//! The connector layer goes outside of TLS and proxies, so that handshakes count. The request layer goes round the
//! client, inside everything that hands requests to other tasks. A timeout of dials goes inside the connector layer, or
//! a dial that hangs keeps its place; a timeout of requests goes outside of both, since a wait is time of the
//! request's. A [`RequestLimit`] goes inside retries and throttling, so that who waits to try again holds nothing.
//!
//! # Limits of the limits
//!
//! - What is idle in a client's pool keeps its place, and nobody outside can close it for another host: under the total
//!   a host may have to wait for that until its time is up. Give hyper-util's client a `pool_timer` and a short
//!   `pool_idle_timeout`, make the total the sum of what the hosts need, or set a
//!   [reserve](ConnLimit::reserve_per_host).
//! - Without the request layer ghosts end after `acquire_timeout`. Until then they stand in the queue, and keep a client
//!   alive that was dropped.
//! - A ghost that has its permit goes on: its connection becomes an idle one of the pool, within the limits.
//!
//! # Design
//!
//! Ghosts could be counted instead: of a host's queued dials as many are ghosts as exceed its unanswered requests, the
//! oldest first. That costs a lock for each request, sees a ghost only when enough requests are answered, and can end
//! the wrong dial: when a request is handed a connection that has just been closed, hyper-util's client waits on for
//! that request's own dial, which may be the oldest then while younger ones are ghosts. Whether somebody polls a dial
//! says the same exactly, at once, and for nothing.

mod acquire;
mod conn;
mod connector;
mod gate;
mod handle;
mod metrics;
mod origin;
mod paired;
mod permit;
mod request;
mod scope;
mod state;

pub use conn::ConnLimit;
pub use connector::{Connector, ConnectorFuture, ConnectorLayer};
pub use handle::{HostSnapshot, LimitHandle, LimitSnapshot};
pub use paired::{Paired, PairedFuture, RequestLayer};
pub use permit::Permit;
pub use request::{LimitedRequests, RequestLimit, RequestPermit, ResponseFuture};
