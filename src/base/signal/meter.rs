//! Turns counters that grow into a rate: what the signals that read the system have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::base::clock::{self, Instant};
use crate::base::stats::Ewma;

/// The shortest interval a rate is computed over. Below it the counters' own grain shows: ticks of 10 ms.
const SHORTEST: Duration = Duration::from_millis(100);

/// Half of what was is forgotten within this time, the period at which a [`Pressure`](super::Pressure) samples: the
/// past weighs as much as the present then, less when the samples are further apart.
const HALF_LIFE: Duration = Duration::from_millis(250);

/// The last reading of some counters, and the rate at which they grew.
///
/// The lock is held while the counters are read, which takes microseconds.
#[derive(Debug)]
pub(super) struct Meter<R> {
    smooth: bool,
    faults: AtomicU64,
    state: Mutex<State<R>>,
}

#[derive(Debug)]
struct State<R> {
    tried: Option<Instant>,
    last: Option<(Instant, R)>,
    average: Ewma,
    value: Option<f64>,
}

impl<R> Meter<R> {
    /// A meter that says what the last interval was like.
    #[cfg(any(feature = "signal", test))]
    pub(super) fn raw() -> Self {
        Self::new(false)
    }

    /// A meter that says what the last few intervals were like.
    pub(super) fn smooth() -> Self {
        Self::new(true)
    }

    fn new(smooth: bool) -> Self {
        Self {
            smooth,
            faults: AtomicU64::new(0),
            state: Mutex::new(State {
                tried: None,
                last: None,
                average: average(),
                value: None,
            }),
        }
    }

    /// How many readings were of no use.
    pub(super) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// The rate since the last reading; what it was then, if that is not long ago.
    ///
    /// `rate` gets the reading before, the one now and the time between. It answers `None` when the two do not belong
    /// together. That and a reading that fails are counted; the next rate begins anew then.
    pub(super) fn sample(
        &self,
        read: impl FnOnce() -> Option<R>,
        rate: impl FnOnce(&R, &mut R, Duration) -> Option<f64>,
    ) -> Option<f64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        let early = |tried| now.saturating_duration_since(tried) < SHORTEST;
        if state.tried.is_some_and(early) {
            return state.value;
        }
        state.tried = Some(now);
        state.value = None;
        let before = state.last.take();
        let mut reading = read();
        let rate = match (&before, &mut reading) {
            (Some((then, before)), Some(reading)) => {
                let elapsed = now.saturating_duration_since(*then);
                rate(before, reading, elapsed)
                    .filter(|rate| rate.is_finite() && *rate >= 0.0)
                    .map(|rate| (rate, elapsed))
            }
            _ => None,
        };
        if reading.is_none() || (before.is_some() && rate.is_none()) {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        state.last = reading.map(|reading| (now, reading));
        match rate {
            Some((rate, elapsed)) if self.smooth => {
                state.average.record(rate, elapsed);
                state.value = state.average.value();
            }
            Some((rate, _)) => state.value = Some(rate),
            None => state.average = average(),
        }
        state.value
    }
}

fn average() -> Ewma {
    Ewma::new(HALF_LIFE.div_f64(std::f64::consts::LN_2))
}

/// How far a counter has come; `None` when it went back.
pub(super) fn grown(before: u64, now: u64) -> Option<f64> {
    now.checked_sub(before).map(|grown| grown as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn per_second(before: &u64, now: &mut u64, elapsed: Duration) -> Option<f64> {
        Some(grown(*before, *now)? / elapsed.as_secs_f64())
    }

    async fn after(meter: &Meter<u64>, wait: u64, reading: Option<u64>) -> Option<f64> {
        tokio::time::advance(Duration::from_millis(wait)).await;
        meter.sample(|| reading, per_second)
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_needs_two_readings() {
        let meter = Meter::raw();
        assert_eq!(after(&meter, 0, Some(10)).await, None);
        assert_eq!(after(&meter, 500, Some(20)).await, Some(20.0));
        assert_eq!(meter.faults(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_again_too_soon_hears_the_same() {
        let meter = Meter::raw();
        after(&meter, 0, Some(0)).await;
        let first = after(&meter, 100, Some(1)).await;
        tokio::time::advance(Duration::from_millis(99)).await;
        let again = meter.sample(|| unreachable!("read too soon"), per_second);
        assert_eq!(again, first);
        assert_eq!(after(&meter, 1, Some(1)).await, Some(0.0));
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_the_past_is_forgotten_in_a_period() {
        let meter = Meter::smooth();
        after(&meter, 0, Some(0)).await;
        assert_eq!(after(&meter, 250, Some(250)).await, Some(1000.0));
        let value = after(&meter, 250, Some(250)).await.unwrap();
        assert!((value - 500.0).abs() < 1e-6, "{value}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_counter_that_goes_back_or_away_is_counted_and_starts_anew() {
        let meter = Meter::smooth();
        after(&meter, 0, Some(100)).await;
        assert_eq!(after(&meter, 250, Some(50)).await, None);
        assert_eq!(meter.faults(), 1);
        assert_eq!(after(&meter, 250, Some(75)).await, Some(100.0));
        assert_eq!(after(&meter, 250, None).await, None);
        assert_eq!(meter.faults(), 2);
        assert_eq!(
            after(&meter, 250, Some(75)).await,
            None,
            "nothing to compare with"
        );
        assert_eq!(
            after(&meter, 250, Some(76)).await,
            Some(4.0),
            "the past is gone"
        );
        assert_eq!(meter.faults(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_while_reading_breaks_nothing() {
        let meter = Meter::raw();
        after(&meter, 0, Some(1)).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        let panics = std::panic::AssertUnwindSafe(|| meter.sample(|| panic!("no"), per_second));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(after(&meter, 1000, Some(5)).await, None);
        assert_eq!(after(&meter, 1000, Some(7)).await, Some(2.0));
    }

    proptest! {
        #[test]
        fn a_rate_is_a_number_that_is_not_negative(
            readings in proptest::collection::vec((0u64..3000, proptest::option::of(any::<u64>())), 1..50),
            smooth in any::<bool>(),
        ) {
            let paused = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            paused.block_on(async {
                let meter = Meter::new(smooth);
                for (wait, reading) in readings {
                    if let Some(value) = after(&meter, wait, reading).await {
                        assert!(value.is_finite() && value >= 0.0, "{value}");
                    }
                }
            });
        }
    }
}
