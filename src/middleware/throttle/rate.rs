//! How likely a request is to be refused here: the formula over a sliding window.
//!
//! # Invariants
//!
//! - Counts only ever grow, and are kept elsewhere. `Ring::base` is what they were when the open slice began; a slice
//!   that closes keeps the difference. The window is the open slice and the closed ones before it.
//! - Whoever first asks after `due` moves the window on, under the lock, and stores the new threshold. Requests only
//!   ever try the lock: who does not get it goes by the threshold there is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::base::clock::nanos;

/// In how many steps a window moves on.
pub(super) const STEPS: u32 = 24;

/// How often the probability is computed at most.
const TICK: Duration = Duration::from_millis(100);

/// What became of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// The backend took them.
    pub(super) accepted: u64,
    /// The backend refused them.
    pub(super) refused: u64,
    /// They were refused here.
    pub(super) throttled: u64,
}

/// Google's formula and its bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Formula {
    pub(super) k: f64,
    pub(super) max_probability: f64,
    pub(super) min_requests: u64,
}

/// The probability for one backend.
#[derive(Debug)]
pub(super) struct Rate {
    formula: Formula,
    slice: u64,
    tick: u64,
    /// When the probability is to be computed again.
    due: AtomicU64,
    /// The probability, of 2^32.
    threshold: AtomicU32,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    base: Counts,
    open: u64,
    closed: VecDeque<(u64, Counts)>,
    /// Of all closed slices.
    sum: Counts,
}

// ===== impl Counts =====

impl Counts {
    fn requests(self) -> u64 {
        self.accepted + self.refused + self.throttled
    }

    fn plus(self, other: Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            refused: self.refused + other.refused,
            throttled: self.throttled + other.throttled,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            accepted: self.accepted.saturating_sub(other.accepted),
            refused: self.refused.saturating_sub(other.refused),
            throttled: self.throttled.saturating_sub(other.throttled),
        }
    }
}

// ===== impl Formula =====

impl Formula {
    /// `max(0, (requests - k * accepts) / (requests + 1))`, by Google's "Site Reliability Engineering", chapter 21.
    pub(super) fn probability(&self, counts: Counts) -> f64 {
        let requests = counts.requests();
        if requests < self.min_requests {
            return 0.0;
        }
        let (requests, accepts) = (requests as f64, counts.accepted as f64);
        let probability = (requests - self.k * accepts) / (requests + 1.0);
        probability.clamp(0.0, self.max_probability)
    }
}

// ===== impl Rate =====

impl Rate {
    /// Nothing was counted, nothing is refused.
    pub(super) fn new(formula: Formula, window: Duration) -> Self {
        let slice = nanos(window / STEPS);
        Self {
            formula,
            slice,
            tick: nanos(TICK).min(slice),
            due: AtomicU64::new(0),
            threshold: AtomicU32::new(0),
            ring: Mutex::default(),
        }
    }

    /// The share of requests to refuse, of 2^32, at the moment `at`.
    #[inline]
    pub(super) fn threshold(&self, at: u64, counts: impl FnOnce() -> Counts) -> u32 {
        if at >= self.due.load(Ordering::Relaxed) {
            self.turn(at, counts);
        }
        self.threshold.load(Ordering::Relaxed)
    }

    /// The same from 0 to 1, from all that was counted until now, for somebody who may wait.
    pub(super) fn probability(&self, at: u64, counts: impl FnOnce() -> Counts) -> f64 {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        self.compute(&mut ring, at, counts())
    }

    #[cold]
    fn turn(&self, at: u64, counts: impl FnOnce() -> Counts) {
        if let Ok(mut ring) = self.ring.try_lock()
            && at >= self.due.load(Ordering::Relaxed)
        {
            self.due
                .store(at.saturating_add(self.tick), Ordering::Relaxed);
            self.compute(&mut ring, at, counts());
        }
    }

    fn compute(&self, ring: &mut Ring, at: u64, counts: Counts) -> f64 {
        if at >= ring.open.saturating_add(self.slice) {
            let throttling = self.threshold.load(Ordering::Relaxed) > 0;
            ring.close(counts, at / self.slice * self.slice);
            if throttling {
                ring.forgive(self.formula.min_requests);
            }
            ring.expire(self.slice * u64::from(STEPS - 1));
        }
        let recent = ring.sum.plus(counts.minus(ring.base));
        let probability = self.formula.probability(recent);
        let threshold = (probability * 2f64.powi(32)) as u32;
        self.threshold.store(threshold, Ordering::Relaxed);
        probability
    }
}

// ===== impl Ring =====

impl Ring {
    /// Closes the open slice and opens the one that begins at `open`.
    fn close(&mut self, counts: Counts, open: u64) {
        let slice = counts.minus(self.base);
        self.closed.push_back((self.open, slice));
        self.sum = self.sum.plus(slice);
        self.base = counts;
        self.open = open;
    }

    /// Forgets what is older than the last slices in which the backend took `enough` requests and refused none: it is
    /// well again, and what it refused before, and what was refused here because of that, says nothing any more.
    fn forgive(&mut self, enough: u64) {
        let mut accepted = 0;
        for (index, (_, slice)) in self.closed.iter().enumerate().rev() {
            if slice.refused > 0 {
                return;
            }
            accepted += slice.accepted;
            if accepted >= enough.max(1) {
                for (_, old) in self.closed.drain(..index) {
                    self.sum = self.sum.minus(old);
                }
                return;
            }
        }
    }

