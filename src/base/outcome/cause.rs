//! What a failed future or body means, by the causes in its error's chain.

use std::any::Any;
use std::error::Error;

use super::code::Code;
use crate::base::error::{BoxError, Rejection, chain};

use Code::*;

/// The first cause in `error`'s chain that says a code.
pub(super) fn code<E: 'static>(error: &E) -> Option<Code> {
    chain(as_error(error)?).find_map(from_cause)
}

/// An error type is not always an `Error`: boxed ones are not. The known types are recognised.
fn as_error<E: 'static>(error: &E) -> Option<&(dyn Error + 'static)> {
    fn known<T: Error + 'static>(error: &dyn Any) -> Option<&(dyn Error + 'static)> {
        error.downcast_ref::<T>().map(|error| error as _)
    }
    let error: &dyn Any = error;
    if let Some(boxed) = error.downcast_ref::<BoxError>() {
        return Some(boxed.as_ref());
    }
    if let Some(boxed) = error.downcast_ref::<Box<dyn Error + Send>>() {
        return Some(boxed.as_ref());
    }
    let found = known::<Rejection>(error).or_else(|| known::<std::io::Error>(error));
    #[cfg(feature = "tonic")]
    let found = found
        .or_else(|| known::<tonic::Status>(error))
        .or_else(|| known::<tonic::ConnectError>(error))
        .or_else(|| known::<tonic::TimeoutExpired>(error))
        .or_else(|| known::<tonic::transport::Error>(error));
    #[cfg(feature = "hyper")]
    let found = found
        .or_else(|| known::<hyper::Error>(error))
        .or_else(|| known::<hyper_util::client::legacy::Error>(error));
    found
}

fn from_cause(cause: &(dyn Error + 'static)) -> Option<Code> {
    if let Some(rejection) = cause.downcast_ref::<Rejection>() {
        return Some(Code::of_reason(rejection.reason()));
    }
    if cause.is::<tokio::time::error::Elapsed>() || cause.is::<tower::timeout::error::Elapsed>() {
        return Some(DeadlineExceeded);
    }
    if cause.is::<tower::load_shed::error::Overloaded>() {
        return Some(Unavailable);
    }
    #[cfg(feature = "tonic")]
    {
        if let Some(status) = cause.downcast_ref::<tonic::Status>() {
            return Some(status.code().into());
        }
        if cause.is::<tonic::TimeoutExpired>() {
            return Some(DeadlineExceeded);
        }
        if cause.is::<tonic::ConnectError>() {
            return Some(Unavailable);
        }
    }
    #[cfg(feature = "hyper")]
    {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return Some(from_h2(error));
        }
        if let Some(error) = cause.downcast_ref::<hyper::Error>() {
            // A keep-alive ping without an answer ends every call of the connection as unavailable. A cancelled
            // or closed one has no h2 cause further down.
            if error.is_timeout() {
                return Some(Unavailable);
            }
            if error.is_canceled() {
                return Some(Cancelled);
            }
        }
        if let Some(error) = cause.downcast_ref::<hyper_util::client::legacy::Error>()
            && error.is_connect()
        {
            return Some(Unavailable);
        }
    }
    cause.downcast_ref::<std::io::Error>().and_then(from_io)
}

fn from_io(error: &std::io::Error) -> Option<Code> {
    Some(match error.kind() {
        std::io::ErrorKind::TimedOut => DeadlineExceeded,
        std::io::ErrorKind::ConnectionRefused
        | std::io::ErrorKind::ConnectionReset
        | std::io::ErrorKind::ConnectionAborted
        | std::io::ErrorKind::NotConnected
        | std::io::ErrorKind::BrokenPipe
        | std::io::ErrorKind::HostUnreachable
        | std::io::ErrorKind::NetworkUnreachable
        | std::io::ErrorKind::NetworkDown
        | std::io::ErrorKind::UnexpectedEof => Unavailable,
        // `source` of an I/O error skips the error it wraps.
        _ => return chain(error.get_ref()?).find_map(from_cause),
    })
}

/// gRPC over HTTP/2, "HTTP2 transport mapping: errors".
#[cfg(feature = "hyper")]
fn from_h2(error: &h2::Error) -> Code {
    match error.reason() {
        Some(
            h2::Reason::NO_ERROR
            | h2::Reason::PROTOCOL_ERROR
            | h2::Reason::INTERNAL_ERROR
            | h2::Reason::FLOW_CONTROL_ERROR
            | h2::Reason::SETTINGS_TIMEOUT
            | h2::Reason::FRAME_SIZE_ERROR
            | h2::Reason::COMPRESSION_ERROR
            | h2::Reason::CONNECT_ERROR,
        ) => Internal,
        Some(h2::Reason::REFUSED_STREAM) => Unavailable,
        Some(h2::Reason::CANCEL) => Cancelled,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => ResourceExhausted,
        Some(h2::Reason::INADEQUATE_SECURITY) => PermissionDenied,
        _ if error.is_io() => Unavailable,
        _ => Unknown,
    }
}
