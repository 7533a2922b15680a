use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::exponential::Counts;
use super::quantiles::Quantiles;
use super::window::Slice;

/// Longer than the longest value a [`Counts`] gives back.
const HIGHEST: u64 = 10_000 * 1_000_000_000;

impl Counts {
    /// The same values in an HdrHistogram, in nanoseconds.
    pub(crate) fn to_hdr(&self) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, HIGHEST, 3)
            .expect("1 to 1e13 with 3 digits is a range it takes");
        for (value, count) in self.iter() {
            histogram.saturating_record_n(value.as_nanos() as u64, count);
        }
        histogram
    }

    /// The quantiles a caller with a fixed schedule would have seen.
    ///
    /// One request that took longer than `expected` held back those that should have been sent meanwhile; for each of
    /// them HdrHistogram's correction for coordinated omission adds the value it would have had.
    pub fn corrected(&self, expected: Duration) -> Quantiles {
        if self.is_empty() || expected.is_zero() {
            return self.quantiles();
        }
        let histogram = self.to_hdr().clone_correct(expected.as_nanos() as u64);
        let of = |q| Duration::from_nanos(histogram.value_at_quantile(q));
        Quantiles {
            count: histogram.len(),
            mean: Duration::from_secs_f64(histogram.mean() / 1e9),
            min: Duration::from_nanos(histogram.min()),
            p50: of(0.5),
            p90: of(0.9),
            p95: of(0.95),
            p99: of(0.99),
            p999: of(0.999),
            max: Duration::from_nanos(histogram.max()),
        }
    }
}

/// Writes `slices` as an HdrHistogram V2 interval log: values in nanoseconds, maxima shown in milliseconds.
pub(crate) fn interval_log(to: &mut impl io::Write, tag: &str, slices: &[Slice]) -> io::Result<()> {
    let start = slices
        .first()
        .map_or_else(crate::base::clock::wall, |slice| slice.start);
    // A tag holds no commas, spaces or line ends.
    let tag: String = tag
        .chars()
        .map(|char| {
            if char == ',' || char.is_whitespace() || char.is_control() {
                '_'
            } else {
                char
            }
        })
        .collect();
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(1e6)
        .begin_log_with(to, &mut serializer)?;
    for slice in slices {
        let since = slice.start.duration_since(start).unwrap_or_default();
        log.write_histogram(&slice.counts.to_hdr(), since, slice.length, Tag::new(&tag))
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::stats::Exponential;

    #[test]
    fn both_histograms_agree() {
        let ours = Exponential::new();
        (1..=1_000u64).for_each(|n| ours.record(Duration::from_micros(n * n)));
        let counts = ours.counts();
        let theirs = counts.to_hdr();
        assert_eq!(theirs.len(), counts.count());
        for q in [0.1, 0.5, 0.9, 0.99, 1.0] {
            let (ours, theirs) = (
                counts.quantile(q).unwrap().as_nanos() as f64,
                theirs.value_at_quantile(q) as f64,
            );
            assert!(
                (ours / theirs - 1.0).abs() < 0.002,
                "{q}: {ours} and {theirs}"
            );
        }
    }

    #[test]
    fn one_long_request_stands_for_those_it_held_back() {
        let ours = Exponential::new();
        (0..100).for_each(|_| ours.record(Duration::from_millis(10)));
        ours.record(Duration::from_secs(1));
        let counts = ours.counts();
        assert!(counts.quantiles().p90 < Duration::from_millis(11));
        let corrected = counts.corrected(Duration::from_millis(10));
        assert!(
            (198..=201).contains(&corrected.count),
            "{}",
            corrected.count
        );
        assert!(
            (0.45..0.52).contains(&(corrected.p90.as_secs_f64() - 0.3)),
            "{:?}",
            corrected.p90
        );
        assert_eq!(counts.corrected(Duration::ZERO), counts.quantiles());
    }
}
