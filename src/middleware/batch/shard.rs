//! One shard: the items that wait for each other, and when they have waited enough.
//!
//! ```text
//!            push               due                room                 taken
//!   Empty ─────────► Open ─────────────► Due ─────────────► Granted ─────────────► Empty, and a batch in flight
//!                     ▲                                        │ all late
//!   Blocked ──────────┘ a batch of the shard is settled        └──────────────► Empty
//! ```
//!
//! # Invariants
//!
//! - Items are sent in the order they were accepted: a batch is the longest run from the front that is not over a limit.
//! - A shard that is not `Empty` has items, and one collector: a task that waits until it is `Granted`, and takes the batch
//!   then. Its number is the generation of the shard: what a collector before it asks for, its timers included, is nobody's.
//!   When the last item leaves, so does the collector, with its slot; whatever it was waiting for.
//! - A shard is `Empty` with items only while its collector was dropped and no other has begun; then it holds a service.
//! - An `Open` shard is not due for any reason but the time, for which its collector has a timer that is not too late, or
//!   was woken to set it.
//! - `Held` is a shard that was `Granted` while its service was not ready: others have the slot, and its collector, which the
//!   service wakes, has it stand in line again.
//! - `Blocked` is a shard with as many batches in flight as it may have, and nothing but the end of one changes that.

use std::task::Waker;
use std::time::Duration;

use super::board::Cargo;
use super::items::{Item, Items, Stage};
use super::list::{Links, List};
use super::request::Flush;
use crate::base::clock::Instant;

/// When batches are sent, and of what size.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) max_items: usize,
    pub(super) max_weight: Option<usize>,
    /// Zero sends when nothing is in flight.
    pub(super) max_delay: Duration,
    /// Fewer wait for what is in flight.
    pub(super) min_items: usize,
    pub(super) max_in_flight: usize,
    pub(super) max_in_flight_per_shard: usize,
    /// How many may wait before callers are held up; twice as many are the most.
    pub(super) queue_items: usize,
    pub(super) queue_weight: Option<usize>,
    /// How long before a deadline a batch is due.
    pub(super) margin: Duration,
    /// Whether what is heavier than a batch may be goes alone.
    pub(super) alone: bool,
}

/// What makes every shard due.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Urge {
    pub(super) closed: bool,
    /// What has a smaller number was asked for.
    pub(super) asked: u64,
    /// As many wait as may.
    pub(super) pressed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Empty,
    Blocked,
    Open,
    Due(Flush),
    Granted(Flush),
    /// It had a slot, and gave it back while its service is not ready.
    Held(Flush),
}

pub(super) struct Shard<C: Cargo> {
    pub(super) key: C::Key,
    pub(super) hash: u64,
    /// What is to be sent, oldest first.
    pub(super) queue: List,
    /// Of all that wait. Items may weigh as much as a number holds, hence wider.
    pub(super) weight: u128,
    /// No deadline of those who wait is earlier. May be earlier than any, after one has left.
    pub(super) earliest: Option<Instant>,
    pub(super) state: State,
    /// The number of the collector, and how to wake it.
    pub(super) collector: u64,
    pub(super) waker: Option<Waker>,
    /// When its timer wakes it.
    pub(super) timed: Option<Instant>,
    pub(super) in_flight: usize,
    /// What an orphan's next collector sends with.
    pub(super) service: Option<C::Service>,
    /// Of the shards that are open, or of those that are due.
    pub(super) links: Links,
}

impl<C: Cargo> Shard<C> {
    pub(super) fn new(key: C::Key, hash: u64) -> Self {
        Self {
            key,
            hash,
            queue: List::default(),
            weight: 0,
            earliest: None,
            state: State::Empty,
            collector: 0,
            waker: None,
            timed: None,
            in_flight: 0,
            service: None,
            links: Links::default(),
        }
    }

    pub(super) fn is_orphan(&self) -> bool {
        self.state == State::Empty && !self.queue.is_empty()
    }

    /// Nobody waits, nothing is in flight, and nobody collects.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Empty && self.queue.is_empty() && self.in_flight == 0
    }

    /// A batch has no room for more.
    fn is_full(&self, rules: &Rules) -> bool {
        self.queue.len() >= rules.max_items
            || rules
                .max_weight
                .is_some_and(|max| self.weight >= max as u128)
    }

    /// A deadline comes close, or that of one who has left did.
    fn is_urgent(&self, rules: &Rules, now: Instant) -> bool {
        self.earliest
            .is_some_and(|earliest| earliest.saturating_duration_since(now) <= rules.margin)
    }

    /// Why what waits is to be sent now, if it is.
    pub(super) fn due(
        &self,
        rules: &Rules,
        urge: Urge,
        items: &Items<C>,
        now: Instant,
    ) -> Option<Flush> {
        let oldest = items.peek(self.queue.first()?);
        if self.is_full(rules) {
            return Some(Flush::Full);
        }
        if urge.closed {
            return Some(Flush::Drain);
        }
        if oldest.id < urge.asked {
            return Some(Flush::Asked);
        }
        if self.is_urgent(rules, now) {
            return Some(Flush::Deadline);
        }
        if rules.max_delay.is_zero() {
            if self.in_flight == 0 || self.queue.len() >= rules.min_items {
                return Some(Flush::Idle);
            }
        } else if now.saturating_duration_since(oldest.at) >= rules.max_delay {
            return Some(Flush::Delay);
        }
        urge.pressed.then_some(Flush::Memory)
    }

    /// Its timer, if it has one, is too late for what waits now.
    pub(super) fn is_mistimed(&self, rules: &Rules, items: &Items<C>) -> bool {
        match (self.due_at(rules, items), self.timed) {
            (Some(due), Some(timed)) => due < timed,
            (due, None) => due.is_some(),
            (None, Some(_)) => false,
        }
    }

    /// When it is due if nothing else happens.
    pub(super) fn due_at(&self, rules: &Rules, items: &Items<C>) -> Option<Instant> {
        let oldest = items.peek(self.queue.first()?);
        let delayed = match rules.max_delay {
            Duration::ZERO => None,
            delay => oldest.at.checked_add(delay),
        };
        // One that is less than the margin away makes it due already.
        let deadline = self
            .earliest
            .and_then(|earliest| earliest.checked_sub(rules.margin));
        match (delayed, deadline) {
            (Some(delayed), Some(deadline)) => Some(delayed.min(deadline)),
            (delayed, deadline) => delayed.or(deadline),
        }
    }

    /// Makes [`earliest`](Self::earliest) exact.
    pub(super) fn look_up_deadlines(&mut self, items: &mut Items<C>) {
        self.earliest = None;
        let mut next = self.queue.first();
        while let Some(place) = next {
            self.note_deadline(items.peek(place));
            let mut twin = match &items.peek(place).stage {
                Stage::Queued { twins, .. } => twins.first(),
                _ => None,
            };
            while let Some(place) = twin {
                self.note_deadline(items.peek(place));
                twin = List::after(items, place);
            }
            next = List::after(items, place);
        }
    }

    pub(super) fn note_deadline(&mut self, item: &Item<C>) {
        if let Some(deadline) = item.deadline {
            self.earliest = Some(self.earliest.map_or(deadline, |old| old.min(deadline)));
        }
    }
}
