//! The end of a wait.
//!
//! A timer for each request that waits would cost more than all else that happens to it: 400 ns of 800, most of them in
//! waking the timer's driver. One task looks after all of them instead, while anybody waits.
//!
//! # Invariants
//!
//! - `running` is set before the task is spawned and cleared when it ends, however it ends: also when its runtime shuts
//!   down.
//! - Whoever begins to wait while it is clear spawns the task. The task clears it only after it saw nobody wait, and
//!   looks once more after that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio::runtime::Handle;

use super::state::State;
use crate::base::clock;

/// Nobody waits longer than this beyond its time.
const TICK: Duration = Duration::from_millis(10);

/// So many ticks without anybody who waits and the task ends.
const PATIENCE: u32 = 100;

/// Whether somebody looks after those who wait.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    running: AtomicBool,
}

impl Expiry {
    /// Makes sure that somebody does, if there is a runtime to do it on. Without one nobody's time is ever up; all else
    /// goes on.
    #[inline]
    pub(super) fn watch(state: &Arc<State>) {
        if !state.expiry.running.load(SeqCst) {
            Self::start(state);
        }
    }

    #[cold]
    fn start(state: &Arc<State>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if !state.expiry.running.swap(true, SeqCst) {
            let state = state.clone();
            runtime.spawn(look_after(Running { state, own: true }));
        }
    }
}

/// Clears the mark when the task ends, unless it is no longer its own.
struct Running {
    state: Arc<State>,
    own: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.own {
            self.state.expiry.running.store(false, SeqCst);
        }
    }
}

async fn look_after(mut running: Running) {
    let state = running.state.clone();
    let tick = (state.queue.timeout / 4).clamp(Duration::from_millis(1), TICK);
    let mut quiet = 0;
    loop {
        tokio::time::sleep(tick).await;
        quiet = match state.gate.expire(clock::now(), &*state) {
            true => 0,
            false => quiet + 1,
        };
        if quiet < PATIENCE {
            continue;
        }
        // Whoever comes to wait from now on starts another; whoever came before is seen here.
        state.expiry.running.store(false, SeqCst);
        let waits = state.gate.with_queue(|queue| queue.waiting() > 0);
        if !waits || state.expiry.running.swap(true, SeqCst) {
            // Another may be running by now.
            running.own = false;
            return;
        }
        quiet = 0;
    }
}
