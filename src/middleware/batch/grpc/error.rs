use std::error::Error;
use std::fmt;

use tonic::Status;

/// Why a batch, or the rest of one, was not answered by its stream.
///
/// Its source is the status. What was sent may have been done: nothing is sent again by itself.
#[derive(Debug, Clone)]
pub struct GrpcStreamError {
    status: Status,
    answered: usize,
    items: usize,
}

// ===== impl GrpcStreamError =====

impl GrpcStreamError {
    pub(super) fn new(status: Status, answered: usize, items: usize) -> Self {
        Self {
            status,
            answered,
            items,
        }
    }

    /// How the stream ended.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// How many answers came before that.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// How many items the batch had.
    pub fn items(&self) -> usize {
        self.items
    }
}

impl fmt::Display for GrpcStreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the stream ended after {} of {} answers with {:?}: {}; the server may have done the rest, send it again only \
             if that does no harm",
            self.answered,
            self.items,
            self.status.code(),
            self.status.message()
        )
    }
}

impl Error for GrpcStreamError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.status)
    }
}
