//! Who waits for room.
//!
//! The gate reserves nothing: a caller that is woken looks again, and one that comes late finds the hard cap. One is woken for
//! every place that becomes free; one that is woken and leaves, or finds more room than it needs, wakes the next; one that
//! is woken in vain has its turn again; whoever comes while others wait is behind them. A caller that is woken and never
//! comes holds up the others no longer than until nothing is under way: then all in line are woken.

use std::collections::BTreeMap;
use std::task::Waker;

/// A place in the line, by the order of those who came. Nobody else's: the number is never given twice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat(u64);

#[derive(Debug, Default)]
pub(super) struct Line {
    /// Those who were not woken.
    waiting: BTreeMap<u64, Waker>,
    came: u64,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Waits in its turn, which one that has no seat has after all others. Gives a waker that is not needed any more.
    pub(super) fn wait(&mut self, seat: &mut Option<Seat>, waker: &Waker) -> Option<Waker> {
        let waker = waker.clone();
        let Seat(number) = *seat.get_or_insert_with(|| {
            self.came += 1;
            Seat(self.came)
        });
        self.waiting.insert(number, waker)
    }

    /// Whoever first came, unless nobody waits.
    pub(super) fn next(&mut self) -> Option<Waker> {
        self.waiting.pop_first().map(|(_, waker)| waker)
    }

    /// Of all who wait, who go on waiting.
    pub(super) fn wakers(&self) -> impl Iterator<Item = Waker> {
        self.waiting.values().cloned()
    }

    /// Gives a seat back, with its waker unless that was woken.
    pub(super) fn leave(&mut self, Seat(number): Seat) -> Option<Waker> {
        self.waiting.remove(&number)
    }
}
