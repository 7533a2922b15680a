use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use crate::base::clock;
use crate::base::deadline::Deadline;
use crate::base::timer::Timer;

/// A batch on its way to a backend: the response future of [`HttpBatch`](super::HttpBatch) and of the gRPC forms.
///
/// One box, one allocation for each batch. When it is dropped the call is, with whatever it holds.
#[must_use = "futures do nothing unless polled"]
pub struct Sending<R, E>(Pin<Box<dyn Future<Output = Result<R, E>> + Send>>);

/// Whether nobody waits any more: then nothing need be sent.
pub(super) fn is_late(deadline: Option<Deadline>) -> bool {
    deadline.is_some_and(|deadline| deadline.passed(clock::now()))
}

/// Does `work` for as long as anybody waits for it; `None` once nobody does.
pub(super) async fn in_time<F: Future>(deadline: Option<Deadline>, work: F) -> Option<F::Output> {
    let (mut work, mut timer) = (pin!(work), Timer::default());
    let until = deadline.map(Deadline::moment);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Pending if timer.poll(cx, until) => Poll::Ready(None),
        done => done.map(Some),
    })
    .await
}

// ===== impl Sending =====

impl<R: Send + 'static, E: Send + 'static> Sending<R, E> {
    pub(super) fn new(work: impl Future<Output = Result<R, E>> + Send + 'static) -> Self {
        Self(Box::pin(work))
    }

    pub(super) fn failed(error: E) -> Self {
        Self::new(ready(Err(error)))
    }
}

impl<R, E> Future for Sending<R, E> {
    type Output = Result<R, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R, E>> {
        self.0.as_mut().poll(cx)
    }
}

impl<R, E> fmt::Debug for Sending<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").finish_non_exhaustive()
    }
}
