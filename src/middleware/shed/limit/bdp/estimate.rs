/// The least relative error an estimate claims, so that it never stops learning.
const LEAST_ERROR: f64 = 0.04;
/// How many standard errors a measurement is off before it replaces an estimate instead of refining it.
const JUMP: f64 = 2.5;

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

    /// The same, but gives way to a measurement that is too far off; says whether it did.
    pub(super) fn update(&mut self, value: f64, error: f64) -> bool {
        let error = error.clamp(0.02, 0.5);
        let jump = self.known() && (value / self.value).ln().abs() > JUMP * self.error.hypot(error);
        if jump {
            *self = Self::new(value, error);
        } else {
            self.refine(value, error);
        }
        jump
    }
}
