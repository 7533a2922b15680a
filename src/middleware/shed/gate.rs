//! The one counter: in flight against limit, and whether anybody waits, in one word.
//!
//! # Invariants
//!
//! - `in flight` counts the slots that are held: one for each admission that was not released, and one for each ticket
//!   that was granted and neither taken nor given up.
//! - It grows only in a compare-and-swap that saw it below the limit in the same word: [`Gate::try_admit`] when nobody
//!   waits, [`Gate::settle`] for those who do. A limit that falls below it takes nothing away; it drains.
//! - `waiting` is set exactly while the queue is not empty, as seen by whoever holds the queue's lock. While it is set
//!   nobody overtakes.
//! - No wake-up is lost: whoever begins to wait sets `waiting` and sees in the same operation whether a slot is free;
//!   whoever frees one sees in the same operation whether anybody waits. All operations on the word have one order, so
//!   at least one of the two settles the queue. Nothing else is published through the word, so `Relaxed` suffices; the
//!   queue is under its lock.
//! - Wakers are cloned, woken and dropped outside the lock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Poll, Waker};

#[cfg(tower_flow_loom)]
use loom::sync::{
    Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};
#[cfg(not(tower_flow_loom))]
use std::sync::{
    Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use super::queue::{Entry, Lanes, Left, Queue, Refused, Tally, Ticket};
use crate::base::clock::Instant;

/// The greatest limit there is.
pub(super) const MOST: usize = (u32::MAX >> 1) as usize;

const WAITING: u64 = 1 << 63;
const ONE: u64 = 1;

/// Admits up to a limit, lets the rest wait.
#[derive(Debug)]
pub(super) struct Gate {
    word: Line,
    shares: Box<[Share]>,
    queue: Mutex<Lanes>,
}

/// A line of its own: whoever admits writes it.
#[derive(Debug)]
#[repr(align(128))]
struct Line(AtomicU64);

/// What is guaranteed to a partition, and what it uses.
#[derive(Debug)]
struct Share {
    part: f64,
    in_flight: AtomicU32,
}

#[derive(Debug, Clone, Copy)]
struct Word(u64);

/// What a gate looks like at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Occupancy {
    pub(super) in_flight: usize,
    pub(super) limit: usize,
}

/// Told of everybody who stops waiting, outside the lock; and knows how many there were in all.
pub(super) trait Listener {
    fn left(&self, left: &Left);

    fn tally(&self) -> Tally;
}

// ===== impl Word =====

impl Word {
    fn in_flight(self) -> u32 {
        self.0 as u32
    }

    fn limit(self) -> u32 {
        ((self.0 & !WAITING) >> 32) as u32
    }

    fn waiting(self) -> bool {
        self.0 & WAITING != 0
    }

    fn full(self) -> bool {
        self.in_flight() >= self.limit()
    }

    fn occupancy(self) -> Occupancy {
        Occupancy {
            in_flight: self.in_flight() as usize,
            limit: self.limit() as usize,
        }
    }
}

// ===== impl Gate =====

impl Gate {
    /// A gate that is open for `limit`, with a share for each of `parts`; none means one partition without a share.
    pub(super) fn new(limit: usize, queue: &Queue, parts: &[f64]) -> Self {
        let shares: Box<_> = parts
            .iter()
            .map(|part| Share {
                part: *part,
                in_flight: AtomicU32::new(0),
            })
            .collect();
        Self {
            word: Line(AtomicU64::new(packed(limit))),
            queue: Mutex::new(Lanes::new(queue, limit, shares.len())),
            shares,
        }
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        Word(self.word.0.load(Relaxed)).occupancy()
    }

    /// Takes a slot if one is free and nobody waits for it. Returns how many are held then.
    #[inline]
    pub(super) fn try_admit(&self, partition: u16) -> Result<u32, Occupancy> {
        let mut word = self.word.0.load(Relaxed);
        loop {
            let seen = Word(word);
            if seen.full() || seen.waiting() {
                return Err(seen.occupancy());
            }
            let raised = word + ONE;
            match self
                .word
                .0
                .compare_exchange_weak(word, raised, Relaxed, Relaxed)
            {
                Ok(_) => {
                    self.count(partition);
                    return Ok(Word(raised).in_flight());
                }
                Err(now) => word = now,
            }
        }
    }

    /// Gives a slot back. Returns whether somebody waits, for whom the queue is then to be [`settle`](Self::settle)d.
    #[inline]
    #[must_use]
    pub(super) fn release(&self, partition: u16) -> bool {
        if let Some(share) = self.shares.get(usize::from(partition)) {
            share.in_flight.fetch_sub(1, Relaxed);
        }
        let before = self.word.0.fetch_sub(ONE, Relaxed);
        debug_assert!(Word(before).in_flight() > 0, "released and not held");
        Word(before).waiting()
    }

    /// Waits for a slot. A ticket that is not polled to its end is to be [`given up`](Self::give_up).
    pub(super) fn enqueue(
        &self,
        now: Instant,
        entry: Entry,
        listener: &impl Listener,
    ) -> Result<Ticket, Refused> {
        let mut queue = self.lock();
        let pushed = queue.push(now, entry, |partition| self.under(partition));
        let (ticket, left) = pushed?;
        let before = Word(self.word.0.fetch_or(WAITING, Relaxed));
        drop(queue);
        if let Some(left) = left {
            wake(left, listener);
        }
        // A slot came free since this one looked, and its releaser saw nobody.
        if !before.full() {
            self.settle(now, listener);
        }
        Ok(ticket)
    }

