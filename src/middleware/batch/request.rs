use std::fmt;
use std::hash::Hash;
use std::ops::Index;
use std::slice;
use std::vec;

use super::results::Keys;
use crate::base::deadline::Deadline;

/// Many requests, which the inner service answers together.
///
/// Positions are what answers go by: the first item is 0.
#[derive(Clone)]
pub struct Batch<Req> {
    items: Vec<Req>,
    facts: Facts,
}

/// What is known of a batch beside its items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) weight: usize,
    pub(super) flush: Flush,
    pub(super) deadline: Option<Deadline>,
}

/// Why a batch was sent when it was.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flush {
    /// It has as many items, or as much weight, as a batch may have.
    Full,
    /// Nothing else was to be waited for.
    Idle,
    /// Its oldest item has waited as long as it may.
    Delay,
    /// The deadline of one of its items comes close.
    Deadline,
    /// As many items wait as the layer lets wait.
    Memory,
    /// The handle was asked for it.
    Asked,
    /// The layer is shutting down.
    Drain,
}

// ===== impl Batch =====

impl<Req> Batch<Req> {
    /// A batch of `items`, for tests and for those who call a service of batches themselves.
    pub fn new(items: impl IntoIterator<Item = Req>) -> Self {
        let items: Vec<_> = items.into_iter().collect();
        let facts = Facts {
            weight: items.len(),
            flush: Flush::Asked,
            deadline: None,
        };
        Self { items, facts }
    }

    pub(super) fn of(items: Vec<Req>, facts: Facts) -> Self {
        Self { items, facts }
    }

    /// How many items it has.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it has none; a layer sends no such batch.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The items, in the order they were accepted.
    pub fn iter(&self) -> slice::Iter<'_, Req> {
        self.items.iter()
    }

    /// The items.
    pub fn into_vec(self) -> Vec<Req> {
        self.items
    }

    /// The weight of all items together; how many there are, if the layer does not weigh them.
    pub fn weight(&self) -> usize {
        self.facts.weight
    }

    /// Why it was sent.
    pub fn flush(&self) -> Flush {
        self.facts.flush
    }

    /// When the last of its items stops waiting for its answer; `None` if one of them never does.
    pub fn deadline(&self) -> Option<Deadline> {
        self.facts.deadline
    }

    /// What each item asks for, to put answers that come by key in order: see [`Keys`].
    pub fn keys<Q: Hash + Eq>(&self, key: impl FnMut(&Req) -> Q) -> Keys<Q> {
        Keys::new(self.items.iter().map(key))
    }
}

impl<Req> Index<usize> for Batch<Req> {
    type Output = Req;

    fn index(&self, position: usize) -> &Req {
        &self.items[position]
    }
}

impl<Req> IntoIterator for Batch<Req> {
    type Item = Req;
    type IntoIter = vec::IntoIter<Req>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<'a, Req> IntoIterator for &'a Batch<Req> {
    type Item = &'a Req;
    type IntoIter = slice::Iter<'a, Req>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl<Req> FromIterator<Req> for Batch<Req> {
    fn from_iter<I: IntoIterator<Item = Req>>(items: I) -> Self {
        Self::new(items)
    }
}

/// Batches are equal when their items are.
impl<Req: PartialEq> PartialEq for Batch<Req> {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

impl<Req: Eq> Eq for Batch<Req> {}

impl<Req: fmt::Debug> fmt::Debug for Batch<Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("items", &self.items)
            .field("flush", &self.facts.flush)
            .finish_non_exhaustive()
    }
}

// ===== impl Flush =====

impl Flush {
    pub(super) const ALL: [Self; 7] = [
        Self::Full,
        Self::Idle,
        Self::Delay,
        Self::Deadline,
        Self::Memory,
        Self::Asked,
        Self::Drain,
    ];

    /// The label value: short, stable, lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Idle => "idle",
            Self::Delay => "delay",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Asked => "asked",
            Self::Drain => "drain",
        }
    }
}

impl fmt::Display for Flush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
