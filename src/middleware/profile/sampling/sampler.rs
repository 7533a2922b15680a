//! What the profiler's thread does: it empties rings and journals many times a second, and adds up what it finds.

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::error::ProfilerError;
use super::join::{Tagged, Tags};
use super::modules::Modules;
use super::profiler::{Progress, Shared, Wish};
use super::report::{Counts, Profile};
use super::ring::{Batch, Sample};
use super::stacks::{Owner, Stacks};
use super::symbols;
use super::tags::{self, Tag};
use super::threads::Threads;
use crate::base::clock::{self, Instant};

/// The longest pause between two readings. Rings have room for as long.
const PAUSE: Duration = Duration::from_millis(50);
/// The shortest one, when threads change their tags so often that their journals would overflow.
const SHORTEST: Duration = Duration::from_millis(5);
/// How often the list of what is mapped is read again at most, when an address is in none of it.
const MAPS: Duration = Duration::from_secs(1);

/// Samples until it is told to stop or its time is over; then says what was where.
pub(super) fn run(shared: &Arc<Shared>) -> Result<Profile, ProfilerError> {
    let mut sampler = Sampler::open(shared.hz)?;
    let end = sampler.began + shared.length;
    shared.progress(sampler.progress());
    let mut pause = SHORTEST;
    loop {
        let left = end.saturating_duration_since(clock::now());
        let wish = shared.wait(pause.min(left));
        pause = sampler.read(pause);
        shared.progress(sampler.progress());
        if wish != Wish::Run || clock::now() >= end {
            break;
        }
    }
    Ok(sampler.close(shared))
}

/// Tags are written down as long as it is there.
struct Tagging;

struct Sampler {
    began: Instant,
    counts: Counts,
    threads: Threads,
    tags: Tags,
    modules: Modules,
    looked: Instant,
    stacks: Stacks,
    batch: Batch,
    /// When it read before.
    since: u64,
    process: Duration,
    own: Duration,
    tagging: Tagging,
}

// ===== impl Sampler =====

impl Sampler {
    fn open(hz: u32) -> Result<Self, ProfilerError> {
        let own = cpu_time(ClockId::ThreadCPUTime);
        let process = cpu_time(ClockId::ProcessCPUTime);
        let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let mut threads = Threads::new(thread, hz, PAUSE.as_secs_f64());
        let mut tags = Tags::default();
        tags.begin();
        let tagging = Tagging::begin();
        threads
            .scan()
            .map_err(|error| ProfilerError::opening(error, paranoid()))?;
        let began = clock::now();
        Ok(Self {
            began,
            counts: Counts::new(hz, clock::wall()),
            threads,
            tags,
            modules: Modules::read(),
            looked: began,
            stacks: Stacks::default(),
            batch: Batch::default(),
            since: tags::nanos(),
            process,
            own,
            tagging,
        })
    }

    /// Takes in what came since the last time. Returns when to do it again, after a pause of `pause`.
    fn read(&mut self, pause: Duration) -> Duration {
        let now = tags::nanos();
        // A thread that cannot be sampled is counted; the others are what is left to profile.
        _ = self.threads.scan();
        self.threads.drain(&mut self.batch);
        // After the samples: then the lines they belong to have been written.
        self.tags.read(self.since);
        self.since = now;
        let batch = std::mem::take(&mut self.batch);
        for sample in &batch.samples {
            self.count(sample, batch.chain(sample));
        }
        self.batch = batch;
        self.counts.lost = self.batch.lost;
        self.counts.throttled = self.batch.throttled;
        self.counts.dropped = self.stacks.dropped();
        self.counts.threads = self.threads.seen();
        self.counts.missed = self.threads.missed();
        self.batch.clear();
        // So that journals become a quarter full.
        let wanted = pause.mul_f64((0.25 / self.tags.fill()).min(2.0));
        wanted.clamp(SHORTEST, PAUSE)
    }

    fn count(&mut self, sample: &Sample, chain: &[u64]) {
        self.counts.samples += 1;
        let tag = match self.tags.at(sample.thread, sample.time) {
            Tagged::By(Tag::NONE) => Tag::NONE,
            Tagged::By(tag) => {
                self.counts.tagged += 1;
                tag
            }
            Tagged::Torn => {
                self.counts.torn += 1;
                Tag::NONE
            }
        };
        let mut depth = self.depth(chain);
        if depth < chain.len() && self.looked.elapsed() > MAPS {
            self.modules = Modules::read();
            self.looked = clock::now();
            depth = self.depth(chain);
        }
        let owner = Owner {
            tag,
            thread: sample.name,
        };
        let addresses = chain[..depth].iter().enumerate();
        self.stacks.add(owner, addresses.map(place));
    }

    /// How much of a chain is code. Where a function keeps something else in the register for the frame, the kernel follows
    /// that, and what it finds is seldom code.
    fn depth(&self, chain: &[u64]) -> usize {
        let code = |link| self.modules.find(place(link)).is_some();
        let calls = chain.iter().enumerate().skip(1);
        chain.len().min(1) + calls.take_while(|link| code(*link)).count()
    }

    fn progress(&self) -> Progress {
        Progress {
            samples: self.counts.samples,
            lost: self.counts.lost,
            threads: self.counts.threads,
            elapsed: self.began.elapsed(),
        }
    }

    /// Gives everything back to the kernel, then finds names, unless nobody wants them any more.
    fn close(mut self, shared: &Shared) -> Profile {
        self.counts.duration = self.began.elapsed();
        drop(self.tagging);
        let names = self.threads.into_names();
        self.counts.cost = cpu_time(ClockId::ThreadCPUTime).saturating_sub(self.own);
        self.counts.cpu = cpu_time(ClockId::ProcessCPUTime).saturating_sub(self.process);
        shared.resolving();
        symbols::profile(self.counts, names, &self.stacks, &self.modules, || {
            shared.is_discarded()
        })
    }
}

/// Where link number `n` of a chain was: the instruction itself, and for its callers one that is still of the call, since a
/// return address may already belong to what comes next.
fn place((n, address): (usize, &u64)) -> u64 {
    match n {
        0 => *address,
        _ => address.wrapping_sub(1),
    }
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn paranoid() -> Option<i32> {
    let setting = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?;
    setting.trim().parse().ok()
}

// ===== impl Tagging =====

impl Tagging {
    fn begin() -> Self {
        tags::begin();
        Self
    }
}

impl Drop for Tagging {
    fn drop(&mut self) {
        tags::finish();
    }
}
