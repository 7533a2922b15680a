//! What callers ask of the board: one part of its methods.

use std::task::Waker;

use super::board::{Board, Cargo, Claim, Debris, Found, Parcel, Refused, Sent, shrink};
use super::items::{Item, Outcome, Stage, Ticket};
use super::list::List;
use super::shard::{Shard, State};
use crate::base::clock::Instant;

impl<C: Cargo> Board<C> {
    /// Accepts an item. A claim is for the collector that is to begin.
    ///
    /// Foreign code that runs here, `Eq` of keys, runs before anything has changed.
    pub(super) fn push(
        &mut self,
        hash: u64,
        key: &mut Option<C::Key>,
        parcel: Parcel<C>,
        now: Instant,
        debris: &mut Debris<C>,
    ) -> Result<(Ticket, Option<Claim>), (Refused, Parcel<C>)> {
        if let Some(refused) = self.refuses(&parcel) {
            self.books.refused += 1;
            return Err((refused, parcel));
        }
        let wanted = key.as_ref().expect("an item has a shard");
        let found = self.shards.find(&self.keys, hash, wanted);
        let twin_of = match (found, &parcel.same) {
            (Some(shard), Some((hash, same))) => self.find_same(shard, *hash, same),
            _ => None,
        };
        let place = found.unwrap_or_else(|| {
            let key = key.take().expect("an item has a shard");
            let place = self.shards.insert(Shard::new(key, hash));
            let shards = &self.shards;
            self.keys
                .insert_unique(hash, place, |place| shards.peek(*place).hash);
            place
        });
        let ticket = match twin_of {
            Some(of) => self.push_twin(place, of, parcel, now, debris),
            None => self.push_item(place, parcel, now),
        };
        self.books.accepted += 1;
        self.waiting += 1;
        self.press(now, debris);
        let shard = self.shards.at(place);
        let claim = if shard.state == State::Empty {
            debris.service = shard.service.take();
            Some(self.begin(place))
        } else {
            None
        };
        self.advance(place, now, debris);
        Ok((ticket, claim))
    }

    /// One came whose deadline had passed.
    pub(super) fn expire_at_once(&mut self) {
        self.books.accepted += 1;
        self.books.expired += 1;
    }

    /// One was refused that nobody pushed.
    pub(super) fn refuse(&mut self) {
        self.books.refused += 1;
    }

    fn refuses(&self, parcel: &Parcel<C>) -> Option<Refused> {
        if self.urge.closed {
            return Some(Refused::Closed);
        }
        if let Some(max) = self.rules.max_weight
            && parcel.weight > max
            && !self.rules.alone
        {
            let weight = parcel.weight;
            return Some(Refused::TooHeavy { weight, max });
        }
        let items = self.waiting / 2 >= self.rules.queue_items;
        // One that is heavier than all may be comes when nothing else waits.
        let weight = self.waiting_weight + parcel.weight as u128;
        let heavy = |max: usize| self.waiting_weight > 0 && weight > 2 * max as u128;
        (items || self.rules.queue_weight.is_some_and(heavy)).then_some(Refused::Full {
            waiting: self.waiting,
            weight: self.waiting_weight,
        })
    }

    fn find_same(&self, shard: u32, hash: u64, same: &C::Same) -> Option<u32> {
        let found = self.sames.find(hash, |place| {
            let item = self.items.peek(*place);
            item.shard == shard && item.same.as_ref().is_some_and(|(_, other)| other == same)
        });
        found.copied()
    }

    fn push_item(&mut self, place: u32, parcel: Parcel<C>, now: Instant) -> Ticket {
        let stage = Stage::Queued {
            item: parcel.item,
            twins: List::default(),
            left: false,
        };
        let weight = parcel.weight;
        let hash = parcel.same.as_ref().map(|(hash, _)| *hash);
        let item = Item::new(stage, place, weight, now, parcel.deadline, parcel.same);
        let shard = self.shards.at(place);
        shard.note_deadline(&item);
        shard.weight += weight as u128;
        self.waiting_weight += weight as u128;
        let ticket = self.items.insert(item);
        shard.queue.push_back(&mut self.items, ticket.place);
        if let Some(hash) = hash {
            let items = &self.items;
            self.sames
                .insert_unique(hash, ticket.place, |place| items.peek(*place).same_hash());
        }
        ticket
    }

    /// The new one waits with `of`, and its request is not needed.
    fn push_twin(
        &mut self,
        place: u32,
        of: u32,
        parcel: Parcel<C>,
        now: Instant,
        debris: &mut Debris<C>,
    ) -> Ticket {
        debris.item = Some(parcel.item);
        debris.same = parcel.same.map(|(_, same)| same);
        let stage = Stage::Twin { of };
        let twin = Item::new(stage, place, 0, now, parcel.deadline, None);
        self.shards.at(place).note_deadline(&twin);
        let ticket = self.items.insert(twin);
        let mut twins = self.items.twins(of);
        twins.push_back(&mut self.items, ticket.place);
        self.items.set_twins(of, twins);
        self.books.merged += 1;
        ticket
    }

