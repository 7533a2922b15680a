//! The state of every connection: open, idle or active, how old, how many bytes and streams, when it last did anything.
//!
//! # How it works
//!
//! [`Connections`] is a list of the connections of one listener or one client. It wraps their IO: on the accept side
//! with [`accept`](Connections::accept) or [`incoming`](Connections::incoming), on the other with the
//! [`connector`](Connections::connector) layer. A connection is open from there until its IO is dropped. What the
//! wrapper sees are bytes; the requests on a connection are counted by [`streams`](Connections::streams), a layer that
//! finds the connection in the request's extensions, or by [`Connection::service`], which is given it.
//!
//! # Example: a tonic server
//!
//! ```
//! # #[cfg(feature = "tonic")] {
//! use tower_flow::{Flow, connection::Connections};
//!
//! # async fn serve(routes: tonic::service::Routes) -> Result<(), Box<dyn std::error::Error>> {
//! let flow = Flow::new("orders");
//! let connections = Connections::server("grpc").attach(&flow);
//! let incoming = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse()?)?;
//! tonic::transport::Server::builder()
//!     .layer(connections.streams())
//!     .add_routes(routes)
//!     .serve_with_incoming(connections.incoming(incoming))
//!     .await?;
//! # Ok(()) } }
//! ```
//!
//! tonic knows the peer's address by the type of the IO's connect info, which the wrapper changes; the `streams` layer
//! puts the original back into the request, so that `Request::remote_addr` answers as before. Keep the two together. For
//! TLS, wrap the stream after its handshake: `Tracked<TlsStream<TcpStream>>` gives back the peer's certificates too,
//! while tonic's own TLS round a tracked stream does not find them.
//!
//! # Example: a hyper client
//!
//! ```
//! # #[cfg(feature = "hyper")] {
//! use hyper_util::client::legacy::{Client, connect::HttpConnector};
//! use hyper_util::rt::TokioExecutor;
//! use tower::ServiceBuilder;
//! use tower_flow::{Flow, connection::Connections};
//!
//! let connections = Connections::client("stock").attach(&Flow::new("orders"));
//! let connector = ServiceBuilder::new()
//!     .layer(connections.connector())
//!     .service(HttpConnector::new());
//! let client: Client<_, http_body_util::Empty<bytes::Bytes>> =
//!     Client::builder(TokioExecutor::new()).build(connector);
//! # let _ = client; }
//! ```
//!
//! # Readiness and cancellation
//!
//! `poll_ready` is the inner service's. A dial that is dropped before it ends counts as failed. A stream ends where its
//! response body does.
//!
//! # Metrics
//!
//! All with labels `name` and `side` (`server`, `client`):
//!
//! | name | type |
//! |---|---|
//! | `tower_flow_connections_opened_total`, `…_closed_total`, `…_failed_total` | counter |
//! | `tower_flow_connections_open` | gauge |
//! | `tower_flow_connections_bytes_total` (and `direction`) | counter |
//! | `tower_flow_connections_streams_total` | counter |
//! | `tower_flow_connections_age_seconds`, of closed ones | histogram |
//! | with [`otel`](Connections::otel): `grpc_subchannel_{disconnections,connection_attempts_succeeded,connection_attempts_failed}_total`, `grpc_subchannel_open_connections`, by `grpc_target` | |
//!
//! # Cost
//!
//! Opening and closing take a lock and an allocation. Each read and write reads the clock and adds to two counters of
//! the connection's own. A stream adds to two counters, after a look into the request's extensions.

mod connector;
mod facts;
mod incoming;
mod io;
mod list;
mod streams;

pub use connector::{Connector, ConnectorFuture, ConnectorLayer};
pub use facts::{Connection, ConnectionState};
pub use incoming::Incoming;
#[cfg(feature = "tonic")]
pub use io::ConnectInfo;
pub use io::Tracked;
pub use list::{ConnectionSnapshot, Connections, ConnectionsSnapshot};
pub use streams::{Stream, Streams, StreamsLayer, StreamsWatch};
