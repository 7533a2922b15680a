mod files;
mod parse;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub(super) use files::Files;
#[cfg(feature = "profile")]
pub(crate) use files::process_cpu;
pub(super) use parse::psi_total;
#[cfg(test)]
pub(super) use tests::Fake;

use super::Signal;
use super::meter::{Meter, grown};

/// How much of the CPU time it may use this process uses: 0 when idle, 1 at the limit, briefly a little above.
///
/// Every level at which somebody could run into a limit is looked at, and the tightest counts:
///
/// - under cgroup v2 the process's group by `cpu.stat` against the cores it may run on, and this group and each above
///   it that has a quota (`cpu.max`) by its own use against that quota: siblings use up a shared one too;
/// - under cgroup v1 the same by `cpuacct.usage` and `cpu.cfs_quota_us`;
/// - elsewhere on Linux the process's own time by `/proc/self/stat`, which counts in ticks of 10 ms and needs neither
///   `unsafe` nor a dependency, against the cores it may run on.
///
/// The cores it may run on are those of its CPU set: what the main thread may run on. A program that pins its main
/// thread tells [`cores`](Self::cores) instead. Elsewhere than on Linux the signal says nothing.
///
/// It is a moving average with a half-life of 250 ms, over intervals of at least 100 ms: who samples again sooner
/// hears the same. The first sample only sets the start. A file that is missing, holds garbage or goes back says
/// nothing and is [counted](Self::faults).
///
/// What others on the same machine use is not seen here; [`PsiSignal`](super::PsiSignal) sees it.
///
/// ```
/// use tower_flow::signal::{CpuSignal, Signal};
///
/// let cpu = CpuSignal::new();
/// assert_eq!(cpu.sample(), None, "nothing to compare with yet");
/// ```
///
/// # Cost
///
/// A sample reads half a dozen small files of `/proc` and `/sys`, and two more for each group above: about 0.1 ms on a
/// small virtual machine, four times a second.
#[derive(Debug)]
pub struct CpuSignal {
    files: Files,
    cores: Option<f64>,
    meter: Meter<Usage>,
}

/// How long the kernel held back the process's group because its quota was used up, as a share of time.
///
/// It adds up over cores: 2 means that two cores' worth of threads stood still all the time. Any lasting number well
/// above 0 costs latency. Groups above with a quota count as well. Read from `cpu.stat` of cgroup v2 and v1; without
/// either the signal says nothing. It is averaged, and a bad file counted, as with [`CpuSignal`].
///
/// ```
/// use tower_flow::signal::{Pressure, Pressures, ThrottlingSignal};
///
/// let pressures = Pressures::new([
///     Pressure::cpu(),
///     Pressure::new(ThrottlingSignal::new()).warn(0.05).critical(0.5),
/// ]);
/// # let _ = pressures;
/// ```
#[derive(Debug)]
pub struct ThrottlingSignal {
    files: Files,
    meter: Meter<Vec<Counter>>,
}

/// The time one group of processes has used or lost so far.
#[derive(Debug, PartialEq)]
struct Counter {
    group: PathBuf,
    nanos: u64,
}

/// The time used, and how many cores each counter may use.
#[derive(Debug)]
struct Usage {
    counters: Vec<Counter>,
    cores: Vec<f64>,
}

// ===== impl CpuSignal =====

impl CpuSignal {
    /// The signal of this process, called `cpu`.
    pub fn new() -> Self {
        Self::of(Files::system())
    }

    fn of(files: Files) -> Self {
        Self {
            files,
            cores: None,
            meter: Meter::smooth(),
        }
    }

    /// How many cores the process may run on (default: as many as the kernel lets its main thread run on). A quota
    /// below that counts all the same.
    ///
    /// # Panics
    ///
    /// When `cores` is not a positive number.
    #[must_use]
    pub fn cores(mut self, cores: f64) -> Self {
        assert!(
            cores.is_finite() && cores > 0.0,
            "a process cannot run on {cores} cores"
        );
        self.cores = Some(cores);
        self
    }

    /// How many cores the process may use now: those it may run on, or the tightest quota.
    #[cfg(feature = "profile")]
    pub(crate) fn available(&self) -> Option<f64> {
        self.files
            .usage(self.cores)?
            .cores
            .into_iter()
            .reduce(f64::min)
    }

    /// How many readings were of no use: a file missing, garbage, or a counter that went back.
    pub fn faults(&self) -> u64 {
        self.meter.faults()
    }
}

impl Default for CpuSignal {
    fn default() -> Self {
        Self::new()
    }
}

impl Signal for CpuSignal {
    fn name(&self) -> &str {
        "cpu"
    }

    fn sample(&self) -> Option<f64> {
        self.meter.sample(
            || self.files.usage(self.cores),
            |before, now, elapsed| {
                let shares = growth(&before.counters, &now.counters)?
                    .zip(&now.cores)
                    .map(|(grown, cores)| Some(grown? / (cores * elapsed.as_secs_f64() * 1e9)));
                shares.reduce(|a, b| Some(a?.max(b?)))?
            },
        )
    }
}

// ===== impl ThrottlingSignal =====

impl ThrottlingSignal {
    /// The signal of this process's group, called `cpu_throttling`.
    pub fn new() -> Self {
        Self::of(Files::system())
    }

    fn of(files: Files) -> Self {
        Self {
            files,
            meter: Meter::smooth(),
        }
    }

    /// How many readings were of no use.
    pub fn faults(&self) -> u64 {
        self.meter.faults()
    }
}

impl Default for ThrottlingSignal {
    fn default() -> Self {
        Self::new()
    }
}

impl Signal for ThrottlingSignal {
    fn name(&self) -> &str {
        "cpu_throttling"
    }

    fn sample(&self) -> Option<f64> {
        self.meter.sample(
            || self.files.throttled(),
            |before, now, elapsed| {
                let lost: Option<f64> = growth(before, now)?.sum();
                Some(lost? / (elapsed.as_secs_f64() * 1e9))
            },
        )
    }
}

/// By how much each counter grew; `None` when they are not the same counters.
fn growth<'a>(
    before: &'a [Counter],
    now: &'a [Counter],
) -> Option<impl Iterator<Item = Option<f64>> + 'a> {
    let same = before.len() == now.len()
        && before
            .iter()
            .zip(now)
            .all(|(before, now)| before.group == now.group);
    same.then(|| {
        before
            .iter()
            .zip(now)
            .map(|(before, now)| grown(before.nanos, now.nanos))
    })
}
