//! Several pressures, sampled from time to time by whoever comes along.
//!
//! # Invariants
//!
//! - `turn` is held while signals are sampled, and only ever tried: one thread samples, nobody waits for it. A
//!   signal that never returns costs the one thread that asked; the others find `combined` out of date and fail open.
//! - A `machine` is locked for the few instructions that feed or read it, never while a signal runs.
//! - `due`, `combined` and `valid` are written by the holder of `turn` alone. Each stands for itself, so all are
//!   relaxed: `due` too early finds nothing to do, `combined` packs number and state into one word, `valid` a moment
//!   behind its `combined` is shorter than it need be.

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::machine::Machine;
use super::{Combined, Pressure, PressureSnapshot, PressureState};
use crate::base::clock::{self, Instant, nanos};

/// Several [`Pressure`]s and what they say together: the maximum.
///
/// Nothing runs in the background: whoever has time calls [`poll`](Self::poll), which samples what is due and hands
/// out the rest. [`due`](Self::due) tells for the price of one load whether there is anything to do. One thread samples
/// at a time, the others go on with what was known. What was known goes out of date: when nothing has been sampled for
/// the longest [`stale_after`](Pressure::stale_after) and a period, nobody is pressed.
///
/// ```
/// use tower_flow::clock;
/// use tower_flow::signal::{LagSignal, Pressure, PressureState, Pressures};
///
/// let lag = LagSignal::new("orders");
/// let pressures = Pressures::new([Pressure::new(lag.clone()).warn(0.0).critical(100.0)]);
/// lag.push(60.0);
/// let now = clock::now();
/// assert!(pressures.due(now));
/// assert_eq!(pressures.poll(now).pressure, 0.6);
/// assert!(!pressures.due(now), "sampled just now");
///
/// let orders = &pressures.snapshot()[0];
/// assert_eq!((&*orders.name, orders.value), ("orders", Some(60.0)));
/// assert_eq!(orders.state, PressureState::Warning);
/// ```
#[derive(Debug)]
pub struct Pressures {
    list: Box<[Entry]>,
    epoch: Instant,
    /// How long a sample counts.
    keep: Duration,
    /// Nanoseconds since `epoch` when the next signal is due.
    due: AtomicU64,
    /// See [`Combined::pack`].
    combined: AtomicU64,
    /// Nanoseconds since `epoch` until when `combined` counts.
    valid: AtomicU64,
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Entry {
    pressure: Pressure,
    /// Nanoseconds since `epoch` when it is due; touched by the holder of `turn` alone.
    due: AtomicU64,
    machine: Mutex<Machine>,
}

// ===== impl Pressures =====

impl Pressures {
    /// All of `pressures`; each is due at once.
    ///
    /// # Panics
    ///
    /// When one lacks a level, is critical below its warn level, or has the name of another.
    pub fn new(pressures: impl IntoIterator<Item = Pressure>) -> Self {
        let list: Box<[_]> = pressures.into_iter().map(Entry::new).collect();
        for (n, entry) in list.iter().enumerate() {
            let name = &entry.pressure.name;
            let twice = list[..n].iter().any(|other| other.pressure.name == *name);
            assert!(
                !twice,
                "two pressures are called {name:?}; tell them apart with `named`"
            );
        }
        let keep = |entry: &Entry| {
            let Pressure { every, .. } = entry.pressure;
            entry.pressure.silence().saturating_add(every)
        };
        Self {
            epoch: clock::now(),
            keep: list.iter().map(keep).max().unwrap_or_default(),
            due: AtomicU64::new(if list.is_empty() { u64::MAX } else { 0 }),
            combined: AtomicU64::new(Combined::default().pack()),
            valid: AtomicU64::new(0),
            turn: Mutex::new(()),
            list,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether a signal is due to be sampled.
    #[inline]
    pub fn due(&self, now: Instant) -> bool {
        self.since(now) >= self.due.load(Ordering::Relaxed)
    }

    /// Samples what is due, unless somebody else is about it, and tells what all say together.
    pub fn poll(&self, now: Instant) -> Combined {
        if self.due(now) {
            match self.turn.try_lock() {
                Ok(_turn) => self.sample(now),
                Err(TryLockError::Poisoned(turn)) => {
                    let _turn = turn.into_inner();
                    self.sample(now);
                }
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.combined(now)
    }

    /// What all said together when they were sampled last; nothing when that is too long ago.
    pub fn combined(&self, now: Instant) -> Combined {
        if self.since(now) > self.valid.load(Ordering::Relaxed) {
            return Combined::default();
        }
        Combined::unpack(self.combined.load(Ordering::Relaxed))
    }

    /// What there is to know about each, in the order given.
    pub fn snapshot(&self) -> Vec<PressureSnapshot> {
        self.list.iter().map(Entry::snapshot).collect()
    }

    fn since(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }

    /// Only for the holder of `turn`.
    fn sample(&self, now: Instant) {
        let at = self.since(now);
        let (mut next, mut combined) = (u64::MAX, Combined::default());
        for entry in &self.list {
            let mut due = entry.due.load(Ordering::Relaxed);
            if at >= due {
                entry.sample(now);
                due = at.saturating_add(nanos(entry.pressure.every));
                entry.due.store(due, Ordering::Relaxed);
            }
            next = next.min(due);
            let machine = entry.machine();
            combined.pressure = combined.pressure.max(machine.pressure());
            combined.state = combined.state.max(machine.state);
        }
        let valid = at.saturating_add(nanos(self.keep));
        self.combined.store(combined.pack(), Ordering::Relaxed);
        self.valid.store(valid, Ordering::Relaxed);
        self.due.store(next, Ordering::Relaxed);
    }
}

// ===== impl Entry =====

impl Entry {
    fn new(pressure: Pressure) -> Self {
        Self {
            machine: Mutex::new(Machine::new(pressure.settings())),
            due: AtomicU64::new(0),
            pressure,
        }
    }

    fn sample(&self, now: Instant) {
        // A signal is asked through a shared reference and nothing of ours is locked: what it leaves half done is its
        // own affair.
        let said = catch_unwind(AssertUnwindSafe(|| self.pressure.signal.sample()));
        let mut machine = self.machine();
        match said {
            Ok(said) => machine.observe(now, said),
            Err(_) => machine.fail(now),
        };
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self) -> PressureSnapshot {
        let machine = self.machine();
        PressureSnapshot {
            name: self.pressure.name.clone(),
            value: machine.value,
            level: machine.level,
            state: machine.state,
            samples: machine.samples,
            stale: machine.stale,
            failures: machine.failures,
        }
    }
}

// ===== impl Combined =====

impl Combined {
    /// Number and state in one word. A number from 0 to 1 leaves the two highest bits free: the sign, and the bit of
    /// the exponent that only numbers from 2 up have.
    fn pack(self) -> u64 {
        self.pressure.to_bits() | (self.state as u64) << 62
    }

    fn unpack(word: u64) -> Self {
        let state = match word >> 62 {
            0 => PressureState::Inactive,
            1 => PressureState::Warning,
            _ => PressureState::Active,
        };
        Self {
            pressure: f64::from_bits(word & (u64::MAX >> 2)),
            state,
        }
    }
}
