use std::sync::Arc;
use std::time::Duration;

use super::Signal;
use crate::base::clock;
use crate::base::stats::Sliding;

/// A quantile of a sliding window of latencies, in seconds.
///
/// Says nothing while the window holds fewer than [`min_samples`](Self::min_samples) values (default 100): a quantile
/// of a handful is a rumour.
#[derive(Debug, Clone)]
pub struct LatencySignal {
    name: Arc<str>,
    window: Arc<Sliding>,
    quantile: f64,
    min_samples: u64,
}

impl LatencySignal {
    /// The `quantile` (0 to 1) of `window`, under `name`.
    ///
    /// # Panics
    ///
    /// When `quantile` does not lie within 0 and 1.
    pub fn new(name: impl Into<Arc<str>>, window: Arc<Sliding>, quantile: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&quantile),
            "the quantile {quantile} does not lie within 0 and 1"
        );
        Self {
            name: name.into(),
            window,
            quantile,
            min_samples: 100,
        }
    }

    /// How many values the window must hold before the signal speaks (default 100).
    #[must_use]
    pub fn min_samples(mut self, min: u64) -> Self {
        self.min_samples = min;
        self
    }

    /// The latency now; `None` while there are too few values.
    pub fn latency(&self) -> Option<Duration> {
        let recent = self.window.recent(clock::now());
        (recent.count() >= self.min_samples)
            .then(|| recent.quantile(self.quantile))
            .flatten()
    }
}

impl Signal for LatencySignal {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample(&self) -> Option<f64> {
        self.latency().map(|latency| latency.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::stats::Window;

    #[test]
    fn a_handful_says_nothing() {
        let window = Arc::new(Sliding::new(Window::default()));
        let signal = LatencySignal::new("stock", window.clone(), 0.95);
        for n in 1..100u64 {
            window.record(clock::now(), Duration::from_millis(n));
            assert_eq!(signal.sample(), None);
        }
        window.record(clock::now(), Duration::from_millis(100));
        let p95 = signal.sample().unwrap();
        assert!((p95 - 0.095).abs() < 0.0011, "{p95}");
        assert_eq!(signal.name(), "stock");
    }

    #[test]
    #[should_panic(expected = "quantile 95")]
    fn percent_for_a_fraction_is_refused() {
        LatencySignal::new("stock", Arc::new(Sliding::new(Window::default())), 95.0);
    }
}
