//! The one task that looks at the time for a pool: while there is something to wait for.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;

use super::shared::{Locked, Shared};
use crate::base::clock::{self, Instant};

/// Who keeps the time of a pool.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    /// Where it runs.
    runtime: Id,
    bell: Arc<Notify>,
}

impl Keeper {
    /// Looks at the time anew: something happened that may need an earlier alarm, or none.
    pub(super) fn ring(&self) {
        self.bell.notify_one();
    }
}

/// Sees to it that the core's next alarm is heard: by the keeper there is, or by a new one in the runtime this is called
/// from. The old one's runtime may have stopped running, of which nobody tells.
pub(super) fn ring<B: Send + 'static>(shared: &Arc<Shared<B>>) {
    let Some(runtime) = shared.runtime() else {
        return;
    };
    start(shared, &runtime);
}

/// Sees to it that whoever waits from here on is told when its time is over: a keeper of another runtime may stand still
/// with it, of which nobody tells.
pub(super) fn visit<B: Send + 'static>(shared: &Arc<Shared<B>>) {
    let Some(runtime) = shared.runtime() else {
        return;
    };
    let elsewhere = {
        let locked = shared.lock();
        let keeper = locked.keeper.as_ref();
        keeper.is_some_and(|keeper| keeper.runtime != runtime.id())
    };
    if elsewhere {
        start(shared, &runtime);
    }
}

fn start<B: Send + 'static>(shared: &Arc<Shared<B>>, runtime: &Handle) {
    let mut locked = shared.lock();
    if let Some(keeper) = &locked.keeper {
        keeper.ring();
        if keeper.runtime == runtime.id() {
            return;
        }
    }
    let keeper = Keeper {
        runtime: runtime.id(),
        bell: Arc::new(Notify::new()),
    };
    locked.keeper = Some(keeper.clone());
    drop(locked);
    let keeping = Keeping {
        shared: shared.clone(),
        keeper,
    };
    shared.spawn_on(runtime, keep(keeping));
}

async fn keep<B: Send + 'static>(keeping: Keeping<B>) {
    let Keeping { shared, keeper } = &keeping;
    loop {
        let alarm = {
            let mut locked = shared.lock();
            if !keeping.mine(&locked) {
                return;
            }
            locked.core.expire(clock::now());
            let alarm = locked.core.alarm().filter(|_| !locked.core.ended());
            if alarm.is_none() {
                locked.keeper = None;
                locked.core.disarm();
            }
            shared.carry_out(locked);
            alarm
        };
        let Some(alarm) = alarm else {
            return;
        };
        until(alarm, &keeper.bell).await;
    }
}

/// Until `alarm`, or until there may be an earlier one.
async fn until(alarm: Instant, bell: &Notify) {
    let mut sleep = pin!(tokio::time::sleep_until(alarm));
    let mut rung = pin!(bell.notified());
    poll_fn(|cx| {
        if rung.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        sleep.as_mut().poll(cx)
    })
    .await;
}

/// Dropped with its task.
struct Keeping<B: Send + 'static> {
    shared: Arc<Shared<B>>,
    keeper: Keeper,
}

impl<B: Send + 'static> Keeping<B> {
    fn mine(&self, locked: &Locked<B>) -> bool {
        let keeper = locked.keeper.as_ref();
        keeper.is_some_and(|keeper| Arc::ptr_eq(&keeper.bell, &self.keeper.bell))
    }
}

/// Before its time, when its runtime shuts down: another runtime that used the pool gets a keeper, if there is one.
impl<B: Send + 'static> Drop for Keeping<B> {
    fn drop(&mut self) {
        let mut locked = self.shared.lock();
        if !self.mine(&locked) {
            return;
        }
        locked.keeper = None;
        locked.core.disarm();
        let needed = !locked.core.ended();
        drop(locked);
        let other = self.shared.last_runtime();
        if let Some(other) = other.filter(|other| needed && other.id() != self.keeper.runtime) {
            start(&self.shared, &other);
        }
    }
}
