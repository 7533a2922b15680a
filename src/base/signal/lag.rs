use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Signal;
use crate::base::clock::{self, Instant, nanos};

/// A number pushed from outside: how far a queue lags, how old its oldest entry is.
///
/// Clones push into the same signal. What was pushed last counts until it is older than [`max_age`](Self::max_age)
/// (default 30 s); after that the signal says nothing, so a pusher that dies presses nobody.
///
/// ```
/// use tower_flow::signal::{LagSignal, Signal};
///
/// let lag = LagSignal::new("orders");
/// let pusher = lag.clone();
/// pusher.push(1500.0);
/// pusher.push(f64::NAN);
/// assert_eq!((lag.sample(), lag.rejected()), (Some(1500.0), 1));
/// ```
///
/// # Cost
///
/// A push reads the clock and stores twice; it takes no lock.
#[derive(Debug, Clone)]
pub struct LagSignal {
    shared: Arc<Shared>,
    max_age: Duration,
}

/// # Invariants
///
/// `pushed` holds the nanoseconds since `epoch`, and [`NEVER`] before the first push. It is stored after `value`, so
/// whoever sees a time sees its value or a later one, never one before. Pushes that race may leave the value of one
/// with the time of the other; both are new then.
#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    epoch: Instant,
    value: AtomicU64,
    pushed: AtomicU64,
    rejected: AtomicU64,
}

const NEVER: u64 = u64::MAX;

// ===== impl LagSignal =====

impl LagSignal {
    /// A signal called `name` into which nothing was pushed yet.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                name: name.into(),
                epoch: clock::now(),
                value: AtomicU64::new(0),
                pushed: AtomicU64::new(NEVER),
                rejected: AtomicU64::new(0),
            }),
            max_age: Duration::from_secs(30),
        }
    }

    /// How long a pushed value counts (default 30 s), seen through this handle and its clones.
    ///
    /// # Panics
    ///
    /// When `max_age` is zero.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        assert!(
            !max_age.is_zero(),
            "a pushed value counts for longer than {max_age:?}"
        );
        self.max_age = max_age;
        self
    }

    /// Replaces the value. One that is negative, infinite or no number is left out and counted.
    pub fn push(&self, value: f64) {
        if !value.is_finite() || value < 0.0 {
            self.shared.rejected.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.shared.value.store(value.to_bits(), Ordering::Relaxed);
        let now = nanos(clock::now().saturating_duration_since(self.shared.epoch));
        // Pairs with the load in `age`: a time makes its value visible.
        self.shared.pushed.store(now, Ordering::Release);
    }

    /// How many pushes were left out.
    pub fn rejected(&self) -> u64 {
        self.shared.rejected.load(Ordering::Relaxed)
    }

    /// How long ago the value was pushed; `None` before the first push.
    pub fn age(&self) -> Option<Duration> {
        // Pairs with the store in `push`.
        let pushed = self.shared.pushed.load(Ordering::Acquire);
        let now = clock::now().saturating_duration_since(self.shared.epoch);
        (pushed != NEVER).then(|| now.saturating_sub(Duration::from_nanos(pushed)))
    }
}

impl Signal for LagSignal {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn sample(&self) -> Option<f64> {
        (self.age()? <= self.max_age)
            .then(|| f64::from_bits(self.shared.value.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_pushed_counts_until_it_is_too_old() {
        let lag = LagSignal::new("orders").max_age(Duration::from_secs(5));
        assert_eq!((lag.sample(), lag.age()), (None, None));
        lag.clone().push(42.0);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(
            (lag.sample(), lag.age()),
            (Some(42.0), Some(Duration::from_secs(5)))
        );
        tokio::time::advance(Duration::from_nanos(1)).await;
        assert_eq!(lag.sample(), None);
        lag.push(0.0);
        assert_eq!((lag.sample(), lag.name()), (Some(0.0), "orders"));
    }

    #[tokio::test(start_paused = true)]
    async fn nonsense_is_counted_and_changes_nothing() {
        let lag = LagSignal::new("orders");
        for nonsense in [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            -1.0,
            -f64::MIN_POSITIVE,
        ] {
            lag.push(nonsense);
            assert_eq!(lag.sample(), None);
        }
        lag.push(3.0);
        tokio::time::advance(Duration::from_secs(30)).await;
        lag.push(-3.0);
        assert_eq!((lag.sample(), lag.rejected()), (Some(3.0), 6));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(lag.sample(), None, "nonsense keeps nothing alive");
    }

    #[test]
    #[should_panic(expected = "longer than 0ns")]
    fn a_value_that_never_counts_is_refused() {
        let _ = LagSignal::new("orders").max_age(Duration::ZERO);
    }
}
