//! Where the time goes.

mod call;
mod delay;
mod handle;
mod http;
mod layer;
mod metrics;
mod service;
mod stage;
mod state;
mod tagging;
mod usage;

pub use handle::{PollsSnapshot, ProfileHandle, StageSnapshot};
pub use http::{HttpProfileLayer, HttpProfiled, HttpResponseFuture, ProfiledBody};
pub use layer::ProfileLayer;
pub use service::{Profiled, ResponseFuture};
pub use stage::Stage;
pub use state::SlowPoll;
pub use usage::{
    CpuSnapshot, CpuUsage, RunQueueSignal, SchedulerSnapshot, SchedulerUsage, ThreadsSnapshot,
    WorkerSnapshot,
};
