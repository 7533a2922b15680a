//! The shards, in places of their own.

use hashbrown::HashTable;

use super::board::{Cargo, Claim};
use super::items::KEPT;
use super::list::{Linked, Links};
use super::shard::{Shard, State};

/// Shards, in places of their own.
pub(super) struct Shards<C: Cargo> {
    pub(super) places: Vec<Option<Shard<C>>>,
    pub(super) free: Vec<u32>,
}

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

    pub(super) fn find(&self, keys: &HashTable<u32>, hash: u64, wanted: &C::Key) -> Option<u32> {
        let found = keys.find(hash, |place| self.peek(*place).key == *wanted);
        found.copied()
    }

    pub(super) fn insert(&mut self, shard: Shard<C>) -> u32 {
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
