use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::base::error::{BoxError, Reason, Rejection};
use crate::base::outcome::Code;

/// Why a request was not answered, or a message not stored.
///
/// Where it is ours to refuse or to give up there is a [`Rejection`] in the chain, and with it, with feature `tonic`, a
/// `tonic::Status`; else the source is what async-nats or the server said.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    rejection: Option<Rejection>,
    cause: Option<BoxError>,
}

/// What kind of failure an [`Error`] is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Nobody listens on the subject.
    NoResponders,
    /// No stream has the subject, or JetStream is not up yet.
    NoStream,
    /// It was sent, and nothing came back in time.
    TimedOut,
    /// Its deadline passed.
    Deadline,
    /// It is larger than the server takes.
    TooLarge {
        /// Bytes of the payload and the headers.
        size: usize,
        /// Bytes the server takes.
        max: usize,
    },
    /// The connection is not there, or went away.
    Disconnected {
        /// Whether it may have reached the server before that, and so may have been carried out.
        sent: bool,
    },
    /// The connection is there and takes nothing more: the server does not read, or acknowledges nothing of what it
    /// has.
    Slow,
    /// Too many wait for a connection of the pool already.
    Overloaded,
    /// No connection of the pool had room in time.
    AcquireTimeout,
    /// No connection could be made.
    Connect,
    /// The connection, or the pool, is closed for good.
    Closed,
    /// Its subject, or a header, is none.
    Malformed,
    /// JetStream refused it.
    Refused {
        /// The server's number for why: see [`ErrorCode`](async_nats::jetstream::ErrorCode).
        code: u64,
    },
    /// What came back is no acknowledgement.
    Garbled,
}

// ===== impl Error =====

impl Error {
    pub(super) fn no_responders(subject: &str) -> Self {
        let message = format!("nobody listens on {subject:?}; start a responder, or try later");
        Self::new(ErrorKind::NoResponders, message)
    }

    pub(super) fn no_stream(subject: &str) -> Self {
        let message = format!(
            "no stream has the subject {subject:?}; make one, or try later if JetStream is starting"
        );
        Self::new(ErrorKind::NoStream, message)
    }

    pub(super) fn timed_out(subject: &str, after: Duration) -> Self {
        let message = format!("no answer on {subject:?} within {after:?}");
        Self::rejected(ErrorKind::TimedOut, Reason::Timeout, message)
    }

    pub(super) fn unacknowledged(subject: &str, after: Duration) -> Self {
        let message = format!(
            "no acknowledgement for {subject:?} within {after:?}: it may be stored; send it again with the same message id"
        );
        Self::rejected(ErrorKind::TimedOut, Reason::Timeout, message)
    }

    pub(super) fn deadline(subject: &str, sent: bool) -> Self {
        let message = match sent {
            true => format!("the deadline passed before {subject:?} answered"),
            false => format!("the deadline passed before anything was sent to {subject:?}"),
        };
        Self::rejected(ErrorKind::Deadline, Reason::Deadline, message)
    }

    pub(super) fn too_large(size: usize, max: usize) -> Self {
        let message = format!(
            "{size} bytes of payload and headers, and the server takes {max}; send less, or raise its max_payload"
        );
        Self::rejected(ErrorKind::TooLarge { size, max }, Reason::TooLarge, message)
    }

    pub(super) fn disconnected(sent: bool) -> Self {
        let message = match sent {
            true => "the connection went away; it may have reached the server before",
            false => {
                "there is no connection to the server now; try again when the service is ready"
            }
        };
        Self::new(ErrorKind::Disconnected { sent }, message.into())
    }

    pub(super) fn slow(after: Duration) -> Self {
        let message = format!(
            "the connection took nothing within {after:?}: the server does not read; send less, or use more connections"
        );
        Self::rejected(ErrorKind::Slow, Reason::Timeout, message)
    }

    pub(super) fn no_room(after: Duration, max: usize) -> Self {
        let message = format!(
            "{max} messages wait for their acknowledgements, and none came within {after:?}; raise max_in_flight, or \
             publish less"
        );
        Self::rejected(ErrorKind::Slow, Reason::Timeout, message)
    }

    pub(super) fn overloaded(waiting: usize, max: usize) -> Self {
        let message = format!(
            "{waiting} requests wait for a connection already, and {max} may; raise max_waiting, max_in_flight or \
             max_connections, or send less"
        );
        Self::rejected(ErrorKind::Overloaded, Reason::QueueFull, message)
    }

    pub(super) fn acquire_timeout(after: Duration, in_flight: usize, up: usize) -> Self {
        let message = match up {
            0 => format!("no connection to a server within {after:?}"),
            _ => format!(
                "no room within {after:?}: {in_flight} requests are in flight on {up} connections; raise max_in_flight or \
                 max_connections"
            ),
        };
        Self::rejected(ErrorKind::AcquireTimeout, Reason::QueueTimeout, message)
    }

