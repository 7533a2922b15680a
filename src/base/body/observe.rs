use std::fmt::Display;

use bytes::Buf;
use http::HeaderMap;

use super::Guard;
use crate::base::clock::Moment;

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
