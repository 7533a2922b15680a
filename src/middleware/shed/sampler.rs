//! How the limit sees the traffic: counters written by every request, read when it is time to look.
//!
//! # Invariants
//!
//! - The counters only ever grow. A window is what they gained since `Course::base`; opening one is reading them.
//! - A request writes its own thread's stripe and reads [`Tuning`], which changes once a window. Nothing else is shared.
//! - Whoever ends a timed request after `due` looks, if it gets the lock at once; everybody else goes on.
//! - The greatest number in flight is kept with the window's number above it, so a new window begins at zero without
//!   anybody clearing anything.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::classify::Verdict;
use super::gate;
use super::limit::{Facts, Limit, Step, Window};
use super::queue::Tally;
use crate::base::clock::{Instant, nanos};
use crate::base::error::Reason;
use crate::base::priority::Priority;
use crate::base::stats::{Stripe, Striped};

/// How many timed requests a second are plenty; beyond that one in so many is timed.
const PLENTY: f64 = 20_000.0;

/// A limit that looks at nothing has one request in so many timed, and one, for those who ask what is going on.
const SPARSE: u64 = 63;

/// Where what is counted. What every request writes comes first, in one line.
pub(super) mod at {
    /// By priority.
    pub(in super::super) const ADMITTED: usize = 0;
    /// By verdict.
    pub(in super::super) const ENDED: usize = 4;
    pub(super) const SAMPLES: usize = 8;
    pub(super) const SUM: usize = 9;
    pub(super) const SQUARES: usize = 10;
    pub(super) const BODY: usize = 11;
    pub(super) const MOST: usize = 12;
    pub(in super::super) const BYPASSED: usize = 13;
    pub(in super::super) const STREAMS: usize = 14;
    /// Hooks of the user that panicked.
    pub(in super::super) const PANICS: usize = 15;
    /// Round trips, four buckets to the octave.
    pub(super) const BUCKETS: usize = 16;
    pub(in super::super) const STREAMS_REFUSED: usize = BUCKETS + super::BUCKETS;
    pub(in super::super) const STREAMS_WOULD: usize = STREAMS_REFUSED + 1;
    /// Gone before they were let in or refused.
    pub(in super::super) const ABANDONED: usize = STREAMS_WOULD + 1;
    /// Requests with a header that could not be read.
    pub(in super::super) const MALFORMED: usize = ABANDONED + 1;
    /// By reason, then by priority.
    pub(in super::super) const REFUSED: usize = MALFORMED + 1;
    /// By reason.
    pub(in super::super) const WOULD: usize = REFUSED + 4 * super::REASONS.len();
    /// How long those who waited did: the sum, then the buckets.
    pub(in super::super) const WAITED: usize = WOULD + super::REASONS.len();
}

const BUCKETS: usize = 26 * 4;

/// Why this layer refuses, in the order they are counted.
pub(super) const REASONS: [Reason; 6] = [
    Reason::Limit,
    Reason::QueueFull,
    Reason::QueueTimeout,
    Reason::Deadline,
    Reason::Pressure,
    Reason::Quota,
];

/// Watches requests on behalf of a [`Limit`].
#[derive(Debug)]
pub(super) struct Sampler {
    epoch: Instant,
    /// Nobody needs to time more than one request in so many, and one.
    least_mask: u64,
    tuning: Tuning,
    pub(super) cells: Striped,
    /// What cancellations are compared with, in nanoseconds; zero while nothing is known.
    p90: AtomicU64,
    frozen: AtomicBool,
    course: Mutex<Course>,
}

/// What every request reads and a closing window writes.
#[derive(Debug)]
#[repr(align(128))]
struct Tuning {
    /// When to look, in nanoseconds since the epoch; never, when nothing is timed.
    due: AtomicU64,
    /// One request in `mask + 1` is timed.
    mask: AtomicU64,
    window: AtomicU32,
}

#[derive(Debug)]
struct Course {
    limit: Box<dyn Limit>,
    /// The counters when the window was opened.
    base: Vec<u64>,
    opened: u64,
    /// While requests admitted under the last limit pass: when to look first once the window is open.
    settles: Option<Duration>,
    seen: Seen,
}

/// What the last closed window said.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Seen {
    /// What the algorithm wants.
    pub(super) limit: usize,
    pub(super) facts: Facts,
    pub(super) mean: Duration,
    pub(super) p50: Duration,
    /// How many were offered for each that completed, at least 1.
    pub(super) pressing: f64,
    /// The algorithm panicked so many times.
    pub(super) panics: u64,
}

// ===== impl Sampler =====

