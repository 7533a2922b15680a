use std::sync::Arc;
use std::time::Duration;

use super::route::State;
use crate::base::clock::{self, Instant};
use crate::base::deadline::Deadline;
use crate::base::outcome::Outcome;
use crate::base::phases::Timings;
use crate::base::route::Place;
use crate::base::stats::{Lease, Pooled, Stopwatch, pooled};

/// One call under way. It ends as dropped unless somebody says how.
#[derive(Debug)]
pub(super) struct Call(Option<Pooled<Record>>);

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
        Self(Some(call))
    }

    /// Its watch, while it is under way.
    #[inline]
    pub(super) fn watch(&mut self) -> Option<&mut Stopwatch> {
        self.0.as_mut().map(|call| &mut call.watch)
    }

    /// Notes what its response tells of its connection.
    pub(super) fn connected(&self, timings: &Timings) {
        if let Some(call) = &self.0 {
            call.state.measures(&call.place).connected(timings);
        }
    }

    /// Ends it. When somebody `served` it, the name of its route becomes one.
    #[inline]
    pub(super) fn end(mut self, outcome: Outcome, served: bool, now: Instant) {
        if let Some(call) = self.0.take() {
            call.end(outcome, served, now);
        }
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            let now = clock::now();
            let late = call.deadline.is_some_and(|deadline| deadline.passed(now));
            call.end(Outcome::of_drop(late), false, now);
        }
    }
}

impl Pooled<Record> {
    #[inline]
    fn end(mut self, outcome: Outcome, served: bool, now: Instant) {
        let call = &mut *self;
        let phases = call.watch.stop(now);
        call.state.measures(&call.place).end(now, outcome, &phases);
        // Whoever takes the record up again finds nothing of this call's.
        if let (Place::Other(Some(name)), true) =
            (std::mem::replace(&mut call.place, Place::Only), served)
        {
            call.state.admit(&name);
        }
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
