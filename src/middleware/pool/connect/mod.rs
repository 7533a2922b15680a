//! Connectors that tell what a dial is doing: looking up names, connecting, TLS.
//!
//! # How it works
//!
//! A connector is a `Service<Uri>` whose response is a connection's IO, as hyper-util's are. Those here find the
//! [`Dial`](crate::phases::Dial) they are polled for and mark its phases; without one they only connect. They are made
//! to be put together:
//!
//! ```text
//! https()    TlsConnector      tls      TLS for https, nothing for http
//! tcp()        └─ Connect      connect  from the end of DNS until there is a socket
//!                   └─ HttpConnector    hyper-util's: happy eyeballs, sockets and their options
//!                        └─ Resolve  dns
//!                             └─ GaiResolver    or a resolver of your own
//! ```
//!
//! [`http()`] is `tcp` for clients that never speak TLS: it refuses `https`, which would otherwise be sent in the clear.
//!
//! # Example
//!
//! ```
//! use tower::ServiceExt;
//! use tower_flow::clock;
//! use tower_flow::phases::{Dial, Phase};
//! use tower_flow::pool::connect;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_flow::BoxError> {
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let uri = format!("http://{}/", listener.local_addr()?).parse()?;
//!
//! let dial = Dial::new(clock::now());
//! let io = dial.scope(connect::http().oneshot(uri)).await?;
//! assert!(dial.duration(Phase::Connect).is_some());
//! assert_eq!(dial.duration(Phase::Dns), None, "an address needs no look-up");
//! # drop(io); Ok(()) }
//! ```
//!
//! # Example: a resolver of your own, bounded, and options of the socket
//!
//! ```
//! use std::net::SocketAddr;
//! use std::time::Duration;
//! use hyper_util::client::legacy::connect::{HttpConnector, dns::Name};
//! use tower_flow::pool::connect::{Connect, Resolve};
//!
//! let resolver = tower::service_fn(async |_: Name| {
//!     Ok::<_, std::io::Error>(std::iter::once(SocketAddr::from(([127, 0, 0, 1], 0))))
//! });
//! let resolver = Resolve::new(resolver).timeout(Duration::from_secs(2));
//! let mut sockets = HttpConnector::new_with_resolver(resolver);
//! sockets.set_nodelay(true);
//! let connector = Connect::new(sockets).plain();
//! # let _ = connector;
//! ```
//!
//! # Readiness
//!
//! `poll_ready` is the inner connector's.
//!
//! # Cancellation
//!
//! A dial that is dropped closes what it has opened so far. A look-up by `getaddrinfo` goes on in its thread, as there
//! is no way to stop one; nobody waits for it any more.
//!
//! # Errors
//!
//! All are [`BoxError`](crate::BoxError)s: those of the inner connector or resolver as they are, [`NoHttps`],
//! [`ResolveTimeout`], and with feature `tls` `TlsError`, which says what is wrong, with which host, and has the
//! `rustls::Error` as its source.
//!
//! # Cost
//!
//! Two atomics and a clock reading for each phase of a dial; nothing for requests.
//!
//! # Design
//!
//! None of them limits the time of connecting: hyper-util divides its connect timeout by the number of addresses, and
//! the pool has one deadline over all of a dial, which also says the phase in which it passed.

mod resolve;
mod socket;
#[cfg(feature = "tls")]
mod tls;

pub use resolve::{Resolve, ResolveTimeout, Resolving};
pub use socket::{Connect, Connecting, NoHttps, Tcp, http, tcp};
#[cfg(feature = "tls")]
pub use tls::{
    Alpn, Https, TlsConnecting, TlsConnector, TlsError, TlsErrorKind, TlsIo, client_config, https,
    rustls,
};
