use std::task::{Context, Poll};

use super::delay::Delay;
use super::sampling::tags;
use super::stage::{self, Stage, Weight};
use super::state::State;
use crate::base::clock::{self, Instant};
use crate::base::route::Place;
use crate::base::stats::{Lease, once_in};

/// What is done about one call; nothing when the layer is off.
#[derive(Debug, Default)]
pub(super) struct Call(Option<Known>);

/// A call that is looked at, or passed over. Either may have to tell a sampling profiler where it is.
#[derive(Debug)]
struct Known {
    state: Lease<State>,
    place: Place,
    /// `None` when the layer was off, and only a sampling profiler asks.
    weight: Option<Weight>,
    /// Times the wake-ups of the response future, which costs more.
    delay: Option<Delay>,
}

impl Call {
    #[inline]
    pub(super) fn start<'a>(state: &Lease<State>, route: impl FnOnce() -> Option<&'a str>) -> Self {
        let every = state.every();
        if every == 0 && !tags::on() {
            return Self(None);
        }
        let weight = (every > 0).then(|| Weight::decide(every));
        let seen = weight.is_some_and(|weight| weight != Weight(0));
        Self(Some(Known {
            place: state.routes.place(route()),
            state: state.clone(),
            weight,
            delay: (seen && once_in(state.delay_every)).then(Delay::new),
        }))
    }

    /// Runs what belongs to the call.
    #[inline]
    pub(super) fn run<T>(&self, stage: Stage, run: impl FnOnce() -> T) -> T {
        match &self.0 {
            None => run(),
            Some(known) => known.run(stage, None, run),
        }
    }

    /// Polls the response future.
    #[inline]
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Some(known) = &mut self.0 else {
            return poll(cx);
        };
        let Some(delay) = &known.delay else {
            return known.run(Stage::Future, None, || poll(cx));
        };
        let start = clock::now();
        if let Some(delay) = delay.polled(start) {
            known.state.routes.at(&known.place).delayed(delay);
        }
        let polled = known.run(Stage::Future, Some(start), || delay.poll(cx, poll));
        if polled.is_ready() {
            // A body is polled when its reader wants more: that is no wait for a worker.
            known.delay = None;
        }
        polled
    }

    /// Somebody served it: the name of its route becomes one.
    #[inline]
    pub(super) fn served(&mut self) {
        if let Some(known) = &mut self.0
            && let Place::Other(name) = &mut known.place
            && let Some(name) = name.take()
        {
            known.state.admit(&name);
        }
    }
}

impl Known {
    /// What is polled within the poll of an outer layer is looked at when that is, whoever made the call.
    #[inline]
    fn run<T>(&self, stage: Stage, start: Option<Instant>, run: impl FnOnce() -> T) -> T {
        let weight = self.weight.map(Weight::here);
        let tagged = tags::on();
        match weight {
            Some(weight) if weight != Weight(0) => self.measure(stage, weight, start, tagged, run),
            Some(_) if tagged => Weight(0).within(|| self.tag(run)),
            Some(_) => Weight(0).within(run),
            None if tagged => self.tag(run),
            None => run(),
        }
    }

    #[inline]
    fn measure<T>(
        &self,
        stage: Stage,
        weight: Weight,
        start: Option<Instant>,
        tagged: bool,
        run: impl FnOnce() -> T,
    ) -> T {
        let state = &*self.state;
        let measures = state.routes.at(&self.place);
        let start = start.unwrap_or_else(clock::now);
        let before = tagged.then(|| tags::enter(measures.tag, start));
        let record = |took, now| {
            if let Some(before) = before {
                tags::leave(before, now);
            }
            state.record(&self.place, stage, took, weight, now);
        };
        weight.within(|| stage::measure(start, record, run))
    }

    /// Only tells where it is, and bills nothing.
    #[cold]
    fn tag<T>(&self, run: impl FnOnce() -> T) -> T {
        struct Leave(tags::Tag);
        impl Drop for Leave {
            fn drop(&mut self) {
                tags::leave(self.0, clock::now());
            }
        }
        let tag = self.state.routes.at(&self.place).tag;
        let _leave = Leave(tags::enter(tag, clock::now()));
        run()
    }
}
