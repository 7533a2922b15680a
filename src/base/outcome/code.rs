use std::fmt;

use http::{HeaderMap, HeaderName, StatusCode};
use tower_http::classify::GrpcCode;

use super::cause;
use crate::base::error::Reason;
use crate::base::header;

/// The header or trailer that carries a call's status.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// gRPC's status codes, in their wire order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // The names are the field's own; their meaning is gRPC's.
pub enum Code {
    Ok,
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

use Code::*;

// ===== impl Code =====

impl Code {
    /// All codes; a code's place here is its number on the wire.
    pub const ALL: [Self; 17] = [
        Ok,
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    ];

    /// Its number on the wire, and its place in [`ALL`](Self::ALL).
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }

    /// The spelling of grpc-go, which dashboards and alert rules made for the Go middleware expect: `NotFound`,
    /// `Canceled`.
    pub fn as_go(self) -> &'static str {
        const NAMES: [&str; 17] = [
            "OK",
            "Canceled",
            "Unknown",
            "InvalidArgument",
            "DeadlineExceeded",
            "NotFound",
            "AlreadyExists",
            "PermissionDenied",
            "ResourceExhausted",
            "FailedPrecondition",
            "Aborted",
            "OutOfRange",
            "Unimplemented",
            "Internal",
            "Unavailable",
            "DataLoss",
            "Unauthenticated",
        ];
        NAMES[self.index()]
    }

    /// The spelling of the gRPC specification and of OpenTelemetry: `NOT_FOUND`, `CANCELLED`.
    pub fn as_otel(self) -> &'static str {
        const NAMES: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        NAMES[self.index()]
    }

    /// The code with this number; [`Unknown`](Self::Unknown) for numbers nobody has defined.
    pub fn from_i32(code: i32) -> Self {
        usize::try_from(code)
            .ok()
            .and_then(|index| Self::ALL.get(index).copied())
            .unwrap_or(Unknown)
    }

    /// Reads a `grpc-status` value: one or two digits. Anything else is [`Unknown`](Self::Unknown), never success.
    #[inline]
    pub fn from_bytes(value: &[u8]) -> Self {
        match *value {
            [b'0'] => Ok,
            [a @ b'0'..=b'9'] => Self::from_i32(i32::from(a - b'0')),
            [a @ b'0'..=b'9', b @ b'0'..=b'9'] => {
                Self::from_i32(i32::from(a - b'0') * 10 + i32::from(b - b'0'))
            }
            _ => Unknown,
        }
    }

    /// The status in these headers or trailers; `None` when they carry none.
    #[inline]
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let [status] = header::find(headers, ["grpc-status"]);
        status.map(|value| Self::from_bytes(value.as_bytes()))
    }

    /// What an answer without any `grpc-status` means, by its HTTP status.
    ///
    /// Source: gRPC's "HTTP to gRPC status code mapping". A 200 is [`Unknown`](Self::Unknown): the peer forgot to say.
    pub fn from_http(status: StatusCode) -> Self {
        match status.as_u16() {
            400 | 431 => Internal,
            401 => Unauthenticated,
            403 => PermissionDenied,
            404 => Unimplemented,
            429 | 502 | 503 | 504 => Unavailable,
            _ => Unknown,
        }
    }

    /// What gRPC calls a refusal by a layer of this crate: DEADLINE_EXCEEDED for a deadline, RESOURCE_EXHAUSTED for a
    /// quota, UNAVAILABLE for all else.
    pub fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::Deadline | Reason::Timeout => DeadlineExceeded,
            Reason::Quota | Reason::TooLarge => ResourceExhausted,
            Reason::Panicked | Reason::Recursion | Reason::Missing => Internal,
            _ => Unavailable,
        }
    }

    /// What a failed future or body means: the first cause in the error's chain that says it.
    ///
    /// Known are a [`Rejection`](crate::Rejection), I/O errors, tokio's and tower's `Elapsed`, tower's `Overloaded`; with feature `tonic` its `Status`, `TimeoutExpired`
    /// and `ConnectError`; with feature `hyper` hyper's, its legacy client's and h2's errors, by gRPC's "HTTP2 error
    /// codes" table. Everything else is [`Unknown`](Self::Unknown).
    pub fn from_error<E: 'static>(error: &E) -> Self {
        cause::code(error).unwrap_or(Unknown)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_otel())
    }
}

