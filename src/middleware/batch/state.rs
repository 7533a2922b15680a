use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use super::board::Tally;
use super::shard::Rules;
use crate::base::clock::nanos;
use crate::base::cost::Cost;
use crate::base::executor::Executor;
use crate::base::metrics::Histogram;
use crate::base::pertype::PerType;
use crate::base::stats::{Bounds, Striped};

/// What becomes of an item that weighs more than a batch may.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Oversize {
    /// It is refused with [`Reason::TooLarge`](crate::error::Reason::TooLarge).
    #[default]
    Reject,
    /// It is a batch of its own.
    Alone,
}

/// What becomes of the items of a batch that failed as a whole.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// All fail with its error.
    #[default]
    FailAll,
    /// Both halves are sent again, and so on, until those that fail are found. For requests that may be sent twice.
    Bisect,
}

/// Who runs the batches.
#[derive(Debug, Clone)]
pub(super) enum Drive {
    Tasks(Arc<dyn Executor>),
    Callers,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) rules: Rules,
    pub(super) drive: Drive,
    pub(super) across_services: bool,
}

/// What all services of a layer share.
pub(super) struct State {
    pub(super) cost: Cost,
    pub(super) settings: Settings,
    /// As they are now.
    rules: Mutex<Rules>,
    pub(super) stats: Arc<Stats>,
    /// Nothing more is accepted.
    closed: AtomicBool,
    pub(super) plan: Arc<dyn Any + Send + Sync>,
    hubs: PerType<dyn Hubs>,
}

crate::leased!(State);

/// The shards of one type of service, to those who do not know the type.
pub(super) trait Hubs: Send + Sync {
    fn tally(&self) -> Tally;
    fn flush(&self);
    fn close(&self);
    /// Whether nothing is under way; if not, `cx` is woken when that is so. `drain` tells one who asks from another.
    fn is_drained(&self, drain: u64, cx: &mut Context<'_>) -> bool;
    fn forget_drain(&self, drain: u64);
    /// The rules are those that `rules` reads.
    fn set_rules(&self, rules: &dyn Fn() -> Rules);
}

/// What is counted outside of the board.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cell {
    /// Calls made for parts of batches.
    Splits,
    /// Answers to nobody.
    Unknown,
    // No cell: how many there are.
    Count,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) enum Measure {
    /// From when an item was accepted until it was sent.
    Wait,
    /// From when a batch was sent until it was answered.
    Batch,
    Size,
    Weight,
}

#[derive(Debug)]
pub(super) struct Stats {
    cells: Striped,
    seconds: Bounds,
    counts: Bounds,
}

// ===== impl State =====

impl State {
    pub(super) fn new(settings: Settings, plan: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            cost: Cost::new(),
            rules: Mutex::new(settings.rules.clone()),
            settings,
            stats: Arc::new(Stats::new()),
            closed: AtomicBool::new(false),
            plan,
            hubs: PerType::new(),
        }
    }

    /// The shards of services of one type; made by `make` when there are none.
    #[inline]
    pub(super) fn hub<H: Hubs + Any>(&self, make: impl FnOnce(Rules) -> Arc<H>) -> &H {
        self.hubs.find().unwrap_or_else(|| self.add_hub(make))
    }

    /// Locked until it can be found, so that whoever changes the rules then finds it, and before is heeded.
    #[cold]
    fn add_hub<H: Hubs + Any>(&self, make: impl FnOnce(Rules) -> Arc<H>) -> &H {
        let rules = self.lock_rules();
        self.hubs.get(|| make(rules.clone()), |hub| hub)
    }

    pub(super) fn rules(&self) -> Rules {
        self.lock_rules().clone()
    }

    pub(super) fn set_rules(&self, set: impl FnOnce(&mut Rules)) {
        set(&mut self.lock_rules());
        // Each reads what they are by then: of two who change them the last is the last everywhere.
        for hub in self.hubs.iter() {
            hub.set_rules(&|| self.rules());
        }
    }

    fn lock_rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was closed. A service of a type that is new finds out here, the others by their shards.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn close(&self) {
        // Before it looks which types of service there are; they look after they have come to be.
        self.closed.store(true, Ordering::SeqCst);
        for hub in self.hubs.iter() {
            hub.close();
        }
    }

    pub(super) fn flush(&self) {
        for hub in self.hubs.iter() {
            hub.flush();
        }
    }

    pub(super) fn is_drained(&self, drain: u64, cx: &mut Context<'_>) -> bool {
        self.hubs.iter().all(|hub| hub.is_drained(drain, cx))
    }

    pub(super) fn forget_drain(&self, drain: u64) {
        for hub in self.hubs.iter() {
            hub.forget_drain(drain);
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        for hub in self.hubs.iter() {
            sum.add(&hub.tally());
        }
        sum
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

// ===== impl Stats =====

impl Stats {
    fn new() -> Self {
        let seconds = Bounds::client_golang();
        let counts = Bounds::whole((0..=16).map(|exponent| f64::from(1u32 << exponent)));
        let width = 2 * (seconds.buckets() + 1) + 2 * (counts.buckets() + 1);
        Self {
            cells: Striped::new(Cell::Count as usize + width),
            seconds,
            counts,
        }
    }

    pub(super) fn count(&self, cell: Cell, n: u64) {
        self.cells.local().add(cell as usize, n);
    }

    pub(super) fn read(&self, cell: Cell) -> u64 {
        self.cells.sum(cell as usize)
    }

    pub(super) fn record(&self, measure: Measure, value: u64) {
        let (first, bounds) = self.place(measure);
        let cells = self.cells.local();
        cells.add(first + bounds.index(value), 1);
        cells.add(first + bounds.buckets(), value);
    }

    pub(super) fn record_times(&self, measure: Measure, took: impl Iterator<Item = Duration>) {
        let (first, bounds) = self.place(measure);
        let cells = self.cells.local();
        let mut sum = 0u64;
        for took in took {
            cells.add(first + bounds.of(took), 1);
            sum = sum.saturating_add(nanos(took));
        }
        cells.add(first + bounds.buckets(), sum);
    }

    pub(super) fn histogram(&self, measure: Measure) -> Histogram {
        let (first, bounds) = self.place(measure);
        let mut counts = vec![0; bounds.buckets() + 1];
        self.cells.sum_into(first, &mut counts);
        let sum = counts.pop().unwrap_or_default();
        let sum = match measure {
            Measure::Wait | Measure::Batch => Duration::from_nanos(sum).as_secs_f64(),
            Measure::Size | Measure::Weight => sum as f64,
        };
        Histogram::new(bounds, counts, sum)
    }

    fn place(&self, measure: Measure) -> (usize, &Bounds) {
        let times = self.seconds.buckets() + 1;
        let counts = self.counts.buckets() + 1;
        let (first, bounds) = match measure {
            Measure::Wait => (0, &self.seconds),
            Measure::Batch => (times, &self.seconds),
            Measure::Size => (2 * times, &self.counts),
            Measure::Weight => (2 * times + counts, &self.counts),
        };
        (Cell::Count as usize + first, bounds)
    }
}
