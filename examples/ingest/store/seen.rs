use std::collections::{HashSet, VecDeque};
use std::hash::Hash;

/// The last that were seen.
#[derive(Debug)]
pub(super) struct Seen<K> {
    known: HashSet<K>,
    /// Oldest first.
    order: VecDeque<K>,
    most: usize,
}

impl<K: Hash + Eq + Clone> Seen<K> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            known: HashSet::new(),
            order: VecDeque::new(),
            most,
        }
    }

    pub(super) fn contains<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        self.known.contains(key)
    }

    /// Remembers `key`, and forgets the oldest for it.
    pub(super) fn insert(&mut self, key: K) {
        if !self.known.insert(key.clone()) {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// All of them, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &K> {
        self.order.iter()
    }
}
