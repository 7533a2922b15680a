//! How many connections a hyper client or a tonic channel may hold.

mod body;
mod builder;
pub mod connect;
mod core;
mod dial;
mod driver;
mod error;
mod events;
mod future;
mod handle;
mod io;
mod keeper;
mod lease;
mod link;
mod metrics;
mod request;
mod service;
mod shared;
mod stats;
mod warm;

pub use self::core::CloseReason;
pub use body::ResponseBody;
pub use builder::{Builder, Protocol};
pub use driver::Crew;
pub use error::{Error, ErrorKind};
pub use events::PoolEvents;
pub use future::ResponseFuture;
pub use handle::{PoolHandle, PoolSignal};
pub use io::PoolIo;
pub use service::{ConnPool, Unfinished};
pub use stats::{HostStats, Stats};
