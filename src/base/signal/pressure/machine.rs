//! From values to a level and a state: plain data, the time is an argument.
//!
//! # Transitions
//!
//! ```text
//!             level ≥ 0.5            level ≥ 0.9
//!           ┌─────────────▶         ┌────────────▶
//!  Inactive                Warning                 Active      one step for a sample, after `up` or `down` in a state
//!           ◀─────────────┘         ◀────────────┘
//!             level < 0.4            level < 0.8
//!     ◀─────────────────────────────────────────────           silent for `stale_after`, or failed: at once
//! ```
//!
//! Rising again after a failure waits for `up` like any other rise, so a signal that fails now and then cannot flap
//! faster than one that wavers.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::PressureState;
use crate::base::clock::Instant;

const ENTER_WARNING: f64 = 0.5;
const ENTER_ACTIVE: f64 = 0.9;
const LEAVE_ACTIVE: f64 = 0.8;
const LEAVE_WARNING: f64 = 0.4;

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) warn: f64,
    pub(super) critical: f64,
    pub(super) up: Duration,
    pub(super) down: Duration,
    pub(super) stale_after: Duration,
}

#[derive(Debug)]
pub(super) struct Machine {
    settings: Settings,
    pub(super) state: PressureState,
    /// When the state was entered; `None` before the first change.
    since: Option<Instant>,
    /// When the signal spoke last, or was first asked.
    heard: Option<Instant>,
    silent: bool,
    pub(super) value: Option<f64>,
    pub(super) level: f64,
    pub(super) samples: u64,
    pub(super) stale: u64,
    pub(super) failures: u64,
}

impl Machine {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: PressureState::Inactive,
            since: None,
            heard: None,
            silent: false,
            value: None,
            level: 0.0,
            samples: 0,
            stale: 0,
            failures: 0,
        }
    }

    /// What the signal said at `now`. A value below zero is no value: none of the units has one.
    pub(super) fn observe(&mut self, now: Instant, sample: Option<f64>) -> PressureState {
        match sample {
            Some(value) if value.is_finite() && value >= 0.0 => {
                self.samples += 1;
                self.heard = Some(now);
                self.silent = false;
                self.value = Some(value);
                self.level = self.settings.level(value);
                self.step(now);
                self.state
            }
            Some(_) => self.fail(now),
            None => {
                self.samples += 1;
                self.hush(now);
                self.state
            }
        }
    }

    /// The signal could not be asked.
    pub(super) fn fail(&mut self, now: Instant) -> PressureState {
        self.samples += 1;
        self.failures += 1;
        self.open(now);
        self.state
    }

    /// The level that counts.
    pub(super) fn pressure(&self) -> f64 {
        match self.state {
            PressureState::Inactive => 0.0,
            PressureState::Warning | PressureState::Active => self.level,
        }
    }

    fn hush(&mut self, now: Instant) {
        let heard = *self.heard.get_or_insert(now);
        let silence = now.saturating_duration_since(heard);
        if silence >= self.settings.stale_after && !self.silent {
            self.silent = true;
            self.stale += 1;
            self.open(now);
        }
    }

    fn open(&mut self, now: Instant) {
        self.value = None;
        self.level = 0.0;
        self.enter(now, PressureState::Inactive);
    }

    fn step(&mut self, now: Instant) {
        use PressureState::{Active, Inactive, Warning};
        let Settings { up, down, .. } = self.settings;
        let (next, dwell) = match self.state {
            Inactive if self.level >= ENTER_WARNING => (Warning, up),
            Warning if self.level >= ENTER_ACTIVE => (Active, up),
            Warning if self.level < LEAVE_WARNING => (Inactive, down),
            Active if self.level < LEAVE_ACTIVE => (Warning, down),
            _ => return,
        };
        let long_enough = |since| now.saturating_duration_since(since) >= dwell;
        if self.since.is_none_or(long_enough) {
            self.enter(now, next);
        }
    }

    fn enter(&mut self, now: Instant, state: PressureState) {
        if self.state != state {
            self.state = state;
            self.since = Some(now);
        }
    }
}

impl Settings {
    fn level(&self, value: f64) -> f64 {
        ((value - self.warn) / (self.critical - self.warn)).clamp(0.0, 1.0)
    }
}
