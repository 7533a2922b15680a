//! What all services of a layer share: the gate, the sampler, the signals, and the way a request takes through them.
//!
//! # Invariants
//!
//! - A [`Permit`] is made for everybody who is let in, before any foreign code runs, and is the only thing that gives a
//!   slot back: by [`Permit::end`] or by its `Drop`, whichever is first, and once.
//! - A [`Waiting`] owns its ticket until it becomes a permit or a refusal; dropped before that it gives the ticket up.
//! - The limit in force is the one set by hand, else the algorithm's less what the signals take. Only then does the
//!   algorithm see the traffic: it never learns from a limit it did not choose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::ask::{Ask, Kind};
use super::classify::Verdict;
use super::gate::{Gate, Listener};
use super::limit::Limit;
use super::queue::{Entry, Left, Queue, Refused, Tally, Ticket};
use super::refusal::Refusal;
use super::sampler::{REASONS, Sampler, at, reason_index, refused_at};
use crate::base::clock::{self, Instant, nanos};
use crate::base::deadline::Deadline;
use crate::base::error::Reason;
use crate::base::signal::Pressures;
use crate::base::stats::{Bounds, Lease};

/// A priority level is divided into so many cohorts.
const COHORTS: u32 = 128;

/// Nobody is told to come back later than this.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What all services of a layer share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) name: Arc<str>,
    pub(super) sampler: Sampler,
    pub(super) gate: Gate,
    pub(super) streams: Gate,
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
    /// Where the next cohort is drawn, for those who have none.
    draws: AtomicU32,
}

/// How a request was received.
pub(super) enum Admission {
    Go(Permit),
    Wait(Waiting),
    Refuse(Refusal),
}

/// A request that was let in. Dropped, it was cancelled.
///
/// Four words: it rides in a future and then in a body, and every copy of it is time.
#[derive(Debug)]
pub(super) struct Permit {
    state: Lease<State>,
    /// When it was let in, in the sampler's nanoseconds; [`UNTIMED`] if nobody asks.
    start: u64,
    /// Its deadline, in the sampler's nanoseconds; [`BOUNDLESS`] if it has none.
    deadline: u64,
    ticket: Ticket,
    partition: u16,
    holds: Holds,
    pub(super) bodiless: bool,
}

const UNTIMED: u64 = u64::MAX;
const BOUNDLESS: u64 = u64::MAX;

/// What a permit gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Slot,
    Stream,
    /// In a dry run: its ticket's place, or the slot that was granted to it.
    Ghost,
    /// It was let through without a slot.
    Nothing,
    Over,
}

