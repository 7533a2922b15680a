use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::call::Call;
use crate::base::clock;
use crate::base::cost::{self, Toll};
use crate::base::outcome::{Code, Outcome};

pin_project! {
    /// The response future of [`Timing`](super::Timing).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
        toll: Toll,
    }
}

impl<F> ResponseFuture<F> {
    #[inline]
    pub(super) fn start(call: Call, toll: Toll, inner: impl FnOnce() -> F) -> Self {
        Self {
            inner: inner(),
            call: Some(call),
            toll,
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
        let _own = this.toll.own();
        let armed = OnUnwind(this.call);
        let polled = cost::inner(|| this.inner.poll(cx));
        std::mem::forget(armed);
        let result = ready!(polled);
        if let Some(call) = this.call.take() {
            let outcome = match &result {
                Ok(_) => Outcome::Success,
                Err(error) => Code::from_error(error).into(),
            };
            call.end(outcome, outcome == Outcome::Success, clock::now());
        }
        Poll::Ready(result)
    }
}

/// Ends a call in the unwinding that ends it: who catches the panic may keep the future for long. Forgotten otherwise.
struct OnUnwind<'a>(&'a mut Option<Call>);

impl Drop for OnUnwind<'_> {
    #[cold]
    fn drop(&mut self) {
        *self.0 = None;
    }
}
