use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, RETRY_AFTER};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Body;

use super::cache_control::{Permission, permission, varies_within};
use super::options::Options;
use crate::base::error::SharedError;
use crate::base::error::{BoxError, Reason, Rejection};
use crate::middleware::coalesce::body::{FanOut, Limits, Origin, SharedBody};
use crate::middleware::coalesce::share::{Admit, Share};

/// Shares HTTP responses by what RFC 9111 lets a shared cache do, decided when the headers are there. Errors are shared as
/// [`SharedError`]s.
///
/// Made by [`CoalesceLayer::http`](crate::coalesce::CoalesceLayer::http). For its leader alone is a response that says
/// `private`, `no-store` or `no-cache`, sets a cookie, varies by a header on which those who wait do not agree, or says
/// any of it so that it cannot be read. Of the statuses some are about the one who asked; then each asks for itself.
///
/// How long a response is fresh does not matter: it is not stored, and `max-age=0` forbids to use it later, not to have
/// asked for it together.
#[derive(Debug, Clone)]
pub struct HttpShare {
    options: Arc<Options>,
    /// Counts readers that were too slow.
    evicted: Arc<AtomicU64>,
    /// Whether failures of the layer are responses. A preset sets it when the layer may be in use.
    respond: Arc<AtomicBool>,
}

/// A response that many read.
#[derive(Debug)]
pub struct HttpShared<B>(Result<(Parts, Origin<B>), SharedError>);

/// What a status says of those who asked the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It is the resource's answer to all.
    Resource,
    /// It is the answer to all if the headers say so.
    Explicit,
    /// The server failed, for all of them, and may be well again soon.
    Failure,
    /// It is about this request, its connection or its sender.
    Personal,
}

/// What a response says of its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Silent,
    Promised(u64),
    /// More than one thing, or nothing that is a length.
    Garbled,
}

// ===== impl HttpShare =====