    /// What became of a ticket; ready once.
    pub(super) fn poll(&self, ticket: &Ticket, waker: &Waker) -> Poll<Result<(), Refused>> {
        // Cloned before and dropped after: either may run anything.
        let mut waker = Some(waker.clone());
        let mut queue = self.lock();
        let polled = queue.poll(ticket, &mut waker);
        drop(queue);
        polled
    }

    /// Gives a ticket up: its place, or the slot it was granted. Returns whether it had been refused.
    pub(super) fn give_up(
        &self,
        ticket: &Ticket,
        partition: u16,
        now: impl FnOnce() -> Instant,
        listener: &impl Listener,
    ) -> bool {
        let mut queue = self.lock();
        let (held, refused, waker) = queue.give_up(ticket);
        if queue.waiting() == 0 {
            self.word.0.fetch_and(!WAITING, Relaxed);
        }
        drop(queue);
        drop(waker);
        if held && self.release(partition) {
            self.settle(now(), listener);
        }
        refused
    }

    /// Changes the limit, which holds at once. Returns whether somebody waits, for whom the queue is then to be
    /// [`settle`](Self::settle)d.
    #[must_use]
    pub(super) fn store_limit(&self, limit: usize) -> bool {
        let limit = packed(limit);
        let kept = WAITING | u64::from(u32::MAX);
        let mut word = self.word.0.load(Relaxed);
        while let Err(seen) =
            self.word
                .0
                .compare_exchange_weak(word, (word & kept) | limit, Relaxed, Relaxed)
        {
            word = seen;
        }
        Word(word).waiting()
    }

    /// Changes the limit; a greater one wakes as many as it frees slots for.
    #[cfg(test)]
    pub(super) fn set_limit(&self, limit: usize, now: Instant, listener: &impl Listener) {
        if self.store_limit(limit) {
            self.settle(now, listener);
        }
    }

    /// Grants free slots to those who wait, and sheds those who waited too long.
    #[cold]
    pub(super) fn settle(&self, now: Instant, listener: &impl Listener) {
        loop {
            let mut queue = self.lock();
            if queue.waiting() == 0 {
                // It is empty for whoever holds the lock; who comes to wait sets the mark again.
                self.word.0.fetch_and(!WAITING, Relaxed);
                return;
            }
            let left = match queue.shed(now, || listener.tally()) {
                Some(left) => left,
                None => {
                    if !self.take_slot() {
                        return;
                    }
                    let under = |partition| self.under(partition);
                    let left = queue.grant(now, under, || listener.tally());
                    let left = left.expect("somebody waits");
                    match left.refused {
                        Some(_) => _ = self.word.0.fetch_sub(ONE, Relaxed),
                        None => self.count(left.partition),
                    }
                    left
                }
            };
            if queue.waiting() == 0 {
                self.word.0.fetch_and(!WAITING, Relaxed);
            }
            drop(queue);
            wake(left, listener);
        }
    }

    /// Refuses everybody whose time is up. Returns whether anybody still waits.
    pub(super) fn expire(&self, now: Instant, listener: &impl Listener) -> bool {
        let (expired, waits) = {
            let mut queue = self.lock();
            let expired = queue.expire(now);
            let waits = queue.waiting() > 0;
            if !waits {
                self.word.0.fetch_and(!WAITING, Relaxed);
            }
            (expired, waits)
        };
        for left in expired {
            wake(left, listener);
        }
        waits
    }

    /// Reads or changes the queue.
    pub(super) fn with_queue<T>(&self, with: impl FnOnce(&mut Lanes) -> T) -> T {
        with(&mut self.lock())
    }

    /// How many slots a partition holds.
    pub(super) fn partition(&self, partition: u16) -> usize {
        self.shares
            .get(usize::from(partition))
            .map_or(0, |share| share.in_flight.load(Relaxed) as usize)
    }

    /// Whether a partition uses less than it is guaranteed. Without partitions nobody is guaranteed anything.
    pub(super) fn under(&self, partition: u16) -> bool {
        self.shares
            .get(usize::from(partition))
            .is_some_and(|share| {
                let limit = Word(self.word.0.load(Relaxed)).limit();
                f64::from(share.in_flight.load(Relaxed)) < share.part * f64::from(limit)
            })
    }

    #[inline]
    fn count(&self, partition: u16) {
        if let Some(share) = self.shares.get(usize::from(partition)) {
            share.in_flight.fetch_add(1, Relaxed);
        }
    }

    /// Takes a slot for somebody who waits.
    fn take_slot(&self) -> bool {
        let mut word = self.word.0.load(Relaxed);
        while !Word(word).full() {
            match self
                .word
                .0
                .compare_exchange_weak(word, word + ONE, Relaxed, Relaxed)
            {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    #[cfg(not(tower_flow_loom))]
    fn lock(&self) -> std::sync::MutexGuard<'_, Lanes> {
        // Nothing foreign runs under it.
        self.queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[cfg(tower_flow_loom)]
    fn lock(&self) -> loom::sync::MutexGuard<'_, Lanes> {
        self.queue.lock().expect("no model panics under it")
    }
}

fn packed(limit: usize) -> u64 {
    (limit.min(MOST) as u64) << 32
}

fn wake(left: Left, listener: &impl Listener) {
    listener.left(&left);
    if let Some(waker) = left.waker {
        // A waker that panics is its executor's trouble; those behind it are to be woken all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
    }
}

/// Nobody needs to know.
#[cfg(test)]
impl Listener for () {
    fn left(&self, _: &Left) {}

    fn tally(&self) -> Tally {
        Tally::default()
    }
}

#[cfg(all(test, tower_flow_loom))]
mod models;
#[cfg(all(test, not(tower_flow_loom)))]
mod tests;