impl Sampler {
    pub(super) fn new(limit: Box<dyn Limit>, waits: usize, epoch: Instant) -> Self {
        let start = limit.start().clamp(1, gate::MOST);
        let first = limit.first_look();
        let least_mask = if limit.samples() { 0 } else { SPARSE };
        let cells = Striped::new(at::WAITED + 1 + waits);
        Self {
            epoch,
            least_mask,
            tuning: Tuning {
                due: AtomicU64::new(nanos(first)),
                mask: AtomicU64::new(least_mask),
                window: AtomicU32::new(0),
            },
            p90: AtomicU64::new(0),
            frozen: AtomicBool::new(false),
            course: Mutex::new(Course {
                base: vec![0; at::WAITED],
                opened: 0,
                settles: None,
                seen: Seen {
                    limit: start,
                    facts: limit.facts(),
                    pressing: 1.0,
                    ..Seen::default()
                },
                limit,
            }),
            cells,
        }
    }

    /// Whether the request that is the `count`th of its thread is timed.
    #[inline]
    pub(super) fn times(&self, count: u64) -> bool {
        count & self.tuning.mask.load(Relaxed) == 0
    }

    /// Notes an admission that found so many in flight, itself included.
    #[inline]
    pub(super) fn admitted(&self, cells: &Stripe<'_>, in_flight: u32) {
        let window = u64::from(self.tuning.window.load(Relaxed));
        cells.raise(at::MOST, (window << 32) | u64::from(in_flight));
    }

    /// Notes a round trip that ended well, and how long its body took after that, in nanoseconds.
    #[inline]
    pub(super) fn timed(&self, cells: &Stripe<'_>, trip: u64, body: u64) {
        let trip = trip.min(1 << 40);
        cells.add(at::SAMPLES, 1);
        cells.add(at::SUM, trip);
        cells.add(at::SQUARES, square(trip));
        cells.add(at::BUCKETS + bucket(trip), 1);
        if body > 0 {
            cells.add(at::BODY, body);
        }
    }

    /// Whether it is time to look.
    #[inline]
    pub(super) fn due(&self, at: u64) -> bool {
        at >= self.tuning.due.load(Relaxed)
    }

    /// The 90th percentile of the last window, in nanoseconds; zero while nothing is known.
    pub(super) fn p90(&self) -> u64 {
        self.p90.load(Relaxed)
    }

    /// How many were offered, and refused for want of a slot: not for their deadline, not for a signal.
    pub(super) fn tally(&self) -> Tally {
        let sum = |from: usize, len: usize| (from..from + len).map(|at| self.cells.sum(at)).sum();
        let admitted: u64 = sum(at::ADMITTED, 4);
        let reasons = [
            Reason::Limit,
            Reason::QueueFull,
            Reason::QueueTimeout,
            Reason::Quota,
        ];
        let refused: u64 = reasons
            .into_iter()
            .map(|reason| {
                let refused: u64 = sum(at::REFUSED + 4 * reason_index(reason), 4);
                refused + self.cells.sum(at::WOULD + reason_index(reason))
            })
            .sum();
        Tally {
            offered: admitted + refused,
            refused,
        }
    }

