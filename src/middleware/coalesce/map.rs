//! All keys, in shards, each behind a lock of its own that is held for a look-up and a few stores.
//!
//! Wakers are woken when a lock has been given back. What falls out of a shard goes to the [`Debris`] of the caller, who
//! drops it once nobody can be hurt by a destructor that panics. No debris is a local of a method that returns something: a
//! local whose destructor panics at the end leaks what is returned, and that may be a flight's only driver.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::panic::resume_unwind;
use std::task::Waker;

#[cfg(tower_flow_loom)]
use loom::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(tower_flow_loom))]
use std::sync::{Mutex, MutexGuard};

use super::flight::{Asked, Cargo, Landed, Others, Wakers};
use super::shard::{Books, Debris, Joined, Landing, Left, Rules, Shard, Ticket};
use crate::base::clock::Instant;
use crate::base::priority::Priority;

pub(super) struct Map<C: Cargo> {
    shards: Box<[Line<C>]>,
    hasher: RandomState,
}

/// Two cache lines, since neighbouring lines are fetched in pairs.
#[repr(align(128))]
struct Line<C: Cargo>(Mutex<Shard<C>>);

/// The hash of a key, and with it its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hashed(u64);

/// A waiter's or driver's claim on a flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) shard: u32,
    pub(super) ticket: Ticket,
}

/// What the shards hold now.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    pub(super) flights: usize,
    pub(super) waiters: usize,
    pub(super) kept: usize,
    pub(super) remembered: usize,
    pub(super) books: Books,
    pub(super) hot: HashMap<u64, u64>,
}

/// Fewer keys than this are not worth another shard: the share of each is a bound of its own.
const KEYS_PER_SHARD: usize = 512;

// ===== impl Tally =====

impl Tally {
    /// The keys followed most, at most `most` of them, hottest first.
    pub(super) fn hottest(&self, most: usize) -> Vec<(u64, u64)> {
        let mut hottest: Vec<_> = self
            .hot
            .iter()
            .map(|(hash, count)| (*hash, *count))
            .collect();
        hottest.sort_unstable_by_key(|(hash, count)| (Reverse(*count), *hash));
        hottest.truncate(most);
        hottest
    }
}

// ===== impl Map =====

