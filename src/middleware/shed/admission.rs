//! The way a request takes: let in, made to wait, or refused.
//!
//! # Invariants
//!
//! - A [`Permit`] is made for everybody who is let in, before any foreign code runs, and is the only thing that gives a
//!   slot back: by [`Permit::end`] or by its `Drop`, whichever is first, and once.
//! - A [`Waiting`] owns its ticket until it becomes a permit or a refusal; dropped before that it gives the ticket up.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::ask::{Ask, Kind};
use super::expiry::Expiry;
use super::gate::Gate;
use super::permit::{BOUNDLESS, Holds, Permit, UNSAMPLED, UNTIMED};
use super::queue::{Entry, Refused, Ticket};
use super::refusal::Refusal;
use super::sampler::{at, reason_index, refused_at};
use super::state::{COHORTS, State};
use super::waiting::Waiting;
use crate::base::clock;
use crate::base::deadline::Deadline;
use crate::base::error::Reason;
use crate::base::stats::Lease;

/// Nobody is told to come back later than half as long again.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

const GOLDEN: u32 = 0x9e37_79b9;
const GOLDEN_WIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// How a request was received.
pub(super) enum Admission {
    Go(Permit),
    Wait(Waiting),
    Refuse(Refusal),
}

impl State {
    /// Receives a request. Always inlined: a permit that is returned through memory costs more than all it stands for.
    #[inline(always)]
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
        let bounded = ask.deadline.is_some() || ask.timeout.is_some();
        if ask.kind == Kind::Stream && bounded {
            let now = clock::now();
            if ask.latest(now).is_some_and(|deadline| deadline.passed(now)) {
                return Self::turn_away(lease, &ask, Reason::Deadline);
            }
        }
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
    pub(super) fn count(&self, refused: Refused, would: bool) {
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
}
