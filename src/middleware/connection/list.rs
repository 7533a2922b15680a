use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::connector::ConnectorLayer;
use super::facts::{Connection, ConnectionState};
use super::incoming::Incoming;
use super::io::Tracked;
use super::streams::StreamsLayer;
use crate::base::flow::Flow;
use crate::base::inspect::{Column, Inspect, Role, Table, Unit, Value, Vital};
use crate::base::metrics::{Families, Histogram, Kind, Labels};
use crate::base::stats::Bounds;

/// How many connections a snapshot lists; all are counted.
const LISTED: usize = 1_000;

/// The connections of one listener or one client; clones are the same list. See [the module](crate::connection).
#[derive(Debug, Clone)]
pub struct Connections {
    shared: Arc<Shared>,
    otel: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    name: String,
    side: &'static str,
    bounds: Bounds,
    streams: Arc<AtomicU64>,
    inner: Mutex<Inner>,
}

/// Everything is counted under one lock: connections come and go rarely.
#[derive(Debug)]
struct Inner {
    open: BTreeMap<u64, Connection>,
    opened: u64,
    failed: u64,
    /// What closed connections came to.
    closed: Totals,
    ages: Vec<u64>,
    age_sum: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    count: u64,
    read: u64,
    written: u64,
}

/// The numbers of a [`Connections`] at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionsSnapshot {
    /// Opened since the start.
    pub opened: u64,
    /// Closed since the start.
    pub closed: u64,
    /// Attempts that failed since the start: accepts, or dials.
    pub failed: u64,
    /// Open now.
    pub open: u64,
    /// Bytes read since the start, from all connections.
    pub bytes_read: u64,
    /// Bytes written since the start, to all connections.
    pub bytes_written: u64,
    /// Streams started since the start, on all connections.
    pub streams: u64,
    /// The oldest open connections, at most 1,000.
    pub connections: Vec<ConnectionSnapshot>,
}

/// One open connection at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionSnapshot {
    /// Its number.
    pub id: u64,
    /// Who is at the other end, as far as is known.
    pub peer: String,
    /// What it is doing.
    pub state: ConnectionState,
    /// How long it has been open.
    pub age: Duration,
    /// How long ago it last read or wrote anything.
    pub quiet: Duration,
    /// Bytes read from it.
    pub bytes_read: u64,
    /// Bytes written to it.
    pub bytes_written: u64,
    /// Streams started on it.
    pub streams: u64,
}

/// What the live page shows of each connection.
const CONNECTIONS: Table = Table {
    title: "connections",
    rows: "connections",
    columns: &[
        Column::new("id", "id", Unit::Text),
        Column::new("peer", "peer", Unit::Text),
        Column::new("state", "state", Unit::Text),
        Column::new("streams", "streams", Unit::Count),
        Column::new("open streams", "open_streams", Unit::Level),
        Column::new("age", "age", Unit::Seconds),
        Column::new("quiet", "quiet", Unit::Seconds),
        Column::new("read", "bytes_read", Unit::Bytes),
        Column::new("written", "bytes_written", Unit::Bytes),
    ],
};

// ===== impl Connections =====

impl Connections {
    /// The connections a server called `name` accepts.
    pub fn server(name: impl Into<String>) -> Self {
        Self::new(name.into(), "server")
    }

    /// The connections a client called `name` makes. With [`otel`](Self::otel), `name` is the label `grpc_target`.
    pub fn client(name: impl Into<String>) -> Self {
        Self::new(name.into(), "client")
    }

    fn new(name: String, side: &'static str) -> Self {
        // The buckets OpenTelemetry recommends for http.client.connection.duration, and an hour.
        let bounds = Bounds::seconds([
            0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 3600.0,
        ]);
        Self {
            otel: false,
            shared: Arc::new(Shared {
                inner: Mutex::new(Inner {
                    open: BTreeMap::new(),
                    opened: 0,
                    failed: 0,
                    closed: Totals::default(),
                    ages: vec![0; bounds.buckets()],
                    age_sum: Duration::ZERO,
                }),
                streams: Arc::default(),
                name,
                side,
                bounds,
            }),
        }
    }

