//! A histogram seen through a sliding window.
//!
//! # Invariants
//!
//! - The histogram only ever grows. `Ring::base` is what it held when the open slice began; a slice that closes keeps
//!   the difference. The window is the open slice and the closed ones before it that began within its span.
//! - Whoever first records or reads after `due` closes the slice, under the lock; writers only ever try the lock, so
//!   no request waits for a reader. A value recorded by another thread in the very moment of closing falls into one
//!   slice or the next, never into both or none.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::exponential::{Counts, Exponential};
use super::quantiles::Quantiles;
use crate::base::clock::{self, Instant, nanos};

/// How far back a sliding window looks, and in how many steps it moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    slice: Duration,
    slices: usize,
}

/// A histogram of which the last part can be read: everything within the [`Window`], to one slice.
#[derive(Debug)]
pub struct Sliding {
    whole: Exponential,
    window: Window,
    epoch: Instant,
    wall: SystemTime,
    due: AtomicU64,
    ring: Mutex<Ring>,
}

/// One slice of a [`Sliding`] histogram.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Slice {
    /// When it began.
    pub start: SystemTime,
    /// How long it is, or has been open.
    pub length: Duration,
    /// What was recorded in it.
    pub counts: Counts,
}

#[derive(Debug)]
struct Ring {
    base: Counts,
    open: u64,
    closed: VecDeque<Closed>,
}

#[derive(Debug)]
struct Closed {
    start: u64,
    filled: Box<[(u16, u64)]>,
    sum: u64,
}

// ===== impl Window =====

impl Window {
    /// A window of `span`, moving on in `slices` steps.
    ///
    /// # Panics
    ///
    /// When there are no slices, more than 600 of them, or one would be shorter than a millisecond.
    pub fn new(span: Duration, slices: usize) -> Self {
        assert!(
            (1..=600).contains(&slices),
            "a window has 1 to 600 slices, not {slices}"
        );
        let slice = span / slices as u32;
        assert!(
            slice >= Duration::from_millis(1),
            "a slice of {slice:?} ({span:?} in {slices}) is shorter than a millisecond"
        );
        Self { slice, slices }
    }

    /// How far back it looks.
    pub fn span(&self) -> Duration {
        self.slice * self.slices as u32
    }
}

impl Default for Window {
    /// A minute, in six steps.
    fn default() -> Self {
        Self::new(Duration::from_secs(60), 6)
    }
}

// ===== impl Sliding =====

impl Sliding {
    /// An empty histogram, seen through `window`.
    pub fn new(window: Window) -> Self {
        Self {
            whole: Exponential::new(),
            window,
            epoch: clock::now(),
            wall: clock::wall(),
            due: AtomicU64::new(nanos(window.slice)),
            ring: Mutex::new(Ring {
                base: Counts::zero(),
                open: 0,
                closed: VecDeque::new(),
            }),
        }
    }

    /// Records a duration that was measured at `now`.
    #[inline]
    pub fn record(&self, now: Instant, duration: Duration) {
        let at = self.at(now);
        if at >= self.due.load(Ordering::Relaxed) {
            self.turn(at);
        }
        self.whole.record(duration);
    }

    /// Everything since the beginning.
    pub fn whole(&self) -> &Exponential {
        &self.whole
    }

    /// What was recorded within the window.
    pub fn recent(&self, now: Instant) -> Counts {
        let ring = self.lock(now);
        let mut recent = self.whole.counts().since(&ring.base);
        for closed in &ring.closed {
            recent.add_sparse(&closed.filled, closed.sum);
        }
        recent
    }

    /// The quantiles of what was recorded within the window.
    pub fn quantiles(&self, now: Instant) -> Quantiles {
        self.recent(now).quantiles()
    }

    /// The window slice by slice, oldest first; the last one is still open.
    pub fn slices(&self, now: Instant) -> Vec<Slice> {
        let ring = self.lock(now);
        let mut slices: Vec<_> = ring
            .closed
            .iter()
            .map(|closed| {
                let mut counts = Counts::zero();
                counts.add_sparse(&closed.filled, closed.sum);
                Slice {
                    start: self.wall + Duration::from_nanos(closed.start),
                    length: self.window.slice,
                    counts,
                }
            })
            .collect();
        slices.push(Slice {
            start: self.wall + Duration::from_nanos(ring.open),
            length: Duration::from_nanos(self.at(now).saturating_sub(ring.open)),
            counts: self.whole.counts().since(&ring.base),
        });
        slices
    }

