use std::error::Error;
use std::fmt;

use bytes::Bytes;
use http::Response;

use crate::base::error::BoxError;

/// Why a batch that was to be one HTTP request has no answers.
///
/// Errors of the client itself are passed on as they are.
#[non_exhaustive]
#[derive(Debug)]
pub enum HttpBatchError {
    /// The codec made no request of it. Nothing was sent.
    Encode {
        /// How many items the batch had.
        items: usize,
        /// What the codec said.
        error: BoxError,
    },
    /// The server answered with a status that is no success.
    Status {
        /// How many items the batch had.
        items: usize,
        /// What it answered, with at most the first 8 KiB of the body.
        response: Box<Response<Bytes>>,
    },
    /// The body of the response is larger than it may be.
    TooLarge {
        /// How many items the batch had.
        items: usize,
        /// It has at least so many bytes.
        bytes: u64,
        /// It may have so many.
        max: usize,
    },
    /// The body of the response broke off.
    Body {
        /// How many items the batch had.
        items: usize,
        /// So many bytes of it came.
        bytes: usize,
        /// What the body said.
        error: BoxError,
    },
    /// The codec could not read the response.
    Decode {
        /// How many items the batch had.
        items: usize,
        /// What the codec said.
        error: BoxError,
    },
}

// ===== impl HttpBatchError =====

impl HttpBatchError {
    /// How many items the batch had.
    pub fn items(&self) -> usize {
        match self {
            Self::Encode { items, .. }
            | Self::Status { items, .. }
            | Self::TooLarge { items, .. }
            | Self::Body { items, .. }
            | Self::Decode { items, .. } => *items,
        }
    }
}

impl fmt::Display for HttpBatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items = self.items();
        match self {
            Self::Encode { .. } => {
                write!(
                    f,
                    "the codec made no request of {items} items; nothing was sent"
                )
            }
            Self::Status { response, .. } => write!(
                f,
                "the server answered {items} items with {}; any_status lets the codec read it",
                response.status()
            ),
            Self::TooLarge { bytes, max, .. } => write!(
                f,
                "the response to {items} items has at least {bytes} bytes, of {max} it may have; raise max_body or have \
                 fewer items in a batch"
            ),
            Self::Body { bytes, .. } => write!(
                f,
                "the response to {items} items broke off after {bytes} bytes; the server may have done them"
            ),
            Self::Decode { .. } => {
                write!(f, "the codec could not read the response to {items} items")
            }
        }
    }
}

impl Error for HttpBatchError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Encode { error, .. } | Self::Body { error, .. } | Self::Decode { error, .. } => {
                Some(error.as_ref())
            }
            Self::Status { .. } | Self::TooLarge { .. } => None,
        }
    }
}
