use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::refusal::Refusal;
use crate::base::error::{BoxError, Reason};
use crate::base::outcome::{Code, GRPC_STATUS};

/// Why a request was refused, in a word.
pub const SHED_REASON: HeaderName = HeaderName::from_static("x-shed-reason");

/// In how many milliseconds a gRPC client may try again; gRPC A6.
pub const GRPC_RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// How a refused HTTP request is answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reject<K> {
    pub(super) kind: K,
}

/// With a response; see [`Reject::http`].
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct AsHttp;

/// With a gRPC status; see [`Reject::grpc`].
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct AsGrpc;

/// With an error; see [`Reject::error`].
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct AsError;

/// Puts a refusal into a response or an error. `E` is the error of the service.
pub trait Refuse<E> {
    /// The error of the service with this in front.
    type Error;

    /// Answers a refused request.
    ///
    /// # Errors
    ///
    /// Where the answer is an error.
    fn refuse(&self, refusal: &Refusal) -> Result<Response<()>, Self::Error>;

    /// Passes an error of the service on.
    fn pass(&self, error: E) -> Self::Error;
}

// ===== impl Reject =====

impl Reject<AsHttp> {
    /// 503 with `Retry-After` in seconds, the measured time to drain; 429 when the request's partition has used its
    /// share. `x-shed-reason` says why. The service keeps its error type.
    pub fn http() -> Self {
        Self { kind: AsHttp }
    }
}

impl Reject<AsGrpc> {
    /// UNAVAILABLE with `grpc-retry-pushback-ms`, in the headers alone; RESOURCE_EXHAUSTED when the request's partition
    /// has used its share, DEADLINE_EXCEEDED when it could not finish in time. The service keeps its error type.
    pub fn grpc() -> Self {
        Self { kind: AsGrpc }
    }
}

impl Reject<AsError> {
    /// [`BoxError`] with a [`Rejection`](crate::Rejection) in it. With feature `tonic` the rejection's source is a
    /// `tonic::Status`, so a tonic server answers it as [`grpc`](Self::grpc) would.
    pub fn error() -> Self {
        Self { kind: AsError }
    }
}

// ===== impl Refuse =====

impl<E> Refuse<E> for AsHttp {
    type Error = E;

    fn refuse(&self, refusal: &Refusal) -> Result<Response<()>, E> {
        let mut response = Response::new(());
        *response.status_mut() = match refusal.reason {
            Reason::Quota => StatusCode::TOO_MANY_REQUESTS,
            Reason::Deadline => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let headers = response.headers_mut();
        headers.insert(SHED_REASON, reason(refusal));
        if refusal.reason != Reason::Deadline {
            // Whole seconds, and never none: whoever comes back at once was not told to wait.
            let seconds = refusal.retry_after.as_secs_f64().ceil().max(1.0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds as u64));
        }
        Ok(response)
    }

    #[inline]
    fn pass(&self, error: E) -> E {
        error
    }
}

impl<E> Refuse<E> for AsGrpc {
    type Error = E;

    fn refuse(&self, refusal: &Refusal) -> Result<Response<()>, E> {
        let mut response = Response::new(());
        let code = Code::of_reason(refusal.reason);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(code.index() as u64));
        // No character of the message needs percent-encoding.
        if let Ok(message) = HeaderValue::try_from(refusal.message()) {
            headers.insert("grpc-message", message);
        }
        headers.insert(SHED_REASON, reason(refusal));
        let pushback = i32::try_from(refusal.retry_after.as_millis()).unwrap_or(i32::MAX);
        // Nobody waits any longer for a request whose deadline is gone: do not retry.
        let pushback = match refusal.reason {
            Reason::Deadline => -1,
            _ => pushback.max(1),
        };
        headers.insert(GRPC_RETRY_PUSHBACK, HeaderValue::from(pushback));
        Ok(response)
    }

    #[inline]
    fn pass(&self, error: E) -> E {
        error
    }
}

impl<E: Into<BoxError>> Refuse<E> for AsError {
    type Error = BoxError;

    fn refuse(&self, refusal: &Refusal) -> Result<Response<()>, BoxError> {
        Err(refusal.rejection().into())
    }

    #[inline]
    fn pass(&self, error: E) -> BoxError {
        error.into()
    }
}

/// Any `Fn(&Refusal) -> Response<()>` makes answers of its own.
impl<E, F: Fn(&Refusal) -> Response<()>> Refuse<E> for F {
    type Error = E;

    fn refuse(&self, refusal: &Refusal) -> Result<Response<()>, E> {
        Ok(self(refusal))
    }

    fn pass(&self, error: E) -> E {
        error
    }
}

fn reason(refusal: &Refusal) -> HeaderValue {
    HeaderValue::from_static(refusal.reason.as_str())
}