    #[inline]
    fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }

    #[cold]
    fn turn(&self, at: u64) {
        // Contended means that somebody is closing the slice or reading it; the next record will see to the rest.
        if let Ok(mut ring) = self.ring.try_lock() {
            self.close(&mut ring, at);
        }
    }

    fn lock(&self, now: Instant) -> MutexGuard<'_, Ring> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        self.close(&mut ring, self.at(now));
        ring
    }

    fn close(&self, ring: &mut Ring, at: u64) {
        if at < self.due.load(Ordering::Relaxed) {
            return;
        }
        let slice = nanos(self.window.slice);
        let open = at / slice * slice;
        self.due
            .store(open.saturating_add(slice), Ordering::Relaxed);

        let now = self.whole.counts();
        let (filled, sum) = now.since(&ring.base).to_sparse();
        let start = ring.open;
        ring.closed.push_back(Closed { start, filled, sum });
        ring.base = now;
        ring.open = open;
        let oldest = open.saturating_sub(slice * (self.window.slices as u64 - 1));
        while ring
            .closed
            .front()
            .is_some_and(|closed| closed.start < oldest)
        {
            ring.closed.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    use proptest::prelude::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn old_values_leave_slice_by_slice() {
        let sliding = Sliding::new(Window::default());
        let start = sliding.epoch;
        for second in 0..120 {
            sliding.record(start + secs(second), Duration::from_millis(second + 1));
        }
        let recent = sliding.recent(start + secs(119));
        assert_eq!(recent.count(), 60, "five closed slices and the open one");
        let least = recent.quantiles().min.as_millis();
        assert!((60..=62).contains(&least), "{least}");
        assert_eq!(sliding.recent(start + secs(169)).count(), 10);
        assert_eq!(sliding.recent(start + secs(170)).count(), 0);
        assert_eq!(sliding.whole().counts().count(), 120);
    }

    #[test]
    fn silence_empties_the_window_without_any_reader() {
        let sliding = Sliding::new(Window::default());
        let start = sliding.epoch;
        sliding.record(start, secs(1));
        sliding.record(start + secs(3600), secs(2));
        let recent = sliding.recent(start + secs(3600));
        assert_eq!((recent.count(), recent.sum()), (1, secs(2)));
    }

    #[test]
    fn slices_tell_when_they_began() {
        let sliding = Sliding::new(Window::new(secs(3), 3));
        let start = sliding.epoch;
        sliding.record(start, secs(1));
        sliding.record(start + secs(1), secs(1));
        sliding.record(start + secs(1), secs(1));
        let slices = sliding.slices(start + Duration::from_millis(2500));
        let counts: Vec<_> = slices.iter().map(|slice| slice.counts.count()).collect();
        assert_eq!(counts, [1, 2, 0]);
        assert_eq!(slices[1].start, sliding.wall + secs(1));
        assert_eq!(slices[2].length, Duration::from_millis(500));
    }

    #[test]
    #[should_panic(expected = "shorter than a millisecond")]
    fn a_window_too_fine_is_refused() {
        Window::new(Duration::from_millis(5), 6);
    }

    proptest! {
        #[test]
        fn it_counts_what_a_list_of_times_counts(
            steps in proptest::collection::vec((0u64..4_000, any::<bool>()), 1..200),
            slices in 1usize..8,
        ) {
            let slice = 1_000u64;
            let sliding = Sliding::new(Window::new(Duration::from_millis(slice * slices as u64), slices));
            let mut at = 0;
            let mut model = VecDeque::new();
            for (step, read) in steps {
                at += step;
                let now = sliding.epoch + Duration::from_millis(at);
                sliding.record(now, secs(1));
                model.push_back(at);
                let oldest = (at / slice + 1).saturating_sub(slices as u64) * slice;
                model.retain(|at| *at >= oldest);
                if read {
                    prop_assert_eq!(sliding.recent(now).count(), model.len() as u64);
                }
            }
        }
    }
}
