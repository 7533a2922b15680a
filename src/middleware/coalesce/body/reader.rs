//! One of those who read a body: takes what there is, else drives, else waits.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::fanout::{FanOut, Turn, Wakers};
use super::log::Key;
use crate::base::error::BoxError;
use crate::base::timer::Timer;

pub(super) struct Reader<B> {
    shared: Arc<FanOut<B>>,
    /// `None` when it has had its end.
    key: Option<Key>,
    /// While it waits for others to make room.
    timer: Timer,
}

// ===== impl Reader =====

impl<B> Reader<B> {
    pub(super) fn new(shared: Arc<FanOut<B>>, key: Key) -> Self {
        Self {
            shared,
            key: Some(key),
            timer: Timer::default(),
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
                    self.timer = Timer::default();
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Turn::Over(end) => {
                    self.timer = Timer::default();
                    return Poll::Ready(end.frame());
                }
                Turn::Drive(body) => polled = !self.shared.drive(body),
                Turn::Clone => wakers.clone_from(cx.waker()),
                Turn::Pause => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                // When the time has come, the next turn evicts.
                Turn::Wait(due) if self.timer.poll(cx, due) => {}
                Turn::Wait(_) => return Poll::Pending,
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
