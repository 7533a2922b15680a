use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::method::{Direction, GrpcType, Method};
use super::metrics;
use super::state::{Side, State};
use crate::base::inspect::{Column, Cost, Inspect, Role, Table, Unit, Value, Vital};
use crate::base::metrics::Families;
use crate::base::outcome::{Code, Outcome};

/// Reads a gRPC layer; cheap to clone.
#[derive(Debug, Clone)]
pub struct GrpcHandle(Arc<State>);

/// The numbers of one method at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MethodSnapshot {
    /// The service with its package; `other` for calls that are told apart no further.
    pub service: String,
    /// The method; `other` for calls that are told apart no further.
    pub method: String,
    /// Who streams in it.
    pub kind: GrpcType,
    /// Calls that started.
    pub started: u64,
    /// Calls that ended, by code.
    pub handled: Vec<(Code, u64)>,
    /// Calls that started and have not ended.
    pub in_flight: u64,
    /// Messages this side received.
    pub messages_received: u64,
    /// Messages this side sent.
    pub messages_sent: u64,
    /// Bytes of messages received, as on the wire, without their five-byte headers.
    pub bytes_received: u64,
    /// Bytes of messages sent, likewise.
    pub bytes_sent: u64,
    /// Bodies that ended within a message.
    pub truncated: u64,
    /// The mean time from call to end.
    pub mean: Option<Duration>,
}

/// What the live page shows of each method.
const METHODS: Table = Table {
    title: "methods",
    rows: "methods",
    columns: &[
        Column::new("service", "service", Unit::Text),
        Column::new("method", "method", Unit::Text),
        Column::new("started", "started", Unit::Count),
        Column::new("failed", "failed", Unit::Count),
        Column::new("in flight", "in_flight", Unit::Level),
        Column::new("mean", "mean", Unit::Seconds),
        Column::new("received", "bytes_received", Unit::Bytes),
        Column::new("sent", "bytes_sent", Unit::Bytes),
    ],
};

/// Whether calls that end with it count as failed.
fn is_failure(code: Code) -> bool {
    Outcome::from(code).is_failure()
}

impl GrpcHandle {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// The numbers of every method.
    pub fn snapshot(&self) -> Vec<MethodSnapshot> {
        self.0
            .all()
            .into_iter()
            .map(|method| self.method(method))
            .collect()
    }

    /// Requests that were no gRPC and passed uncounted.
    pub fn foreign_calls(&self) -> u64 {
        self.0.foreign_calls()
    }

    fn method(&self, method: &Method) -> MethodSnapshot {
        let codes = method.handled();
        let started = method.started();
        let handled: u64 = codes.iter().sum();
        let (received, sent) = match self.0.options.side {
            Side::Server => (Direction::Request, Direction::Response),
            Side::Client => (Direction::Response, Direction::Request),
        };
        MethodSnapshot {
            service: method.service.clone(),
            method: method.name.clone(),
            kind: method.kind,
            started,
            in_flight: started.saturating_sub(handled),
            handled: Code::ALL
                .into_iter()
                .zip(codes)
                .filter(|(_, count)| *count > 0)
                .collect(),
            messages_received: method.messages(received),
            messages_sent: method.messages(sent),
            bytes_received: method.bytes(received),
            bytes_sent: method.bytes(sent),
            truncated: method.flaws()[0],
            mean: (handled > 0).then(|| method.handling().1.div_f64(handled as f64)),
        }
    }
}

impl Inspect for GrpcHandle {
    fn kind(&self) -> &'static str {
        "grpc"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.0.options.side.as_str())
    }

    fn snapshot(&self) -> Value {
        let methods = Self::snapshot(self).into_iter().map(|method| {
            let failed = method.handled.iter().filter(|(code, _)| is_failure(*code));
            let failed: u64 = failed.map(|(_, count)| count).sum();
            let handled = method
                .handled
                .into_iter()
                .map(|(code, count)| (code.as_otel(), count.into()));
            Value::map([
                ("service", method.service.into()),
                ("method", method.method.into()),
                ("type", method.kind.as_str().into()),
                ("started", method.started.into()),
                ("in_flight", method.in_flight.into()),
                ("handled", Value::map(handled)),
                ("failed", failed.into()),
                ("messages_received", method.messages_received.into()),
                ("messages_sent", method.messages_sent.into()),
                ("bytes_received", method.bytes_received.into()),
                ("bytes_sent", method.bytes_sent.into()),
                ("truncated", method.truncated.into()),
                ("mean", method.mean.map_or(Value::Null, Value::from)),
            ])
        });
        Value::map([
            ("methods", Value::list(methods)),
            ("foreign_calls", self.foreign_calls().into()),
        ])
    }

    fn cost(&self) -> Option<&Cost> {
        Some(&self.0.cost)
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(&self.0, families);
    }

    fn vitals(&self) -> Vec<Vital> {
        let (mut started, mut ended, mut failed) = (0, 0, 0);
        for method in self.0.all() {
            for (code, count) in Code::ALL.into_iter().zip(method.handled()) {
                ended += count;
                failed += if is_failure(code) { count } else { 0 };
            }
            started += method.started();
        }
        vec![
            Vital::count(Role::Requests, started),
            Vital::count(Role::Errors, failed),
            Vital::level(Role::InFlight, started.saturating_sub(ended) as f64),
        ]
    }

    fn tables(&self) -> &'static [Table] {
        &[METHODS]
    }
}