    pub(super) fn connect(cause: BoxError, pause: Option<Duration>) -> Self {
        let message = match pause {
            Some(pause) => format!("connecting failed: {cause}; the next attempt is in {pause:?}"),
            None => format!("connecting failed: {cause}"),
        };
        Self::new(ErrorKind::Connect, message).caused(cause)
    }

    pub(super) fn closed() -> Self {
        let message = "closed for good; make a new one".to_owned();
        Self::rejected(ErrorKind::Closed, Reason::Closed, message)
    }

    /// `what` is `subject` or `header`.
    pub(super) fn malformed(what: &str, text: &str) -> Self {
        let message =
            format!("{text:?} is no {what}; leave out line breaks, and white space in subjects");
        Self::new(ErrorKind::Malformed, message)
    }

    pub(super) fn refused(error: async_nats::jetstream::Error) -> Self {
        let code = error.error_code().0;
        let message = format!("JetStream refused it: {error}");
        Self::new(ErrorKind::Refused { code }, message).caused(error.into())
    }

    pub(super) fn garbled(cause: impl Into<BoxError>) -> Self {
        let cause = cause.into();
        let message = format!("what came back is no acknowledgement: {cause}");
        Self::new(ErrorKind::Garbled, message).caused(cause)
    }

    fn new(kind: ErrorKind, message: String) -> Self {
        Self(Box::new(Inner {
            kind,
            message,
            rejection: None,
            cause: None,
        }))
    }

    fn rejected(kind: ErrorKind, reason: Reason, message: String) -> Self {
        let mut error = Self::new(kind, message.clone());
        error.0.rejection = Some(Rejection::new("nats", reason, message));
        error
    }

    fn caused(mut self, cause: BoxError) -> Self {
        self.0.cause = Some(cause);
        self
    }

    /// The same, for another; without what caused it.
    pub(super) fn again(&self) -> Self {
        let mut again = Self::new(self.0.kind, self.0.message.clone());
        again.0.rejection = self.0.rejection.clone();
        again
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same may be sent again without harm: nobody saw anything of it.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::NoResponders
                | ErrorKind::NoStream
                | ErrorKind::Disconnected { sent: false }
                | ErrorKind::Slow
                | ErrorKind::Overloaded
                | ErrorKind::AcquireTimeout
                | ErrorKind::Connect
        )
    }

    /// The gRPC code that says the same.
    pub fn code(&self) -> Code {
        match self.0.kind {
            ErrorKind::NoResponders
            | ErrorKind::NoStream
            | ErrorKind::Disconnected { .. }
            | ErrorKind::Slow
            | ErrorKind::AcquireTimeout
            | ErrorKind::Connect
            | ErrorKind::Closed => Code::Unavailable,
            ErrorKind::TimedOut | ErrorKind::Deadline => Code::DeadlineExceeded,
            ErrorKind::TooLarge { .. } | ErrorKind::Overloaded => Code::ResourceExhausted,
            ErrorKind::Malformed => Code::InvalidArgument,
            ErrorKind::Refused { .. } => Code::FailedPrecondition,
            ErrorKind::Garbled => Code::Internal,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nats: {}", self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match (&self.0.rejection, &self.0.cause) {
            (Some(rejection), _) => Some(rejection),
            (None, Some(cause)) => Some(cause.as_ref()),
            (None, None) => None,
        }
    }
}

// ===== impl ErrorKind =====

impl ErrorKind {
    /// The label value: short, stable, lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoResponders => "no_responders",
            Self::NoStream => "no_stream",
            Self::TimedOut => "timed_out",
            Self::Deadline => "deadline",
            Self::TooLarge { .. } => "too_large",
            Self::Disconnected { .. } => "disconnected",
            Self::Slow => "slow",
            Self::Overloaded => "overloaded",
            Self::AcquireTimeout => "acquire_timeout",
            Self::Connect => "connect",
            Self::Closed => "closed",
            Self::Malformed => "malformed",
            Self::Refused { .. } => "refused",
            Self::Garbled => "garbled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::find;

    #[test]
    fn what_is_ours_to_say_is_found_as_a_rejection() {
        let error: BoxError = Error::too_large(2_000, 1_024).into();
        let rejection = Rejection::find(error.as_ref()).unwrap();
        assert_eq!(rejection.reason(), Reason::TooLarge);
        let found = find::<Error>(error.as_ref()).unwrap();
        assert_eq!(
            found.kind(),
            ErrorKind::TooLarge {
                size: 2_000,
                max: 1_024
            }
        );
        assert!(error.to_string().contains("2000") && error.to_string().contains("1024"));
        assert!(!found.is_retryable());
    }

    #[test]
    fn only_what_was_seen_by_nobody_may_be_sent_again() {
        assert!(Error::disconnected(false).is_retryable());
        assert!(!Error::disconnected(true).is_retryable());
        assert!(Error::no_responders("a").is_retryable());
        assert!(!Error::timed_out("a", Duration::from_secs(1)).is_retryable());
        let refused = Error::connect("authorization violation".into(), None);
        assert!(refused.is_retryable() && refused.source().is_some());
        assert!(refused.to_string().contains("authorization violation"));
    }
}
