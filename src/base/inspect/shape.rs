//! What of a layer's numbers a person looks at first, and in which units.

use std::time::Duration;

/// One of the few numbers that matter most.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Vital {
    /// What it is.
    pub role: Role,
    /// What it is now.
    pub reading: Reading,
}

/// What a [`Vital`] is. Layers of any kind that mean the same say the same, so a page needs to know no layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Role {
    /// Requests that came, a [`Reading::Count`].
    Requests,
    /// Of those, the ones that failed, a count.
    Errors,
    /// The median of how long they take, in seconds, a [`Reading::Level`].
    P50,
    /// What 95 % of them stay below, in seconds.
    P95,
    /// What 99 % of them stay below, in seconds.
    P99,
    /// Requests under way now.
    InFlight,
    /// How many may be under way.
    Limit,
    /// Requests that wait for their turn now.
    Waiting,
    /// Requests that were refused, a count; a share of those offered: these and [`Role::Admitted`].
    Refused,
    /// Requests that were not refused, a count.
    Admitted,
    /// Connections open now.
    Open,
    /// Of those, the ones nobody uses.
    Idle,
    /// Requests that wait for a connection now.
    WaitingForConnection,
    /// Calls that were spared since another one's answer was shared, a count; a share of these and [`Role::Sent`].
    Saved,
    /// Calls that were made for themselves or for several, a count.
    Sent,
    /// Items that were sent in batches, a count; [`Role::Batches`] of these are the size of a batch.
    Items,
    /// Batches sent, a count.
    Batches,
    /// Share of the CPU time that may be used.
    Cpu,
    /// Share of the time the workers of a runtime are busy.
    Scheduler,
    /// How late tasks wake up, in seconds.
    WakeDelay,
    /// How many threads wait for a core.
    RunQueue,
}

/// How to read a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// It counts from the start on; how fast it grows is what matters.
    Count(u64),
    /// It goes up and down.
    Level(f64),
}

/// A list of the snapshot, shown as a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Its title: `methods`, `routes`, `hosts`.
    pub title: &'static str,
    /// The key of the list in the snapshot.
    pub rows: &'static str,
    /// What is shown of each entry. The first columns of [`Unit::Text`] name the row.
    pub columns: &'static [Column],
}

/// A column of a [`Table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its heading.
    pub label: &'static str,
    /// The key in the entry; a dot leads into maps: `window.p99`. A map of numbers is shown as their sum.
    pub key: &'static str,
    /// What the numbers are.
    pub unit: Unit,
}

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// Text.
    Text,
    /// A count from the start on.
    Count,
    /// A number of things now.
    Level,
    /// Seconds.
    Seconds,
    /// Bytes, counted from the start on.
    Bytes,
    /// Between 0 and 1.
    Share,
}

/// Where time went: one route's polls in one stage of one layer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HotPath {
    /// The name of the layer, which is its place in the stack.
    pub layer: String,
    /// The route.
    pub route: String,
    /// What was polled: `call`, `future` or `body`.
    pub stage: &'static str,
    /// How often it was polled.
    pub polls: u64,
    /// How long that took, without what profiled layers further inside took of it.
    pub busy: Duration,
    /// How long that took altogether.
    pub total: Duration,
    /// The longest poll.
    pub max: Duration,
    /// Polls that were longer than the layer's threshold.
    pub slow: u64,
    /// `busy` as a share of the CPU time the process used meanwhile, where that is known; of what all of the layer's polls
    /// took, when they blocked and that is more.
    pub share: Option<f64>,
}

/// What one attached layer itself costs, without what is inside it; see [`Flow::overhead`](crate::Flow::overhead).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overhead {
    /// Its place among [`Flow::attached`](crate::Flow::attached).
    pub layer: usize,
    /// How many of its calls were looked at.
    pub sampled: u64,
    /// How many of those were inside a call of another layer that was looked at. These against that layer's `sampled` are
    /// its calls for each call of that layer.
    pub nested: u64,
    /// What a call of it costs: its own code in `call` and in polls of the future, and where a body is followed for
    /// numbers of its own, in `grpc`, `timing`, `throttle` and `profile`, of the body. The end of a body that only
    /// gives a slot back is not in it, nor what runs in tasks of the layer's own.
    pub per_call: Duration,
    /// The place of the layer round it, in whose calls its own were seen.
    pub inside: Option<usize>,
}

// ===== impl Vital =====

impl Vital {
    /// A number that counts from the start on.
    pub fn count(role: Role, count: u64) -> Self {
        let reading = Reading::Count(count);
        Self { role, reading }
    }

    /// A number that goes up and down.
    pub fn level(role: Role, level: f64) -> Self {
        let reading = Reading::Level(level);
        Self { role, reading }
    }
}

// ===== impl Role =====

impl Role {
    /// Its name, as in the page's JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Errors => "errors",
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::InFlight => "in_flight",
            Self::Limit => "limit",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::Admitted => "admitted",
            Self::Open => "open",
            Self::Idle => "idle",
            Self::WaitingForConnection => "waiting_for_connection",
            Self::Saved => "saved",
            Self::Sent => "sent",
            Self::Items => "items",
            Self::Batches => "batches",
            Self::Cpu => "cpu",
            Self::Scheduler => "scheduler",
            Self::WakeDelay => "wake_delay",
            Self::RunQueue => "run_queue",
        }
    }
}

// ===== impl Column =====

impl Column {
    /// A column.
    pub const fn new(label: &'static str, key: &'static str, unit: Unit) -> Self {
        Self { label, key, unit }
    }
}

// ===== impl Unit =====

impl Unit {
    /// Its name, as in the page's JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Count => "count",
            Self::Level => "level",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Share => "share",
        }
    }
}
