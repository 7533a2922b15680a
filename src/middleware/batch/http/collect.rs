use std::future::poll_fn;
use std::pin::pin;

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;

use crate::base::error::BoxError;

/// Why a body was not read to its end, and what was read of it.
pub(super) struct Stopped {
    pub(super) read: Bytes,
    pub(super) why: Why,
}

pub(super) enum Why {
    /// It has more than `max` bytes: at least so many.
    TooLarge(u64),
    Broken(BoxError),
}

/// What was read so far. One frame is not copied.
#[derive(Default)]
struct Read {
    first: Bytes,
    /// The first frame and those after it, when there are more.
    joined: BytesMut,
}

/// Reads `body` to its end if it has at most `max` bytes. Trailers are dropped.
pub(super) async fn collect<B>(body: B, max: usize) -> Result<Bytes, Stopped>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let mut body = pin!(body);
    let mut read = Read::default();
    // What the length in the head says; nothing need be read to see that it is too much.
    let announced = body.size_hint().lower();
    if announced > max as u64 {
        return Err(read.stopped(Why::TooLarge(announced)));
    }
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let data = match frame.map(|frame| frame.into_data()) {
            Ok(Ok(mut data)) => data.copy_to_bytes(data.remaining()),
            Ok(Err(_)) => continue,
            Err(error) => return Err(read.stopped(Why::Broken(error.into()))),
        };
        let length = read.len() as u64 + data.len() as u64;
        if length > max as u64 {
            read.push(data.slice(..max - read.len()));
            return Err(read.stopped(Why::TooLarge(length)));
        }
        read.push(data);
    }
    Ok(read.into_bytes())
}

// ===== impl Read =====

impl Read {
    fn len(&self) -> usize {
        self.first.len().max(self.joined.len())
    }

    fn push(&mut self, data: Bytes) {
        if self.len() == 0 {
            self.first = data;
        } else if !data.is_empty() {
            if self.joined.is_empty() {
                self.joined.extend_from_slice(&self.first);
                self.first = Bytes::new();
            }
            self.joined.extend_from_slice(&data);
        }
    }

    fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() {
            self.first
        } else {
            self.joined.freeze()
        }
    }

    fn stopped(self, why: Why) -> Stopped {
        Stopped {
            read: self.into_bytes(),
            why,
        }
    }
}