/// A request that waits for a slot.
#[derive(Debug)]
pub(super) struct Waiting {
    state: Lease<State>,
    ticket: Option<Ticket>,
    entry: Entry,
    bodiless: bool,
    /// It waits no longer than this.
    pub(super) until: Instant,
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
        let timed = limit.samples() || !pressures.is_empty();
        let start = limit.start().max(1);
        let mut parts: Vec<_> = partitions.iter().map(|(_, part)| *part).collect();
        if !parts.is_empty() {
            // The last is nobody's, and has no share.
            parts.push(0.0);
        }
        Self {
            sampler: Sampler::new(limit, waits.buckets(), timed, clock::now()),
            gate: Gate::new(start, &queue, &parts),
            streams: Gate::new(streams, &Queue::none(), &[]),
            live: Live {
                threshold: AtomicU32::new(0),
                dry: AtomicBool::new(dry),
                manual: AtomicUsize::new(0),
                chosen: AtomicUsize::new(start),
                pressure: AtomicU64::new(0),
                drain: AtomicU64::new(nanos(Duration::from_millis(10))),
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
            if timed {
                start = at;
            }
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
    fn bound(&self, deadline: Option<Deadline>) -> u64 {
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
        let now = clock::now();
        let entry = Entry {
            priority: ask.priority,
            partition,
            deadline,
        };
        let refused = match state.gate.enqueue(now, entry, state) {
            Ok(ticket) if state.is_dry() => {
                cells.add(at::ADMITTED + ask.priority as usize, 1);
                return Admission::Go(Permit {
                    state: lease.clone(),
                    start: state.start(now),
                    deadline: state.bound(deadline),
                    ticket,
                    partition,
                    holds: Holds::Ghost,
                    bodiless: ask.bodiless,
                });
            }
            Ok(ticket) => {
                let mut until = now + state.queue.timeout;
                if let Some(deadline) = deadline {
                    until = until.min(deadline.moment());
                }
                return Admission::Wait(Waiting {
                    state: lease.clone(),
                    ticket: Some(ticket),
                    entry,
                    bodiless: ask.bodiless,
                    until,
                });
            }
            Err(refused) => refused,
        };
        let mut reason = refused.reason;
        let shared = !state.partitions.is_empty();
        if reason != Reason::Deadline && shared && !state.gate.under(partition) {
            reason = Reason::Quota;
        }
        Self::turn_away(lease, ask, reason)
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
        Admission::Go(Permit {
            state: lease.clone(),
            start: UNTIMED,
            deadline: BOUNDLESS,
            ticket: Ticket::NONE,
            partition: 0,
            holds,
            bodiless: ask.bodiless,
        })
    }

    /// Refuses, or in a dry run notes that it would and lets pass.
    #[cold]
    fn turn_away(lease: &Lease<Self>, ask: &Ask<'_>, reason: Reason) -> Admission {
        let state = &**lease;
        let refused = Refused {
            reason,
            priority: ask.priority,
        };
        state.count(refused);
        if state.is_dry() {
            let cells = state.sampler.cells.local();
            cells.add(at::ADMITTED + ask.priority as usize, 1);
            return Admission::Go(Permit {
                state: lease.clone(),
                start: UNTIMED,
                deadline: BOUNDLESS,
                ticket: Ticket::NONE,
                partition: 0,
                holds: Holds::Nothing,
                bodiless: ask.bodiless,
            });
        }
        let gate = match ask.kind {
            Kind::Stream => &state.streams,
            _ => &state.gate,
        };
        Admission::Refuse(state.refusal(refused, gate))
    }

    fn count(&self, refused: Refused) {
        let cells = self.sampler.cells.local();
        if self.is_dry() {
            cells.add(at::WOULD + reason_index(refused.reason), 1);
        } else {
            cells.add(refused_at(refused.reason, refused.priority), 1);
        }
    }

    fn refusal(&self, refused: Refused, gate: &Gate) -> Refusal {
        let occupancy = gate.occupancy();
        let (waiting, places) = gate.with_queue(|queue| (queue.waiting(), queue.places()));
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

    /// When a request that was let in now started, for those who ask.
    fn start(&self, now: Instant) -> u64 {
        match self.sampler.is_timed() {
            true => self.sampler.at(now),
            false => UNTIMED,
        }
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

    /// Puts the limit in force that is to be.
    fn enforce(&self, now: Instant) {
        let limit = self.manual().unwrap_or_else(|| {
            let chosen = self.chosen();
            let cut = (chosen as f64 * (1.0 - self.pressure() * self.max_cut)).round() as usize;
            cut.max(self.min_limit).min(chosen)
        });
        if limit != self.gate.occupancy().limit {
            self.gate.set_limit(limit, now, self);
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
            self.count(refused);
        }
    }

    fn tally(&self) -> Tally {
        self.sampler.tally()
    }
}

// ===== impl Permit =====

impl Permit {
    #[inline]
    pub(super) fn is_timed(&self) -> bool {
        self.start != UNTIMED
    }

    /// Whether a response whose headers came at `head` and that went on until `now` is a stream: it took longer to
    /// send than to make.
    pub(super) fn is_stream(&self, head: Instant, now: Instant) -> bool {
        let sampler = &self.state.sampler;
        let (head, now) = (sampler.at(head), sampler.at(now));
        self.is_timed() && now.saturating_sub(head) > head.saturating_sub(self.start)
    }

    /// Counts a hook that panicked, which says nothing.
    #[cold]
    pub(super) fn hook_panicked(&self) -> Verdict {
        self.state.sampler.cells.local().add(at::PANICS, 1);
        Verdict::Ignore
    }

    /// Ends it: `verdict` on the whole, `head` when the response came, `now` the end, for those who ask.
    #[inline]
    pub(super) fn end(
        &mut self,
        verdict: Verdict,
        head: Option<Instant>,
        now: impl FnOnce() -> Instant,
    ) {
        let holds = std::mem::replace(&mut self.holds, Holds::Over);
        let state = &*self.state;
        // Those who pass by say nothing about the load of others; neither do those a dry run would have refused.
        if matches!(holds, Holds::Slot | Holds::Ghost) {
            let cells = state.sampler.cells.local();
            let mut verdict = verdict;
            if self.start != UNTIMED || self.deadline != BOUNDLESS {
                let now = now();
                let end = state.sampler.at(now);
                if verdict == Verdict::Success && end >= self.deadline {
                    verdict = Verdict::Overload;
                }
                if self.start != UNTIMED {
                    if verdict == Verdict::Success {
                        let head = head.map_or(end, |head| state.sampler.at(head));
                        let trip = head.saturating_sub(self.start);
                        state.sampler.timed(&cells, trip, end.saturating_sub(head));
                    }
                    cells.add(at::ENDED + verdict as usize, 1);
                    state.tick(now, end);
                } else {
                    cells.add(at::ENDED + verdict as usize, 1);
                }
            } else {
                cells.add(at::ENDED + verdict as usize, 1);
            }
        }
        match holds {
            Holds::Slot => {
                if state.gate.release(self.partition) {
                    state.gate.settle(clock::now(), state);
                }
            }
            Holds::Stream => _ = state.streams.release(0),
            Holds::Ghost => {
                let gate = &state.gate;
                gate.give_up(&self.ticket, self.partition, clock::now, state);
            }
            Holds::Nothing | Holds::Over => {}
        }
    }

    /// What going away means: overload when it was near the deadline, or took far longer than others do.
    #[cold]
    fn gone(&self, now: u64) -> Verdict {
        if now >= self.deadline {
            return Verdict::Overload;
        }
        if self.start == UNTIMED {
            return Verdict::Cancelled;
        }
        let passed = now.saturating_sub(self.start);
        let granted = self.deadline.saturating_sub(self.start);
        let near = self.deadline != BOUNDLESS && passed >= granted / 5 * 4;
        let p90 = self.state.sampler.p90();
        match near || (p90 > 0 && passed > 2 * p90) {
            true => Verdict::Overload,
            false => Verdict::Cancelled,
        }
    }

    #[cold]
    fn cancel(&mut self) {
        if std::thread::panicking() {
            return self.end(Verdict::Ignore, None, clock::now);
        }
        let now = clock::now();
        let verdict = self.gone(self.state.sampler.at(now));
        self.end(verdict, None, || now);
    }
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        if self.holds != Holds::Over {
            self.cancel();
        }
    }
}

// ===== impl Waiting =====

impl Waiting {
    /// What became of it.
    pub(super) fn poll(&mut self, waker: &Waker) -> Poll<Result<Permit, Refusal>> {
        let Some(ticket) = &self.ticket else {
            unreachable!("polled after it was settled")
        };
        let settled = match self.state.gate.poll(ticket, waker) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(settled) => settled,
        };
        self.ticket = None;
        Poll::Ready(match settled {
            Ok(()) => Ok(self.permit()),
            Err(refused) => Err(self.refusal(refused)),
        })
    }

    /// Its time is up.
    #[cold]
    pub(super) fn expire(&mut self) -> Result<Permit, Refusal> {
        if let Poll::Ready(settled) = self.poll(Waker::noop()) {
            return settled;
        }
        let now = clock::now();
        let deadline = self.entry.deadline;
        let reason = match deadline.is_some_and(|deadline| deadline.passed(now)) {
            true => Reason::Deadline,
            false => Reason::QueueTimeout,
        };
        self.give_up();
        let refused = Refused {
            reason,
            priority: self.entry.priority,
        };
        self.state.count(refused);
        Err(self.refusal(refused))
    }

    fn permit(&self) -> Permit {
        let state = &*self.state;
        let cells = state.sampler.cells.local();
        cells.add(at::ADMITTED + self.entry.priority as usize, 1);
        Permit {
            state: self.state.clone(),
            start: match state.sampler.is_timed() {
                true => state.start(clock::now()),
                false => UNTIMED,
            },
            deadline: state.bound(self.entry.deadline),
            ticket: Ticket::NONE,
            partition: self.entry.partition,
            holds: Holds::Slot,
            bodiless: self.bodiless,
        }
    }

    fn refusal(&self, mut refused: Refused) -> Refusal {
        let state = &*self.state;
        let full = refused.reason == Reason::QueueFull;
        if full && !state.partitions.is_empty() && !state.gate.under(self.entry.partition) {
            refused.reason = Reason::Quota;
        }
        state.refusal(refused, &state.gate)
    }

    fn give_up(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let state = &*self.state;
            state
                .gate
                .give_up(&ticket, self.entry.partition, clock::now, state);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.give_up();
    }
}

const _: () = assert!(REASONS.len() == 6);
