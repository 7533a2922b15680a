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
    /// Whether it is `until` or later. If not, `cx` is woken then, if there is anybody to do so: a runtime, and one that has
    /// timers. Elsewhere whoever polls sees whether time is up.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, until: Option<Instant>) -> bool {
        let Some(until) = until else {
            self.0 = None;
            return false;
        };
        let Ok(here) = Handle::try_current() else {
            return until <= clock::now();
        };
        match &mut self.0 {
            // One of another runtime may have been shut down, and would panic.
            Some((runtime, sleep)) if *runtime == here.id() => {
                if sleep.deadline() != until {
                    sleep.as_mut().reset(until);
                }
            }
            other => *other = sleep(here.id(), until).map(|sleep| (here.id(), sleep)),
        }
        match &mut self.0 {
            Some((_, sleep)) => sleep.as_mut().poll(cx).is_ready(),
            None => until <= clock::now(),
        }
    }
}

fn sleep(here: Id, until: Instant) -> Option<Pin<Box<Sleep>>> {
    let timeless = || TIMELESS.lock().unwrap_or_else(PoisonError::into_inner);
    if *timeless() == Some(here) {
        return None;
    }
    // Nothing says whether a runtime has timers but the panic of one that has none.
    let sleep = catch_unwind(|| tokio::time::sleep_until(until)).ok();
    if sleep.is_none() {
        *timeless() = Some(here);
    }
    sleep.map(Box::pin)
}
