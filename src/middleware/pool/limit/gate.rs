//! Who may have a place now, and who waits for one: plain data, told what happens and telling whom to wake.
//!
//! # Invariants
//!
//! - A host's places are those that were granted and not released, whether or not the one they were granted to knows.
//!   `held` is the sum over all hosts; a grant is made only where [`Limits`] allow it.
//! - At rest nobody waits who could be granted: a host with a queue either has all of its own places, or waits for one
//!   of the total. It has a `turn` in the second case, and only then.
//! - Within a host the oldest is granted first, and nobody who comes overtakes a queue. Hosts that wait for the total
//!   are granted one place each, in the order of their turns, then go to the end.
//! - A ticket is in its host's queue until it is granted or leaves. Only its owner makes it leave, so one that is not
//!   there has been granted; if its owner leaves then, the place goes to the next.
//! - A host with places or a queue has a slot and is in `hosts`. One without either stays a while, since who asked once
//!   asks again; the oldest of more than [`SPARES`] such hosts goes.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::mem;
use std::task::Waker;

/// How many hosts that nobody uses are remembered.
const SPARES: usize = 64;

/// Places of hosts of type `K`; `W` wakes one that waits.
#[derive(Debug)]
pub(super) struct Gate<K, W> {
    limits: Limits,
    hosts: HashMap<K, usize>,
    slots: Vec<Host<K, W>>,
    free: Vec<usize>,
    /// Hosts that were without use when they were put here, the oldest first.
    unused: VecDeque<usize>,
    turns: BTreeMap<u64, usize>,
    held: usize,
    waiting: usize,
    /// The number of the next ticket or turn.
    next: u64,
    closed: bool,
}

/// How many may have a place, and how many may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) total: usize,
    pub(super) per_host: usize,
    /// So many places every host may have, whatever the total.
    pub(super) reserve: usize,
    pub(super) pending_per_host: usize,
}

#[derive(Debug)]
struct Host<K, W> {
    key: Option<K>,
    held: usize,
    /// Of those held, how many have become a connection.
    open: usize,
    /// By rising number.
    queue: VecDeque<Waiter<W>>,
    turn: Option<u64>,
    listed: bool,
}

#[derive(Debug)]
struct Waiter<W> {
    number: u64,
    wake: W,
}

/// A place in a queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    host: usize,
    number: u64,
}

/// What became of somebody who came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// A place of this host, to be released.
    Granted(usize),
    Queued(Ticket),
    Full(Facts),
    Closed,
}

/// What became of somebody who waits.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// A place of this host, to be released.
    Granted(usize),
    Waits,
    /// Nobody is granted anything any more; it is still to leave.
    Closed,
}

/// How things stand for one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) limits: Limits,
    pub(super) held: usize,
    pub(super) held_of_host: usize,
    pub(super) waiting_of_host: usize,
}

/// One host in a picture of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen<'a, K> {
    pub(super) key: &'a K,
    pub(super) held: usize,
    pub(super) open: usize,
    pub(super) waiting: usize,
}

/// Those who were granted, or have to see that it is closed: to be woken outside of any lock. Most often one at most,
/// for which nothing is allocated.
#[derive(Debug)]
#[must_use = "whoever was granted has to be woken"]
pub(super) struct Woken<W>(Option<W>, Vec<W>);

// ===== impl Gate =====

