//! Equal requests in flight become one.
//!
//! # How it works
//!
//! A function gives each request a key, or none. The first request with a key *leads*: it is sent. Those that come with
//! an equal key before it is answered *follow*: they wait for its answer, each gets one of its own, and the backend sees
//! one call.
//!
//! ```text
//!   a ──┐ leads   ┌───────────────────────────────┐
//!   b ──┼─────────┤ flight: readiness, call, future├── one call ──► inner service
//!   c ──┘ follow  └───────────────────────────────┘
//! ```
//!
//! The future of the inner service belongs to the flight, not to its leader. Whichever waiter is polled drives it, one at
//! a time, and what wakes it wakes them all, so that a leader that is dropped, or parked in a `select!` and not polled
//! any more, keeps nobody waiting. No task is spawned, no lock is held while foreign code runs, and a flight nobody
//! follows is polled with its caller's own waker, as if the layer were not there.
//!
//! - [`CoalesceLayer::new`] fits any service. [`Share`] says how one result becomes many: responses are cloned and errors
//!   shared as [`SharedError`](crate::error::SharedError)s unless told otherwise, so neither needs to be `Clone` in the case of errors.
//! - [`CoalesceLayer::http`] makes the key from a GET or HEAD request, decides by the response's headers whether others
//!   may have it (RFC 9111), and lets many read one body.
//! - [`CoalesceLayer::grpc`] does so for unary methods that are listed, or that their descriptor calls free of side
//!   effects.
//!
//! # Example
//!
//! ```
//! use std::{sync::atomic::{AtomicU32, Ordering}, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
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
//!
//! # Example: a policy, a deadline, and what becomes of those who follow
//!
//! ```
//! use std::{io, time::Duration};
//! use tower_flow::coalesce::{Admit, ArcError, CoalesceLayer, KeyBy, OnLeaderDrop, ShareExt as _, Terms};
//! use tower_flow::{Flow, deadline::Deadline, priority::Priority};
//!
//! /// A read of one row; `None` asks for a fresh one.
//! struct Read { row: Option<u64>, until: Option<Deadline>, urgent: bool }
//!
//! #[derive(Clone)]
//! struct ByRow;
//!
//! impl KeyBy<Read> for ByRow {
//!     type Key = u64;
//!
//!     fn key(&self, req: &Read) -> Option<u64> {
//!         req.row
//!     }
//!
//!     fn terms(&self, req: &Read) -> Terms {
//!         let priority = if req.urgent { Priority::Critical } else { Priority::Default };
//!         Terms::default().deadline(req.until).priority(priority)
//!     }
//! }
//!
//! let flow = Flow::new("shop");
//! let layer = CoalesceLayer::new(ByRow)
//!     // A row that was not there may be there for the next who asks.
//!     .share(ArcError.when(|result: &io::Result<String>| match result {
//!         Err(error) if error.kind() == io::ErrorKind::NotFound => Admit::Retry,
//!         _ => Admit::Share,
//!     }))
//!     .on_leader_drop(OnLeaderDrop::Reissue)
//!     .flight_timeout(Duration::from_secs(2))
//!     .max_waiters(10_000)
//!     .name("rows")
//!     .attach(&flow);
//! # let _ = layer;
//! ```
//!
//! # Readiness
//!
//! `poll_ready` is always ready and reserves nothing: which flight a request belongs to is not known there. The inner
//! service is cloned in `call`, and the clone of the one that leads is asked for readiness inside the flight, where all
//! who follow wait for it together. [`Readiness::Eager`] asks in `poll_ready`, for inner services that balance or push
//! back there; then every follower takes what the inner service reserves until it has joined, and behind
//! `ConcurrencyLimit(1)` nothing coalesces.
//!
//! A response future joins when it is first polled; one that never is holds nobody up.
//!
//! # Cancellation
//!
//! A waiter that is dropped leaves its flight, which goes on for the others. When the last has left, the key is free
//! first and the inner future dropped then: whoever comes meanwhile begins anew. What becomes of a flight whose *leader*
//! leaves is set by [`on_leader_drop`](CoalesceLayer::on_leader_drop). With [`OnLeaderDrop::Detach`] a flight ends with
//! its task: by its result, its timeout, or with the runtime.
//!
//! What the calling task has about it, such as a task-local or an entered span, is for whoever polls: work that others
//! drive sees theirs. Where that matters, [`OnLeaderDrop::Detach`] drives in a task that has nothing about it.
//!
//! A deadline ([`Terms::deadline`]; in the HTTP and gRPC forms the extension [`Deadline`](crate::deadline::Deadline) or
//! `grpc-timeout`) ends its own caller's wait and nobody else's. A panic of the inner service goes on in the leader, the
//! others get an error.
//!
//! # Priority
//!
//! A request is sent with the greatest priority of those who wait by then. A caller with a greater one than that joins
//! no flight that was sent with less: it leads another.
//!
//! # Errors
//!
//! An error of the inner service that nobody shares reaches its caller as it is, boxed; all who share one get a
//! [`SharedError`](crate::error::SharedError) with the error as its source, the leader too, or a clone with [`CloneResult`]: look for it with
//! [`find`](crate::error::find). The layer's own are a [`Rejection`](crate::Rejection) with one of
//! these [reasons](crate::error::Reason): `Timeout` (the flight took longer than
//! [`flight_timeout`](CoalesceLayer::flight_timeout)), `Deadline` (this caller's passed), `Abandoned` (the leader left
//! under [`OnLeaderDrop::Fail`], or a task was dropped), `Panicked`, and `Recursion` (a request that would wait for
//! itself, noticed when it is made while its own flight is polled by the same thread).
//!
//! Beyond [`max_keys`](CoalesceLayer::max_keys) nothing is refused: requests go alone, and are counted. Beyond
//! [`max_waiters`](CoalesceLayer::max_waiters) the next leads another flight of the same key.
//!
//! A circle of flights that wait for each other on several threads is not noticed before
//! [`flight_timeout`](CoalesceLayer::flight_timeout).
//!
//! The error type is [`BoxError`](crate::BoxError), whatever the inner service's is. On a server the layer's own errors
//! shall be answers: `respond(true)` in the HTTP and gRPC forms, and the presets, see to that. A tonic server with feature
//! `tonic` reads the status from the errors.
//!
//! # Switched off and on
//!
//! The knob `paused`, and [`CoalesceHandle::pause`], let all requests go alone. A few equal requests that come just after
//! the answer lead a flight of their own: for values, a [`grace`](CoalesceLayer::grace) of some milliseconds gathers them.
//!
//! # Metrics
//!
//! | name | type | labels |
//! |---|---|---|
//! | `tower_flow_coalesce_requests_total` | counter | `name`, `role` (`leader`, `follower`, `bypass`), `reason` of a bypass |
//! | `tower_flow_coalesce_sent_total` | counter: calls made | `name` |
//! | `tower_flow_coalesce_shared_total` | counter: calls saved | `name` |
//! | `tower_flow_coalesce_end_total` | counter | `name`, `how` |
//! | `tower_flow_coalesce_flights` | gauge | `name` |
//! | `tower_flow_coalesce_waiters` | gauge | `name` |
//! | `tower_flow_coalesce_remembered` | gauge: keys known to be unshareable | `name` |
//! | `tower_flow_coalesce_flight_seconds` | histogram, of flights that had to wait | `name` |
//! | `tower_flow_coalesce_wait_seconds` | histogram, of followers | `name` |
//! | `tower_flow_coalesce_body_evicted_total` | counter | `name` |
//!
//! # Cost
//!
//! A call nobody follows takes two locks of a shard and a box that the flight before it used: 105 ns over its service,
//! where a table and a lock alone take 55; no allocation, and no reading of the clock unless it has to wait or has a
//! deadline. A follower
//! costs 256 ns and two polls, and one allocation is shared by all of a flight. What wakes the work wakes all who wait,
//! so work that wakes a hundred times has each of them polled as often: for such work and many followers take
//! [`OnLeaderDrop::Detach`], whose task is woken alone. A flight of a small key, request and future takes 440 bytes in all.
//!
//! # Where in the stack
//!
//! Outside whatever a call costs: throttle, shed, limits, retries, pools. What follows takes no slot, no connection and no
//! retry. Inside timing and accounting, which see every caller. Never outside of authentication: requests that are equal
//! to the layer get each other's answers, the failures too that one of them brought about by what is not in its key. One
//! layer round services that answer the same request differently needs
//! [`per_service`](CoalesceLayer::per_service).
//!
//! # Design
//!
//! The road not taken is a task for each flight. It survives its callers by nature, but costs an allocation and two hops
//! for every call that nobody follows, and a runtime. Handing a baton from a leader that is dropped to the next waiter
//! costs less than waking all, and leaves everybody stuck behind a leader that lives and is not polled.

