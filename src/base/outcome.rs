//! How a request ended.
//!
//! [`Outcome`] is the coarse answer every layer understands; [`Code`] is gRPC's. Both are read honestly: a status in
//! trailers counts as much as one in headers, a missing or unreadable `grpc-status` is never success, and a future or
//! body that was dropped is an outcome of its own.
//!
//! Classifiers are tower-http's: [`HttpClassifier`] and [`GrpcClassifier`] implement its traits and so work in
//! `TraceLayer`, and any classifier written for `TraceLayer` works in this crate's HTTP layers as long as its failure
//! class turns into an [`Outcome`], as tower-http's own do.

mod cause;
mod code;

use std::fmt::{self, Display};

use http::{HeaderMap, Response, StatusCode};
use tower_http::classify::{
    ClassifiedResponse, ClassifyEos, ClassifyResponse, GrpcFailureClass, NeverClassifyEos,
    ServerErrorsFailureClass, SharedClassifier, StatusInRangeFailureClass,
};

pub use code::{Code, GRPC_STATUS};

/// How a request ended, for layers that need no more detail.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was answered as it should be.
    Success,
    /// It failed.
    Failure,
    /// Nobody here serves it: 404, 405, UNIMPLEMENTED. Kept apart, since scanners make most of these.
    NotFound,
    /// The caller went away first.
    Cancelled,
    /// Its deadline passed first.
    DeadlineExceeded,
    /// The handler panicked.
    Panic,
}

/// The default HTTP classifier: 5xx fails, 404, 405 and 501 are [`Outcome::NotFound`], 504 is
/// [`Outcome::DeadlineExceeded`].
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct HttpClassifier;

/// The gRPC classifier: by `grpc-status`, in headers or trailers, else by the HTTP status; never success without one.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct GrpcClassifier;

/// The second half of [`GrpcClassifier`], for a status still to come in trailers.
#[derive(Debug, Clone, Copy)]
pub struct GrpcEos(StatusCode);

// ===== impl Outcome =====

impl Outcome {
    /// All outcomes, in the order of [`index`](Self::index).
    pub const ALL: [Self; 6] = [
        Self::Success,
        Self::Failure,
        Self::NotFound,
        Self::Cancelled,
        Self::DeadlineExceeded,
        Self::Panic,
    ];

    /// Its place in [`ALL`](Self::ALL).
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether whoever serves it is to blame: nobody asked for the impossible, or went away.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failure | Self::DeadlineExceeded | Self::Panic)
    }

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::NotFound => "not_found",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Panic => "panic",
        }
    }

    /// What a drop before the end means: a panic, a deadline that has passed, or a caller that went away.
    pub fn of_drop(deadline_passed: bool) -> Self {
        if std::thread::panicking() {
            Self::Panic
        } else if deadline_passed {
            Self::DeadlineExceeded
        } else {
            Self::Cancelled
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<Code> for Outcome {
    fn from(code: Code) -> Self {
        match code {
            Code::Ok => Self::Success,
            Code::Cancelled => Self::Cancelled,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::Unimplemented => Self::NotFound,
            _ => Self::Failure,
        }
    }
}

impl From<StatusCode> for Outcome {
    fn from(status: StatusCode) -> Self {
        match status.as_u16() {
            404 | 405 | 501 => Self::NotFound,
            504 => Self::DeadlineExceeded,
            500..=599 => Self::Failure,
            _ => Self::Success,
        }
    }
}

impl From<ServerErrorsFailureClass> for Outcome {
    fn from(class: ServerErrorsFailureClass) -> Self {
        match class {
            ServerErrorsFailureClass::StatusCode(status) => status.into(),
            ServerErrorsFailureClass::Error(_) => Self::Failure,
        }
    }
}

impl From<StatusInRangeFailureClass> for Outcome {
    fn from(class: StatusInRangeFailureClass) -> Self {
        match class {
            // The range is the user's: whatever lies in it failed, unless nobody serves it.
            StatusInRangeFailureClass::StatusCode(status) => match Self::from(status) {
                Self::Success => Self::Failure,
                outcome => outcome,
            },
            StatusInRangeFailureClass::Error(_) => Self::Failure,
        }
    }
}

impl From<GrpcFailureClass> for Outcome {
    fn from(class: GrpcFailureClass) -> Self {
        match class {
            GrpcFailureClass::Status(status) => Code::from_i32(status.code_raw()).into(),
            _ => Self::Failure,
        }
    }
}

// ===== impl HttpClassifier =====

impl HttpClassifier {
    /// As a `MakeClassifier`, the form layers take.
    pub fn make_classifier() -> SharedClassifier<Self> {
        SharedClassifier::new(Self)
    }
}

impl ClassifyResponse for HttpClassifier {
    type FailureClass = Outcome;
    type ClassifyEos = NeverClassifyEos<Outcome>;

    #[inline]
    fn classify_response<B>(
        self,
        res: &Response<B>,
    ) -> ClassifiedResponse<Outcome, Self::ClassifyEos> {
        ClassifiedResponse::Ready(or_failure(res.status().into()))
    }

    fn classify_error<E: Display + 'static>(self, error: &E) -> Outcome {
        Code::from_error(error).into()
    }
}

// ===== impl GrpcClassifier =====

impl GrpcClassifier {
    /// As a `MakeClassifier`, the form layers take.
    pub fn make_classifier() -> SharedClassifier<Self> {
        SharedClassifier::new(Self)
    }
}

impl ClassifyResponse for GrpcClassifier {
    type FailureClass = Outcome;
    type ClassifyEos = GrpcEos;

    #[inline]
    fn classify_response<B>(self, res: &Response<B>) -> ClassifiedResponse<Outcome, GrpcEos> {
        match Code::from_headers(res.headers()) {
            Some(code) => ClassifiedResponse::Ready(or_failure(code.into())),
            None => ClassifiedResponse::RequiresEos(GrpcEos(res.status())),
        }
    }

    fn classify_error<E: Display + 'static>(self, error: &E) -> Outcome {
        Code::from_error(error).into()
    }
}

