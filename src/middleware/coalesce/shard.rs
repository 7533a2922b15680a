//! A share of all keys: which of them are in flight, and their flights. Plain data; a lock goes round it, no foreign code
//! runs inside but the `Eq` of keys and the clone of wakers, and what falls out is handed to the caller to drop.
//!
//! # Invariants
//!
//! - A flight that is `listed` is the one its key's entry leads to; a key has one entry. An entry leads to a live flight,
//!   or to a result that is kept for a while.
//! - A flight goes off the list before its result is looked at, its work dropped, or its failure told: whoever comes
//!   after that begins anew, and joins nothing that is dying.
//! - A live flight has a waiter or a driver. When the last of both is gone its place is free.
//! - A ticket is valid until its waiter has left; ids are never used twice, so a bell that rings late finds nobody.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use hashbrown::HashTable;

use super::flight::{
    Asked, Benches, Cargo, Failure, Flight, Landed, Orphan, Others, State, Wakers,
};
use super::hot::Hot;
use super::memory::Memory;
use crate::base::clock::Instant;
use crate::base::priority::Priority;

/// What a shard is told once.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Keys in flight or kept, and flights, at most.
    pub(super) max_keys: usize,
    pub(super) max_waiters: u32,
    pub(super) leader_age: Duration,
    pub(super) grace: Duration,
    pub(super) orphan: Option<Orphan>,
    pub(super) remember: (Duration, usize),
}

/// A waiter's claim, or that of the task that drives a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) slot: u32,
    pub(super) seat: u32,
    pub(super) id: u64,
    pub(super) leader: bool,
}

/// What a caller finds under its key.
pub(super) enum Joined<C: Cargo> {
    /// Nobody: it leads, and drives; here is work that is done, to be used again.
    Lead(Ticket, Option<C::Work>),
    /// A flight, and what to do in it, if it asked.
    Follow(Ticket, Option<Asked<C>>),
    /// A result.
    Kept(Arc<C::Shared>),
    /// It goes alone.
    Alone(Bypass),
}

/// Why a caller goes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bypass {
    MaxKeys,
    MaxWaiters,
    Unshareable,
}

/// How callers came and went, ever.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) leaders: u64,
    pub(super) followers: u64,
    /// Leaders nobody followed.
    pub(super) alone: u64,
    pub(super) max_keys: u64,
    pub(super) max_waiters: u64,
    pub(super) unshareable: u64,
}

/// What fell out of a shard: foreign things, to be dropped without its lock.
pub(super) struct Debris<C: Cargo> {
    key: Option<C::Key>,
    work: Option<C::Work>,
    shared: Option<Arc<C::Shared>>,
    own: Option<C::Own>,
    waker: Option<Waker>,
}

/// Entries that fell due, to be dropped without the lock.
pub(super) type Swept<C> = Option<Vec<Entry<C>>>;

/// What a waiter leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Others, or a task, for whom nothing changed.
    Others,
    /// Others, who have lost their leader and go on.
    HandedOver,
    /// Others, for whom it is over, or will be when it is next parked: their leader has left. Wake them.
    Orphans,
    /// Nobody; the work was not done.
    Nobody,
}

/// How a result finds its flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Landing {
    /// It was the leader's alone, who has left with it. Otherwise it must be published.
    pub(super) alone: bool,
    /// Whether the leader waits still.
    pub(super) leader: bool,
    /// How many wait.
    pub(super) waiters: u32,
    /// When the flight first had to wait.
    pub(super) since: Option<Instant>,
}

pub(super) struct Entry<C: Cargo> {
    hash: u64,
    key: C::Key,
    at: At<C>,
}

enum At<C: Cargo> {
    Flight(u32),
    Kept(Arc<C::Shared>, u64),
}

pub(super) struct Shard<C: Cargo> {
    rules: Rules,
    table: HashTable<Entry<C>>,
    flights: Vec<Flight<C>>,
    vacant: Vec<u32>,
    live: usize,
    waiters: usize,
    ids: u64,
    /// Written here, under a lock that is held anyway.
    books: Books,
    /// When kept results fall due, and their numbers.
    kept: VecDeque<(Instant, u64, u64)>,
    memory: Memory,
    hot: Hot,
    spares: Vec<C::Work>,
    benches: Benches,
}

