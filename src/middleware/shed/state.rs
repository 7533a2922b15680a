//! What all services of a layer share: the gate, the sampler, the signals, and the way a request takes through them.
//!
//! # Invariants
//!
//! - A [`Permit`] is made for everybody who is let in, before any foreign code runs, and is the only thing that gives a
//!   slot back: by [`Permit::end`] or by its `Drop`, whichever is first, and once.
//! - A [`Waiting`] owns its ticket until it becomes a permit or a refusal; dropped before that it gives the ticket up.
//! - The limit in force is the one set by hand, else the algorithm's less what the signals take. Only then does the
//!   algorithm see the traffic: it never learns from a limit it did not choose.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ask::{Ask, Kind};
use super::expiry::Expiry;
use super::gate::{self, Gate, Listener};
use super::limit::Limit;
use super::permit::{BOUNDLESS, Holds, Permit, UNSAMPLED, UNTIMED};
use super::queue::{Entry, Left, Queue, Refused, Tally, Ticket};
use super::refusal::Refusal;
use super::sampler::{Sampler, at, reason_index, refused_at};
use super::waiting::Waiting;
use crate::base::clock::{self, Instant, nanos};
use crate::base::deadline::Deadline;
use crate::base::error::Reason;
use crate::base::signal::Pressures;
use crate::base::stats::{Bounds, Lease};

/// A priority level is divided into so many cohorts.
const COHORTS: u32 = 128;

/// Nobody is told to come back later than half as long again.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What all services of a layer share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) name: Arc<str>,
    pub(super) sampler: Sampler,
    pub(super) gate: Gate,
    pub(super) streams: Gate,
    pub(super) expiry: Expiry,
    pub(super) queue: Queue,
    pub(super) waits: Bounds,
    pub(super) partitions: Box<[(Arc<str>, f64)]>,
    pub(super) pressures: Pressures,
    /// Whether there are any.
    listens: bool,
    max_cut: f64,
    min_limit: usize,
    live: Live,
}

/// What changes while it runs, other than by requests.
#[derive(Debug)]
#[repr(align(128))]
struct Live {
    /// Requests whose rank, priority by cohort, is below it are shed.
    threshold: AtomicU32,
    dry: AtomicBool,
    /// The limit set by hand; zero for none.
    manual: AtomicUsize,
    /// The algorithm's limit.
    chosen: AtomicUsize,
    /// How much the signals press, as the bits of a float.
    pressure: AtomicU64,
    /// How long one waiting request takes to drain, in nanoseconds.
    drain: AtomicU64,
    /// Held while the limit is put in force.
    enforcing: Mutex<()>,
    /// Where the next cohort is drawn, for those who have none.
    draws: AtomicU32,
}

/// How a request was received.
pub(super) enum Admission {
    Go(Permit),
    Wait(Waiting),
    Refuse(Refusal),
}

crate::leased!(State);

// ===== impl State =====

impl State {
    #[allow(clippy::too_many_arguments)] // Once, from the layer's options.
    pub(super) fn new(
        name: Arc<str>,
        limit: Box<dyn Limit>,
        queue: Queue,
        partitions: Vec<(Arc<str>, f64)>,
        streams: usize,
        pressures: Pressures,
        (max_cut, min_limit): (f64, usize),
        dry: bool,
    ) -> Self {
        let waits = Bounds::client_golang();
        let start = limit.start().clamp(1, gate::MOST);
        let mut parts: Vec<_> = partitions.iter().map(|(_, part)| *part).collect();
        if !parts.is_empty() {
            // The last is nobody's, and has no share.
            parts.push(0.0);
        }
        Self {
            sampler: Sampler::new(limit, waits.buckets(), clock::now()),
            gate: Gate::new(start, &queue, &parts),
            streams: Gate::new(streams, &Queue::none(), &[]),
            expiry: Expiry::default(),
            live: Live {
                threshold: AtomicU32::new(0),
                dry: AtomicBool::new(dry),
                manual: AtomicUsize::new(0),
                chosen: AtomicUsize::new(start),
                pressure: AtomicU64::new(0),
                drain: AtomicU64::new(nanos(Duration::from_millis(10))),
                enforcing: Mutex::new(()),
                draws: AtomicU32::new(0),
            },
            name,
            queue,
            waits,
            partitions: partitions.into(),
            listens: !pressures.is_empty(),
            pressures,
            max_cut,
            min_limit,
        }
    }

