//! All shards of a layer, and the slots and the room they share. No clock, no task, no lock.
//!
//! # Invariants
//!
//! - `waiting` counts the items that were accepted and are neither sent, nor cancelled, nor late; never more than twice the
//!   room there is. `taken` counts the slots: shards that are `Granted`, and batches in flight; never more than there are.
//! - A shard that is due and allowed to send has a slot, or there is none and it is in the line of those who are `due`;
//!   a slot that becomes free goes to the first of them, and a shard that has sent goes to the end.
//! - An item accepted gets one [`Outcome`], or its caller leaves. A caller that leaves takes its weight along at once.
//! - A method wakes nobody and drops nothing foreign: wakers, and whatever falls out, go to the [`Debris`].

use std::collections::HashMap;
use std::task::Waker;

use hashbrown::HashTable;

use super::gate::{Line, Seat};
use super::items::{Item, Items, Outcome, Stage, Ticket};
use super::list::{Linked, Links, List};
use super::request::Flush;
use super::shard::{Rules, Shard, State, Urge};
use crate::base::clock::Instant;

#[cfg(test)]
#[cfg(not(tower_flow_loom))]
mod tests;

/// What the shards carry.
pub(super) trait Cargo {
    /// Which shard.
    type Key: Eq;
    /// A request.
    type Item;
    /// Which requests are the same.
    type Same: Eq;
    /// What a caller gets.
    type Answer;
    /// What a collector sends with.
    type Service;
}

pub(super) struct Board<C: Cargo> {
    pub(super) rules: Rules,
    pub(super) urge: Urge,
    pub(super) items: Items<C>,
    pub(super) shards: Shards<C>,
    pub(super) keys: HashTable<u32>,
    /// The queued items that others may be the same as.
    pub(super) sames: HashTable<u32>,
    /// Shards that are open, and those that are due, in the order they came to be.
    pub(super) open: List,
    pub(super) due: List,
    pub(super) waiting: usize,
    pub(super) waiting_weight: u128,
    pub(super) taken: usize,
    /// Batches, which are what has a slot and is not `Granted`.
    pub(super) in_flight: usize,
    pub(super) line: Line,
    pub(super) collectors: u64,
    /// Who waits until nothing is under way.
    pub(super) drains: HashMap<u64, Waker>,
    pub(super) books: Books,
}

/// Shards, in places of their own.
pub(super) struct Shards<C: Cargo> {
    places: Vec<Option<Shard<C>>>,
    free: Vec<u32>,
}

/// An item to be accepted.
pub(super) struct Parcel<C: Cargo> {
    pub(super) item: C::Item,
    pub(super) weight: usize,
    pub(super) deadline: Option<Instant>,
    pub(super) same: Option<(u64, C::Same)>,
}

/// Why an item was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Closed,
    TooHeavy { weight: usize, max: usize },
    Full { waiting: usize, weight: u128 },
}

/// A collector's claim on its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) shard: u32,
    pub(super) collector: u64,
}

/// What a collector is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait, no longer than until then.
    Wait(Option<Instant>),
    /// Take the batch once the service is ready, for this reason.
    Take(Flush),
    /// Go: there is nothing to send, or not for this one.
    Leave,
}

/// What was taken to be sent.
pub(super) struct Taken<C: Cargo> {
    pub(super) items: Vec<C::Item>,
    /// Who waits for them.
    pub(super) seats: Vec<Sent>,
    pub(super) weight: usize,
    pub(super) flush: Flush,
    /// The latest deadline, when all have one.
    pub(super) deadline: Option<Instant>,
    /// Others wait: their collector is to begin.
    pub(super) next: Option<Claim>,
}

/// A caller whose item is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) ticket: Ticket,
    /// In the batch.
    pub(super) position: usize,
    /// When it was accepted.
    pub(super) at: Instant,
}

/// What a caller finds.
pub(super) enum Found<C: Cargo> {
    Done(Outcome<C::Answer>),
    Waiting,
    /// It waits and nobody collects: the collector of that claim is to begin.
    Orphan(Claim, C::Service),
}

/// How an item was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ok,
    Error,
    Missing,
    Panic,
    Abandoned,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) accepted: u64,
    pub(super) batches: u64,
    /// Those whose items were sent.
    pub(super) sent: u64,
    pub(super) merged: u64,
    pub(super) ok: u64,
    pub(super) error: u64,
    pub(super) missing: u64,
    pub(super) panic: u64,
    pub(super) abandoned: u64,
    pub(super) cancelled: u64,
    pub(super) expired: u64,
    pub(super) refused: u64,
    pub(super) flushes: [u64; Flush::ALL.len()],
}

/// How much there is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) waiting: usize,
    pub(super) in_flight: usize,
    pub(super) shards: usize,
    pub(super) books: Books,
}

