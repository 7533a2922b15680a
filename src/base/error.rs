//! The error every refusing layer returns, and how to find it again.
//!
//! A layer that cannot fail keeps its service's error. A layer that can refuse returns [`BoxError`] with a
//! [`Rejection`] somewhere in its source chain; [`Rejection::find`] gets it back, whoever wrapped it since.
//!
//! ```
//! use std::time::Duration;
//! use tower_flow::{BoxError, Rejection, error::Reason};
//!
//! let refused: BoxError = Rejection::new("shed", Reason::Limit, "64 of 64 slots busy")
//!     .retry_after(Duration::from_millis(20))
//!     .into();
//! let rejection = Rejection::find(refused.as_ref()).expect("it is there");
//! assert_eq!(rejection.reason(), Reason::Limit);
//! assert_eq!(rejection.to_string(), "shed: 64 of 64 slots busy; retry after 20ms");
//! ```

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Any error, boxed: the error type of layers that can refuse.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A request that a layer refused: which layer, why, and when to come back.
#[derive(Debug, Clone)]
pub struct Rejection {
    layer: &'static str,
    reason: Reason,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    /// Made when somebody asks.
    #[cfg(feature = "tonic")]
    status: std::sync::OnceLock<tonic::Status>,
}

/// One error, the answer of many.
///
/// Its source is the error itself, so that [`find`](crate::error::find) finds it there.
#[derive(Debug, Clone)]
pub struct SharedError(Arc<dyn Error + Send + Sync>);

/// Why a layer refused a request.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Every slot is busy and there is no place to wait.
    Limit,
    /// The place to wait is full.
    QueueFull,
    /// It waited as long as it may.
    QueueTimeout,
    /// It cannot finish before its deadline.
    Deadline,
    /// An outside signal asks for less work.
    Pressure,
    /// Its tenant or partition has used its share.
    Quota,
    /// Its backend refuses too much to be sent more.
    Throttled,
    /// The layer is shutting down.
    Closed,
    /// What it waited for took longer than it may.
    Timeout,
    /// What it waited for was given up by whoever began it.
    Abandoned,
    /// What it waited for panicked.
    Panicked,
    /// It would wait for itself.
    Recursion,
    /// It is larger than this layer takes.
    TooLarge,
    /// The answer to many held nothing for it.
    Missing,
}

// ===== impl Rejection =====

impl Rejection {
    /// A refusal by `layer`. `message` holds the numbers, lower case and without a full stop.
    pub fn new(layer: &'static str, reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            layer,
            reason,
            message: message.into(),
            retry_after: None,
            #[cfg(feature = "tonic")]
            status: std::sync::OnceLock::new(),
        }
    }

    /// Says after which time a retry may succeed.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The layer that refused, by its feature name.
    pub fn layer(&self) -> &'static str {
        self.layer
    }

    /// Why it refused.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// When to come back, if the layer knows.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Finds a rejection in `error` or anywhere in its source chain.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        find(error)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.layer, self.message)?;
        match self.retry_after {
            Some(after) => write!(f, "; retry after {after:?}"),
            None => Ok(()),
        }
    }
}

impl Error for Rejection {
    /// With feature `tonic` its `tonic::Status`: a tonic server answers with the first it finds in the chain, and
    /// turns any other error of a layer into a reset stream.
    #[cfg(feature = "tonic")]
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.status.get_or_init(|| self.status()))
    }
}

#[cfg(feature = "tonic")]
impl Rejection {
    fn status(&self) -> tonic::Status {
        let code = crate::base::outcome::Code::of_reason(self.reason);
        let mut status =
            tonic::Status::new(tonic::Code::from(code.index() as i32), self.to_string());
        if let Some(after) = self.retry_after {
            let after = i32::try_from(after.as_millis()).unwrap_or(i32::MAX);
            status
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", after.into());
        }
        status
    }
}

// ===== impl Reason =====

impl Reason {
    /// The label value: short, stable, lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Deadline => "deadline",
            Self::Pressure => "pressure",
            Self::Quota => "quota",
            Self::Throttled => "throttled",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Abandoned => "abandoned",
            Self::Panicked => "panicked",
            Self::Recursion => "recursion",
            Self::TooLarge => "too_large",
            Self::Missing => "missing",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

// ===== impl SharedError =====

impl SharedError {
    /// Shares `error`.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into().into())
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Error for SharedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// Finds a `T` in `error` or anywhere in its source chain.
///
/// The walk is bounded, so a chain that leads back to itself ends.
pub fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(error).find_map(|cause| cause.downcast_ref())
}

/// `error` and its sources, outermost first, at most 64.
pub(crate) fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
    .take(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(BoxError);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self.0.as_ref())
        }
    }

    #[test]
    fn rejection_is_found_through_a_chain() {
        let rejection = Rejection::new("pool", Reason::QueueFull, "128 of 128 waiting");
        let error = Wrapped(Box::new(Wrapped(rejection.into())));
        let found = Rejection::find(&error).unwrap();
        assert_eq!((found.layer(), found.reason()), ("pool", Reason::QueueFull));
        assert_eq!(found.retry_delay(), None);
    }

    #[test]
    fn other_errors_hold_no_rejection() {
        let error = Wrapped("something else".into());
        assert!(Rejection::find(&error).is_none());
    }

    #[test]
    fn a_circular_chain_ends() {
        #[derive(Debug)]
        struct Circle;
        impl fmt::Display for Circle {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("circle")
            }
        }
        impl Error for Circle {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(self)
            }
        }
        assert!(Rejection::find(&Circle).is_none());
    }
}
