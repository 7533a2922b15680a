use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::classify::Verdict;
use super::metrics;
use super::sampler::{REASONS, at, refused_at};
use super::state::State;
use crate::base::error::{BoxError, Reason};
use crate::base::inspect::{Column, Cost, Inspect, Knob, Role, Table, Unit, Value, Vital};
use crate::base::metrics::Families;
use crate::base::priority::Priority;
use crate::base::signal::PressureSnapshot;

/// Reads and tunes a [`ShedLayer`](super::ShedLayer); cheap to clone.
#[derive(Debug, Clone)]
pub struct ShedHandle(Arc<State>);

/// A shedding layer at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ShedSnapshot {
    /// What the algorithm wants.
    pub limit: usize,
    /// The limit in force: set by hand, or lowered by signals.
    pub limit_effective: usize,
    /// The limit set by hand.
    pub limit_manual: Option<usize>,
    /// Requests that hold a slot.
    pub in_flight: usize,
    /// Streams that hold a slot of theirs.
    pub streams: usize,
    /// Requests that wait, by priority, lowest first.
    pub waiting: [usize; 4],
    /// Requests that were let in, by priority, lowest first.
    pub admitted: [u64; 4],
    /// Requests that were refused, by reason and priority; only those that happened.
    pub refused: Vec<(Reason, Priority, u64)>,
    /// Requests that a dry run would have refused, by reason; only those that happened.
    pub would_refuse: Vec<(Reason, u64)>,
    /// Ends, by what they say about load.
    pub ended: [(Verdict, u64); 4],
    /// Streams that were let in.
    pub streams_admitted: u64,
    /// Streams that were refused, or in a dry run would have been.
    pub streams_refused: u64,
    /// Requests that went away before they were let in or refused.
    pub abandoned: u64,
    /// Requests that passed by.
    pub bypassed: u64,
    /// Requests with a deadline or priority that could not be read.
    pub malformed: u64,
    /// Hooks and algorithms that panicked.
    pub panics: u64,
    /// How many slots each partition holds, and the part it is guaranteed.
    pub partitions: Vec<(Arc<str>, usize, f64)>,
    /// The round trip without queueing, as far as the algorithm knows.
    pub floor: Option<Duration>,
    /// The mean round trip of the last window.
    pub round_trip: Duration,
    /// The floor over the round trip.
    pub gradient: Option<f64>,
    /// Whether the floor is being measured.
    pub probing: bool,
    /// How much the signals press, 0 to 1.
    pub pressure: f64,
    /// Each signal.
    pub pressures: Vec<PressureSnapshot>,
    /// Whether it only counts.
    pub dry_run: bool,
    /// Whether the algorithm rests.
    pub paused: bool,
}

/// What the live page shows of who is refused, and of who shares the slots.
const TABLES: [Table; 3] = [
    Table {
        title: "refused",
        rows: "refused",
        columns: &[
            Column::new("reason", "reason", Unit::Text),
            Column::new("priority", "priority", Unit::Text),
            Column::new("refused", "count", Unit::Count),
        ],
    },
    Table {
        title: "partitions",
        rows: "partitions",
        columns: &[
            Column::new("name", "name", Unit::Text),
            Column::new("in flight", "in_flight", Unit::Level),
            Column::new("part", "part", Unit::Share),
        ],
    },
    Table {
        title: "pressures",
        rows: "pressures",
        columns: &[
            Column::new("signal", "signal", Unit::Text),
            Column::new("state", "state", Unit::Text),
            Column::new("level", "level", Unit::Share),
            Column::new("value", "value", Unit::Level),
        ],
    },
];

// ===== impl ShedHandle =====

