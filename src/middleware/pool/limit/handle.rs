use std::borrow::Cow;
use std::time::Duration;

use super::metrics;
use super::origin::Parts;
use super::state::{State, What};
use crate::base::error::BoxError;
use crate::base::inspect::{Column, Cost, Inspect, Knob, Role, Table, Unit, Value, Vital};
use crate::base::metrics::Families;
use crate::base::stats::Lease;

/// How many hosts a snapshot lists.
const LISTED: usize = 64;

/// Reads and tunes a [`ConnLimit`](super::ConnLimit) or a [`RequestLimit`](super::RequestLimit); cheap to clone.
#[derive(Debug, Clone)]
pub struct LimitHandle(Lease<State>);

/// A limit at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LimitSnapshot {
    /// How many there may be.
    pub max: usize,
    /// How many there may be to one host.
    pub max_per_host: usize,
    /// Connections, their dials included, or requests that hold a permit.
    pub held: usize,
    /// Connections that are open.
    pub open: usize,
    /// Connections that are being dialled.
    pub dialling: usize,
    /// How many wait for a permit.
    pub waiting: usize,
    /// Hosts with a permit or somebody who waits.
    pub hosts: usize,
    /// The busiest of them, at most 64: first those where most wait, then those with most permits.
    pub busiest: Vec<HostSnapshot>,
    /// Permits that were granted.
    pub granted: u64,
    /// Those among them that had to be waited for.
    pub waited: u64,
    /// How long these waited, all together.
    pub wait_time: Duration,
    /// Refused because too many waited.
    pub full: u64,
    /// Refused because they waited too long.
    pub timeouts: u64,
    /// Refused because the limit was closed.
    pub closed: u64,
    /// Dials that were ended because their requests had got other connections.
    pub ghosts: u64,
    /// Waits that somebody gave up.
    pub abandoned: u64,
    /// Dials that failed.
    pub failed: u64,
    pub(super) waits: Vec<u64>,
}

/// One host at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostSnapshot {
    /// Scheme, name and port.
    pub host: String,
    /// Connections, their dials included, or requests that hold a permit.
    pub held: usize,
    /// Connections that are open.
    pub open: usize,
    /// How many wait for a permit.
    pub waiting: usize,
}

/// What the live page shows of each host, when connections are limited.
const CONNECTIONS: Table = Table {
    title: "hosts",
    rows: "busiest",
    columns: &[
        Column::new("host", "host", Unit::Text),
        Column::new("open", "open", Unit::Level),
        Column::new("held", "held", Unit::Level),
        Column::new("waiting", "waiting", Unit::Level),
    ],
};

/// The same, when requests are.
const REQUESTS: Table = Table {
    title: "hosts",
    rows: "busiest",
    columns: &[
        Column::new("host", "host", Unit::Text),
        Column::new("in flight", "held", Unit::Level),
        Column::new("waiting", "waiting", Unit::Level),
    ],
};

// ===== impl LimitHandle =====

impl LimitHandle {
    pub(super) fn new(state: Lease<State>) -> Self {
        Self(state)
    }

    /// Its numbers now.
    pub fn snapshot(&self) -> LimitSnapshot {
        let inner = self.0.lock();
        let (gate, counts) = (&inner.gate, inner.counts.clone());
        let (limits, held, waiting) = (gate.limits(), gate.held(), gate.waiting());
        let mut hosts: Vec<_> = gate
            .hosts()
            .map(|seen| HostSnapshot {
                host: (seen.key as &dyn Parts).to_string(),
                held: seen.held,
                open: seen.open,
                waiting: seen.waiting,
            })
            .collect();
        drop(inner);
        let open = hosts.iter().map(|host| host.open).sum();
        let all = hosts.len();
        hosts.sort_unstable_by(|a, b| {
            (b.waiting, b.held, &a.host).cmp(&(a.waiting, a.held, &b.host))
        });
        hosts.truncate(LISTED);
        LimitSnapshot {
            max: limits.total,
            max_per_host: limits.per_host,
            held,
            open,
            dialling: held - open,
            waiting,
            hosts: all,
            busiest: hosts,
            granted: counts.granted,
            waited: counts.waits.iter().sum(),
            wait_time: counts.waited,
            full: counts.full,
            timeouts: counts.timeouts,
            closed: counts.closed,
            ghosts: counts.ghosts,
            abandoned: counts.abandoned,
            failed: counts.failed,
            waits: counts.waits,
        }
    }

    /// Changes how many there may be in all. Nobody loses a permit; there may be more for a while.
    ///
    /// # Panics
    ///
    /// When `max` is 0, which would grant nothing.
    pub fn set_max(&self, max: usize) {
        assert!(max > 0, "max must be at least 1, not 0");
        self.0.set_limits(|limits| limits.total = max);
    }

