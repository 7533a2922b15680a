use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{CONTENT_TYPE, SET_COOKIE};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Body;

use super::body::{GrpcBody, Whole};
use crate::base::error::SharedError;
use crate::base::error::{BoxError, Rejection};
use crate::base::outcome::{Code, GRPC_STATUS};
use crate::middleware::coalesce::share::{Admit, Keep, Share};

/// Shares gRPC responses by their status; headers, message and trailers alike. Errors are shared as [`SharedError`]s.
///
/// Made by [`CoalesceLayer::grpc`](crate::coalesce::CoalesceLayer::grpc). CANCELLED, DEADLINE_EXCEEDED, UNAUTHENTICATED
/// and PERMISSION_DENIED are about the one who asked and never shared, nor is an error that means one of them, nor a
/// response that has no status, or two, or one that is no number of a code. All other codes are the method's answer to
/// its message: UNAVAILABLE and RESOURCE_EXHAUSTED too, since those who wait would only ask an ailing server again, side
/// by side. A response that is longer than may be collected, or sets a cookie in headers or
/// trailers, is its leader's alone.
#[derive(Debug, Clone, Default)]
pub struct GrpcShare {
    /// Whether failures of the layer are responses. A preset sets it when the layer may be in use.
    respond: Arc<AtomicBool>,
}

/// A response that many get.
#[derive(Debug)]
pub struct GrpcShared(Result<(Parts, Whole), SharedError>);

// ===== impl GrpcShare =====

impl Keep for GrpcShare {}

impl GrpcShare {
    pub(super) fn new(respond: bool) -> Self {
        Self {
            respond: Arc::new(AtomicBool::new(respond)),
        }
    }

    pub(super) fn responds(&self) -> bool {
        self.respond.load(Ordering::Relaxed)
    }

    /// From now on failures are responses.
    #[cfg(all(feature = "grpc", feature = "shed", feature = "timing"))]
    pub(super) fn answer(&self) {
        self.respond.store(true, Ordering::Relaxed);
    }
}

impl<B, E> Share<Response<GrpcBody<B>>, E> for GrpcShare
where
    B: Body,
    E: Into<BoxError> + 'static,
{
    type Response = Response<GrpcBody<B>>;
    type Shared = GrpcShared;

    fn admit(&self, result: &Result<Response<GrpcBody<B>>, E>) -> Admit {
        let response = match result {
            Ok(response) => response,
            Err(error) if is_personal(Code::from_error(error)) => return Admit::Retry,
            Err(_) => return Admit::Share,
        };
        let Some(whole) = response.body().as_whole() else {
            return match response.body().has_failed() {
                true => Admit::Retry,
                false => Admit::LeaderOnly,
            };
        };
        match status(response.headers(), whole) {
            None => Admit::Retry,
            Some(code) if is_personal(code) => Admit::Retry,
            Some(_) if sets_cookie(response.headers(), whole) => Admit::LeaderOnly,
            Some(_) => Admit::Share,
        }
    }

    #[inline]
    fn alone(&self, result: Result<Response<GrpcBody<B>>, E>) -> Result<Self::Response, BoxError> {
        result.map_err(Into::into)
    }

    fn split(&self, result: Result<Response<GrpcBody<B>>, E>) -> GrpcShared {
        GrpcShared(result.map_err(SharedError::new).and_then(|response| {
            let (head, body) = response.into_parts();
            // Nothing else is admitted. Who splits it all the same must not get a body that ends too soon.
            let whole = body.into_whole();
            let whole = whole.ok_or_else(|| SharedError::new("a response was not read to its end"));
            Ok((head, whole?))
        }))
    }

    fn join(&self, shared: &GrpcShared) -> Result<Self::Response, BoxError> {
        match &shared.0 {
            Ok((head, whole)) => {
                let body = GrpcBody::whole(whole.clone());
                Ok(Response::from_parts(head.clone(), body))
            }
            Err(error) => Err(error.clone().into()),
        }
    }

    fn last(&self, shared: GrpcShared) -> Result<Self::Response, BoxError> {
        let (head, whole) = shared.0?;
        Ok(Response::from_parts(head, GrpcBody::whole(whole)))
    }

    fn fail(&self, rejection: Rejection) -> Result<Self::Response, BoxError> {
        if !self.responds() {
            return Err(rejection.into());
        }
        let code = Code::of_reason(rejection.reason());
        let mut response = Response::new(GrpcBody::whole(Whole::default()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(code.index() as u64));
        // No character of the message needs percent-encoding.
        if let Ok(message) = HeaderValue::try_from(rejection.to_string()) {
            headers.insert("grpc-message", message);
        }
        Ok(response)
    }
}

/// Whether a response sets a cookie, in its headers or its trailers: in one without a message they are the same to a
/// client.
fn sets_cookie(headers: &HeaderMap, whole: &Whole) -> bool {
    let mut both = [Some(headers), whole.trailers.as_ref()]
        .into_iter()
        .flatten();
    both.any(|headers| headers.contains_key(SET_COOKIE))
}

/// Whether a code says something of the one who asked.
fn is_personal(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled | Code::DeadlineExceeded | Code::Unauthenticated | Code::PermissionDenied
    )
}

/// The one status of a response: in its trailers, or in its headers when no message came after them.
fn status(headers: &HeaderMap, whole: &Whole) -> Option<Code> {
    let in_trailers = whole.trailers.iter();
    let in_trailers = in_trailers.flat_map(|trailers| trailers.get_all(GRPC_STATUS));
    let mut in_headers = headers.get_all(GRPC_STATUS).iter().peekable();
    // Headers that say how it ended, and a message that comes then, say two things.
    if in_headers.peek().is_some() && whole.data.is_some() {
        return None;
    }
    let mut all = in_headers.chain(in_trailers);
    let only = all.next()?;
    if all.next().is_some() {
        return None;
    }
    match *only.as_bytes() {
        [digit @ b'0'..=b'9'] => Some(Code::from_i32((digit - b'0').into())),
        [b'1', digit @ b'0'..=b'6'] => Some(Code::from_i32((digit - b'0' + 10).into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
