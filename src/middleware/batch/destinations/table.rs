use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::base::clock::Instant;

/// The services of the destinations that were used last. Plain data; whoever locks it drops what it gives back outside.
pub(super) struct Table<K, S> {
    kept: HashMap<K, Kept<S>>,
    /// When somebody last looked for those that are not used.
    swept: Instant,
}

/// How many are kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) max: usize,
    pub(super) idle_timeout: Duration,
}

/// A service, under a lock of its own, which is held while it is cloned.
pub(super) type Shared<S> = Arc<Mutex<S>>;

struct Kept<S> {
    service: Shared<S>,
    used: Instant,
}

// ===== impl Table =====

impl<K: Hash + Eq, S> Table<K, S> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            kept: HashMap::new(),
            swept: now,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn get(&mut self, key: &K, now: Instant) -> Option<Shared<S>> {
        let kept = self.kept.get_mut(key)?;
        kept.used = now;
        Some(kept.service.clone())
    }

    /// Keeps `service` for `key`, and returns what is kept. When there was one already, that one is, and what came in is
    /// given back.
    pub(super) fn insert(
        &mut self,
        key: K,
        service: Shared<S>,
        now: Instant,
    ) -> (Shared<S>, Option<(K, Shared<S>)>) {
        if let Some(kept) = self.get(&key, now) {
            return (kept, Some((key, service)));
        }
        let kept = Kept {
            service: service.clone(),
            used: now,
        };
        self.kept.insert(key, kept);
        (service, None)
    }

    /// Takes out those that were not used for too long, and when there are too many those that were not used for longest.
    ///
    /// Looks at all of them, but only when there are too many, and four times in an idle timeout.
    pub(super) fn sweep(&mut self, now: Instant, terms: &Terms) -> Vec<(K, Shared<S>)> {
        let mut out = Vec::new();
        if now.saturating_duration_since(self.swept) >= terms.idle_timeout / 4 {
            self.swept = now;
            let old = |_: &K, kept: &mut Kept<S>| {
                now.saturating_duration_since(kept.used) >= terms.idle_timeout
            };
            let old = self.kept.extract_if(old);
            out.extend(old.map(|(key, kept)| (key, kept.service)));
        }
        while self.kept.len() > terms.max {
            let Some(oldest) = self.kept.values().map(|kept| kept.used).min() else {
                break;
            };
            let over = self.kept.extract_if(|_, kept| kept.used == oldest).next();
            out.extend(over.map(|(key, kept)| (key, kept.service)));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const SECOND: Duration = Duration::from_secs(1);
    const TERMS: Terms = Terms {
        max: 2,
        idle_timeout: Duration::from_secs(100),
    };

    fn table(now: Instant, keys: impl IntoIterator<Item = u32>) -> Table<u32, u32> {
        let mut table = Table::new(now);
        for (n, key) in keys.into_iter().enumerate() {
            insert(&mut table, key, now + n as u32 * SECOND);
        }
        table
    }

    fn insert(table: &mut Table<u32, u32>, key: u32, now: Instant) {
        table.insert(key, Arc::new(Mutex::new(key)), now);
    }

    fn keys(out: Vec<(u32, Shared<u32>)>) -> Vec<u32> {
        let mut keys: Vec<_> = out.into_iter().map(|(key, _)| key).collect();
        keys.sort();
        keys
    }

    #[test]
    fn of_too_many_those_not_used_for_longest_go() {
        let now = clock::now();
        let mut table = table(now, [1, 2, 3, 4]);
        assert!(table.get(&1, now + 10 * SECOND).is_some());
        assert_eq!(keys(table.sweep(now + 10 * SECOND, &TERMS)), [2, 3]);
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn one_that_is_not_used_goes_after_a_while() {
        let now = clock::now();
        let mut table = table(now, [1, 2]);
        assert!(table.get(&2, now + 50 * SECOND).is_some());
        assert!(table.sweep(now + 99 * SECOND, &TERMS).is_empty());
        // Looked at a moment ago; a quarter of the timeout later again.
        assert!(table.sweep(now + 101 * SECOND, &TERMS).is_empty());
        assert_eq!(keys(table.sweep(now + 124 * SECOND, &TERMS)), [1]);
        assert_eq!(keys(table.sweep(now + 150 * SECOND, &TERMS)), [2]);
    }

    #[test]
    fn the_first_service_of_a_destination_stays() {
        let now = clock::now();
        let mut table = table(now, [1]);
        let (kept, back) = table.insert(1, Arc::new(Mutex::new(9)), now);
        assert_eq!(*kept.lock().unwrap(), 1);
        assert_eq!(*back.unwrap().1.lock().unwrap(), 9);
        assert_eq!(table.len(), 1);
    }
}
