//! What a collector asks of the board: the other half of its methods.

use std::mem;
use std::task::Waker;

use super::board::{Board, Cargo, Claim, Debris, Kind, Next, Sent, Taken, shrink};
use super::items::{Outcome, Stage, Ticket};
use super::list::List;
use super::request::Flush;
use super::shard::{Rules, State};
use crate::base::clock::Instant;

impl<C: Cargo> Board<C> {
    /// A collector of that shard, which has none, is to begin.
    pub(super) fn begin(&mut self, place: u32) -> Claim {
        self.collectors += 1;
        let shard = self.shards.at(place);
        shard.collector = self.collectors;
        shard.timed = None;
        if shard.in_flight < self.rules.max_in_flight_per_shard {
            shard.state = State::Open;
            self.open.push_back(&mut self.shards, place);
        } else {
            shard.state = State::Blocked;
        }
        Claim {
            shard: place,
            collector: self.collectors,
        }
    }

    /// Looks whether a shard is due, and gives it a slot if there is one.
    pub(super) fn advance(&mut self, place: u32, now: Instant, debris: &mut Debris<C>) {
        let shard = self.shards.at(place);
        if shard.state == State::Blocked && shard.in_flight < self.rules.max_in_flight_per_shard {
            shard.state = State::Open;
            self.open.push_back(&mut self.shards, place);
        }
        let shard = self.shards.at(place);
        if shard.state != State::Open {
            return;
        }
        let mut flush = shard.due(&self.rules, self.urge, &self.items, now);
        if flush == Some(Flush::Deadline) {
            // Whoever had that deadline may have left.
            shard.look_up_deadlines(&mut self.items);
            flush = shard.due(&self.rules, self.urge, &self.items, now);
        }
        if let Some(flush) = flush {
            shard.state = State::Due(flush);
            self.open.remove(&mut self.shards, place);
            self.due.push_back(&mut self.shards, place);
            self.grant(debris);
        } else if shard.is_mistimed(&self.rules, &self.items) {
            debris.wakers.extend(shard.waker.take());
        }
    }

    /// Free slots go to those who are due, first come first served.
    fn grant(&mut self, debris: &mut Debris<C>) {
        while self.taken < self.rules.max_in_flight {
            let Some(place) = self.due.pop_front(&mut self.shards) else {
                break;
            };
            let shard = self.shards.at(place);
            let State::Due(flush) = shard.state else {
                unreachable!("what is in the line is due");
            };
            shard.state = State::Granted(flush);
            debris.wakers.extend(shard.waker.take());
            self.taken += 1;
        }
    }

    /// What a collector is to do. Whoever waits is woken when that changes, but for the time.
    pub(super) fn next(
        &mut self,
        claim: Claim,
        waker: &Waker,
        now: Instant,
        debris: &mut Debris<C>,
    ) -> Next {
        let Some(shard) = self.shards.claimed(claim) else {
            return Next::Leave;
        };
        // It is not woken for what it is about to hear.
        let old = shard.waker.take();
        if let State::Held(flush) = shard.state {
            shard.state = State::Due(flush);
            self.due.push_back(&mut self.shards, claim.shard);
            self.grant(debris);
        }
        self.advance(claim.shard, now, debris);
        let shard = self.shards.at(claim.shard);
        shard.timed = match shard.state {
            State::Open => shard.due_at(&self.rules, &self.items),
            _ => None,
        };
        let next = match shard.state {
            State::Granted(flush) => Next::Take(flush),
            _ => Next::Wait(shard.timed),
        };
        shard.waker = Some(match old {
            Some(old) if old.will_wake(waker) => old,
            old => {
                debris.stale.extend(old);
                waker.clone()
            }
        });
        next
    }

    /// The service is not ready: others may have the slot until the collector asks again.
    pub(super) fn hold(&mut self, claim: Claim, debris: &mut Debris<C>) {
        if let Some(shard) = self.shards.claimed(claim)
            && let State::Granted(flush) = shard.state
        {
            shard.state = State::Held(flush);
            self.taken -= 1;
            self.grant(debris);
        }
    }

