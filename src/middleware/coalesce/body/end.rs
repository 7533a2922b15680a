//! How a body ends, and what its readers are told.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::log::Limits;
use super::rejection;
use crate::base::error::SharedError;
use crate::base::error::{BoxError, Reason};

/// How a body ended, for one of its readers.
#[derive(Debug, Clone)]
pub(super) enum End {
    Clean,
    Trailers(Arc<HeaderMap>),
    Error(SharedError),
    Evicted(Evicted),
}

/// What a reader was evicted from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evicted {
    /// How long the others waited, and for how much.
    pub(super) limits: Limits,
    /// The bytes that it took meanwhile.
    pub(super) took: usize,
    /// The readers that went on.
    pub(super) others: usize,
}

/// What is said of a body of `written` bytes where another number was promised.
#[cold]
pub(super) fn wrong_length(written: u64, promised: Option<u64>) -> SharedError {
    let promised = promised.unwrap_or_default();
    let error = if written < promised {
        let message = format!(
            "body ended after {written} of {promised} bytes that its content-length promised; ask again"
        );
        io::Error::new(io::ErrorKind::UnexpectedEof, message)
    } else {
        let message = format!(
            "body went on to {written} bytes where its content-length promised {promised}; ask again"
        );
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    SharedError::new(error)
}

// ===== impl End =====

impl End {
    /// What one of the readers gets of it.
    pub(super) fn frame(self) -> Option<Result<Frame<Bytes>, BoxError>> {
        match self {
            Self::Clean => None,
            // The last of them gets the trailers themselves.
            Self::Trailers(trailers) => Some(Ok(Frame::trailers(Arc::unwrap_or_clone(trailers)))),
            Self::Error(error) => Some(Err(error.into())),
            Self::Evicted(evicted) => Some(Err(evicted.into())),
        }
    }
}

// ===== impl Evicted =====

impl From<Evicted> for BoxError {
    fn from(
        Evicted {
            limits: Limits { max_buffer, stall },
            took,
            others,
        }: Evicted,
    ) -> Self {
        let s = if others == 1 { "" } else { "s" };
        let message = format!(
            "this reader took {took} bytes while {others} other{s} waited for {stall:?}, less than the {max_buffer} bytes of \
             max_buffer; read faster, or raise stall, or max_buffer up to the length of the body"
        );
        rejection(Reason::Timeout, message).into()
    }
}
