//! One response body for all who share a response.
//!
//! A body that nobody shares passes through. One that is shared is a log of chunks with a cursor for each reader, let go of
//! behind the slowest; whoever polls and finds nothing to take drives the body for all. Nothing is spawned.
//!
//! Memory is bounded by `max_buffer` and one chunk beyond it. When that much waits for the slowest and another wants
//! more, the others wait for it. It has to take at least `max_buffer` bytes for every `stall` that they wait, all waits
//! together; else they go on without it, and it gets an error, never a clean end. What they wait for the body itself counts
//! for nobody, and who reads a body that fits into `max_buffer` may take its time. For callers that have not asked for the
//! response yet they wait a tenth of a second, or `stall` if that is less; such a caller gets
//! [`Gone`](super::share::Gone) and asks anew.
//! The time is told by the tokio runtime of the reader that waits; where it has no timers, or there is none, by whoever
//! polls.
//!
//! An error of the body, and an end that comes before the length its headers promised, reach every reader. A body of no
//! bytes at all ends cleanly whatever was promised: it is the answer to a `HEAD`, and whoever made it has refused a `GET`
//! that is short. A panic is the reader's that polled; the others get an error.
//!
//! Cost: a reader that is behind takes the lock once for a frame, the one that drives three times, and once more to leave a
//! waker it has not left before. A chunk is cloned, not copied. The wakers of those that wait are taken out to one
//! allocation, and a wait for room is a timer.

mod end;
mod fanout;
mod log;
mod origin;
mod reader;

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use self::reader::Reader;
use crate::base::error::{BoxError, Reason, Rejection};

pub(crate) use fanout::FanOut;
pub(crate) use log::Limits;
pub(crate) use origin::Origin;

pin_project! {
    /// The body of a response that several callers may share.
    ///
    /// Each reads the whole of it, at its own pace. One that takes too little for too long while others want more gets an
    /// error, [`Reason::Timeout`]; an error of the body, and an end before its promised length, reach all. Frames,
    /// `size_hint` and `is_end_stream` are those of the body, for what is left to this reader.
    pub struct SharedBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjected]
    enum Kind<B> {
        Alone { #[pin] body: B },
        Reader { reader: Reader<B> },
        Empty,
    }
}

// ===== impl SharedBody =====

impl<B> SharedBody<B> {
    /// `body`, untouched.
    pub fn alone(body: B) -> Self {
        Self {
            kind: Kind::Alone { body },
        }
    }

    /// Nothing.
    pub(super) fn empty() -> Self {
        Self { kind: Kind::Empty }
    }

    fn reader(reader: Reader<B>) -> Self {
        Self {
            kind: Kind::Reader { reader },
        }
    }
}

impl<B> Body for SharedBody<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProjected::Alone { body } => body
                .poll_frame(cx)
                .map(|frame| frame.map(|result| result.map_err(Into::into))),
            KindProjected::Reader { reader } => reader.poll_frame(cx),
            KindProjected::Empty => Poll::Ready(None),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Alone { body } => body.is_end_stream(),
            Kind::Reader { reader } => reader.is_end_stream(),
            Kind::Empty => true,
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Alone { body } => body.size_hint(),
            Kind::Reader { reader } => reader.size_hint(),
            Kind::Empty => SizeHint::with_exact(0),
        }
    }
}

impl<B: Default> Default for SharedBody<B> {
    fn default() -> Self {
        Self::alone(B::default())
    }
}

impl<B> fmt::Debug for SharedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Alone { .. } => "alone",
            Kind::Reader { .. } => "shared",
            Kind::Empty => "empty",
        };
        f.debug_tuple("SharedBody").field(&kind).finish()
    }
}

#[cold]
fn rejection(reason: Reason, message: impl Into<Cow<'static, str>>) -> Rejection {
    Rejection::new("coalesce", reason, message)
}

#[cfg(all(test, not(tower_flow_loom)))]
mod tests;
