use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::threads::{self, Threads, ThreadsSnapshot};
use crate::base::clock::{self, Instant};
use crate::base::flow::Flow;
use crate::base::inspect::{Column, Inspect, Role, Table, Unit, Value, Vital};
use crate::base::metrics::{Families, Kind, Labels};
use crate::base::signal::{CpuSignal, PsiSignal, Signal, ThrottlingSignal, process_cpu};

/// The shortest interval rates are taken over.
const SHORTEST: Duration = Duration::from_millis(250);

/// What a reading takes of the time at most: with a thousand threads there are fewer of them.
const SHARE: u32 = 50;

/// The CPU time of this process: in all, by thread, against what it may use, and what it waits for.
///
/// Clones read the same. Numbers called *lately* are of the time between the last two readings; whoever reads makes
/// one, unless the last is younger than 250 ms. On systems other than Linux there is nothing to read.
///
/// ```
/// use tower_flow::{Flow, profile::CpuUsage, signal::Signal};
///
/// let flow = Flow::new("orders");
/// let usage = CpuUsage::new().attach(&flow);
/// let now = usage.snapshot();
/// assert!(now.threads.iter().all(|thread| thread.waiting.is_none_or(|waiting| waiting >= 0.0)));
/// // For a shed layer: more than two threads of ours want a core and have none.
/// let run_queue = usage.run_queue();
/// assert_eq!(run_queue.name(), "run_queue");
/// ```
///
/// # Cost
///
/// A reading opens two small files for each thread, at most 1,024 of them: about 10 µs a thread on a small virtual
/// machine, on the thread of whoever asks. It takes a fiftieth of the time at most: the more threads there are, the less
/// often they are read. Nothing is added to the threads' own work.
#[derive(Debug, Clone)]
pub struct CpuUsage(Arc<Usage>);

/// How many threads of this process wait for a core, on average between two readings of its [`CpuUsage`].
///
/// Above zero there is more to run than there are cores, and everybody's latency grows, whatever the share of the CPU
/// says: neighbours and quotas show here as well.
#[derive(Debug, Clone)]
pub struct RunQueueSignal(CpuUsage);

/// What the process used at one moment. Whatever the system does not tell is `None`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CpuSnapshot {
    /// The CPU time used so far.
    pub used: Option<Duration>,
    /// How many cores it may use: its CPU set, and the quotas of its control groups.
    pub available: Option<f64>,
    /// What it uses lately of what it may use; see [`CpuSignal`].
    pub share: Option<f64>,
    /// How long the kernel held it back lately, its quota used up, as a share of time; see [`ThrottlingSignal`].
    pub throttled: Option<f64>,
    /// How many of its threads waited for a core lately, on average.
    pub waiting: Option<f64>,
    /// The share of time lately in which somebody waited for a core; see [`PsiSignal`].
    pub pressure_cpu: Option<f64>,
    /// For memory.
    pub pressure_memory: Option<f64>,
    /// For a disk.
    pub pressure_io: Option<f64>,
    /// By name of the threads, those that use most first.
    pub threads: Vec<ThreadsSnapshot>,
}

#[derive(Debug)]
struct Usage {
    cpu: Arc<CpuSignal>,
    throttling: ThrottlingSignal,
    pressures: [PsiSignal; 3],
    /// When to read them next, and what was read.
    threads: Mutex<(Option<Instant>, Threads)>,
}

// ===== impl CpuUsage =====

impl CpuUsage {
    /// The usage of this process.
    pub fn new() -> Self {
        let usage = Self(Arc::new(Usage {
            cpu: Arc::new(CpuSignal::new()),
            throttling: ThrottlingSignal::new(),
            pressures: [PsiSignal::cpu(), PsiSignal::memory(), PsiSignal::io()],
            threads: Mutex::default(),
        }));
        // Rates need a beginning.
        usage.snapshot();
        usage
    }

    /// Shows it in `flow`.
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.clone());
        self
    }

    /// What is used of what may be used.
    pub fn signal(&self) -> Arc<CpuSignal> {
        self.0.cpu.clone()
    }

    /// How many threads wait for a core.
    pub fn run_queue(&self) -> RunQueueSignal {
        RunQueueSignal(self.clone())
    }

    /// The numbers now.
    pub fn snapshot(&self) -> CpuSnapshot {
        let usage = &*self.0;
        let [cpu, memory, io] = usage.pressures.each_ref().map(PsiSignal::sample);
        let (waiting, threads) = usage.threads(|threads| (threads.waiting(), threads.snapshot()));
        CpuSnapshot {
            used: process_cpu(),
            available: usage.cpu.available(),
            share: usage.cpu.sample(),
            throttled: usage.throttling.sample(),
            waiting,
            pressure_cpu: cpu,
            pressure_memory: memory,
            pressure_io: io,
            threads,
        }
    }
}

impl Default for CpuUsage {
    fn default() -> Self {
        Self::new()
    }
}