    /// Changes how many there may be to one host. Nobody loses a permit; there may be more for a while.
    ///
    /// # Panics
    ///
    /// When `max` is 0, which would grant nothing.
    pub fn set_max_per_host(&self, max: usize) {
        assert!(max > 0, "max_per_host must be at least 1, not 0");
        self.0.set_limits(|limits| limits.per_host = max);
    }

    /// Grants nothing from now on: who waits and who comes is refused. What was granted stays until it ends.
    pub fn close(&self) {
        self.0.close();
    }

    pub(super) fn state(&self) -> &State {
        &self.0
    }
}

impl Inspect for LimitHandle {
    fn kind(&self) -> &'static str {
        "pool_limit"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0.settings.name)
    }

    fn snapshot(&self) -> Value {
        let snapshot = Self::snapshot(self);
        let connections = self.0.settings.what == What::Connections;
        let whole = |n: usize| Value::from(n as u64);
        let hosts = snapshot.busiest.iter().map(|host| {
            let mut entries = vec![
                ("host", host.host.as_str().into()),
                ("held", whole(host.held)),
            ];
            if connections {
                entries.push(("open", whole(host.open)));
            }
            entries.push(("waiting", whole(host.waiting)));
            Value::map(entries)
        });
        let mut entries = vec![
            ("of", self.0.settings.what.as_str().into()),
            ("max", whole(snapshot.max)),
            ("max_per_host", whole(snapshot.max_per_host)),
            ("held", whole(snapshot.held)),
        ];
        if connections {
            entries.push(("open", whole(snapshot.open)));
            entries.push(("dialling", whole(snapshot.dialling)));
        }
        entries.extend([
            ("waiting", whole(snapshot.waiting)),
            ("granted", snapshot.granted.into()),
            ("waited", snapshot.waited.into()),
            ("wait_time", snapshot.wait_time.into()),
            ("full", snapshot.full.into()),
            ("timeouts", snapshot.timeouts.into()),
            ("closed", snapshot.closed.into()),
            ("abandoned", snapshot.abandoned.into()),
        ]);
        if connections {
            entries.push(("ghosts", snapshot.ghosts.into()));
            entries.push(("failed", snapshot.failed.into()));
        }
        entries.push(("hosts", whole(snapshot.hosts)));
        entries.push(("busiest", Value::list(hosts)));
        Value::map(entries)
    }

    fn cost(&self) -> Option<&Cost> {
        Some(&self.0.cost)
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(self.state(), Self::snapshot(self), families);
    }

    fn vitals(&self) -> Vec<Vital> {
        let inner = self.0.lock();
        let (gate, counts) = (&inner.gate, &inner.counts);
        let waiting = gate.waiting() as f64;
        let refused = counts.full + counts.timeouts + counts.closed;
        let mut vitals = vec![
            Vital::count(Role::Refused, refused),
            Vital::count(Role::Admitted, counts.granted),
        ];
        vitals.extend(match self.0.settings.what {
            What::Connections => {
                let open: usize = gate.hosts().map(|host| host.open).sum();
                vec![
                    Vital::level(Role::Open, open as f64),
                    Vital::level(Role::WaitingForConnection, waiting),
                ]
            }
            What::Requests => vec![
                Vital::level(Role::InFlight, gate.held() as f64),
                Vital::level(Role::Limit, gate.limits().total as f64),
                Vital::level(Role::Waiting, waiting),
            ],
        });
        vitals
    }

    fn tables(&self) -> &'static [Table] {
        match self.0.settings.what {
            What::Connections => &[CONNECTIONS],
            What::Requests => &[REQUESTS],
        }
    }

    fn knobs(&self) -> Vec<Knob> {
        let limits = self.0.lock().gate.limits();
        vec![
            Knob::new("max", "How many there may be in all", limits.total as u64),
            Knob::new(
                "max_per_host",
                "How many there may be to one host",
                limits.per_host as u64,
            ),
        ]
    }

    fn turn(&self, name: &str, to: &Value) -> Result<(), BoxError> {
        match (name, to) {
            ("max", Value::Whole(max @ 1..)) => self.set_max(*max as usize),
            ("max_per_host", Value::Whole(max @ 1..)) => self.set_max_per_host(*max as usize),
            _ => {
                let message = format!(
                    "pool_limit {:?} cannot set {name:?} to {to}; it has max and max_per_host (1 or more)",
                    self.0.settings.name
                );
                return Err(message.into());
            }
        }
        Ok(())
    }
}
