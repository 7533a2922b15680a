use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::core::LineState;
use super::metrics;
use super::shared::Shared;
use crate::base::error::BoxError;
use crate::base::inspect::{Column, Inspect, Knob, Role, Table, Unit, Value, Vital};
use crate::base::metrics::Families;

/// Reads and tunes a [`NatsPool`](super::NatsPool). It keeps no connection open.
#[derive(Clone)]
pub struct NatsPoolHandle(Arc<Shared>);

/// How a pool is used.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct NatsPoolStats {
    /// Connections, those that are being made or have lost their server included.
    pub size: usize,
    /// Connections that are being made.
    pub dialling: usize,
    /// Connections that are there.
    pub up: usize,
    /// Connections that have lost their server and look for one.
    pub down: usize,
    /// Requests that have a connection.
    pub in_flight: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Connections made.
    pub created: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// How often a connection lost its server.
    pub lost: u64,
    /// Connections that closed for good.
    pub closed: u64,
    /// Times a request was given a connection.
    pub acquired: u64,
    /// Times it was given back.
    pub released: u64,
    /// Requests that had to wait.
    pub queued: u64,
    /// Requests that were refused at once.
    pub refused: u64,
    /// In flight as a share of what may be.
    pub utilisation: f64,
    /// Requests by how they ended: `ok`, `cancelled`, or an [`ErrorKind`](crate::nats::ErrorKind); only those that
    /// happened.
    pub results: Vec<(&'static str, u64)>,
    /// Why the last dial failed that did.
    pub last_error: Option<String>,
}

const CONNECTIONS: Table = Table {
    title: "connections",
    rows: "connections",
    columns: &[
        Column::new("connection", "connection", Unit::Text),
        Column::new("state", "state", Unit::Text),
        Column::new("server", "server", Unit::Text),
        Column::new("requests", "requests", Unit::Count),
        Column::new("in flight", "in_flight", Unit::Level),
        Column::new("connects", "connects", Unit::Count),
        Column::new("late answers", "late", Unit::Count),
    ],
};

/// The names of the knobs.
const MAX_CONNECTIONS: &str = "max_connections";
const MAX_IN_FLIGHT: &str = "max_in_flight";
const MAX_WAITING: &str = "max_waiting";

impl NatsPoolHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Its numbers now.
    pub fn stats(&self) -> NatsPoolStats {
        let mut state = self.0.lock();
        state.refresh();
        let (core, counts) = (&state.core, state.core.counts);
        let room = core
            .limits()
            .connections
            .saturating_mul(core.limits().in_flight);
        let mut results: Vec<_> = state.results.iter().map(|(k, n)| (*k, *n)).collect();
        results.sort_unstable();
        NatsPoolStats {
            size: core.lines().count(),
            dialling: core.count(LineState::Dialling),
            up: core.count(LineState::Up),
            down: core.count(LineState::Down),
            in_flight: core.in_flight(),
            waiting: core.waiting(),
            created: counts.created,
            failed: counts.failed,
            lost: counts.lost,
            closed: counts.gone,
            acquired: counts.acquired,
            released: counts.released,
            queued: counts.queued,
            refused: counts.refused,
            utilisation: core.in_flight() as f64 / room.max(1) as f64,
            results,
            last_error: state.cause.as_ref().map(ToString::to_string),
        }
    }

    fn connections(&self) -> Vec<Value> {
        let state = self.0.lock();
        let lines = state.core.lines().map(|seen| {
            let line = state.line(seen.id);
            // A name of the server's own, never an address with a password in it.
            let server = line.map(|line| line.client().server_info().server_name);
            Value::map([
                ("connection", seen.id.to_string().into()),
                ("state", seen.state.as_str().into()),
                ("server", server.into()),
                ("requests", seen.served.into()),
                ("in_flight", seen.in_flight.into()),
                ("connects", line.map_or(0, |line| line.connects()).into()),
                ("late", line.map_or(0, |line| line.late()).into()),
            ])
        });
        lines.collect()
    }

    fn limit(&self, name: &str) -> Option<usize> {
        let state = self.0.lock();
        let limits = state.core.limits();
        Some(match name {
            MAX_CONNECTIONS => limits.connections,
            MAX_IN_FLIGHT => limits.in_flight,
            MAX_WAITING => limits.waiting,
            _ => return None,
        })
    }
}

