//! The live endpoint: `/metrics`, `/snapshot.json`, `/healthz`.
//!
//! # Example
//!
//! ```
//! use tower_flow::Flow;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let flow = Flow::new("orders");
//! let server = flow.admin().bind("127.0.0.1:0".parse()?).await?;
//! println!("live on http://{}/", server.local_addr());
//! tokio::spawn(server.run());
//! # Ok(()) }
//! ```
//!
//! [`Admin::serve`] does both in one call; [`Admin::service`] is the same as a tower service, to nest in a router.
//!
//! # Paths
//!
//! | path | answer |
//! |---|---|
//! | `/` | a list of the others |
//! | `/metrics` | all metrics, in the format the scraper likes best ([`Format::negotiate`](crate::metrics::Format)) |
//! | `/snapshot.json` | all layers as JSON, as below |
//! | `/healthz` | `ok` |
//!
//! Unknown paths are 404, methods other than GET and HEAD 405; both say what there is.
//!
//! ```json
//! {"service": "orders", "version": "0.1.0", "uptime": 12.5,
//!  "layers": [{"kind": "grpc", "name": "server", "state": {"methods": [{"service": "shop.Orders", "…": 0}]}}]}
//! ```
//!
//! Times are seconds, ratios lie within 0 and 1. Keys are kept from release to release; new ones may come.
//!
//! # Limits
//!
//! It binds loopback addresses only, unless [`allow_remote`](Admin::allow_remote) is called: whoever reaches it reads
//! all of it. A connection carries one request, whose headers may take 5 seconds and 16 KiB, and ends after 15 seconds.
//! At most 64 are open at a time; for a further one the oldest is closed. So nobody holds the endpoint by being slow,
//! large or many.
//!
//! # Cancellation
//!
//! Dropping the future of `serve` or `run` closes the listener and every connection.

mod access;
mod body;
mod link;
mod live;
mod path;
mod query;
mod read;
mod scalar;
mod serve;
mod service;

use std::fmt;
use std::io;
use std::net::SocketAddr;

use access::{Access, Token};

use crate::base::flow::Flow;

pub use body::AdminBody;
pub use serve::AdminServer;
pub use service::{AdminFuture, AdminService};

/// The live endpoint of a [`Flow`], made by [`Flow::admin`]; see [the module](crate::admin).
#[derive(Debug, Clone)]
#[must_use = "serve it, bind it, or nest its service"]
pub struct Admin {
    flow: Flow,
    remote: bool,
    access: Access,
    max_events: usize,
}

/// Why the endpoint is not served.
#[derive(Debug)]
#[non_exhaustive]
pub enum AdminError {
    /// The address is not of this machine's loopback, and remote access was not allowed.
    NotLoopback(SocketAddr),
    /// The address could not be bound.
    Bind(SocketAddr, io::Error),
}

impl Flow {
    /// The live endpoint.
    pub fn admin(&self) -> Admin {
        Admin {
            flow: self.clone(),
            remote: false,
            access: Access::default(),
            max_events: 128,
        }
    }
}

impl Admin {
    /// Loopback only (default), or any address. Let nobody reach it whom the numbers do not concern, or set a
    /// [`token`](Self::token) and make it [`private`](Self::private); what travels is not encrypted.
    pub fn allow_remote(mut self) -> Self {
        self.remote = true;
        self
    }

    /// No token (default): knobs are only shown, and profiles are for this machine. With one, whoever has it may turn
    /// knobs and take profiles: as `Authorization: Bearer …`, or in the cookie that the page gets for it.
    ///
    /// Take at least 16 random characters, from the environment or a file, never from the source.
    ///
    /// # Panics
    ///
    /// When it is shorter than 16 characters or longer than 512, or has some that a cookie cannot have: others than
    /// visible ASCII, quotes, commas, semicolons, backslashes.
    pub fn token(mut self, token: impl AsRef<str>) -> Self {
        self.access.token = Some(Token::new(token.as_ref()));
        self
    }

    /// All may read (default), or only those with the [`token`](Self::token); without a token nobody then. `/healthz`,
    /// and the page before it is unlocked, which tells nothing, are for all.
    pub fn private(mut self) -> Self {
        self.access.private = true;
        self
    }

    /// Answers to addresses, `localhost` and what ends in `.localhost` (default), and to this name too: that of the
    /// machine, when it is reached by it. Call it once for each.
    ///
    /// # Panics
    ///
    /// When it is no host name: it has neither scheme nor port.
    pub fn host(mut self, name: impl AsRef<str>) -> Self {
        self.access.name(name.as_ref());
        self
    }

    /// At most 128 (default) clients of `/events` at a time; others are told to come back. With 0 there is no live
    /// page.
    pub fn max_events(mut self, max: usize) -> Self {
        self.max_events = max;
        self
    }

    /// The endpoint as a tower service, for a server of one's own. Clones share their clients of `/events`; one made by
    /// another call does not.
    pub fn service(&self) -> AdminService {
        AdminService::new(self.flow.clone(), self.access.clone(), self.max_events)
    }

    /// Binds `addr`; port 0 takes any free one.
    ///
    /// # Errors
    ///
    /// When the address is not loopback or cannot be bound.
    pub async fn bind(self, addr: SocketAddr) -> Result<AdminServer, AdminError> {
        if !self.remote && !addr.ip().is_loopback() {
            return Err(AdminError::NotLoopback(addr));
        }
        AdminServer::bind(addr, self.service()).map_err(|error| AdminError::Bind(addr, error))
    }

    /// Binds `addr` and serves until the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    pub async fn serve(self, addr: SocketAddr) -> Result<(), AdminError> {
        self.bind(addr).await?.run().await;
        Ok(())
    }
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLoopback(addr) => write!(
                f,
                "{addr} is no loopback address; bind 127.0.0.1 or call allow_remote if whoever reaches it may read all"
            ),
            Self::Bind(addr, error) => {
                write!(
                    f,
                    "cannot bind {addr}: {error}; choose another port, or 0 for any free one"
                )
            }
        }
    }
}

impl std::error::Error for AdminError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotLoopback(_) => None,
            Self::Bind(_, error) => Some(error),
        }
    }
}