mod body;
mod courier;
mod exact;
mod flight;
mod future;
mod grpc;
mod handle;
mod hot;
mod http;
mod hub;
mod key;
mod known;
mod layer;
mod listed;
mod map;
mod memory;
mod metrics;
mod nest;
mod service;
mod shard;
mod share;
mod state;
mod target;
mod terms;
mod work;

// Its page is where the gRPC layer is; without that it is here.
#[doc(no_inline)]
pub use crate::base::descriptor::DescriptorError;
pub use body::SharedBody;
pub use future::ResponseFuture;
pub use grpc::{
    GrpcBody, GrpcCoalesce, GrpcCoalesceLayer, GrpcKey, GrpcRequestKey, GrpcResponseFuture,
    GrpcShare,
};
pub use handle::{CoalesceHandle, CoalesceSnapshot};
pub use http::{HttpKey, HttpRequestKey, HttpShare};
pub use key::{Facts, KeyBy, Terms};
pub use layer::CoalesceLayer;
pub use listed::Credentials;
pub use service::Coalesce;
pub use share::{Admit, ArcError, CloneResult, Gone, Keep, Share, ShareExt, When};
pub use state::{OnLeaderDrop, Readiness};

#[cfg(test)]
#[cfg(not(tower_flow_loom))]
mod tests;
