//! A timer for those who may be polled in one runtime now, in another then, and in none at all.

use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::Context;

use tokio::runtime::{Handle, Id};
use tokio::time::Sleep;

use super::clock::{self, Instant};

/// Not set until it is polled.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<(Id, Pin<Box<Sleep>>)>);

/// The runtime without timers that was met last.
static TIMELESS: Mutex<Option<Id>> = Mutex::new(None);

impl Timer {
    /// Whether somebody will wake who polled it last.
    #[cfg(feature = "batch")]
    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it is `until` or later. If not, `cx` is woken then, if there is anybody to do so: a runtime, and one that has
    /// timers. Elsewhere whoever polls sees whether time is up.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, until: Option<Instant>) -> bool {
        let Some(until) = until else {
            self.0 = None;
            return false;
        };
        let Ok(here) = Handle::try_current() else {
            self.0 = None;
            return until <= clock::now();
        };
        match &mut self.0 {
            // One of another runtime may have been shut down, and would panic.
            Some((runtime, sleep)) if *runtime == here.id() => {
                if sleep.deadline() != until {
                    sleep.as_mut().reset(until);
                }
            }
            other => *other = sleep(until).map(|sleep| (here.id(), Box::pin(sleep))),
        }
        match &mut self.0 {
            Some((_, sleep)) => sleep.as_mut().poll(cx).is_ready(),
            None => until <= clock::now(),
        }
    }
}

/// Ends at `until`, if there is anybody to tell the time.
pub(crate) fn sleep(until: Instant) -> Option<Sleep> {
    let here = Handle::try_current().ok()?.id();
    let timeless = || TIMELESS.lock().unwrap_or_else(PoisonError::into_inner);
    if *timeless() == Some(here) {
        return None;
    }
    // Nothing says whether a runtime has timers but the panic of one that has none.
    let sleep = catch_unwind(|| tokio::time::sleep_until(until)).ok();
    if sleep.is_none() {
        *timeless() = Some(here);
    }
    sleep
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use tokio::runtime::Builder;
    use tokio_test::task::spawn;

    #[test]
    fn whoever_polls_tells_the_time_where_nothing_else_does() {
        let past = clock::now();
        let far = past + Duration::from_secs(3600);
        let mut waker = spawn(());
        let timer = waker.enter(|cx, _| {
            let mut timer = Timer::default();
            assert!(!timer.poll(cx, None) && !timer.poll(cx, Some(far)));
            assert!(timer.poll(cx, Some(past)));
            timer
        });
        let timeless = Builder::new_current_thread().build().unwrap();
        timeless.block_on(async {
            let mut timer = timer;
            waker.enter(|cx, _| {
                assert!(!timer.poll(cx, Some(far)));
                assert!(timer.poll(cx, Some(past)));
            });
        });
    }

    #[test]
    fn it_goes_from_runtime_to_runtime() {
        let runtime = || {
            let mut builder = Builder::new_current_thread();
            builder.enable_time().start_paused(true).build().unwrap()
        };
        let mut timer = Timer::default();
        let mut waker = spawn(());
        for _ in 0..2 {
            runtime().block_on(async {
                let until = clock::now() + Duration::from_secs(1);
                waker.enter(|cx, _| assert!(!timer.poll(cx, Some(until))));
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert!(waker.is_woken());
                waker.enter(|cx, _| assert!(timer.poll(cx, Some(until))));
            });
        }
    }
}
