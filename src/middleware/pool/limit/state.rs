use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use http::Uri;

use super::acquire::{Acquire, Waiting};
use super::gate::{Arrival, Facts, Gate, Limits};
use super::origin::{Origin, Parts};
use super::permit::Permit;
use crate::base::clock::{self, Instant};
use crate::base::cost::Cost;
use crate::base::error::{Reason, Rejection};
use crate::base::stats::{Bounds, Lease};
use crate::leased;

/// What a limiter is told once.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) what: What,
    pub(super) limits: Limits,
    pub(super) timeout: Duration,
}

/// The settings of a limit until it is used, and from then on what is shared.
#[derive(Debug, Clone)]
pub(super) struct Options {
    settings: Settings,
    state: Arc<OnceLock<Lease<State>>>,
}

/// What is limited; it decides nothing but words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Connections,
    Requests,
}

/// What all services, futures, bodies and connections of one limiter share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) bounds: Bounds,
    inner: Mutex<Inner>,
    pub(super) cost: Cost,
}

leased!(State);

/// All of it under one lock, which is held for a look into a table and never while foreign code runs, but for a waker's
/// clone when somebody starts to wait.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) gate: Gate<Origin, Waker>,
    pub(super) counts: Counts,
}

/// What has happened so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    /// At once or after a wait.
    pub(super) granted: u64,
    /// How long those waited that were granted after a wait, by the bounds.
    pub(super) waits: Vec<u64>,
    pub(super) waited: Duration,
    pub(super) full: u64,
    pub(super) timeouts: u64,
    pub(super) closed: u64,
    pub(super) ghosts: u64,
    /// Waits that somebody gave up.
    pub(super) abandoned: u64,
    /// Dials that came to no connection.
    pub(super) failed: u64,
}

/// No wait is longer than a year, which can be added to any moment.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3_600);

// ===== impl Options =====

impl Options {
    pub(super) fn new(what: What, name: Arc<str>) -> Self {
        let limits = Limits {
            total: 512,
            per_host: 64,
            reserve: 0,
            pending_per_host: 1024,
        };
        let settings = Settings {
            name,
            what,
            limits,
            timeout: Duration::from_secs(5),
        };
        Self {
            settings,
            state: Arc::default(),
        }
    }

    pub(super) fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        assert!(
            self.state.get().is_none(),
            "pool limit {:?}: set options before its handle, attach or layers are used",
            self.settings.name
        );
        set(&mut self.settings);
        self.state = Arc::default();
        self
    }

    /// Sets what must not be 0, since that would grant nothing ever.
    pub(super) fn set_least(
        self,
        option: &str,
        to: usize,
        set: impl FnOnce(&mut Limits, usize),
    ) -> Self {
        assert!(to > 0, "{option} must be at least 1, not 0");
        self.set(|settings| set(&mut settings.limits, to))
    }

    pub(super) fn set_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.timeout = timeout.min(LONGEST))
    }

    pub(super) fn state(&self) -> Lease<State> {
        let state = || Lease::new(Arc::new(State::new(self.settings.clone())));
        self.state.get_or_init(state).clone()
    }
}

// ===== impl State =====

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        let bounds = Bounds::seconds([
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ]);
        let counts = Counts {
            waits: vec![0; bounds.buckets()],
            ..Counts::default()
        };
        Self {
            cost: Cost::new(),
            inner: Mutex::new(Inner {
                gate: Gate::new(settings.limits),
                counts,
            }),
            bounds,
            settings,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a place of the host of `uri`.
    pub(super) fn enter(this: &Lease<Self>, uri: &Uri) -> Acquire {
        let mut inner = this.lock();
        // Nobody to wake yet: the first poll looks for itself.
        let arrival = inner
            .gate
            .arrive(uri as &dyn Parts, || Waker::noop().clone());
        match &arrival {
            Arrival::Granted(_) => inner.counts.granted += 1,
            Arrival::Full(_) => inner.counts.full += 1,
            Arrival::Closed => inner.counts.closed += 1,
            Arrival::Queued(_) => {}
        }
        drop(inner);
        match arrival {
            Arrival::Granted(host) => Acquire::Granted(Permit::new(this.clone(), host)),
            Arrival::Queued(ticket) => Acquire::Waiting(Waiting::new(this.clone(), ticket)),
            Arrival::Full(facts) => Acquire::Refused(this.full(&facts, uri)),
            Arrival::Closed => Acquire::Refused(this.closed()),
        }
    }

    /// Gives a place back.
    pub(super) fn release(&self, host: usize, open: bool) {
        let woken = self.lock().gate.release(host, open);
        woken.wake();
    }

    pub(super) fn set_limits(&self, set: impl FnOnce(&mut Limits)) {
        let woken = {
            let mut inner = self.lock();
            let mut limits = inner.gate.limits();
            set(&mut limits);
            inner.gate.set_limits(limits)
        };
        woken.wake();
    }

    pub(super) fn close(&self) {
        let woken = self.lock().gate.close(Waker::clone);
        woken.wake();
    }

    #[cold]
    fn full(&self, facts: &Facts, uri: &Uri) -> Rejection {
        let (word, setting) = self.settings.what.words();
        let Limits {
            total, per_host, ..
        } = facts.limits;
        let message = format!(
            "{} of {} places to wait for {word}s to {} are taken, as are {} of its {per_host} {word}s and {} of \
             {total} in all; ask for less at once, or raise {setting}_per_host, {setting} or max_pending_per_host",
            facts.waiting_of_host,
            facts.limits.pending_per_host,
            uri as &dyn Parts,
            facts.held_of_host,
            facts.held,
        );
        Rejection::new("pool", Reason::QueueFull, message)
    }

    #[cold]
    pub(super) fn timed_out(&self, facts: &Facts, uri: &Uri, since: Instant) -> Rejection {
        let (word, setting) = self.settings.what.words();
        let Limits {
            total, per_host, ..
        } = facts.limits;
        let message = format!(
            "no {word} to {} came free in {:?}: {} of its {per_host} and {} of {total} in all are taken, {} more wait; \
             raise {setting}_per_host, {setting} or acquire_timeout, or look for what holds them",
            uri as &dyn Parts,
            clock::now().saturating_duration_since(since),
            facts.held_of_host,
            facts.held,
            facts.waiting_of_host,
        );
        Rejection::new("pool", Reason::QueueTimeout, message)
    }

    #[cold]
    pub(super) fn closed(&self) -> Rejection {
        let message = format!(
            "the limit {:?} is closed and grants no more {}s; make a new one",
            self.settings.name,
            self.settings.what.words().0
        );
        Rejection::new("pool", Reason::Closed, message)
    }

    /// Counts a dial whose request has gone elsewhere; what it ends with is read by nobody.
    #[cold]
    pub(super) fn ghost(&self) -> Rejection {
        self.lock().counts.ghosts += 1;
        let message = "the request this dial was for has another connection; nothing is to be done";
        Rejection::new("pool", Reason::Closed, message)
    }
}

// ===== impl What =====

impl What {
    /// One of them, and the setting that limits them.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Connections => ("connection", "max_connections"),
            Self::Requests => ("request", "max_requests"),
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
        }
    }
}
