//! The default: what the service has room for, from its throughput and its round trip without queueing.

mod estimate;

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Facts, Limit, Next, Step, Window, ordered, positive};
use estimate::Estimate;

/// How often a window that is not ripe is looked at again.
const AGAIN: Duration = Duration::from_millis(10);
/// The least length of a window.
const LEAST: Duration = Duration::from_millis(100);
/// Fewer samples than this say nothing.
const FEW: u64 = 20;
/// Seconds from one probe to the next: at first, after a surprise, and at most.
const PROBE_EVERY: (f64, f64, f64) = (2.0, 8.0, 32.0);
/// Seconds more before any probe: each one costs throughput where the estimates are low.
const PROBE_PAUSE: f64 = 4.0;
/// While no greater part is refused, waiting in front of the service is as good as waiting in it, and a limit that is
/// lowered by mistake costs throughput.
const FEW_REFUSED: f64 = 0.01;
/// A floor that nothing confirmed for so many seconds gives way to the least round trip seen meanwhile. More than two
/// probes apart: while it is saturated, probes confirm it, and what is seen between them is queueing.
const STALE: f64 = 80.0;

/// Finds the limit by itself: a little more than the bandwidth-delay product of the service behind it.
///
/// ```text
/// bdp   = throughput * floor                     (throughput: completions/s while the limit is full)
/// v     = deviation / mean of the service's round trips
/// u     = min(1, v)
/// limit = max(bdp + 1 + 3 * u, bdp * (1.15 + 0.15 * min(9, v * v)) + 0.5 * u * sqrt(bdp))
/// ```
///
/// The *floor* is the mean round trip without queueing. It is measured, not taken from a minimum: the least of many
/// samples of a service with uneven requests is near zero. While the service is saturated the limit goes down to
/// `0.97 * bdp` for ten floors, first after 6 s, then ever more rarely, up to each 36 s; three floors pass before the
/// measurement, since the first to complete after a change are the short ones. Floor and throughput are combined with
/// earlier values by their standard errors (a Kalman filter in one dimension), and replaced by a value that is more
/// than 2.5 errors away. A lower throughput counts with three times its error: too high a guess costs some waiting, too
/// low a one lowers the limit and with it the next throughput.
///
/// At the start the limit is 16 and doubles with each window for as long as the throughput follows; where the first
/// doubling brings nothing it is halved until the throughput follows down. A limit under which callers time out is
/// halved at once, and not gone back to.
///
/// The limit is raised only while it is full and lowered only while it is full, requests queue behind it and more than
/// 1 % are refused, so
/// neither an idle hour nor a fast failure moves it. Windows with more than half as many overloads as completions
/// lower it by a fifth.
///
/// Related: the `minRTT` probe of Envoy's `adaptive_concurrency` (limit 3, 50 requests), the gradient of Netflix'
/// `concurrency-limits`, and BBR's model of a path. Defaults: `initial(16)`, `bounds(1..=10_000)`.
#[derive(Debug, Clone)]
pub struct Bdp {
    initial: usize,
    min: usize,
    max: usize,
    phase: Phase,
    /// Seconds.
    floor: Estimate,
    /// Completions per second while the limit is full.
    peak: Estimate,
    /// Deviation over mean of the round trips, smoothed.
    variation: f64,
    /// Floor over the last round trip.
    gradient: f64,
    /// Full windows in a row.
    full: u32,
    /// The limit and the throughput of the last full window.
    last: Option<(f64, f64)>,
    /// When the last probe ended, and how long to wait for the next one.
    probed: f64,
    every: f64,
    /// When the floor was confirmed, and the least round trip since.
    confirmed: f64,
    least: f64,
    /// The least limit at the start under which callers timed out.
    ceiling: f64,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The first window: short requests complete first, so it counts for nothing.
    Start,
    /// Doubling; what the last full window was.
    Up(Option<Full>),
    /// Halving.
    Down(Full),
    /// Following throughput and floor.
    Steady,
    /// Measuring the floor at a lower limit.
    Probe,
}

/// A window whose limit was full.
#[derive(Debug, Clone, Copy)]
struct Full {
    limit: f64,
    throughput: f64,
    round_trip: f64,
}

// ===== impl Bdp =====