/// So many empty places of flights are kept.
const SPARES: usize = 32;

/// So much work is kept to be used again: it may be large.
const CABINS: usize = 4;

// ===== impl Shard =====

impl<C: Cargo> Shard<C> {
    pub(super) fn new(rules: Rules) -> Self {
        let (ttl, cap) = rules.remember;
        Self {
            memory: Memory::new(ttl, cap),
            rules,
            table: HashTable::new(),
            flights: Vec::new(),
            vacant: Vec::new(),
            live: 0,
            waiters: 0,
            ids: 0,
            books: Books::default(),
            kept: VecDeque::new(),
            hot: Hot::default(),
            spares: Vec::new(),
            benches: Benches::default(),
        }
    }

    /// A caller with `key`, which is taken if it leads. `now` is asked only if there is something to compare with. With
    /// `waker` one that follows asks what to do. Kept results that fell due were [swept](Self::sweep).
    pub(super) fn join(
        &mut self,
        hash: u64,
        key: &mut Option<C::Key>,
        priority: Priority,
        now: impl Fn() -> Instant,
        waker: Option<&Waker>,
    ) -> Joined<C> {
        let joined = self.find(hash, key, priority, now, waker);
        let books = &mut self.books;
        *match &joined {
            Joined::Lead(..) => &mut books.leaders,
            Joined::Follow(..) | Joined::Kept(_) => &mut books.followers,
            Joined::Alone(Bypass::MaxKeys) => &mut books.max_keys,
            Joined::Alone(Bypass::MaxWaiters) => &mut books.max_waiters,
            Joined::Alone(Bypass::Unshareable) => &mut books.unshareable,
        } += 1;
        joined
    }

    #[inline]
    fn find(
        &mut self,
        hash: u64,
        key: &mut Option<C::Key>,
        priority: Priority,
        now: impl Fn() -> Instant,
        waker: Option<&Waker>,
    ) -> Joined<C> {
        if self.memory.knows(hash, &now) {
            return Joined::Alone(Bypass::Unshareable);
        }
        let wanted = key.as_ref().expect("a caller that joins has its key");
        let entry = self
            .table
            .find_mut(hash, |entry| entry.hash == hash && entry.key == *wanted);
        let full = self.live + self.kept.len() >= self.rules.max_keys;
        let Some(entry) = entry else {
            if full {
                return Joined::Alone(Bypass::MaxKeys);
            }
            let slot = self.lead(hash, priority);
            let key = key.take().expect("it was there two lines ago");
            let at = At::Flight(slot);
            self.table
                .insert_unique(hash, Entry { hash, key, at }, |entry| entry.hash);
            return self.led(slot);
        };
        let slot = match &entry.at {
            At::Kept(shared, _) => {
                self.hot.count(hash, 1);
                return Joined::Kept(shared.clone());
            }
            At::Flight(slot) => *slot,
        };
        let flight = &mut self.flights[slot as usize];
        let age = self.rules.leader_age;
        let old = flight.since.is_some_and(|since| now() >= since + age);
        let crowded = flight.crowd() >= self.rules.max_waiters;
        if old || crowded || !flight.suits(priority) {
            if full && crowded {
                return Joined::Alone(Bypass::MaxWaiters);
            }
            if full {
                return Joined::Alone(Bypass::MaxKeys);
            }
            flight.listed = false;
            let fresh = self.lead(hash, priority);
            let entry = self
                .table
                .find_mut(
                    hash,
                    |entry| matches!(entry.at, At::Flight(at) if at == slot),
                )
                .expect("it was found ten lines ago");
            entry.at = At::Flight(fresh);
            return self.led(fresh);
        }
        self.waiters += 1;
        let seat = flight.join(priority, &mut self.benches);
        let ticket = Ticket {
            slot,
            seat,
            id: flight.id,
            leader: false,
        };
        // A flight that is listed is not over.
        Joined::Follow(ticket, waker.map(|waker| flight.ask(seat, waker)))
    }

    /// The waiter asks what to do. It has left when it is over.
    pub(super) fn ask(
        &mut self,
        ticket: Ticket,
        waker: &Waker,
        debris: &mut Debris<C>,
    ) -> Asked<C> {
        let flight = self.flight(ticket);
        if flight.is_over() {
            return Asked::Over(self.verdict(ticket, debris));
        }
        flight.ask(ticket.seat, waker)
    }

