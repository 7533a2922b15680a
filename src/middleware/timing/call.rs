use std::time::Duration;

use super::route::{Place, State};
use crate::base::clock::{self, Instant, Moment};
use crate::base::deadline::Deadline;
use crate::base::outcome::Outcome;
use crate::base::stats::{Lease, Stopwatch};

/// One call under way. Whoever holds it ends it; it does not end by itself.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) watch: Stopwatch,
    pub(super) deadline: Option<Deadline>,
    state: Lease<State>,
    place: Place,
}

/// Time between a service's first `Pending` and its `Ready`.
#[derive(Debug, Default)]
pub(super) struct ReadyWait {
    since: Option<Instant>,
    waited: Duration,
}

// ===== impl Call =====

impl Call {
    #[inline]
    pub(super) fn start(
        state: &Lease<State>,
        route: Option<&str>,
        ready: Duration,
        now: Instant,
    ) -> Self {
        let place = state.place(route);
        state.measures(&place).start(ready);
        Self {
            watch: Stopwatch::start(now),
            deadline: None,
            state: state.clone(),
            place,
        }
    }

    #[inline]
    pub(super) fn end(self, outcome: Outcome, now: Instant) {
        let phases = self.watch.stop(now);
        self.state.measures(&self.place).end(now, outcome, &phases);
        if let Place::Other(Some(name)) = &self.place
            && matches!(outcome, Outcome::Success | Outcome::Failure)
        {
            self.state.admit(name);
        }
    }

    /// What a call came to whose future or body was dropped.
    pub(super) fn dropped(&self, at: &Moment) -> Outcome {
        Outcome::of_drop(
            self.deadline
                .is_some_and(|deadline| deadline.passed(at.now())),
        )
    }
}

// ===== impl ReadyWait =====

impl ReadyWait {
    #[inline]
    pub(super) fn polled(&mut self, ready: bool) {
        if !ready {
            self.since.get_or_insert_with(clock::now);
        } else if let Some(since) = self.since.take() {
            self.waited = clock::now().saturating_duration_since(since);
        }
    }

    #[inline]
    pub(super) fn take(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}
