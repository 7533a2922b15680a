//! Entries with stable names, and lists threaded through them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// The name of an entry of a `Slab<T>`. A name outlives its entry and then finds nothing: the place is used again under
/// another generation.
pub(in crate::middleware::pool) struct Id<T> {
    index: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

/// Entries of one kind, each under the [`Id`] it got when it came.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    entry: Option<T>,
}

/// The neighbours of an entry in one list. An entry has one of these for each list it can be in.
#[derive(Debug)]
pub(super) struct Link<T> {
    before: Option<Id<T>>,
    after: Option<Id<T>>,
    linked: bool,
}

/// A list through the entries of a slab: first in, first out, with removal from anywhere. `L` says which of an entry's
/// links it uses.
#[derive(Debug)]
pub(super) struct List<T, L> {
    first: Option<Id<T>>,
    last: Option<Id<T>>,
    len: usize,
    by: PhantomData<fn() -> L>,
}

/// Which link of a `T` a list uses.
pub(super) trait Through<T> {
    fn link(entry: &mut T) -> &mut Link<T>;
}

// ===== impl Id =====

impl<T> Id<T> {
    /// The place, for tables beside the slab.
    pub(in crate::middleware::pool) fn index(self) -> usize {
        self.index as usize
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Id<T> {}

impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.generation) == (other.index, other.generation)
    }
}

impl<T> Eq for Id<T> {}

impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.index, self.generation).cmp(&(other.index, other.generation))
    }
}

impl<T> Hash for Id<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.index, self.generation).hash(state);
    }
}

impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

// ===== impl Slab =====

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn insert(&mut self, entry: T) -> Id<T> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                entry: None,
            });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.entry = Some(entry);
        Id {
            index,
            generation: place.generation,
            of: PhantomData,
        }
    }

    pub(super) fn remove(&mut self, id: Id<T>) -> Option<T> {
        let place = self
            .places
            .get_mut(id.index())
            .filter(|place| place.generation == id.generation)?;
        let entry = place.entry.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(entry)
    }

    #[inline]
    pub(super) fn get(&self, id: Id<T>) -> Option<&T> {
        let place = self.places.get(id.index())?;
        place
            .entry
            .as_ref()
            .filter(|_| place.generation == id.generation)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        let place = self.places.get_mut(id.index())?;
        place
            .entry
            .as_mut()
            .filter(|_| place.generation == id.generation)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id<T>, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let id = Id {
                index: index as u32,
                generation: place.generation,
                of: PhantomData,
            };
            Some((id, place.entry.as_ref()?))
        })
    }

    /// The names there are now, for a walk that changes entries.
    pub(super) fn ids(&self) -> Vec<Id<T>> {
        self.iter().map(|(id, _)| id).collect()
    }
}

impl<T> Index<Id<T>> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, id: Id<T>) -> &T {
        self.get(id)
            .expect("who holds an id in the core's own books holds its entry")
    }
}

impl<T> IndexMut<Id<T>> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, id: Id<T>) -> &mut T {
        self.get_mut(id)
            .expect("who holds an id in the core's own books holds its entry")
    }
}

// ===== impl Link =====

impl<T> Default for Link<T> {
    fn default() -> Self {
        Self {
            before: None,
            after: None,
            linked: false,
        }
    }
}

// ===== impl List =====

impl<T, L: Through<T>> List<T, L> {
    pub(super) fn new() -> Self {
        Self {
            first: None,
            last: None,
            len: 0,
            by: PhantomData,
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn first(&self) -> Option<Id<T>> {
        self.first
    }

    #[inline]
    pub(super) fn last(&self) -> Option<Id<T>> {
        self.last
    }

    /// Puts `id` behind all others, unless it is in the list already.
    #[inline]
    pub(super) fn push_back(&mut self, slab: &mut Slab<T>, id: Id<T>) {
        let link = L::link(&mut slab[id]);
        if link.linked {
            return;
        }
        *link = Link {
            before: self.last,
            after: None,
            linked: true,
        };
        match self.last {
            Some(last) => L::link(&mut slab[last]).after = Some(id),
            None => self.first = Some(id),
        }
        self.last = Some(id);
        self.len += 1;
    }

    /// Puts `id` before all others, unless it is in the list already.
    pub(super) fn push_front(&mut self, slab: &mut Slab<T>, id: Id<T>) {
        let link = L::link(&mut slab[id]);
        if link.linked {
            return;
        }
        *link = Link {
            before: None,
            after: self.first,
            linked: true,
        };
        match self.first {
            Some(first) => L::link(&mut slab[first]).before = Some(id),
            None => self.last = Some(id),
        }
        self.first = Some(id);
        self.len += 1;
    }

    /// Takes `id` out, if it is in the list.
    #[inline]
    pub(super) fn remove(&mut self, slab: &mut Slab<T>, id: Id<T>) {
        let link = std::mem::take(L::link(&mut slab[id]));
        if !link.linked {
            return;
        }
        match link.before {
            Some(before) => L::link(&mut slab[before]).after = link.after,
            None => self.first = link.after,
        }
        match link.after {
            Some(after) => L::link(&mut slab[after]).before = link.before,
            None => self.last = link.before,
        }
        self.len -= 1;
    }

    /// The entry behind `id`, which is in the list.
    #[inline]
    pub(super) fn after(&self, slab: &mut Slab<T>, id: Id<T>) -> Option<Id<T>> {
        L::link(&mut slab[id]).after
    }

    /// The entries from first to last.
    pub(super) fn iter<'a>(&self, slab: &'a mut Slab<T>) -> impl Iterator<Item = Id<T>> + 'a {
        let mut next = self.first;
        std::iter::from_fn(move || {
            let id = next?;
            next = L::link(&mut slab[id]).after;
            Some(id)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default)]
    struct Entry(Link<Entry>);

    #[derive(Debug)]
    struct Only;

    impl Through<Entry> for Only {
        fn link(entry: &mut Entry) -> &mut Link<Entry> {
            &mut entry.0
        }
    }

    proptest! {
        #[test]
        fn it_is_a_list_whatever_comes_and_goes(steps in prop::collection::vec((0..5u8, any::<prop::sample::Index>()), 0..200)) {
            let mut slab = Slab::new();
            let mut list = List::<Entry, Only>::new();
            let mut model: VecDeque<Id<Entry>> = VecDeque::new();
            let mut gone = Vec::new();
            for (what, which) in steps {
                match what {
                    0 | 1 => {
                        let id = slab.insert(Entry::default());
                        list.push_back(&mut slab, id);
                        list.push_back(&mut slab, id);
                        model.push_back(id);
                    }
                    2 => {
                        let id = slab.insert(Entry::default());
                        list.push_front(&mut slab, id);
                        model.push_front(id);
                    }
                    _ if !model.is_empty() => {
                        let id = model.remove(which.index(model.len())).expect("within");
                        list.remove(&mut slab, id);
                        list.remove(&mut slab, id);
                        prop_assert!(slab.remove(id).is_some());
                        prop_assert!(slab.remove(id).is_none());
                        gone.push(id);
                    }
                    _ => {}
                }
                prop_assert_eq!(list.len(), model.len());
                prop_assert_eq!(slab.len(), model.len());
                prop_assert_eq!(list.first(), model.front().copied());
                prop_assert_eq!(list.last(), model.back().copied());
                prop_assert_eq!(list.iter(&mut slab).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert!(gone.iter().all(|id| slab.get(*id).is_none()));
            }
        }
    }
}
