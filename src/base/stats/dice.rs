use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

thread_local! {
    static DICE: Cell<u64> = const { Cell::new(0) };
}

/// True once in `every` times, never for 0. At random: a count would keep step with requests that come in a pattern.
#[inline]
pub(crate) fn once_in(every: u32) -> bool {
    if every < 2 {
        return every == 1;
    }
    let mut dice = DICE.get();
    if dice == 0 {
        dice = RandomState::new().hash_one(0) | 1;
    }
    // Marsaglia's xorshift64 (Xorshift RNGs, 2003).
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    DICE.set(dice);
    ((dice >> 32) * u64::from(every)) >> 32 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_comes_up() {
        for every in [2, 16, 1000] {
            let rounds = 1000 * every;
            let hits = (0..rounds).filter(|_| once_in(every)).count();
            // Six standard deviations either way.
            assert!((800..1200).contains(&hits), "{hits} of {rounds}");
        }
        assert!((0..100).all(|_| once_in(1) && !once_in(0)));
    }
}