/// What is woken and dropped once the lock has been given back.
pub(super) struct Debris<C: Cargo> {
    /// To be woken.
    pub(super) wakers: Vec<Waker>,
    /// Not needed any more.
    pub(super) stale: Vec<Waker>,
    pub(super) item: Option<C::Item>,
    pub(super) items: Vec<C::Item>,
    pub(super) same: Option<C::Same>,
    pub(super) sames: Vec<C::Same>,
    pub(super) keys: Vec<C::Key>,
    pub(super) service: Option<C::Service>,
    pub(super) outcomes: Vec<Outcome<C::Answer>>,
}

/// Places of shards, and of entries in tables, kept when all are free.
const KEPT: usize = 1_024;

/// Gives back what a table needed when it was large, once nothing is in it.
pub(super) fn shrink(table: &mut HashTable<u32>) {
    if table.is_empty() && table.capacity() > KEPT {
        *table = HashTable::new();
    }
}

// ===== impl Board =====

impl<C: Cargo> Board<C> {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            urge: Urge::default(),
            items: Items::new(),
            shards: Shards {
                places: Vec::new(),
                free: Vec::new(),
            },
            keys: HashTable::new(),
            sames: HashTable::new(),
            open: List::default(),
            due: List::default(),
            waiting: 0,
            waiting_weight: 0,
            taken: 0,
            in_flight: 0,
            line: Line::default(),
            collectors: 0,
            drains: HashMap::new(),
            books: Books::default(),
        }
    }

    pub(super) fn tally(&self) -> Tally {
        Tally {
            waiting: self.waiting,
            in_flight: self.in_flight,
            shards: self.shards.len(),
            books: self.books,
        }
    }

    // ----- callers -----

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

    // ----- room -----

    /// Whether whoever comes need not ask.
    pub(super) fn looks_open(&self) -> bool {
        self.is_open() && self.line.is_empty()
    }

    /// Whether a caller may come.
    pub(super) fn is_open(&self) -> bool {
        self.urge.closed || !self.is_full()
    }

    fn is_full(&self) -> bool {
        let heavy = |max: usize| self.waiting_weight >= max as u128;
        self.waiting >= self.rules.queue_items || self.rules.queue_weight.is_some_and(heavy)
    }

    /// Whether a caller may come; if not it waits in line.
    pub(super) fn enter(
        &mut self,
        seat: &mut Option<Seat>,
        waker: &Waker,
        debris: &mut Debris<C>,
    ) -> bool {
        let behind = seat.is_none() && !self.line.is_empty() && !self.urge.closed;
        if behind || !self.is_open() {
            debris.stale.extend(self.line.wait(seat, waker));
            return false;
        }
        if let Some(seat) = seat.take() {
            debris.stale.extend(self.line.leave(seat));
            // There is more room than this one needs.
            if self.waiting + 1 < self.rules.queue_items {
                debris.wakers.extend(self.line.next());
            }
        }
        true
    }

    /// A caller does not wait in line any more. The wake it was given goes to the next.
    pub(super) fn leave_line(&mut self, seat: Seat, debris: &mut Debris<C>) {
        match self.line.leave(seat) {
            Some(waker) => debris.stale.push(waker),
            None if self.is_open() => debris.wakers.extend(self.line.next()),
            None => {}
        }
    }

    /// Something was accepted.
    fn press(&mut self, now: Instant, debris: &mut Debris<C>) {
        if !self.urge.pressed && self.is_full() {
            self.urge.pressed = true;
            self.hurry(now, debris);
        }
    }

    /// So many wait no more.
    pub(super) fn relieve(&mut self, places: usize, debris: &mut Debris<C>) {
        if self.is_full() {
            return;
        }
        self.urge.pressed = false;
        let room = self.rules.queue_items - self.waiting;
        for _ in 0..places.min(room) {
            match self.line.next() {
                Some(waker) => debris.wakers.push(waker),
                None => break,
            }
        }
    }

    // ----- the handle -----

    /// What waits now is due.
    pub(super) fn flush(&mut self, now: Instant, debris: &mut Debris<C>) {
        self.urge.asked = self.items.next_id();
        self.hurry(now, debris);
    }

    /// Nothing more is accepted, and what waits is due.
    pub(super) fn close(&mut self, now: Instant, debris: &mut Debris<C>) {
        self.urge.closed = true;
        self.hurry(now, debris);
        while let Some(waker) = self.line.next() {
            debris.wakers.push(waker);
        }
        self.check_idle(debris);
    }

    /// Whether nothing is under way. If so, or once it is, `waker` is woken.
    ///
    /// `drain` tells one who asks from another.
    pub(super) fn drained(&mut self, drain: u64, waker: &Waker, debris: &mut Debris<C>) -> bool {
        let done = self.waiting == 0 && self.taken == 0;
        if !done {
            let old = self.drains.insert(drain, waker.clone());
            debris.stale.extend(old);
        }
        done
    }

    /// Nobody asks as that any more.
    pub(super) fn forget_drain(&mut self, drain: u64, debris: &mut Debris<C>) {
        debris.stale.extend(self.drains.remove(&drain));
    }

    pub(super) fn set_rules(
        &mut self,
        set: impl FnOnce(&mut Rules),
        now: Instant,
        debris: &mut Debris<C>,
    ) {
        set(&mut self.rules);
        self.urge.pressed = self.is_full();
        self.hurry(now, debris);
        self.relieve(usize::MAX, debris);
    }

    /// Every shard looks whether it is due.
    fn hurry(&mut self, now: Instant, debris: &mut Debris<C>) {
        let mut next = self.open.first();
        while let Some(place) = next {
            next = List::after(&mut self.shards, place);
            self.advance(place, now, debris);
        }
    }

    /// Once nothing is under way, drains are done. And nothing more becomes free: all in line may come, for whoever was woken
    /// for the last places may never do so.
    pub(super) fn check_idle(&mut self, debris: &mut Debris<C>) {
        if self.waiting > 0 || self.taken > 0 {
            return;
        }
        debris
            .wakers
            .extend(self.drains.drain().map(|(_, waker)| waker));
        while let Some(waker) = self.line.next() {
            debris.wakers.push(waker);
        }
    }

    /// Wakes all who wait for an answer; where callers drive, one of them has to.
    pub(super) fn wake_all(&mut self, debris: &mut Debris<C>) {
        for item in self.items.iter_mut() {
            debris.wakers.extend(item.waker.take());
        }
        debris.wakers.extend(self.line.wakers());
        debris
            .wakers
            .extend(self.drains.drain().map(|(_, waker)| waker));
    }
}

