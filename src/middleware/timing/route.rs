use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::connection::Connections;
use crate::base::clock::{Instant, nanos};
use crate::base::cost::Cost;
use crate::base::outcome::Outcome;
use crate::base::phases::Timings;
use crate::base::route::{Place, Routes};
use crate::base::stats::{Bounds, Phases, Sliding, Striped, Window};

/// What one layer knows: its routes and how it measures them.
#[derive(Debug)]
pub(super) struct State {
    pub(super) name: Arc<str>,
    pub(super) bounds: Bounds,
    pub(super) expected: Option<Duration>,
    pub(super) http: std::sync::atomic::AtomicBool,
    window: Window,
    routes: Routes<Measures>,
    pub(super) cost: Cost,
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
            routes: Routes::new(routed, max_routes, || Measures::new(&bounds, window)),
            http: false.into(),
            name,
            bounds,
            window,
            expected,
            cost: Cost::new(),
        }
    }

    #[inline]
    pub(super) fn place(&self, name: Option<&str>) -> Place {
        self.routes.place(name)
    }

    #[inline]
    pub(super) fn measures(&self, place: &Place) -> &Measures {
        self.routes.at(place)
    }

    /// Makes `name` a route if there is room.
    pub(super) fn admit(&self, name: &str) -> Option<&Measures> {
        self.routes
            .admit(name, || Measures::new(&self.bounds, self.window))
    }

    /// The window of `route`, which becomes a route if there is room.
    pub(super) fn window_of(&self, route: &str) -> Option<&Arc<Sliding>> {
        match self.routes.only() {
            Some(only) => (*route == *self.name).then_some(&only.total),
            None => self.admit(route).map(|measures| &measures.total),
        }
    }

    /// All routes that were ever called or asked for.
    pub(super) fn all(&self) -> Vec<(&str, &Measures)> {
        self.routes.all(&self.name, |other| other.started() > 0)
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
