use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};

use super::body::{Begun, GrpcBody, Rest, Whole};

/// Reads a body to its end, or until it is longer than `max`. Costs the allocation of its box; one frame is not copied.
pub(super) struct Collect<B> {
    /// Gone when it is done.
    body: Option<Pin<Box<B>>>,
    /// The only frame so far.
    first: Option<Bytes>,
    /// The first frame and those after it, when there are more.
    joined: BytesMut,
    max: usize,
}

/// What a frame brings.
enum Read {
    Data(Bytes),
    Trailers(HeaderMap),
}

// ===== impl Collect =====

impl<B: Body> Collect<B> {
    pub(super) fn new(body: B, max: usize) -> Self {
        Self {
            body: Some(Box::pin(body)),
            first: None,
            joined: BytesMut::new(),
            max,
        }
    }

    /// Gives `data` back when that is too much.
    fn push(&mut self, data: Bytes) -> Result<(), Bytes> {
        let held = self.first.as_ref().map_or(self.joined.len(), Bytes::len);
        if data.len() > self.max.saturating_sub(held) {
            return Err(data);
        }
        if data.is_empty() {
            return Ok(());
        }
        if held == 0 {
            self.first = Some(data);
            return Ok(());
        }
        if let Some(first) = self.first.take() {
            self.joined.extend_from_slice(&first);
        }
        self.joined.extend_from_slice(&data);
        Ok(())
    }

    fn data(&mut self) -> Option<Bytes> {
        let joined = std::mem::take(&mut self.joined);
        let joined = (!joined.is_empty()).then(|| joined.freeze());
        self.first.take().or(joined)
    }

    fn whole(&mut self, trailers: Option<HeaderMap>) -> GrpcBody<B> {
        self.body = None;
        let data = self.data();
        GrpcBody::whole(Whole { data, trailers })
    }

    fn begun(&mut self, more: Option<Bytes>, rest: Rest<B>) -> GrpcBody<B> {
        let read = [self.data(), more];
        GrpcBody::begun(Begun { read, rest })
    }
}

impl<B: Body> Future for Collect<B> {
    type Output = GrpcBody<B>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<GrpcBody<B>> {
        let this = self.get_mut();
        loop {
            let body = this.body.as_mut().expect("a body is collected once");
            if body.is_end_stream() {
                return Poll::Ready(this.whole(None));
            }
            let frame = match ready!(body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(this.whole(None)),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    this.body = None;
                    let rest = Rest::Failed(Some(error));
                    return Poll::Ready(this.begun(None, rest));
                }
            };
            match Read::of(frame) {
                Some(Read::Trailers(trailers)) => return Poll::Ready(this.whole(Some(trailers))),
                Some(Read::Data(data)) => {
                    if let Err(more) = this.push(data)
                        && let Some(body) = this.body.take()
                    {
                        return Poll::Ready(this.begun(Some(more), Rest::Body(body)));
                    }
                }
                None => {}
            }
        }
    }
}

// ===== impl Read =====

impl Read {
    /// `None` for a frame of a kind nobody knows.
    fn of<D: Buf>(frame: Frame<D>) -> Option<Self> {
        match frame.into_data() {
            Ok(mut data) => Some(Self::Data(data.copy_to_bytes(data.remaining()))),
            Err(frame) => frame.into_trailers().ok().map(Self::Trailers),
        }
    }
}

#[cfg(test)]
mod tests;
