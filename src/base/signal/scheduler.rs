use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeMetrics};
use tokio::task::AbortHandle;

use super::Signal;
use super::meter::{Meter, grown};

/// How busy the workers of a tokio runtime are: 0 when all are parked, 1 when none ever is.
///
/// A worker tells how long it was busy when it parks, or after some sixty polls; stuck in one long poll it tells
/// nothing at all. So a worker that has told nothing since the last sample is taken for what it was then: parked, by
/// the parity of its count of parks and unparks, and so idle; or running, and so **busy all the time**. What it tells
/// later is not counted twice.
///
/// Rates are taken over intervals of at least 100 ms: who samples again sooner hears the same. The first sample only
/// sets the start. A runtime that has shut down says nothing; neither does a counter that goes back, which is
/// [counted](Self::faults). A current-thread runtime that nobody drives reads as busy: it runs nothing, after all.
///
/// **The signal spawns one task** that never wakes, by which it learns that the runtime has shut down; it ends with
/// the signal.
///
/// ```
/// use std::time::Duration;
/// use tower_flow::signal::{SchedulerSignal, Signal};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let scheduler = SchedulerSignal::new();
/// assert_eq!(scheduler.sample(), None, "nothing to compare with yet");
/// tokio::time::sleep(Duration::from_millis(250)).await;
/// assert!(scheduler.sample().is_some_and(|busy| busy <= 1.0));
/// # }
/// ```
///
/// # Cost
///
/// A sample loads two numbers for each worker and allocates a list of them; nothing is added to the workers' own work.
#[derive(Debug)]
pub struct SchedulerSignal {
    metrics: RuntimeMetrics,
    over: Arc<AtomicBool>,
    sentinel: AbortHandle,
    meter: Meter<Vec<Worker>>,
    /// The share of the time each worker was busy between the last two samples.
    each: Mutex<Vec<f64>>,
}

/// What a worker has told so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Worker {
    /// The nanoseconds it was busy.
    busy: u64,
    /// How often it parked and unparked: odd while it is parked.
    parks: u64,
    /// The nanoseconds it was taken for busy since it told something last.
    assumed: f64,
}

/// Lives in a task of the runtime and so ends with it.
struct Sentinel(Arc<AtomicBool>);

// ===== impl SchedulerSignal =====

impl SchedulerSignal {
    /// The signal of the runtime this is called in, called `scheduler`.
    ///
    /// # Panics
    ///
    /// When it is called outside a tokio runtime.
    pub fn new() -> Self {
        Self::of(&Handle::current())
    }

    /// The signal of another runtime. See [`Pressure::named`](super::Pressure::named) to tell two apart.
    pub fn of(runtime: &Handle) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let sentinel = Sentinel(over.clone());
        let task = runtime.spawn(async move {
            let _sentinel = sentinel;
            std::future::pending::<()>().await;
        });
        Self {
            metrics: runtime.metrics(),
            over,
            sentinel: task.abort_handle(),
            meter: Meter::raw(),
            each: Mutex::default(),
        }
    }

    /// How many readings were of no use.
    pub fn faults(&self) -> u64 {
        self.meter.faults()
    }

    /// The share of the time each worker was busy, at the last sample that had one to compare with.
    #[cfg(feature = "profile")]
    pub(crate) fn workers(&self) -> Vec<f64> {
        let each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        each.clone()
    }
}

impl Default for SchedulerSignal {
    fn default() -> Self {
        Self::new()
    }
}

impl Signal for SchedulerSignal {
    fn name(&self) -> &str {
        "scheduler"
    }

    fn sample(&self) -> Option<f64> {
        if self.over.load(Ordering::Relaxed) {
            return None;
        }
        let read = |worker| Worker {
            busy: self.metrics.worker_total_busy_duration(worker).as_nanos() as u64,
            parks: self.metrics.worker_park_unpark_count(worker),
            assumed: 0.0,
        };
        self.meter.sample(
            || Some((0..self.metrics.num_workers()).map(read).collect()),
            |before, now, elapsed| {
                let each = busy(before, now, elapsed)?;
                let mean = each.iter().sum::<f64>() / each.len() as f64;
                *self.each.lock().unwrap_or_else(PoisonError::into_inner) = each;
                Some(mean)
            },
        )
    }
}

