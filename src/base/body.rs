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

use std::convert::Infallible;
use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::clock::Moment;

/// What a layer notes about one request. All methods but [`end`](Self::end) have empty bodies to start from.
pub trait Observe: Sized {
    /// The response's headers are there.
    fn head<B>(&mut self, response: &http::Response<B>, at: &Moment) {
        let _ = (response, at);
    }

    /// Whether nobody will read the response's body, whatever it says: the answer to a `HEAD` request.
    fn bodiless(&self) -> bool {
        false
    }

    /// The consumer asks for the next frame. Called before the inner body is polled.
    fn asked(&mut self, at: &Moment) {
        let _ = at;
    }

    /// The inner body has no frame yet.
    fn pending(&mut self, at: &Moment) {
        let _ = at;
    }

    /// A data frame passes.
    fn data<D: Buf>(&mut self, data: &D, at: &Moment) {
        let _ = (data, at);
    }

    /// It is over, in this way. Called exactly once.
    fn end<E: Display + 'static>(self, end: End<'_, E>, at: &Moment);
}

/// How a request, or one direction of it, came to its end.
#[derive(Debug)]
pub enum End<'a, E> {
    /// The body ended cleanly, or there was none.
    Complete,
    /// The body ended with trailers.
    Trailers(&'a HeaderMap),
    /// The service or the body failed.
    Error(&'a E),
    /// Somebody lost interest: the future or the body was dropped before its end. Also how a panic looks from here;
    /// [`std::thread::panicking`] tells them apart.
    Dropped,
}

impl<E> Clone for End<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for End<'_, E> {}

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

impl<O: Observe> Drop for OnUnwind<'_, O> {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(observer) = self.0.0.take()
        {
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

// ===== impl Observe =====

/// Notes nothing.
impl Observe for () {
    fn end<E: Display + 'static>(self, _: End<'_, E>, _: &Moment) {}
}

/// May note something.
impl<O: Observe> Observe for Option<O> {
    #[inline]
    fn head<B>(&mut self, response: &http::Response<B>, at: &Moment) {
        if let Some(observer) = self {
            observer.head(response, at);
        }
    }

    #[inline]
    fn bodiless(&self) -> bool {
        self.as_ref().is_some_and(O::bodiless)
    }

    #[inline]
    fn asked(&mut self, at: &Moment) {
        if let Some(observer) = self {
            observer.asked(at);
        }
    }

    #[inline]
    fn pending(&mut self, at: &Moment) {
        if let Some(observer) = self {
            observer.pending(at);
        }
    }

    #[inline]
    fn data<D: Buf>(&mut self, data: &D, at: &Moment) {
        if let Some(observer) = self {
            observer.data(data, at);
        }
    }

    #[inline]
    fn end<E: Display + 'static>(self, end: End<'_, E>, at: &Moment) {
        if let Some(observer) = self {
            observer.end(end, at);
        }
    }
}

/// Two that note the same events at the same moments.
impl<A: Observe, B: Observe> Observe for (A, B) {
    #[inline]
    fn head<T>(&mut self, response: &http::Response<T>, at: &Moment) {
        self.0.head(response, at);
        self.1.head(response, at);
    }

    #[inline]
    fn bodiless(&self) -> bool {
        self.0.bodiless() || self.1.bodiless()
    }

    #[inline]
    fn asked(&mut self, at: &Moment) {
        self.0.asked(at);
        self.1.asked(at);
    }

    #[inline]
    fn pending(&mut self, at: &Moment) {
        self.0.pending(at);
        self.1.pending(at);
    }

    #[inline]
    fn data<D: Buf>(&mut self, data: &D, at: &Moment) {
        self.0.data(data, at);
        self.1.data(data, at);
    }