impl From<GrpcCode> for Code {
    fn from(code: GrpcCode) -> Self {
        Self::from_i32(code as i32)
    }
}

#[cfg(feature = "tonic")]
impl From<tonic::Code> for Code {
    fn from(code: tonic::Code) -> Self {
        Self::from_i32(code as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::{BoxError, Rejection};

    #[test]
    fn numbers_and_names_line_up() {
        for (number, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code.index(), number);
            assert_eq!(Code::from_i32(number as i32), code);
            assert_eq!(Code::from_bytes(number.to_string().as_bytes()), code);
            let squashed = code
                .as_otel()
                .replace('_', "")
                .replace("CANCELLED", "CANCELED");
            assert_eq!(code.as_go().to_uppercase(), squashed);
        }
    }

    #[test]
    fn garbage_is_unknown() {
        for value in [
            &b""[..],
            b"17",
            b"99",
            b"-1",
            b"abc",
            b"000",
            b"0 ",
            b"\xff",
            b"1000000000000",
        ] {
            assert_eq!(Code::from_bytes(value), Unknown, "{value:?}");
        }
        assert_eq!(Code::from_i32(-1), Unknown);
        assert_eq!(Code::from_i32(17), Unknown);
    }

    #[test]
    fn http_statuses_map_as_the_document_says() {
        let of = |status| Code::from_http(StatusCode::from_u16(status).unwrap());
        let expected = [
            (400, Internal),
            (401, Unauthenticated),
            (403, PermissionDenied),
            (404, Unimplemented),
            (429, Unavailable),
            (431, Internal),
            (502, Unavailable),
            (503, Unavailable),
            (504, Unavailable),
            (200, Unknown),
            (418, Unknown),
            (500, Unknown),
        ];
        for (status, code) in expected {
            assert_eq!(of(status), code, "{status}");
        }
    }

    #[test]
    fn causes_are_found_in_boxes_and_chains() {
        use std::io;
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(Code::from_error(&refused()), Unavailable);
        let boxed: BoxError = Box::new(io::Error::other(refused()));
        assert_eq!(Code::from_error(&boxed), Unavailable);
        let rejection = |reason| BoxError::from(Rejection::new("shed", reason, "full"));
        assert_eq!(Code::from_error(&rejection(Reason::Limit)), Unavailable);
        assert_eq!(
            Code::from_error(&rejection(Reason::Quota)),
            ResourceExhausted
        );
        assert_eq!(
            Code::from_error(&rejection(Reason::Deadline)),
            DeadlineExceeded
        );
        let late = BoxError::from(tower::timeout::error::Elapsed::new());
        assert_eq!(Code::from_error(&late), DeadlineExceeded);
        let full = BoxError::from(tower::load_shed::error::Overloaded::new());
        assert_eq!(Code::from_error(&full), Unavailable);
        assert_eq!(Code::from_error(&BoxError::from("who knows")), Unknown);
        assert_eq!(Code::from_error(&"no error at all"), Unknown);
    }

    #[cfg(feature = "tonic")]
    #[test]
    fn tonic_causes_are_known() {
        let status = tonic::Status::data_loss("gone");
        assert_eq!(Code::from_error(&status), DataLoss);
        assert_eq!(Code::from_error(&BoxError::from(status)), DataLoss);
        let connect = tonic::ConnectError("no route".into());
        assert_eq!(Code::from_error(&BoxError::from(connect)), Unavailable);
        let expired = tonic::TimeoutExpired(());
        assert_eq!(Code::from_error(&BoxError::from(expired)), DeadlineExceeded);
    }

    #[cfg(feature = "hyper")]
    #[test]
    fn http2_resets_map_as_the_document_says() {
        let of = |reason: h2::Reason| Code::from_error(&BoxError::from(h2::Error::from(reason)));
        assert_eq!(of(h2::Reason::CANCEL), Cancelled);
        assert_eq!(of(h2::Reason::REFUSED_STREAM), Unavailable);
        assert_eq!(of(h2::Reason::ENHANCE_YOUR_CALM), ResourceExhausted);
        assert_eq!(of(h2::Reason::INADEQUATE_SECURITY), PermissionDenied);
        assert_eq!(of(h2::Reason::PROTOCOL_ERROR), Internal);
        assert_eq!(of(h2::Reason::NO_ERROR), Internal);
        assert_eq!(of(h2::Reason::STREAM_CLOSED), Unknown);
    }
}
