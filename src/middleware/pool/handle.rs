use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::Uri;

use super::core::Limits;
use super::metrics;
use super::shared::Shared;
use super::stats::{HostStats, PhaseStats, Stats};
use crate::base::clock;
use crate::base::error::BoxError;
use crate::base::inspect::{Column, Cost, Inspect, Knob, Role, Table, Unit, Value, Vital};
use crate::base::metrics::Families;
use crate::base::signal::Signal;

/// How many hosts a snapshot lists; all are counted.
const LISTED: usize = 1_000;

/// Reads and tunes a [`ConnPool`](super::ConnPool) while it runs. It keeps no connection open.
#[derive(Clone)]
pub struct PoolHandle(Arc<dyn Look>);

/// How much of what a host may have is in use: 1 when all its connections carry requests (with HTTP/2, all their streams),
/// beyond that as many times as wait for another. Made by [`PoolHandle::pressure`].
#[derive(Clone)]
pub struct PoolSignal {
    pool: Arc<dyn Look>,
    uri: Uri,
    name: String,
}

/// A pool, whatever its bodies.
trait Look: Send + Sync {
    fn name(&self) -> &str;
    fn cost(&self) -> &Cost;
    fn stats(&self) -> Stats;
    fn host(&self, uri: &Uri) -> Option<HostStats>;
    fn hosts(&self, most: usize) -> Vec<HostStats>;
    fn load(&self, uri: &Uri) -> Option<f64>;
    fn vitals(&self) -> Vec<Vital>;
    fn close_idle(self: Arc<Self>) -> usize;
    fn limits(&self) -> Limits;
    fn limit(self: Arc<Self>, change: Box<dyn FnOnce(&mut Limits) + '_>);
    fn collect(&self, families: &mut Families);
}

impl<B: Send + 'static> Look for Shared<B> {
    fn cost(&self) -> &Cost {
        &self.cost
    }

    fn name(&self) -> &str {
        &self.options.name
    }

    fn stats(&self) -> Stats {
        Stats::of(self)
    }

    fn host(&self, uri: &Uri) -> Option<HostStats> {
        let host = self.find(uri)?;
        let locked = self.lock();
        let known = locked.core.knows(host);
        known.then(|| HostStats::of(locked.core.view(clock::now(), host)))
    }

    fn hosts(&self, most: usize) -> Vec<HostStats> {
        let views = self.lock().core.views(clock::now(), most);
        views.into_iter().map(HostStats::of).collect()
    }

    fn load(&self, uri: &Uri) -> Option<f64> {
        let host = self.find(uri)?;
        let locked = self.lock();
        let known = locked.core.knows(host);
        known.then(|| locked.core.load(host))
    }

    fn vitals(&self) -> Vec<Vital> {
        let locked = self.lock();
        let (counts, gauges) = (locked.core.counts(), locked.core.gauges());
        drop(locked);
        let refused = counts.rejected_queue_full
            + counts.rejected_timeout
            + counts.rejected_backing_off
            + counts.rejected_closed;
        vec![
            Vital::count(Role::Refused, refused),
            Vital::count(Role::Admitted, counts.requests),
            Vital::level(Role::Open, gauges.open as f64),
            Vital::level(Role::Idle, gauges.idle as f64),
            Vital::level(Role::WaitingForConnection, gauges.waiting as f64),
        ]
    }

    fn close_idle(self: Arc<Self>) -> usize {
        self.event(|core| core.close_idle())
    }

    fn limits(&self) -> Limits {
        self.lock().core.limits.clone()
    }

    fn limit(self: Arc<Self>, change: Box<dyn FnOnce(&mut Limits) + '_>) {
        let now = clock::now();
        self.event(|core| core.limit(now, change));
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(self, families);
    }
}

impl PoolHandle {
    pub(super) fn new<B: Send + 'static>(shared: Arc<Shared<B>>) -> Self {
        Self(shared)
    }

    /// Its numbers now.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// The numbers of the host of `uri`, if it is known.
    pub fn host(&self, uri: &Uri) -> Option<HostStats> {
        self.0.host(uri)
    }

    /// The hosts where something is open or wanted, or that failed lately; at most 1,000.
    pub fn hosts(&self) -> Vec<HostStats> {
        self.0.hosts(LISTED)
    }

    /// How pressed the connections to the host of `uri` are, for a layer that sheds.
    pub fn pressure(&self, uri: Uri) -> PoolSignal {
        let name = format!("pool {uri}");
        PoolSignal {
            pool: self.0.clone(),
            uri,
            name,
        }
    }

    /// Closes all connections that have nothing to do. How many that were.
    pub fn close_idle(&self) -> usize {
        self.0.clone().close_idle()
    }
}

impl Signal for PoolSignal {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample(&self) -> Option<f64> {
        self.pool.load(&self.uri)
    }
}

