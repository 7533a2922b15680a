//! The end of a wait.
//!
//! A timer for each request that waits would cost more than all else that happens to it: 400 ns of 800, most of them in
//! waking the timer's driver. One task for each runtime that requests wait on looks after all of them instead.
//!
//! # Invariants
//!
//! - A runtime is among `runtimes` before its task is spawned and until that task ends, however it ends: also when the
//!   runtime shuts down. Whoever begins to wait on a runtime that is not among them spawns its task.
//! - The task leaves `runtimes` only after it saw nobody wait, under the lock that whoever comes to wait takes next.
//! - Every task ends the waits of all: those of a runtime that nobody drives are ended by others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, Id};

use super::state::State;
use crate::base::clock;

/// Nobody waits longer than this beyond its time.
const TICK: Duration = Duration::from_millis(10);

/// So many ticks without anybody who waits and the task ends.
const PATIENCE: u32 = 100;

/// Where somebody looks after those who wait.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    runtimes: Mutex<Vec<Id>>,
}

impl Expiry {
    /// Makes sure that somebody does on this runtime, if this is one. Without one nobody's time is ever up by itself;
    /// all else goes on.
    pub(super) fn watch(state: &Arc<State>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let id = runtime.id();
        let mut runtimes = state.expiry.lock();
        if !runtimes.contains(&id) {
            runtimes.push(id);
            drop(runtimes);
            start(state, &runtime);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Id>> {
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cold]
fn start(state: &Arc<State>, runtime: &Handle) {
    // A runtime without time panics here. It stays among those that are looked after, or each who waits would find out.
    let timed = catch_unwind(AssertUnwindSafe(|| drop(tokio::time::sleep(TICK)))).is_ok();
    if timed {
        let here = Here {
            state: state.clone(),
            id: Some(runtime.id()),
        };
        runtime.spawn(look_after(here));
    }
}

/// Somebody looks after those who wait, here; until this is dropped.
struct Here {
    state: Arc<State>,
    /// `None` once it has taken its leave.
    id: Option<Id>,
}

impl Drop for Here {
    fn drop(&mut self) {
        if self.id.is_some() {
            self.state.expiry.lock().retain(|id| Some(*id) != self.id);
        }
    }
}

async fn look_after(mut here: Here) {
    let state = here.state.clone();
    let state = &*state;
    let tick = (state.queue.timeout / 4).clamp(Duration::from_millis(1), TICK);
    let mut quiet = 0;
    loop {
        tokio::time::sleep(tick).await;
        quiet = match state.gate.expire(clock::now(), state) {
            true => 0,
            false => quiet + 1,
        };
        if quiet < PATIENCE {
            continue;
        }
        let mut runtimes = state.expiry.lock();
        if !state.gate.with_queue(|queue| queue.waiting() > 0) {
            // Whoever comes to wait from now on takes this lock next and starts another.
            runtimes.retain(|id| Some(*id) != here.id);
            here.id = None;
            return;
        }
        quiet = 0;
    }
}
