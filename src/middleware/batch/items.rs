//! The items a layer has accepted and whose callers are still there, each in a place of its own.

use std::task::Waker;

use super::board::Cargo;
use super::list::{Linked, Links, List};
use crate::base::clock::Instant;

/// A caller's claim on its item. Nobody else's: the number is never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) place: u32,
    pub(super) id: u64,
}

pub(super) struct Item<C: Cargo> {
    pub(super) id: u64,
    pub(super) stage: Stage<C>,
    pub(super) waker: Option<Waker>,
    /// Of the shard's queue, or of the twins of another.
    links: Links,
    pub(super) shard: u32,
    pub(super) weight: usize,
    /// When it was accepted.
    pub(super) at: Instant,
    pub(super) deadline: Option<Instant>,
    /// What makes another the same, with its hash; of one that is queued.
    pub(super) same: Option<(u64, C::Same)>,
}

/// `Queued` or `Twin` until sent, cancelled or late; `Sent` until answered; `Done` until its caller has seen it.
pub(super) enum Stage<C: Cargo> {
    /// In the queue of its shard, with those who wait for the same. One who has left stays for them, with its request and its
    /// turn.
    Queued {
        item: C::Item,
        twins: List,
        left: bool,
    },
    /// Waits with another for the same.
    Twin {
        of: u32,
    },
    Sent,
    Done(Outcome<C::Answer>),
}

/// What became of an item.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome<A> {
    Answer(A),
    /// Its deadline passed before it was sent.
    Expired,
    /// The task that was to send it was dropped.
    Abandoned,
}

pub(super) struct Items<C: Cargo> {
    places: Vec<Place<C>>,
    free: Vec<u32>,
    next: u64,
}

/// Boxes nothing: an item is as large as its request, and there is one for each that waits.
enum Place<C: Cargo> {
    Free,
    Taken(Item<C>),
}

/// Places kept when all are free.
pub(super) const KEPT: usize = 1_024;

impl<C: Cargo> Items<C> {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            next: 1,
        }
    }

    #[cfg(all(test, not(tower_flow_loom)))]
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    #[cfg(all(test, not(tower_flow_loom)))]
    pub(super) fn room(&self) -> usize {
        self.places.capacity() + self.free.capacity()
    }

    /// The number the next item gets.
    pub(super) fn next_id(&self) -> u64 {
        self.next
    }

    pub(super) fn insert(&mut self, item: Item<C>) -> Ticket {
        let id = self.next;
        self.next += 1;
        let item = Place::Taken(Item { id, ..item });
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = item;
                place
            }
            None => {
                self.places.push(item);
                (self.places.len() - 1) as u32
            }
        };
        Ticket { place, id }
    }

    pub(super) fn remove(&mut self, place: u32) -> Item<C> {
        let taken = std::mem::replace(&mut self.places[place as usize], Place::Free);
        let Place::Taken(item) = taken else {
            unreachable!("only a place that is taken is given back");
        };
        self.free.push(place);
        if self.free.len() == self.places.len() && self.places.capacity() > KEPT {
            self.places = Vec::new();
            self.free = Vec::new();
        }
        item
    }

    /// The item of a ticket, unless its caller has left.
    pub(super) fn get(&mut self, ticket: Ticket) -> Option<&mut Item<C>> {
        match self.places.get_mut(ticket.place as usize) {
            Some(Place::Taken(item)) if item.id == ticket.id => Some(item),
            _ => None,
        }
    }

    pub(super) fn at(&mut self, place: u32) -> &mut Item<C> {
        match &mut self.places[place as usize] {
            Place::Taken(item) => item,
            Place::Free => unreachable!("a place in a list is taken"),
        }
    }

    pub(super) fn peek(&self, place: u32) -> &Item<C> {
        match &self.places[place as usize] {
            Place::Taken(item) => item,
            Place::Free => unreachable!("a place in a list is taken"),
        }
    }

    /// Those who wait with the queued item of that place.
    pub(super) fn twins(&self, place: u32) -> List {
        match &self.peek(place).stage {
            Stage::Queued { twins, .. } => *twins,
            _ => unreachable!("twins wait with an item that is queued"),
        }
    }

    pub(super) fn set_twins(&mut self, place: u32, list: List) {
        match &mut self.at(place).stage {
            Stage::Queued { twins, .. } => *twins = list,
            _ => unreachable!("twins wait with an item that is queued"),
        }
    }

    /// Whether somebody still waits for the queued item of that place.
    pub(super) fn is_wanted(&mut self, place: u32, now: Instant) -> bool {
        let item = self.peek(place);
        let Stage::Queued { twins, left, .. } = &item.stage else {
            unreachable!("it is queued");
        };
        let (mut wanted, mut next) = (!left && !item.is_late(now), twins.first());
        while let (false, Some(twin)) = (wanted, next) {
            wanted = !self.peek(twin).is_late(now);
            next = List::after(self, twin);
        }
        wanted
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Item<C>> {
        self.places.iter_mut().filter_map(|place| match place {
            Place::Taken(item) => Some(item),
            Place::Free => None,
        })
    }
}

impl<C: Cargo> Item<C> {
    /// An item that is in no list and has no number yet.
    pub(super) fn new(
        stage: Stage<C>,
        shard: u32,
        weight: usize,
        at: Instant,
        deadline: Option<Instant>,
        same: Option<(u64, C::Same)>,
    ) -> Self {
        Self {
            id: 0,
            stage,
            waker: None,
            links: Links::default(),
            shard,
            weight,
            at,
            deadline,
            same,
        }
    }

    /// Zero for one that is like no other.
    pub(super) fn same_hash(&self) -> u64 {
        self.same.as_ref().map_or(0, |(hash, _)| *hash)
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

impl<C: Cargo> Linked for Items<C> {
    fn links(&mut self, place: u32) -> &mut Links {
        &mut self.at(place).links
    }
}