    /// Takes what is to be sent; nothing when all who waited have left or are late, and then the collector has left too.
    pub(super) fn take(
        &mut self,
        claim: Claim,
        now: Instant,
        debris: &mut Debris<C>,
    ) -> Option<Taken<C>> {
        let shard = self.shards.claimed(claim)?;
        let State::Granted(flush) = shard.state else {
            return None;
        };
        let waited = self.waiting;
        let mut taken = Taken {
            items: Vec::with_capacity(shard.queue.len().min(self.rules.max_items)),
            seats: Vec::with_capacity(shard.queue.len().min(self.rules.max_items)),
            weight: 0,
            flush,
            deadline: None,
            next: None,
        };
        let full = self.fill(claim.shard, &mut taken, now, debris);
        if full {
            taken.flush = Flush::Full;
        }
        self.relieve(waited - self.waiting, debris);
        let shard = self.shards.at(claim.shard);
        if taken.items.is_empty() {
            // Nothing but late ones: no more is left.
            self.quit(claim.shard, debris);
            self.retire(claim.shard, debris);
            return None;
        }
        shard.in_flight += 1;
        shard.state = State::Empty;
        debris.stale.extend(shard.waker.take());
        self.in_flight += 1;
        if shard.queue.is_empty() {
            shard.earliest = None;
        } else {
            taken.next = Some(self.begin(claim.shard));
            self.advance(claim.shard, now, debris);
        }
        self.books.batches += 1;
        self.books.sent += taken.items.len() as u64;
        self.books.flushes[taken.flush as usize] += 1;
        Some(taken)
    }

    /// Moves items from the queue into a batch. Whether that is as many as fit.
    fn fill(
        &mut self,
        shard: u32,
        taken: &mut Taken<C>,
        now: Instant,
        debris: &mut Debris<C>,
    ) -> bool {
        let Rules {
            max_items,
            max_weight,
            ..
        } = self.rules;
        let mut weight = 0u128;
        let over = |weight: u128| max_weight.is_some_and(|max| weight > max as u128);
        let mut full = false;
        while let Some(place) = self.shards.at(shard).queue.first() {
            let wanted = self.items.is_wanted(place, now);
            if wanted {
                let sum = weight + self.items.peek(place).weight as u128;
                full = taken.items.len() == max_items || over(sum) && !taken.items.is_empty();
                if full {
                    break;
                }
                weight = sum;
            }
            let position = taken.items.len();
            let item = self.unpack(place, debris, |board, place, debris| {
                let item = board.items.at(place);
                if item.is_late(now) {
                    board.finish(place, Outcome::Expired, debris);
                    return;
                }
                taken.deadline = match taken.seats.is_empty() {
                    true => item.deadline,
                    false => taken.deadline.zip(item.deadline).map(|(a, b)| a.max(b)),
                };
                taken.seats.push(Sent {
                    ticket: Ticket { place, id: item.id },
                    position,
                    at: item.at,
                });
            });
            match wanted {
                true => taken.items.push(item),
                false => debris.items.push(item),
            }
        }
        taken.weight = usize::try_from(weight).unwrap_or(usize::MAX);
        full || taken.items.len() == max_items || over(weight + 1)
    }

    /// Takes an item out of its queue, and does with each who waits for it what `each` says; to them it is as if it were sent.
    fn unpack(
        &mut self,
        place: u32,
        debris: &mut Debris<C>,
        mut each: impl FnMut(&mut Self, u32, &mut Debris<C>),
    ) -> C::Item {
        self.unqueue(place, debris);
        let stage = mem::replace(&mut self.items.at(place).stage, Stage::Sent);
        let Stage::Queued {
            item,
            mut twins,
            left,
        } = stage
        else {
            unreachable!("what is in a queue is queued");
        };
        if left {
            self.items.remove(place);
        } else {
            self.waiting -= 1;
            each(self, place, debris);
        }
        while let Some(twin) = twins.pop_front(&mut self.items) {
            self.waiting -= 1;
            self.items.at(twin).stage = Stage::Sent;
            each(self, twin, debris);
        }
        item
    }

    /// An item that is in no list any more has its outcome.
    fn finish(&mut self, place: u32, outcome: Outcome<C::Answer>, debris: &mut Debris<C>) {
        match outcome {
            Outcome::Answer(_) => {}
            Outcome::Expired => self.books.expired += 1,
            Outcome::Abandoned => self.books.abandoned += 1,
        }
        let item = self.items.at(place);
        item.stage = Stage::Done(outcome);
        debris.wakers.extend(item.waker.take());
    }