impl Bdp {
    /// The limit before anything is known. Default: 16.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[must_use]
    pub fn initial(mut self, limit: usize) -> Self {
        self.initial = positive("initial", limit);
        self
    }

    /// The least and the highest limit. Default: `1..=10_000`.
    ///
    /// # Panics
    ///
    /// When the least is 0 or above the highest.
    #[must_use]
    pub fn bounds(mut self, bounds: RangeInclusive<usize>) -> Self {
        (self.min, self.max) = ordered(bounds);
        self
    }

    /// The limit for a bandwidth-delay product.
    fn roomy(&self, bdp: f64) -> f64 {
        // Both estimates are the less certain the more uneven the requests are, and the fewer run at a time.
        let (square, uneven) = (self.variation.powi(2).min(9.0), self.variation.min(1.0));
        let room = bdp * (1.15 + 0.15 * square) + 0.5 * uneven * bdp.sqrt();
        // At least one more: a limit that holds just what runs would never learn that more could.
        room.max(bdp + 1.0 + 3.0 * uneven)
    }

    fn close(&self, limit: f64, settle: f64) -> Step {
        let limit = (limit.round() as usize).clamp(self.min, self.max);
        Step::Close(Next::of(limit, LEAST).after(seconds(settle)))
    }

    /// Whether a window has seen enough. The samples it needs depend on earlier windows only: one that closes as soon
    /// as its own error is small closes early just when the long requests are missing from it.
    fn ripe(&self, window: &Window) -> bool {
        let elapsed = window.elapsed.as_secs_f64();
        let floor = self.floor.or(0.0);
        // (least floors, wanted error, most samples, most seconds, most floors)
        let (floors, error, most, end, end_floors) = match self.phase {
            Phase::Start => return window.samples >= FEW,
            Phase::Up(_) | Phase::Down(_) => (1.5, 0.2, 400.0, 0.5, 4.0),
            Phase::Steady => (2.0, 0.12, 1000.0, 2.0, 10.0),
            Phase::Probe => (10.0, 0.15, 1000.0, 1.0, 20.0),
        };
        let wanted = (self.variation / error).powi(2).clamp(100.0, most);
        window.samples >= FEW
            && elapsed >= (floors * floor).max(LEAST.as_secs_f64())
            && (window.samples as f64 >= wanted || elapsed >= (end_floors * floor).max(end))
    }

    /// Learns about the floor from a window that was not a probe.
    fn learn(&mut self, window: &Window, now: f64, round_trip: f64) {
        // While requests pile up the short ones complete first, while they drain the long ones are left.
        let came = window.offered.saturating_sub(window.refused) as f64;
        let went = (window.completions + window.overloads + window.ignored) as f64;
        let balanced = (came - went).abs() <= 0.1 * went;
        let idle = !window.hit() && window.mean_in_flight() <= 0.4 * window.limit as f64;
        if idle && balanced {
            self.floor.refine(round_trip, window.error.max(0.02));
            self.confirm(now);
        } else if self.floor.known() {
            if balanced && round_trip < self.floor.value * (1.0 - 2.0 * window.error) {
                self.floor.refine(round_trip, window.error.max(0.1));
            }
            if round_trip < 1.15 * self.floor.value {
                self.confirm(now);
            }
            // What is seen while the limit is full is queueing; then probes tell.
            if !window.hit() {
                self.least = self.least.min(round_trip);
            }
            if now - self.confirmed > STALE && self.least.is_finite() {
                self.floor = Estimate::new(self.least, 0.3);
                self.confirm(now);
            }
        }
    }

    fn confirm(&mut self, now: f64) {
        self.confirmed = now;
        self.least = f64::INFINITY;
    }

    /// Leaves the start behind.
    fn settle_in(&mut self, now: f64) {
        self.phase = Phase::Steady;
        self.probed = now;
        self.confirm(now);
    }