impl Inspect for NatsPoolHandle {
    fn kind(&self) -> &'static str {
        "nats"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0.options.name)
    }

    fn snapshot(&self) -> Value {
        let now = self.stats();
        let results = now
            .results
            .iter()
            .map(|(result, count)| (*result, (*count).into()));
        Value::map([
            ("size", now.size.into()),
            ("dialling", now.dialling.into()),
            ("up", now.up.into()),
            ("down", now.down.into()),
            ("in_flight", now.in_flight.into()),
            ("waiting", now.waiting.into()),
            ("created", now.created.into()),
            ("failed", now.failed.into()),
            ("lost", now.lost.into()),
            ("closed", now.closed.into()),
            ("acquired", now.acquired.into()),
            ("released", now.released.into()),
            ("queued", now.queued.into()),
            ("refused", now.refused.into()),
            ("utilisation", now.utilisation.into()),
            ("results", Value::map(results)),
            ("last_error", now.last_error.into()),
            ("connections", Value::list(self.connections())),
        ])
    }

    fn collect(&self, families: &mut Families) {
        let stats = self.stats();
        let state = self.0.lock();
        metrics::collect(&self.0.options.name, &stats, &state, families);
    }

    fn vitals(&self) -> Vec<Vital> {
        let state = self.0.lock();
        let core = &state.core;
        let idle = core
            .lines()
            .filter(|line| line.state == LineState::Up && line.in_flight == 0)
            .count();
        let requests: u64 = state.results.values().sum();
        let good = state.results.get("ok").copied().unwrap_or_default();
        vec![
            Vital::count(Role::Requests, requests),
            Vital::count(Role::Errors, requests - good),
            Vital::level(Role::InFlight, core.in_flight() as f64),
            Vital::level(Role::Open, core.count(LineState::Up) as f64),
            Vital::level(Role::Idle, idle as f64),
            Vital::level(Role::WaitingForConnection, core.waiting() as f64),
        ]
    }

    fn tables(&self) -> &'static [Table] {
        &[CONNECTIONS]
    }

    fn knobs(&self) -> Vec<Knob> {
        [
            (MAX_CONNECTIONS, "How many connections there may be"),
            (MAX_IN_FLIGHT, "How many requests may be in flight on one"),
            (MAX_WAITING, "How many requests may wait for one"),
        ]
        .into_iter()
        .map(|(name, help)| Knob::new(name, help, self.limit(name)))
        .collect()
    }

    fn turn(&self, name: &str, to: &Value) -> Result<(), BoxError> {
        let least = usize::from(name != MAX_WAITING);
        match to {
            Value::Whole(to) if self.limit(name).is_some() && *to >= least as u64 => {
                let to = usize::try_from(*to).unwrap_or(usize::MAX);
                self.0.lock().core.limit(|limits| match name {
                    MAX_CONNECTIONS => limits.connections = to,
                    MAX_IN_FLIGHT => limits.in_flight = to,
                    _ => limits.waiting = to,
                });
                // Who waits may go on now, and connections that are too many are closed.
                self.0.pump();
                Ok(())
            }
            _ => {
                let message = format!(
                    "nats {:?} cannot set {name:?} to {to}; it has max_connections and max_in_flight (1 or more) and \
                     max_waiting (0 or more)",
                    self.0.options.name
                );
                Err(message.into())
            }
        }
    }
}

impl fmt::Debug for NatsPoolHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsPoolHandle")
            .field("name", &self.0.options.name)
            .finish_non_exhaustive()
    }
}
