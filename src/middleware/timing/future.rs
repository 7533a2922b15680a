use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::call::Call;
use crate::base::clock::{self, Moment};
use crate::base::outcome::{Code, Outcome};

pin_project! {
    /// The response future of [`Timing`](super::Timing).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        call: Guard,
    }
}

/// Ends its call as dropped unless it was ended before.
#[derive(Debug)]
struct Guard(Option<Call>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            let at = Moment::new();
            let outcome = call.dropped(&at);
            call.end(outcome, at.now());
        }
    }
}

impl<F> ResponseFuture<F> {
    #[inline]
    pub(super) fn start(call: Call, inner: impl FnOnce() -> F) -> Self {
        let call = Guard(Some(call));
        Self {
            inner: inner(),
            call,
        }
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: 'static,
{
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        if let Some(call) = this.call.0.take() {
            let outcome = match &result {
                Ok(_) => Outcome::Success,
                Err(error) => Code::from_error(error).into(),
            };
            call.end(outcome, clock::now());
        }
        Poll::Ready(result)
    }
}
