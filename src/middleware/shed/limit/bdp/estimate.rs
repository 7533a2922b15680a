/// The least relative error an estimate claims, so that it never stops learning.
const LEAST_ERROR: f64 = 0.04;
/// How many standard errors a measurement is off before it replaces an estimate instead of refining it.
const JUMP: f64 = 2.5;
/// How many times its error a lower measurement has where it is not to be believed at once.
const WARY: f64 = 3.0;

/// A value and its relative standard error. An error of infinity: not known yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Estimate {
    pub(super) value: f64,
    error: f64,
}

// ===== impl Estimate =====

impl Estimate {
    pub(super) fn unknown() -> Self {
        Self {
            value: 0.0,
            error: f64::INFINITY,
        }
    }

    pub(super) fn new(value: f64, error: f64) -> Self {
        Self {
            value,
            error: error.max(LEAST_ERROR),
        }
    }

    pub(super) fn known(self) -> bool {
        self.error.is_finite()
    }

    pub(super) fn or(self, other: f64) -> f64 {
        if self.known() { self.value } else { other }
    }

    /// Moves towards a measurement as far as the two errors say.
    pub(super) fn refine(&mut self, value: f64, error: f64) {
        if !self.known() {
            *self = Self::new(value, error);
            return;
        }
        let (old, new) = (self.error.powi(2), error.powi(2));
        self.value += old / (old + new) * (value - self.value);
        self.error = (old * new / (old + new)).sqrt().max(LEAST_ERROR);
    }

    /// Whether a measurement is too far off to be the same thing.
    fn jumps(self, value: f64, error: f64) -> bool {
        self.known() && (value / self.value).ln().abs() > JUMP * self.error.hypot(error)
    }

    /// As [`update`](Self::update), but believes what is lower only slowly, unless it is too far off.
    pub(super) fn update_warily(&mut self, value: f64, error: f64) {
        let error = error.clamp(0.02, 0.5);
        if value < self.value && !self.jumps(value, error) {
            self.refine(value, WARY * error);
        } else {
            self.update(value, error);
        }
    }

    /// As [`refine`](Self::refine), but gives way to a measurement that is too far off; says whether it did.
    pub(super) fn update(&mut self, value: f64, error: f64) -> bool {
        let error = error.clamp(0.02, 0.5);
        let jump = self.jumps(value, error);
        if jump {
            *self = Self::new(value, error);
        } else {
            self.refine(value, error);
        }
        jump
    }
}
