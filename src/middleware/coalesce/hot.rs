//! Which keys are followed most: the "space saving" sketch of Metwally, Agrawal and El Abbadi, "Efficient Computation of
//! Frequent and Top-k Elements in Data Streams", 2005. Plain data.
//!
//! A key that is not among the [`KEYS`] takes the place of the one counted least, and its count plus its own: a count may
//! be too great by what the key it replaced had, never too small. Keys are their hashes; nothing of a request is kept.

/// How many keys a shard counts.
const KEYS: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Hot([(u64, u64); KEYS]);

impl Hot {
    pub(super) fn count(&mut self, hash: u64, times: u64) {
        let mut least = 0;
        for place in 0..KEYS {
            let (key, count) = self.0[place];
            if key == hash && count > 0 {
                self.0[place].1 += times;
                // The hottest come first and are found first.
                if place > 0 && self.0[place - 1].1 < count + times {
                    self.0.swap(place - 1, place);
                }
                return;
            }
            if count < self.0[least].1 {
                least = place;
            }
        }
        self.0[least] = (hash, self.0[least].1 + times);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied().filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_followed_most_is_found_among_many() {
        let mut hot = Hot::default();
        for n in 0..100_000u64 {
            hot.count(if n % 3 == 0 { 42 } else { 1_000 + n }, 1);
        }
        let (key, count) = hot.iter().max_by_key(|(_, count)| *count).unwrap();
        assert_eq!(key, 42);
        assert!(
            (33_334..=33_334 + 100_000 / KEYS as u64).contains(&count),
            "{count}"
        );
    }
}
