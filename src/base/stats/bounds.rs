use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::nanos;

/// The upper bounds of a classic histogram's buckets.
///
/// A value belongs to the first bucket whose bound it does not exceed, exactly: durations are compared in whole
/// nanoseconds, never through a float.
///
/// ```
/// use std::time::Duration;
/// use tower_flow::stats::Bounds;
///
/// let bounds = Bounds::seconds([0.005, 0.01]);
/// assert_eq!(bounds.of(Duration::from_millis(5)), 0);
/// assert_eq!(bounds.of(Duration::from_nanos(5_000_001)), 1);
/// assert_eq!(bounds.of(Duration::from_secs(1)), 2, "the bucket of +Inf comes after the last bound");
/// ```
#[derive(Debug, Clone)]
pub struct Bounds {
    /// What the exposition prints.
    shown: Arc<[f64]>,
    /// What values are compared with.
    whole: Arc<[u64]>,
}

impl Bounds {
    /// The default of the Go and Python clients: 5 ms to 10 s.
    pub fn client_golang() -> Self {
        Self::seconds([
            0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ])
    }

    /// Bounds in seconds.
    ///
    /// # Panics
    ///
    /// When they do not rise strictly, are not finite, or there are none or more than 128 of them.
    pub fn seconds(bounds: impl IntoIterator<Item = f64>) -> Self {
        Self::new(bounds, 1e9)
    }

    /// Bounds in bytes, messages, or whatever else is counted one by one.
    ///
    /// # Panics
    ///
    /// As [`seconds`](Self::seconds).
    pub fn whole(bounds: impl IntoIterator<Item = f64>) -> Self {
        Self::new(bounds, 1.0)
    }

    fn new(bounds: impl IntoIterator<Item = f64>, scale: f64) -> Self {
        let shown: Arc<[f64]> = bounds.into_iter().collect();
        assert!(
            (1..=128).contains(&shown.len()),
            "a histogram has 1 to 128 bounds, not {}",
            shown.len()
        );
        for bound in shown.iter() {
            assert!(
                bound.is_finite(),
                "the bucket bound {bound} is not finite; +Inf is implied"
            );
        }
        for pair in shown.windows(2) {
            assert!(
                pair[0] < pair[1],
                "bucket bounds must rise: {} before {}",
                pair[0],
                pair[1]
            );
        }
        let whole = shown
            .iter()
            .map(|bound| (bound * scale).round() as u64)
            .collect();
        Self { shown, whole }
    }

    /// The bucket of a duration.
    #[inline]
    pub fn of(&self, duration: Duration) -> usize {
        self.index(nanos(duration))
    }

    /// The bucket of a number of nanoseconds, bytes, or whatever these bounds are in.
    #[inline]
    pub fn index(&self, value: u64) -> usize {
        self.whole.partition_point(|bound| *bound < value)
    }

    /// How many buckets there are, the one of `+Inf` included.
    pub fn buckets(&self) -> usize {
        self.whole.len() + 1
    }

    /// The bounds as the exposition prints them, without `+Inf`.
    pub fn as_slice(&self) -> &[f64] {
        &self.shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_to_the_nanosecond() {
        let bounds = Bounds::client_golang();
        assert_eq!(bounds.buckets(), 12);
        for (index, bound) in [5_000_000u64, 10_000_000, 25_000_000, 50_000_000]
            .into_iter()
            .enumerate()
        {
            assert_eq!(bounds.index(bound - 1), index);
            assert_eq!(bounds.index(bound), index);
            assert_eq!(bounds.index(bound + 1), index + 1);
        }
        assert_eq!(bounds.index(0), 0);
        assert_eq!(bounds.index(u64::MAX), 11);
    }

    #[test]
    #[should_panic(expected = "must rise: 2 before 1")]
    fn falling_bounds_are_refused() {
        Bounds::seconds([2.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "inf is not finite")]
    fn infinity_is_refused() {
        Bounds::seconds([1.0, f64::INFINITY]);
    }

    #[test]
    #[should_panic(expected = "not 0")]
    fn no_bounds_are_refused() {
        Bounds::whole([]);
    }
}