    fn up(
        &mut self,
        window: &Window,
        now: f64,
        seen: Full,
        before: Option<Full>,
        full: bool,
    ) -> Step {
        if !full {
            return self.close(seen.limit, 0.0);
        }
        if self.floor.known() && seen.round_trip > 1.3 * self.floor.value {
            self.settle_in(now);
            self.peak = Estimate::new(seen.throughput, window.error);
            return self.close(self.roomy(self.product(window, seen.throughput)), 0.0);
        }
        if let Some(before) = before {
            if seen.limit > before.limit && !seen.follows(before) {
                self.phase = Phase::Down(Full {
                    throughput: seen.throughput.max(before.throughput),
                    ..before
                });
                return self.close(before.limit / 2.0, seen.round_trip);
            }
            // What came before was not saturated, or else the throughput would not have grown.
            self.floor = Estimate::new(before.round_trip.min(seen.round_trip), window.error);
        }
        let next = (2.0 * seen.limit).min((0.7 * self.ceiling).floor());
        if next <= seen.limit {
            // No further without callers timing out. The floor may be less than this; probes will tell.
            self.floor.refine(seen.round_trip, 0.3);
            self.peak = Estimate::new(seen.throughput, window.error);
            self.settle_in(now);
            return self.close(seen.limit, 0.0);
        }
        self.phase = Phase::Up(Some(seen));
        self.close(next, seen.round_trip)
    }

    fn down(&mut self, window: &Window, now: f64, seen: Full, before: Full) -> Step {
        if !seen.follows(before) && seen.limit > self.min as f64 {
            self.phase = Phase::Down(Full {
                throughput: seen.throughput.max(before.throughput),
                ..seen
            });
            return self.close(seen.limit / 2.0, seen.round_trip);
        }
        self.floor = Estimate::new(seen.round_trip, window.error);
        self.peak = Estimate::new(before.throughput, 0.2);
        self.settle_in(now);
        self.close(
            self.roomy(self.product(window, before.throughput)),
            seen.round_trip,
        )
    }

    fn steady(&mut self, window: &Window, now: f64, seen: Full, full: bool) -> Step {
        if !full {
            self.full = 0;
            self.last = None;
            return self.close(seen.limit, 0.0);
        }
        self.full += 1;
        let last = self.last.replace((seen.limit, seen.throughput));
        let queued = seen.round_trip > 1.2 * self.floor.value;
        // A lower limit that costs throughput shows that nothing queued behind the higher one: what looks like queueing
        // is a slower service. Where that is beyond doubt it is believed, else it is a reason to probe.
        let mut starved = false;
        if let Some((limit, throughput)) = last {
            let (less, cost) = (
                (seen.limit / limit).ln(),
                (seen.throughput / throughput).ln(),
            );
            starved = less < -0.1 && cost < 0.5 * less && now - self.probed > 1.0;
            if starved && queued && cost < -10.0 * window.error {
                self.floor = Estimate::new(seen.round_trip, 0.2);
                self.peak = Estimate::new(throughput, 0.2);
                self.every = PROBE_EVERY.0;
                self.last = None;
                self.settle_in(now);
                let limit = self.roomy(self.product(window, throughput));
                return self.close(limit, seen.round_trip);
            }
        }
        // Queueing evens round trips out, not what is done in a window.
        let error = self.variation / (window.samples as f64).sqrt();
        self.peak
            .update_warily(seen.throughput, window.error.max(error));
        let throughput = if queued {
            self.peak.value
        } else {
            self.peak.value.max(seen.throughput)
        };
        let bdp = self.product(window, throughput);
        let busy = self.full >= 3 || window.refused > window.offered / 10;
        if queued && busy && (starved || now - self.probed > self.every + PROBE_PAUSE) {
            self.phase = Phase::Probe;
            return self.close((0.97 * bdp).max(0.4 * seen.limit), 3.0 * self.floor.value);
        }
        let next = self.roomy(bdp);
        let lower = queued && window.refused as f64 > FEW_REFUSED * window.offered as f64;
        self.close(if lower { next } else { next.max(seen.limit) }, 0.0)
    }

    fn probe(&mut self, window: &Window, now: f64, seen: Full) -> Step {
        let off = (seen.round_trip / self.floor.or(seen.round_trip))
            .ln()
            .abs();
        let surprise = self.floor.update(seen.round_trip, window.error) || off > 0.2;
        self.every = if surprise {
            PROBE_EVERY.1
        } else {
            (2.0 * self.every).min(PROBE_EVERY.2)
        };
        self.full = 0;
        self.last = None;
        self.settle_in(now);
        let limit = self.roomy(self.product(window, self.peak.or(seen.throughput)));
        self.close(limit, self.floor.value)
    }

