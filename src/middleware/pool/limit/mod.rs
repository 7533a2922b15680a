//! Limits for clients that have a pool of their own.
mod acquire;
mod conn;
mod connector;
mod gate;
mod handle;
mod io;
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
pub use io::Held;
pub use paired::{Paired, PairedFuture, RequestLayer};
pub use request::{LimitedRequests, RequestLimit, RequestPermit, ResponseFuture};
