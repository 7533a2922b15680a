use std::time::Duration;

use super::exponential::Counts;

/// What a histogram says of its values: count, mean, extremes and the quantiles people ask for.
///
/// The mean is exact; everything else is within 1.1 %. All zero when there is no value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // The names are the field's own.
pub struct Quantiles {
    pub count: u64,
    pub mean: Duration,
    pub min: Duration,
    pub p50: Duration,
    pub p90: Duration,
    pub p95: Duration,
    pub p99: Duration,
    pub p999: Duration,
    pub max: Duration,
}

impl Quantiles {
    pub(super) fn of(counts: &Counts) -> Self {
        let count = counts.count();
        if count == 0 {
            return Self::default();
        }
        let of = |q| counts.quantile(q).unwrap_or_default();
        Self {
            count,
            mean: Duration::from_nanos((counts.sum().as_nanos() / u128::from(count)) as u64),
            min: of(0.0),
            p50: of(0.5),
            p90: of(0.9),
            p95: of(0.95),
            p99: of(0.99),
            p999: of(0.999),
            max: of(1.0),
        }
    }

    /// Names and values, in the order they are shown.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        [
            ("min", self.min),
            ("mean", self.mean),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p95", self.p95),
            ("p99", self.p99),
            ("p999", self.p999),
            ("max", self.max),
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Exponential;
    use super::*;

    #[test]
    fn a_uniform_spread_has_the_quantiles_it_should() {
        let histogram = Exponential::new();
        (1..=10_000).for_each(|n| histogram.record(Duration::from_micros(n)));
        let quantiles = histogram.counts().quantiles();
        let expected = [
            1.0, 5_000.5, 5_000.0, 9_000.0, 9_500.0, 9_900.0, 9_990.0, 10_000.0,
        ];
        for ((name, value), expected) in quantiles.iter().zip(expected) {
            let micros = value.as_secs_f64() * 1e6;
            assert!(
                (micros / expected - 1.0).abs() < 0.011,
                "{name}: {micros} for {expected}"
            );
        }
    }

    #[test]
    fn no_values_are_all_zero() {
        assert_eq!(
            Exponential::new().counts().quantiles(),
            Quantiles::default()
        );
    }
}
