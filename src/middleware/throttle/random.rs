//! Random numbers for choices that need no secrecy: splitmix64, with a state in every thread.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

thread_local! {
    /// Zero until the thread first draws.
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// A number of 32 even bits.
#[inline]
pub(super) fn next() -> u32 {
    let mut state = STATE.get();
    if state == 0 {
        state = seed();
    }
    state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((mixed ^ (mixed >> 31)) >> 32) as u32
}

/// What the standard library seeds its hash maps with: different in every thread and every process.
#[cold]
fn seed() -> u64 {
    RandomState::new().hash_one(())
}

/// Makes the numbers this thread draws from now on the same in every run.
#[cfg(test)]
pub(super) fn seed_with(seed: u64) {
    STATE.set(seed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_a_seed_repeats_them() {
        seed_with(42);
        let first: Vec<u32> = (0..100_000).map(|_| next()).collect();
        for threshold in [1u32 << 28, 1 << 31, u32::MAX / 10 * 9] {
            let below = first.iter().filter(|draw| **draw < threshold).count() as f64;
            let expected = f64::from(threshold) / 2f64.powi(32);
            assert!((below / 100_000.0 - expected).abs() < 0.01, "{threshold}");
        }
        seed_with(42);
        assert!(first.into_iter().all(|draw| draw == next()));
    }

    #[test]
    fn threads_draw_differently() {
        let draws = || std::thread::spawn(|| [next(), next()]).join().unwrap();
        assert_ne!(draws(), draws());
    }
}
