//! Which files say how much CPU time was used, and how much may be.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::parse::{self, Garbage};
use super::{Counter, Usage};

/// The clock tick of `/proc/self/stat`. The kernel reports in this unit whatever its own is.
const TICK: u64 = 10_000_000;

/// More than the longest file read here; whatever is longer is cut, so that no file can fill the memory.
const LONGEST: u64 = 64 * 1024;

/// The system's files, or a test's, below one directory.
#[derive(Debug)]
pub(in crate::base::signal) struct Files(PathBuf);

/// What a source of readings answers: nothing when it is not there, so that the next is asked.
type Found<T> = Result<Option<T>, Garbage>;

impl Files {
    pub(in crate::base::signal) fn system() -> Self {
        Self::below("/")
    }

    pub(in crate::base::signal) fn below(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The time used so far, by the first source that is there.
    pub(super) fn usage(&self, cores: Option<f64>) -> Option<Usage> {
        let cores = match cores {
            Some(cores) => cores,
            None => self.cores().ok()?,
        };
        let sources = [Self::usage_v2, Self::usage_v1, Self::usage_of_process];
        first(sources.iter().map(|source| source(self, cores)))
    }

    /// The time the groups were held back so far.
    pub(super) fn throttled(&self) -> Option<Vec<Counter>> {
        let sources = [("", "throttled_usec", 1000), ("cpu", "throttled_time", 1)];
        first(sources.iter().map(|(controller, key, unit)| {
            let mut counters = Vec::new();
            for group in self.groups(controller) {
                let stat = read(&group.join("cpu.stat")).unwrap_or_default();
                if let Some(count) = parse::keyed(&stat, key)? {
                    let nanos = count.checked_mul(*unit).ok_or(Garbage)?;
                    counters.push(Counter { group, nanos });
                }
            }
            Ok((!counters.is_empty()).then_some(counters))
        }))
    }

    /// The pressure file of the nearest group that has one, or the machine's.
    pub(in crate::base::signal) fn pressure(&self, resource: &str) -> Option<(PathBuf, String)> {
        self.groups("")
            .into_iter()
            .map(|group| group.join(format!("{resource}.pressure")))
            .chain([self.0.join("proc/pressure").join(resource)])
            .find_map(|file| read(&file).map(|text| (file, text)))
    }

    fn usage_v2(&self, cores: f64) -> Found<Usage> {
        let mut usage = Usage::none();
        for group in self.groups("") {
            let Some(stat) = read(&group.join("cpu.stat")) else {
                continue;
            };
            let quota = match read(&group.join("cpu.max")) {
                Some(max) => parse::quota_v2(&max)?,
                None => None,
            };
            let micros = parse::keyed(&stat, "usage_usec")?.ok_or(Garbage)?;
            let nanos = micros.checked_mul(1000).ok_or(Garbage)?;
            usage.add(group, nanos, quota, cores);
        }
        Ok(usage.some())
    }

    fn usage_v1(&self, cores: f64) -> Found<Usage> {
        let mut usage = Usage::none();
        // Both controllers nearly always share their groups. Where they do not, a quota is compared with the use of
        // a group of the same name, or left out.
        let quotas = self.groups("cpu");
        let find = |group: &Path| {
            let name = group.strip_prefix(self.mount("cpuacct")).ok()?;
            let quota = self.mount("cpu").join(name);
            quotas.contains(&quota).then_some(quota)
        };
        for group in self.groups("cpuacct") {
            let Some(nanos) = read(&group.join("cpuacct.usage")) else {
                continue;
            };
            let quota = find(&group).and_then(|group| {
                let file = |name| read(&group.join(name));
                Some((file("cpu.cfs_quota_us")?, file("cpu.cfs_period_us")?))
            });
            let quota = match quota {
                Some((quota, period)) => parse::quota_v1(&quota, &period)?,
                None => None,
            };
            usage.add(group, parse::number(&nanos)?, quota, cores);
        }
        Ok(usage.some())
    }

    fn usage_of_process(&self, cores: f64) -> Found<Usage> {
        let file = self.0.join("proc/self/stat");
        let Some(stat) = read(&file) else {
            return Ok(None);
        };
        let nanos = parse::ticks(&stat)?.checked_mul(TICK).ok_or(Garbage)?;
        let mut usage = Usage::none();
        usage.add(file, nanos, None, cores);
        Ok(usage.some())
    }

    /// How many cores the process may run on. What the standard library says is not used where it can be helped: it
    /// has the quota in it, rounded down to whole cores.
    fn cores(&self) -> Result<f64, Garbage> {
        match read(&self.0.join("proc/self/status")) {
            Some(status) => parse::allowed(&status).map(|cores| cores as f64),
            None => {
                Ok(std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64))
            }
        }
    }

    /// The process's group in the hierarchy of `controller` and those above it, the nearest first. Some need not
    /// exist: a container may see only its own group, in the place of the root.
    fn groups(&self, controller: &str) -> Vec<PathBuf> {
        let text = read(&self.0.join("proc/self/cgroup")).unwrap_or_default();
        let Some(path) = parse::group(&text, controller) else {
            return Vec::new();
        };
        let mount = self.mount(controller);
        let own = mount.join(path.trim_start_matches('/'));
        own.ancestors()
            .take_while(|group| group.starts_with(&mount))
            .map(Path::to_path_buf)
            .collect()
    }

    fn mount(&self, controller: &str) -> PathBuf {
        self.0.join("sys/fs/cgroup").join(controller)
    }
}

/// The CPU time the process has used so far, in ticks of 10 ms; `None` elsewhere than on Linux.
#[cfg(feature = "profile")]
pub(crate) fn process_cpu() -> Option<std::time::Duration> {
    let stat = read(Path::new("/proc/self/stat"))?;
    let ticks = parse::ticks(&stat).ok()?;
    Some(std::time::Duration::from_nanos(ticks.checked_mul(TICK)?))
}

impl Usage {
    fn none() -> Self {
        Self {
            counters: Vec::new(),
            cores: Vec::new(),
        }
    }

    /// The first group is the process's own; those above it matter only for their quota.
    fn add(&mut self, group: PathBuf, nanos: u64, quota: Option<f64>, cores: f64) {
        if self.counters.is_empty() || quota.is_some() {
            self.counters.push(Counter { group, nanos });
            self.cores
                .push(quota.map_or(cores, |quota| quota.min(cores)));
        }
    }

    fn some(self) -> Option<Self> {
        (!self.counters.is_empty()).then_some(self)
    }
}

/// The first source that is there; nothing when it speaks nonsense, for the next might mean something else by it.
fn first<T>(found: impl IntoIterator<Item = Found<T>>) -> Option<T> {
    found.into_iter().find_map(Result::transpose)?.ok()
}

/// The file as text; `None` when it cannot be read. What is no text becomes garbage, which no parser takes.
fn read(file: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(file)
        .ok()?
        .take(LONGEST)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
