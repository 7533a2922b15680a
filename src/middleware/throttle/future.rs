use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::call::Call;
use super::pushback::Asked;
use crate::base::clock;
use crate::base::cost::{self, Toll};
use crate::base::error::{BoxError, Rejection};
use crate::base::outcome::Code;

pin_project! {
    /// The response future of [`Throttle`](super::Throttle) and [`HttpThrottle`](super::HttpThrottle): the call's, or
    /// a refusal.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        fate: Fate<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = FateProj]
    enum Fate<F> {
        Passed { #[pin] inner: F },
        Refused { rejection: Option<Rejection> },
    }
}

pin_project! {
    /// A future whose end is the answer of a backend.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Answered<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
        toll: Toll,
    }
}

pin_project! {
    /// A future whose error is boxed, so that its causes can be seen.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Boxed<F> {
        #[pin]
        inner: F,
    }
}

// ===== impl ResponseFuture =====

impl<F> ResponseFuture<F> {
    #[inline]
    pub(super) fn passed(inner: F) -> Self {
        Self {
            fate: Fate::Passed { inner },
        }
    }

    #[cold]
    pub(super) fn refused(rejection: Rejection) -> Self {
        Self {
            fate: Fate::Refused {
                rejection: Some(rejection),
            },
        }
    }
}

impl<F, T> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, BoxError>>,
{
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project().fate.project() {
            FateProj::Passed { inner } => inner.poll(cx),
            FateProj::Refused { rejection } => Poll::Ready(Err(rejection
                .take()
                .expect("a future is not polled after its end")
                .into())),
        }
    }
}

// ===== impl Answered =====

impl<F> Answered<F> {
    #[inline]
    pub(super) fn start(call: Call, toll: Toll, inner: impl FnOnce() -> F) -> Self {
        Self {
            inner: inner(),
            call: Some(call),
            toll,
        }
    }
}

impl<F, T, E> Future for Answered<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _own = this.toll.own();
        let armed = OnUnwind(this.call);
        let polled = cost::inner(|| this.inner.poll(cx)).map_err(Into::into);
        std::mem::forget(armed);
        let result = ready!(polled);
        if let Some(mut call) = this.call.take() {
            let (code, asked) = match &result {
                Ok(_) => (Code::Ok, Asked::default()),
                Err(error) => (Code::from_error(error), Asked::of_error(error)),
            };
            call.learn();
            call.end(code, asked, clock::now);
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

// ===== impl Boxed =====

impl<F> Boxed<F> {
    #[inline]
    pub(super) fn new(inner: F) -> Self {
        Self { inner }
    }
}

impl<F, T, E> Future for Boxed<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx).map_err(Into::into)
    }
}