    /// Items that were sent have their outcomes; those of callers that have left are nobody's.
    pub(super) fn deliver(
        &mut self,
        outcomes: impl IntoIterator<Item = (Ticket, Kind, Outcome<C::Answer>)>,
        debris: &mut Debris<C>,
    ) {
        let outcomes = outcomes.into_iter();
        // All at once, and for who gets the slot.
        debris.wakers.reserve(outcomes.size_hint().0 + 1);
        for (ticket, kind, outcome) in outcomes {
            let Some(item) = self.items.get(ticket) else {
                debris.outcomes.push(outcome);
                continue;
            };
            debug_assert!(
                matches!(item.stage, Stage::Sent),
                "an item is answered once"
            );
            item.stage = Stage::Done(outcome);
            debris.wakers.extend(item.waker.take());
            *match kind {
                Kind::Ok => &mut self.books.ok,
                Kind::Error => &mut self.books.error,
                Kind::Missing => &mut self.books.missing,
                Kind::Panic => &mut self.books.panic,
                Kind::Abandoned => &mut self.books.abandoned,
            } += 1;
        }
    }

    /// A batch of that shard is not in flight any more.
    pub(super) fn settle(&mut self, place: u32, now: Instant, debris: &mut Debris<C>) {
        self.taken -= 1;
        self.in_flight -= 1;
        self.shards.at(place).in_flight -= 1;
        // The shard goes to the end of the line before the slot goes to the first.
        self.advance(place, now, debris);
        self.grant(debris);
        self.retire(place, debris);
        self.check_idle(debris);
    }

    /// A collector was dropped. What waited is given up if it never ran, and is there for the next collector, which sends
    /// with `service`, if it did.
    pub(super) fn abandon(
        &mut self,
        claim: Claim,
        ran: bool,
        service: Option<C::Service>,
        debris: &mut Debris<C>,
    ) {
        let Some(shard) = self.shards.claimed(claim) else {
            debris.service = service;
            return;
        };
        if ran && service.is_some() {
            shard.service = service;
            self.quit(claim.shard, debris);
            let mut next = self.shards.at(claim.shard).queue.first();
            while let Some(place) = next {
                let item = self.items.at(place);
                debris.wakers.extend(item.waker.take());
                let mut twin = self.items.twins(place).first();
                while let Some(place) = twin {
                    debris.wakers.extend(self.items.at(place).waker.take());
                    twin = List::after(&mut self.items, place);
                }
                next = List::after(&mut self.items, place);
            }
            return;
        }
        debris.service = service;
        let waited = self.waiting;
        while let Some(place) = self.shards.at(claim.shard).queue.first() {
            let item = self.unpack(place, debris, |board, place, debris| {
                board.finish(place, Outcome::Abandoned, debris);
            });
            debris.items.push(item);
        }
        self.quit(claim.shard, debris);
        self.retire(claim.shard, debris);
        self.relieve(waited - self.waiting, debris);
        self.check_idle(debris);
    }

    /// A shard has no collector any more. A slot that it holds goes to the next.
    pub(super) fn quit(&mut self, place: u32, debris: &mut Debris<C>) {
        let shard = self.shards.at(place);
        debris.stale.extend(shard.waker.take());
        match mem::replace(&mut shard.state, State::Empty) {
            State::Open => self.open.remove(&mut self.shards, place),
            State::Due(_) => self.due.remove(&mut self.shards, place),
            State::Granted(_) => {
                self.taken -= 1;
                self.grant(debris);
                self.check_idle(debris);
            }
            State::Empty | State::Blocked | State::Held(_) => {}
        }
    }

    /// A shard in which nothing goes on is removed.
    pub(super) fn retire(&mut self, place: u32, debris: &mut Debris<C>) {
        let shard = self.shards.peek(place);
        if !shard.is_idle() {
            return;
        }
        let hash = shard.hash;
        if let Ok(known) = self.keys.find_entry(hash, |other| *other == place) {
            known.remove();
        }
        shrink(&mut self.keys);
        let shard = self.shards.remove(place);
        debug_assert!(shard.service.is_none(), "only an orphan holds a service");
        debris.keys.push(shard.key);
    }
}
