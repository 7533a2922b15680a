use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::metrics;
use super::state::{ALONE, Cell, ENDS, State};
use crate::base::clock;
use crate::base::error::BoxError;
use crate::base::inspect::{Column, Cost, Inspect, Knob, Role, Table, Unit, Value, Vital};
use crate::base::metrics::Families;

/// Reads a [`CoalesceLayer`](super::CoalesceLayer); cheap to clone.
#[derive(Debug, Clone)]
pub struct CoalesceHandle(Arc<State>);

/// The knob's name.
const PAUSED: &str = "paused";

/// The numbers of a layer at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CoalesceSnapshot {
    /// Requests that were sent for all who asked for the same.
    pub leaders: u64,
    /// Requests that found one like them under way, or its answer. One that begins anew is counted again, for what it
    /// finds then.
    pub followers: u64,
    /// Requests that went alone from the start, by why: `no_key`, `max_keys`, `max_waiters`, `unshareable`, `paused`.
    pub bypassed: [(&'static str, u64); 5],
    /// Followers that sent their own requests after all, since the answer was not for them.
    pub released: u64,
    /// Requests that were sent: leaders, those that went alone, and those released.
    pub sent: u64,
    /// Requests answered by somebody else's call: calls saved.
    pub shared: u64,
    /// Calls saved over those there would have been, `shared / (shared + sent)`, 0 to 1.
    pub saved_ratio: f64,
    /// How flights, and for `deadline` waits, ended; `handover` and `reissue` are what became of those whose leader left.
    pub ends: [(&'static str, u64); 11],
    /// Flights now.
    pub flights: u64,
    /// Callers that wait for them now.
    pub waiters: u64,
    /// Results kept for a while now.
    pub kept: u64,
    /// Keys known for answers that are not to be shared now.
    pub remembered: u64,
    /// Readers of shared bodies that were put out, for they held up the others.
    pub evicted: u64,
    /// The keys followed most, in flights now and before, as hashes, with how often: at most 16, hottest first. Counts may be too great, never too small.
    pub hottest: Vec<(u64, u64)>,
}

/// What the live page shows of the keys followed most.
const HOTTEST: Table = Table {
    title: "hottest keys",
    rows: "hottest",
    columns: &[
        Column::new("key", "key", Unit::Text),
        Column::new("followers", "followers", Unit::Count),
    ],
};

// ===== impl CoalesceHandle =====

impl CoalesceHandle {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// Lets all requests go alone, or no more. Flights that are under way go on.
    pub fn pause(&self, paused: bool) {
        self.0.paused.store(paused, Ordering::Relaxed);
    }

    /// The numbers now.
    pub fn snapshot(&self) -> CoalesceSnapshot {
        let stats = &self.0.stats;
        // What follows from another is read before it.
        let (shared, released) = (stats.read(Cell::Saved), stats.read(Cell::Released));
        let mut ends = ENDS.map(|(how, cell)| (how, stats.read(cell)));
        let tally = self.0.tally(clock::now());
        let books = tally.books;
        ends[ALONE].1 += books.alone;
        let (leaders, followers) = (books.leaders, books.followers);
        let bypassed = [
            ("no_key", stats.read(Cell::NoKey)),
            ("max_keys", books.max_keys),
            ("max_waiters", books.max_waiters),
            ("unshareable", books.unshareable),
            ("paused", stats.read(Cell::Paused)),
        ];
        let alone = bypassed.iter().map(|(_, count)| count).sum::<u64>();
        let sent = leaders + alone + released;
        CoalesceSnapshot {
            leaders,
            followers,
            bypassed,
            released,
            sent,
            shared,
            saved_ratio: shared as f64 / (shared + sent).max(1) as f64,
            ends,
            flights: tally.flights as u64,
            waiters: tally.waiters as u64,
            kept: tally.kept as u64,
            remembered: tally.remembered as u64,
            evicted: self.0.settings.evicted.load(Ordering::Relaxed),
            hottest: tally.hottest(16),
        }
    }
}

impl Inspect for CoalesceHandle {
    fn kind(&self) -> &'static str {
        "coalesce"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0.settings.name)
    }

    fn snapshot(&self) -> Value {
        let now = Self::snapshot(self);
        let counts = |counts: &[(&'static str, u64)]| {
            Value::map(counts.iter().map(|(name, count)| (*name, (*count).into())))
        };
        let hottest = now.hottest.iter().map(|(hash, followers)| {
            let hash = format!("{hash:016x}");
            Value::map([("key", hash.into()), ("followers", (*followers).into())])
        });
        Value::map([
            ("leaders", now.leaders.into()),
            ("followers", now.followers.into()),
            ("bypassed", counts(&now.bypassed)),
            ("released", now.released.into()),
            ("sent", now.sent.into()),
            ("shared", now.shared.into()),
            ("saved_ratio", now.saved_ratio.into()),
            ("ends", counts(&now.ends)),
            ("flights", now.flights.into()),
            ("waiters", now.waiters.into()),
            ("kept", now.kept.into()),
            ("remembered", now.remembered.into()),
            ("evicted", now.evicted.into()),
            ("hottest", Value::list(hottest)),
        ])
    }

    fn knobs(&self) -> Vec<Knob> {
        vec![Knob::new(
            PAUSED,
            "Whether all requests go alone",
            self.0.paused.load(Ordering::Relaxed),
        )]
    }

    fn turn(&self, name: &str, to: &Value) -> Result<(), BoxError> {
        match (name, to) {
            (PAUSED, Value::Flag(paused)) => {
                self.pause(*paused);
                Ok(())
            }
            (PAUSED, other) => Err(format!("paused takes true or false, not {other}").into()),
            _ => Err(format!(
                "coalesce {:?} has no knob {name:?}; it has paused",
                self.0.settings.name
            )
            .into()),
        }
    }

    fn cost(&self) -> Option<&Cost> {
        Some(&self.0.cost)
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(&self.0, &Self::snapshot(self), families);
    }

    fn vitals(&self) -> Vec<Vital> {
        let now = Self::snapshot(self);
        vec![
            Vital::count(Role::Saved, now.shared),
            Vital::count(Role::Sent, now.sent),
            Vital::level(Role::Waiting, now.waiters as f64),
        ]
    }

    fn tables(&self) -> &'static [Table] {
        &[HOTTEST]
    }
}