    /// Without (default), or with the subchannel metrics of gRPC proposal A94 as well. Set it before
    /// [`attach`](Self::attach).
    #[must_use]
    pub fn otel(mut self) -> Self {
        self.otel = true;
        self
    }

    /// Shows the connections in `flow`.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.clone());
        self
    }

    /// Counts an accepted connection from now until its IO is dropped.
    pub fn accept<IO>(&self, io: IO) -> Tracked<IO> {
        self.accept_from(io, "")
    }

    /// As [`accept`](Self::accept), and notes who is at the other end.
    pub fn accept_from<IO>(&self, io: IO, peer: impl ToString) -> Tracked<IO> {
        Tracked::new(io, self.shared.open(peer.to_string()))
    }

    /// Counts an accept that failed; [`incoming`](Self::incoming) does it by itself.
    pub fn accept_failed(&self) {
        self.shared.failed();
    }

    /// Counts the connections a stream of them yields: what tonic's `serve_with_incoming` takes.
    pub fn incoming<S>(&self, incoming: S) -> Incoming<S> {
        Incoming::new(incoming, self.clone())
    }

    /// Counts the connections a connector makes.
    pub fn connector(&self) -> ConnectorLayer {
        ConnectorLayer::new(self.shared.clone())
    }

    /// Counts requests on the connections they travel on.
    pub fn streams(&self) -> StreamsLayer {
        StreamsLayer::new()
    }

    /// The numbers now.
    pub fn snapshot(&self) -> ConnectionsSnapshot {
        let inner = self.shared.lock();
        let totals = inner.totals();
        ConnectionsSnapshot {
            opened: inner.opened,
            closed: inner.closed.count,
            failed: inner.failed,
            open: inner.open.len() as u64,
            bytes_read: totals.read,
            bytes_written: totals.written,
            streams: self.shared.streams.load(Ordering::Relaxed),
            connections: inner
                .open
                .values()
                .take(LISTED)
                .map(ConnectionSnapshot::of)
                .collect(),
        }
    }
}

