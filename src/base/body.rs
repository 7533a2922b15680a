//! One request followed from its call to its true end.
//!
//! [`Observe`] is what a layer writes: what to note when headers come, when data passes and when it is over.
//! [`ObservedFuture`] and [`ObservedBody`] are the one future and the one body wrapper that drive it; they make sure
//! that [`Observe::end`] is called exactly once, whatever happens first:
//!
//! - the inner future fails, or is dropped before its response;
//! - the response has no body, or a body that is already at its end (gRPC's trailers-only);
//! - the body yields trailers, an error or `None`, or says after a data frame that nothing follows;
//! - the body is dropped (hyper never polls a body again after trailers or its last data frame).
//!
//! # Invariants
//!
//! `observer` is `Some` until the end and `None` for ever after; `end` takes it by value, so a second end cannot be
//! written. Frames, `is_end_stream` and `size_hint` are the inner body's, untouched: a body that was at its end stays
//! a single `HEADERS` frame, and a body of known length keeps its `Content-Length`.
//!
//! ```
//! use std::fmt::Display;
//! use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
//! use tower_flow::body::{End, Observe, ObservedBody};
//! use tower_flow::clock::Moment;
//! use http_body_util::{BodyExt, Full};
//!
//! struct Bytes(Arc<AtomicU64>);
//!
//! impl Observe for Bytes {
//!     fn data<D: bytes::Buf>(&mut self, data: &D, _: &Moment) {
//!         self.0.fetch_add(data.remaining() as u64, Ordering::Relaxed);
//!     }
//!     fn end<E: Display + 'static>(self, end: End<'_, E>, _: &Moment) {
//!         assert!(matches!(end, End::Complete));
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let seen = Arc::new(AtomicU64::new(0));
//! let body = ObservedBody::observed(Full::<bytes::Bytes>::from("hello"), Bytes(seen.clone()));
//! assert_eq!(body.collect().await?.to_bytes(), "hello");
//! assert_eq!(seen.load(Ordering::Relaxed), 5);
//! # Ok(()) }
//! ```

mod observe;

use std::convert::Infallible;
use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::clock::Moment;

pub use observe::{End, Observe};

pin_project! {
    /// The response future of a layer that follows its requests to their end.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ObservedFuture<F, O: Observe> {
        #[pin]
        inner: F,
        observer: Guard<O>,
    }
}

pin_project! {
    /// A body that reports its end exactly once and is otherwise the inner body.
    #[derive(Debug)]
    pub struct ObservedBody<B: Body, O: Observe> {
        #[pin]
        inner: B,
        observer: Guard<O>,
    }

    impl<B: Body, O: Observe> PinnedDrop for ObservedBody<B, O> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // A panic in the consumer is no time to ask the inner body anything; the guard sees to the rest.
            if this.observer.0.is_some() && !std::thread::panicking() && this.inner.is_end_stream()
                && let Some(observer) = this.observer.0.take() {
                    observer.end(End::<Infallible>::Complete, &Moment::new());
                }
        }
    }
}

/// Holds an observer until its end; dropped with it, it is the end.
#[derive(Debug)]
pub(crate) struct Guard<O: Observe>(Option<O>);

impl<O: Observe> Guard<O> {
    #[inline]
    pub(crate) fn new(observer: O) -> Self {
        Self(Some(observer))
    }

    /// The observer, for somebody else to end.
    #[inline]
    pub(crate) fn disarm(mut self) -> Option<O> {
        self.0.take()
    }
}

/// Ends an observer in the unwinding that ends it: who catches the panic may keep the future or body for long.
struct OnUnwind<'a, O: Observe>(&'a mut Guard<O>);

impl<'a, O: Observe> OnUnwind<'a, O> {
    /// Runs `foreign` code; nothing is left of this when it returns.
    #[inline]
    fn run<T>(observer: &'a mut Guard<O>, foreign: impl FnOnce() -> T) -> T {
        let armed = OnUnwind(observer);
        let result = foreign();
        std::mem::forget(armed);
        result
    }
}

impl<O: Observe> Drop for OnUnwind<'_, O> {
    #[cold]
    fn drop(&mut self) {
        if let Some(observer) = self.0.0.take() {
            observer.end(End::<Infallible>::Dropped, &Moment::new());
        }
    }
}