    /// How many slots a throughput takes when nothing queues: bodies hold theirs too.
    fn product(&self, window: &Window, throughput: f64) -> f64 {
        throughput * (self.floor.value + window.body.as_secs_f64())
    }
}

impl Default for Bdp {
    fn default() -> Self {
        Self {
            initial: 16,
            min: 1,
            max: 10_000,
            phase: Phase::Start,
            floor: Estimate::unknown(),
            peak: Estimate::unknown(),
            variation: 1.0,
            gradient: 1.0,
            full: 0,
            last: None,
            probed: 0.0,
            every: PROBE_EVERY.0,
            confirmed: 0.0,
            least: f64::INFINITY,
            ceiling: f64::INFINITY,
        }
    }
}

impl Limit for Bdp {
    fn start(&self) -> usize {
        self.initial.clamp(self.min, self.max)
    }

    fn first_look(&self) -> Duration {
        LEAST
    }

    fn look(&mut self, window: &Window) -> Step {
        let limit = window.limit as f64;
        let elapsed = window.elapsed.as_secs_f64();
        let found = matches!(self.phase, Phase::Steady | Phase::Probe);
        // Of a few slots a few timeouts say it all.
        let many = window.overloads >= 10 || window.overloads as f64 >= limit;
        if many && window.overloads > window.completions / 2 {
            if found && elapsed >= self.floor.or(0.0).max(1.0) {
                self.phase = Phase::Steady;
                return self.close((0.8 * limit).floor(), 0.0);
            }
            // Still looking, and went too far: back at once, and never there again.
            if !found && elapsed >= 0.3 {
                self.ceiling = self.ceiling.min(limit);
                let back = match self.phase {
                    Phase::Up(Some(before)) if before.limit < limit => {
                        self.phase = Phase::Down(before);
                        0.5 * before.limit
                    }
                    _ => {
                        self.phase = Phase::Up(None);
                        0.5 * limit
                    }
                };
                // Those who were let in before time out meanwhile, and say nothing of the new limit.
                return self.close(back.floor(), 0.5);
            }
        }
        if !self.ripe(window) {
            return Step::Wait(AGAIN);
        }
        let now = window.now.as_secs_f64();
        let seen = Full {
            limit,
            throughput: window.throughput(),
            round_trip: window.mean.as_secs_f64().max(1e-6),
        };
        let full = window.hit() && window.mean_in_flight() >= 0.8 * limit;
        let over = seen.round_trip / self.floor.or(seen.round_trip);
        self.gradient = (1.0 / over).min(1.0);
        // The deviation of the service itself: queueing raises the mean and leaves the deviation.
        let variation = window.error * (window.samples as f64).sqrt() * over.clamp(0.5, 3.0);
        self.variation += 0.3 * (variation.min(4.0) - self.variation);
        if matches!(self.phase, Phase::Up(_) | Phase::Down(_) | Phase::Steady) {
            self.learn(window, now, seen.round_trip);
        }
        match self.phase {
            Phase::Start => {
                self.phase = Phase::Up(None);
                self.close(limit, 0.0)
            }
            Phase::Up(before) => self.up(window, now, seen, before, full),
            Phase::Down(before) => self.down(window, now, seen, before),
            Phase::Steady => self.steady(window, now, seen, full),
            Phase::Probe => self.probe(window, now, seen),
        }
    }

    fn facts(&self) -> Facts {
        let known = self.floor.known();
        Facts {
            floor: known.then(|| seconds(self.floor.value)),
            gradient: known.then_some(self.gradient),
            probing: matches!(self.phase, Phase::Probe),
        }
    }
}

// ===== impl Full =====

impl Full {
    /// Whether the throughput followed the limit by more than half of the way.
    fn follows(self, before: Self) -> bool {
        let limit = (self.limit / before.limit).ln();
        let throughput = (self.throughput / before.throughput).ln();
        limit == 0.0 || throughput / limit > 0.5
    }
}

fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value.clamp(0.0, 60.0))
}

#[cfg(test)]
mod tests;
