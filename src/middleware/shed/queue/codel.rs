use std::time::Duration;

use crate::base::clock::Instant;

/// The round trip to reckon with while the real one is not known.
const UNKNOWN: Duration = Duration::from_millis(20);

/// From this part of refused requests on the queue stands, whatever its delays say: one empty moment between bursts
/// does not mean that the load is gone.
const KNEE: f64 = 0.3;

/// How much of the newest interval goes into the part that is refused.
const GAIN: f64 = 0.3;

/// Tells a standing queue from a burst, and how long to wait in either.
///
/// A queue that empties now and then is doing its job. One whose shortest wait within a whole interval is longer than
/// half of what a request may wait is a delay line: everybody waits and nobody gains. While it stands, whoever waited
/// longer than the patience is shed, and the newest goes first.
///
/// ```text
/// patience = max(10 ms, floor * (0.5 + 13 * max(0, 1 - refused / 0.3)))
/// interval = max(100 ms, 5 * floor)
/// ```
///
/// `floor` is the service's own round trip and `refused` the part of all requests that was refused lately. Near its
/// capacity a service with uneven requests has bursts that a long wait rides out; far beyond it somebody is refused in
/// any case, and a long wait only makes the others late.
///
/// Source: the CoDel of folly (`folly/executors/Codel.cpp`), after Nichols and Jacobson, "Controlling Queue Delay",
/// whose target is fixed; the patience that shrinks with the part that is refused is this crate's.
#[derive(Debug, Clone)]
pub(super) struct Codel {
    /// Chosen by the user.
    fixed: (Option<Duration>, Option<Duration>),
    floor: Duration,
    /// The least delay noted in this interval.
    least: Duration,
    /// When this interval ends.
    end: Option<Instant>,
    standing: bool,
    /// The part of all requests that was refused lately.
    refused: f64,
    before: Tally,
}

/// How many requests there were, and how many of them found no slot in time; both since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::middleware::shed) struct Tally {
    pub(in crate::middleware::shed) offered: u64,
    pub(in crate::middleware::shed) refused: u64,
}

impl Codel {
    pub(super) fn new(patience: Option<Duration>, interval: Option<Duration>) -> Self {
        Self {
            fixed: (patience, interval),
            floor: UNKNOWN,
            least: Duration::ZERO,
            end: None,
            standing: false,
            refused: 0.0,
            before: Tally::default(),
        }
    }

    pub(super) fn tune(&mut self, floor: Option<Duration>) {
        // An algorithm may say anything; a minute is longer than anybody waits for one request.
        self.floor = floor.unwrap_or(UNKNOWN).min(Duration::from_secs(60));
    }

    /// Notes the delay of the one who waits longest; zero when nobody does. `tally` is asked once an interval. Returns
    /// whether an interval ended.
    pub(super) fn note(
        &mut self,
        now: Instant,
        delay: Duration,
        tally: impl FnOnce() -> Tally,
    ) -> bool {
        if self.end.is_some_and(|end| now <= end) {
            self.least = self.least.min(delay);
            return false;
        }
        self.standing = self.least > self.patience() / 2 || self.refused >= KNEE;
        let tally = tally();
        let offered = tally.offered.saturating_sub(self.before.offered);
        let refused = tally.refused.saturating_sub(self.before.refused);
        if offered > 0 {
            self.refused += GAIN * (refused as f64 / offered as f64 - self.refused);
        }
        self.before = tally;
        self.end = Some(now + self.interval());
        self.least = delay;
        true
    }

    /// Whether the queue has become a delay line.
    pub(super) fn standing(&self) -> bool {
        self.standing
    }

    /// Whether somebody who waited so long is to be shed.
    pub(super) fn sheds(&self, waited: Duration) -> bool {
        self.standing && waited > self.patience()
    }

    fn patience(&self) -> Duration {
        self.fixed.0.unwrap_or_else(|| {
            let stretch = 0.5 + 13.0 * (1.0 - self.refused / KNEE).max(0.0);
            self.floor.mul_f64(stretch).max(Duration::from_millis(10))
        })
    }

    fn interval(&self) -> Duration {
        let own = (self.floor * 5).max(Duration::from_millis(100));
        self.fixed.1.unwrap_or(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn fixed() -> Codel {
        Codel::new(Some(ms(10)), Some(ms(100)))
    }

    #[test]
    fn a_burst_is_no_standing_queue() {
        let mut codel = fixed();
        let start = clock::now();
        for n in 0..10 {
            codel.note(start + ms(10 * n), ms(50), Tally::default);
        }
        codel.note(start + ms(95), Duration::ZERO, Tally::default);
        codel.note(start + ms(101), ms(50), Tally::default);
        assert!(!codel.standing(), "it emptied once within the interval");
        assert!(!codel.sheds(ms(1_000)));
    }

    #[test]
    fn a_delay_that_never_falls_is_one_and_ends_when_it_does() {
        let mut codel = fixed();
        let start = clock::now();
        for n in 0..=21 {
            codel.note(start + ms(10 * n), ms(6), Tally::default);
        }
        assert!(codel.standing());
        assert!(codel.sheds(ms(11)));
        assert!(!codel.sheds(ms(10)));
        codel.note(start + ms(250), Duration::ZERO, Tally::default);
        codel.note(start + ms(400), ms(6), Tally::default);
        assert!(!codel.standing());
    }

    #[test]
    fn the_first_interval_sheds_nothing() {
        let mut codel = fixed();
        codel.note(clock::now(), ms(1_000), Tally::default);
        assert!(!codel.standing());
    }

    #[test]
    fn patience_shrinks_as_more_is_refused_and_one_empty_moment_does_not_restore_it() {
        let mut codel = Codel::new(None, None);
        codel.tune(Some(ms(50)));
        assert_eq!(codel.patience(), ms(675));
        let start = clock::now();
        for n in 1..=20u64 {
            let tally = || Tally {
                offered: 100 * n,
                refused: 50 * n,
            };
            codel.note(start + ms(300 * n), Duration::ZERO, tally);
        }
        assert_eq!(codel.patience(), ms(25));
        assert!(codel.standing(), "half of all are refused");
        for n in 21..=30u64 {
            let tally = || Tally {
                offered: 100 * n,
                refused: 1_000,
            };
            codel.note(start + ms(300 * n), Duration::ZERO, tally);
        }
        assert!(!codel.standing());
        assert!(codel.patience() > ms(400));
    }

    #[test]
    fn a_fast_service_is_given_ten_milliseconds() {
        let mut codel = Codel::new(None, None);
        codel.tune(Some(Duration::from_micros(100)));
        assert_eq!(codel.patience(), ms(10));
    }
}
