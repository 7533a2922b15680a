//! Netflix/concurrency-limits at 78a74b9.

use super::{Algorithm, Sample};
use crate::machine::{PATIENCE, Rng};

/// `AIMDLimit`: limits 20 to 200, one more with each good end, a tenth less with each
/// bad one. Its timeout of 5 s is set to the second that clients wait.
#[derive(Debug)]
pub struct NetflixAimd(usize);

impl Default for NetflixAimd {
    fn default() -> Self {
        Self(20)
    }
}

impl Algorithm for NetflixAimd {
    fn refuses(&mut self, _: f64, in_flight: usize) -> bool {
        in_flight >= self.0
    }

    fn ended(&mut self, sample: Sample) {
        let next = if sample.dropped || sample.round_trip() > PATIENCE {
            (self.0 as f64 * 0.9) as usize
        } else if sample.in_flight * 2 >= self.0 {
            self.0 + 1
        } else {
            self.0
        };
        self.0 = next.clamp(20, 200);
    }
}

/// `VegasLimit`, as it is by default: with every sample, and the least of them as the
/// reference, replaced after 15 to 30 samples for each of the limit.
#[derive(Debug)]
pub struct NetflixVegas {
    limit: f64,
    least: f64,
    samples: usize,
    jitter: f64,
    rng: Rng,
}

impl Default for NetflixVegas {
    fn default() -> Self {
        Self {
            limit: 20.0,
            least: 0.0,
            samples: 0,
            jitter: 0.75,
            rng: Rng::new(7),
        }
    }
}

impl Algorithm for NetflixVegas {
    fn refuses(&mut self, _: f64, in_flight: usize) -> bool {
        in_flight >= self.limit as usize
    }

    fn ended(&mut self, sample: Sample) {
        let round_trip = sample.round_trip();
        self.samples += 1;
        if self.jitter * 30.0 * self.limit <= self.samples as f64 {
            self.jitter = 0.5 + 0.5 * self.rng.uniform();
            self.samples = 0;
            self.least = round_trip;
            return;
        }
        if self.least == 0.0 || round_trip < self.least {
            self.least = round_trip;
            return;
        }
        let log = self.limit.log10().floor().max(1.0);
        let queue = (self.limit * (1.0 - self.least / round_trip)).ceil();
        let change = if sample.dropped {
            -log
        } else if (sample.in_flight * 2) as f64 >= self.limit {
            match queue {
                _ if queue <= log => 6.0 * log,
                _ if queue < 3.0 * log => log,
                _ if queue > 6.0 * log => -log,
                _ => 0.0,
            }
        } else {
            0.0
        };
        self.limit = (self.limit + change).clamp(1.0, 1000.0);
    }
}

/// `Gradient2Limit` within `WindowedLimit`: limits 20 to 200, windows of a second and at
/// least 10 samples, the mean of each against an average over 600.
#[derive(Debug)]
pub struct NetflixGradient2 {
    limit: f64,
    long: f64,
    windows: f64,
    next: f64,
    sum: f64,
    samples: usize,
    most: usize,
}

impl Default for NetflixGradient2 {
    fn default() -> Self {
        Self {
            limit: 20.0,
            long: 0.0,
            windows: 0.0,
            next: 1.0,
            sum: 0.0,
            samples: 0,
            most: 0,
        }
    }
}

impl Algorithm for NetflixGradient2 {
    fn refuses(&mut self, _: f64, in_flight: usize) -> bool {
        in_flight >= self.limit as usize
    }

    fn ended(&mut self, sample: Sample) {
        self.most = self.most.max(sample.in_flight);
        // A drop marks its window, which this algorithm does not look at; its time counts for nothing.
        if !sample.dropped {
            self.sum += sample.round_trip();
            self.samples += 1;
        }
        if sample.now < self.next {
            return;
        }
        self.next = sample.now + 1.0;
        let (sum, samples) = (
            std::mem::take(&mut self.sum),
            std::mem::take(&mut self.samples),
        );
        let most = std::mem::take(&mut self.most) as f64;
        if samples < 10 {
            return;
        }
        let short = sum / samples as f64;
        self.windows += 1.0;
        let weight = if self.windows <= 10.0 {
            1.0 / self.windows
        } else {
            2.0 / 601.0
        };
        self.long += (short - self.long) * weight;
        if self.long / short > 2.0 {
            self.long *= 0.95;
        }
        if most < self.limit / 2.0 {
            return;
        }
        let gradient = (1.5 * self.long / short).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + 4.0;
        self.limit = (self.limit * 0.8 + wanted * 0.2).clamp(20.0, 200.0);
    }
}
