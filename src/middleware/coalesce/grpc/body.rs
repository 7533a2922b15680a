use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// The body of a gRPC request or response that was read to its end, or for as long as it may be; then the rest of it
    /// follows. Of calls that are not coalesced it is the body itself.
    pub struct GrpcBody<B>
    where
        B: Body,
    {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjected]
    enum Kind<B>
    where
        B: Body,
    {
        Passed { #[pin] body: B },
        Whole { whole: Whole },
        Begun { begun: Begun<B> },
    }
}

/// All of a body. `None` is nothing, and no empty frame.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Whole {
    pub(super) data: Option<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
}

/// A body of which some was read.
pub(super) struct Begun<B: Body> {
    /// What was read. The second was too much.
    pub(super) read: [Option<Bytes>; 2],
    pub(super) rest: Rest<B>,
}

/// What comes after what was read.
pub(super) enum Rest<B: Body> {
    Body(Pin<Box<B>>),
    /// `None` once it was told.
    Failed(Option<B::Error>),
}

// ===== impl GrpcBody =====

impl<B: Body> GrpcBody<B> {
    pub(super) fn passed(body: B) -> Self {
        Self {
            kind: Kind::Passed { body },
        }
    }

    pub(super) fn whole(whole: Whole) -> Self {
        Self {
            kind: Kind::Whole { whole },
        }
    }

    pub(super) fn begun(begun: Begun<B>) -> Self {
        Self {
            kind: Kind::Begun { begun },
        }
    }

    /// All of it, if it was read to its end.
    pub(super) fn as_whole(&self) -> Option<&Whole> {
        match &self.kind {
            Kind::Whole { whole } => Some(whole),
            Kind::Passed { .. } | Kind::Begun { .. } => None,
        }
    }

    /// As [`as_whole`](Self::as_whole).
    pub(super) fn into_whole(self) -> Option<Whole> {
        match self.kind {
            Kind::Whole { whole } => Some(whole),
            Kind::Passed { .. } | Kind::Begun { .. } => None,
        }
    }

    /// Whether reading it failed.
    pub(super) fn has_failed(&self) -> bool {
        matches!(&self.kind, Kind::Begun { begun } if matches!(begun.rest, Rest::Failed(_)))
    }
}

impl<B: Body> Body for GrpcBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProjected::Passed { body } => poll(body, cx),
            KindProjected::Whole { whole } => {
                let data = whole.data.take().map(Frame::data);
                let frame = data.or_else(|| whole.trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            KindProjected::Begun { begun } => {
                if let Some(data) = begun.read.iter_mut().find_map(Option::take) {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                match &mut begun.rest {
                    Rest::Body(body) => poll(body.as_mut(), cx),
                    Rest::Failed(error) => Poll::Ready(error.take().map(Err)),
                }
            }
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Passed { body } => body.is_end_stream(),
            Kind::Whole { whole } => whole.data.is_none() && whole.trailers.is_none(),
            Kind::Begun { begun } => {
                begun.read.iter().all(Option::is_none)
                    && match &begun.rest {
                        Rest::Body(body) => body.is_end_stream(),
                        Rest::Failed(error) => error.is_none(),
                    }
            }
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Passed { body } => body.size_hint(),
            Kind::Whole { whole } => SizeHint::with_exact(length(&whole.data)),
            Kind::Begun { begun } => {
                let read = begun.read.iter().map(length).sum::<u64>();
                let mut hint = SizeHint::new();
                hint.set_lower(read);
                if let Rest::Body(body) = &begun.rest {
                    let rest = body.size_hint();
                    hint.set_lower(read.saturating_add(rest.lower()));
                    if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(read)) {
                        hint.set_upper(upper);
                    }
                }
                hint
            }
        }
    }
}

impl<B: Body + Default> Default for GrpcBody<B> {
    fn default() -> Self {
        Self::passed(B::default())
    }
}

impl<B: Body> fmt::Debug for GrpcBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Passed { .. } => "passed",
            Kind::Whole { .. } => "whole",
            Kind::Begun { .. } => "begun",
        };
        f.debug_tuple("GrpcBody").field(&kind).finish()
    }
}

fn poll<B: Body>(
    body: Pin<&mut B>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
    body.poll_frame(cx).map(|frame| {
        let bytes = |mut data: B::Data| data.copy_to_bytes(data.remaining());
        Some(frame?.map(|frame| frame.map_data(bytes)))
    })
}

fn length(data: &Option<Bytes>) -> u64 {
    data.as_ref().map_or(0, |data| data.len() as u64)
}
