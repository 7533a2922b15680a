use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeMetrics};

use crate::base::flow::Flow;
use crate::base::inspect::{Column, Inspect, Role, Table, Unit, Value, Vital};
use crate::base::metrics::{Families, Kind, Labels};
use crate::base::signal::{SchedulerSignal, Signal, WakeupSignal};

/// How busy the workers of a tokio runtime are, and how late its tasks wake up.
///
/// Clones read the same. A worker that is stuck in one poll reads as busy; see [`SchedulerSignal`]. **It spawns the two
/// tasks of [`SchedulerSignal`] and [`WakeupSignal`]**, which end with its last clone. A flow keeps it for ever, and so
/// its tasks until the runtime ends.
///
/// ```
/// use tower_flow::{Flow, profile::SchedulerUsage};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let flow = Flow::new("orders");
/// let usage = SchedulerUsage::new("main").attach(&flow);
/// assert_eq!(usage.snapshot().workers.len(), 1);
/// # }
/// ```
///
/// # Cost
///
/// A reading loads a few numbers for each worker. The probe for late wake-ups costs a hundred wake-ups a second.
#[derive(Debug, Clone)]
pub struct SchedulerUsage {
    name: Arc<str>,
    metrics: RuntimeMetrics,
    busy: Arc<SchedulerSignal>,
    wakeup: Arc<WakeupSignal>,
}

/// How many tasks of a runtime wait for any of its workers. What waits in a worker's own queue is not told.
#[derive(Debug, Clone)]
pub struct QueueDepthSignal(RuntimeMetrics);

/// A runtime at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SchedulerSnapshot {
    /// The share of the time its workers were busy lately, on average; `None` at first, and when it has ended.
    pub busy: Option<f64>,
    /// The longest delay between a timer and its task in the last half to whole second.
    pub wake_delay: Option<Duration>,
    /// Tasks that have not ended.
    pub tasks: usize,
    /// Tasks that wait for any worker, in the queue all share; those in a worker's own queue are not told.
    pub queued: usize,
    /// Its workers.
    pub workers: Vec<WorkerSnapshot>,
}

/// A worker at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// The share of the time it was busy lately.
    pub busy: Option<f64>,
    /// How long it was busy so far. What it does now is not in it before it parks or has polled some sixty times.
    pub total: Duration,
    /// How often it parked: found nothing to do.
    pub parks: u64,
}

// ===== impl SchedulerUsage =====

impl SchedulerUsage {
    /// The runtime this is called in, called `name`.
    ///
    /// # Panics
    ///
    /// When it is called outside a tokio runtime.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self::of(name, &Handle::current())
    }

    /// Another runtime.
    pub fn of(name: impl Into<Arc<str>>, runtime: &Handle) -> Self {
        let busy = SchedulerSignal::of(runtime);
        // Rates need a beginning.
        busy.sample();
        Self {
            name: name.into(),
            metrics: runtime.metrics(),
            busy: Arc::new(busy),
            wakeup: Arc::new(WakeupSignal::of(runtime)),
        }
    }

    /// Shows it in `flow`.
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.clone());
        self
    }

    /// How busy the workers are.
    pub fn signal(&self) -> Arc<SchedulerSignal> {
        self.busy.clone()
    }

    /// How late tasks wake up.
    pub fn wake_delay(&self) -> Arc<WakeupSignal> {
        self.wakeup.clone()
    }

    /// How many tasks wait for any worker.
    pub fn queue_depth(&self) -> QueueDepthSignal {
        QueueDepthSignal(self.metrics.clone())
    }

    /// The numbers now.
    pub fn snapshot(&self) -> SchedulerSnapshot {
        let busy = self.busy.sample();
        let each = self.busy.workers();
        let workers = (0..self.metrics.num_workers()).map(|worker| WorkerSnapshot {
            busy: busy.and_then(|_| each.get(worker).copied()),
            total: self.metrics.worker_total_busy_duration(worker),
            parks: self.metrics.worker_park_count(worker),
        });
        SchedulerSnapshot {
            busy,
            wake_delay: self.wakeup.delay(),
            tasks: self.metrics.num_alive_tasks(),
            queued: self.metrics.global_queue_depth(),
            workers: workers.collect(),
        }
    }
}

// ===== impl QueueDepthSignal =====

impl Signal for QueueDepthSignal {
    fn name(&self) -> &str {
        "queue_depth"
    }

    fn sample(&self) -> Option<f64> {
        Some(self.0.global_queue_depth() as f64)
    }
}

// ===== impl Inspect =====

