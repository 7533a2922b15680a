//! Envoy, `source/extensions/filters/http/adaptive_concurrency/controller/gradient_controller.cc`.

use super::{Algorithm, Sample};

/// `GradientController` of Envoy's `adaptive_concurrency` filter: the median of 100 ms against a reference that is
/// measured each minute with 50 requests at a limit of 3. A stream that is reset is no sample.
#[derive(Debug)]
pub struct Envoy {
    limit: usize,
    reference: f64,
    samples: Vec<f64>,
    /// What the limit was before the reference is measured; `None` when it is not.
    measuring: Option<usize>,
    /// Requests from before are no samples.
    epoch: f64,
    /// When the window ends, and when to measure anew.
    next: f64,
    again: f64,
    /// Windows in a row at the least limit.
    stuck: usize,
}

impl Envoy {
    fn measure(&mut self, now: f64) {
        self.measuring = Some(self.limit);
        self.limit = 3;
        self.epoch = now;
        self.samples.clear();
        self.stuck = 0;
    }

    fn median(&mut self) -> f64 {
        self.samples.sort_by(f64::total_cmp);
        let median = self.samples[self.samples.len() / 2];
        self.samples.clear();
        median
    }
}

impl Default for Envoy {
    fn default() -> Self {
        Self {
            limit: 3,
            reference: 0.0,
            samples: Vec::new(),
            measuring: Some(3),
            epoch: 0.0,
            next: 0.0,
            again: 0.0,
            stuck: 0,
        }
    }
}

impl Algorithm for Envoy {
    fn refuses(&mut self, _: f64, in_flight: usize) -> bool {
        in_flight >= self.limit
    }

    fn ended(&mut self, sample: Sample) {
        if sample.dropped || sample.started < self.epoch {
            return;
        }
        let now = sample.now;
        self.samples.push(sample.round_trip());
        if let Some(before) = self.measuring {
            if self.samples.len() >= 50 {
                self.reference = self.median();
                self.limit = before;
                self.measuring = None;
                // 60 s and half of the 15 % of jitter.
                self.again = now + 64.5;
                self.next = now + 0.1;
            }
            return;
        }
        if now < self.next {
            return;
        }
        self.next = now + 0.1;
        let gradient = (1.25 * self.reference / self.median()).clamp(0.5, 2.0);
        let wanted = self.limit as f64 * gradient;
        let limit = ((wanted + wanted.sqrt()) as usize).clamp(3, 1000);
        self.stuck = match limit == 3 && self.limit == 3 {
            true => self.stuck + 1,
            false => 0,
        };
        self.limit = limit;
        if now > self.again || self.stuck >= 5 {
            self.measure(now);
        }
    }
}
