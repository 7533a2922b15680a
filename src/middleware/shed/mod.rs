//! How many requests run, who waits, and who is refused: a service that keeps its goodput at ten times its load.
//!
//! # How it works
//!
//! ```text
//!             bypass ────────────────────────────────────────────▶ service
//!  request ─▶ triage ─▶ signals ─▶ gate ──── a slot is free ─────▶ service ─▶ end ─▶ window ─▶ limit
//!                          │        └─ full ─▶ queue ─▶ granted ─▶   ▲                           │
//!                          ▼                     ▼                   └──────── the gate ◀────────┘
//!                       refused               refused
//! ```
//!
//! - The *gate* is one word: in flight, limit, and whether anybody waits. One compare-and-swap admits. A limit that
//!   changes holds at once; a greater one wakes as many as it frees slots for. All services of one layer share it.
//! - The [*limit*](limit) comes from an algorithm that looks at windows of finished requests. The default,
//!   [`Bdp`](limit::Bdp), finds it by itself.
//! - The [*queue*](Queue) is bounded. Partitions below their share go first, then higher priorities. A request that
//!   cannot finish before its deadline is refused, not run.
//! - [*Signals*](crate::signal) from outside lower the limit and shed what can be done later. They never raise it.
//! - An end is judged by a [`Verdict`]: what failed fast is never a sample, a timeout is a sign of overload.
//! - An HTTP request holds its slot until its response's body has ended; long-lived streams hold slots of their own pool
//!   and are never samples.
//!
//! # Example
//!
//! ```
//! use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};
//! use tower_flow::{Flow, shed::ShedLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_flow::BoxError> {
//! let flow = Flow::new("orders");
//! let layer = ShedLayer::adaptive().name("inbound").attach(&flow);
//! let mut service = layer.layer(service_fn(async |n: u32| Ok::<_, std::io::Error>(n + 1)));
//! assert_eq!(service.ready().await?.call(1).await?, 2);
//! # Ok(()) }
//! ```
//!
//! # Example: everything at once
//!
//! ```
//! use http::HeaderName;
//! use std::time::Duration;
//! use tower_flow::shed::limit::{Bdp, Bounded};
//! use tower_flow::shed::{Queue, ShedLayer};
//! use tower_flow::signal::Pressure;
//!
//! let layer = ShedLayer::new(Bounded::new(Bdp::default(), 8..=2_000))
//!     .queue(Queue::codel().max(256).timeout(Duration::from_millis(500)))
//!     .partition("batch", 0.1)
//!     .pressure(Pressure::cpu())
//!     .dry_run(true)
//!     .grpc()
//!     .streaming(["/orders.v1.Orders/Watch"])
//!     .priority_header(HeaderName::from_static("x-priority"))
//!     .partition_header(HeaderName::from_static("x-tenant"));
//!
//! // What it would refuse can be seen first; then it is let loose, while it runs.
//! let handle = layer.handle();
//! assert!(handle.snapshot().would_refuse.is_empty());
//! handle.dry_run(false);
//! ```
//!
//! # Readiness
//!
//! `poll_ready` is always ready and takes nothing: a thousand clones that were polled and never called take no capacity.
//! Whether a request is let in is decided in `call`, where its priority and deadline are known. The inner service's
//! readiness is awaited in the future, on a clone of it, with the slot in hand.
//!
//! # Cancellation
//!
//! A future dropped while it waits gives its place up, and passes on a slot that was granted in the same instant. Dropped
//! while it runs, or with its body half read, it gives its slot back; so do errors and panics. Going away near the
//! deadline (80 % of it), or after twice the 90th percentile, counts as a sign of overload; going away early says
//! nothing.
//!
//! # Errors
//!
//! The plain form and [`Reject::error`] refuse with a [`Rejection`](crate::Rejection); see
//! [`Reason`](crate::error::Reason). With feature `tonic` its source is a `tonic::Status`, so a tonic server answers it
//! properly. The HTTP form answers 503 with `Retry-After` (429 when a partition has used its share, 504 when the deadline
//! cannot be met); the gRPC form answers UNAVAILABLE with `grpc-retry-pushback-ms` (RESOURCE_EXHAUSTED,
//! DEADLINE_EXCEEDED), in the headers alone. Both keep the service's own error type. What is left of a refused HTTP/1
//! request's body is read, at most 64 KiB and 250 ms; beyond that the connection is closed after the answer.
//!
//! Hooks that panic are counted and say nothing; a limit algorithm that panics leaves the limit where it is. Signals that
//! stop, panic or say nonsense press nobody.
//!
//! # Tasks
//!
//! **While requests wait, and for a second after, one task for each tokio runtime they wait on looks after the end of
//! their waits.** It is spawned by the first that waits; the runtime must have time enabled. Without a runtime nobody's
//! time is up by itself; those who waited too long are refused when a slot comes free.
//!
//! # Metrics
//!
//! All have the label `name`.
//!
//! | name | type | further labels |
//! |---|---|---|
//! | `tower_flow_shed_limit`, `tower_flow_shed_limit_effective` | gauge | |
//! | `tower_flow_shed_inflight`, `tower_flow_shed_streams` | gauge | |
//! | `tower_flow_shed_queue_depth` | gauge | `priority` |
//! | `tower_flow_shed_admitted_total` | counter | `priority` |
//! | `tower_flow_shed_rejected_total` | counter | `reason`, `priority` |
//! | `tower_flow_shed_would_reject_total` | counter | `reason` |
//! | `tower_flow_shed_outcomes_total` | counter | `outcome` (`success`, `overload`, `ignore`, `cancelled`) |
//! | `tower_flow_shed_streams_admitted_total`, `tower_flow_shed_streams_rejected_total`, `tower_flow_shed_streams_would_reject_total` | counter | |
//! | `tower_flow_shed_abandoned_total`, `tower_flow_shed_bypassed_total`, `tower_flow_shed_malformed_total`, `tower_flow_shed_panics_total` | counter | |
//! | `tower_flow_shed_queue_wait_seconds` | histogram | |
//! | `tower_flow_shed_rtt_floor_seconds`, `tower_flow_shed_rtt_window_seconds`, `tower_flow_shed_gradient`, `tower_flow_shed_probe_active` | gauge | |
//! | `tower_flow_shed_pressure`, `tower_flow_shed_pressure_state` | gauge | `signal` |
//! | `tower_flow_shed_signal_stale_total`, `tower_flow_shed_signal_failures_total` | counter | `signal` |
//! | `tower_flow_shed_partition_inflight` | gauge | `partition` |
//! | `tower_flow_shed_dry_run`, `tower_flow_shed_paused` | gauge | |
//!
//! # Cost
//!
//! Let in: no allocation and no lock; one compare-and-swap and one decrement on the gate's line, two or three additions
//! in cells of the calling thread. An adaptive limit reads the clock twice for the requests it times: all of them up to
//! 20,000 a second, one in so many beyond. A request with a deadline reads it too. Refused: the queue's lock, two clock
//! readings at most, and what the answer takes. Waiting: the lock three times and two clock readings; the
//! timer is shared. `benches/README.md` has the
//! figures.
//!
//! # Where in the stack
//!
//! Inside accounting and timing, so that they see what is refused; outside everything that costs something. On a server
//! one layer for all routes: they share the machine, so they share the limit.
//!
//! # What it cannot see
//!
//! A limit on requests in flight works where requests wait for something while they are in flight: a database, a pool,
//! another service. Handlers that do nothing but compute wait before that, in the run queue of the runtime: tonic and
//! hyper-util call the stack from the request's own task, when it is first polled, so there are never more in flight than
//! workers, and no limit is reached. There [`Pressure::wakeup`](crate::signal::Pressure::wakeup) tells that the runtime is
//! late, and sheds what is marked as sheddable; ordinary traffic is better bounded by calling the stack from the
//! connection's task, or by moving the computing to a pool of its own, behind which it can be seen.
//!
//! # Design
//!
//! Roads not taken: *permits in `poll_ready`*, as tower's `ConcurrencyLimit` has them, which idle clones keep; *"the
//! inner service is not ready" as the sign of overload*, as `LoadShed` has it, which sheds on whatever makes a poll
//! pending; *a semaphore for the limit*, which owes permits whenever the limit falls; *one limit for each route*, which
//! cannot know what the others take.

mod admission;
mod ask;
mod classify;
mod expiry;
mod future;
mod gate;
mod handle;
mod http;
mod layer;
pub mod limit;
mod metrics;
mod permit;
mod protocol;
mod queue;
mod refusal;
mod refused;
mod reject;
mod sampler;
mod service;
mod state;
mod triage;
mod waiting;

pub use ask::{AllEqual, Ask, Triage};
pub use classify::{ByError, ByGrpcStatus, ByStatus, Classify, ClassifyResponse, Verdict};
pub use future::ResponseFuture;
pub use handle::{ShedHandle, ShedSnapshot};
pub use http::{Hold, Http, ResponseBody, Slot};
pub use layer::{GrpcShedLayer, HttpShedLayer, ShedLayer};
pub use protocol::{Plain, Protocol};
pub use queue::Queue;
pub use refusal::Refusal;
pub use refused::Refused;
pub use reject::{AsError, AsGrpc, AsHttp, GRPC_RETRY_PUSHBACK, Refuse, Reject, SHED_REASON};
pub use service::Shed;
pub use triage::HttpTriage;
