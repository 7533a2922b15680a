//! Samples added up as they come: how often each stack was seen, in bounded memory.

use rustc_hash::FxHashMap;

use super::tags::Tag;

/// How many different stacks are told apart.
const STACKS: usize = 8_192;
/// How many addresses all of them have together: 4 MiB.
const FRAMES: usize = 1 << 19;

/// What a stack belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) tag: Tag,
    /// The number of the thread's name.
    pub(super) thread: u16,
}

/// The counts.
#[derive(Debug)]
pub(super) struct Stacks {
    /// By owner and addresses, packed into one key, so that a stack that was seen before is found without allocating.
    counts: FxHashMap<Box<[u64]>, u64>,
    room: Room,
    dropped: u64,
    key: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Room {
    stacks: usize,
    frames: usize,
}

// ===== impl Stacks =====

impl Default for Stacks {
    fn default() -> Self {
        Self::new(STACKS, FRAMES)
    }
}

impl Stacks {
    fn new(stacks: usize, frames: usize) -> Self {
        Self {
            counts: FxHashMap::default(),
            room: Room { stacks, frames },
            dropped: 0,
            key: Vec::new(),
        }
    }

    /// Counts a sample: its addresses from the innermost outwards.
    ///
    /// A new stack for which there is no room is counted as an empty one of its owner, so that shares of owners stay
    /// right, and as dropped.
    pub(super) fn add(&mut self, owner: Owner, addresses: impl Iterator<Item = u64>) {
        self.key.clear();
        self.key.push(owner.pack());
        self.key.extend(addresses);
        if self.count() {
            return;
        }
        self.dropped += 1;
        self.key.truncate(1);
        // The owners are few: tags times names. With as much room again they cannot use up the memory either.
        if !self.count() && self.counts.len() < 2 * STACKS {
            self.counts.insert(self.key.as_slice().into(), 1);
        }
    }

    /// Counts the key if it is there, or if there is room for it.
    fn count(&mut self) -> bool {
        if let Some(count) = self.counts.get_mut(self.key.as_slice()) {
            *count += 1;
            return true;
        }
        let fits = self.room.stacks > 0 && self.room.frames >= self.key.len();
        if fits {
            self.room.stacks -= 1;
            self.room.frames -= self.key.len();
            self.counts.insert(self.key.as_slice().into(), 1);
        }
        fits
    }

    /// How many samples came when there was no room for their stack.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Every stack with its count.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Owner, &[u64], u64)> {
        self.counts.iter().filter_map(|(key, count)| {
            let (owner, addresses) = key.split_first()?;
            Some((Owner::unpack(*owner), addresses, *count))
        })
    }
}

// ===== impl Owner =====

impl Owner {
    fn pack(self) -> u64 {
        u64::from(self.thread) << 16 | u64::from(self.tag.id())
    }

    fn unpack(word: u64) -> Self {
        Self {
            tag: Tag::from_id(word as u16),
            thread: (word >> 16) as u16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(tag: u16) -> Owner {
        let tag = Tag::from_id(tag);
        Owner { tag, thread: 7 }
    }

    #[test]
    fn equal_stacks_of_one_owner_are_one() {
        let mut stacks = Stacks::default();
        for (tag, stack) in [(1, [1, 2]), (1, [1, 2]), (2, [1, 2]), (1, [2, 1])] {
            stacks.add(owner(tag), stack.into_iter());
        }
        let mut seen: Vec<_> = stacks
            .iter()
            .map(|(owner, stack, count)| (owner.tag.id(), owner.thread, stack.to_vec(), count))
            .collect();
        seen.sort();
        assert_eq!(
            seen,
            [
                (1, 7, vec![1, 2], 2),
                (1, 7, vec![2, 1], 1),
                (2, 7, vec![1, 2], 1)
            ]
        );
        assert_eq!(stacks.dropped(), 0);
    }

    #[test]
    fn what_has_no_room_still_counts_for_its_owner() {
        for (room, frames) in [(2, 1_000), (1_000, 6)] {
            let mut stacks = Stacks::new(room, frames);
            for n in 0..10 {
                stacks.add(owner(1), [n, n].into_iter());
                stacks.add(owner(2), [0, 0].into_iter());
            }
            // Three words a stack, so two of them fit.
            assert_eq!(stacks.dropped(), 9);
            let total: u64 = stacks.iter().map(|(_, _, count)| count).sum();
            assert_eq!(total, 20);
            let empty: Vec<_> = stacks
                .iter()
                .filter(|(_, stack, _)| stack.is_empty())
                .collect();
            assert_eq!(empty, [(owner(1), &[][..], 9)]);
        }
    }
}