impl HttpShare {
    pub(super) fn new(options: Arc<Options>, evicted: Arc<AtomicU64>, respond: bool) -> Self {
        Self {
            options,
            evicted,
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

    fn admit_head(&self, status: StatusCode, headers: &HeaderMap) -> Admit {
        let meaning = Meaning::of(status);
        if meaning == Meaning::Personal {
            return Admit::Retry;
        }
        let permission = permission(headers);
        let refused = permission == Permission::Refused
            || permission == Permission::Silent && meaning == Meaning::Explicit
            || FOR_ONE.iter().any(|name| headers.contains_key(*name))
            || !varies_within(headers, |name| self.options.agrees(name));
        match (refused, meaning) {
            // That a failure is for one says nothing of what comes after it.
            (true, Meaning::Failure) => Admit::Retry,
            (true, _) => Admit::LeaderOnly,
            (false, _) => Admit::Share,
        }
    }
}

/// Headers for one receiver: RFC 6265 and 2965, and what RFC 7615 says of who is logged in.
const FOR_ONE: [&str; 4] = [
    "set-cookie",
    "set-cookie2",
    "authentication-info",
    "proxy-authentication-info",
];

impl<B, E> Share<Response<B>, E> for HttpShare
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    type Response = Response<SharedBody<B>>;
    type Shared = HttpShared<B>;

    fn admit(&self, result: &Result<Response<B>, E>) -> Admit {
        let Ok(response) = result else {
            return Admit::Share;
        };
        let headers = response.headers();
        match self.admit_head(response.status(), headers) {
            // Who cannot say how long it is, or says what it knows to be wrong, may be wrong about the rest.
            Admit::Share if Length::of(headers).contradicts(response.body()) => Admit::Retry,
            admit => admit,
        }
    }

    #[inline]
    fn alone(&self, result: Result<Response<B>, E>) -> Result<Self::Response, BoxError> {
        match result {
            Ok(response) => Ok(response.map(SharedBody::alone)),
            Err(error) => Err(error.into()),
        }
    }

    fn split(&self, result: Result<Response<B>, E>) -> Self::Shared {
        HttpShared(result.map_err(SharedError::new).map(|response| {
            let (head, body) = response.into_parts();
            let limits = Limits {
                max_buffer: self.options.max_buffer,
                stall: self.options.stall,
            };
            let promised = Length::of(&head.headers).promised(&body);
            let origin = FanOut::open(body, limits, promised, self.evicted.clone());
            (head, origin)
        }))
    }

    fn join(&self, shared: &Self::Shared) -> Result<Self::Response, BoxError> {
        match &shared.0 {
            Ok((head, origin)) => Ok(Response::from_parts(head.clone(), origin.reader()?)),
            Err(error) => Err(error.clone().into()),
        }
    }

    fn last(&self, shared: Self::Shared) -> Result<Self::Response, BoxError> {
        let (head, origin) = shared.0?;
        Ok(Response::from_parts(head, origin.reader()?))
    }

    fn fail(&self, rejection: Rejection) -> Result<Self::Response, BoxError> {
        if !self.responds() {
            return Err(rejection.into());
        }
        let mut response = Response::new(SharedBody::empty());
        *response.status_mut() = match rejection.reason() {
            Reason::Timeout | Reason::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Reason::Recursion => StatusCode::LOOP_DETECTED,
            Reason::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let headers = response.headers_mut();
        if rejection.reason() == Reason::Abandoned {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        let reason = HeaderValue::from_static(rejection.reason().as_str());
        headers.insert("x-coalesce-reason", reason);
        Ok(response)
    }
}

// ===== impl Meaning =====

impl Meaning {
    /// | status | shared | because |
    /// |---|---|---|
    /// | 200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501 | yes | cacheable as they are, RFC 9110 §15.1 |
    /// | 451 | yes | cacheable as it is, RFC 7725 §3 |
    /// | 302, 303, 307 | if `public`, or `max-age` or `s-maxage` above 0 | what RFC 9111 §3 asks for where a status alone does not allow it: they often lead one caller somewhere |
    /// | 5xx but 505, 511 | yes | the server has failed all who asked the same; asking again side by side would not help it |
    /// | 1xx, 101 | no | about the connection, RFC 9110 §15.2 |
    /// | 206, 304, 412, 416 | no | about a part or a condition, which no request with a key has: RFC 9110 §15.3.7, §15.4.5 |
    /// | 401, 403, 407, 511 | no | about who asks, RFC 9110 §15.5.2, §15.5.4, RFC 6585 §6 |
    /// | 408, 421, 425, 426, 429, 505 | no | about the connection or the caller's pace: RFC 9110 §15.5.9, §15.5.20, RFC 8470 §5.2, RFC 6585 §4 |
    /// | 400, 406, 413, 417, 428, 431 and other 4xx | no | about headers that need not be in the key |
    /// | any other | no | not understood, RFC 9111 §3 |
    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 451 | 501 => Self::Resource,
            302 | 303 | 307 => Self::Explicit,
            505 | 511 => Self::Personal,
            500..=599 => Self::Failure,
            _ => Self::Personal,
        }
    }
}

// ===== impl Length =====

impl Length {
    /// Several lengths are one when they are the same, RFC 9112 §6.3.
    fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::Silent;
        for value in headers.get_all(CONTENT_LENGTH) {
            let length = match digits(value.as_bytes()) {
                Some(length) => Self::Promised(length),
                None => return Self::Garbled,
            };
            if found != Self::Silent && found != length {
                return Self::Garbled;
            }
            found = length;
        }
        found
    }

    /// Whether `body` cannot be what was said. One that is over at once may be the answer to a `HEAD` request.
    fn contradicts<B: Body>(self, body: &B) -> bool {
        match self {
            Self::Silent => false,
            Self::Garbled => true,
            Self::Promised(length) => {
                let hint = body.size_hint();
                let fits =
                    hint.lower() <= length && hint.upper().is_none_or(|upper| length <= upper);
                !fits && !body.is_end_stream()
            }
        }
    }

    /// How long `body` must be, so that one cut short has no clean end.
    fn promised<B: Body>(self, body: &B) -> Option<u64> {
        match self {
            Self::Promised(length) if !body.is_end_stream() => Some(length),
            _ => None,
        }
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| is_number)?;
    text.parse().ok()
}

#[cfg(test)]
mod tests;
