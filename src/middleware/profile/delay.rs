//! How long a task waits between its wake-up and its poll.
//!
//! # Invariants
//!
//! - An alarm stands between a future and the waker of its task. It passes every wake-up on, and notes the time of the
//!   first one since the last poll.
//! - An alarm is used again only when nobody else holds it: a waker somebody kept of an earlier request wakes the task
//!   of that request, never another one's.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use crate::base::clock::{self, Instant, nanos};

/// How many alarms a thread keeps for later.
const SPARES: usize = 64;

/// Nobody has woken the task since its last poll; as a time it would be 584 years.
const ASLEEP: u64 = u64::MAX;

thread_local! {
    static SPARE: RefCell<Vec<Alarm>> = const { RefCell::new(Vec::new()) };
}

/// Notes when a future is woken. Dropped, it is put aside for the next.
#[derive(Debug)]
pub(super) struct Delay(Option<Alarm>);

#[derive(Debug)]
struct Alarm {
    bell: Arc<Bell>,
    /// The same bell, as what futures take.
    waker: Waker,
}

#[derive(Debug)]
struct Bell {
    epoch: Instant,
    /// Nanoseconds after `epoch`.
    woken: AtomicU64,
    task: Mutex<Option<Waker>>,
}

impl Delay {
    pub(super) fn new() -> Self {
        let spare = SPARE.try_with(|spares| spares.borrow_mut().pop());
        Self(Some(spare.ok().flatten().unwrap_or_else(Alarm::new)))
    }

    /// The delay since the wake-up this poll follows; `None` when nobody woke it, as before its first poll.
    pub(super) fn polled(&self, start: Instant) -> Option<Duration> {
        let bell = &self.0.as_ref()?.bell;
        // Acquire pairs with the Release of `ring`.
        let woken = bell.woken.swap(ASLEEP, Ordering::Acquire);
        let then = nanos(start.saturating_duration_since(bell.epoch));
        (woken != ASLEEP).then(|| Duration::from_nanos(then.saturating_sub(woken)))
    }

    /// Polls with a waker that notes when it is used.
    pub(super) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        let Some(alarm) = &self.0 else {
            return poll(cx);
        };
        alarm.bell.set(cx.waker());
        let polled = poll(&mut Context::from_waker(&alarm.waker));
        if !alarm.is_kept() {
            // Nobody can ring it any more, and a task that only its wakers keep has to go with the last of them.
            drop(alarm.bell.take());
        }
        polled
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        let Some(mut alarm) = self.0.take() else {
            return;
        };
        if !alarm.is_kept() {
            // Foreign code may run when it goes, so not within the borrow.
            drop(alarm.bell.take());
            alarm.bell.woken.store(ASLEEP, Ordering::Relaxed);
            let _too_many = SPARE.try_with(|spares| {
                let mut spares = spares.borrow_mut();
                if spares.len() < SPARES {
                    spares.push(alarm);
                    None
                } else {
                    Some(alarm)
                }
            });
        } else {
            drop(std::mem::replace(&mut alarm.waker, Waker::noop().clone()));
        }
    }
}

impl Alarm {
    fn new() -> Self {
        let bell = Arc::new(Bell {
            epoch: clock::now(),
            woken: AtomicU64::new(ASLEEP),
            task: Mutex::new(None),
        });
        Self {
            waker: Waker::from(bell.clone()),
            bell,
        }
    }

    /// Whether somebody has a waker of it, beside the bell's owner and the waker here. Once nobody has, nobody will
    /// until the next poll.
    fn is_kept(&self) -> bool {
        let kept = Arc::strong_count(&self.bell) > 2;
        // Pairs with the Release of the last one's drop: what it rang is seen.
        fence(Ordering::Acquire);
        kept
    }
}

impl Bell {
    fn set(&self, waker: &Waker) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if !task.as_ref().is_some_and(|task| task.will_wake(waker)) {
            let old = task.replace(waker.clone());
            drop(task);
            drop(old);
        }
    }

    /// Whom it wakes, no more.
    fn take(&self) -> Option<Waker> {
        self.task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn ring(&self) {
        let now = nanos(clock::now().saturating_duration_since(self.epoch));
        // Release pairs with the Acquire of `polled`. A later wake-up changes nothing: the task is due already.
        let _due_already =
            self.woken
                .compare_exchange(ASLEEP, now, Ordering::Release, Ordering::Relaxed);
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Outside the lock: an executor may poll right here.
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn waker_of(delay: &Delay) -> Waker {
        let mut cx = Context::from_waker(Waker::noop());
        delay.poll(&mut cx, |cx| cx.waker().clone())
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_the_first_wake_up_that_counts() {
        let delay = Delay::new();
        assert_eq!(delay.polled(clock::now()), None);
        let waker = waker_of(&delay);
        waker.wake_by_ref();
        tokio::time::advance(3 * MS).await;
        waker.wake_by_ref();
        tokio::time::advance(4 * MS).await;
        assert_eq!(delay.polled(clock::now()), Some(7 * MS));
        assert_eq!(delay.polled(clock::now()), None);
        waker.wake();
        assert_eq!(delay.polled(clock::now()), Some(Duration::ZERO));
    }

    #[tokio::test]
    async fn every_wake_up_is_passed_on() {
        let (count, cx) = futures_test_count();
        let delay = Delay::new();
        let mut cx = Context::from_waker(&cx);
        let waker = delay.poll(&mut cx, |cx| cx.waker().clone());
        for _ in 0..3 {
            waker.wake_by_ref();
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 3);
    }

    struct Count(AtomicU64);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn futures_test_count() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicU64::new(0)));
        (count.clone(), Waker::from(count))
    }

    #[test]
    fn a_waker_that_was_kept_never_wakes_the_next_request() {
        let delay = Delay::new();
        let bell = delay.0.as_ref().map(|alarm| Arc::as_ptr(&alarm.bell));
        let kept = waker_of(&delay);
        drop(delay);
        let next = Delay::new();
        assert_ne!(next.0.as_ref().map(|alarm| Arc::as_ptr(&alarm.bell)), bell);
        kept.wake();
        assert_eq!(next.polled(clock::now()), None);
    }

    #[test]
    fn one_nobody_kept_is_used_again() {
        let delay = Delay::new();
        let bell = delay.0.as_ref().map(|alarm| Arc::as_ptr(&alarm.bell));
        drop(waker_of(&delay));
        drop(delay);
        let next = Delay::new();
        assert_eq!(next.0.as_ref().map(|alarm| Arc::as_ptr(&alarm.bell)), bell);
    }
}
