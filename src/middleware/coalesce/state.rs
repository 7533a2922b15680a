use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use super::flight::Orphan;
use super::map::Tally;
use super::shard::Rules;
use crate::base::clock::{Instant, nanos};
use crate::base::cost::Cost;
use crate::base::executor::Executor;
use crate::base::metrics::Histogram;
use crate::base::pertype::PerType;
use crate::base::stats::{Bounds, Striped};

/// What becomes of a flight when the caller whose request was sent goes away.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLeaderDrop {
    /// It goes on, for those who followed.
    #[default]
    HandOver,
    /// It is cancelled. Of those who followed one sends its own request, and the others follow that.
    Reissue,
    /// It runs in a task of its own from the start, to its end, even when nobody waits any more.
    Detach,
    /// It is cancelled, and those who followed fail with it.
    Fail,
}

/// When the inner service is asked whether it is ready.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Readiness {
    /// Inside the flight, once for all who wait for it; `poll_ready` is always ready.
    #[default]
    Late,
    /// In `poll_ready`, for every caller: what the inner service reserves there is reserved by those who follow too,
    /// until they join. Behind a limit of one nothing coalesces.
    Eager,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) on_leader_drop: OnLeaderDrop,
    pub(super) readiness: Readiness,
    pub(super) per_service: bool,
    pub(super) flight_timeout: Option<Duration>,
    pub(super) leader_age: Duration,
    pub(super) grace: Duration,
    pub(super) max_keys: usize,
    pub(super) max_waiters: usize,
    pub(super) remember: (Duration, usize),
    pub(super) executor: Arc<dyn Executor>,
    /// Readers of bodies that were put out.
    pub(super) evicted: Arc<AtomicU64>,
}

/// What all services of a layer share.
pub(super) struct State {
    pub(super) cost: Cost,
    pub(super) settings: Settings,
    pub(super) stats: Arc<Stats>,
    /// Whether all requests go alone.
    pub(super) paused: AtomicBool,
    /// The layer's functions; services and their flights know the type.
    pub(super) policy: Arc<dyn Any + Send + Sync>,
    /// The flights, for each type of service the layer went round.
    hubs: PerType<dyn Hubs>,
}

crate::leased!(State);

/// The flights of one type of service, to those who do not know the type.
pub(super) trait Hubs: Send + Sync {
    fn tally(&self, now: Instant) -> Tally;
}

/// What is counted. The first eleven are how flights ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cell {
    Shared,
    Alone,
    Unshareable,
    Retry,
    HandOver,
    Reissue,
    Detached,
    Abandoned,
    Panic,
    Timeout,
    Deadline,
    NoKey,
    /// Callers served by somebody else's call.
    Saved,
    /// Followers that sent their own requests after all.
    Released,
    Paused,
    // No cell: how many there are.
    Count,
}

/// Where in [`ENDS`] the flights are that nobody followed. The shards count those without a task.
pub(super) const ALONE: usize = 1;

pub(super) const ENDS: [(&str, Cell); 11] = [
    ("shared", Cell::Shared),
    ("alone", Cell::Alone),
    ("unshareable", Cell::Unshareable),
    ("retry", Cell::Retry),
    ("handover", Cell::HandOver),
    ("reissue", Cell::Reissue),
    ("detached", Cell::Detached),
    ("abandoned", Cell::Abandoned),
    ("panic", Cell::Panic),
    ("timeout", Cell::Timeout),
    ("deadline", Cell::Deadline),
];

/// Which of the two times.
#[derive(Debug, Clone, Copy)]
pub(super) enum Time {
    /// Of a flight, from when it first had to wait.
    Flight,
    /// Of one who followed.
    Wait,
}

#[derive(Debug)]
pub(super) struct Stats {
    cells: Striped,
    bounds: Bounds,
}

// ===== impl State =====

impl State {
    pub(super) fn new(settings: Settings, policy: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            cost: Cost::new(),
            settings,
            stats: Arc::new(Stats::new()),
            paused: AtomicBool::new(false),
            policy,
            hubs: PerType::new(),
        }
    }

    /// The flights of services of one type; made by `make` when there are none.
    #[inline]
    pub(super) fn hub<H: Hubs + Any>(&self, make: impl FnOnce() -> Arc<H>) -> &H {
        self.hubs.get(make, |hub| hub)
    }

    pub(super) fn tally(&self, now: Instant) -> Tally {
        let mut sum = Tally::default();
        for hub in self.hubs.iter() {
            let tally = hub.tally(now);
            sum.flights += tally.flights;
            sum.waiters += tally.waiters;
            sum.kept += tally.kept;
            sum.remembered += tally.remembered;
            sum.books.add(&tally.books);
            sum.hot.extend(tally.hot);
        }
        sum
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

// ===== impl Settings =====

impl Settings {
    pub(super) fn rules(&self) -> Rules {
        Rules {
            max_keys: self.max_keys,
            max_waiters: u32::try_from(self.max_waiters).unwrap_or(u32::MAX),
            leader_age: self.leader_age,
            grace: self.grace,
            orphan: match self.on_leader_drop {
                OnLeaderDrop::Reissue => Some(Orphan::Anew),
                OnLeaderDrop::Fail => Some(Orphan::Fail),
                OnLeaderDrop::HandOver | OnLeaderDrop::Detach => None,
            },
            remember: self.remember,
        }
    }
}

// ===== impl Stats =====

impl Stats {
    fn new() -> Self {
        let bounds = Bounds::client_golang();
        // For each time its buckets and the sum.
        let times = 2 * (bounds.buckets() + 1);
        Self {
            cells: Striped::new(Cell::Count as usize + times),
            bounds,
        }
    }

    #[inline]
    pub(super) fn count(&self, cell: Cell) {
        self.cells.local().add(cell as usize, 1);
    }

    pub(super) fn record(&self, time: Time, took: Duration) {
        let first = self.first(time);
        let cells = self.cells.local();
        cells.add(first + self.bounds.of(took), 1);
        cells.add(first + self.bounds.buckets(), nanos(took));
    }

    pub(super) fn read(&self, cell: Cell) -> u64 {
        self.cells.sum(cell as usize)
    }

    pub(super) fn histogram(&self, time: Time) -> Histogram {
        let first = self.first(time);
        let mut counts = vec![0; self.bounds.buckets() + 1];
        self.cells.sum_into(first, &mut counts);
        let sum = counts.pop().unwrap_or_default();
        Histogram::new(
            &self.bounds,
            counts,
            Duration::from_nanos(sum).as_secs_f64(),
        )
    }

    fn first(&self, time: Time) -> usize {
        let times = match time {
            Time::Flight => 0,
            Time::Wait => 1,
        };
        Cell::Count as usize + times * (self.bounds.buckets() + 1)
    }
}
