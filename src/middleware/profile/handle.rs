use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::metrics;
use super::stage::Stage;
use super::state::{Delays, Measures, SlowPoll, State};
use crate::base::clock;
use crate::base::error::BoxError;
use crate::base::inspect::{Column, Cost, HotPath, Inspect, Knob, Table, Unit, Value};
use crate::base::metrics::Families;

/// Of so many calls one has to be looked at at least: beyond that the estimates say nothing.
const RAREST: u32 = 1_000_000;

/// Reads and tunes a [`ProfileLayer`](super::ProfileLayer); cheap to clone.
#[derive(Debug, Clone)]
pub struct ProfileHandle(Arc<State>);

/// The polls of one route at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PollsSnapshot {
    /// Its name.
    pub route: String,
    /// Its polls, stage by stage; those that were never polled are left out.
    pub stages: Vec<StageSnapshot>,
    /// The mean wait between a wake-up and the poll that follows it.
    pub wake_delay: Option<Duration>,
    /// The longest.
    pub max_wake_delay: Option<Duration>,
}

/// The polls of one route in one stage.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StageSnapshot {
    /// Which.
    pub stage: Stage,
    /// How many polls there were; an estimate when not every call is looked at, and so are the next three.
    pub polls: u64,
    /// How long they took, without what profiled layers further inside took.
    pub busy: Duration,
    /// How long they took altogether.
    pub total: Duration,
    /// Polls that took longer than [`slow`](super::ProfileLayer::slow).
    pub slow: u64,
    /// The longest poll that was looked at, without what profiled layers further inside took.
    pub max: Duration,
}

impl ProfileHandle {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// The polls of every route.
    pub fn snapshot(&self) -> Vec<PollsSnapshot> {
        let routes = self.0.all();
        routes
            .into_iter()
            .map(|(route, measures)| PollsSnapshot::of(route, measures))
            .collect()
    }

    /// The last slow polls, at most 32, the newest last.
    pub fn slow_polls(&self) -> Vec<SlowPoll> {
        self.0.slow_polls()
    }

    /// Where the time went: every route and stage that was polled, the one that took most first.
    pub fn hot(&self) -> Vec<HotPath> {
        let snapshot = self.snapshot();
        let busy = snapshot.iter().flat_map(|route| &route.stages);
        let busy: Duration = busy.map(|stage| stage.busy).sum();
        // Polls that block take longer than the CPU time they use.
        let all = self.0.process_cpu().map(|cpu| cpu.max(busy));
        let mut paths: Vec<_> = snapshot
            .into_iter()
            .flat_map(|route| {
                let name = route.route;
                let stages = route.stages.into_iter();
                stages.map(move |stage| (name.clone(), stage))
            })
            .map(|(route, stage)| HotPath {
                layer: self.0.name.to_string(),
                route,
                stage: stage.stage.as_str(),
                polls: stage.polls,
                busy: stage.busy,
                total: stage.total,
                max: stage.max,
                slow: stage.slow,
                share: all
                    .filter(|all| !all.is_zero())
                    .map(|all| stage.busy.as_secs_f64() / all.as_secs_f64()),
            })
            .collect();
        paths.sort_by_key(|path| std::cmp::Reverse(path.busy));
        paths
    }

    /// Looks at one call in `every` from now on; 0 is off.
    pub fn set_every(&self, every: u32) {
        self.0.set_every(every);
    }
}

impl PollsSnapshot {
    fn of(route: &str, measures: &Measures) -> Self {
        let stages = Stage::ALL.into_iter().filter_map(|stage| {
            let polls = measures.polls(stage);
            (polls.count > 0).then_some(StageSnapshot {
                stage,
                polls: polls.count,
                busy: polls.own,
                total: polls.total,
                slow: polls.slow,
                max: polls.max,
            })
        });
        let Delays { count, sum, max } = measures.delays();
        Self {
            route: route.to_owned(),
            stages: stages.collect(),
            wake_delay: (count > 0).then(|| sum.div_f64(count as f64)),
            max_wake_delay: (count > 0).then_some(max),
        }
    }
}

impl Inspect for ProfileHandle {
    fn kind(&self) -> &'static str {
        "profile"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0.name)
    }

    fn snapshot(&self) -> Value {
        let optional = |delay: Option<Duration>| delay.map_or(Value::Null, Value::from);
        let mut polls = Vec::new();
        for route in Self::snapshot(self) {
            for stage in route.stages {
                polls.push(Value::map([
                    ("route", (&*route.route).into()),
                    ("stage", stage.stage.as_str().into()),
                    ("polls", stage.polls.into()),
                    ("busy", stage.busy.into()),
                    ("total", stage.total.into()),
                    ("slow", stage.slow.into()),
                    ("max", stage.max.into()),
                    ("wake_delay", optional(route.wake_delay)),
                    ("max_wake_delay", optional(route.max_wake_delay)),
                ]));
            }
        }
        let now = clock::now();
        let slow = self.0.slow_polls().into_iter().map(|poll| {
            Value::map([
                ("route", (&*poll.route).into()),
                ("stage", poll.stage.as_str().into()),
                ("took", poll.took.into()),
                ("ago", now.saturating_duration_since(poll.at).into()),
            ])
        });
        Value::map([
            ("every", self.0.every().into()),
            ("threshold", self.0.slow.into()),
            ("polls", Value::list(polls)),
            ("slow_polls", Value::list(slow)),
        ])
    }

    fn cost(&self) -> Option<&Cost> {
        Some(&self.0.cost)
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(&self.0, families);
    }

    fn tables(&self) -> &'static [Table] {
        const POLLS: &[Column] = &[
            Column::new("route", "route", Unit::Text),
            Column::new("stage", "stage", Unit::Text),
            Column::new("polls", "polls", Unit::Count),
            Column::new("busy", "busy", Unit::Seconds),
            Column::new("longest", "max", Unit::Seconds),
            Column::new("slow", "slow", Unit::Count),
            Column::new("wake-up delay", "wake_delay", Unit::Seconds),
        ];
        const SLOW: &[Column] = &[
            Column::new("route", "route", Unit::Text),
            Column::new("stage", "stage", Unit::Text),
            Column::new("took", "took", Unit::Seconds),
            Column::new("ago", "ago", Unit::Seconds),
        ];
        const TABLES: &[Table] = &[
            Table {
                title: "polls",
                rows: "polls",
                columns: POLLS,
            },
            Table {
                title: "slow polls",
                rows: "slow_polls",
                columns: SLOW,
            },
        ];
        TABLES
    }

    fn hot(&self) -> Vec<HotPath> {
        Self::hot(self)
    }

    fn knobs(&self) -> Vec<Knob> {
        let help = "One call in so many is looked at; 0 is off";
        vec![Knob::new("every", help, self.0.every())]
    }

    fn turn(&self, name: &str, to: &Value) -> Result<(), BoxError> {
        match (name, to) {
            ("every", Value::Whole(every)) => {
                let fits = u32::try_from(*every).ok().filter(|every| *every <= RAREST);
                let every = fits.ok_or_else(|| {
                    format!("one call in {every} is none; at most {RAREST}, and 0 turns it off")
                })?;
                self.set_every(every);
                Ok(())
            }
            _ => Err(format!(
                "profile {:?} has no knob {name:?} to set to {to}",
                self.0.name
            )
            .into()),
        }
    }
}
