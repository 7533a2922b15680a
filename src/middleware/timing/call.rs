use std::sync::Arc;
use std::time::Duration;

use super::route::{Place, State};
use crate::base::clock::{self, Instant, Moment};
use crate::base::deadline::Deadline;
use crate::base::outcome::Outcome;
use crate::base::stats::{Lease, Pooled, Stopwatch, pooled};

/// One call under way. Whoever holds it ends it; it does not end by itself.
#[derive(Debug)]
pub(super) struct Call(Pooled<Record>);

/// What is known of a call.
#[derive(Debug)]
struct Record {
    state: Arc<State>,
    watch: Stopwatch,
    deadline: Option<Deadline>,
    place: Place,
}

pooled!(Record);

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
        deadline: Option<Deadline>,
        now: Instant,
    ) -> Self {
        let place = state.place(route);
        state.measures(&place).start(ready);
        let state = state.shared();
        let mut call = Pooled::take(
            |spare: &Record| Arc::ptr_eq(&spare.state, state),
            || Record {
                state: state.clone(),
                watch: Stopwatch::start(now),
                deadline: None,
                place: Place::Only,
            },
        );
        call.watch = Stopwatch::start(now);
        call.deadline = deadline;
        call.place = place;
        Self(call)
    }

    #[inline]
    pub(super) fn watch(&mut self) -> &mut Stopwatch {
        &mut self.0.watch
    }

    #[inline]
    pub(super) fn end(mut self, outcome: Outcome, now: Instant) {
        let call = &mut *self.0;
        let phases = call.watch.stop(now);
        call.state.measures(&call.place).end(now, outcome, &phases);
        if let Place::Other(Some(name)) = &call.place
            && matches!(outcome, Outcome::Success | Outcome::Failure)
        {
            call.state.admit(name);
        }
        // Whoever takes the record up again finds nothing of this call's.
        call.place = Place::Only;
    }

    /// What a call came to whose future or body was dropped.
    pub(super) fn dropped(&self, at: &Moment) -> Outcome {
        let passed = |deadline: Deadline| deadline.passed(at.now());
        Outcome::of_drop(self.0.deadline.is_some_and(passed))
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
