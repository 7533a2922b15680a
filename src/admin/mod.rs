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

mod path;
mod serve;
mod service;

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::base::flow::Flow;

pub use serve::AdminServer;
pub use service::AdminService;

/// The live endpoint of a [`Flow`], made by [`Flow::admin`]; see [the module](crate::admin).
#[derive(Debug, Clone)]
#[must_use = "serve it, bind it, or nest its service"]
pub struct Admin {
    flow: Flow,
    remote: bool,
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
        }
    }
}

impl Admin {
    /// Loopback only (default), or any address. Let nobody reach it whom the numbers do not concern.
    pub fn allow_remote(mut self) -> Self {
        self.remote = true;
        self
    }

    /// The endpoint as a tower service, for a server of one's own.
    pub fn service(&self) -> AdminService {
        AdminService::new(self.flow.clone())
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
        AdminServer::bind(addr, self.service())
            .await
            .map_err(|error| AdminError::Bind(addr, error))
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