impl ShedHandle {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// Its numbers now.
    pub fn snapshot(&self) -> ShedSnapshot {
        let state = &*self.0;
        state.tick_now();
        let cells = &state.sampler.cells;
        let seen = state.sampler.seen();
        let occupancy = state.gate.occupancy();
        let refused = REASONS.into_iter().flat_map(|reason| {
            Priority::ALL.map(|level| (reason, level, cells.sum(refused_at(reason, level))))
        });
        let would = REASONS.into_iter().enumerate();
        let partitions = state.partitions.iter().enumerate();
        ShedSnapshot {
            limit: state.chosen(),
            limit_effective: occupancy.limit,
            limit_manual: state.manual(),
            in_flight: occupancy.in_flight,
            streams: state.streams.occupancy().in_flight,
            waiting: state.gate.with_queue(|queue| queue.depths()),
            admitted: Priority::ALL.map(|level| cells.sum(at::ADMITTED + level as usize)),
            refused: refused.filter(|(.., count)| *count > 0).collect(),
            would_refuse: would
                .map(|(index, reason)| (reason, cells.sum(at::WOULD + index)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            ended: Verdict::ALL.map(|verdict| (verdict, cells.sum(at::ENDED + verdict as usize))),
            streams_admitted: cells.sum(at::STREAMS),
            streams_refused: cells.sum(at::STREAMS_REFUSED) + cells.sum(at::STREAMS_WOULD),
            abandoned: cells.sum(at::ABANDONED),
            bypassed: cells.sum(at::BYPASSED),
            malformed: cells.sum(at::MALFORMED),
            panics: cells.sum(at::PANICS) + seen.panics,
            partitions: partitions
                .map(|(index, (name, part))| {
                    (name.clone(), state.gate.partition(index as u16), *part)
                })
                .collect(),
            floor: seen.facts.floor,
            round_trip: seen.mean,
            gradient: seen.facts.gradient,
            probing: seen.facts.probing,
            pressure: state.pressure(),
            pressures: state.pressures.snapshot(),
            dry_run: state.is_dry(),
            paused: state.sampler.frozen(),
        }
    }

    /// How many requests hold a slot: one load, for whoever asks often.
    pub fn in_flight(&self) -> usize {
        self.0.gate.occupancy().in_flight
    }

    /// Sets the limit by hand, at once, or with `None` lets the algorithm have it back.
    ///
    /// While it is set by hand the algorithm sees no traffic: it would draw the wrong conclusions.
    ///
    /// # Panics
    ///
    /// When the limit is 0, which would refuse everything.
    pub fn set_limit(&self, limit: impl Into<Option<usize>>) {
        let limit = limit.into();
        assert!(limit != Some(0), "limit must be at least 1, not 0");
        self.0.set_manual(limit);
    }

    /// Lets the algorithm rest: the limit stays where it is, requests are admitted and refused as before. Or lets it
    /// go on.
    pub fn pause(&self, pause: bool) {
        self.0.sampler.freeze(pause);
    }

    /// Only counts what it would refuse, or refuses again.
    pub fn dry_run(&self, dry_run: bool) {
        self.0.set_dry(dry_run);
    }
}

impl Inspect for ShedHandle {
    fn kind(&self) -> &'static str {
        "shed"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0.name)
    }

