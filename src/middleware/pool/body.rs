use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::lease::Stream;
use crate::base::clock;
use crate::base::phases::Timings;

/// The body of a response that came through a [`ConnPool`](super::ConnPool).
///
/// With its end, or when it is dropped, the request is over: an HTTP/2 stream is given back then, and the end is noted in
/// the response's [`Timings`].
pub struct ResponseBody {
    inner: Incoming,
    /// Until the end.
    open: Option<Open>,
}

struct Open {
    timings: Option<Timings>,
    /// The stream of an HTTP/2 connection.
    _stream: Option<Stream>,
}

impl ResponseBody {
    pub(super) fn new(inner: Incoming, timings: Option<Timings>, stream: Option<Stream>) -> Self {
        let open = Open {
            timings,
            _stream: stream,
        };
        let mut body = Self {
            open: (open.timings.is_some() || open._stream.is_some()).then_some(open),
            inner,
        };
        if body.inner.is_end_stream() {
            body.end();
        }
        body
    }

    #[inline]
    fn end(&mut self) {
        if let Some(timings) = self.open.take().and_then(|open| open.timings) {
            timings.finish(clock::now());
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let last = match &frame {
            Some(Ok(frame)) => frame.is_trailers() || self.inner.is_end_stream(),
            Some(Err(_)) | None => true,
        };
        if last {
            self.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Dropped before its end, it ends now.
impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("ended", &self.open.is_none())
            .field("size_hint", &self.inner.size_hint())
            .finish_non_exhaustive()
    }
}
