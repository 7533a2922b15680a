//! A fine histogram: 32 buckets to the octave.
//!
//! Buckets end at powers of 2^(1/32) of a second, so they are the buckets of a Prometheus native histogram of schema
//! 5, and merge without loss into those of any lower schema. A value is off by at most 1.1 % when it is read back as
//! the middle of its bucket. The range is 30 ns to 2 hours and a quarter; what lies outside counts in the first or last bucket.
//!
//! Finding the bucket takes a multiplication, a leading-zero count, a table look-up and one comparison.

use std::time::Duration;

use super::quantiles::Quantiles;
use super::striped::Striped;
use crate::base::clock::nanos;

/// Buckets to the octave.
const FINE: usize = 32;
/// The schema of a native histogram with [`FINE`] buckets to the octave.
const SCHEMA: i32 = 5;
/// The first octave: from 2^(5 - 30) s. Below it everything is one bucket.
const FIRST: u32 = 5;
/// One past the last octave.
const LAST: u32 = 43;
/// All buckets; the first holds what is shorter than 2^(FIRST - 30) s.
const BUCKETS: usize = 1 + (LAST - FIRST) as usize * FINE;
/// Where the sum of all recorded nanoseconds is kept.
const SUM: usize = BUCKETS;

/// 2^(i/32) in units of 2^-62.
const EDGES: [u64; FINE + 1] = edges();
/// For each 128th of an octave, the bucket in which it begins.
const STARTS: [u8; 128] = starts();

/// A striped histogram of durations; see [the module](super) for what striping means.
#[derive(Debug)]
pub struct Exponential {
    cells: Striped,
}

/// What an [`Exponential`] held at one moment, or between two.
///
/// A value and its part of the sum are two additions: a reading in between has the one without the other. The sum is in
/// nanoseconds and starts anew after 584 years of recorded time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    buckets: Box<[u64]>,
    sum: u64,
}

// ===== impl Exponential =====

impl Exponential {
    /// An empty histogram.
    pub fn new() -> Self {
        Self {
            cells: Striped::new(BUCKETS + 1),
        }
    }

    /// Records one duration: two additions in the thread's own cache lines.
    #[inline]
    pub fn record(&self, duration: Duration) {
        let ns = nanos(duration);
        let stripe = self.cells.local();
        stripe.add(bucket(ns), 1);
        stripe.add(SUM, ns);
    }

    /// What it holds now.
    pub fn counts(&self) -> Counts {
        let mut cells = vec![0; BUCKETS + 1];
        self.cells.sum_into(0, &mut cells);
        let sum = cells.pop().unwrap_or_default();
        Counts {
            buckets: cells.into(),
            sum,
        }
    }
}

impl Default for Exponential {
    fn default() -> Self {
        Self::new()
    }
}

// ===== impl Counts =====

impl Counts {
    /// No values.
    pub(crate) fn zero() -> Self {
        Self {
            buckets: vec![0; BUCKETS].into(),
            sum: 0,
        }
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum, exact.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.buckets.iter().all(|count| *count == 0)
    }

    /// The value below or at which the fraction `q` of all values lies, by the nearest-rank method; `None` when empty.
    ///
    /// Within 1.1 % of the recorded value of that rank.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(middle(bucket))
    }

    /// The usual quantiles, mean, least and greatest.
    pub fn quantiles(&self) -> Quantiles {
        Quantiles::of(self)
    }

    /// Every bucket that holds something: the middle of its range and its count, shortest first.
    pub fn iter(&self) -> impl Iterator<Item = (Duration, u64)> {
        self.filled().map(|(bucket, count)| (middle(bucket), count))
    }

    /// The buckets of a Prometheus native histogram of `schema` (at most 5): the count of values too short for any
    /// bucket, and index and count of every bucket that holds something, by rising index.
    pub fn native(&self, schema: i32) -> (u64, Vec<(i32, u64)>) {
        let merge = SCHEMA - schema.min(SCHEMA);
        let mut native: Vec<(i32, u64)> = Vec::new();
        for (bucket, count) in self.filled().filter(|(bucket, _)| *bucket > 0) {
            // Bucket i of schema s ends at 2^(i / 2^s) seconds.
            let fine = (FIRST as i32 - 30) * FINE as i32 + bucket as i32;
            let index = ((fine - 1) >> merge) + 1;
            match native.last_mut() {
                Some(last) if last.0 == index => last.1 += count,
                _ => native.push((index, count)),
            }
        }
        (self.buckets[0], native)
    }

    pub(super) fn filled(&self) -> impl Iterator<Item = (usize, u64)> {
        self.buckets
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(bucket, count)| (bucket, *count))
    }

    /// What came since `earlier`, which is an older state of the same histogram.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let buckets = self.buckets.iter().zip(&earlier.buckets);
        Self {
            buckets: buckets
                .map(|(now, then)| now.saturating_sub(*then))
                .collect(),
            sum: self.sum.wrapping_sub(earlier.sum),
        }
    }

    /// Adds the values of `other`.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += more;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    pub(super) fn add_sparse(&mut self, filled: &[(u16, u64)], sum: u64) {
        for (bucket, count) in filled {
            self.buckets[usize::from(*bucket)] += count;
        }
        self.sum = self.sum.wrapping_add(sum);
    }

    pub(super) fn to_sparse(&self) -> (Box<[(u16, u64)]>, u64) {
        let filled = self.filled().map(|(bucket, count)| (bucket as u16, count));
        (filled.collect(), self.sum)
    }
}

// ===== buckets =====