impl<K: Hash + Eq + Clone, W> Gate<K, W> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            hosts: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            unused: VecDeque::new(),
            turns: BTreeMap::new(),
            held: 0,
            waiting: 0,
            next: 0,
            closed: false,
        }
    }

    /// Somebody wants a place of `key`.
    pub(super) fn arrive<Q>(&mut self, key: &Q, wake: impl FnOnce() -> W) -> Arrival
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if self.closed {
            return Arrival::Closed;
        }
        let at = match self.hosts.get(key) {
            Some(at) => *at,
            None => self.add(key.to_owned()),
        };
        let queued = self.slots[at].queue.len();
        if queued == 0 && self.fits(at) {
            self.take(at);
            return Arrival::Granted(at);
        }
        if queued >= self.limits.pending_per_host {
            let facts = self.facts(at);
            self.tidy(at);
            return Arrival::Full(facts);
        }
        let number = self.number();
        let wake = wake();
        self.slots[at].queue.push_back(Waiter { number, wake });
        self.waiting += 1;
        self.line_up(at);
        Arrival::Queued(Ticket { host: at, number })
    }

    /// What has become of `ticket`; who waits on is woken by what is left in `wake`.
    pub(super) fn poll(&mut self, ticket: &Ticket, wake: &mut W) -> Fate {
        let queue = &mut self.slots[ticket.host].queue;
        match find(queue, ticket.number) {
            None => Fate::Granted(ticket.host),
            Some(_) if self.closed => Fate::Closed,
            Some(place) => {
                mem::swap(&mut queue[place].wake, wake);
                Fate::Waits
            }
        }
    }

    /// The owner of `ticket` waits no longer. What would have woken it comes back, or `None` if it was granted: then
    /// the place is still its own, to be released.
    pub(super) fn leave(&mut self, ticket: &Ticket) -> Option<W> {
        let host = &mut self.slots[ticket.host];
        let place = find(&host.queue, ticket.number)?;
        let left = host.queue.remove(place)?;
        self.waiting -= 1;
        self.line_up(ticket.host);
        self.tidy(ticket.host);
        Some(left.wake)
    }

    /// One of the places of a host has become a connection.
    pub(super) fn opened(&mut self, at: usize) {
        self.slots[at].open += 1;
    }

    /// A place is free again, one of a connection if it was `open`.
    pub(super) fn release(&mut self, at: usize, open: bool) -> Woken<W> {
        let host = &mut self.slots[at];
        host.held -= 1;
        host.open -= usize::from(open);
        self.held -= 1;
        // Behind all that wait for the total already.
        self.line_up(at);
        let mut woken = Woken::none();
        self.grant(&mut woken);
        self.grant_own(at, &mut woken);
        self.tidy(at);
        woken
    }

    /// Nobody who holds a place loses it.
    pub(super) fn set_limits(&mut self, limits: Limits) -> Woken<W> {
        self.limits = limits;
        let mut woken = Woken::none();
        for at in 0..self.slots.len() {
            self.line_up(at);
        }
        self.grant(&mut woken);
        for at in 0..self.slots.len() {
            self.grant_own(at, &mut woken);
        }
        woken
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Grants nothing more: all who wait are to leave, all who come are sent away.
    pub(super) fn close(&mut self, mut wake: impl FnMut(&W) -> W) -> Woken<W> {
        self.closed = true;
        let mut woken = Woken::none();
        for waiter in self.slots.iter().flat_map(|host| &host.queue) {
            woken.push(wake(&waiter.wake));
        }
        woken
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How things stand for whoever holds `ticket`.
    pub(super) fn facts_of(&self, ticket: &Ticket) -> Facts {
        self.facts(ticket.host)
    }

    /// The hosts with places or a queue, in no order.
    pub(super) fn hosts(&self) -> impl Iterator<Item = Seen<'_, K>> {
        self.slots.iter().filter_map(|host| {
            let seen = Seen {
                key: host.key.as_ref()?,
                held: host.held,
                open: host.open,
                waiting: host.queue.len(),
            };
            (seen.held + seen.waiting > 0).then_some(seen)
        })
    }

    fn facts(&self, at: usize) -> Facts {
        Facts {
            limits: self.limits,
            held: self.held,
            held_of_host: self.slots[at].held,
            waiting_of_host: self.slots[at].queue.len(),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn fits(&self, at: usize) -> bool {
        let (limits, held) = (&self.limits, self.slots[at].held);
        held < limits.per_host && (self.held < limits.total || held < limits.reserve)
    }

    fn take(&mut self, at: usize) {
        self.slots[at].held += 1;
        self.held += 1;
    }

    /// Gives the oldest of a host a place.
    fn grant_oldest(&mut self, at: usize, woken: &mut Woken<W>) {
        if let Some(waiter) = self.slots[at].queue.pop_front() {
            self.waiting -= 1;
            self.take(at);
            woken.push(waiter.wake);
        }
    }

    /// Grants what there is of the total, a place to each host in turn.
    fn grant(&mut self, woken: &mut Woken<W>) {
        while !self.closed && self.held < self.limits.total {
            let Some((_, at)) = self.turns.pop_first() else {
                return;
            };
            self.slots[at].turn = None;
            self.grant_oldest(at, woken);
            self.line_up(at);
        }
    }

    /// Grants a host what it may have whatever the total.
    fn grant_own(&mut self, at: usize, woken: &mut Woken<W>) {
        while !self.closed && !self.slots[at].queue.is_empty() && self.fits(at) {
            self.grant_oldest(at, woken);
            self.line_up(at);
        }
    }

    /// Gives a host a turn if it waits for the total, or takes it away if it does not.
    fn line_up(&mut self, at: usize) {
        let host = &self.slots[at];
        let waits = !host.queue.is_empty() && host.held < self.limits.per_host;
        match host.turn {
            None if waits => {
                let turn = self.number();
                self.slots[at].turn = Some(turn);
                self.turns.insert(turn, at);
            }
            Some(turn) if !waits => {
                self.slots[at].turn = None;
                self.turns.remove(&turn);
            }
            _ => {}
        }
    }

    fn add(&mut self, key: K) -> usize {
        let host = Host {
            key: Some(key.clone()),
            held: 0,
            open: 0,
            queue: VecDeque::new(),
            turn: None,
            listed: false,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at] = host;
                at
            }
            None => {
                self.slots.push(host);
                self.slots.len() - 1
            }
        };
        self.hosts.insert(key, at);
        at
    }

    /// Remembers a host that has come out of use, and forgets the oldest of too many.
    fn tidy(&mut self, at: usize) {
        let host = &mut self.slots[at];
        if host.listed || !host.is_unused() {
            return;
        }
        host.listed = true;
        self.unused.push_back(at);
        if self.unused.len() <= SPARES {
            return;
        }
        if let Some(oldest) = self.unused.pop_front() {
            let host = &mut self.slots[oldest];
            host.listed = false;
            if host.is_unused()
                && let Some(key) = host.key.take()
            {
                self.hosts.remove(&key);
                self.free.push(oldest);
            }
        }
    }
}

impl Ticket {
    /// Where it waits, and where its place is once it is granted.
    pub(super) fn host(&self) -> usize {
        self.host
    }
}

impl<K, W> Host<K, W> {
    fn is_unused(&self) -> bool {
        self.held == 0 && self.queue.is_empty()
    }
}

fn find<W>(queue: &VecDeque<Waiter<W>>, number: u64) -> Option<usize> {
    queue
        .binary_search_by_key(&number, |waiter| waiter.number)
        .ok()
}

// ===== impl Woken =====

impl<W> Woken<W> {
    fn none() -> Self {
        Self(None, Vec::new())
    }

    fn push(&mut self, wake: W) {
        match &mut self.0 {
            None => self.0 = Some(wake),
            Some(_) => self.1.push(wake),
        }
    }

    /// In the order they were granted.
    fn into_iter(self) -> impl Iterator<Item = W> {
        self.0.into_iter().chain(self.1)
    }
}

impl Woken<Waker> {
    pub(super) fn wake(self) {
        self.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests;