    /// What the waiter gets of a flight that is over; it has left.
    pub(super) fn verdict(&mut self, ticket: Ticket, debris: &mut Debris<C>) -> Landed<C> {
        let flight = self.flight(ticket);
        let last = flight.crowd() == 1;
        let landed = flight.verdict(ticket.leader, last);
        debris.waker = flight.stand(ticket.seat, ticket.leader);
        self.waiters -= 1;
        if last {
            self.free(ticket.slot, debris);
        }
        landed
    }

    /// Whoever drives gives the work back. Whether all must be woken.
    ///
    /// `sent` is the priority its request was sent with, if it was sent; `now` is asked the first time only.
    pub(super) fn park(
        &mut self,
        ticket: Ticket,
        work: C::Work,
        sent: Option<Priority>,
        waker: &Waker,
        now: impl Fn() -> Instant,
        debris: &mut Debris<C>,
    ) -> bool {
        let flight = self.flight(ticket);
        flight.sent = sent;
        if flight.since.is_none() {
            flight.since = Some(now());
        }
        let (wake, stale) = flight.park(work, ticket.seat, waker);
        debris.waker = stale;
        match flight.orphan {
            Some(orphan) => {
                self.end(ticket.slot, orphan, debris);
                true
            }
            None => wake,
        }
    }

    /// A task of its own takes the flight over from its leader, who drives it; the task has no seat.
    pub(super) fn detach(&mut self, ticket: Ticket, waker: &Waker, now: Instant) {
        let flight = self.flight(ticket);
        flight.detached = true;
        flight.since = Some(now);
        let Asked::Wait { stale: None } = flight.ask(ticket.seat, waker) else {
            unreachable!("it is driven, and its leader asks for the first time");
        };
    }

    /// The greatest priority among those who joined a detached flight.
    pub(super) fn asked(&mut self, ticket: Ticket) -> Priority {
        self.flight(ticket).asked
    }

    /// The request of a detached flight was sent.
    pub(super) fn sent(&mut self, ticket: Ticket, priority: Priority) {
        self.flight(ticket).sent = Some(priority);
    }

    /// The work is done; whoever drove it holds the result, and gives back the empty work. The flight goes off the list,
    /// unless its result will be kept.
    pub(super) fn finish(
        &mut self,
        ticket: Ticket,
        work: C::Work,
        debris: &mut Debris<C>,
    ) -> Landing {
        debris.work = self.recycle(work);
        let keep = !self.rules.grace.is_zero();
        if !keep {
            self.unlist(ticket.slot, debris);
        }
        let flight = self.flight(ticket);
        let landing = Landing {
            alone: ticket.leader && flight.crowd() == 1 && !keep,
            leader: flight.leader,
            waiters: flight.crowd(),
            since: flight.since,
        };
        if landing.alone {
            debris.waker = flight.stand(ticket.seat, true);
            self.books.alone += 1;
            self.waiters -= 1;
            self.free(ticket.slot, debris);
        }
        landing
    }

    /// The flight is over. All must be woken; then whoever waits, and drove, asks for its verdict.
    ///
    /// With `keep` a result for all is kept for the time of grace, from then on. `at` is now, if that is known.
    pub(super) fn publish(
        &mut self,
        ticket: Ticket,
        own: Option<C::Own>,
        others: Others<C>,
        keep: Option<Instant>,
        at: Option<Instant>,
        debris: &mut Debris<C>,
    ) {
        let listed = self.flight(ticket).listed;
        match (&others, keep) {
            (Others::Take(shared), Some(now)) if listed => {
                self.keep(ticket.slot, shared.clone(), now);
            }
            _ => self.unlist(ticket.slot, debris),
        }
        let flight = self.flight(ticket);
        flight.state = State::Over { own, others, at };
        if flight.crowd() == 0 {
            self.free(ticket.slot, debris);
        }
    }

