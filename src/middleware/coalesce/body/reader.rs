//! One of those who read a body: takes what there is, else drives, else waits.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::runtime::{Handle, Id};
use tokio::time::{Sleep, sleep_until};

use super::fanout::{FanOut, Turn, Wakers};
use super::log::Key;
use crate::base::clock::Instant;
use crate::base::error::BoxError;

pub(super) struct Reader<B> {
    shared: Arc<FanOut<B>>,
    /// `None` when it has had its end.
    key: Option<Key>,
    /// While it waits for others to make room.
    timer: Option<Timer>,
}

/// A timer of the runtime it was made in: another may be shut down by now, and would panic.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    runtime: Id,
}

// ===== impl Reader =====

impl<B> Reader<B> {
    pub(super) fn new(shared: Arc<FanOut<B>>, key: Key) -> Self {
        Self {
            shared,
            key: Some(key),
            timer: None,
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.key.as_ref().is_none_or(|key| self.shared.rest(key).0)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.key {
            Some(key) => self.shared.rest(key).1,
            None => SizeHint::with_exact(0),
        }
    }

    /// Waits until `due`, if there is a runtime that can tell the time.
    fn sleep(&mut self, due: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(due), Ok(runtime)) = (due, Handle::try_current()) else {
            self.timer = None;
            return Poll::Pending;
        };
        let runtime = runtime.id();
        let timer = match self.timer.take() {
            Some(mut timer) if timer.runtime == runtime => {
                if timer.sleep.deadline() != due {
                    timer.sleep.as_mut().reset(due);
                }
                timer
            }
            _ => Timer {
                sleep: Box::pin(sleep_until(due)),
                runtime,
            },
        };
        self.timer.insert(timer).sleep.as_mut().poll(cx)
    }
}

impl<B> Reader<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.key.is_none() {
            return Poll::Ready(None);
        }
        let mut polled = false;
        let mut wakers = Wakers::default();
        loop {
            match self
                .shared
                .turn(&mut self.key, cx.waker(), &mut wakers, polled)
            {
                Turn::Take(bytes) => {
                    self.timer = None;
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Turn::Over(end) => {
                    self.timer = None;
                    return Poll::Ready(end.frame());
                }
                Turn::Drive(body) => polled = !self.shared.drive(body),
                Turn::Clone => wakers.clone_from(cx.waker()),
                Turn::Pause => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                // When the time has come, the next turn evicts.
                Turn::Wait(due) => ready!(self.sleep(due, cx)),
            }
        }
    }
}

impl<B> Drop for Reader<B> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.shared.leave(key);
        }
    }
}
