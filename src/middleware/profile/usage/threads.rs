//! The CPU time of every thread, added up by name.
//!
//! # Invariants
//!
//! - Totals never fall: what a thread used until it was last seen stays when it ends. What it used after that is lost.
//! - A thread's number may be given to another one: a total that went back begins anew.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::clock::Instant;

/// How many threads are read at most; of more, those the kernel lists last are left out.
const THREADS: usize = 1024;

/// How many names are told apart; further ones are `other`.
const NAMES: usize = 64;

/// The clock tick of a thread's `stat`, where there is no `schedstat`.
const TICK: Duration = Duration::from_millis(10);

/// The threads of one name at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ThreadsSnapshot {
    /// Their name, without the number at its end.
    pub name: String,
    /// How many there are now.
    pub threads: usize,
    /// The CPU time they used so far, those that ended included.
    pub cpu: Duration,
    /// How many cores they kept busy lately.
    pub cores: Option<f64>,
    /// How long they waited for a core so far.
    pub waited: Duration,
    /// How many of them waited for a core lately, on average.
    pub waiting: Option<f64>,
}

/// What a thread has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Time {
    pub(super) cpu: Duration,
    pub(super) waited: Duration,
}

/// One thread as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    id: u64,
    name: String,
    time: Time,
}

/// The books.
#[derive(Debug, Default)]
pub(super) struct Threads {
    last: HashMap<u64, (String, Time)>,
    groups: BTreeMap<String, Group>,
    at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Group {
    threads: usize,
    total: Time,
    /// Since the reading before.
    recent: Time,
    elapsed: Duration,
}

// ===== impl Threads =====

impl Threads {
    /// Takes a reading of all threads.
    pub(super) fn note(&mut self, now: Instant, readings: Vec<Reading>) {
        let elapsed = self
            .at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let first = self.at.replace(now).is_none();
        for group in self.groups.values_mut() {
            (group.threads, group.recent, group.elapsed) = (0, Time::default(), elapsed);
        }
        let mut last = HashMap::with_capacity(readings.len());
        for Reading { id, name, time } in readings {
            let before = match self.last.get(&id) {
                Some((known, before)) if *known == name && before.cpu <= time.cpu => *before,
                _ => Time::default(),
            };
            let group = self.group(&name);
            let grown = Time {
                cpu: time.cpu.saturating_sub(before.cpu),
                waited: time.waited.saturating_sub(before.waited),
            };
            group.threads += 1;
            group.total.add(grown);
            if !first {
                group.elapsed = elapsed;
                group.recent.add(grown);
            }
            last.insert(id, (name, time));
        }
        self.last = last;
    }

    /// How many threads waited for a core lately, on average.
    pub(super) fn waiting(&self) -> Option<f64> {
        self.groups
            .values()
            .filter_map(|group| group.rate(group.recent.waited))
            .reduce(|a, b| a + b)
    }

    /// By name, those that use most first.
    pub(super) fn snapshot(&self) -> Vec<ThreadsSnapshot> {
        let groups = self.groups.iter();
        let mut all: Vec<_> = groups.map(|(name, group)| group.shown(name)).collect();
        all.sort_by(|a, b| b.cores.unwrap_or(0.0).total_cmp(&a.cores.unwrap_or(0.0)));
        all
    }

    fn group(&mut self, name: &str) -> &mut Group {
        let name = without_number(name);
        let known = self.groups.contains_key(name) || self.groups.len() < NAMES;
        let name = if known { name } else { "other" };
        self.groups.entry(name.to_owned()).or_default()
    }
}

impl Group {
    fn shown(&self, name: &str) -> ThreadsSnapshot {
        ThreadsSnapshot {
            name: name.to_owned(),
            threads: self.threads,
            cpu: self.total.cpu,
            cores: self.rate(self.recent.cpu),
            waited: self.total.waited,
            waiting: self.rate(self.recent.waited),
        }
    }

    fn rate(&self, grown: Duration) -> Option<f64> {
        (!self.elapsed.is_zero()).then(|| grown.as_secs_f64() / self.elapsed.as_secs_f64())
    }
}

impl Time {
    fn add(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.waited += other.waited;
    }
}

/// Pools number their threads; the number is of no interest, and each would be a series of its own.
fn without_number(name: &str) -> &str {
    let bare = name
        .trim_end_matches(|c: char| c.is_ascii_digit())
        .trim_end_matches(['-', '_', '#', ' ', ':', '/']);
    if bare.is_empty() { name } else { bare }
}

// ===== reading =====

/// Reads all threads below `proc`, which is `/proc/self` unless a test has another.
pub(super) fn read(proc: &Path) -> Option<Vec<Reading>> {
    let entries = fs::read_dir(proc.join("task")).ok()?;
    let threads = entries.filter_map(|entry| {
        let dir = entry.ok()?.path();
        let id = dir.file_name()?.to_str()?.parse().ok()?;
        let name = text(dir.join("comm"))?.trim_end().to_owned();
        let time = match text(dir.join("schedstat")) {
            Some(stat) => schedstat(&stat)?,
            None => ticks(&text(dir.join("stat"))?)?,
        };
        Some(Reading { id, name, time })
    });
    Some(threads.take(THREADS).collect())
}

fn text(file: PathBuf) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(file)
        .ok()?
        .take(4096)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// `cpu waited slices`, the times in nanoseconds.
fn schedstat(text: &str) -> Option<Time> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let mut next = || Some(Duration::from_nanos(numbers.next()?.ok()?));
    Some(Time {
        cpu: next()?,
        waited: next()?,
    })
}

