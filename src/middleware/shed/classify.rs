//! What an end says about load.

use http::{HeaderMap, Response, StatusCode};

use crate::base::outcome::Code;

/// What the end of a request says about load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// It was served. Its round trip is a sample.
    Success,
    /// Somebody on the way had too much to do: a timeout, "too many requests", "unavailable".
    Overload,
    /// It failed in a way that says nothing about load. Never a sample, however fast it failed.
    Ignore,
    /// The caller went away, too early to tell why.
    Cancelled,
}

impl Verdict {
    /// All verdicts.
    pub const ALL: [Self; 4] = [Self::Success, Self::Overload, Self::Ignore, Self::Cancelled];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Overload => "overload",
            Self::Ignore => "ignore",
            Self::Cancelled => "cancelled",
        }
    }

    /// What gRPC's code says: DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED and UNAVAILABLE are signs of overload; UNKNOWN,
    /// INTERNAL and DATA_LOSS say nothing; all others are answers like any other.
    #[inline]
    pub fn of_code(code: Code) -> Self {
        match code {
            Code::DeadlineExceeded | Code::ResourceExhausted | Code::Unavailable => Self::Overload,
            Code::Unknown | Code::Internal | Code::DataLoss => Self::Ignore,
            Code::Cancelled => Self::Cancelled,
            _ => Self::Success,
        }
    }

    /// What an HTTP status says: 408, 429, 503 and 504 are signs of overload; other 5xx say nothing; all others are
    /// answers like any other.
    #[inline]
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            408 | 429 | 503 | 504 => Self::Overload,
            500..=599 => Self::Ignore,
            _ => Self::Success,
        }
    }

    /// What an error says, by the causes in its chain; see [`Code::from_error`].
    pub fn of_error<E: 'static>(error: &E) -> Self {
        Self::of_code(Code::from_error(error))
    }
}

/// Tells what a result says about load. Any `Fn(Result<&T, &E>) -> Verdict` does.
pub trait Classify<T, E> {
    /// What `result` says.
    fn classify(&self, result: Result<&T, &E>) -> Verdict;

    /// As [`classify`](Self::classify), and `None` if that panics. Only what cannot panic does without the guard.
    #[doc(hidden)]
    fn guarded(&self, result: Result<&T, &E>) -> Option<Verdict> {
        caught(|| self.classify(result))
    }
}

/// `Ok` is a success; an error says what its causes say.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct ByError;

/// Tells what an HTTP response says about load. Any `Fn(StatusCode, &HeaderMap) -> Verdict` does.
pub trait ClassifyResponse {
    /// What the headers say; `None` when the trailers decide.
    fn head<B>(&self, response: &Response<B>) -> Option<Verdict>;

    /// What the end says: its trailers, if it had any.
    fn end(&self, trailers: Option<&HeaderMap>) -> Verdict {
        let _ = trailers;
        Verdict::Success
    }

    /// What an error of the service or of a body says.
    fn error<E: 'static>(&self, error: &E) -> Verdict {
        Verdict::of_error(error)
    }

    /// As [`head`](Self::head), and `None` if that panics.
    #[doc(hidden)]
    fn guarded_head<B>(&self, response: &Response<B>) -> Option<Option<Verdict>> {
        caught(|| self.head(response))
    }

    /// As [`end`](Self::end), and `None` if that panics.
    #[doc(hidden)]
    fn guarded_end(&self, trailers: Option<&HeaderMap>) -> Option<Verdict> {
        caught(|| self.end(trailers))
    }
}

/// What a hook of the user says, unless it panics.
fn caught<T>(hook: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(hook)).ok()
}

/// By the HTTP status; see [`Verdict::of_status`].
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct ByStatus;

/// By `grpc-status`, in headers or trailers; see [`Verdict::of_code`].
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct ByGrpcStatus;

// ===== impl Classify =====

impl<T, E: 'static> Classify<T, E> for ByError {
    #[inline]
    fn classify(&self, result: Result<&T, &E>) -> Verdict {
        match result {
            Ok(_) => Verdict::Success,
            Err(error) => Verdict::of_error(error),
        }
    }

    #[inline]
    fn guarded(&self, result: Result<&T, &E>) -> Option<Verdict> {
        Some(self.classify(result))
    }
}