impl Usage {
    /// Looks at the threads, read anew when the last reading is not young.
    fn threads<T>(&self, look: impl FnOnce(&Threads) -> T) -> T {
        let mut books = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        let (next, threads) = &mut *books;
        if next.is_none_or(|next| next <= now)
            && let Some(readings) = threads::read(Path::new("/proc/self"))
        {
            threads.note(now, readings);
            let took = clock::now().saturating_duration_since(now);
            *next = Some(now + SHORTEST.max(took * SHARE));
        }
        look(threads)
    }
}

// ===== impl RunQueueSignal =====

impl Signal for RunQueueSignal {
    fn name(&self) -> &str {
        "run_queue"
    }

    fn sample(&self) -> Option<f64> {
        self.0.0.threads(Threads::waiting)
    }
}

// ===== impl Inspect =====

fn optional(number: Option<f64>) -> Value {
    number.map_or(Value::Null, Value::from)
}

impl Inspect for CpuUsage {
    fn kind(&self) -> &'static str {
        "cpu"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed("process")
    }

    fn snapshot(&self) -> Value {
        let now = Self::snapshot(self);
        let threads = now.threads.into_iter().map(|group| {
            Value::map([
                ("thread", group.name.into()),
                ("threads", (group.threads as u64).into()),
                ("cpu", group.cpu.into()),
                ("cores", optional(group.cores)),
                ("waited", group.waited.map_or(Value::Null, Value::from)),
                ("waiting", optional(group.waiting)),
            ])
        });
        Value::map([
            ("used", now.used.map_or(Value::Null, Value::from)),
            ("available", optional(now.available)),
            ("share", optional(now.share)),
            ("throttled", optional(now.throttled)),
            ("waiting", optional(now.waiting)),
            ("pressure_cpu", optional(now.pressure_cpu)),
            ("pressure_memory", optional(now.pressure_memory)),
            ("pressure_io", optional(now.pressure_io)),
            ("threads", Value::list(threads)),
        ])
    }

    fn vitals(&self) -> Vec<Vital> {
        let waiting = self.0.threads(Threads::waiting);
        [(Role::Cpu, self.0.cpu.sample()), (Role::RunQueue, waiting)]
            .into_iter()
            .filter_map(|(role, level)| Some(Vital::level(role, level?)))
            .collect()
    }

    fn tables(&self) -> &'static [Table] {
        const COLUMNS: &[Column] = &[
            Column::new("thread", "thread", Unit::Text),
            Column::new("threads", "threads", Unit::Level),
            Column::new("cores", "cores", Unit::Level),
            Column::new("waiting for a core", "waiting", Unit::Level),
            Column::new("CPU time", "cpu", Unit::Seconds),
        ];
        const TABLES: &[Table] = &[Table {
            title: "threads",
            rows: "threads",
            columns: COLUMNS,
        }];
        TABLES
    }

    fn collect(&self, families: &mut Families) {
        let now = Self::snapshot(self);
        for group in now.threads {
            let labels = Labels::new().with("thread", group.name);
            let counters = [
                (
                    "tower_flow_cpu_seconds",
                    "CPU time used, by name of the threads",
                    Some(group.cpu),
                ),
                (
                    "tower_flow_run_queue_seconds",
                    "Time threads were ready to run and had no core",
                    group.waited,
                ),
            ];
            let told = counters
                .into_iter()
                .filter_map(|(name, help, time)| Some((name, help, time?)));
            for (name, help, time) in told {
                let family = families.family(Kind::Counter, name, help).greatest();
                family.push(labels.clone(), time.as_secs_f64());
            }
            families
                .family(Kind::Gauge, "tower_flow_threads", "Threads, by name")
                .greatest()
                .push(labels, group.threads as u64);
        }
        if let Some(used) = now.used {
            families
                .family(
                    Kind::Counter,
                    "tower_flow_process_cpu_seconds",
                    "CPU time the process used, threads that ended included",
                )
                .greatest()
                .push(Labels::new(), used.as_secs_f64());
        }
        let gauges = [
            (
                "tower_flow_cpu_ratio",
                "Share of the CPU time that may be used",
                now.share,
            ),
            (
                "tower_flow_cpu_available_cores",
                "How many cores may be used",
                now.available,
            ),
            (
                "tower_flow_cpu_throttled_ratio",
                "Share of time the kernel held the process back, its quota used up",
                now.throttled,
            ),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let family = families.family(Kind::Gauge, name, help).greatest();
                family.push(Labels::new(), value);
            }
        }
        let pressures = [
            ("cpu", now.pressure_cpu),
            ("memory", now.pressure_memory),
            ("io", now.pressure_io),
        ];
        for (resource, share) in pressures {
            if let Some(share) = share {
                families
                    .family(
                        Kind::Gauge,
                        "tower_flow_psi_ratio",
                        "Share of time in which somebody waited for the resource",
                    )
                    .greatest()
                    .push(Labels::new().with("resource", resource), share);
            }
        }
    }
}
