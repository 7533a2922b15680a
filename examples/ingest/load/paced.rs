//! When items are due, and streams of them.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep_until};

use super::Shared;
use crate::proto::IngestRequest;

/// One of several that make the traffic together: every so manieth item is its own.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) shared: Arc<Shared>,
    slots: Slots,
    /// How many it has taken.
    taken: AtomicU64,
}

/// Which items of all are a lane's, and when they are due.
#[derive(Debug)]
pub(super) struct Slots {
    first: u64,
    step: u64,
    /// Items a second of all lanes; 0 when all are due at once.
    rate: f64,
    start: Instant,
    end: Instant,
}

/// The items of one call: as they come due, until there are enough or the first has waited long enough.
pub(super) struct Paced {
    lane: Arc<Lane>,
    sent: Arc<Mutex<Vec<Instant>>>,
    count: usize,
    /// When the call ends.
    until: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
    /// Dropped at the end.
    _ended: oneshot::Sender<()>,
}

// ===== impl Slots =====

impl Slots {
    pub(super) fn new(first: usize, step: usize, rate: f64, start: Instant, end: Instant) -> Self {
        let (first, step) = (first as u64, step as u64);
        Self {
            first,
            step,
            rate,
            start,
            end,
        }
    }

    /// The number of the lane's `n`th item, and when it is due; none behind the end.
    fn get(&self, n: u64, now: Instant) -> Option<(u64, Instant)> {
        let number = self.first + n * self.step;
        let due = match self.rate {
            0.0 => now,
            rate => self.start + Duration::from_secs_f64(number as f64 / rate),
        };
        (due < self.end).then_some((number, due))
    }
}

// ===== impl Lane =====

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, slots: Slots) -> Self {
        let taken = AtomicU64::new(0);
        Self {
            shared,
            slots,
            taken,
        }
    }

    /// Waits until the next item is due; false when there is none.
    pub(super) async fn wait(&self) -> bool {
        match self.slots.get(self.taken.load(Relaxed), Instant::now()) {
            Some((_, due)) => {
                sleep_until(due.into()).await;
                true
            }
            None => false,
        }
    }

    /// The next item, if it is due. One at a time takes.
    pub(super) fn take(&self) -> Option<(u64, Instant)> {
        let now = Instant::now();
        let (number, due) = self.slots.get(self.taken.load(Relaxed), now)?;
        (due <= now).then(|| {
            self.taken.fetch_add(1, Relaxed);
            (number, due)
        })
    }
}

// ===== impl Paced =====

impl Paced {
    pub(super) fn new(lane: Arc<Lane>) -> (Self, oneshot::Receiver<()>) {
        let (ended, end) = oneshot::channel();
        let paced = Self {
            lane,
            sent: Arc::default(),
            count: 0,
            until: None,
            sleep: Box::pin(sleep_until(tokio::time::Instant::now())),
            _ended: ended,
        };
        (paced, end)
    }

    /// When each item that was sent was due.
    pub(super) fn sent(&self) -> Arc<Mutex<Vec<Instant>>> {
        self.sent.clone()
    }
}

impl Stream for Paced {
    type Item = IngestRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<IngestRequest>> {
        let this = self.get_mut();
        let options = &this.lane.shared.options;
        loop {
            let now = Instant::now();
            let until = *this.until.get_or_insert(now + options.linger);
            let full = this.count >= options.per_call || (options.rate > 0.0 && now >= until);
            let Some((_, due)) = this.lane.slots.get(this.lane.taken.load(Relaxed), now) else {
                return Poll::Ready(None);
            };
            if full && this.count > 0 {
                return Poll::Ready(None);
            }
            if let Some((number, due)) = this.lane.take() {
                this.count += 1;
                this.sent
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(due);
                return Poll::Ready(Some(this.lane.shared.item(number)));
            }
            this.sleep.as_mut().reset(due.min(until).into());
            if this.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
