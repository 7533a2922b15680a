//! Who may come, and what makes all shards due: one part of the methods of the board.

use std::task::Waker;

use super::board::{Board, Cargo, Debris};
use super::gate::Seat;
use super::list::List;
use super::shard::Rules;
use crate::base::clock::Instant;

impl<C: Cargo> Board<C> {
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
        let behind = seat.is_none() && !self.line.is_empty();
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
    pub(super) fn press(&mut self, now: Instant, debris: &mut Debris<C>) {
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