    /// Looks what became of an item. Who has to wait is woken; an outcome gives the place back.
    pub(super) fn ask(
        &mut self,
        ticket: Ticket,
        waker: &Waker,
        now: impl FnOnce() -> Instant,
        debris: &mut Debris<C>,
    ) -> Found<C> {
        let item = self
            .items
            .get(ticket)
            .expect("a caller asks until it has an answer, and no longer");
        if matches!(item.stage, Stage::Done(_)) {
            return Found::Done(self.outcome(ticket.place));
        }
        if !item.waker.as_ref().is_some_and(|old| old.will_wake(waker)) {
            debris.stale.extend(item.waker.replace(waker.clone()));
        }
        if matches!(item.stage, Stage::Sent) {
            return Found::Waiting;
        }
        let place = item.shard;
        let shard = self.shards.at(place);
        if !shard.is_orphan() {
            return Found::Waiting;
        }
        let service = shard.service.take();
        let service = service.expect("an orphan has what its collector left");
        let claim = self.begin(place);
        self.advance(place, now(), debris);
        Found::Orphan(claim, service)
    }

    /// A caller leaves, with its item: of its own will, or since its deadline has passed. Its outcome, if there is one.
    pub(super) fn leave(
        &mut self,
        ticket: Ticket,
        late: bool,
        debris: &mut Debris<C>,
    ) -> Option<Outcome<C::Answer>> {
        let item = self.items.get(ticket)?;
        debris.stale.extend(item.waker.take());
        if matches!(item.stage, Stage::Done(_)) {
            return Some(self.outcome(ticket.place));
        }
        match late {
            true => self.books.expired += 1,
            false => self.books.cancelled += 1,
        }
        let (place, shard) = (ticket.place, item.shard);
        match &mut item.stage {
            Stage::Queued { twins, left, .. } if !twins.is_empty() => {
                *left = true;
                item.deadline = None;
            }
            Stage::Queued { .. } => self.discard(place, debris),
            Stage::Twin { of } => {
                let of = *of;
                self.leave_twin(of, place, debris);
            }
            Stage::Sent | Stage::Done(_) => {
                self.items.remove(place);
                return None;
            }
        }
        self.waiting -= 1;
        if self.shards.at(shard).queue.is_empty() {
            self.emptied(shard, debris);
        }
        self.relieve(1, debris);
        self.check_idle(debris);
        None
    }

    /// Takes the outcome of an item, and gives its place back.
    fn outcome(&mut self, place: u32) -> Outcome<C::Answer> {
        match self.items.remove(place).stage {
            Stage::Done(outcome) => outcome,
            _ => unreachable!("an outcome is taken when it is there"),
        }
    }

    /// The item of `place` waits no more for the same as `of`.
    fn leave_twin(&mut self, of: u32, place: u32, debris: &mut Debris<C>) {
        let mut twins = self.items.twins(of);
        twins.remove(&mut self.items, place);
        self.items.set_twins(of, twins);
        self.items.remove(place);
        if let Stage::Queued { left: true, .. } = self.items.peek(of).stage
            && twins.is_empty()
        {
            self.discard(of, debris);
        }
    }

    /// Drops an item that is queued and for which nobody waits.
    fn discard(&mut self, place: u32, debris: &mut Debris<C>) {
        self.unqueue(place, debris);
        if let Stage::Queued { item, .. } = self.items.remove(place).stage {
            debris.item = Some(item);
        }
    }

    /// Takes an item out of the queue of its shard.
    pub(super) fn unqueue(&mut self, place: u32, debris: &mut Debris<C>) {
        let item = self.items.at(place);
        let (weight, shard, same) = (item.weight, item.shard, item.same.take());
        let shard = self.shards.at(shard);
        shard.queue.remove(&mut self.items, place);
        shard.weight -= weight as u128;
        self.waiting_weight -= weight as u128;
        if let Some((hash, same)) = same {
            if let Ok(known) = self.sames.find_entry(hash, |other| *other == place) {
                known.remove();
            }
            debris.sames.push(same);
            shrink(&mut self.sames);
        }
    }

    /// The last that waited in a shard has left: its collector is to leave too, and its slot is free.
    fn emptied(&mut self, place: u32, debris: &mut Debris<C>) {
        let shard = self.shards.at(place);
        debris.wakers.extend(shard.waker.take());
        debris.service = shard.service.take();
        self.quit(place, debris);
        self.retire(place, debris);
    }

    /// Whether the caller of any of these is still there.
    pub(super) fn is_any_there(&mut self, seats: &[Sent]) -> bool {
        seats
            .iter()
            .any(|seat| self.items.get(seat.ticket).is_some())
    }

    /// Where nobody is woken when a shard is due, those who wait look.
    pub(super) fn look(&mut self, ticket: Ticket, now: Instant, debris: &mut Debris<C>) {
        let Some(item) = self.items.get(ticket) else {
            return;
        };
        if let Stage::Queued { .. } | Stage::Twin { .. } = item.stage {
            let shard = item.shard;
            self.advance(shard, now, debris);
        }
    }
}
