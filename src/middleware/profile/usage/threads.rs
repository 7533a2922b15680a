//! The CPU time of every thread, added up by name.
//!
//! # Invariants
//!
//! - Totals never fall: what a thread used until it was last seen stays when it ends. What it used after that is lost.
//! - A thread's number may be given to another one: a total that went back begins anew. A name may change: what it used
//!   since goes to the new one.
//! - Between two readings a thread cannot use more time than passed. So one that could not be read for a while, and is
//!   taken for new, adds no more than that.

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
    /// How long they waited for a core so far; `None` when the kernel does not tell.
    pub waited: Option<Duration>,
    /// How many of them waited for a core lately, on average.
    pub waiting: Option<f64>,
}

/// What a thread has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Time {
    pub(super) cpu: Duration,
    pub(super) waited: Option<Duration>,
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
    last: HashMap<u64, Time>,
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
            let before = self.last.get(&id).filter(|before| before.cpu <= time.cpu);
            let mut grown = time.since(before.copied().unwrap_or_default());
            if !first {
                grown = grown.within(elapsed);
            }
            let group = self.group(&name);
            group.threads += 1;
            group.total.add(grown);
            if !first {
                group.elapsed = elapsed;
                group.recent.add(grown);
            }
            last.insert(id, time);
        }
        self.last = last;
    }

    /// How many threads waited for a core lately, on average.
    pub(super) fn waiting(&self) -> Option<f64> {
        self.groups
            .values()
            .filter_map(|group| group.rate(group.recent.waited?))
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
            waiting: self.recent.waited.and_then(|waited| self.rate(waited)),
        }
    }

    fn rate(&self, grown: Duration) -> Option<f64> {
        (!self.elapsed.is_zero()).then(|| grown.as_secs_f64() / self.elapsed.as_secs_f64())
    }
}

impl Time {
    fn add(&mut self, other: Self) {
        self.cpu += other.cpu;
        if let Some(waited) = other.waited {
            *self.waited.get_or_insert_default() += waited;
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            waited: self
                .waited
                .map(|waited| waited.saturating_sub(before.waited.unwrap_or_default())),
        }
    }

    /// No more than `elapsed`, and a tick, since ticks come when they come.
    fn within(self, elapsed: Duration) -> Self {
        let most = elapsed + TICK;
        Self {
            cpu: self.cpu.min(most),
            waited: self.waited.map(|waited| waited.min(most)),
        }
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
        let time = match text(dir.join("schedstat")).as_deref().and_then(schedstat) {
            Some(time) => time,
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

/// `cpu waited slices`, the times in nanoseconds. A kernel that does not keep them says `0 0 0`.
fn schedstat(text: &str) -> Option<Time> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let mut next = || Some(Duration::from_nanos(numbers.next()?.ok()?));
    let (cpu, waited) = (next()?, next()?);
    (!cpu.is_zero()).then_some(Time {
        cpu,
        waited: Some(waited),
    })
}

/// Fields 14 and 15 of `stat`; the second is a name in brackets that may hold anything.
fn ticks(text: &str) -> Option<Time> {
    let rest = &text[text.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok();
    let cpu = TICK.saturating_mul(next()?.saturating_add(next()?));
    Some(Time { cpu, waited: None })
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
            waited: Some(waited * MS),
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
        assert_eq!((worker.cpu, worker.waited), (600 * MS, Some(17 * MS)));
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
        // It calls itself something else now.
        threads.note(start + 300 * MS, vec![reading(2, "b", 9, 0)]);
        let shown = threads.snapshot();
        let cpu = |name| {
            shown
                .iter()
                .find(|group| group.name == name)
                .map(|group| group.cpu)
        };
        assert_eq!((cpu("a"), cpu("b")), (Some(503 * MS), Some(8 * MS)));
    }

    #[test]
    fn nobody_uses_more_time_than_there_was() {
        let (mut threads, start) = (Threads::default(), clock::now());
        threads.note(start, vec![reading(1, "a", 5_000, 100)]);
        // It could not be read for once.
        threads.note(start + 100 * MS, Vec::new());
        threads.note(start + 200 * MS, vec![reading(1, "a", 5_100, 100)]);
        let a = &threads.snapshot()[0];
        assert!(a.cores.unwrap() <= 1.1 && a.cpu <= 5_110 * MS, "{a:?}");
        assert!(threads.waiting().unwrap() <= 1.1);
    }

    #[test]
    fn who_is_not_told_how_long_threads_waited_does_not_say_so() {
        let (mut threads, start) = (Threads::default(), clock::now());
        let of = |cpu| {
            let mut reading = reading(1, "a", cpu, 0);
            reading.time.waited = None;
            vec![reading]
        };
        threads.note(start, of(1));
        threads.note(start + 100 * MS, of(2));
        let a = &threads.snapshot()[0];
        assert_eq!((a.waited, a.waiting, threads.waiting()), (None, None, None));
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
        assert_eq!((time.cpu, time.waited), (MS, Some(2 * MS)));
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14";
        assert_eq!(ticks(stat).unwrap().cpu, 420 * MS);
        for garbage in [
            "",
            "1",
            "x 1 2",
            "-1 2 3",
            "1 99999999999999999999 1",
            "0 0 0",
        ] {
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