    #[inline]
    fn end<E: Display + 'static>(self, end: End<'_, E>, at: &Moment) {
        // Should the second panic, the guard ends the first.
        let first = Guard::new(self.0);
        self.1.end(end, at);
        if let Some(first) = first.disarm() {
            first.end(end, at);
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
        let observer = OnUnwind(this.observer);
        let result = ready!(this.inner.poll(cx));
        let at = Moment::new();
        // Nothing foreign runs while the observer is in nobody's guard.
        let over = match (&result, &mut observer.0.0) {
            (Ok(response), Some(watching)) => {
                watching.head(response, &at);
                watching.bodiless() || response.body().is_end_stream()
            }
            _ => true,
        };
        let observer = observer.0.0.take();
        Poll::Ready(match result {
            Ok(response) if over => {
                if let Some(observer) = observer {
                    observer.end(End::<Infallible>::Complete, &at);
                }
                Ok(response.map(ObservedBody::passed))
            }
            Ok(response) => Ok(response.map(|inner| ObservedBody {
                inner,
                observer: Guard(observer),
            })),
            Err(error) => {
                if let Some(observer) = observer {
                    observer.end(End::Error(&error), &at);
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
        let guard = OnUnwind(this.observer);
        let Some(observer) = &mut guard.0.0 else {
            return this.inner.poll_frame(cx);
        };
        observer.asked(&Moment::new());
        let polled = this.inner.as_mut().poll_frame(cx);
        let at = Moment::new();
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
        if let Some(observer) = guard.0.0.take() {
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
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use bytes::Bytes;
    use tokio_test::task;

    use super::*;

    type Notes = Rc<RefCell<Vec<String>>>;

    struct Noting(Notes);

    impl Observe for Noting {
        fn head<B>(&mut self, response: &http::Response<B>, _: &Moment) {
            self.0
                .borrow_mut()
                .push(format!("head {}", response.status().as_u16()));
        }
        fn pending(&mut self, _: &Moment) {
            self.0.borrow_mut().push("pending".into());
        }
        fn data<D: Buf>(&mut self, data: &D, _: &Moment) {
            self.0
                .borrow_mut()
                .push(format!("data {}", data.remaining()));
        }
        fn end<E: Display + 'static>(self, end: End<'_, E>, _: &Moment) {
            self.0.borrow_mut().push(match end {
                End::Complete => "complete".into(),
                End::Trailers(trailers) => format!("trailers {}", trailers.len()),
                End::Error(error) => format!("error {error}"),
                End::Dropped => "dropped".into(),
            });
        }
    }

    /// Yields its steps; `None` is Pending. `known` makes `is_end_stream` honest, else it always says no.
    struct Steps {
        steps: VecDeque<Option<Result<Frame<Bytes>, String>>>,
        known: bool,
    }

    impl Body for Steps {
        type Data = Bytes;
        type Error = String;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
            match self.steps.pop_front() {
                Some(None) => Poll::Pending,
                Some(Some(step)) => Poll::Ready(Some(step)),
                None => Poll::Ready(None),
            }
        }
        fn is_end_stream(&self) -> bool {
            self.known && self.steps.is_empty()
        }
        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(7)
        }
    }

    fn data(text: &'static str) -> Option<Result<Frame<Bytes>, String>> {
        Some(Ok(Frame::data(Bytes::from_static(text.as_bytes()))))
    }

    fn trailers() -> Option<Result<Frame<Bytes>, String>> {
        let mut map = HeaderMap::new();
        map.insert("grpc-status", http::HeaderValue::from_static("0"));
        Some(Ok(Frame::trailers(map)))
    }

    fn run(
        steps: Vec<Option<Result<Frame<Bytes>, String>>>,
        known: bool,
        polls: usize,
    ) -> Vec<String> {
        let notes = Notes::default();
        let body = Steps {
            steps: steps.into(),
            known,
        };
        let mut body = task::spawn(ObservedBody::observed(body, Noting(notes.clone())));
        for _ in 0..polls {
            let _ = body.enter(|cx, body| body.poll_frame(cx));
        }
        drop(body);
        notes.take()
    }

    #[test]
    fn each_ending_is_reported_once() {
        assert_eq!(
            run(vec![data("ab"), trailers()], false, 5),
            ["data 2", "trailers 1"]
        );
        assert_eq!(
            run(vec![data("ab"), trailers()], false, 2),
            ["data 2", "trailers 1"]
        );
        assert_eq!(run(vec![data("ab")], false, 5), ["data 2", "complete"]);
        assert_eq!(run(vec![data("ab")], true, 1), ["data 2", "complete"]);
        assert_eq!(
            run(vec![data("ab"), Some(Err("cut".into()))], false, 3),
            ["data 2", "error cut"]
        );
        assert_eq!(
            run(vec![data("ab"), None, data("c")], false, 2),
            ["data 2", "pending", "dropped"]
        );
        assert_eq!(run(vec![], false, 0), ["dropped"]);
        assert_eq!(run(vec![], true, 0), ["complete"]);
    }

    #[test]
    fn a_dropped_future_is_an_end() {
        let notes = Notes::default();
        let future = std::future::pending::<Result<http::Response<Steps>, String>>();
        let mut future = task::spawn(ObservedFuture::observed(future, Noting(notes.clone())));
        assert!(future.poll().is_pending());
        drop(future);
        assert_eq!(*notes.borrow(), ["dropped"]);
    }

    #[test]
    fn a_body_at_its_end_is_over_with_the_headers() {
        let notes = Notes::default();
        let body = Steps {
            steps: VecDeque::new(),
            known: true,
        };
        let future = std::future::ready(Ok::<_, String>(http::Response::new(body)));
        let mut future = task::spawn(ObservedFuture::observed(future, Noting(notes.clone())));
        let Poll::Ready(Ok(response)) = future.poll() else {
            panic!("not ready")
        };
        assert_eq!(*notes.borrow(), ["head 200", "complete"]);
        assert!(response.body().is_end_stream());
        assert_eq!(response.body().size_hint().exact(), Some(7));
        drop(response);
        assert_eq!(notes.borrow().len(), 2);
    }

    #[test]
    fn a_panic_in_the_consumer_is_a_drop() {
        let notes = std::sync::Arc::new(std::sync::Mutex::new(None));
        struct Last(std::sync::Arc<std::sync::Mutex<Option<bool>>>);
        impl Observe for Last {
            fn end<E: Display + 'static>(self, end: End<'_, E>, _: &Moment) {
                let dropped = matches!(end, End::Dropped) && std::thread::panicking();
                *self.0.lock().unwrap() = Some(dropped);
            }
        }
        let seen = notes.clone();
        let _ = std::panic::catch_unwind(move || {
            let _body =
                ObservedBody::observed(http_body_util::Full::<Bytes>::from("x"), Last(seen));
            panic!("consumer");
        });
        assert_eq!(*notes.lock().unwrap(), Some(true));
    }
}