    /// Leaves the limit where it is, or goes on.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Relaxed);
    }

    pub(super) fn frozen(&self) -> bool {
        self.frozen.load(Relaxed)
    }

    pub(super) fn seen(&self) -> Seen {
        self.course
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .seen
    }

    /// Looks, if it is time and nobody else does. `limit` is the one in force; while it is not the algorithm's own it
    /// would draw the wrong conclusions, so it sees nothing. Returns what it wants when a window was closed.
    #[cold]
    pub(super) fn look(&self, at: u64, limit: usize, own: bool) -> Option<Seen> {
        let mut course = self.course.try_lock().ok()?;
        let course = &mut *course;
        if at < self.tuning.due.load(Relaxed) {
            return None;
        }
        if !own || self.frozen() {
            self.open(course, at, Duration::from_millis(100));
            return None;
        }
        if let Some(look) = course.settles.take() {
            self.open(course, at, look);
            return None;
        }
        let window = self.window(course, at, limit);
        let looked = catch_unwind(AssertUnwindSafe(|| {
            let step = course.limit.look(&window);
            (step, course.limit.facts())
        }));
        let (step, facts) = match looked {
            Ok(looked) => looked,
            Err(_) => {
                // The limit stays; what it thinks of a later window is another matter.
                course.seen.panics += 1;
                self.open(course, at, Duration::from_secs(1));
                return None;
            }
        };
        let next = match step {
            Step::Wait(wait) => {
                self.wake_at(at, wait);
                return None;
            }
            Step::Close(next) => next,
        };
        let per_second = window.throughput();
        let mask = (per_second / PLENTY).max(1.0) as u64;
        let mask = (mask.next_power_of_two() - 1).max(self.least_mask);
        self.tuning.mask.store(mask, Relaxed);
        if window.samples > 0 {
            self.p90.store(nanos(window.p90), Relaxed);
            course.seen.mean = window.mean;
            course.seen.p50 = window.p50;
        }
        course.seen.limit = next.limit.clamp(1, gate::MOST);
        course.seen.facts = facts;
        course.seen.pressing = window.offered as f64 / window.completions.max(1) as f64;
        course.seen.pressing = course.seen.pressing.max(1.0);
        if next.settle.is_zero() {
            self.open(course, at, next.look);
        } else {
            let until = at.saturating_add(nanos(next.settle));
            course.settles = Some(next.look);
            self.tuning.due.store(until, Relaxed);
        }
        Some(course.seen)
    }

    fn open(&self, course: &mut Course, at: u64, look: Duration) {
        course.opened = at;
        course.settles = None;
        course.base.fill(0);
        self.cells.sum_into(0, &mut course.base);
        self.tuning.window.fetch_add(1, Relaxed);
        self.wake_at(at, look);
    }

    fn wake_at(&self, at: u64, after: Duration) {
        let after = after.max(Duration::from_millis(1));
        self.tuning
            .due
            .store(at.saturating_add(nanos(after)), Relaxed);
    }

    fn window(&self, course: &Course, at: u64, limit: usize) -> Window {
        let mut now = vec![0; course.base.len()];
        self.cells.sum_into(0, &mut now);
        for (now, base) in now.iter_mut().zip(&course.base) {
            *now = now.wrapping_sub(*base);
        }
        let sum = |from: usize, len: usize| now[from..from + len].iter().sum::<u64>();
        let ended = |verdict: Verdict| now[at::ENDED + verdict as usize];
        // What a dry run would have refused is refused as far as the algorithm is concerned.
        let refused = sum(at::REFUSED, 5 * REASONS.len());
        let samples = now[at::SAMPLES];
        let mean = now[at::SUM] as f64 / samples.max(1) as f64;
        let squares = now[at::SQUARES] as f64 * SQUARE / samples.max(1) as f64;
        let variance = (squares - mean * mean).max(0.0);
        let most = self.cells.greatest(at::MOST);
        let current = most >> 32 == u64::from(self.tuning.window.load(Relaxed));
        let buckets = &now[at::BUCKETS..at::BUCKETS + BUCKETS];
        Window {
            now: Duration::from_nanos(at),
            elapsed: Duration::from_nanos(at - course.opened),
            limit,
            completions: ended(Verdict::Success),
            samples,
            mean: Duration::from_nanos(mean as u64),
            error: if samples > 0 && mean > 0.0 {
                variance.sqrt() / mean / (samples as f64).sqrt()
            } else {
                1.0
            },
            p50: quantile(buckets, 0.5),
            p90: quantile(buckets, 0.9),
            body: Duration::from_nanos(now[at::BODY] / samples.max(1)),
            most_in_flight: if current { most as u32 as usize } else { 0 },
            offered: sum(at::ADMITTED, 4) + refused,
            refused,
            overloads: ended(Verdict::Overload),
            ignored: ended(Verdict::Ignore) + ended(Verdict::Cancelled),
        }
    }

    /// `now` as nanoseconds since the sampler was made.
    #[inline]
    pub(super) fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }
}

/// Where a refusal is counted.
pub(super) fn refused_at(reason: Reason, priority: Priority) -> usize {
    at::REFUSED + 4 * reason_index(reason) + priority as usize
}

pub(super) fn reason_index(reason: Reason) -> usize {
    let index = REASONS.iter().position(|known| *known == reason);
    index.unwrap_or_default()
}

/// Squares are kept in units of 2^20 square nanoseconds, about a square microsecond, so that they fit.
const SQUARE: f64 = (1u64 << 20) as f64;

#[inline]
fn square(nanos: u64) -> u64 {
    ((u128::from(nanos) * u128::from(nanos)) >> 20) as u64
}

/// Four buckets to the octave from 1 µs to 69 s.
#[inline]
fn bucket(nanos: u64) -> usize {
    let nanos = nanos.max(1 << 10);
    let octave = 63 - nanos.leading_zeros() as usize;
    let quarter = (nanos >> (octave - 2)) as usize & 3;
    ((octave - 10) * 4 + quarter).min(BUCKETS - 1)
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let (octave, quarter) = (bucket / 4 + 10, bucket as u64 % 4);
    let low = (4 + quarter) << (octave - 2);
    low + (1 << (octave - 3))
}

fn quantile(buckets: &[u64], quantile: f64) -> Duration {
    let total: u64 = buckets.iter().sum();
    let rank = (total as f64 * quantile).ceil() as u64;
    let mut seen = 0;
    let found = buckets.iter().position(|count| {
        seen += count;
        seen >= rank.max(1)
    });
    found.map_or(Duration::ZERO, |bucket| {
        Duration::from_nanos(middle(bucket))
    })
}