    /// Receives a request.
    #[inline]
    pub(super) fn receive(lease: &Lease<Self>, ask: Ask<'_>) -> Admission {
        let state = &**lease;
        if ask.kind != Kind::Unary {
            return Self::aside(lease, ask);
        }
        let cells = state.sampler.cells.local();
        if ask.panicked {
            cells.add(at::PANICS, 1);
        }
        if ask.malformed {
            cells.add(at::MALFORMED, 1);
        }
        let admitted = at::ADMITTED + ask.priority as usize;
        let timed = state.sampler.times(cells.get(admitted));
        let mut start = UNTIMED;
        let mut deadline = None;
        if timed || ask.deadline.is_some() || ask.timeout.is_some() {
            let now = clock::now();
            deadline = ask.latest(now);
            let at = state.sampler.at(now);
            state.tick(now, at);
            if deadline.is_some_and(|deadline| deadline.passed(now)) {
                return Self::turn_away(lease, &ask, Reason::Deadline);
            }
            start = if timed { at } else { at | UNSAMPLED };
        }
        let threshold = state.live.threshold.load(Relaxed);
        if threshold > 0 && state.rank(&ask) < threshold {
            return Self::turn_away(lease, &ask, Reason::Pressure);
        }
        let partition = state.partition(ask.partition);
        match state.gate.try_admit(partition) {
            Ok(in_flight) => {
                cells.add(admitted, 1);
                state.sampler.admitted(&cells, in_flight);
                Admission::Go(Permit {
                    state: lease.clone(),
                    start,
                    deadline: state.bound(deadline),
                    ticket: Ticket::NONE,
                    partition,
                    holds: Holds::Slot,
                    bodiless: ask.bodiless,
                })
            }
            Err(_) => Self::full(lease, &ask, deadline, partition),
        }
    }

    #[inline]
    pub(super) fn bound(&self, deadline: Option<Deadline>) -> u64 {
        match deadline {
            Some(deadline) => self.sampler.at(deadline.moment()),
            None => BOUNDLESS,
        }
    }

    /// The gate is full: wait or be refused.
    #[cold]
    fn full(
        lease: &Lease<Self>,
        ask: &Ask<'_>,
        deadline: Option<Deadline>,
        partition: u16,
    ) -> Admission {
        let state = &**lease;
        let cells = state.sampler.cells.local();
        let limit = state.gate.occupancy().limit;
        state
            .sampler
            .admitted(&cells, u32::try_from(limit).unwrap_or(u32::MAX));
        if state.queue.max == Some(0) {
            let named = usize::from(partition) < state.partitions.len();
            let reason = match named && !state.gate.under(partition) {
                true => Reason::Quota,
                false => Reason::Limit,
            };
            return Self::turn_away(lease, ask, reason);
        }
        let now = clock::now();
        let latest = now + state.queue.timeout;
        let entry = Entry {
            priority: ask.priority,
            partition,
            deadline,
            until: deadline.map_or(latest, |deadline| latest.min(deadline.moment())),
            ghost: state.is_dry(),
        };
        let refused = match state.gate.enqueue(now, entry, state) {
            Ok(ticket) if entry.ghost => {
                Expiry::watch(lease.shared());
                return Admission::Go(Permit {
                    state: lease.clone(),
                    start: state.sampler.at(now),
                    deadline: state.bound(deadline),
                    ticket,
                    partition,
                    holds: Holds::Ghost(ask.priority),
                    bodiless: ask.bodiless,
                });
            }
            Ok(ticket) => {
                Expiry::watch(lease.shared());
                return Admission::Wait(Waiting {
                    state: lease.clone(),
                    ticket: Some(ticket),
                    entry,
                    bodiless: ask.bodiless,
                });
            }
            Err(refused) => refused,
        };
        Self::turn_away(lease, ask, refused.reason)
    }