impl<O: Observe> Drop for Guard<O> {
    #[inline]
    fn drop(&mut self) {
        if let Some(observer) = self.0.take() {
            observer.end(End::<Infallible>::Dropped, &Moment::new());
        }
    }
}

// ===== impl ObservedFuture =====

impl<F, O: Observe> ObservedFuture<F, O> {
    /// Follows `inner` with `observer`.
    #[inline]
    pub fn observed(inner: F, observer: O) -> Self {
        Self {
            inner,
            observer: Guard::new(observer),
        }
    }

    /// Follows the future that `inner` makes. When making it panics, `observer` sees a drop.
    #[inline]
    pub fn start(observer: O, inner: impl FnOnce() -> F) -> Self {
        let observer = Guard::new(observer);
        Self {
            inner: inner(),
            observer,
        }
    }

    /// Passes `inner` through.
    pub fn passed(inner: F) -> Self {
        Self {
            inner,
            observer: Guard(None),
        }
    }
}

impl<F, B, E, O> Future for ObservedFuture<F, O>
where
    F: Future<Output = Result<http::Response<B>, E>>,
    B: Body,
    E: Display + 'static,
    O: Observe,
{
    type Output = Result<http::Response<ObservedBody<B, O>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let inner = this.inner;
        let result = ready!(OnUnwind::run(this.observer, || inner.poll(cx)));
        // In a guard of its own while foreign code looks at the response.
        let mut observer = std::mem::replace(this.observer, Guard(None));
        Poll::Ready(match result {
            Ok(response) => {
                let at = Moment::new();
                let over = match &mut observer.0 {
                    Some(observer) => {
                        observer.head(&response, &at);
                        observer.bodiless() || response.body().is_end_stream()
                    }
                    None => false,
                };
                if over && let Some(observer) = observer.0.take() {
                    observer.end(End::<Infallible>::Complete, &at);
                }
                Ok(response.map(|inner| ObservedBody { inner, observer }))
            }
            Err(error) => {
                if let Some(observer) = observer.0.take() {
                    observer.end(End::Error(&error), &Moment::new());
                }
                Err(error)
            }
        })
    }
}

// ===== impl ObservedBody =====

impl<B: Body, O: Observe> ObservedBody<B, O> {
    /// Follows `inner` with `observer`. Works for request bodies as well.
    #[inline]
    pub fn observed(inner: B, observer: O) -> Self {
        Self {
            inner,
            observer: Guard::new(observer),
        }
    }

    /// Passes `inner` through.
    pub fn passed(inner: B) -> Self {
        Self {
            inner,
            observer: Guard(None),
        }
    }

    /// The wrapped body.
    pub fn get_ref(&self) -> &B {
        &self.inner
    }
}

impl<B, O> Body for ObservedBody<B, O>
where
    B: Body,
    B::Error: Display + 'static,
    O: Observe,
{
    type Data = B::Data;
    type Error = B::Error;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let Some(observer) = &mut this.observer.0 else {
            return this.inner.poll_frame(cx);
        };
        observer.asked(&Moment::new());
        let inner = this.inner.as_mut();
        let polled = OnUnwind::run(this.observer, || inner.poll_frame(cx));
        let at = Moment::new();
        let Some(observer) = &mut this.observer.0 else {
            return polled;
        };
        let end = match &polled {
            Poll::Pending => {
                observer.pending(&at);
                return polled;
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    End::Trailers(trailers)
                } else {
                    if let Some(data) = frame.data_ref() {
                        observer.data(data, &at);
                    }
                    if !this.inner.is_end_stream() {
                        return polled;
                    }
                    End::Complete
                }
            }
            Poll::Ready(Some(Err(error))) => End::Error(error),
            Poll::Ready(None) => End::Complete,
        };
        if let Some(observer) = this.observer.0.take() {
            observer.end(end, &at);
        }
        polled
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Body + Default, O: Observe> Default for ObservedBody<B, O> {
    fn default() -> Self {
        Self::passed(B::default())
    }
}

#[cfg(test)]
mod tests;