    fn snapshot(&self) -> Value {
        let snapshot = Self::snapshot(self);
        let whole = |n: usize| Value::from(n as u64);
        let levels = |counts: [u64; 4]| {
            let levels = Priority::ALL.into_iter().zip(counts);
            Value::map(levels.map(|(level, count)| (level.as_str(), count.into())))
        };
        let refused = snapshot.refused.iter().map(|(reason, level, count)| {
            Value::map([
                ("reason", reason.as_str().into()),
                ("priority", level.as_str().into()),
                ("count", (*count).into()),
            ])
        });
        let would = snapshot.would_refuse.iter();
        let partitions = snapshot.partitions.iter().map(|(name, in_flight, part)| {
            Value::map([
                ("name", (&**name).into()),
                ("in_flight", whole(*in_flight)),
                ("part", (*part).into()),
            ])
        });
        Value::map([
            ("limit", whole(snapshot.limit)),
            ("limit_effective", whole(snapshot.limit_effective)),
            (
                "limit_manual",
                snapshot.limit_manual.map_or(Value::Null, whole),
            ),
            ("in_flight", whole(snapshot.in_flight)),
            ("streams", whole(snapshot.streams)),
            ("waiting", levels(snapshot.waiting.map(|n| n as u64))),
            ("admitted", levels(snapshot.admitted)),
            ("refused", Value::list(refused)),
            (
                "would_refuse",
                Value::map(would.map(|(reason, count)| (reason.as_str(), (*count).into()))),
            ),
            (
                "ended",
                Value::map(
                    snapshot
                        .ended
                        .map(|(verdict, count)| (verdict.as_str(), count.into())),
                ),
            ),
            ("streams_admitted", snapshot.streams_admitted.into()),
            ("streams_refused", snapshot.streams_refused.into()),
            ("abandoned", snapshot.abandoned.into()),
            ("bypassed", snapshot.bypassed.into()),
            ("malformed", snapshot.malformed.into()),
            ("panics", snapshot.panics.into()),
            ("partitions", Value::list(partitions)),
            ("floor", snapshot.floor.map_or(Value::Null, Value::from)),
            ("round_trip", snapshot.round_trip.into()),
            (
                "gradient",
                snapshot.gradient.map_or(Value::Null, Value::from),
            ),
            ("probing", snapshot.probing.into()),
            ("pressure", snapshot.pressure.into()),
            (
                "pressures",
                Value::list(snapshot.pressures.iter().map(metrics::shown)),
            ),
            ("dry_run", snapshot.dry_run.into()),
            ("paused", snapshot.paused.into()),
        ])
    }

    fn cost(&self) -> Option<&Cost> {
        Some(&self.0.cost)
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(&self.0, &Self::snapshot(self), families);
    }

    fn vitals(&self) -> Vec<Vital> {
        let state = &*self.0;
        state.tick_now();
        let occupancy = state.gate.occupancy();
        let waiting: usize = state.gate.with_queue(|queue| queue.depths()).iter().sum();
        let cells = &state.sampler.cells;
        let mut refused = [0; Priority::ALL.len() * REASONS.len()];
        cells.sum_into(at::REFUSED, &mut refused);
        let mut admitted = [0; Priority::ALL.len()];
        cells.sum_into(at::ADMITTED, &mut admitted);
        vec![
            Vital::level(Role::InFlight, occupancy.in_flight as f64),
            Vital::level(Role::Limit, occupancy.limit as f64),
            Vital::level(Role::Waiting, waiting as f64),
            Vital::count(Role::Refused, refused.iter().sum()),
            Vital::count(Role::Admitted, admitted.iter().sum()),
        ]
    }

    fn tables(&self) -> &'static [Table] {
        &TABLES
    }

    fn knobs(&self) -> Vec<Knob> {
        let manual = self.0.manual().map(|limit| limit as u64);
        vec![
            Knob::new(
                "limit",
                "The limit, set by hand; null lets the algorithm choose",
                manual.map_or(Value::Null, Value::from),
            ),
            Knob::new(
                "pause",
                "Whether the algorithm rests",
                self.0.sampler.frozen(),
            ),
            Knob::new(
                "dry_run",
                "Whether refusals are only counted",
                self.0.is_dry(),
            ),
        ]
    }

    fn turn(&self, name: &str, to: &Value) -> Result<(), BoxError> {
        match (name, to) {
            ("limit", Value::Null) => self.set_limit(None),
            ("limit", Value::Whole(limit)) if *limit > 0 => {
                self.set_limit(usize::try_from(*limit).unwrap_or(usize::MAX));
            }
            ("pause", Value::Flag(pause)) => self.pause(*pause),
            ("dry_run", Value::Flag(dry_run)) => self.dry_run(*dry_run),
            _ => {
                let message = format!(
                    "shed {:?} cannot set {name:?} to {to}; it has limit (1 or more, or null), pause and dry_run (true or false)",
                    self.0.name
                );
                return Err(message.into());
            }
        }
        Ok(())
    }
}