impl Inspect for SchedulerUsage {
    fn kind(&self) -> &'static str {
        "scheduler"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.name)
    }

    fn snapshot(&self) -> Value {
        let now = Self::snapshot(self);
        let share = |share: Option<f64>| share.map_or(Value::Null, Value::from);
        let workers = now.workers.into_iter().enumerate().map(|(n, worker)| {
            Value::map([
                ("worker", n.to_string().into()),
                ("busy", share(worker.busy)),
                ("total", worker.total.into()),
                ("parks", worker.parks.into()),
            ])
        });
        Value::map([
            ("busy", share(now.busy)),
            (
                "wake_delay",
                now.wake_delay.map_or(Value::Null, Value::from),
            ),
            ("tasks", (now.tasks as u64).into()),
            ("queued", (now.queued as u64).into()),
            ("workers", Value::list(workers)),
        ])
    }

    fn vitals(&self) -> Vec<Vital> {
        [
            (Role::Scheduler, self.busy.sample()),
            (Role::WakeDelay, self.wakeup.sample()),
        ]
        .into_iter()
        .filter_map(|(role, level)| Some(Vital::level(role, level?)))
        .collect()
    }

    fn tables(&self) -> &'static [Table] {
        const COLUMNS: &[Column] = &[
            Column::new("worker", "worker", Unit::Text),
            Column::new("busy", "busy", Unit::Share),
            Column::new("parks", "parks", Unit::Count),
        ];
        const TABLES: &[Table] = &[Table {
            title: "workers",
            rows: "workers",
            columns: COLUMNS,
        }];
        TABLES
    }

    fn collect(&self, families: &mut Families) {
        let now = Self::snapshot(self);
        let labels = || Labels::new().with("name", self.name.to_string());
        let gauges = [
            (
                "tower_flow_scheduler_busy_ratio",
                "Share of the time the workers were busy",
                now.busy,
            ),
            (
                "tower_flow_scheduler_wake_delay_seconds",
                "The longest delay between a timer and its task in the last second",
                now.wake_delay.map(|delay| delay.as_secs_f64()),
            ),
            (
                "tower_flow_scheduler_tasks",
                "Tasks that have not ended",
                Some(now.tasks as f64),
            ),
            (
                "tower_flow_scheduler_queue_depth",
                "Tasks that wait for any worker",
                Some(now.queued as f64),
            ),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                families
                    .family(Kind::Gauge, name, help)
                    .greatest()
                    .push(labels(), value);
            }
        }
        for (n, worker) in now.workers.into_iter().enumerate() {
            let labels = labels().with("worker", n.to_string());
            families
                .family(
                    Kind::Counter,
                    "tower_flow_scheduler_busy_seconds",
                    "How long a worker was busy",
                )
                .greatest()
                .push(labels.clone(), worker.total.as_secs_f64());
            families
                .family(
                    Kind::Counter,
                    "tower_flow_scheduler_parks",
                    "How often a worker found nothing to do",
                )
                .greatest()
                .push(labels, worker.parks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    fn spin(time: Duration) {
        let end = clock::now() + time;
        while clock::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn tasks_that_wait_for_a_worker_are_counted() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let depth = SchedulerUsage::of("test", runtime.handle()).queue_depth();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begin, began) = std::sync::mpsc::channel();
        let blocked = runtime.spawn(async move {
            begin.send(()).unwrap();
            ended.recv().is_err()
        });
        began.recv().unwrap();
        // From outside they go into the queue all share.
        let tasks: Vec<_> = (0..7).map(|_| runtime.spawn(async {})).collect();
        assert!(depth.sample().unwrap() >= 7.0, "{depth:?}");
        drop(end);
        assert!(runtime.block_on(blocked).unwrap());
        for task in tasks {
            runtime.block_on(task).unwrap();
        }
        assert_eq!((depth.sample(), depth.name()), (Some(0.0), "queue_depth"));
    }

    #[test]
    fn the_blocked_worker_is_told_from_the_idle_one() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .unwrap();
        let usage = SchedulerUsage::of("test", runtime.handle());
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let blocked = runtime.spawn(async move { ended.recv().is_err() });
        spin(Duration::from_millis(150));
        usage.snapshot();
        spin(Duration::from_millis(150));
        let now = usage.snapshot();
        let mut busy: Vec<_> = now
            .workers
            .iter()
            .map(|worker| worker.busy.unwrap())
            .collect();
        busy.sort_by(f64::total_cmp);
        assert!(busy[0] < 0.5 && busy[1] > 0.9, "{now:?}");
        assert!(now.tasks >= 1, "{now:?}");
        drop(end);
        assert!(runtime.block_on(blocked).unwrap());
        drop(runtime);
        assert_eq!(
            (usage.snapshot().busy, usage.snapshot().wake_delay),
            (None, None)
        );
    }
}
