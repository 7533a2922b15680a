//! Additive increase, multiplicative decrease: only signs of overload lower it.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Limit, Next, Step, Window, ordered, positive};

/// The least length of a window.
const LEAST: Duration = Duration::from_millis(100);
/// Fewer requests than this are waited for.
const FEW: u64 = 10;

/// One more with each good window, a tenth less with each bad one.
///
/// ```text
/// limit' = 0.9 * limit     when more than `tolerance` of the requests ended in overload, or mean > timeout
///          limit + 1       else, when at least half of the limit was in use
/// ```
///
/// After `AIMDLimit` of Netflix' `concurrency-limits`, but once a window (100 ms or a round trip, and 10 requests)
/// rather than with each request. It does not see queueing before it hurts: under lasting overload latencies stay near
/// the timeout. It suits clients that hear from their server when to slow down.
///
/// Defaults: `initial(20)`, `bounds(1..=1000)`, `timeout(5 s)`, `tolerance(0.05)`.
#[derive(Debug, Clone)]
pub struct Aimd {
    initial: usize,
    min: usize,
    max: usize,
    timeout: Duration,
    tolerance: f64,
}

// ===== impl Aimd =====

impl Aimd {
    /// The limit before anything is known. Default: 20.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[must_use]
    pub fn initial(mut self, limit: usize) -> Self {
        self.initial = positive("initial", limit);
        self
    }

    /// The least and the highest limit. Default: `1..=1000`.
    ///
    /// # Panics
    ///
    /// When the least is 0 or above the highest.
    #[must_use]
    pub fn bounds(mut self, bounds: RangeInclusive<usize>) -> Self {
        (self.min, self.max) = ordered(bounds);
        self
    }

    /// A mean round trip above this counts as overload. Default: 5 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The share of requests that may end in overload without lowering the limit. Default: 0.05.
    ///
    /// # Panics
    ///
    /// When it is not within 0 and 1.
    #[must_use]
    pub fn tolerance(mut self, share: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&share),
            "the tolerance must be within 0 and 1, not {share}"
        );
        self.tolerance = share;
        self
    }
}

impl Default for Aimd {
    fn default() -> Self {
        Self {
            initial: 20,
            min: 1,
            max: 1000,
            timeout: Duration::from_secs(5),
            tolerance: 0.05,
        }
    }
}

impl Limit for Aimd {
    fn start(&self) -> usize {
        self.initial.clamp(self.min, self.max)
    }

    fn look(&mut self, window: &Window) -> Step {
        let ended = window.completions + window.overloads;
        if ended < FEW || window.elapsed < window.mean.max(LEAST) {
            return Step::Wait(LEAST / 10);
        }
        let overloaded = window.overloads as f64 > self.tolerance * ended as f64;
        let limit = if overloaded || window.mean > self.timeout {
            (window.limit as f64 * 0.9) as usize
        } else if window.most_in_flight * 2 >= window.limit {
            window.limit + 1
        } else {
            window.limit
        };
        Step::Close(Next::of(limit.clamp(self.min, self.max), LEAST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(limit: usize, busy: usize, overloads: u64) -> Window {
        Window {
            elapsed: Duration::from_millis(200),
            limit,
            completions: 1000,
            samples: 1000,
            mean: Duration::from_millis(50),
            most_in_flight: busy,
            overloads,
            ..Default::default()
        }
    }

    fn next(limit: &mut Aimd, window: &Window) -> usize {
        match limit.look(window) {
            Step::Close(next) => next.limit,
            Step::Wait(_) => panic!("the window stays open"),
        }
    }

    #[test]
    fn one_more_while_half_is_in_use() {
        let mut aimd = Aimd::default();
        assert_eq!(next(&mut aimd, &window(20, 10, 0)), 21);
        assert_eq!(next(&mut aimd, &window(20, 9, 0)), 20);
        assert_eq!(next(&mut aimd, &window(1000, 1000, 0)), 1000);
    }

    #[test]
    fn many_overloads_lower_it_once() {
        let mut aimd = Aimd::default();
        assert_eq!(next(&mut aimd, &window(100, 100, 50)), 101);
        assert_eq!(next(&mut aimd, &window(100, 100, 500)), 90);
        assert_eq!(next(&mut aimd, &window(1, 1, 500)), 1);
    }

    #[test]
    fn a_round_trip_above_the_timeout_lowers_it() {
        let mut aimd = Aimd::default().timeout(Duration::from_millis(40));
        assert_eq!(next(&mut aimd, &window(100, 100, 0)), 90);
    }

    #[test]
    fn failures_that_say_nothing_leave_the_window_open() {
        let mut failing = window(100, 100, 0);
        (failing.completions, failing.samples, failing.ignored) = (0, 0, 1000);
        assert!(matches!(Aimd::default().look(&failing), Step::Wait(_)));
    }

    #[test]
    #[should_panic(expected = "not 0")]
    fn a_least_of_zero_panics() {
        let _ = Aimd::default().bounds(0..=10);
    }

    #[test]
    #[should_panic(expected = "the least limit, 5, must not be above the highest, 4")]
    #[allow(clippy::reversed_empty_ranges)]
    fn crossed_bounds_panic() {
        let _ = Aimd::default().bounds(5..=4);
    }
}
