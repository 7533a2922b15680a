//! Many small requests become one.
//!
//! # How it works
//!
//! The inner service answers [`Batch`]es; the layer makes of it one that answers single requests. An item is accepted in
//! `call` and waits in a queue. When its batch is due, a task asks the inner service whether it is ready, takes as many items
//! as fit, sends them as one request, and hands out the answers.
//!
//! ```text
//!   call ──► queue: i h g f e d ──► due? slot? ready? ──► Batch [d e f] ──► inner service
//!                    items still join                        │
//!   answer ◄──────────────────────────────────────── results, one for each item
//! ```
//!
//! Nothing has to be tuned: a batch is due as soon as none is in flight ([`max_delay`](BatchLayer::max_delay) of 0). At low
//! load an item is sent at once and alone; while the backend is busy the next batch grows, so that its size follows the load.
//! Otherwise a batch is due when it is full, when its oldest item has waited for `max_delay`, when a deadline comes close,
//! when as many items wait as may, or when the [handle](BatchHandle) says so; [`Flush`] tells why.
//!
//! Items of one *shard* ([`shard_by`](BatchLayer::shard_by)) go together, in the order they came. Shards that are due take
//! turns, and one with nothing to do is removed.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_flow::{BoxError, batch::{Batch, BatchLayer}};
//!
//! async fn write(rows: Batch<String>) -> Result<Vec<Result<usize, BoxError>>, BoxError> {
//!     tokio::time::sleep(Duration::from_millis(10)).await;
//!     Ok(rows.iter().map(|row| Ok(row.len())).collect())
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), BoxError> {
//! let layer = BatchLayer::new();
//! let service = ServiceBuilder::new().layer(layer.clone()).service(service_fn(write));
//! let callers = (0..100).map(|n| tokio::spawn(service.clone().oneshot(format!("row {n}"))));
//! for caller in callers.collect::<Vec<_>>() {
//!     assert!(caller.await?? > 4);
//! }
//! assert_eq!(layer.handle().snapshot().batches, 2);
//! # Ok(()) }
//! ```
//!
//! # Example: reads by key, as a DataLoader does them
//!
//! ```
//! use std::{collections::HashMap, convert::Infallible};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_flow::{Flow, batch::{Answers, Batch, BatchLayer}, error::{Reason, find}, Rejection};
//!
//! async fn select(batch: Batch<u64>) -> Result<Answers<&'static str>, Infallible> {
//!     let table = HashMap::from([(1, "one"), (2, "two")]);
//!     let keys = batch.keys(|id| *id);
//!     // SELECT … WHERE id IN (…): in any order, and without those that are not there.
//!     let rows: Vec<_> = batch.iter().filter_map(|id| Some((*id, *table.get(id)?))).collect();
//!     Ok(keys.answer(rows))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_flow::BoxError> {
//! let flow = Flow::new("shop");
//! let layer = BatchLayer::new().dedup_by(|id: &u64| *id).max_items(100).name("rows").attach(&flow);
//! let rows = ServiceBuilder::new().layer(layer).service(service_fn(select));
//! assert_eq!(rows.clone().oneshot(2).await?, "two");
//! let missing = rows.oneshot(3).await.expect_err("there is no third row");
//! assert_eq!(find::<Rejection>(&*missing).map(Rejection::reason), Some(Reason::Missing));
//! # Ok(()) }
//! ```
//!
//! # Example: bytes, tenants, deadlines, and a poison among many
//!
//! ```
//! use std::time::Duration;
//! use tower_flow::batch::{BatchLayer, OnError, Oversize};
//! use tower_flow::deadline::Deadline;
//!
//! #[derive(Clone)]
//! struct Write { tenant: u32, row: Vec<u8>, until: Option<Deadline> }
//!
//! let layer = BatchLayer::new()
//!     .shard_by(|write: &Write| write.tenant)
//!     .max_items(500)
//!     .max_weight(|write| write.row.len(), 1 << 20)
//!     .oversize(Oversize::Alone)
//!     .max_delay(Duration::from_millis(5))
//!     .deadline(|write| write.until, Duration::from_millis(20))
//!     .max_in_flight(8, 1)
//!     .on_error(OnError::Bisect);
//! # let _ = layer;
//! ```
//!
//! # Over the wire
//!
//! Whatever answers a [`Batch`] can be the inner service. Some come with the layer: [`HttpBatch`] makes one HTTP request of it,
//! `GrpcBatch` one unary gRPC call, and `GrpcStreamBatch` messages on a stream that is kept from batch to batch (both with
//! feature `tonic`). [`Destinations`] has one of these for each shard.
//!
//! # Readiness
//!
//! `poll_ready` reserves nothing. It is ready while fewer items wait than the [`queue`](BatchLayer::queue) is for; then
//! callers wait in line, and one is woken for each place that becomes free. Once ready a service stays so until it is called;
//! one that is called late is accepted up to twice as many and refused then, so that what waits is bounded while the backend
//! stands still. A caller that was woken and does not come holds up those behind it until nothing is under way, at most.
//!
//! The inner service is asked by the batch's task, on a fresh clone, when the batch is due and may be sent and *before* it is
//! taken: while the service is not ready, items go on joining, and other shards may have the slot.
//!
//! # Cancellation
//!
//! An item whose future is dropped before its batch is taken leaves at once, with its weight; a batch nobody is left in is not
//! sent. Dropped later it leaves its place, and the batch goes on. Dropping every service and handle changes nothing for
//! items that somebody waits for.
//!
//! # When the runtime goes away
//!
//! No task lives for longer than its batch, so no task's death is the layer's. A batch in flight whose task is dropped answers
//! its items with [`Reason::Abandoned`](crate::error::Reason::Abandoned). What still waited is driven anew by the next of its
//! callers that is polled, in whatever runtime that is, or abandoned, for all of them, where its task is dropped at once, as
//! outside of any runtime, or a second time before it ran. [`caller_driven`](BatchLayer::caller_driven) needs none.
//!
//! A runtime that stands still has not gone away: what its tasks are to send waits, whosever it is, until it runs or is shut
//! down. The task of a shard's next batch begins where that of the one before ran.
//!
//! Delays and deadlines need the timers of a tokio runtime; elsewhere they are looked at when somebody polls.
//!
//! # Errors
//!
//! An item's own error comes boxed. The error of a whole batch is for each of its items, as a
//! [`SharedError`](crate::error::SharedError) with the error as its source, or as it is where there was but one. The layer's
//! own are a [`Rejection`](crate::Rejection) with one of these [reasons](crate::error::Reason): `QueueFull`, `TooLarge`
//! ([`max_weight`](BatchLayer::max_weight)), `Missing` (the answers held none for the item), `Deadline`, `Panicked`,
//! `Abandoned`, and `Closed` after a [drain](BatchHandle::drain).
//!
//! An error, a panic, or a service that fails to be ready is the end of one batch and of nothing else. With
//! [`OnError::Bisect`] a batch that failed is sent again in halves until the items that fail are found.
//!
//! A function of the layer's user that panics in `call`, to weigh an item for instance, panics there, and the item is not
//! accepted.
//!
//! A request that a batch makes of its own layer while it is handled waits for a slot; where its own batch has the last, it
//! waits for ever. Give such requests a layer of their own.
//!
//! # Metrics
//!
//! | name | type | labels |
//! |---|---|---|
//! | `tower_flow_batch_items_total` | counter | `name`, `result` (`ok`, `error`, `missing`, `panic`, `abandoned`, `cancelled`, `expired`, `rejected`) |
//! | `tower_flow_batch_flush_total` | counter: batches taken to be sent | `name`, `reason` (see [`Flush`]) |
//! | `tower_flow_batch_size` | histogram, requests | `name` |
//! | `tower_flow_batch_weight` | histogram | `name` |
//! | `tower_flow_batch_wait_seconds` | histogram, accepted to sent | `name` |
//! | `tower_flow_batch_seconds` | histogram, sent to answered | `name` |
//! | `tower_flow_batch_merged_total` | counter: see [`dedup_by`](BatchLayer::dedup_by) | `name` |
//! | `tower_flow_batch_split_total` | counter: calls for parts of batches | `name` |
//! | `tower_flow_batch_unknown_total` | counter: answers for no item | `name` |
//! | `tower_flow_batch_in_flight` | gauge | `name` |
//! | `tower_flow_batch_shards` | gauge | `name` |
//! | `tower_flow_batch_queued` | gauge | `name` |
//!
//! # Cost
//!
//! **Each batch spawns a task.** An item takes the lock round all shards three times, reads the clock once and allocates
//! nothing; a deadline makes it a timer, 0.2 µs and an allocation. A batch has 11 allocations of its own, whatever its size.
//! Of 200 submitters in batches of 100 an item costs 230 to 270 ns, where a channel and a oneshot cost 137 and an allocation;
//! one that is alone in its batch 1.4 to 1.6 µs. [`OnError::Bisect`] clones every request before it is sent. A shard with an
//! item, its task and its timer takes 1.5 KB, one with nothing to do none, and 100,000 of them cost an item what 1,000 do.
//!
//! # Where in the stack
//!
//! Right round what answers batches. Outside of it what is for single requests: timing and accounting, deadlines, shedding,
//! coalescing. Inside, under batches, what is for calls: timing again, retries of whole batches, limits, pools.
//!
//! A batch is what fails, is late, and is retried together. Whoever must not share that with others, tenants perhaps, is a
//! shard.
//!
//! # Design
//!
//! The road not taken is a worker task fed by a channel, as tower's Buffer has it. It is simpler, and it is one point whose
//! loss is everybody's: a runtime that ends, a panic, or one failed `poll_ready` closes the service for good, and what the
//! channel held is gone. A queue behind a lock has no owner to lose, lets items leave from its middle, and makes the order of
//! shards ours to choose. A task for each batch costs a spawn, and the more there is to do the more items share it.
//!
//! A batch's future could be polled by those who wait for it, as [`coalesce`](crate::coalesce) does. But a flight has one
//! request that all want; items of a batch have nothing in common, and each wake of the call would wake them all. So that is
//! an option, for where tasks are not to be had.

mod board;
mod callers;
mod collector;
mod crew;
mod dedup;
mod desk;
mod destinations;
mod flight;
mod future;
mod gate;
#[cfg(feature = "tonic")]
mod grpc;
mod handle;
mod http;
mod hub;
mod items;
mod layer;
mod list;
mod metrics;
mod plan;
mod request;
mod results;
mod room;
mod sending;
mod service;
mod shard;
mod shards;
mod state;
mod task;

pub use dedup::{Dedup, DedupBy, Distinct};
pub use destinations::{DestinationError, DestinationFuture, Destinations};
pub use future::ResponseFuture;
#[cfg(feature = "tonic")]
pub use grpc::{ById, GrpcBatch, GrpcStreamBatch, GrpcStreamError, Ordered};
pub use handle::{BatchHandle, BatchSnapshot, Drain};
pub use http::{HttpBatch, HttpBatchError, HttpCodec};
pub use layer::BatchLayer;
pub use plan::Plan;
pub use request::{Batch, Flush};
pub use results::{All, Answers, IntoResults, Keys};
pub use sending::Sending;
pub use service::Batched;
pub use state::{OnError, Oversize};

#[cfg(test)]
#[cfg(not(tower_flow_loom))]
mod tests;