    /// Streams and those who pass by.
    #[cold]
    fn aside(lease: &Lease<Self>, ask: Ask<'_>) -> Admission {
        let state = &**lease;
        let cells = state.sampler.cells.local();
        let holds = match ask.kind {
            Kind::Stream => match state.streams.try_admit(0) {
                Ok(_) => {
                    cells.add(at::STREAMS, 1);
                    Holds::Stream
                }
                Err(_) => return Self::turn_away(lease, &ask, Reason::Limit),
            },
            _ => {
                cells.add(at::BYPASSED, 1);
                Holds::Nothing
            }
        };
        Admission::Go(Permit::aside(lease.clone(), holds, ask.bodiless))
    }

    /// Refuses, or in a dry run notes that it would and lets pass.
    #[cold]
    fn turn_away(lease: &Lease<Self>, ask: &Ask<'_>, reason: Reason) -> Admission {
        let state = &**lease;
        let refused = Refused {
            reason,
            priority: ask.priority,
        };
        if reason == Reason::Pressure {
            // While all of a kind are refused nobody else looks at what they are refused for.
            state.tick_now();
        }
        if ask.kind == Kind::Stream {
            let cells = state.sampler.cells.local();
            let at = match state.is_dry() {
                true => at::STREAMS_WOULD,
                false => at::STREAMS_REFUSED,
            };
            cells.add(at, 1);
        } else {
            state.count(refused, state.is_dry());
        }
        if state.is_dry() {
            let permit = Permit::aside(lease.clone(), Holds::Nothing, ask.bodiless);
            return Admission::Go(permit);
        }
        let gate = match ask.kind {
            Kind::Stream => &state.streams,
            _ => &state.gate,
        };
        Admission::Refuse(state.refusal(refused, gate))
    }

    /// Counts a refusal, or what would have been one.
    fn count(&self, refused: Refused, would: bool) {
        let cells = self.sampler.cells.local();
        if would {
            cells.add(at::WOULD + reason_index(refused.reason), 1);
        } else {
            cells.add(refused_at(refused.reason, refused.priority), 1);
        }
    }

    pub(super) fn refusal(&self, refused: Refused, gate: &Gate) -> Refusal {
        let occupancy = gate.occupancy();
        let (waiting, places) = match self.queue.max {
            Some(0) => (0, 0),
            _ => gate.with_queue(|queue| (queue.waiting(), queue.places())),
        };
        let drain = Duration::from_nanos(self.live.drain.load(Relaxed));
        let ahead = u32::try_from(waiting + 1).unwrap_or(u32::MAX);
        // Half to one and a half times, so that those who were refused together do not come back together.
        let draw = self.live.draws.fetch_add(1, Relaxed).wrapping_mul(GOLDEN);
        let jitter = 0.5 + f64::from(draw) / f64::from(u32::MAX);
        let retry_after = drain
            .saturating_mul(ahead)
            .min(LONGEST_RETRY)
            .mul_f64(jitter);
        Refusal {
            reason: refused.reason,
            priority: refused.priority,
            in_flight: occupancy.in_flight,
            limit: occupancy.limit,
            waiting,
            places,
            retry_after: retry_after.max(Duration::from_millis(1)),
        }
    }

    /// Where a request stands when part of all is shed: its priority, and within it its cohort.
    #[cold]
    fn rank(&self, ask: &Ask<'_>) -> u32 {
        let cohort = match ask.cohort {
            // The high bits, which a multiplication mixes best.
            Some(hash) => (hash.wrapping_mul(GOLDEN_WIDE) >> 32) as u32,
            None => self.live.draws.fetch_add(1, Relaxed).wrapping_mul(GOLDEN),
        };
        ask.priority as u32 * COHORTS + (cohort >> 25)
    }