impl<C: Cargo> Map<C> {
    /// `rules` are for all keys together; `threads` is how many may ask at once.
    pub(super) fn new(rules: Rules, threads: usize) -> Self {
        let most = (rules.max_keys / KEYS_PER_SHARD).max(1);
        let most = 1 << most.ilog2();
        let count = (32 * threads).next_power_of_two().min(most);
        let (ttl, cap) = rules.remember;
        let share = Rules {
            max_keys: rules.max_keys.div_ceil(count),
            remember: (ttl, cap.div_ceil(count)),
            ..rules
        };
        let line = |_| Line(Mutex::new(Shard::new(share.clone())));
        Self {
            shards: (0..count).map(line).collect(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn hash(&self, key: &C::Key) -> Hashed
    where
        C::Key: Hash,
    {
        Hashed(self.hasher.hash_one(key))
    }

    /// The upper bits choose the shard; the table inside uses the lowest and the topmost seven.
    fn index(&self, hash: Hashed) -> usize {
        (hash.0 >> 32) as usize & (self.shards.len() - 1)
    }

    pub(super) fn join(
        &self,
        hash: Hashed,
        key: &mut Option<C::Key>,
        priority: Priority,
        now: impl Fn() -> Instant,
        waker: Option<&Waker>,
    ) -> (u32, Joined<C>) {
        let index = self.index(hash);
        let mut shard = self.lock(index);
        if shard.kept() > 0 {
            let mut swept = None;
            shard.sweep(now(), &mut swept);
            // Before the caller has a place: their destructors may panic.
            drop(shard);
            drop(swept);
            shard = self.lock(index);
        }
        let joined = shard.join(hash.0, key, priority, now, waker);
        (index as u32, joined)
    }

    pub(super) fn ask(&self, claim: Claim, waker: &Waker, debris: &mut Debris<C>) -> Asked<C> {
        self.shard(claim).ask(claim.ticket, waker, debris)
    }

    pub(super) fn verdict(&self, claim: Claim, debris: &mut Debris<C>) -> Landed<C> {
        self.shard(claim).verdict(claim.ticket, debris)
    }

    /// Work that nobody wants any more is among the debris.
    pub(super) fn park(
        &self,
        claim: Claim,
        work: C::Work,
        sent: Option<Priority>,
        waker: &Waker,
        now: impl Fn() -> Instant,
        debris: &mut Debris<C>,
    ) {
        let wake = self
            .shard(claim)
            .park(claim.ticket, work, sent, waker, now, debris);
        if wake {
            self.wake(claim);
        }
    }

    pub(super) fn detach(&self, claim: Claim, waker: &Waker, now: Instant) {
        self.shard(claim).detach(claim.ticket, waker, now);
    }

    pub(super) fn sent(&self, claim: Claim, priority: Priority) {
        self.shard(claim).sent(claim.ticket, priority);
    }

    /// The greatest priority among those who joined.
    pub(super) fn asked(&self, claim: Claim) -> Priority {
        self.shard(claim).asked(claim.ticket)
    }

    pub(super) fn finish(&self, claim: Claim, work: C::Work, debris: &mut Debris<C>) -> Landing {
        self.shard(claim).finish(claim.ticket, work, debris)
    }

    pub(super) fn publish(
        &self,
        claim: Claim,
        own: Option<C::Own>,
        others: Others<C>,
        keep: Option<Instant>,
        at: Option<Instant>,
        debris: &mut Debris<C>,
    ) {
        self.shard(claim)
            .publish(claim.ticket, own, others, keep, at, debris);
        self.wake(claim);
    }

    /// The waiter leaves. Work that nobody wants any more is among the debris, and its key is free.
    pub(super) fn leave(&self, claim: Claim, debris: &mut Debris<C>) -> Left {
        let left = self.shard(claim).leave(claim.ticket, debris);
        if left == Left::Orphans {
            self.wake(claim);
        }
        left
    }

    /// Somebody wakes the work of a flight.
    pub(super) fn ring(&self, claim: Claim) {
        let Ticket { slot, id, .. } = claim.ticket;
        let wake = self.shard(claim).ring(slot, id);
        if wake {
            self.wake(claim);
        }
    }

    pub(super) fn remember(&self, hash: Hashed, now: Instant) {
        self.lock(self.index(hash)).remember(hash.0, now);
    }

    pub(super) fn unlearn(&self, hash: Hashed) {
        self.lock(self.index(hash)).unlearn(hash.0);
    }

    pub(super) fn recycle(&self, shard: u32, work: C::Work) {
        let left_over = self.lock(shard as usize).recycle(work);
        drop(left_over);
    }

    /// What is there now; what fell due is dropped.
    pub(super) fn tally(&self, now: Instant) -> Tally {
        let mut tally = Tally::default();
        for index in 0..self.shards.len() {
            let mut swept = None;
            let mut shard = self.lock(index);
            shard.tidy(now, &mut swept);
            tally.flights += shard.live();
            tally.waiters += shard.waiters();
            tally.kept += shard.kept();
            tally.remembered += shard.remembered();
            tally.books.add(shard.books());
            for (hash, followers) in shard.hot() {
                *tally.hot.entry(hash).or_default() += followers;
            }
        }
        tally
    }

    /// Where a shard lives: its name among all shards of the process.
    pub(super) fn address(&self, shard: u32) -> usize {
        std::ptr::from_ref(&self.shards[shard as usize]).addr()
    }

    fn wake(&self, claim: Claim) {
        let Ticket { slot, id, .. } = claim.ticket;
        let mut wakers = Wakers::new();
        let mut from = Some(0);
        let mut result = Ok(());
        while let Some(seat) = from {
            from = self.shard(claim).wakers(slot, id, seat, &mut wakers);
            result = result.and(wakers.wake());
        }
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    fn shard(&self, claim: Claim) -> MutexGuard<'_, Shard<C>> {
        self.lock(claim.shard as usize)
    }

    fn lock(&self, index: usize) -> MutexGuard<'_, Shard<C>> {
        // Only an `Eq` or a waker's clone that panics poisons it: the one before anything was changed, the other leaves a
        // seat nobody sits in.
        self.shards[index]
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Cargo> fmt::Debug for Map<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, tower_flow_loom))]
mod models;

#[cfg(test)]
#[cfg(not(tower_flow_loom))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    struct Toy;

    impl Cargo for Toy {
        type Key = u32;
        type Work = ();
        type Shared = ();
        type Own = ();
    }

    fn map(max_keys: usize, threads: usize) -> Map<Toy> {
        let rules = Rules {
            max_keys,
            max_waiters: 1,
            leader_age: Duration::MAX,
            grace: Duration::ZERO,
            orphan: None,
            remember: (Duration::ZERO, 0),
        };
        Map::new(rules, threads)
    }

    /// How many keys of `among` are taken, and in how many shards they are.
    fn fill(map: &Map<Toy>, among: u32) -> (usize, usize) {
        let mut shards = BTreeSet::new();
        let mut taken = 0;
        for key in 0..among {
            let (hash, now) = (map.hash(&key), crate::base::clock::now);
            let joined = map.join(hash, &mut Some(key), Priority::Default, now, None);
            if let (shard, Joined::Lead(..)) = joined {
                shards.insert(shard);
                taken += 1;
            }
        }
        (taken, shards.len())
    }

    #[test]
    fn few_keys_are_in_one_shard_and_their_bound_is_exact() {
        for max in [1, 7, 1_023] {
            assert_eq!(fill(&map(max, 64), 2_000), (max, 1));
        }
    }

    #[test]
    fn many_keys_are_spread_over_shards_and_bounded_all_together() {
        let map = map(4_096, 64);
        assert_eq!(map.shards.len(), 8);
        assert_eq!(fill(&map, 100_000), (4_096, 8));
        assert_eq!(self::map(1 << 24, 3).shards.len(), 128);
    }
}
