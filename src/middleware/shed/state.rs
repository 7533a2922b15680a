//! What all services of a layer share: the gate, the sampler, the signals, and the limit that is in force.
//!
//! # Invariants
//!
//! - The limit in force is the one set by hand, else the algorithm's less what the signals take. Only then does the
//!   algorithm see the traffic: it never learns from a limit it did not choose.
//! - Whoever changes one of these does so before it puts the limit in force, one at a time: the last to come sees all.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::expiry::Expiry;
use super::gate::{self, Gate, Listener};
use super::layer::Options;
use super::queue::{Left, Queue, Tally};
use super::sampler::{Sampler, at};
use crate::base::clock::{self, Instant, nanos};
use crate::base::cost::Cost;
use crate::base::signal::Pressures;
use crate::base::stats::Bounds;

/// A priority level is divided into so many cohorts.
pub(super) const COHORTS: u32 = 128;

/// What all services of a layer share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) cost: Cost,
    pub(super) name: Arc<str>,
    pub(super) sampler: Sampler,
    pub(super) gate: Gate,
    pub(super) streams: Gate,
    pub(super) expiry: Expiry,
    pub(super) queue: Queue,
    pub(super) waits: Bounds,
    pub(super) partitions: Box<[(Arc<str>, f64)]>,
    pub(super) pressures: Pressures,
    /// Whether there are any.
    listens: bool,
    max_cut: f64,
    min_limit: usize,
    pub(super) live: Live,
}

/// What changes while it runs, other than by requests.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Live {
    /// Requests whose rank, priority by cohort, is below it are shed.
    pub(super) threshold: AtomicU32,
    dry: AtomicBool,
    /// The limit set by hand; zero for none.
    manual: AtomicUsize,
    /// The algorithm's limit.
    chosen: AtomicUsize,
    /// How much the signals press, as the bits of a float.
    pressure: AtomicU64,
    /// How long one waiting request takes to drain, in nanoseconds.
    pub(super) drain: AtomicU64,
    /// Held while the limit is put in force.
    enforcing: Mutex<()>,
    /// Where the next cohort is drawn, for those who have none.
    pub(super) draws: AtomicU32,
}

crate::leased!(State);

// ===== impl State =====

impl State {
    pub(super) fn new(options: &Options) -> Self {
        let limit = options.limit.make();
        let Options {
            queue, partitions, ..
        } = options.clone();
        let pressures = Pressures::new(options.pressures.clone());
        let waits = Bounds::client_golang();
        let start = limit.start().clamp(1, gate::MOST);
        let mut parts: Vec<_> = partitions.iter().map(|(_, part)| *part).collect();
        if !parts.is_empty() {
            // The last is nobody's, and has no share.
            parts.push(0.0);
        }
        Self {
            cost: Cost::new(),
            sampler: Sampler::new(limit, waits.buckets(), clock::now()),
            gate: Gate::new(start, &queue, &parts),
            streams: Gate::new(options.streams, &Queue::none(), &[]),
            expiry: Expiry::default(),
            live: Live {
                threshold: AtomicU32::new(0),
                dry: AtomicBool::new(options.dry_run),
                manual: AtomicUsize::new(0),
                chosen: AtomicUsize::new(start),
                pressure: AtomicU64::new(0),
                drain: AtomicU64::new(nanos(Duration::from_millis(10))),
                enforcing: Mutex::new(()),
                draws: AtomicU32::new(0),
            },
            name: options.name.clone(),
            queue,
            waits,
            partitions: partitions.into(),
            listens: !pressures.is_empty(),
            pressures,
            max_cut: options.max_cut,
            min_limit: options.min_limit,
        }
    }

    pub(super) fn is_dry(&self) -> bool {
        self.live.dry.load(Relaxed)
    }

    pub(super) fn set_dry(&self, dry: bool) {
        self.live.dry.store(dry, Relaxed);
    }

    /// The limit set by hand.
    pub(super) fn manual(&self) -> Option<usize> {
        Some(self.live.manual.load(Relaxed)).filter(|limit| *limit > 0)
    }

    pub(super) fn set_manual(&self, limit: Option<usize>) {
        self.live.manual.store(limit.unwrap_or(0), Relaxed);
        self.enforce(clock::now());
    }

    /// What the algorithm wants.
    pub(super) fn chosen(&self) -> usize {
        self.live.chosen.load(Relaxed)
    }

    pub(super) fn pressure(&self) -> f64 {
        f64::from_bits(self.live.pressure.load(Relaxed))
    }

    /// Looks at windows and signals whose time has come. `at` is `now` in the sampler's nanoseconds.
    #[inline]
    pub(super) fn tick(&self, now: Instant, at: u64) {
        if self.sampler.due(at) {
            self.look(now, at);
        }
        if self.listens && self.pressures.due(now) {
            self.feel(now);
        }
    }

    /// As [`tick`](Self::tick), for those who only look on.
    pub(super) fn tick_now(&self) {
        let now = clock::now();
        self.tick(now, self.sampler.at(now));
    }

    #[cold]
    fn look(&self, now: Instant, at: u64) {
        let limit = self.gate.occupancy().limit;
        let own = limit == self.chosen();
        if let Some(seen) = self.sampler.look(at, limit, own) {
            self.live.chosen.store(seen.limit, Relaxed);
            let drain = seen.mean.div_f64(seen.limit as f64).mul_f64(seen.pressing);
            if !drain.is_zero() {
                self.live.drain.store(nanos(drain), Relaxed);
            }
            let places = self.queue.places(seen.limit);
            self.gate
                .with_queue(|queue| queue.tune(places, seen.facts.floor, seen.p50));
            self.enforce(now);
        }
    }

    #[cold]
    fn feel(&self, now: Instant) {
        let pressure = self.pressures.poll(now).pressure;
        self.live.pressure.store(pressure.to_bits(), Relaxed);
        // Best effort goes in the first half, sheddable in the second; ordinary traffic is never shed for a signal.
        let shed = 2.0 * f64::from(COHORTS) * pressure;
        self.live.threshold.store(shed as u32, Relaxed);
        self.enforce(now);
    }

    /// Puts the limit in force that is to be. Whoever changes what it depends on does so before, and so the last to
    /// come sees all of it.
    fn enforce(&self, now: Instant) {
        let settles = {
            let _one_at_a_time = self.live.enforcing.lock();
            let limit = self.manual().unwrap_or_else(|| {
                let chosen = self.chosen();
                let kept = 1.0 - self.pressure() * self.max_cut;
                let cut = (chosen as f64 * kept).round() as usize;
                cut.max(self.min_limit).min(chosen)
            });
            limit != self.gate.occupancy().limit && self.gate.store_limit(limit)
        };
        // Wakes, which may run anything.
        if settles {
            self.gate.settle(now, self);
        }
    }
}

impl Listener for State {
    fn left(&self, left: &Left) {
        let cells = self.sampler.cells.local();
        cells.add(at::WAITED, nanos(left.waited));
        cells.add(at::WAITED + 1 + self.waits.of(left.waited), 1);
        if let Some(refused) = left.refused {
            self.count(refused, left.ghost || self.is_dry());
        }
    }

    fn tally(&self) -> Tally {
        self.sampler.tally()
    }
}