#[inline]
fn bucket(ns: u64) -> usize {
    // From nanoseconds to units of 2^-60 s: times 2^60 / 10^9.
    const SCALE: u128 = ((1u128 << 60) + 500_000_000) / 1_000_000_000;
    let units = u128::from(ns) * SCALE;
    if units < 1 << (FIRST + 30) {
        return 0;
    }
    let log = units.ilog2();
    let octave = log - 30;
    if octave >= LAST {
        return BUCKETS - 1;
    }
    // The leading 62 places below the first one.
    let mantissa = match u64::try_from(units) {
        Ok(units) if log <= 62 => units << (62 - log),
        _ => (units >> (log - 62)) as u64,
    };
    let start = usize::from(STARTS[(mantissa >> 55) as usize & 127]);
    // No two edges lie within one 128th of an octave.
    let fine = start + usize::from(mantissa >= EDGES[start + 1]);
    1 + (octave - FIRST) as usize * FINE + fine
}

/// The geometric middle of a bucket.
fn middle(bucket: usize) -> Duration {
    let exponent = match bucket {
        0 => f64::from(FIRST) - 31.0,
        _ => f64::from(FIRST) - 30.0 + (bucket as f64 - 0.5) / FINE as f64,
    };
    Duration::from_secs_f64(exponent.exp2())
}

const fn edges() -> [u64; FINE + 1] {
    // Five square roots of 2 make 2^(1/32).
    let mut root: u128 = 2 << 62;
    let mut step = 0;
    while step < FINE.ilog2() {
        root = (root << 62).isqrt();
        step += 1;
    }
    let mut edges = [0; FINE + 1];
    let mut edge: u128 = 1 << 62;
    let mut index = 0;
    while index < FINE {
        edges[index] = edge as u64;
        edge = (edge * root) >> 62;
        index += 1;
    }
    edges[FINE] = 1 << 63;
    edges
}

const fn starts() -> [u8; 128] {
    let mut starts = [0; 128];
    let mut index = 0;
    let mut edge = 0;
    while index < 128 {
        let begin = (1 << 62) + ((index as u64) << 55);
        while EDGES[edge + 1] <= begin {
            edge += 1;
        }
        starts[index] = edge as u8;
        index += 1;
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    /// The definition, through floats: what [`bucket`] must equal away from the edges.
    fn defined(ns: u64) -> f64 {
        ((ns as f64 / 1e9).log2() - (f64::from(FIRST) - 30.0)) * FINE as f64 + 1.0
    }

    proptest! {
        #[test]
        fn the_bucket_is_the_logarithm(exponent in 4.91f64..41.8, low in 0u64..1024) {
            let ns = (exponent.exp2() as u64) + low;
            let exact = defined(ns);
            prop_assume!(exact < BUCKETS as f64);
            let found = bucket(ns);
            if (exact - exact.round()).abs() > 1e-6 {
                prop_assert_eq!(found, exact.max(0.0) as usize, "{} ns: {}", ns, exact);
            } else {
                prop_assert!((found as f64 - exact).abs() < 1.001, "{} ns: {}", ns, exact);
            }
        }

        #[test]
        fn what_is_read_back_is_within_its_error(ns in 31u64..4_000_000_000_000) {
            let histogram = Exponential::new();
            histogram.record(Duration::from_nanos(ns));
            let back = histogram.counts().quantile(0.5).unwrap().as_nanos() as f64;
            let error = (back / ns as f64 - 1.0).abs();
            // Below a microsecond whole nanoseconds round too.
            prop_assert!(error < if ns < 1_000 { 0.05 } else { 0.011 }, "{} became {}", ns, back);
        }

        #[test]
        fn buckets_rise_with_their_values(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(bucket(a.min(b)) <= bucket(a.max(b)), true);
        }

        #[test]
        fn native_buckets_hold_every_value_within_their_bounds(
            values in proptest::collection::vec(31u64..4_000_000_000_000, 1..100),
            schema in 0i32..=5,
        ) {
            let histogram = Exponential::new();
            values.iter().for_each(|ns| histogram.record(Duration::from_nanos(*ns)));
            let (zero, native) = histogram.counts().native(schema);
            prop_assert_eq!(zero + native.iter().map(|b| b.1).sum::<u64>(), values.len() as u64);
            prop_assert!(native.windows(2).all(|pair| pair[0].0 < pair[1].0));
            for (index, count) in native {
                let width = f64::from(1u32 << schema);
                let upper = (f64::from(index) / width).exp2() * 1e9;
                let lower = (f64::from(index - 1) / width).exp2() * 1e9;
                let inside = values.iter().filter(|ns| **ns as f64 > lower - 2.0 && (**ns as f64) < upper + 2.0);
                prop_assert!(inside.count() as u64 >= count, "{} in bucket {}", count, index);
            }
        }
    }

    #[test]
    fn extremes_have_a_bucket() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(29), 0);
        assert_eq!(bucket(30), 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        let histogram = Exponential::new();
        histogram.record(Duration::MAX);
        histogram.record(Duration::ZERO);
        assert_eq!(histogram.counts().count(), 2);
    }

    #[test]
    fn whole_powers_of_two_begin_their_octave() {
        // 2^-10 s is 976,562.5 ns.
        assert_eq!((bucket(976_562) - 1) % FINE, FINE - 1);
        assert_eq!((bucket(976_563) - 1) % FINE, 0);
        assert_eq!((bucket(1_000_000_000) - 1) % FINE, 0);
    }

    #[test]
    fn the_sum_is_exact() {
        let histogram = Exponential::new();
        (1..=1_000).for_each(|n| histogram.record(Duration::from_micros(n)));
        let counts = histogram.counts();
        assert_eq!(counts.sum(), Duration::from_micros(500_500));
        assert_eq!(counts.quantiles().mean, Duration::from_nanos(500_500));
    }
}
