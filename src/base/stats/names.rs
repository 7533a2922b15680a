//! A bounded set of names, looked up without a lock.
//!
//! # Invariants
//!
//! - Names are only ever added, each once, under the `growing` lock; an entry never moves. A reader may therefore walk
//!   the slots while a name is added: it finds the name or does not, nothing else.
//! - At least half of the slots stay empty. Names get in only by being served, so whoever chooses the names that are
//!   looked up does not choose those they are compared with.

use std::hash::Hasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustc_hash::FxHasher;

/// A table from at most `max` names to values of `V`; names are never removed.
///
/// A look-up hashes the name, compares it about once, and takes no lock.
#[derive(Debug)]
pub struct Names<V> {
    slots: Box<[OnceLock<Box<Entry<V>>>]>,
    max: usize,
    growing: Mutex<()>,
    len: AtomicUsize,
}

#[derive(Debug)]
struct Entry<V> {
    name: Box<str>,
    value: V,
}

impl<V> Names<V> {
    /// Room for `max` names.
    pub fn new(max: usize) -> Self {
        let slots = (2 * max).next_power_of_two().max(2);
        Self {
            slots: (0..slots).map(|_| OnceLock::new()).collect(),
            max,
            growing: Mutex::new(()),
            len: AtomicUsize::new(0),
        }
    }

    /// The place of `name`, for [`at`](Self::at).
    #[inline]
    pub fn find(&self, name: &str) -> Option<usize> {
        let mut place = self.home(name);
        loop {
            let entry = self.slots[place].get()?;
            if *entry.name == *name {
                return Some(place);
            }
            place = (place + 1) & (self.slots.len() - 1);
        }
    }

    /// The place of `name`, which is added if there is room; `None` when there is not.
    pub fn admit(&self, name: &str, value: impl FnOnce() -> V) -> Option<usize> {
        if let Some(place) = self.find(name) {
            return Some(place);
        }
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = self.find(name) {
            return Some(place);
        }
        if self.is_full() {
            return None;
        }
        let mut place = self.home(name);
        while self.slots[place].get().is_some() {
            place = (place + 1) & (self.slots.len() - 1);
        }
        self.slots[place].get_or_init(|| {
            Box::new(Entry {
                name: name.into(),
                value: value(),
            })
        });
        self.len.fetch_add(1, Ordering::Relaxed);
        Some(place)
    }

    /// The value at a place that [`find`](Self::find) or [`admit`](Self::admit) gave.
    ///
    /// # Panics
    ///
    /// When no name has that place.
    #[inline]
    pub fn at(&self, place: usize) -> &V {
        &self.slots[place]
            .get()
            .expect("a place is given with its name in it")
            .value
    }

    /// Whether there is no room for another name.
    pub fn is_full(&self) -> bool {
        self.len() == self.max
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All names and values, sorted by name.
    pub fn sorted(&self) -> Vec<(&str, &V)> {
        let mut all: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| slot.get().map(|entry| (&*entry.name, &entry.value)))
            .collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all
    }

    #[inline]
    fn home(&self, name: &str) -> usize {
        let mut hasher = FxHasher::default();
        hasher.write(name.as_bytes());
        // The multiplication at the end of the hash leaves the best bits on top.
        (hasher.finish() >> 32) as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use proptest::prelude::*;

    #[test]
    fn a_full_table_admits_nothing_new() {
        let names = Names::new(3);
        for name in ["a", "b", "c"] {
            let place = names.admit(name, || name.to_owned()).unwrap();
            assert_eq!(names.at(place), name);
        }
        assert_eq!(names.admit("d", || "d".into()), None);
        assert_eq!(names.admit("b", || unreachable!()), names.find("b"));
        assert_eq!(names.len(), 3);
        assert_eq!(names.find("d"), None);
    }

    #[test]
    fn no_room_at_all_is_fine() {
        let names = Names::<()>::new(0);
        assert_eq!(names.admit("a", || ()), None);
        assert_eq!(names.find("a"), None);
        assert!(names.is_empty());
    }

    #[test]
    fn many_threads_admit_each_name_once() {
        let names = Names::new(100);
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..200 {
                        names.admit(&n.to_string(), || {
                            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(names.len(), 100);
        assert_eq!(made.into_inner(), 100);
        assert_eq!(names.sorted().len(), 100);
    }

    proptest! {
        #[test]
        fn it_is_a_bounded_map(asked in proptest::collection::vec("[a-e]{0,3}", 0..200), max in 0usize..40) {
            let names = Names::new(max);
            let mut model: HashMap<String, usize> = HashMap::new();
            for (n, name) in asked.iter().enumerate() {
                let room = model.len() < max;
                if room || model.contains_key(name) {
                    model.entry(name.clone()).or_insert(n);
                }
                let place = names.admit(name, || n);
                prop_assert_eq!(place.map(|place| *names.at(place)), model.get(name).copied());
            }
            prop_assert_eq!(names.len(), model.len());
        }
    }
}
