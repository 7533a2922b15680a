use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use super::Signal;
use crate::base::clock::{self, Instant};

/// How often the probe wakes.
const PERIOD: Duration = Duration::from_millis(10);

/// How long a delay is remembered: this long, and up to twice as long.
const WINDOW: Duration = Duration::from_millis(500);

/// How late tasks of a tokio runtime wake up, in seconds: the longest delay of the last half to whole second.
///
/// A probe sleeps for 10 ms and notes by how much it overslept. It sees what no counter shows: polls that block, more
/// ready tasks than the workers can run, threads the machine has no core for. While the probe is late the delay so far
/// counts, so a runtime that is stuck altogether is seen as well. Tokio's timer works in milliseconds: an idle runtime
/// reads 1 to 2 ms.
///
/// Nothing is said before the probe has woken once, or after the runtime has shut down.
///
/// **The signal spawns one task** that runs until the signal is dropped.
///
/// ```
/// use std::time::Duration;
/// use tower_flow::signal::{Signal, WakeupSignal};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let wakeup = WakeupSignal::new();
/// tokio::time::sleep(Duration::from_millis(20)).await;
/// assert!(wakeup.sample().is_some_and(|delay| delay < 0.002));
/// // As if something had blocked for 80 ms.
/// tokio::time::advance(Duration::from_millis(80)).await;
/// assert!(wakeup.sample().is_some_and(|delay| delay >= 0.07));
/// # }
/// ```
///
/// # Cost
///
/// A hundred wake-ups a second for the whole runtime, each a timer, a reading of the clock and a lock hardly anybody
/// else wants: about 0.2 % of a core on a small virtual machine that is otherwise idle.
#[derive(Debug)]
pub struct WakeupSignal(Arc<Mutex<Probe>>);

/// What the probe has seen. It lives in the signal; the task has only a weak hand on it.
#[derive(Debug)]
struct Probe {
    /// When the task should wake next; `None` when there is no task any more.
    due: Option<Instant>,
    /// Whether it ever did.
    woken: bool,
    peak: Peak,
}

/// The maximum of the last window or two.
#[derive(Debug)]
struct Peak {
    since: Instant,
    current: Duration,
    previous: Duration,
}

/// Notes that the task has ended, however that came.
struct End(Weak<Mutex<Probe>>);

// ===== impl WakeupSignal =====

impl WakeupSignal {
    /// The signal of the runtime this is called in, called `wakeup`.
    ///
    /// # Panics
    ///
    /// When it is called outside a tokio runtime.
    pub fn new() -> Self {
        Self::of(&Handle::current())
    }

    /// The signal of another runtime. See [`Pressure::named`](super::Pressure::named) to tell two apart.
    ///
    /// The runtime needs a timer; without one the signal says nothing.
    pub fn of(runtime: &Handle) -> Self {
        let now = clock::now();
        let probe = Arc::new(Mutex::new(Probe {
            due: Some(now + PERIOD),
            woken: false,
            peak: Peak::new(now),
        }));
        let end = End(Arc::downgrade(&probe));
        runtime.spawn(async move {
            let mut due = now + PERIOD;
            loop {
                tokio::time::sleep_until(due).await;
                let Some(probe) = end.0.upgrade() else { break };
                due = lock(&probe).woke(clock::now());
            }
        });
        Self(probe)
    }

    /// The longest delay of the last half to whole second.
    pub fn delay(&self) -> Option<Duration> {
        // Within the lock: the probe must not put its next time behind a now that is older.
        let mut probe = lock(&self.0);
        let now = clock::now();
        probe.delay(now)
    }
}

impl Default for WakeupSignal {
    fn default() -> Self {
        Self::new()
    }
}

impl Signal for WakeupSignal {
    fn name(&self) -> &str {
        "wakeup"
    }

    fn sample(&self) -> Option<f64> {
        self.delay().map(|delay| delay.as_secs_f64())
    }
}

fn lock(probe: &Mutex<Probe>) -> std::sync::MutexGuard<'_, Probe> {
    probe.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(probe) = self.0.upgrade() {
            lock(&probe).due = None;
        }
    }
}

// ===== impl Probe =====

impl Probe {
    /// The task woke; the answer is when it should wake next.
    fn woke(&mut self, now: Instant) -> Instant {
        if let Some(due) = self.due {
            self.peak.record(now, now.saturating_duration_since(due));
        }
        let next = now + PERIOD;
        self.due = Some(next);
        self.woken = true;
        next
    }

    fn delay(&mut self, now: Instant) -> Option<Duration> {
        let late = now.saturating_duration_since(self.due?);
        self.woken.then(|| self.peak.get(now).max(late))
    }
}

// ===== impl Peak =====

impl Peak {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            current: Duration::ZERO,
            previous: Duration::ZERO,
        }
    }

    fn record(&mut self, now: Instant, delay: Duration) {
        self.turn(now);
        self.current = self.current.max(delay);
    }

    fn get(&mut self, now: Instant) -> Duration {
        self.turn(now);
        self.current.max(self.previous)
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < WINDOW {
            return;
        }
        self.previous = if age < 2 * WINDOW {
            self.current
        } else {
            Duration::ZERO
        };
        self.current = Duration::ZERO;
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_delay_is_seen_remembered_and_forgotten() {
        let wakeup = WakeupSignal::new();
        assert_eq!((wakeup.sample(), wakeup.name()), (None, "wakeup"));
        tokio::time::sleep(25 * MS).await;
        assert!(wakeup.delay().unwrap() < 2 * MS);
        tokio::time::advance(100 * MS).await;
        tokio::time::sleep(400 * MS).await;
        let delay = wakeup.delay().unwrap();
        assert!((90 * MS..=102 * MS).contains(&delay), "{delay:?}");
        tokio::time::sleep(1000 * MS).await;
        assert!(wakeup.delay().unwrap() < 2 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_is_stuck_is_seen_while_it_is() {
        let wakeup = WakeupSignal::new();
        tokio::time::sleep(25 * MS).await;
        // Nothing else runs before the next await.
        let mut probe = lock(&wakeup.0);
        let now = clock::now() + Duration::from_secs(7);
        let delay = probe.delay(now).unwrap();
        assert!(delay > Duration::from_millis(6980), "{delay:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_probe_ends_with_the_signal() {
        let alive = || Handle::current().metrics().num_alive_tasks();
        let before = alive();
        let wakeup = WakeupSignal::new();
        assert_eq!(alive(), before + 1);
        drop(wakeup);
        tokio::time::sleep(25 * MS).await;
        assert_eq!(alive(), before);
    }

    #[test]
    fn a_runtime_that_is_gone_or_has_no_timer_says_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let wakeup = WakeupSignal::of(runtime.handle());
        runtime.block_on(async { tokio::time::sleep(25 * MS).await });
        // The clock of the test is paused in the runtime only.
        assert!(runtime.block_on(async { wakeup.sample() }).is_some());
        drop(runtime);
        assert_eq!(wakeup.sample(), None);

        let timeless = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let wakeup = WakeupSignal::of(timeless.handle());
        timeless.block_on(tokio::task::yield_now());
        assert_eq!(wakeup.sample(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peak_lives_for_one_window_to_two() {
        let start = clock::now();
        let mut peak = Peak::new(start);
        peak.record(start + 499 * MS, 7 * MS);
        peak.record(start + 500 * MS, 3 * MS);
        assert_eq!(peak.get(start + 999 * MS), 7 * MS);
        assert_eq!(peak.get(start + 1000 * MS), 3 * MS);
        assert_eq!(peak.get(start + 2000 * MS), Duration::ZERO);
    }
}
