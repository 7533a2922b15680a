//! The samples of one thread: an event of the kernel and the ring it writes to.

use std::io;

use perf_event::data::Record;
use perf_event::events::Software;
use perf_event::{Builder, Clock, SampleFlag, Sampler};

/// What the kernel puts between the addresses of a chain to say whose they are, from here up.
const MARKERS: u64 = u64::MAX - 4094;

/// A thread's event, with the memory the kernel writes its samples to.
///
/// Dropped, both are gone.
pub(super) struct Ring {
    pub(super) thread: u32,
    sampler: Sampler,
}

/// What one ring held, or all of them: samples and the addresses they refer to.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) samples: Vec<Sample>,
    /// Of all samples, one after the other.
    addresses: Vec<u64>,
    /// Samples the kernel had no room for in a ring, and records that could not be read.
    pub(super) lost: u64,
    /// How often the kernel stopped sampling for a while since it took too long.
    pub(super) throttled: u64,
}

/// A sample, as the kernel took it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) thread: u32,
    /// The number of the name the thread had.
    pub(super) name: u16,
    /// By the kernel's monotonic clock, in nanoseconds.
    pub(super) time: u64,
    chain: (usize, usize),
}

// ===== impl Ring =====

impl Ring {
    /// Begins to sample `thread` after every `period` nanoseconds of CPU time. Of `sizes`, the first that is granted is the
    /// size of the ring, in bytes.
    pub(super) fn open(thread: u32, period: u64, sizes: &[usize]) -> io::Result<Self> {
        let mut builder = Builder::new(Software::CPU_CLOCK);
        builder
            .observe_pid(thread as i32)
            .any_cpu()
            .sample_period(period)
            .sample(SampleFlag::TIME | SampleFlag::CALLCHAIN)
            // What needs no privilege: the kernel neither samples itself nor shows its own part of a chain.
            .exclude_kernel(true)
            .exclude_hv(true)
            .exclude_callchain_kernel(true)
            // Tags are joined by this clock.
            .clockid(Clock::MONOTONIC)
            // A thread that names itself says so here.
            .comm(true);
        let mut error = None;
        for size in sizes {
            // What memory may be locked is limited by user, so a smaller ring may be had where a greater one is not.
            match builder.build()?.sampled(*size) {
                Ok(mut sampler) => {
                    sampler.enable()?;
                    return Ok(Self { thread, sampler });
                }
                Err(failed) => error = Some(failed),
            }
        }
        Err(error.unwrap_or_else(|| io::Error::other("a ring needs a size")))
    }

    /// Moves what the ring holds into `batch`. `name` is the number of the thread's name, and `names` gives one to a new name.
    pub(super) fn drain(&mut self, name: &mut u16, names: &mut Names, batch: &mut Batch) {
        while let Some(record) = self.sampler.next_record() {
            match record.parse_record() {
                Ok(Record::Sample(sample)) => {
                    let (Some(time), Some(chain)) = (sample.time(), sample.callchain()) else {
                        batch.lost += 1;
                        continue;
                    };
                    batch.push(self.thread, *name, time, chain);
                }
                Ok(Record::Comm(comm)) => {
                    *name = names.number(&String::from_utf8_lossy(&comm.comm))
                }
                Ok(Record::Lost(lost)) => batch.lost += lost.lost,
                Ok(Record::LostSamples(lost)) => batch.lost += lost.lost,
                Ok(Record::Throttle(_)) => batch.throttled += 1,
                Ok(_) => {}
                Err(_) => batch.lost += 1,
            }
        }
    }
}

// ===== impl Batch =====

impl Batch {
    fn push(&mut self, thread: u32, name: u16, time: u64, chain: &[u64]) {
        let start = self.addresses.len();
        let addresses = chain.iter().copied().filter(|address| *address < MARKERS);
        self.addresses.extend(addresses);
        self.samples.push(Sample {
            thread,
            name,
            time,
            chain: (start, self.addresses.len()),
        });
    }

    /// The addresses of `sample`: where it was, then where each call returns to.
    pub(super) fn chain(&self, sample: &Sample) -> &[u64] {
        &self.addresses[sample.chain.0..sample.chain.1]
    }

    /// Forgets samples and addresses. The counts go on.
    pub(super) fn clear(&mut self) {
        self.samples.clear();
        self.addresses.clear();
    }
}

/// The names of threads, each with a number.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<String>);

// ===== impl Names =====

impl Names {
    /// How many are told apart; the last stands for all others.
    const MOST: usize = 256;

    /// The number of `name`.
    pub(super) fn number(&mut self, name: &str) -> u16 {
        let known = |names: &[String]| names.iter().position(|known| known == name);
        let number = known(&self.0).unwrap_or_else(|| {
            if self.0.len() < Self::MOST {
                let last = self.0.len() == Self::MOST - 1;
                self.0.push(if last { "others" } else { name }.to_owned());
            }
            self.0.len() - 1
        });
        number as u16
    }

    pub(super) fn into_vec(self) -> Vec<String> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        let mut names = Names::default();
        for n in 0..1_000 {
            let number = names.number(&format!("worker-{n}"));
            assert_eq!(usize::from(number), n.min(Names::MOST - 1));
        }
        assert_eq!(names.number("worker-7"), 7);
        let names = names.into_vec();
        assert_eq!((names.len(), names[255].as_str()), (256, "others"));
    }
}
