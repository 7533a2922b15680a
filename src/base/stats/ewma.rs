use std::time::Duration;

/// A moving average that forgets by time, not by count: a sample's weight falls to 1/e after `tau`.
///
/// Two samples at the same moment weigh the same; after a long silence the next sample decides alone. With the weight
/// `w = 1 - exp(-dt / tau)` a new sample moves the average by `w * (sample - average)`.
///
/// ```
/// use std::time::Duration;
/// use tower_flow::stats::Ewma;
///
/// let mut average = Ewma::new(Duration::from_secs(10));
/// average.record(4.0, Duration::ZERO);
/// average.record(8.0, Duration::from_secs(10));
/// assert!((average.value().unwrap() - 6.528).abs() < 1e-3);
/// ```
#[derive(Debug, Clone)]
pub struct Ewma {
    tau: f64,
    value: Option<f64>,
}

impl Ewma {
    /// An average with time constant `tau`.
    ///
    /// # Panics
    ///
    /// When `tau` is zero.
    pub fn new(tau: Duration) -> Self {
        assert!(
            !tau.is_zero(),
            "the time constant of an average must be longer than {tau:?}"
        );
        Self {
            tau: tau.as_secs_f64(),
            value: None,
        }
    }

    /// Adds `sample`, `since` after the one before. A sample that is no number is left out.
    pub fn record(&mut self, sample: f64, since: Duration) {
        if sample.is_nan() {
            return;
        }
        self.value = Some(match self.value {
            None => sample,
            Some(value) => {
                let weight = -(-since.as_secs_f64() / self.tau).exp_m1();
                value + weight * (sample - value)
            }
        });
    }

    /// The average; `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_stays_and_a_step_decays() {
        let mut average = Ewma::new(Duration::from_secs(1));
        assert_eq!(average.value(), None);
        for _ in 0..10 {
            average.record(5.0, Duration::from_millis(100));
        }
        assert_eq!(average.value(), Some(5.0));
        average.record(0.0, Duration::from_secs(1));
        assert!((average.value().unwrap() - 5.0 / std::f64::consts::E).abs() < 1e-12);
        average.record(f64::NAN, Duration::from_secs(1));
        assert!(average.value().unwrap().is_finite());
    }

    #[test]
    fn many_small_steps_equal_one_large_step() {
        let mut fine = Ewma::new(Duration::from_secs(3));
        let mut coarse = fine.clone();
        fine.record(1.0, Duration::ZERO);
        coarse.record(1.0, Duration::ZERO);
        for _ in 0..100 {
            fine.record(9.0, Duration::from_millis(50));
        }
        coarse.record(9.0, Duration::from_secs(5));
        assert!((fine.value().unwrap() - coarse.value().unwrap()).abs() < 1e-9);
    }

    #[test]
    #[should_panic(expected = "longer than 0ns")]
    fn no_time_constant_is_refused() {
        Ewma::new(Duration::ZERO);
    }
}