/// What the live page shows of each host.
const HOSTS: Table = Table {
    title: "hosts",
    rows: "hosts",
    columns: &[
        Column::new("host", "host", Unit::Text),
        Column::new("requests", "requests", Unit::Count),
        Column::new("open", "open", Unit::Level),
        Column::new("active", "active", Unit::Level),
        Column::new("idle", "idle", Unit::Level),
        Column::new("waiting", "waiting", Unit::Level),
        Column::new("reused", "reuse_ratio", Unit::Share),
        Column::new("last error", "last_error", Unit::Text),
    ],
};

/// What is settable while it runs.
const KNOBS: [(&str, &str); 4] = [
    ("max_connections", "How many connections may be open"),
    (
        "max_connections_per_host",
        "How many connections may be open to one host",
    ),
    ("max_idle", "How many connections may be idle"),
    (
        "max_idle_per_host",
        "How many connections to one host may be idle",
    ),
];

fn knob<'a>(limits: &'a mut Limits, name: &str) -> Option<&'a mut usize> {
    match name {
        "max_connections" => Some(&mut limits.connections),
        "max_connections_per_host" => Some(&mut limits.per_host),
        "max_idle" => Some(&mut limits.idle),
        "max_idle_per_host" => Some(&mut limits.idle_per_host),
        _ => None,
    }
}

impl Inspect for PoolHandle {
    fn kind(&self) -> &'static str {
        "pool"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.0.name())
    }

    fn snapshot(&self) -> Value {
        let stats = self.stats();
        let phase = |phase: &PhaseStats| {
            Value::map([
                ("phase", phase.phase.into()),
                ("count", phase.count.into()),
                ("mean", phase.mean.into()),
            ])
        };
        let hosts = self.hosts().into_iter().map(|host| {
            let ratio = host.reuse_ratio();
            Value::map([
                ("host", host.host.into()),
                ("open", host.open.into()),
                ("active", host.active.into()),
                ("idle", host.idle.into()),
                ("dialling", host.dialling.into()),
                ("draining", host.draining.into()),
                ("closing", host.closing.into()),
                ("streams", host.streams.into()),
                ("waiting", host.waiting.into()),
                ("requests", host.requests.into()),
                ("reused", host.reused.into()),
                ("reuse_ratio", ratio.into()),
                ("oldest", host.oldest.map_or(Value::Null, Value::from)),
                (
                    "last_error",
                    host.last_error.map_or(Value::Null, Value::from),
                ),
                ("retry_in", host.retry_in.map_or(Value::Null, Value::from)),
            ])
        });
        Value::map([
            ("open", stats.open.into()),
            ("active", stats.active.into()),
            ("idle", stats.idle.into()),
            ("dialling", stats.dialling.into()),
            ("draining", stats.draining.into()),
            ("closing", stats.closing.into()),
            ("streams", stats.streams.into()),
            ("waiting", stats.waiting.into()),
            ("peak_open", stats.peak_open.into()),
            ("max_connections", stats.max_connections.into()),
            ("max_connections_per_host", stats.max_per_host.into()),
            ("requests", stats.requests.into()),
            ("reused", stats.reused.into()),
            ("reuse_ratio", stats.reuse_ratio().into()),
            ("retried", stats.retried.into()),
            ("phases", Value::list(stats.phases.iter().map(phase))),
            ("hosts_known", stats.hosts.into()),
            ("hosts", Value::list(hosts)),
        ])
    }

    fn cost(&self) -> Option<&Cost> {
        Some(self.0.cost())
    }

    fn collect(&self, families: &mut Families) {
        self.0.collect(families);
    }

    fn vitals(&self) -> Vec<Vital> {
        self.0.vitals()
    }

    fn tables(&self) -> &'static [Table] {
        &[HOSTS]
    }

    fn knobs(&self) -> Vec<Knob> {
        let mut limits = self.0.limits();
        let limits = KNOBS.into_iter().filter_map(|(name, help)| {
            Some(Knob::new(name, help, *knob(&mut limits, name)? as u64))
        });
        let close = Knob::new("close_idle", "Set to close all idle connections now", false);
        limits.chain([close]).collect()
    }

    fn turn(&self, name: &str, to: &Value) -> Result<(), BoxError> {
        match (name, to) {
            ("close_idle", Value::Flag(true)) => {
                self.close_idle();
                Ok(())
            }
            ("close_idle", Value::Flag(false)) => Ok(()),
            (name, Value::Whole(to)) if KNOBS.iter().any(|(known, _)| *known == name) => {
                let to = usize::try_from(*to)?;
                if to == 0 && name.starts_with("max_connections") {
                    return Err(format!(
                        "{name} of 0 would let nothing through; set it to 1 or more"
                    )
                    .into());
                }
                self.0.clone().limit(Box::new(|limits| {
                    if let Some(knob) = knob(limits, name) {
                        *knob = to;
                    }
                }));
                Ok(())
            }
            _ => Err(format!(
                "pool {:?} has no knob {name:?} to set to {to}",
                self.0.name()
            )
            .into()),
        }
    }
}

impl fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolHandle")
            .field("name", &self.0.name())
            .field("stats", &self.stats())
            .finish()
    }
}

impl fmt::Debug for PoolSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolSignal")
            .field("name", &self.name)
            .field("sample", &self.sample())
            .finish()
    }
}
