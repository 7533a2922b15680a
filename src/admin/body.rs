use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::live::Listener;

/// An answer's body: bytes, or events without end.
#[derive(Debug)]
pub struct AdminBody(Inner);

#[derive(Debug)]
enum Inner {
    Whole(Bytes),
    Events(Listener),
}

impl AdminBody {
    pub(super) fn events(listener: Listener) -> Self {
        Self(Inner::Events(listener))
    }
}

impl From<Bytes> for AdminBody {
    fn from(whole: Bytes) -> Self {
        Self(Inner::Whole(whole))
    }
}

impl Body for AdminBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut self.0 {
            Inner::Whole(whole) => {
                let whole = std::mem::take(whole);
                Poll::Ready((!whole.is_empty()).then_some(whole))
            }
            Inner::Events(listener) => listener.poll_next(cx),
        };
        next.map(|next| next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Inner::Whole(whole) if whole.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Whole(whole) => SizeHint::with_exact(whole.len() as u64),
            Inner::Events(_) => SizeHint::default(),
        }
    }
}