    /// A waiter that has no verdict leaves. One that left with its result, and whose destructor of a key panicked, may
    /// come once more.
    pub(super) fn leave(&mut self, ticket: Ticket, debris: &mut Debris<C>) -> Left {
        let flight = match self.flights.get_mut(ticket.slot as usize) {
            Some(flight) if flight.id == ticket.id => flight,
            _ => return Left::Others,
        };
        self.waiters -= 1;
        let orphan = self.rules.orphan;
        debris.waker = flight.stand(ticket.seat, ticket.leader);
        let (crowd, detached) = (flight.crowd(), flight.detached);
        let parked = match &mut flight.state {
            State::Over { own, .. } => {
                if ticket.leader {
                    debris.own = own.take();
                }
                if crowd == 0 {
                    self.free(ticket.slot, debris);
                }
                return Left::Others;
            }
            State::Parked(_) => true,
            State::Driven => false,
        };
        match orphan {
            // A waiter that drives does not leave: only a task drives for nobody.
            _ if crowd == 0 && parked => {
                self.unlist(ticket.slot, debris);
                self.free(ticket.slot, debris);
                Left::Nobody
            }
            _ if !ticket.leader || detached => Left::Others,
            None => Left::HandedOver,
            Some(orphan) if parked => {
                self.end(ticket.slot, orphan, debris);
                Left::Orphans
            }
            Some(orphan) => {
                // Whoever comes from now on did not follow this leader.
                self.unlist(ticket.slot, debris);
                self.flight(ticket).orphan = Some(orphan);
                Left::Orphans
            }
        }
    }

    /// Somebody wakes the work of the flight that had this id. Whether all must be woken.
    pub(super) fn ring(&mut self, slot: u32, id: u64) -> bool {
        match self.flights.get_mut(slot as usize) {
            Some(flight) if flight.id == id => flight.ring(),
            _ => false,
        }
    }

    /// Takes wakers from seat `from` on, if the flight is there still. Where to go on, if there are more.
    pub(super) fn wakers(
        &mut self,
        slot: u32,
        id: u64,
        from: usize,
        into: &mut Wakers,
    ) -> Option<usize> {
        match self.flights.get_mut(slot as usize) {
            Some(flight) if flight.id == id => flight.wakers(from, into),
            _ => None,
        }
    }

    /// The key's requests go alone for a while.
    pub(super) fn remember(&mut self, hash: u64, now: Instant) {
        self.memory.remember(hash, now);
    }

    /// An answer that nobody shared could have been.
    pub(super) fn unlearn(&mut self, hash: u64) {
        self.memory.unlearn(hash);
    }

    /// Work that is done and empty, to be used again. Handed back when there is enough.
    pub(super) fn recycle(&mut self, work: C::Work) -> Option<C::Work> {
        if self.spares.len() < CABINS {
            self.spares.push(work);
            None
        } else {
            Some(work)
        }
    }

    /// Drops kept results and remembered keys that fell due.
    pub(super) fn tidy(&mut self, now: Instant, swept: &mut Swept<C>) {
        self.sweep(now, swept);
        self.memory.forget(now);
    }

