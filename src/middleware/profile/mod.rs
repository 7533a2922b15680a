//! Where the time goes: which route keeps the workers, which thread the cores, and who waits for them.
//!
//! # How it works
//!
//! [`ProfileLayer`] measures how long each poll of what is inside it takes: of `call`, of the response future, and in
//! its HTTP form of the response body. A task that is polled has its worker for itself, so this is what a route takes
//! from all others, and a poll of more than a millisecond is a worker that answers nobody. Waiting costs nothing here;
//! `timing` is for that.
//!
//! ```text
//! route  /shop.Orders/Place      layer "server"          layer "handler"
//!   call    ▇                      ▇ busy: its own         ▇ busy
//!   future  ▇▇···▇▇▇▇▇···▇         ▇▇···▇▁▁▁▁···▇           ▇▇▇▇
//!   body    ▇··▇··▇                total: with the inside
//! ```
//!
//! Put several into one stack, each called after its place: what an inner one took is not the outer one's. Sorted by
//! what they took themselves, routes and places together are the hot paths: [`ProfileHandle::hot`].
//!
//! Beside the layer there are [`CpuUsage`], the process and its threads against what they may use, and
//! [`SchedulerUsage`], the workers of a tokio runtime. Both are [signals](crate::signal) for a layer that sheds.
//!
//! # Example
//!
//! ```
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_flow::profile::{ProfileLayer, Stage};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let profile = ProfileLayer::new("handler");
//! let mut service = ServiceBuilder::new()
//!     .layer(profile.clone())
//!     .service(service_fn(async |n: u64| Ok::<_, std::io::Error>((0..n).sum::<u64>())));
//! service.ready().await?.call(1_000).await?;
//!
//! let hottest = &profile.handle().hot()[0];
//! assert_eq!((hottest.layer.as_str(), hottest.polls), ("handler", 1));
//! # Ok(()) }
//! ```
//!
//! # Example: by path, one call in 16, and what slow polls there were
//!
//! ```
//! use std::time::Duration;
//! use tower_flow::{Flow, profile::{CpuUsage, ProfileLayer, SchedulerUsage}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let flow = Flow::new("shop");
//! let profile = ProfileLayer::new("server")
//!     .route_by(|req: &http::Request<()>| req.uri().path())
//!     .every(16)
//!     .slow(Duration::from_millis(5))
//!     .attach(&flow);
//! let (_cpu, _runtime) = (CpuUsage::new().attach(&flow), SchedulerUsage::new("main").attach(&flow));
//! for slow in profile.handle().slow_polls() {
//!     println!("{} kept its worker for {:?}", slow.route, slow.took);
//! }
//! let layer = profile.http();
//! # let _ = layer; }
//! ```
//!
//! # Readiness and cancellation
//!
//! `poll_ready` is the inner service's and is not measured. Nothing is held: what is dropped is not polled any more. A
//! poll that panics is measured to its unwinding.
//!
//! # Wake-up delay
//!
//! For one in 16 of the calls that are looked at ([`delay_every`](ProfileLayer::delay_every)) the waker is wrapped, and
//! the time between a wake-up and the poll it leads to is kept: how long tasks of a route queue for a worker. The
//! wrapper is used again, unless the future leaves a waker behind that somebody keeps; that costs an allocation then.
//! It ends with the response future: a body is polled when its reader wants more, which is no wait for a worker.
//!
//! # Metrics
//!
//! | name | type | labels |
//! |---|---|---|
//! | `tower_flow_profile_polls_total` | counter | `name`, `route`, `stage` (`call`, `future`, `body`) |
//! | `tower_flow_profile_busy_seconds_total` | counter | `name`, `route`, `stage` |
//! | `tower_flow_profile_slow_polls_total` | counter | `name`, `route`, `stage` |
//! | `tower_flow_profile_blocked_polls_total` | counter, polls above a second | `name`, `route`, `stage` |
//! | `tower_flow_profile_max_poll_seconds` | gauge, since the start | `name`, `route`, `stage` |
//! | `tower_flow_profile_wakeups_total` | counter, of those that were looked at | `name`, `route` |
//! | `tower_flow_profile_wake_delay_seconds_total` | counter, of those | `name`, `route` |
//! | `tower_flow_process_cpu_seconds_total` | counter | |
//! | `tower_flow_cpu_seconds_total` | counter | `thread`, the name of threads without their number |
//! | `tower_flow_run_queue_seconds_total` | counter | `thread` |
//! | `tower_flow_threads` | gauge | `thread` |
//! | `tower_flow_cpu_ratio` | gauge: share of what may be used | |
//! | `tower_flow_cpu_available_cores` | gauge | |
//! | `tower_flow_cpu_throttled_ratio` | gauge | |
//! | `tower_flow_psi_ratio` | gauge | `resource` (`cpu`, `memory`, `io`) |
//! | `tower_flow_scheduler_busy_ratio` | gauge | `name` |
//! | `tower_flow_scheduler_wake_delay_seconds` | gauge | `name` |
//! | `tower_flow_scheduler_tasks`, `tower_flow_scheduler_queue_depth` | gauges | `name` |
//! | `tower_flow_scheduler_busy_seconds_total`, `tower_flow_scheduler_parks_total` | counters | `name`, `worker` |
//!
//! With [`every`](ProfileLayer::every) above 1 the counters are estimates without bias: a call that is looked at counts
//! for as many. The greatest poll and the list of slow ones know only calls that were looked at.
//!
//! # Cost
//!
//! Two readings of the clock for each poll, three or four additions in cells of the calling thread, no allocation, no
//! lock; a slow poll is noted in a short list behind a lock nobody waits for. A call that is passed over rolls a dice and
//! looks its route up; a layer that is off loads two numbers. `benches/README.md` has the figures.
//!
//! # Where in the stack
//!
//! Outermost to see everything a server's requests take, innermost to see the handler alone; both, to see what the
//! layers between them take. Times are of the wall clock within polls: a thread that is preempted goes on being billed.
//!
//! # Design
//!
//! Weighed and left: tokio's own task hooks, which know tasks and no requests, and need an unstable build; a clock of
//! CPU time, which is a system call of 270 ns on the path of each poll; counting one call in so many, which keeps step
//! with requests that come in a pattern, so that a dice is rolled instead.

mod call;
mod delay;
mod handle;
mod http;
mod layer;
mod metrics;
mod sampling;
mod service;
mod stage;
mod state;
mod usage;

pub use handle::{PollsSnapshot, ProfileHandle, StageSnapshot};
pub use http::{HttpProfileLayer, HttpProfiled, HttpResponseFuture, ProfiledBody};
pub use layer::ProfileLayer;
#[cfg(feature = "perf")]
pub use sampling::{
    Counts, Phase, Profile, Profiler, ProfilerError, ProfilerState, RouteShare, Tag,
};
pub use service::{Profiled, ResponseFuture};
pub use stage::Stage;
pub use state::SlowPoll;
pub use usage::{
    CpuSnapshot, CpuUsage, QueueDepthSignal, RunQueueSignal, SchedulerSnapshot, SchedulerUsage,
    ThreadsSnapshot, WorkerSnapshot,
};
