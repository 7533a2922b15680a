use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::connection::Connections;
use crate::base::clock::{Instant, nanos};
use crate::base::outcome::Outcome;
use crate::base::phases::Timings;
use crate::base::stats::{Bounds, Names, Phases, Sliding, Striped, Window};

/// Where calls to unknown routes, or to more routes than there is room for, are counted.
pub(super) const OTHER: &str = "other";

/// Longer names never become routes.
const LONGEST: usize = 256;

/// What one layer knows: its routes and how it measures them.
#[derive(Debug)]
pub(super) struct State {
    pub(super) name: Arc<str>,
    pub(super) bounds: Bounds,
    pub(super) expected: Option<Duration>,
    pub(super) http: std::sync::atomic::AtomicBool,
    /// Whether requests name their routes; else there is the one.
    routed: bool,
    window: Window,
    only: Measures,
    other: Measures,
    routes: Names<Measures>,
}

/// Which [`Measures`] a call is billed to.
#[derive(Debug)]
pub(super) enum Place {
    /// The layer's only route.
    Only,
    /// A route by its place among the names.
    Known(usize),
    /// None yet: with a name that may become a route.
    Other(Option<Box<str>>),
}

/// The numbers of one route.
#[derive(Debug)]
pub(super) struct Measures {
    cells: Striped,
    bounds: Bounds,
    pub(super) total: Arc<Sliding>,
    /// Made for the first response that tells of its connection.
    connections: OnceLock<Box<Connections>>,
}

/// Where in a route's cells what is counted. The three histograms follow, each with its sum first.
mod at {
    pub(super) const STARTED: usize = 0;
    pub(super) const ENDED: usize = 1;
    pub(super) const PRODUCER: usize = 7;
    pub(super) const CONSUMER: usize = 8;
    pub(super) const HISTOGRAMS: usize = 9;
}

/// The classic histograms of a route.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Phase {
    Total,
    First,
    Ready,
}

crate::leased!(State);

// ===== impl State =====

impl State {
    pub(super) fn new(
        name: Arc<str>,
        bounds: Bounds,
        window: Window,
        max_routes: usize,
        routed: bool,
        expected: Option<Duration>,
    ) -> Self {
        Self {
            only: Measures::new(&bounds, window),
            other: Measures::new(&bounds, window),
            routes: Names::new(max_routes),
            http: false.into(),
            routed,
            name,
            bounds,
            window,
            expected,
        }
    }

    #[inline]
    pub(super) fn place(&self, name: Option<&str>) -> Place {
        match name {
            None => Place::Only,
            Some(name) => match self.routes.find(name) {
                Some(place) => Place::Known(place),
                None => self.unknown(name),
            },
        }
    }

    #[cold]
    fn unknown(&self, name: &str) -> Place {
        let learnable = name.len() <= LONGEST && !self.routes.is_full();
        Place::Other(learnable.then(|| name.into()))
    }

    #[inline]
    pub(super) fn measures(&self, place: &Place) -> &Measures {
        match place {
            Place::Only => &self.only,
            Place::Known(place) => self.routes.at(*place),
            Place::Other(_) => &self.other,
        }
    }

    /// Makes `name` a route if there is room. The call that named it stays billed where it started.
    pub(super) fn admit(&self, name: &str) -> Option<usize> {
        self.routes
            .admit(name, || Measures::new(&self.bounds, self.window))
    }

    /// The window of `route`, which becomes a route if there is room.
    pub(super) fn window_of(&self, route: &str) -> Option<&Arc<Sliding>> {
        if !self.routed {
            return (*route == *self.name).then_some(&self.only.total);
        }
        let place = self.admit(route)?;
        Some(&self.routes.at(place).total)
    }

    /// All routes that were ever called or asked for: the layer's own first, `other` last.
    pub(super) fn all(&self) -> Vec<(&str, &Measures)> {
        let mut all = self.routes.sorted();
        // The only route of its layer is shown before its first call too.
        if !self.routed {
            all.insert(0, (&self.name, &self.only));
        }
        if self.other.started() > 0 {
            all.push((OTHER, &self.other));
        }
        all
    }
}

// ===== impl Measures =====

impl Measures {
    fn new(bounds: &Bounds, window: Window) -> Self {
        let histogram = 1 + bounds.buckets();
        Self {
            cells: Striped::new(at::HISTOGRAMS + 3 * histogram),
            bounds: bounds.clone(),
            total: Arc::new(Sliding::new(window)),
            connections: OnceLock::new(),
        }
    }

    #[inline]
    pub(super) fn start(&self, ready: Duration) {
        let cells = self.cells.local();
        cells.add(at::STARTED, 1);
        let ready_at = self.histogram_at(Phase::Ready);
        if ready.is_zero() {
            cells.add(ready_at + 1, 1);
        } else {
            cells.add(ready_at, nanos(ready));
            cells.add(ready_at + 1 + self.bounds.of(ready), 1);
        }
    }

    #[inline]
    pub(super) fn end(&self, now: Instant, outcome: Outcome, phases: &Phases) {
        self.total.record(now, phases.total);
        let cells = self.cells.local();
        let total_at = self.histogram_at(Phase::Total);
        cells.add(total_at + 1 + self.bounds.of(phases.total), 1);
        if let Some(first) = phases.first {
            let first_at = self.histogram_at(Phase::First);
            cells.add(first_at, nanos(first));
            cells.add(first_at + 1 + self.bounds.of(first), 1);
            if !phases.producer.is_zero() {
                cells.add(at::PRODUCER, nanos(phases.producer));
            }
            if !phases.consumer.is_zero() {
                cells.add(at::CONSUMER, nanos(phases.consumer));
            }
        }
        // Last, so that whoever sees the call ended sees all of it.
        cells.add(at::ENDED + outcome.index(), 1);
    }

    pub(super) fn connected(&self, timings: &Timings) {
        self.connections
            .get_or_init(|| Box::new(Connections::new(&self.bounds)))
            .note(timings);
    }

    /// What is known of the connections, once a response has told of one.
    pub(super) fn connections(&self) -> Option<&Connections> {
        self.connections.get().map(|connections| &**connections)
    }

    pub(super) fn started(&self) -> u64 {
        self.cells.sum(at::STARTED)
    }

    /// By outcome. Read before [`started`](Self::started), so that in flight is never negative.
    pub(super) fn ended(&self) -> [u64; 6] {
        let mut ended = [0; 6];
        self.cells.sum_into(at::ENDED, &mut ended);
        ended
    }

    /// Producer and consumer.
    pub(super) fn stalls(&self) -> [Duration; 2] {
        [at::PRODUCER, at::CONSUMER].map(|cell| Duration::from_nanos(self.cells.sum(cell)))
    }

    /// The buckets and the sum of a phase.
    pub(super) fn histogram(&self, phase: Phase) -> (Vec<u64>, Duration) {
        let mut cells = vec![0; 1 + self.bounds.buckets()];
        self.cells.sum_into(self.histogram_at(phase), &mut cells);
        let sum = match phase {
            // Kept by the fine histogram already.
            Phase::Total => self.total.whole().counts().sum(),
            _ => Duration::from_nanos(cells[0]),
        };
        cells.remove(0);
        (cells, sum)
    }

    #[inline]
    fn histogram_at(&self, phase: Phase) -> usize {
        at::HISTOGRAMS + phase as usize * (1 + self.bounds.buckets())
    }
}
