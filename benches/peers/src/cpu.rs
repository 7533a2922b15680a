//! Where the calling thread runs and for how long it has.

use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Keeps the thread on the `n`th processor, so that the scheduler cannot put two that belong apart on one.
pub fn pin(n: usize) {
    let allowed = sched_getaffinity(None).expect("the thread's processors");
    let mut all = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    if let Some(cpu) = all.nth(n) {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).expect("an allowed processor");
    }
}

/// The CPU time of the thread.
pub fn time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
