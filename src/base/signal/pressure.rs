mod list;
mod machine;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use list::Pressures;

#[cfg(feature = "timing")]
use super::LatencySignal;
use super::{CpuSignal, Signal};
#[cfg(feature = "signal")]
use super::{SchedulerSignal, WakeupSignal};
use machine::Settings;

/// A [`Signal`] made comparable: a level from 0 (at `warn` or below) to 1 (at `critical` or above), and a
/// [`PressureState`] that does not flap.
///
/// The state rises by one step when the level reaches 0.5 (warning) or 0.9 (active), falls by one when the level is
/// below 0.4 or 0.8, and stays for at least the [`dwell`](Self::dwell) time before either. A signal that is silent for
/// [`stale_after`](Self::stale_after), speaks nonsense or panics is inactive at once: a broken sensor sheds nothing.
///
/// ```
/// use std::time::Duration;
/// use tower_flow::signal::{LagSignal, Pressure};
///
/// let lag = LagSignal::new("orders");
/// let pressure = Pressure::new(lag.clone())
///     .warn(1_000.0)
///     .critical(10_000.0)
///     .dwell(Duration::from_secs(2), Duration::from_secs(10))
///     .every(Duration::from_secs(1));
/// # let _ = pressure;
/// ```
#[derive(Debug, Clone)]
pub struct Pressure {
    signal: Arc<dyn Signal>,
    name: Arc<str>,
    warn: Option<f64>,
    critical: Option<f64>,
    up: Duration,
    down: Duration,
    every: Duration,
    stale_after: Option<Duration>,
}

/// How seriously a pressure is to be taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PressureState {
    /// Nothing is to be done.
    #[default]
    Inactive,
    /// What matters least is to be shed.
    Warning,
    /// All that can be done without is to be shed.
    Active,
}

/// What several pressures say together: the maximum of each.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Combined {
    /// The highest level, from 0 to 1, of those that are not inactive.
    pub pressure: f64,
    /// The highest state.
    pub state: PressureState,
}

/// What there is to know about one pressure.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq)]
pub struct PressureSnapshot {
    /// Its name, by default its signal's.
    pub name: Arc<str>,
    /// What the signal said last; `None` while it is silent or broken.
    pub value: Option<f64>,
    /// The level of that value, from 0 to 1, whatever the state.
    pub level: f64,
    /// The state.
    pub state: PressureState,
    /// How often the signal was sampled.
    pub samples: u64,
    /// How often it fell silent.
    pub stale: u64,
    /// How often it panicked, or said what is negative, infinite or no number.
    pub failures: u64,
}

// ===== impl Pressure =====

impl Pressure {
    /// A pressure of `signal`. Its [`warn`](Self::warn) and [`critical`](Self::critical) levels have no default.
    pub fn new(signal: impl Signal + 'static) -> Self {
        Self {
            name: signal.name().into(),
            signal: Arc::new(signal),
            warn: None,
            critical: None,
            up: Duration::from_secs(1),
            down: Duration::from_secs(5),
            every: Duration::from_millis(250),
            stale_after: None,
        }
    }

    /// A [`CpuSignal`] from 70 % to 95 %: warning from 82 %, active from 92 %.
    pub fn cpu() -> Self {
        Self::new(CpuSignal::new()).warn(0.7).critical(0.95)
    }

    /// A [`SchedulerSignal`] of this runtime from 80 % to 100 %: warning from 90 %, active from 98 %.
    ///
    /// # Panics
    ///
    /// When it is called outside a tokio runtime.
    #[cfg(feature = "signal")]
    pub fn scheduler() -> Self {
        Self::new(SchedulerSignal::new()).warn(0.8).critical(1.0)
    }

    /// A [`WakeupSignal`] of this runtime from 10 ms to 100 ms: warning from 55 ms, active from 91 ms.
    ///
    /// # Panics
    ///
    /// When it is called outside a tokio runtime.
    #[cfg(feature = "signal")]
    pub fn wakeup() -> Self {
        Self::new(WakeupSignal::new()).warn(0.010).critical(0.100)
    }

    /// A latency from `target` to twice that: warning from one and a half times the target, active from 1.9 times.
    ///
    /// # Panics
    ///
    /// When `target` is zero.
    #[cfg(feature = "timing")]
    pub fn latency(signal: LatencySignal, target: Duration) -> Self {
        assert!(!target.is_zero(), "no latency can be kept to {target:?}");
        let target = target.as_secs_f64();
        Self::new(signal).warn(target).critical(2.0 * target)
    }

    /// Another name than the signal's, to tell two signals of a kind apart.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Up to where there is no pressure, in the signal's unit (no default).
    ///
    /// # Panics
    ///
    /// When `level` is negative, infinite or no number.
    #[must_use]
    pub fn warn(mut self, level: f64) -> Self {
        self.warn = Some(checked("warn", level));
        self
    }

    /// From where on the pressure is full, in the signal's unit (no default). Must be above the warn level.
    ///
    /// # Panics
    ///
    /// When `level` is negative, infinite or no number.
    #[must_use]
    pub fn critical(mut self, level: f64) -> Self {
        self.critical = Some(checked("critical", level));
        self
    }

    /// How long a state stays at least before a higher one (default 1 s) and before a lower one (default 5 s).
    #[must_use]
    pub fn dwell(mut self, up: Duration, down: Duration) -> Self {
        (self.up, self.down) = (up, down);
        self
    }

    /// How often the signal is sampled at most (default each 250 ms).
    ///
    /// # Panics
    ///
    /// When `period` is shorter than a millisecond.
    #[must_use]
    pub fn every(mut self, period: Duration) -> Self {
        assert!(
            period >= Duration::from_millis(1),
            "a signal is sampled each millisecond or more rarely, not each {period:?}"
        );
        self.every = period;
        self
    }

    /// How long a silent signal keeps its state (default three periods of [`every`](Self::every)).
    #[must_use]
    pub fn stale_after(mut self, silence: Duration) -> Self {
        self.stale_after = Some(silence);
        self
    }

    /// # Panics
    ///
    /// When a level is missing, or they are the wrong way round.
    fn settings(&self) -> Settings {
        let name = &self.name;
        let (Some(warn), Some(critical)) = (self.warn, self.critical) else {
            let (warn, critical) = (self.warn, self.critical);
            panic!(
                "the pressure {name:?} needs both levels: warn is {warn:?}, critical {critical:?}"
            );
        };
        assert!(
            critical > warn,
            "the pressure {name:?} is critical at {critical}, which is not above warn at {warn}"
        );
        Settings {
            warn,
            critical,
            up: self.up,
            down: self.down,
            stale_after: self.silence(),
        }
    }

    fn silence(&self) -> Duration {
        self.stale_after
            .unwrap_or_else(|| self.every.saturating_mul(3))
    }
}

fn checked(which: &str, level: f64) -> f64 {
    assert!(
        level.is_finite() && level >= 0.0,
        "the {which} level {level} is not a number from 0 up"
    );
    level
}

// ===== impl PressureState =====

impl PressureState {
    /// The state as a word for labels: `inactive`, `warning`, `active`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Warning => "warning",
            Self::Active => "active",
        }
    }
}

impl fmt::Display for PressureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
