use std::time::Duration;

use crate::base::clock::Instant;
use crate::base::deadline::Deadline;
use crate::base::priority::Priority;

/// What is known of a request before it is admitted. The default: of ordinary priority, in nobody's partition, without
/// a deadline.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask<'a> {
    pub(super) priority: Priority,
    pub(super) deadline: Option<Deadline>,
    pub(super) timeout: Option<Duration>,
    pub(super) cohort: Option<u64>,
    pub(super) partition: Option<&'a str>,
    pub(super) kind: Kind,
    /// Nobody will read the response's body: the answer to a `HEAD` request.
    pub(super) bodiless: bool,
    /// The hook that should have told panicked.
    pub(super) panicked: bool,
    /// A header that should have told could not be read.
    pub(super) malformed: bool,
}

/// Which way a request takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Unary,
    Stream,
    Bypass,
}

/// Tells what to know of a request. Any `Fn(&Req) -> Ask` does.
pub trait Triage<Req> {
    /// What is known of `req`.
    fn triage<'a>(&self, req: &'a Req) -> Ask<'a>;

    /// As [`triage`](Self::triage); one that panics knows nothing, and is counted. Only what cannot panic does without
    /// the guard.
    #[doc(hidden)]
    fn guarded<'a>(&self, req: &'a Req) -> Ask<'a> {
        let hook = std::panic::AssertUnwindSafe(|| self.triage(req));
        std::panic::catch_unwind(hook).unwrap_or_else(|_| Ask {
            panicked: true,
            ..Ask::default()
        })
    }
}

/// Knows nothing: all requests are equal.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct AllEqual;

// ===== impl Ask =====

impl<'a> Ask<'a> {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// [`Priority::Default`] (default), or this one.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// No deadline (default), or this moment; with a [`timeout`](Self::timeout) too, the earlier of the two.
    #[must_use]
    pub fn deadline(mut self, deadline: Deadline) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// No timeout (default), or so long from now.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// At random (default), or by a hash of whose request this is: when part of a priority is shed, it is the same
    /// part from one request to the next, so that some are served well and not all badly.
    #[must_use]
    pub fn cohort(mut self, hash: u64) -> Self {
        self.cohort = Some(hash);
        self
    }

    /// Nobody's (default), or the partition of this name; an unknown name is nobody's.
    #[must_use]
    pub fn partition(mut self, name: &'a str) -> Self {
        self.partition = Some(name);
        self
    }

    /// A long-lived stream: it holds a slot of the streams' own pool and is never a sample.
    #[must_use]
    pub fn stream(mut self) -> Self {
        self.kind = Kind::Stream;
        self
    }

    /// Let it through whatever happens: a health check, an admin route. It is counted and holds no slot.
    #[must_use]
    pub fn bypass(mut self) -> Self {
        self.kind = Kind::Bypass;
        self
    }
}

impl Ask<'_> {
    /// The earlier of the deadline and the timeout.
    #[inline]
    pub(super) fn latest(&self, now: Instant) -> Option<Deadline> {
        let granted = self
            .timeout
            .and_then(|timeout| Deadline::after(now, timeout));
        match (self.deadline, granted) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

// ===== impl Triage =====

impl<Req> Triage<Req> for AllEqual {
    #[inline]
    fn triage<'a>(&self, _: &'a Req) -> Ask<'a> {
        Ask::default()
    }

    #[inline]
    fn guarded<'a>(&self, _: &'a Req) -> Ask<'a> {
        Ask::default()
    }
}

impl<Req, F: for<'a> Fn(&'a Req) -> Ask<'a>> Triage<Req> for F {
    fn triage<'a>(&self, req: &'a Req) -> Ask<'a> {
        self(req)
    }
}
