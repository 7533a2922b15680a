use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::Name;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use crate::base::error::BoxError;
use crate::base::phases::{Marked, Phase};

/// A resolver that marks [`Phase::Dns`]; see [the module](crate::pool::connect).
#[derive(Debug, Clone)]
pub struct Resolve<R> {
    inner: R,
    timeout: Option<Duration>,
}

pin_project! {
    /// The future of a [`Resolve`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Resolving<F> {
        #[pin]
        inner: Marked<Limited<F>>,
    }
}

pin_project! {
    #[derive(Debug)]
    struct Limited<F> {
        #[pin]
        inner: F,
        #[pin]
        sleep: Option<Sleep>,
        late: Option<ResolveTimeout>,
    }
}

/// A name was not resolved in time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResolveTimeout {
    /// The name.
    pub host: String,
    /// The time it had.
    pub after: Duration,
}

// ===== impl Resolve =====

impl<R> Resolve<R> {
    /// Marks the look-ups of `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            timeout: None,
        }
    }

    /// No limit of its own (default), or how long a look-up may take.
    ///
    /// A pool's deadline covers it anyway. A shorter one here makes the reason of a failure plain.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The wrapped resolver.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }
}

impl<R> Service<Name> for Resolve<R>
where
    R: Service<Name, Error: Into<BoxError>>,
{
    type Response = R::Response;
    type Error = BoxError;
    type Future = Resolving<R::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let late = self.timeout.map(|after| ResolveTimeout {
            host: name.as_str().to_owned(),
            after,
        });
        let limited = Limited {
            inner: self.inner.call(name),
            sleep: self.timeout.map(tokio::time::sleep),
            late,
        };
        Resolving {
            inner: Phase::Dns.mark(limited),
        }
    }
}

impl<F, T, E> Future for Resolving<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx)
    }
}

impl<F, T, E> Future for Limited<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.inner.poll(cx) {
            return Poll::Ready(result.map_err(Into::into));
        }
        let passed = this
            .sleep
            .as_pin_mut()
            .is_some_and(|sleep| sleep.poll(cx).is_ready());
        match this.late.take_if(|_| passed) {
            Some(late) => Poll::Ready(Err(late.into())),
            None => Poll::Pending,
        }
    }
}

// ===== impl ResolveTimeout =====

impl fmt::Display for ResolveTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, after } = self;
        write!(f, "{host} was not resolved within {after:?}")
    }
}

impl Error for ResolveTimeout {}
