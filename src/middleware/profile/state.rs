use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::sampling::tags::Tag;
use super::stage::{Stage, Took, Weight};
use crate::base::clock::{Instant, nanos};
use crate::base::cost::Cost;
use crate::base::route::{OTHER, Place, Routes};
use crate::base::signal::process_cpu;
use crate::base::stats::Striped;

/// A poll that takes longer has a worker to itself, however slow the layer's polls may be.
const BLOCKED: Duration = Duration::from_secs(1);

/// How many slow polls are remembered one by one.
const REMEMBERED: usize = 32;

/// What one layer knows.
pub(super) struct State {
    pub(super) name: Arc<str>,
    pub(super) slow: Duration,
    /// One call in so many is looked at; none for 0.
    every: AtomicU32,
    pub(super) delay_every: u32,
    pub(super) routes: Routes<Measures>,
    pub(super) cost: Cost,
    slowest: Mutex<VecDeque<SlowPoll>>,
    /// The CPU time the process had used when the layer was made.
    cpu: Option<Duration>,
}

/// One poll that took longer than it should.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowPoll {
    /// Whose it was.
    pub route: Arc<str>,
    /// What was polled.
    pub stage: Stage,
    /// How long it took, without profiled layers further inside.
    pub took: Duration,
    /// When it ended.
    pub at: Instant,
}

/// The numbers of one route.
#[derive(Debug)]
pub(super) struct Measures {
    cells: Striped,
    route: Arc<str>,
    pub(super) tag: Tag,
}

/// The numbers of one route in one stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Polls {
    pub(super) count: u64,
    pub(super) own: Duration,
    pub(super) total: Duration,
    pub(super) max: Duration,
    pub(super) slow: u64,
    pub(super) blocked: u64,
}

/// How long tasks of one route waited between wake-up and poll.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Delays {
    pub(super) count: u64,
    pub(super) sum: Duration,
    pub(super) max: Duration,
}

/// Where in a route's cells what is counted: each stage has a block of its own.
mod at {
    pub(super) const COUNT: usize = 0;
    pub(super) const OWN: usize = 1;
    pub(super) const TOTAL: usize = 2;
    pub(super) const SLOW: usize = 3;
    pub(super) const MAX: usize = 4;
    pub(super) const BLOCKED: usize = 5;
    pub(super) const BLOCK: usize = 6;
    pub(super) const DELAYS: usize = 3 * BLOCK;
    pub(super) const DELAY: usize = DELAYS + 1;
    pub(super) const DELAY_MAX: usize = DELAYS + 2;
    pub(super) const CELLS: usize = DELAYS + 3;
}

crate::leased!(State);

// ===== impl State =====

impl State {
    pub(super) fn new(
        name: Arc<str>,
        routed: bool,
        max_routes: usize,
        slow: Duration,
        every: u32,
        delay_every: u32,
    ) -> Self {
        // Where requests name their routes there is no route of the layer's own, only what is billed to none.
        let only = if routed { OTHER } else { &name };
        Self {
            routes: Routes::new(routed, max_routes, || Measures::new(&name, only)),
            slow,
            every: every.into(),
            delay_every,
            slowest: Mutex::new(VecDeque::with_capacity(REMEMBERED)),
            cpu: process_cpu(),
            cost: Cost::new(),
            name,
        }
    }

    #[inline]
    pub(super) fn every(&self) -> u32 {
        self.every.load(Ordering::Relaxed)
    }

    pub(super) fn set_every(&self, every: u32) {
        self.every.store(every, Ordering::Relaxed);
    }

    /// What CPU time the process has used since the layer was made.
    pub(super) fn process_cpu(&self) -> Option<Duration> {
        Some(process_cpu()?.saturating_sub(self.cpu?))
    }

    pub(super) fn admit(&self, name: &str) {
        self.routes.admit(name, || Measures::new(&self.name, name));
    }

    /// All routes that were polled.
    pub(super) fn all(&self) -> Vec<(&str, &Measures)> {
        self.routes.all(&self.name, |other| {
            Stage::ALL.iter().any(|stage| other.polls(*stage).count > 0)
        })
    }

    /// Notes a poll of a call that was looked at.
    #[inline]
    pub(super) fn record(
        &self,
        place: &Place,
        stage: Stage,
        took: Took,
        weight: Weight,
        at: Instant,
    ) {
        let measures = self.routes.at(place);
        let slow = took.own > self.slow;
        measures.record(stage, took, weight, slow);
        if slow {
            self.remember(place, stage, took.own, at);
        }
    }

    #[cold]
    fn remember(&self, place: &Place, stage: Stage, took: Duration, at: Instant) {
        let route = match place {
            // Not a route yet, and perhaps never: one that is slow and fails. It was slow all the same.
            Place::Other(Some(name)) => Arc::from(&**name),
            _ => self.routes.at(place).route.clone(),
        };
        // Slow polls come together: who finds another one at it goes on. The counters know of both.
        let Ok(mut slowest) = self.slowest.try_lock() else {
            return;
        };
        if slowest.len() == REMEMBERED {
            slowest.pop_front();
        }
        slowest.push_back(SlowPoll {
            route,
            stage,
            took,
            at,
        });
    }

    /// The last slow polls, the newest last.
    pub(super) fn slow_polls(&self) -> Vec<SlowPoll> {
        let slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        slowest.iter().cloned().collect()
    }
}

impl fmt::Debug for State {
    /// Its name, since it is part of every future and body.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

// ===== impl Measures =====

impl Measures {
    fn new(layer: &str, route: &str) -> Self {
        Self {
            cells: Striped::new(at::CELLS),
            tag: Tag::new(layer, route),
            route: route.into(),
        }
    }

    #[inline]
    fn record(&self, stage: Stage, took: Took, Weight(weight): Weight, slow: bool) {
        let cells = self.cells.local();
        let (block, weight) = (stage as usize * at::BLOCK, u64::from(weight));
        cells.add(block + at::OWN, nanos(took.own).saturating_mul(weight));
        cells.add(block + at::TOTAL, nanos(took.total).saturating_mul(weight));
        cells.raise(block + at::MAX, nanos(took.own));
        if slow {
            cells.add(block + at::SLOW, weight);
            if took.own > BLOCKED {
                cells.add(block + at::BLOCKED, weight);
            }
        }
        // Last, so that whoever sees the poll sees its time.
        cells.add(block + at::COUNT, weight);
    }

    pub(super) fn delayed(&self, delay: Duration) {
        let cells = self.cells.local();
        cells.add(at::DELAY, nanos(delay));
        cells.raise(at::DELAY_MAX, nanos(delay));
        cells.add(at::DELAYS, 1);
    }

    pub(super) fn polls(&self, stage: Stage) -> Polls {
        let block = stage as usize * at::BLOCK;
        let count = self.cells.sum(block + at::COUNT);
        let time = |cell| Duration::from_nanos(self.cells.sum(block + cell));
        Polls {
            count,
            own: time(at::OWN),
            total: time(at::TOTAL),
            max: Duration::from_nanos(self.cells.greatest(block + at::MAX)),
            slow: self.cells.sum(block + at::SLOW),
            blocked: self.cells.sum(block + at::BLOCKED),
        }
    }

    pub(super) fn delays(&self) -> Delays {
        Delays {
            count: self.cells.sum(at::DELAYS),
            sum: Duration::from_nanos(self.cells.sum(at::DELAY)),
            max: Duration::from_nanos(self.cells.greatest(at::DELAY_MAX)),
        }
    }
}
