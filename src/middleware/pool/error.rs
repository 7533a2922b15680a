use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::core::Cause;
use crate::base::error::{BoxError, find};
use crate::base::outcome::Code;
use crate::base::phases::Phase;

/// Why a [`ConnPool`](super::ConnPool) did not answer: which host, how long it was tried, where it stood.
///
/// With feature `tonic` the source is a `tonic::Status` with the code of [`Error::code`], and its source is the cause: a
/// tonic client tells its caller UNAVAILABLE or RESOURCE_EXHAUSTED instead of UNKNOWN.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    host: Arc<str>,
    message: String,
    phase: Option<Phase>,
    waited: Duration,
    retry: Option<Duration>,
    cause: Option<Shared>,
    #[cfg(feature = "tonic")]
    status: std::sync::OnceLock<tonic::Status>,
}

/// What kind of failure an [`Error`] is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Too many wait for the host already.
    Overloaded,
    /// No connection came free, nor was one made, within the acquire timeout.
    AcquireTimeout,
    /// The dial that would have served the request failed.
    Connect,
    /// The dial that would have served the request took longer than the connect timeout.
    ConnectTimeout,
    /// The last dial failed, and it is too early for the next.
    BackingOff,
    /// The pool shuts down.
    Closed,
    /// The connection failed under the request. Unless it was `sent`, nothing of the request reached the peer.
    Send {
        /// Whether the peer may have seen some of it.
        sent: bool,
    },
    /// The request's URI names no host to connect to.
    Uri,
    /// The request asks for HTTP/2 and the host speaks HTTP/1.
    Version,
}

/// One cause for all whom it fails.
#[derive(Debug, Clone)]
enum Shared {
    Dial(Arc<Cause>),
    Hyper(Arc<hyper::Error>),
}

// ===== impl Error =====

impl Error {
    pub(super) fn overloaded(host: Arc<str>, pending: usize, limit: usize) -> Self {
        let message = format!(
            "{pending} requests wait for a connection already, and {limit} may; raise max_pending_per_host or \
             max_connections_per_host, or send less"
        );
        Self::new(ErrorKind::Overloaded, host, message)
    }

    pub(super) fn acquire_timeout(
        host: Arc<str>,
        waited: Duration,
        phase: Phase,
        (open, of_host): (usize, usize),
        (total, of_all): (usize, usize),
    ) -> Self {
        let message = match phase {
            Phase::Wait if total >= of_all && open < of_host => format!(
                "no connection within {waited:?}: all {of_all} connections of the pool are taken, {open} of them by \
                 this host; raise max_connections or acquire_timeout"
            ),
            Phase::Wait => format!(
                "no connection within {waited:?}: {open} of {of_host} connections of the host are open, all in use or \
                 out of streams; raise max_connections_per_host or acquire_timeout"
            ),
            phase => format!(
                "no connection within {waited:?}: the dial under way stands at {phase}; raise acquire_timeout if that \
                 may take longer"
            ),
        };
        let mut error = Self::new(ErrorKind::AcquireTimeout, host, message);
        error.0.waited = waited;
        error.0.phase = Some(phase);
        error
    }

    pub(super) fn connect(host: Arc<str>, waited: Duration, cause: Arc<Cause>) -> Self {
        let (kind, message) = match cause.timed_out {
            true => (
                ErrorKind::ConnectTimeout,
                format!("not connected in time: {} at {}", cause.error, cause.phase),
            ),
            false => (
                ErrorKind::Connect,
                format!("connecting failed at {}: {}", cause.phase, cause.error),
            ),
        };
        let mut error = Self::new(kind, host, message);
        error.0.waited = waited;
        error.0.phase = Some(cause.phase);
        error.0.cause = Some(Shared::Dial(cause));
        error
    }

    pub(super) fn backing_off(host: Arc<str>, pause: Duration, cause: Arc<Cause>) -> Self {
        let message = format!(
            "the last dial failed at {}: {}; the next is in {pause:?}",
            cause.phase, cause.error
        );
        let mut error = Self::new(ErrorKind::BackingOff, host, message);
        error.0.retry = Some(pause);
        error.0.phase = Some(cause.phase);
        error.0.cause = Some(Shared::Dial(cause));
        error
    }

    pub(super) fn closed(host: Arc<str>, waited: Duration) -> Self {
        let message = "the pool shuts down and takes no more requests".into();
        let mut error = Self::new(ErrorKind::Closed, host, message);
        error.0.waited = waited;
        error
    }

    pub(super) fn send(host: Arc<str>, waited: Duration, sent: bool, cause: hyper::Error) -> Self {
        let message = match sent {
            true => format!("the connection failed after the request may have been sent: {cause}"),
            false => format!("the connection closed before the request was sent: {cause}"),
        };
        let mut error = Self::new(ErrorKind::Send { sent }, host, message);
        error.0.waited = waited;
        error.0.cause = Some(Shared::Hyper(Arc::new(cause)));
        error
    }

    pub(super) fn gone(host: Arc<str>, waited: Duration) -> Self {
        let message = "every connection that was tried closed before the request was sent".into();
        let mut error = Self::new(ErrorKind::Send { sent: false }, host, message);
        error.0.waited = waited;
        error
    }

