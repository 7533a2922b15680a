//! All shards of a layer, and the slots and the room they share. No clock, no task, no lock.
//!
//! Its methods are where those are who call them: [`callers`](super::callers), [`collector`](super::collector), and
//! [`room`](super::room) for the gate and the handle.
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

use super::gate::Line;
use super::items::{Items, KEPT, Outcome, Ticket};
use super::list::List;
use super::request::Flush;
use super::shard::{Rules, Urge};
use super::shards::Shards;
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
    /// Requests they held.
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
