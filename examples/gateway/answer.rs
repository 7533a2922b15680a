//! What a client is told when something went wrong: a status, and nothing of what is behind the gateway.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full};
use tower_flow::error::{Reason, find};
use tower_flow::outcome::Code;
use tower_flow::pool::{self, ErrorKind};
use tower_flow::{BoxError, Rejection};

use crate::erased::Body;
use crate::rules::Refused;
use crate::upload::UploadError;

/// Whether a message is gRPC's.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.starts_with(b"application/grpc") && matches!(kind.get(16), None | Some(b'+' | b';'))
    })
}

/// What `error` is in HTTP and in gRPC, in a word.
pub(crate) fn meaning(error: &(dyn Error + 'static)) -> (StatusCode, Code, &'static str) {
    if let Some(upload) = find::<UploadError>(error) {
        return match upload {
            UploadError::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::ResourceExhausted,
                "the request is too large",
            ),
            UploadError::Silent(_) => (
                StatusCode::REQUEST_TIMEOUT,
                Code::DeadlineExceeded,
                "the request took too long to come",
            ),
            UploadError::Client(_) => (
                StatusCode::BAD_REQUEST,
                Code::Cancelled,
                "the request broke off",
            ),
        };
    }
    if let Some(rejection) = Rejection::find(error) {
        return match rejection.reason() {
            Reason::Timeout => (
                StatusCode::GATEWAY_TIMEOUT,
                Code::DeadlineExceeded,
                "the upstream did not answer in time",
            ),
            Reason::Deadline => (
                StatusCode::GATEWAY_TIMEOUT,
                Code::DeadlineExceeded,
                "it could not be done in time",
            ),
            Reason::Quota => (
                StatusCode::TOO_MANY_REQUESTS,
                Code::ResourceExhausted,
                "too many requests",
            ),
            Reason::Panicked | Reason::Recursion | Reason::Missing => (
                StatusCode::INTERNAL_SERVER_ERROR,
                Code::Internal,
                "the gateway failed",
            ),
            _ => (
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                "too busy; try again later",
            ),
        };
    }
    match find::<pool::Error>(error).map(pool::Error::kind) {
        Some(ErrorKind::Overloaded | ErrorKind::AcquireTimeout | ErrorKind::Closed) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Code::Unavailable,
            "no connection to the upstream is free; try again later",
        ),
        Some(ErrorKind::ConnectTimeout) => (
            StatusCode::GATEWAY_TIMEOUT,
            Code::DeadlineExceeded,
            "the upstream could not be reached in time",
        ),
        Some(ErrorKind::Connect | ErrorKind::BackingOff) => (
            StatusCode::BAD_GATEWAY,
            Code::Unavailable,
            "the upstream could not be reached",
        ),
        _ => (
            StatusCode::BAD_GATEWAY,
            Code::Unavailable,
            "the upstream broke off or sent what is no answer",
        ),
    }
}

/// The answer that tells of `error`.
pub(crate) fn of(error: &(dyn Error + 'static), grpc: bool) -> Response<Body> {
    let (status, code, message) = meaning(error);
    let after = Rejection::find(error)
        .and_then(Rejection::retry_delay)
        .or_else(|| find::<pool::Error>(error).and_then(pool::Error::retry_delay));
    let busy = matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
    );
    let after = after.or_else(|| busy.then_some(Duration::from_secs(1)));
    if grpc {
        return grpc_status(code, message, after);
    }
    let mut response = plain(status, message);
    if let Some(after) = after.filter(|_| busy) {
        // Whole seconds, and never none: whoever comes back at once was not told to wait.
        let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The answer to a request that goes no further.
pub(crate) fn refused(refused: &Refused, grpc: bool) -> Response<Body> {
    const ALLOWED: HeaderValue =
        HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH");
    let Refused(status, message) = *refused;
    if grpc {
        let code = match status {
            StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
            StatusCode::METHOD_NOT_ALLOWED => Code::Unimplemented,
            _ => Code::InvalidArgument,
        };
        return grpc_status(code, message, None);
    }
    let mut response = plain(status, message);
    if status == StatusCode::METHOD_NOT_ALLOWED || status == StatusCode::OK {
        response.headers_mut().insert(ALLOW, ALLOWED);
    }
    response
}

/// A gRPC answer that breaks off ends with a status that says so. Only HTTP/2 has trailers for certain.
pub(crate) fn told_in_trailers(response: Response<Body>) -> Response<Body> {
    response.map(|body| Told { body: Some(body) }.boxed_unsync())
}

struct Told {
    /// `None` once it has ended.
    body: Option<Body>,
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        let Some(Err(error)) = frame else {
            return Poll::Ready(frame);
        };
        self.body = None;
        let (_, code, message) = meaning(error.as_ref());
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(code.index() as u64));
        trailers.insert("grpc-message", HeaderValue::from_static(message));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(Body::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A short answer of the gateway's own.
pub(crate) fn plain(status: StatusCode, message: &'static str) -> Response<Body> {
    let text = Full::new(Bytes::from_static(message.as_bytes()));
    let mut response = Response::new(text.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

/// A gRPC status, in the headers alone.
fn grpc_status(code: Code, message: &'static str, after: Option<Duration>) -> Response<Body> {
    let mut response = Response::new(empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code.index() as u64));
    headers.insert("grpc-message", HeaderValue::from_static(message));
    if let Some(after) = after {
        let after = i32::try_from(after.as_millis()).unwrap_or(i32::MAX).max(1);
        headers.insert("grpc-retry-pushback-ms", HeaderValue::from(after));
    }
    response
}