impl Drop for SchedulerSignal {
    fn drop(&mut self) {
        self.sentinel.abort();
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The share of `elapsed` each worker was busy.
fn busy(before: &[Worker], now: &mut [Worker], elapsed: Duration) -> Option<Vec<f64>> {
    let elapsed = elapsed.as_secs_f64() * 1e9;
    if before.len() != now.len() || now.is_empty() {
        return None;
    }
    let each = before.iter().zip(now);
    each.map(|(before, now)| Some(now.busy_since(before, elapsed)? / elapsed))
        .collect()
}

impl Worker {
    /// How long it was busy since `before`, `elapsed` ago; both in nanoseconds.
    fn busy_since(&mut self, before: &Self, elapsed: f64) -> Option<f64> {
        let told = grown(before.busy, self.busy)?;
        grown(before.parks, self.parks)?;
        if told == 0.0 && before.parks == self.parks {
            let parked = self.parks % 2 == 1;
            if parked {
                return Some(0.0);
            }
            self.assumed = before.assumed + elapsed;
            return Some(elapsed);
        }
        // A part may belong to before the last sample, when it had told nothing of it yet.
        Some((told - before.assumed).clamp(0.0, elapsed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::clock;

    fn mean(before: &[Worker], now: &mut [Worker], elapsed: Duration) -> Option<f64> {
        let each = busy(before, now, elapsed)?;
        Some(each.iter().sum::<f64>() / each.len() as f64)
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn worker(busy_ms: u64, parks: u64) -> Worker {
        Worker {
            busy: busy_ms * 1_000_000,
            parks,
            assumed: 0.0,
        }
    }

    #[test]
    fn busy_is_what_the_workers_tell() {
        let before = [worker(1000, 10), worker(0, 3)];
        let mut now = [worker(1500, 14), worker(100, 9)];
        assert_eq!(mean(&before, &mut now, SECOND), Some(0.3));
    }

    #[test]
    fn a_silent_worker_is_what_it_was() {
        let before = [worker(1000, 10), worker(1000, 11)];
        let mut now = before;
        assert_eq!(mean(&before, &mut now, SECOND), Some(0.5));
    }

    #[test]
    fn what_was_assumed_is_not_counted_again() {
        let mut readings = [
            worker(0, 2),
            worker(0, 2),
            worker(0, 2),
            worker(2300, 2),
            worker(3300, 2),
        ];
        let mut shares = Vec::new();
        for n in 1..readings.len() {
            let (before, now) = readings.split_at_mut(n);
            shares.push(mean(&before[n - 1..], &mut now[..1], SECOND).unwrap());
        }
        assert_eq!((shares[0], shares[1], shares[3]), (1.0, 1.0, 1.0));
        assert!((shares[2] - 0.3).abs() < 1e-9, "{shares:?}");
    }

    #[test]
    fn counters_that_go_back_say_nothing() {
        for now in [worker(999, 10), worker(1000, 9)] {
            assert_eq!(mean(&[worker(1000, 10)], &mut [now], SECOND), None);
        }
        assert_eq!(mean(&[worker(1, 1)], &mut [], SECOND), None);
        assert_eq!(mean(&[], &mut [], SECOND), None);
    }

    proptest! {
        #[test]
        fn busy_lies_within_0_and_1(steps in proptest::collection::vec((any::<u32>(), 0u64..3, 1u64..10_000), 1..30)) {
            let mut before = [Worker::default()];
            for (told, parks, elapsed) in steps {
                let told = if told % 3 == 0 { 0 } else { u64::from(told) };
                let mut now = [Worker { busy: before[0].busy + told, parks: before[0].parks + parks, assumed: 0.0 }];
                let share = mean(&before, &mut now, Duration::from_millis(elapsed)).unwrap();
                prop_assert!((0.0..=1.0).contains(&share), "{}", share);
                before = now;
            }
        }
    }

    fn spin(time: Duration) {
        let start = clock::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_blocked_worker_reads_as_busy_and_an_idle_one_as_idle() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .build()
            .unwrap();
        let scheduler = SchedulerSignal::of(runtime.handle());
        let (started, running) = std::sync::mpsc::channel();
        let (end, until) = std::sync::mpsc::channel::<()>();
        let blocked = runtime.spawn(async move {
            started.send(()).unwrap();
            let _ = until.recv();
        });
        running.recv().unwrap();
        // The other worker may look for work a moment longer.
        spin(Duration::from_millis(20));
        assert_eq!(scheduler.sample(), None);
        spin(Duration::from_millis(110));
        let busy = scheduler.sample().unwrap();
        assert!((0.4..0.8).contains(&busy), "one of two is blocked: {busy}");

        end.send(()).unwrap();
        runtime.block_on(blocked).unwrap();
        spin(Duration::from_millis(110));
        scheduler.sample();
        spin(Duration::from_millis(110));
        let busy = scheduler.sample().unwrap();
        assert!(busy < 0.3, "both are parked: {busy}");
        assert_eq!((scheduler.faults(), scheduler.name()), (0, "scheduler"));
    }

    #[test]
    fn a_runtime_that_is_gone_says_nothing() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let handle = runtime.handle().clone();
        let before = SchedulerSignal::of(&handle);
        before.sample();
        drop(runtime);
        let after = SchedulerSignal::of(&handle);
        spin(Duration::from_millis(110));
        assert_eq!((before.sample(), after.sample()), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_the_signal() {
        let alive = || Handle::current().metrics().num_alive_tasks();
        let before = alive();
        let scheduler = SchedulerSignal::new();
        assert_eq!(alive(), before + 1);
        drop(scheduler);
        tokio::task::yield_now().await;
        assert_eq!(alive(), before);
    }
}