/// Fields 14 and 15 of `stat`; the second is a name in brackets that may hold anything.
fn ticks(text: &str) -> Option<Time> {
    let rest = &text[text.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok();
    let cpu = TICK.saturating_mul(next()?.saturating_add(next()?));
    Some(Time {
        cpu,
        waited: Duration::ZERO,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const MS: Duration = Duration::from_millis(1);

    fn reading(id: u64, name: &str, cpu: u32, waited: u32) -> Reading {
        let name = name.to_owned();
        let time = Time {
            cpu: cpu * MS,
            waited: waited * MS,
        };
        Reading { id, name, time }
    }

    #[test]
    fn rates_are_of_the_time_between_two_readings() {
        let (mut threads, start) = (Threads::default(), clock::now());
        threads.note(start, vec![reading(1, "worker-1", 500, 7)]);
        assert_eq!(threads.snapshot()[0].cores, None);
        threads.note(
            start + 100 * MS,
            vec![
                reading(1, "worker-1", 550, 17),
                reading(2, "worker-2", 50, 0),
            ],
        );
        let worker = &threads.snapshot()[0];
        assert_eq!((&*worker.name, worker.threads), ("worker", 2));
        assert_eq!(worker.cores, Some(1.0));
        assert!((worker.waiting.unwrap() - 0.1).abs() < 1e-9);
        assert_eq!((worker.cpu, worker.waited), (600 * MS, 17 * MS));
    }

    #[test]
    fn what_ended_threads_used_stays() {
        let (mut threads, start) = (Threads::default(), clock::now());
        threads.note(start, vec![reading(1, "a", 500, 1), reading(2, "a", 1, 1)]);
        threads.note(start + 100 * MS, vec![reading(2, "a", 2, 1)]);
        let a = &threads.snapshot()[0];
        assert_eq!((a.threads, a.cpu), (1, 502 * MS));
        // Another thread has the number now.
        threads.note(start + 200 * MS, vec![reading(2, "a", 1, 0)]);
        assert_eq!(threads.snapshot()[0].cpu, 503 * MS);
        threads.note(start + 300 * MS, vec![reading(2, "b", 9, 0)]);
        let shown = threads.snapshot();
        let cpu = |name| {
            shown
                .iter()
                .find(|group| group.name == name)
                .map(|group| group.cpu)
        };
        assert_eq!((cpu("a"), cpu("b")), (Some(503 * MS), Some(9 * MS)));
    }

    #[test]
    fn names_are_bounded() {
        let mut threads = Threads::default();
        let many = (0..1000).map(|n| reading(n, &format!("n{n}x"), 1, 0));
        threads.note(clock::now(), many.collect());
        let shown = threads.snapshot();
        assert_eq!(shown.len(), NAMES + 1);
        assert_eq!(shown.iter().map(|group| group.threads).sum::<usize>(), 1000);
        assert_eq!(without_number("blocking-12"), "blocking");
        assert_eq!(without_number("17"), "17");
    }

    #[test]
    fn both_files_are_understood_and_garbage_is_not() {
        let time = schedstat("1000000 2000000 3\n").unwrap();
        assert_eq!((time.cpu, time.waited), (MS, 2 * MS));
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14";
        assert_eq!(ticks(stat).unwrap().cpu, 420 * MS);
        for garbage in ["", "1", "x 1 2", "-1 2 3", "1 99999999999999999999 1"] {
            assert_eq!(schedstat(garbage), None, "{garbage:?}");
            assert_eq!(ticks(garbage), None, "{garbage:?}");
        }
        assert_eq!(read(Path::new("/nowhere")), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_threads() {
        let busy = std::thread::Builder::new().name("busy-7".into());
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begin, began) = std::sync::mpsc::channel();
        let thread = busy.spawn(move || {
            begin.send(()).unwrap();
            ended.recv()
        });
        let thread = thread.unwrap();
        // It names itself as it begins.
        began.recv().unwrap();
        let found = read(Path::new("/proc/self")).unwrap();
        assert!(
            found.iter().any(|thread| thread.name == "busy-7"),
            "{found:?}"
        );
        drop(end);
        thread.join().unwrap().unwrap_err();
    }
}
