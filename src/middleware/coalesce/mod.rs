//! Equal requests in flight become one.
//!
//! ```
//! use std::{sync::atomic::{AtomicU32, Ordering}, time::Duration};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_flow::{BoxError, coalesce::CoalesceLayer};
//!
//! static CALLS: AtomicU32 = AtomicU32::new(0);
//!
//! async fn read(id: u32) -> Result<String, std::io::Error> {
//!     CALLS.fetch_add(1, Ordering::Relaxed);
//!     tokio::time::sleep(Duration::from_millis(10)).await;
//!     Ok(format!("row {id}"))
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), BoxError> {
//! let layer = CoalesceLayer::new(|id: &u32| Some(*id));
//! let service = ServiceBuilder::new().layer(layer.clone()).service(service_fn(read));
//! let callers = (0..100).map(|_| tokio::spawn(service.clone().oneshot(7)));
//! for caller in callers.collect::<Vec<_>>() {
//!     assert_eq!(caller.await??, "row 7");
//! }
//! assert_eq!(CALLS.load(Ordering::Relaxed), 1);
//! assert_eq!(layer.handle().snapshot().shared, 99);
//! # Ok(()) }
//! ```

mod courier;
mod flight;
mod future;
mod handle;
mod hot;
mod hub;
mod key;
mod layer;
mod map;
mod memory;
mod metrics;
mod nest;
mod service;
mod shard;
mod share;
mod state;
mod work;

pub use future::ResponseFuture;
pub use handle::{CoalesceHandle, CoalesceSnapshot};
pub use key::{Facts, KeyBy, Terms};
pub use layer::CoalesceLayer;
pub use service::Coalesce;
pub use share::{Admit, ArcError, CloneResult, Share, ShareExt, SharedError, When};
pub use state::{OnLeaderDrop, Readiness};
