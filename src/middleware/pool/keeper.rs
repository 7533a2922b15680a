//! The one task that looks at the time for a pool: while there is something to wait for.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use super::shared::Shared;
use crate::base::clock::{self, Instant};

/// Sees to it that the core's next alarm is heard.
pub(super) fn ring<B: Send + 'static>(shared: &Arc<Shared<B>>) {
    let already = std::mem::replace(&mut shared.lock().keeping, true);
    if already {
        shared.keeper.notify_one();
        return;
    }
    let keeping = Keeping {
        shared: shared.clone(),
        done: false,
    };
    shared.spawn(keep(keeping));
}

async fn keep<B: Send + 'static>(mut keeping: Keeping<B>) {
    let shared = keeping.shared.clone();
    loop {
        let alarm = {
            let mut locked = shared.lock();
            locked.core.expire(clock::now());
            let alarm = locked.core.alarm().filter(|_| !locked.core.ended());
            if alarm.is_none() {
                keeping.done = true;
                locked.keeping = false;
                locked.core.disarm();
            }
            shared.carry_out(locked);
            alarm
        };
        let Some(alarm) = alarm else {
            return;
        };
        until(alarm, &shared).await;
    }
}

/// Until `alarm`, or until there may be an earlier one.
async fn until<B>(alarm: Instant, shared: &Shared<B>) {
    let mut sleep = pin!(tokio::time::sleep_until(alarm));
    let mut rung = pin!(shared.keeper.notified());
    poll_fn(|cx| {
        if rung.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        sleep.as_mut().poll(cx)
    })
    .await;
}

/// Dropped with its task. When that is before it is done, since its runtime shut down, the next alarm gets another.
struct Keeping<B: Send + 'static> {
    shared: Arc<Shared<B>>,
    done: bool,
}

impl<B: Send + 'static> Drop for Keeping<B> {
    fn drop(&mut self) {
        if !self.done {
            let mut locked = self.shared.lock();
            locked.keeping = false;
            locked.core.disarm();
        }
    }
}