    /// Forgets slices that began more than `span` before the open one.
    fn expire(&mut self, span: u64) {
        let oldest = self.open.saturating_sub(span);
        while let Some((start, slice)) = self.closed.front()
            && *start < oldest
        {
            self.sum = self.sum.minus(*slice);
            self.closed.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const GOOGLE: Formula = Formula {
        k: 2.0,
        max_probability: 0.9,
        min_requests: 10,
    };

    const SECOND: u64 = 1_000_000_000;

    fn counts(accepted: u64, refused: u64, throttled: u64) -> Counts {
        Counts {
            accepted,
            refused,
            throttled,
        }
    }

    #[test]
    fn the_formula_is_the_books() {
        let of =
            |accepted, refused, throttled| GOOGLE.probability(counts(accepted, refused, throttled));
        assert_eq!(of(0, 9, 0), 0.0, "too few to tell");
        assert_eq!(of(50, 50, 0), 0.0, "half of them is what K = 2 allows");
        assert_eq!(of(10, 90, 0), 80.0 / 101.0);
        assert_eq!(of(10, 10, 80), 80.0 / 101.0, "refused here counts as well");
        assert_eq!(of(0, 100_000, 0), 0.9, "one in ten gets through");
    }

    #[test]
    fn a_backend_that_is_well_again_is_forgiven_slice_by_slice() {
        let rate = Rate::new(GOOGLE, Duration::from_secs(24));
        let mut all = Counts::default();
        let mut at = 0;
        // Refuses everything for a window.
        for _ in 0..24 {
            all.refused += 10;
            all.throttled += 90;
            at += SECOND;
            rate.threshold(at, || all);
        }
        assert_eq!(rate.probability(at, || all), 0.9);
        let mut seen = Vec::new();
        for _ in 0..6 {
            let let_through = ((1.0 - rate.probability(at, || all)) * 100.0).round() as u64;
            all.accepted += let_through;
            all.throttled += 100 - let_through;
            at += SECOND;
            seen.push(let_through);
        }
        assert_eq!(seen[0], 10);
        assert!(seen.is_sorted() && seen[5] == 100, "{seen:?}");
    }

    #[test]
    fn one_refusal_in_a_slice_is_no_recovery() {
        let rate = Rate::new(GOOGLE, Duration::from_secs(24));
        let mut all = Counts::default();
        for second in 1..=24 {
            all = all.plus(counts(10, 1, 89));
            rate.threshold(second * SECOND, || all);
        }
        let probability = rate.probability(24 * SECOND, || all);
        assert!((probability - 0.8).abs() < 0.01, "{probability}");
    }

    #[test]
    fn idle_time_forgets_all() {
        let rate = Rate::new(GOOGLE, Duration::from_secs(24));
        let all = counts(0, 1_000, 0);
        rate.threshold(0, || all);
        assert!(rate.threshold(SECOND / 2, || all) > 0);
        assert_eq!(rate.threshold(100 * SECOND, || all), 0);
    }

    #[test]
    fn a_tick_computes_once() {
        let rate = Rate::new(GOOGLE, Duration::from_secs(24));
        let asked = std::cell::Cell::new(0);
        for at in 0..1_000 {
            rate.threshold(at * SECOND / 1_000, || {
                asked.set(asked.get() + 1);
                Counts::default()
            });
        }
        assert_eq!(asked.get(), 10);
    }

    proptest! {
        /// Against a list of everything that ever happened. Without a quiet slice nothing is forgiven.
        #[test]
        fn it_is_the_formula_over_a_list_of_times(
            steps in proptest::collection::vec((0u64..700, 0u64..4, 1u64..4, 0u64..4), 1..300),
            k in 1.0f64..4.0,
        ) {
            let formula = Formula { k, ..GOOGLE };
            let rate = Rate::new(formula, Duration::from_secs(24));
            let mut events: Vec<(u64, Counts)> = Vec::new();
            let mut all = Counts::default();
            let mut at = 0;
            for (step, accepted, refused, throttled) in steps {
                at += step * SECOND / 100;
                let oldest = (at / SECOND).saturating_sub(u64::from(STEPS) - 1) * SECOND;
                let within = events.iter().filter(|(at, _)| *at >= oldest);
                let within = within.fold(Counts::default(), |sum, (_, counts)| sum.plus(*counts));
                let expected = formula.probability(within);
                let probability = rate.probability(at, || all);
                prop_assert!((probability - expected).abs() < 1e-9, "{probability} {expected}");
                let happened = counts(accepted, refused, throttled);
                events.push((at, happened));
                all = all.plus(happened);
            }
        }

        #[test]
        fn whatever_is_counted_it_stays_within_its_bounds(
            steps in proptest::collection::vec((0u64..u64::MAX / 2, 0u64..1 << 40, 0u64..1 << 40, 0u64..1 << 40), 0..50),
            max_probability in 0.0f64..1.0,
        ) {
            let formula = Formula { max_probability, ..GOOGLE };
            let rate = Rate::new(formula, Duration::from_millis(24));
            let mut all = Counts::default();
            for (at, accepted, refused, throttled) in steps {
                // Time need not be ordered between threads.
                all = all.plus(counts(accepted, refused, throttled));
                let threshold = rate.threshold(at, || all);
                prop_assert!(f64::from(threshold) <= max_probability * 2f64.powi(32));
            }
        }
    }
}
