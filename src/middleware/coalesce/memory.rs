//! Keys whose answers turned out not to be for many, for a while. Plain data.
//!
//! Only hashes are kept: a key that shares its hash with one of them goes alone, which is slower and never wrong.
//! All are remembered for the same time, so they fall due in the order they came.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::base::clock::Instant;

#[derive(Debug)]
pub(super) struct Memory {
    until: HashTable<(u64, Instant)>,
    /// One entry each time a key is remembered; stale where `until` says later.
    order: VecDeque<(u64, Instant)>,
    cap: usize,
    ttl: Duration,
}

impl Memory {
    pub(super) fn new(ttl: Duration, cap: usize) -> Self {
        Self {
            until: HashTable::new(),
            order: VecDeque::new(),
            cap,
            ttl,
        }
    }

    /// Whether `hash` is remembered. The clock is asked only if there is something to compare with.
    pub(super) fn knows(&mut self, hash: u64, now: impl FnOnce() -> Instant) -> bool {
        if self.until.is_empty() || self.find(hash).is_none() {
            return false;
        }
        let now = now();
        self.forget(now);
        self.find(hash).is_some()
    }

    pub(super) fn remember(&mut self, hash: u64, now: Instant) {
        if self.cap == 0 {
            return;
        }
        self.forget(now);
        let Some(until) = now.checked_add(self.ttl) else {
            return;
        };
        match self
            .until
            .entry(hash, |known| known.0 == hash, |known| known.0)
        {
            Entry::Occupied(mut known) => {
                // Concurrent flights of a key end together: once is enough.
                if known.get().1 == until {
                    return;
                }
                known.get_mut().1 = until;
            }
            Entry::Vacant(place) => {
                place.insert((hash, until));
            }
        }
        self.order.push_back((hash, until));
        // A key that is remembered again and again leaves stale entries: they count too.
        while self.until.len() > self.cap || self.order.len() > 2 * self.cap {
            self.pop();
        }
    }

    /// The key's answers are for many after all.
    pub(super) fn unlearn(&mut self, hash: u64) {
        if let Ok(known) = self.until.find_entry(hash, |known| known.0 == hash) {
            // What is left in `order` is stale, and found to be.
            known.remove();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.until.len()
    }

    /// Drops what fell due.
    pub(super) fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(_, until)| *until <= now) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((hash, until)) = self.order.pop_front()
            && let Ok(known) = self.until.find_entry(hash, |known| *known == (hash, until))
        {
            known.remove();
        }
    }

    fn find(&self, hash: u64) -> Option<&(u64, Instant)> {
        self.until.find(hash, |known| known.0 == hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    #[test]
    fn a_key_is_known_until_it_falls_due() {
        let now = clock::now();
        let ttl = Duration::from_secs(1);
        let mut memory = Memory::new(ttl, 4);
        memory.remember(7, now);
        assert!(memory.knows(7, || now) && !memory.knows(8, || now));
        assert!(memory.knows(7, || now + ttl - Duration::from_nanos(1)));
        assert!(!memory.knows(7, || now + ttl));
        assert_eq!((memory.len(), memory.order.len()), (0, 0));
    }

    #[test]
    fn it_is_bounded_and_forgets_the_oldest() {
        let now = clock::now();
        let mut memory = Memory::new(Duration::from_secs(1), 4);
        for n in 0..1_000u64 {
            memory.remember(n, now + Duration::from_nanos(n));
            memory.remember(1_000_000, now + Duration::from_nanos(n));
            assert!(memory.len() <= 4 && memory.order.len() <= 8);
            assert!(memory.knows(n, || now), "the latest is known");
        }
        assert!(
            memory.knows(1_000_000, || now),
            "what comes again and again stays"
        );
    }

    #[test]
    fn what_is_unlearnt_is_gone_and_may_be_learnt_again() {
        let now = clock::now();
        let ttl = Duration::from_secs(1);
        let mut memory = Memory::new(ttl, 4);
        memory.remember(7, now);
        memory.unlearn(7);
        memory.unlearn(8);
        assert!(!memory.knows(7, || now));
        let later = now + ttl / 2;
        memory.remember(7, later);
        assert!(
            memory.knows(7, || now + ttl),
            "the first term is not its own"
        );
        assert!(!memory.knows(7, || later + ttl));
        assert_eq!((memory.len(), memory.order.len()), (0, 0));
    }

    #[test]
    fn nothing_is_remembered_without_room() {
        let now = clock::now();
        let mut memory = Memory::new(Duration::from_secs(1), 0);
        memory.remember(7, now);
        assert!(!memory.knows(7, || unreachable!("nobody asks the clock")));
    }
}