impl<T, E, F: Fn(Result<&T, &E>) -> Verdict> Classify<T, E> for F {
    fn classify(&self, result: Result<&T, &E>) -> Verdict {
        self(result)
    }
}

// ===== impl ClassifyResponse =====

impl ClassifyResponse for ByStatus {
    #[inline]
    fn head<B>(&self, response: &Response<B>) -> Option<Verdict> {
        Some(Verdict::of_status(response.status()))
    }

    #[inline]
    fn guarded_head<B>(&self, response: &Response<B>) -> Option<Option<Verdict>> {
        Some(self.head(response))
    }

    #[inline]
    fn guarded_end(&self, trailers: Option<&HeaderMap>) -> Option<Verdict> {
        Some(self.end(trailers))
    }
}

impl ClassifyResponse for ByGrpcStatus {
    #[inline]
    fn head<B>(&self, response: &Response<B>) -> Option<Verdict> {
        if let Some(code) = Code::from_headers(response.headers()) {
            return Some(Verdict::of_code(code));
        }
        match response.status() {
            StatusCode::OK => None,
            status => Some(Verdict::of_code(Code::from_http(status))),
        }
    }

    #[inline]
    fn end(&self, trailers: Option<&HeaderMap>) -> Verdict {
        let code = trailers.and_then(Code::from_headers);
        Verdict::of_code(code.unwrap_or(Code::Unknown))
    }

    #[inline]
    fn guarded_head<B>(&self, response: &Response<B>) -> Option<Option<Verdict>> {
        Some(self.head(response))
    }

    #[inline]
    fn guarded_end(&self, trailers: Option<&HeaderMap>) -> Option<Verdict> {
        Some(self.end(trailers))
    }
}

impl<F: Fn(StatusCode, &HeaderMap) -> Verdict> ClassifyResponse for F {
    fn head<B>(&self, response: &Response<B>) -> Option<Verdict> {
        Some(self(response.status(), response.headers()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BoxError;

    #[test]
    fn statuses_say_what_they_say() {
        let of = |status| Verdict::of_status(StatusCode::from_u16(status).unwrap());
        for status in [200, 204, 301, 400, 401, 404, 499] {
            assert_eq!(of(status), Verdict::Success, "{status}");
        }
        for status in [408, 429, 503, 504] {
            assert_eq!(of(status), Verdict::Overload, "{status}");
        }
        for status in [500, 501, 502, 505, 599] {
            assert_eq!(of(status), Verdict::Ignore, "{status}");
        }
    }

    #[test]
    fn grpc_codes_say_what_they_say_in_headers_and_trailers() {
        let mut response = Response::new(());
        assert_eq!(ByGrpcStatus.head(&response), None);
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        assert_eq!(ByGrpcStatus.head(&response), Some(Verdict::Overload));
        for (code, verdict) in [
            ("0", Verdict::Success),
            ("1", Verdict::Cancelled),
            ("4", Verdict::Overload),
            ("5", Verdict::Success),
            ("8", Verdict::Overload),
            ("13", Verdict::Ignore),
            ("14", Verdict::Overload),
            ("garbage", Verdict::Ignore),
        ] {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static(code));
            assert_eq!(ByGrpcStatus.end(Some(&trailers)), verdict, "{code}");
            *response.headers_mut() = trailers;
            assert_eq!(ByGrpcStatus.head(&response), Some(verdict), "{code}");
        }
        assert_eq!(ByGrpcStatus.end(None), Verdict::Ignore);
    }

    #[test]
    fn errors_say_what_their_causes_say() {
        let late: BoxError = tower::timeout::error::Elapsed::new().into();
        assert_eq!(Verdict::of_error(&late), Verdict::Overload);
        assert_eq!(
            Verdict::of_error(&BoxError::from("who knows")),
            Verdict::Ignore
        );
        let plain: Result<&(), &BoxError> = Err(&late);
        assert_eq!(ByError.classify(plain), Verdict::Overload);
    }
}
