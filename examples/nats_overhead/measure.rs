//! CPU times, as the kernel counts them.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tower_flow::BoxError;

/// The CPU time of this process, all its threads together, to the nanosecond.
pub fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// CPU times of a process: its own code, and the kernel's for it. In steps of 10 ms.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks {
    pub user: Duration,
    pub kernel: Duration,
}

impl Ticks {
    pub fn of(process: &str) -> Result<Self, BoxError> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name is in brackets and may hold anything.
        let (_, rest) = stat.rsplit_once(')').ok_or("an unknown form of stat")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let ticks = |at: usize| -> Result<Duration, BoxError> {
            let ticks: u64 = fields.get(at).ok_or("a short stat")?.parse()?;
            Ok(Duration::from_millis(10 * ticks))
        };
        Ok(Self {
            user: ticks(11)?,
            kernel: ticks(12)?,
        })
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            kernel: self.kernel.saturating_sub(before.kernel),
        }
    }

    pub fn total(self) -> Duration {
        self.user + self.kernel
    }
}

/// What one round found.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub calls: u64,
    pub cpu: Duration,
    pub took: Duration,
}

impl Round {
    pub fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.calls.max(1) as f64
    }

    pub fn per_second(&self) -> f64 {
        self.calls as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// Measures whatever is done between the two.
pub struct Stopwatch {
    cpu: Duration,
    start: Instant,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self {
            cpu: cpu(),
            start: Instant::now(),
        }
    }

    pub fn stop(self, calls: u64) -> Round {
        Round {
            calls,
            cpu: cpu().saturating_sub(self.cpu),
            took: self.start.elapsed(),
        }
    }
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}
