//! The queue behind the limit, from how far the round trip is above the least one.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Facts, Limit, Next, Step, Window, ordered, positive};

/// The least length of a window.
const LEAST: Duration = Duration::from_millis(100);
/// Fewer samples than this are waited for.
const FEW: u64 = 50;
/// A window ends after this with a fifth of them.
const LONG: Duration = Duration::from_secs(1);
/// The reference is measured anew after so many samples for each of the limit.
const PROBE: f64 = 30.0;

/// Keeps a short queue behind the limit.
///
/// ```text
/// queue  = ceil(limit * (1 - base / mean))       log = max(1, floor(log10(limit)))
/// limit' = limit + 6 * log    when queue <= log
///          limit + log        when queue < 3 * log
///          limit - log        when queue > 6 * log, or after overloads
/// ```
///
/// After `VegasLimit` of Netflix' `concurrency-limits`, which does this with each sample: the least of many samples of
/// a service with uneven requests is near zero, and the limit with it. Here a window of at least 100 ms, a round trip
/// and 50 samples takes the place of a sample, and `base` is the least mean of a window. As there, `base` is replaced
/// by the present mean after 30 samples for each of the limit (times 0.5 to 1), under whatever load there is: under
/// lasting overload it drifts upwards, and the limit follows. Nothing is raised while less than half of the limit is
/// in use; more than 1 % of overloads lower it.
///
/// Defaults: `initial(20)`, `bounds(1..=1000)`.
#[derive(Debug, Clone)]
pub struct Vegas {
    initial: usize,
    min: usize,
    max: usize,
    /// The least mean of a window, in seconds; 0 before the first.
    base: f64,
    gradient: f64,
    /// Samples since the reference was measured.
    samples: u64,
    /// The part of [`PROBE`] to wait for, from 0.5 to 1.
    jitter: f64,
}

// ===== impl Vegas =====

impl Vegas {
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

    /// Takes a window's mean as the reference, if it is due or lower.
    fn rebase(&mut self, window: &Window, mean: f64) {
        self.samples += window.samples;
        if self.samples as f64 >= self.jitter * PROBE * window.limit as f64 {
            self.base = mean;
            self.samples = 0;
            // Steps of the golden ratio spread evenly and never repeat.
            self.jitter = 0.5 + (self.jitter - 0.5 + 0.309_017) % 0.5;
        } else if self.base == 0.0 || mean < self.base {
            self.base = mean;
        }
    }
}

impl Default for Vegas {
    fn default() -> Self {
        Self {
            initial: 20,
            min: 1,
            max: 1000,
            base: 0.0,
            gradient: 1.0,
            samples: 0,
            jitter: 0.75,
        }
    }
}

impl Limit for Vegas {
    fn start(&self) -> usize {
        self.initial.clamp(self.min, self.max)
    }

    fn look(&mut self, window: &Window) -> Step {
        let overloaded = window.overloads > 0 && window.overloads > window.completions / 100;
        let seen = window.samples + window.overloads;
        let ripe = seen >= FEW || seen >= FEW / 5 && window.elapsed >= LONG;
        if !ripe || window.elapsed < window.mean.max(LEAST) {
            return Step::Wait(LEAST / 10);
        }
        if window.samples > 0 {
            let mean = window.mean.as_secs_f64().max(1e-6);
            self.rebase(window, mean);
            self.gradient = self.base / mean;
        }
        let limit = window.limit;
        let log = (limit.max(1).ilog10() as usize).max(1);
        let queue = (limit as f64 * (1.0 - self.gradient)).ceil() as usize;
        let next = if overloaded {
            limit.saturating_sub(log)
        } else if window.most_in_flight * 2 < limit {
            limit
        } else if queue <= log {
            limit + 6 * log
        } else if queue < 3 * log {
            limit + log
        } else if queue > 6 * log {
            limit.saturating_sub(log)
        } else {
            limit
        };
        Step::Close(Next::of(next.clamp(self.min, self.max), LEAST))
    }

    fn facts(&self) -> Facts {
        let known = self.base > 0.0;
        Facts {
            floor: known.then(|| Duration::from_secs_f64(self.base)),
            gradient: known.then_some(self.gradient),
            probing: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(limit: usize, busy: usize, mean: u64) -> Window {
        Window {
            elapsed: Duration::from_millis(500),
            limit,
            completions: 100,
            samples: 100,
            mean: Duration::from_millis(mean),
            most_in_flight: busy,
            ..Default::default()
        }
    }

    fn next(vegas: &mut Vegas, window: &Window) -> usize {
        match vegas.look(window) {
            Step::Close(next) => next.limit,
            Step::Wait(_) => panic!("the window stays open"),
        }
    }

    #[test]
    fn grows_by_how_short_the_queue_is() {
        let mut vegas = Vegas::default();
        assert_eq!(next(&mut vegas, &window(20, 20, 50)), 26);
        // 20 * (1 - 50 / 55) = 1.8: two queue.
        assert_eq!(next(&mut vegas, &window(20, 20, 55)), 21);
        // 20 * (1 - 50 / 62.5) = 4: between the marks.
        assert_eq!(next(&mut vegas, &window(20, 20, 61)), 20);
        assert_eq!(next(&mut vegas, &window(20, 20, 100)), 19);
    }

    #[test]
    fn holds_while_less_than_half_is_in_use() {
        assert_eq!(next(&mut Vegas::default(), &window(20, 9, 50)), 20);
    }

    #[test]
    fn overloads_lower_it_once() {
        let mut bad = window(100, 100, 50);
        bad.overloads = 80;
        assert_eq!(next(&mut Vegas::default(), &bad), 98);
    }

    #[test]
    fn measures_its_reference_anew() {
        let mut vegas = Vegas::default();
        next(&mut vegas, &window(20, 20, 50));
        for _ in 0..6 {
            next(&mut vegas, &window(20, 20, 80));
        }
        assert_eq!(vegas.facts().floor, Some(Duration::from_millis(80)));
    }

    #[test]
    #[should_panic(expected = "not 0")]
    fn a_least_of_zero_panics() {
        let _ = Vegas::default().bounds(0..=10);
    }
}