    #[inline]
    fn partition(&self, name: Option<&str>) -> u16 {
        if self.partitions.is_empty() {
            return 0;
        }
        let found = self
            .partitions
            .iter()
            .position(|(known, _)| name == Some(&**known));
        found.unwrap_or(self.partitions.len()) as u16
    }

    pub(super) fn is_dry(&self) -> bool {
        self.live.dry.load(Relaxed)
    }

    pub(super) fn set_dry(&self, dry: bool) {
        self.live.dry.store(dry, Relaxed);
    }

    /// The limit set by hand.
    pub(super) fn manual(&self) -> Option<usize> {
        Some(self.live.manual.load(Relaxed)).filter(|limit| *limit > 0)
    }

    pub(super) fn set_manual(&self, limit: Option<usize>) {
        self.live.manual.store(limit.unwrap_or(0), Relaxed);
        self.enforce(clock::now());
    }

    /// What the algorithm wants.
    pub(super) fn chosen(&self) -> usize {
        self.live.chosen.load(Relaxed)
    }

    pub(super) fn pressure(&self) -> f64 {
        f64::from_bits(self.live.pressure.load(Relaxed))
    }

    /// Looks at windows and signals whose time has come. `at` is `now` in the sampler's nanoseconds.
    #[inline]
    pub(super) fn tick(&self, now: Instant, at: u64) {
        if self.sampler.due(at) {
            self.look(now, at);
        }
        if self.listens && self.pressures.due(now) {
            self.feel(now);
        }
    }

    /// As [`tick`](Self::tick), for those who only look on.
    pub(super) fn tick_now(&self) {
        let now = clock::now();
        self.tick(now, self.sampler.at(now));
    }

    #[cold]
    fn look(&self, now: Instant, at: u64) {
        let limit = self.gate.occupancy().limit;
        let own = limit == self.chosen();
        if let Some(seen) = self.sampler.look(at, limit, own) {
            self.live.chosen.store(seen.limit, Relaxed);
            let drain = seen.mean.div_f64(seen.limit as f64).mul_f64(seen.pressing);
            if !drain.is_zero() {
                self.live.drain.store(nanos(drain), Relaxed);
            }
            let places = self.queue.places(seen.limit);
            self.gate
                .with_queue(|queue| queue.tune(places, seen.facts.floor, seen.p50));
            self.enforce(now);
        }
    }

    #[cold]
    fn feel(&self, now: Instant) {
        let pressure = self.pressures.poll(now).pressure;
        self.live.pressure.store(pressure.to_bits(), Relaxed);
        // Best effort goes in the first half, sheddable in the second; ordinary traffic is never shed for a signal.
        let shed = 2.0 * f64::from(COHORTS) * pressure;
        self.live.threshold.store(shed as u32, Relaxed);
        self.enforce(now);
    }

    /// Puts the limit in force that is to be. Whoever changes what it depends on does so before, and so the last to
    /// come sees all of it.
    fn enforce(&self, now: Instant) {
        let settles = {
            let _one_at_a_time = self.live.enforcing.lock();
            let limit = self.manual().unwrap_or_else(|| {
                let chosen = self.chosen();
                let kept = 1.0 - self.pressure() * self.max_cut;
                let cut = (chosen as f64 * kept).round() as usize;
                cut.max(self.min_limit).min(chosen)
            });
            limit != self.gate.occupancy().limit && self.gate.store_limit(limit)
        };
        // Wakes, which may run anything.
        if settles {
            self.gate.settle(now, self);
        }
    }
}

const GOLDEN: u32 = 0x9e37_79b9;
const GOLDEN_WIDE: u64 = 0x9e37_79b9_7f4a_7c15;

impl Listener for State {
    fn left(&self, left: &Left) {
        let cells = self.sampler.cells.local();
        cells.add(at::WAITED, nanos(left.waited));
        cells.add(at::WAITED + 1 + self.waits.of(left.waited), 1);
        if let Some(refused) = left.refused {
            self.count(refused, left.ghost || self.is_dry());
        }
    }

    fn tally(&self) -> Tally {
        self.sampler.tally()
    }
}