// ===== impl Shards =====

impl<C: Cargo> Shards<C> {
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn at(&mut self, place: u32) -> &mut Shard<C> {
        let shard = self.places[place as usize].as_mut();
        shard.expect("a place in a list or table is taken")
    }

    pub(super) fn peek(&self, place: u32) -> &Shard<C> {
        let shard = self.places[place as usize].as_ref();
        shard.expect("a place in a list or table is taken")
    }

    /// The shard of a claim, unless its collector is another by now.
    pub(super) fn claimed(&mut self, claim: Claim) -> Option<&mut Shard<C>> {
        let shard = self.places.get_mut(claim.shard as usize)?.as_mut()?;
        (shard.collector == claim.collector && shard.state != State::Empty).then_some(shard)
    }

    fn find(&self, keys: &HashTable<u32>, hash: u64, wanted: &C::Key) -> Option<u32> {
        let found = keys.find(hash, |place| self.peek(*place).key == *wanted);
        found.copied()
    }

    fn insert(&mut self, shard: Shard<C>) -> u32 {
        match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = Some(shard);
                place
            }
            None => {
                self.places.push(Some(shard));
                (self.places.len() - 1) as u32
            }
        }
    }

    pub(super) fn remove(&mut self, place: u32) -> Shard<C> {
        let shard = self.places[place as usize].take();
        self.free.push(place);
        if self.len() == 0 && self.places.capacity() > KEPT {
            self.places = Vec::new();
            self.free = Vec::new();
        }
        shard.expect("a place in a list or table is taken")
    }
}

impl<C: Cargo> Linked for Shards<C> {
    fn links(&mut self, place: u32) -> &mut Links {
        &mut self.at(place).links
    }
}

// ===== impl Tally =====

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.waiting += other.waiting;
        self.in_flight += other.in_flight;
        self.shards += other.shards;
        self.books.add(&other.books);
    }
}

// ===== impl Books =====

impl Books {
    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.batches += other.batches;
        self.sent += other.sent;
        self.merged += other.merged;
        self.ok += other.ok;
        self.error += other.error;
        self.missing += other.missing;
        self.panic += other.panic;
        self.abandoned += other.abandoned;
        self.cancelled += other.cancelled;
        self.expired += other.expired;
        self.refused += other.refused;
        for (own, other) in self.flushes.iter_mut().zip(other.flushes) {
            *own += other;
        }
    }
}

// ===== impl Debris =====

impl<C: Cargo> Default for Debris<C> {
    fn default() -> Self {
        Self {
            wakers: Vec::new(),
            stale: Vec::new(),
            item: None,
            items: Vec::new(),
            same: None,
            sames: Vec::new(),
            keys: Vec::new(),
            service: None,
            outcomes: Vec::new(),
        }
    }
}