    pub(super) fn books(&self) -> &Books {
        &self.books
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn waiters(&self) -> usize {
        self.waiters
    }

    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn remembered(&self) -> usize {
        self.memory.len()
    }

    /// The keys followed most, and how often: in flights that are over, and in those that are not.
    pub(super) fn hot(&self) -> impl Iterator<Item = (u64, u64)> {
        let live = self.flights.iter().filter(|flight| flight.followers > 0);
        let live = live.filter(|flight| flight.id != 0);
        let live = live.map(|flight| (flight.hash, flight.followers.into()));
        self.hot.iter().chain(live)
    }

    fn lead(&mut self, hash: u64, priority: Priority) -> u32 {
        self.ids += 1;
        self.live += 1;
        self.waiters += 1;
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.flights.push(Flight::vacant());
            (self.flights.len() - 1) as u32
        });
        self.flights[slot as usize].begin(self.ids, hash, priority);
        slot
    }

    fn led(&mut self, slot: u32) -> Joined<C> {
        let ticket = Ticket {
            slot,
            seat: 0,
            id: self.ids,
            leader: true,
        };
        Joined::Lead(ticket, self.spares.pop())
    }

    fn flight(&mut self, ticket: Ticket) -> &mut Flight<C> {
        let flight = &mut self.flights[ticket.slot as usize];
        debug_assert_eq!(flight.id, ticket.id, "a ticket is of one flight");
        flight
    }

    /// The flight ends for those who followed, since its leader left.
    fn end(&mut self, slot: u32, orphan: Orphan, debris: &mut Debris<C>) {
        self.unlist(slot, debris);
        let flight = &mut self.flights[slot as usize];
        let others = match orphan {
            Orphan::Anew => Others::Anew,
            Orphan::Fail => Others::Failed(Failure::Abandoned),
        };
        let over = State::Over {
            own: None,
            others,
            at: None,
        };
        if let State::Parked(work) = std::mem::replace(&mut flight.state, over) {
            debris.work = Some(work);
        }
    }

    fn unlist(&mut self, slot: u32, debris: &mut Debris<C>) {
        let flight = &mut self.flights[slot as usize];
        if std::mem::replace(&mut flight.listed, false) {
            let found = self.table.find_entry(
                flight.hash,
                |entry| matches!(entry.at, At::Flight(at) if at == slot),
            );
            let Ok(entry) = found else {
                unreachable!("a listed flight has an entry");
            };
            debris.key = Some(entry.remove().0.key);
        }
    }

    fn keep(&mut self, slot: u32, shared: Arc<C::Shared>, now: Instant) {
        let grace = self.rules.grace;
        let flight = &mut self.flights[slot as usize];
        flight.listed = false;
        let (hash, id) = (flight.hash, flight.id);
        let entry = self
            .table
            .find_mut(
                hash,
                |entry| matches!(entry.at, At::Flight(at) if at == slot),
            )
            .expect("a listed flight has an entry");
        entry.at = At::Kept(shared, id);
        self.kept.push_back((now + grace, hash, id));
    }

    /// Takes out kept results that fell due.
    pub(super) fn sweep(&mut self, now: Instant, swept: &mut Swept<C>) {
        while let Some(&(until, hash, id)) = self.kept.front()
            && until <= now
        {
            self.kept.pop_front();
            let found = self.table.find_entry(
                hash,
                |entry| matches!(entry.at, At::Kept(_, kept) if kept == id),
            );
            if let Ok(entry) = found {
                let swept = swept.get_or_insert_default();
                swept.push(entry.remove().0);
            }
        }
        if self.kept.is_empty() && self.kept.capacity() > SPARES {
            self.shrink();
        }
    }

    /// Gives back what many keys took and few do not need.
    fn shrink(&mut self) {
        self.table.shrink_to(SPARES, |entry| entry.hash);
        self.kept.shrink_to(SPARES);
    }

    /// The flight is over and has nobody left.
    fn free(&mut self, slot: u32, debris: &mut Debris<C>) {
        let flight = &mut self.flights[slot as usize];
        debug_assert!(flight.id != 0, "a live flight is freed once");
        debug_assert!(!flight.listed, "nothing leads to a flight that is gone");
        self.live -= 1;
        if flight.followers > 0 {
            self.hot.count(flight.hash, flight.followers.into());
        }
        match flight.end(&mut self.benches) {
            State::Parked(work) => debris.work = Some(work),
            State::Driven => {}
            State::Over { own, others, .. } => {
                debris.own = debris.own.take().or(own);
                if let Others::Take(shared) = others {
                    debris.shared = Some(shared);
                }
            }
        }
        self.vacant.push(slot);
        if self.live == 0 && self.flights.len() > SPARES {
            // A wave is over: its memory goes too.
            self.flights = Vec::new();
            self.vacant = Vec::new();
            self.benches = Benches::default();
            self.shrink();
        }
    }
}

// ===== impl Books =====

impl Books {
    pub(super) fn add(&mut self, other: &Self) {
        self.leaders += other.leaders;
        self.followers += other.followers;
        self.alone += other.alone;
        self.max_keys += other.max_keys;
        self.max_waiters += other.max_waiters;
        self.unshareable += other.unshareable;
    }
}

// ===== impl Debris =====

impl<C: Cargo> Default for Debris<C> {
    fn default() -> Self {
        Self {
            key: None,
            work: None,
            shared: None,
            own: None,
            waker: None,
        }
    }
}

impl<C: Cargo> Debris<C> {
    /// Work that was given up, which its caller may empty and use again.
    pub(super) fn work(&mut self) -> Option<C::Work> {
        self.work.take()
    }
}

#[cfg(test)]
#[cfg(not(tower_flow_loom))]
mod tests;