impl ClassifyEos for GrpcEos {
    type FailureClass = Outcome;

    #[inline]
    fn classify_eos(self, trailers: Option<&HeaderMap>) -> Result<(), Outcome> {
        let code = trailers
            .and_then(Code::from_headers)
            .unwrap_or_else(|| Code::from_http(self.0));
        or_failure(code.into())
    }

    fn classify_error<E: Display + 'static>(self, error: &E) -> Outcome {
        Code::from_error(error).into()
    }
}

fn or_failure(outcome: Outcome) -> Result<(), Outcome> {
    match outcome {
        Outcome::Success => Ok(()),
        outcome => Err(outcome),
    }
}

#[cfg(test)]
mod tests {
    use tower_http::classify::GrpcErrorsAsFailures;

    use super::*;

    fn classify<C>(classifier: C, response: &Response<()>, trailers: Option<&HeaderMap>) -> Outcome
    where
        C: ClassifyResponse<FailureClass: Into<Outcome>>,
    {
        let result = match classifier.classify_response(response) {
            ClassifiedResponse::Ready(result) => result,
            ClassifiedResponse::RequiresEos(eos) => eos.classify_eos(trailers),
        };
        result.map_or_else(Into::into, |()| Outcome::Success)
    }

    fn response(status: u16, grpc_status: Option<&'static str>) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some(code) = grpc_status {
            let code = http::HeaderValue::from_static(code);
            response.headers_mut().insert(GRPC_STATUS, code);
        }
        response
    }

    #[test]
    fn http_statuses_fall_into_their_outcomes() {
        let of = |status| classify(HttpClassifier, &response(status, None), None);
        assert_eq!(of(200), Outcome::Success);
        assert_eq!(of(401), Outcome::Success);
        assert_eq!(of(404), Outcome::NotFound);
        assert_eq!(of(405), Outcome::NotFound);
        assert_eq!(of(500), Outcome::Failure);
        assert_eq!(of(504), Outcome::DeadlineExceeded);
    }

    #[test]
    fn a_missing_or_garbage_grpc_status_is_never_success() {
        let of = |status, code| classify(GrpcClassifier, &response(status, code), None);
        assert_eq!(of(200, Some("0")), Outcome::Success);
        assert_eq!(of(200, None), Outcome::Failure);
        assert_eq!(of(200, Some("abc")), Outcome::Failure);
        assert_eq!(of(200, Some("99")), Outcome::Failure);
        assert_eq!(of(404, None), Outcome::NotFound);
        // tower-http's own classifier calls these success, which is why this crate brings one.
        let peer = classify(
            GrpcErrorsAsFailures::new(),
            &response(200, Some("abc")),
            None,
        );
        assert_eq!(peer, Outcome::Success);
    }

    #[test]
    fn trailers_decide_when_headers_do_not() {
        let trailers = response(200, Some("5")).headers().clone();
        let of = classify(GrpcClassifier, &response(200, None), Some(&trailers));
        assert_eq!(of, Outcome::Failure);
    }

    #[test]
    fn tower_http_classes_turn_into_outcomes() {
        let class = ServerErrorsFailureClass::StatusCode(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(Outcome::from(class), Outcome::Failure);
        let class = StatusInRangeFailureClass::StatusCode(StatusCode::IM_A_TEAPOT);
        assert_eq!(Outcome::from(class), Outcome::Failure);
        assert_eq!(
            Outcome::from(GrpcFailureClass::Error("x".into())),
            Outcome::Failure
        );
        let peer = classify(GrpcErrorsAsFailures::new(), &response(200, Some("4")), None);
        assert_eq!(peer, Outcome::DeadlineExceeded);
    }
}
