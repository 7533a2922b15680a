//! Every thread of the process, with its ring; the profiler's own left out.

use std::collections::HashMap;
use std::{fs, io};

use super::ring::{Batch, Names, Ring};

/// How many threads are sampled at most.
const THREADS: usize = 512;
/// The deepest chain the kernel takes by default, with its header, in bytes.
const DEEPEST: usize = 1_072;

/// The rings.
pub(super) struct Threads {
    rings: HashMap<u32, Member>,
    /// Threads for which there is no ring, so that each is tried and counted once.
    refused: HashMap<u32, Round>,
    own: u32,
    period: u64,
    sizes: [usize; 2],
    most: usize,
    round: Round,
    names: Names,
    seen: u64,
    missed: u64,
}

struct Member {
    ring: Ring,
    name: u16,
    round: Round,
}

/// When a thread was last seen.
type Round = u64;

// ===== impl Threads =====

impl Threads {
    /// Nobody yet. `own` is left out, and rings have room for `pause` seconds.
    pub(super) fn new(own: u32, hz: u32, pause: f64) -> Self {
        let bytes = f64::from(hz) * pause * DEEPEST as f64;
        Self {
            rings: HashMap::new(),
            refused: HashMap::new(),
            own,
            period: 1_000_000_000 / u64::from(hz),
            // The memory that may be locked is limited by user: where there are many threads, one page each.
            sizes: [bytes as usize, 1],
            most: open_files().map_or(THREADS, |files| THREADS.min(files / 4)),
            round: 0,
            names: Names::default(),
            seen: 0,
            missed: 0,
        }
    }

    /// Looks for new threads and begins to sample them.
    ///
    /// # Errors
    ///
    /// When there is not one thread that can be sampled.
    pub(super) fn scan(&mut self) -> io::Result<()> {
        // Read to its end before anything is concluded from it: who is not in it has ended.
        let names: Vec<_> = fs::read_dir("/proc/self/task")?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()?;
        self.round += 1;
        let mut failed = None;
        for name in names {
            let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if thread == self.own {
                continue;
            }
            if let Some(member) = self.rings.get_mut(&thread) {
                member.round = self.round;
            } else if let Some(round) = self.refused.get_mut(&thread) {
                *round = self.round;
            } else if let Err(error) = self.join(thread) {
                failed = Some(error);
            }
        }
        self.refused.retain(|_, round| *round == self.round);
        match failed {
            Some(error) if self.rings.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    fn join(&mut self, thread: u32) -> io::Result<()> {
        let ring = match self.rings.len() < self.most {
            true => Ring::open(thread, self.period, &self.sizes),
            false => Err(io::Error::other("too many threads")),
        };
        let ring = match ring {
            Ok(ring) => ring,
            // It ended between the two looks at it.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Ok(());
            }
            Err(error) => {
                self.refused.insert(thread, self.round);
                self.missed += 1;
                return Err(error);
            }
        };
        // Read after the event was opened: a name given later is in the ring.
        let name = fs::read(format!("/proc/self/task/{thread}/comm")).unwrap_or_default();
        let name = self.names.number(String::from_utf8_lossy(&name).trim_end());
        self.seen += 1;
        let round = self.round;
        self.rings.insert(thread, Member { ring, name, round });
        Ok(())
    }

    /// Moves all samples into `batch`, and lets go of the threads that ended.
    pub(super) fn drain(&mut self, batch: &mut Batch) {
        let (names, round) = (&mut self.names, self.round);
        self.rings.retain(|_, member| {
            member.ring.drain(&mut member.name, names, batch);
            member.round == round
        });
    }

    /// How many were sampled, now or before.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// For how many there was no file descriptor or no memory.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    /// Gives everything back but the names.
    pub(super) fn into_names(self) -> Vec<String> {
        self.names.into_vec()
    }
}

/// How many files this process may have open.
fn open_files() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_of_open_files_is_known() {
        assert!(super::open_files().is_none_or(|files| files > 8));
    }
}
