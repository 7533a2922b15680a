//! What the process and its runtimes use of the machine.

mod cpu;
mod scheduler;
mod threads;

pub use cpu::{CpuSnapshot, CpuUsage, RunQueueSignal};
pub use scheduler::{QueueDepthSignal, SchedulerSnapshot, SchedulerUsage, WorkerSnapshot};
pub use threads::ThreadsSnapshot;
