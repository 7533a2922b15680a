//! Vector, `src/sinks/util/adaptive_concurrency/controller.rs`.

use super::{Algorithm, Sample};

/// Adaptive request concurrency: from 1 to 200, one more with each round
/// trip that was no slower than the average, a tenth less with back pressure or 2.5 deviations above it. It waits for
/// a permit there; here it refuses.
#[derive(Debug)]
pub struct VectorArc {
    limit: usize,
    /// The average round trip and its variance.
    past: Option<(f64, f64)>,
    next: f64,
    sum: f64,
    samples: usize,
    pressed: bool,
    reached: bool,
}

impl Default for VectorArc {
    fn default() -> Self {
        Self {
            limit: 1,
            past: None,
            next: 0.0,
            sum: 0.0,
            samples: 0,
            pressed: false,
            reached: false,
        }
    }
}

impl Algorithm for VectorArc {
    fn refuses(&mut self, _: f64, in_flight: usize) -> bool {
        in_flight >= self.limit
    }

    fn admitted(&mut self, in_flight: usize) {
        self.reached |= in_flight >= self.limit;
    }

    fn ended(&mut self, sample: Sample) {
        self.pressed |= sample.dropped;
        if !sample.dropped {
            self.sum += sample.round_trip();
            self.samples += 1;
        }
        let current = (self.samples > 0).then(|| self.sum / self.samples as f64);
        let Some((mean, variance)) = self.past else {
            self.past = current.map(|current| (current, 0.0));
            self.next = sample.now + current.unwrap_or(0.0);
            return;
        };
        if sample.now < self.next {
            return;
        }
        let quick = current.is_some_and(|current| current <= mean);
        let slow = current.is_some_and(|current| current >= mean + 2.5 * variance.sqrt());
        if self.limit < 200 && self.reached && !self.pressed && quick {
            self.limit += 1;
        } else if self.pressed || slow {
            self.limit = ((self.limit as f64 * 0.9) as usize).max(1);
        }
        let past = current.map_or((mean, variance), |current| {
            let off = current - mean;
            (mean + 0.4 * off, 0.6 * (variance + 0.4 * off * off))
        });
        *self = Self {
            limit: self.limit,
            past: Some(past),
            next: sample.now + past.0,
            ..Self::default()
        };
    }
}