    pub(super) fn uri(uri: &http::Uri) -> Self {
        // Of the rest of it, a user's password may be a part.
        let path = uri.path();
        let message = format!(
            "the request's URI, of path {path:?}, does not say where to connect to; give it a scheme and a host, a \
             tonic client with with_origin"
        );
        Self::new(ErrorKind::Uri, "".into(), message)
    }

    pub(super) fn version(host: Arc<str>) -> Self {
        let message = "the request is of HTTP/2 and the connection speaks HTTP/1; set the pool's protocol to \
                       Http2, or offer h2 by ALPN, or send HTTP/1.1"
            .into();
        Self::new(ErrorKind::Version, host, message)
    }

    fn new(kind: ErrorKind, host: Arc<str>, message: String) -> Self {
        Self(Box::new(Inner {
            kind,
            host,
            message,
            phase: None,
            waited: Duration::ZERO,
            retry: None,
            cause: None,
            #[cfg(feature = "tonic")]
            status: std::sync::OnceLock::new(),
        }))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The host as `scheme://name:port`; empty when the request named none.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// How long the request had waited.
    pub fn waited(&self) -> Duration {
        self.0.waited
    }

    /// Where it stood when it failed: [`Phase::Wait`] in the queue, else the dial's phase. `None` when it never waited
    /// and was never dialled for.
    pub fn phase(&self) -> Option<Phase> {
        self.0.phase
    }

    /// After which time a retry may succeed, where the pool knows.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.0.retry
    }

    /// Whether the same request may be sent again without harm: the peer saw nothing of it, or says that it did nothing
    /// with it (HTTP/2's REFUSED_STREAM, and streams beyond a GOAWAY).
    pub fn is_retryable(&self) -> bool {
        match self.0.kind {
            ErrorKind::Overloaded
            | ErrorKind::AcquireTimeout
            | ErrorKind::Connect
            | ErrorKind::ConnectTimeout
            | ErrorKind::BackingOff
            | ErrorKind::Send { sent: false } => true,
            ErrorKind::Send { sent: true } => find::<h2::Error>(self).is_some_and(|error| {
                let unprocessed = error.is_go_away() && error.is_remote();
                error.reason() == Some(h2::Reason::REFUSED_STREAM) || unprocessed
            }),
            ErrorKind::Closed | ErrorKind::Uri | ErrorKind::Version => false,
        }
    }

    /// The gRPC code that says the same.
    pub fn code(&self) -> Code {
        match self.0.kind {
            ErrorKind::Overloaded => Code::ResourceExhausted,
            ErrorKind::Uri => Code::InvalidArgument,
            ErrorKind::Version => Code::Unimplemented,
            ErrorKind::AcquireTimeout
            | ErrorKind::Connect
            | ErrorKind::ConnectTimeout
            | ErrorKind::BackingOff
            | ErrorKind::Closed
            | ErrorKind::Send { .. } => Code::Unavailable,
        }
    }

    fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        match self.0.cause.as_ref()? {
            Shared::Dial(cause) => Some(cause.error.as_ref()),
            Shared::Hyper(error) => Some(error.as_ref()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0.host {
            "" => write!(f, "pool: {}", self.0.message),
            host => write!(f, "pool: {host}: {}", self.0.message),
        }
    }
}

impl StdError for Error {
    #[cfg(not(feature = "tonic"))]
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause()
    }

    #[cfg(feature = "tonic")]
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // What HTTP/2 said has codes of its own, which tonic knows.
        if let Some(cause) = self
            .cause()
            .filter(|cause| find::<h2::Error>(*cause).is_some())
        {
            return Some(cause);
        }
        Some(self.0.status.get_or_init(|| self.status()))
    }
}

#[cfg(feature = "tonic")]
impl Error {
    fn status(&self) -> tonic::Status {
        let code = tonic::Code::from(self.code().index() as i32);
        let mut status = tonic::Status::new(code, self.to_string());
        if let Some(cause) = &self.0.cause {
            status.set_source(Arc::new(cause.clone()));
        }
        if let Some(retry) = self.0.retry {
            let retry = i32::try_from(retry.as_millis()).unwrap_or(i32::MAX);
            status
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", retry.into());
        }
        status
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(cause) => write!(f, "{}", cause.error),
            Self::Hyper(error) => write!(f, "{error}"),
        }
    }
}

impl StdError for Shared {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Dial(cause) => Some(cause.error.as_ref()),
            Self::Hyper(error) => Some(error.as_ref()),
        }
    }
}

/// A dial that took too long, or had nothing to say.
#[derive(Debug)]
pub(super) struct Plain(pub(super) String);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Plain {}

impl Cause {
    pub(super) fn failed(phase: Phase, error: impl Into<BoxError>) -> Arc<Self> {
        Arc::new(Self {
            phase,
            timed_out: false,
            error: error.into(),
        })
    }

    pub(super) fn timed_out(phase: Phase, after: Duration) -> Arc<Self> {
        Arc::new(Self {
            phase,
            timed_out: true,
            error: Plain(format!("nothing after {after:?}")).into(),
        })
    }
}
