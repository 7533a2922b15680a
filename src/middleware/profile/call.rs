use std::task::Context;

use super::delay::Delay;
use super::sampling::tags;
use super::stage::{self, Stage, Weight};
use super::state::State;
use crate::base::clock::{self, Instant};
use crate::base::route::Place;
use crate::base::stats::{Lease, once_in};

/// What is done about one call.
#[derive(Debug)]
pub(super) enum Call {
    /// Nothing: the layer is off.
    Off,
    /// It is passed over, and so are calls inside it.
    Passed,
    /// It is looked at.
    Seen(Seen),
}

/// A call that is looked at.
#[derive(Debug)]
pub(super) struct Seen {
    state: Lease<State>,
    place: Place,
    /// `None` when only a sampling profiler asks.
    weight: Option<Weight>,
    /// Whether its wake-ups are timed as well, which costs more.
    delay: Option<Delay>,
}

impl Call {
    #[inline]
    pub(super) fn start<'a>(state: &Lease<State>, route: impl FnOnce() -> Option<&'a str>) -> Self {
        let every = state.every();
        let weight = (every > 0).then(|| Weight::decide(every));
        let seen = weight.is_some_and(|weight| weight != Weight(0));
        if !seen && !tags::on() {
            return if every == 0 { Self::Off } else { Self::Passed };
        }
        Self::Seen(Seen {
            place: state.routes.place(route()),
            state: state.clone(),
            weight,
            delay: (seen && once_in(state.delay_every)).then(Delay::new),
        })
    }

    /// Runs what belongs to the call.
    #[inline]
    pub(super) fn run<T>(&self, stage: Stage, run: impl FnOnce() -> T) -> T {
        match self {
            Self::Off => run(),
            Self::Passed => Weight(0).within(run),
            Self::Seen(seen) => seen.run(stage, clock::now(), run),
        }
    }

    /// Polls what belongs to the call.
    #[inline]
    pub(super) fn poll<T>(
        &self,
        stage: Stage,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        match self {
            Self::Off => poll(cx),
            Self::Passed => Weight(0).within(|| poll(cx)),
            Self::Seen(seen) => seen.poll(stage, cx, poll),
        }
    }

    /// Somebody served it: the name of its route becomes one.
    #[inline]
    pub(super) fn served(&mut self) {
        if let Self::Seen(seen) = self
            && let Place::Other(name) = &mut seen.place
            && let Some(name) = name.take()
        {
            seen.state.admit(&name);
        }
    }
}

impl Seen {
    #[inline]
    fn run<T>(&self, stage: Stage, start: Instant, run: impl FnOnce() -> T) -> T {
        let (state, measures) = (&*self.state, self.state.routes.at(&self.place));
        let before = tags::on().then(|| tags::enter(measures.tag, start));
        let record = |took, now| {
            if let Some(before) = before {
                tags::leave(before, now);
            }
            if let Some(weight) = self.weight {
                state.record(measures, stage, took, weight, now);
            }
        };
        let measured = || stage::measure(start, record, run);
        match self.weight {
            Some(weight) => weight.within(measured),
            None => measured(),
        }
    }

    #[inline]
    fn poll<T>(
        &self,
        stage: Stage,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        let start = clock::now();
        let Some(delay) = &self.delay else {
            return self.run(stage, start, || poll(cx));
        };
        if let Some(delay) = delay.polled(start) {
            self.state.routes.at(&self.place).delayed(delay);
        }
        self.run(stage, start, || delay.poll(cx, poll))
    }
}