impl Inspect for Connections {
    fn kind(&self) -> &'static str {
        "connection"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.shared.name)
    }

    fn snapshot(&self) -> Value {
        let now = Self::snapshot(self);
        let connections = now.connections.into_iter().map(|one| {
            let (state, open) = match one.state {
                ConnectionState::Idle => ("idle", 0),
                ConnectionState::Active(open) => ("active", open),
            };
            Value::map([
                ("id", one.id.into()),
                ("peer", one.peer.into()),
                ("state", state.into()),
                ("open_streams", open.into()),
                ("streams", one.streams.into()),
                ("age", one.age.into()),
                ("quiet", one.quiet.into()),
                ("bytes_read", one.bytes_read.into()),
                ("bytes_written", one.bytes_written.into()),
            ])
        });
        Value::map([
            ("side", self.shared.side.into()),
            ("opened", now.opened.into()),
            ("closed", now.closed.into()),
            ("failed", now.failed.into()),
            ("open", now.open.into()),
            ("streams", now.streams.into()),
            ("bytes_read", now.bytes_read.into()),
            ("bytes_written", now.bytes_written.into()),
            ("connections", Value::list(connections)),
        ])
    }

    fn vitals(&self) -> Vec<Vital> {
        let open = self.shared.lock().open.len();
        vec![Vital::level(Role::Open, open as f64)]
    }

    fn tables(&self) -> &'static [Table] {
        &[CONNECTIONS]
    }

    fn collect(&self, families: &mut Families) {
        let inner = self.shared.lock();
        let totals = inner.totals();
        let open = inner.open.len() as u64;
        let labels = || {
            Labels::new()
                .with("name", self.shared.name.clone())
                .with("side", self.shared.side)
        };
        let mut push = |kind, name: &'static str, help, labels, value| {
            families.family(kind, name, help).push(labels, value);
        };
        use Kind::{Counter, Gauge};
        push(
            Counter,
            "tower_flow_connections_opened",
            "Connections opened",
            labels(),
            inner.opened,
        );
        push(
            Counter,
            "tower_flow_connections_closed",
            "Connections closed",
            labels(),
            inner.closed.count,
        );
        push(
            Counter,
            "tower_flow_connections_failed",
            "Accepts or dials that failed",
            labels(),
            inner.failed,
        );
        push(
            Gauge,
            "tower_flow_connections_open",
            "Connections open",
            labels(),
            open,
        );
        push(
            Counter,
            "tower_flow_connections_streams",
            "Streams started on connections",
            labels(),
            self.shared.streams.load(Ordering::Relaxed),
        );
        for (direction, bytes) in [("read", totals.read), ("written", totals.written)] {
            let labels = labels().with("direction", direction);
            push(
                Counter,
                "tower_flow_connections_bytes",
                "Bytes on connections",
                labels,
                bytes,
            );
        }
        if self.otel {
            let target = || Labels::new().with("grpc_target", self.shared.name.clone());
            push(
                Counter,
                "grpc_subchannel_disconnections",
                "Number of disconnections",
                target(),
                inner.closed.count,
            );
            push(
                Counter,
                "grpc_subchannel_connection_attempts_succeeded",
                "Number of successful connection attempts",
                target(),
                inner.opened,
            );
            push(
                Counter,
                "grpc_subchannel_connection_attempts_failed",
                "Number of failed connection attempts",
                target(),
                inner.failed,
            );
            push(
                Gauge,
                "grpc_subchannel_open_connections",
                "Number of open connections",
                target(),
                open,
            );
        }
        let ages = Histogram::new(
            &self.shared.bounds,
            inner.ages.clone(),
            inner.age_sum.as_secs_f64(),
        );
        families
            .family(
                Kind::Histogram,
                "tower_flow_connections_age_seconds",
                "How old connections became",
            )
            .push(labels(), ages);
    }
}

// ===== impl Shared =====

/// Keeps a connection on its list; takes it off when it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) connection: Connection,
    shared: Arc<Shared>,
}

impl Shared {
    pub(super) fn open(self: &Arc<Self>, peer: String) -> Open {
        let connection = Connection::open(peer, self.streams.clone());
        let mut inner = self.lock();
        inner.opened += 1;
        inner.open.insert(connection.id(), connection.clone());
        drop(inner);
        Open {
            connection,
            shared: self.clone(),
        }
    }

    pub(super) fn failed(&self) {
        self.lock().failed += 1;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let age = self.connection.age();
        let mut inner = self.shared.lock();
        inner.open.remove(&self.connection.id());
        inner.closed.add(&self.connection);
        inner.closed.count += 1;
        inner.ages[self.shared.bounds.of(age)] += 1;
        inner.age_sum += age;
    }
}

impl Inner {
    fn totals(&self) -> Totals {
        let mut totals = self.closed;
        self.open
            .values()
            .for_each(|connection| totals.add(connection));
        totals
    }
}

impl Totals {
    fn add(&mut self, connection: &Connection) {
        self.read += connection.bytes_read();
        self.written += connection.bytes_written();
    }
}

// ===== impl ConnectionSnapshot =====

impl ConnectionSnapshot {
    fn of(connection: &Connection) -> Self {
        Self {
            id: connection.id(),
            peer: connection.peer().to_owned(),
            state: connection.state(),
            age: connection.age(),
            quiet: connection.quiet(),
            bytes_read: connection.bytes_read(),
            bytes_written: connection.bytes_written(),
            streams: connection.streams(),
        }
    }
}
