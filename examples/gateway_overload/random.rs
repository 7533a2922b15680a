//! Draws: when the next request arrives, and how long its work takes.

use std::time::Duration;

/// What a job takes on average, whatever its distribution.
pub(crate) const MEAN: Duration = Duration::from_millis(50);

/// splitmix64.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

/// How the time of a job is distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Exponential,
    /// Nine of ten take 20 ms and one takes 320 ms, each exponential about its mean: a coefficient of variation of 2.7.
    Bimodal,
}

// ===== impl Random =====

impl Random {
    /// Until the next of `rate` independent arrivals a second.
    pub(crate) fn gap(&mut self, rate: f64) -> Duration {
        self.exponential(1.0 / rate)
    }

    /// Whether something happens that has this chance.
    pub(crate) fn happens(&mut self, chance: f64) -> bool {
        self.draw() <= chance
    }

    fn exponential(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(-self.draw().ln() * mean)
    }

    /// Within (0, 1], so that its logarithm is finite.
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

// ===== impl Service =====

impl Service {
    pub(crate) fn time(self, random: &mut Random) -> Duration {
        match self {
            Self::Exponential => random.exponential(MEAN.as_secs_f64()),
            Self::Bimodal if random.happens(0.1) => random.exponential(0.32),
            Self::Bimodal => random.exponential(0.02),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exponential => "exponential",
            Self::Bimodal => "bimodal",
        }
    }
}
