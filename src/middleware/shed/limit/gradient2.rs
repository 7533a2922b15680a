//! The ratio of the long-term to the present round trip.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Facts, Limit, Next, Step, Window, ordered, positive};

/// The length of a window.
const LENGTH: Duration = Duration::from_secs(1);
/// Fewer samples than this are waited for.
const FEW: u64 = 10;
/// How much the round trip may rise above its long-term average before the limit is lowered.
const TOLERANCE: f64 = 1.5;
/// The weight of a new limit.
const SMOOTHING: f64 = 0.2;
/// How many may queue: what the limit grows by while the gradient is 1.
const QUEUE: f64 = 4.0;
/// Windows in the long-term average, and those at its start that it takes the plain mean of.
const LONG: f64 = 600.0;
const WARM_UP: u32 = 10;

/// Lowers the limit while round trips are well above their own long-term average.
///
/// ```text
/// gradient = clamp(1.5 * long / short, 0.5, 1)
/// limit'   = 0.8 * limit + 0.2 * (limit * gradient + 4)
/// ```
///
/// `short` is the mean round trip of a window of 1 s with at least 10 samples, `long` its exponential average over 600
/// windows (the plain mean of the first 10), brought down by 5 % a window while it is more than twice `short`. Nothing
/// changes while less than half of the limit is in use.
///
/// After `Gradient2Limit` within `WindowedLimit` of Netflix' `concurrency-limits`, whose limits of 20 to 200 are wider
/// here. That one ignores overloads; here a window with more overloads than completions has a gradient of 0.5. It
/// adapts slowly, by 4 a window of five at most, and a lasting overload becomes its normal state in ten minutes.
///
/// Defaults: `initial(20)`, `bounds(1..=1000)`.
#[derive(Debug, Clone)]
pub struct Gradient2 {
    initial: usize,
    min: usize,
    max: usize,
    /// The limit with its fraction.
    exact: f64,
    /// The long-term round trip in seconds.
    long: f64,
    windows: u32,
    gradient: f64,
}

// ===== impl Gradient2 =====

impl Gradient2 {
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

    fn learn(&mut self, short: f64) {
        self.windows = self.windows.saturating_add(1);
        let weight = if self.windows <= WARM_UP {
            1.0 / f64::from(self.windows)
        } else {
            2.0 / (LONG + 1.0)
        };
        self.long += weight * (short - self.long);
        if self.long > 2.0 * short {
            self.long *= 0.95;
        }
    }
}

impl Default for Gradient2 {
    fn default() -> Self {
        Self {
            initial: 20,
            min: 1,
            max: 1000,
            exact: 0.0,
            long: 0.0,
            windows: 0,
            gradient: 1.0,
        }
    }
}

impl Limit for Gradient2 {
    fn start(&self) -> usize {
        self.initial.clamp(self.min, self.max)
    }

    fn first_look(&self) -> Duration {
        LENGTH
    }

    fn look(&mut self, window: &Window) -> Step {
        let overloaded = window.overloads >= FEW && window.overloads > window.completions;
        if window.elapsed < LENGTH || window.samples < FEW && !overloaded {
            return Step::Wait(LENGTH.saturating_sub(window.elapsed).max(LENGTH / 10));
        }
        // Whoever owns it may have set another limit.
        if self.exact as usize != window.limit {
            self.exact = window.limit as f64;
        }
        if overloaded {
            self.gradient = 0.5;
        } else {
            let short = window.mean.as_secs_f64().max(1e-6);
            self.learn(short);
            self.gradient = (TOLERANCE * self.long / short).clamp(0.5, 1.0);
        }
        if overloaded || window.most_in_flight * 2 >= window.limit {
            let aim = self.exact * self.gradient + QUEUE;
            let next = (1.0 - SMOOTHING) * self.exact + SMOOTHING * aim;
            self.exact = next.clamp(self.min as f64, self.max as f64);
        }
        Step::Close(Next::of(self.exact as usize, LENGTH))
    }

    fn facts(&self) -> Facts {
        let known = self.windows > 0;
        Facts {
            floor: known.then(|| Duration::from_secs_f64(self.long)),
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
            elapsed: LENGTH,
            limit,
            completions: 500,
            samples: 500,
            mean: Duration::from_millis(mean),
            most_in_flight: busy,
            ..Default::default()
        }
    }

    fn run(gradient: &mut Gradient2, mut limit: usize, mean: u64, windows: usize) -> usize {
        for _ in 0..windows {
            match gradient.look(&window(limit, limit, mean)) {
                Step::Close(next) => limit = next.limit,
                Step::Wait(_) => panic!("the window stays open"),
            }
        }
        limit
    }

    #[test]
    fn grows_while_the_round_trip_is_level() {
        // 0.2 * 4 a window.
        assert_eq!(run(&mut Gradient2::default(), 20, 50, 10), 28);
    }

    #[test]
    fn shrinks_while_it_is_far_above_the_average() {
        let mut gradient = Gradient2::default();
        let limit = run(&mut gradient, 100, 50, 20);
        assert!(run(&mut gradient, limit, 200, 5) < limit * 7 / 10);
        assert!(
            gradient
                .facts()
                .gradient
                .is_some_and(|gradient| gradient < 0.6)
        );
    }

    #[test]
    fn holds_while_less_than_half_is_in_use() {
        let step = Gradient2::default().look(&window(100, 49, 50));
        assert_eq!(step, Step::Close(Next::of(100, LENGTH)));
    }

    #[test]
    fn stays_within_its_bounds() {
        let mut gradient = Gradient2::default().bounds(5..=30);
        assert_eq!(run(&mut gradient, 20, 50, 50), 30);
    }

    #[test]
    fn nothing_but_overloads_lowers_it() {
        let mut bad = window(100, 100, 0);
        (bad.completions, bad.samples, bad.overloads) = (0, 0, 50);
        assert_eq!(
            Gradient2::default().look(&bad),
            Step::Close(Next::of(90, LENGTH))
        );
    }

    #[test]
    #[should_panic(expected = "not 0")]
    fn a_least_of_zero_panics() {
        let _ = Gradient2::default().bounds(0..=10);
    }
}
