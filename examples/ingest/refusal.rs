//! What callers are told whose items were not stored.

use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tower_flow::error::{Reason, find};
use tower_flow::shed::GRPC_RETRY_PUSHBACK;
use tower_flow::{BoxError, Rejection};

use crate::store::StoreError;

/// How many items at the beginning of a stream that failed are stored.
const ACCEPTED: &str = "ingest-accepted";

/// When to come back after a refusal that does not tell.
const SOON: Duration = Duration::from_millis(100);

/// An error of the pipeline as a status.
pub(crate) fn status(error: &BoxError) -> Status {
    if let Some(rejection) = Rejection::find(&**error) {
        let code = match rejection.reason() {
            Reason::TooLarge => Code::InvalidArgument,
            Reason::Panicked => Code::Internal,
            _ => Code::Unavailable,
        };
        let after = rejection.retry_delay().unwrap_or(SOON);
        return pushed_back(Status::new(code, rejection.to_string()), after);
    }
    match find::<StoreError>(&**error) {
        Some(StoreError::TooLarge(what)) => Status::invalid_argument(what),
        Some(StoreError::Full(what) | StoreError::Unavailable(what)) => {
            pushed_back(Status::unavailable(what), SOON)
        }
        None => Status::internal(error.to_string()),
    }
}

/// The same, of a stream of which so many items are stored.
pub(crate) fn after(accepted: u64, status: Status) -> Status {
    let message = format!("accepted {accepted}; {}", status.message());
    let mut metadata = status.metadata().clone();
    metadata.insert(ACCEPTED, accepted.into());
    Status::with_metadata(status.code(), message, metadata)
}

/// Of streams that are not at their end when the server has to be.
pub(crate) fn going_away() -> Status {
    pushed_back(
        Status::unavailable("shutting down; send the rest elsewhere"),
        SOON,
    )
}

fn pushed_back(mut status: Status, after: Duration) -> Status {
    let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut headers = status.metadata().clone().into_headers();
    headers.insert(GRPC_RETRY_PUSHBACK, after.into());
    *status.metadata_mut() = MetadataMap::from_headers(headers);
    status
}
