use std::time::Duration;

use crate::base::metrics::Histogram;
use crate::base::stats::Bounds;

/// A histogram of durations, behind a lock.
pub(super) struct Buckets {
    bounds: Bounds,
    counts: Vec<u64>,
    sum: f64,
}

// ===== impl Buckets =====

impl Buckets {
    pub(super) fn new() -> Self {
        let bounds = Bounds::seconds([
            0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
            2.5, 5.0, 10.0,
        ]);
        Self {
            counts: vec![0; 17],
            bounds,
            sum: 0.0,
        }
    }

    pub(super) fn add(&mut self, took: Duration) {
        self.counts[self.bounds.of(took)] += 1;
        self.sum += took.as_secs_f64();
    }

    pub(super) fn histogram(&self) -> Histogram {
        Histogram::new(&self.bounds, self.counts.clone(), self.sum)
    }
}
