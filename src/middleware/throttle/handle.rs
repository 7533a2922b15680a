use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::backend::{Cell, Ledger, State};
use super::budget::RetryBudget;
use super::metrics;
use crate::base::clock::{self, Instant};
use crate::base::inspect::{Column, Cost, Inspect, Role, Table, Unit, Value, Vital};
use crate::base::metrics::Families;

/// Reads a [`ThrottleLayer`](super::ThrottleLayer); cheap to clone.
#[derive(Debug, Clone)]
pub struct ThrottleHandle(Arc<State>);

/// The numbers of one backend at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BackendSnapshot {
    /// Its name.
    pub backend: String,
    /// Calls that were decided in one of the four ways below.
    pub requests: u64,
    /// Calls the backend took, whatever came of them.
    pub accepted: u64,
    /// Calls the backend refused.
    pub refused: u64,
    /// Calls refused here.
    pub throttled: u64,
    /// Calls somebody gave up before there was an answer.
    pub dropped: u64,
    /// Calls without an answer yet.
    pub pending: u64,
    /// The share of calls that is refused here now, from 0 to 1.
    pub probability: f64,
    /// The tokens left in its retry budget.
    pub retry_tokens: f64,
    /// How long its push-back is still in force.
    pub pushback: Duration,
    /// Push-backs it asked for: delays, refusals of any retry, delays beyond what is believed, and nonsense.
    pub pushbacks: [(&'static str, u64); 4],
}

/// What the live page shows of each backend.
const BACKENDS: Table = Table {
    title: "backends",
    rows: "backends",
    columns: &[
        Column::new("backend", "backend", Unit::Text),
        Column::new("requests", "requests", Unit::Count),
        Column::new("refused there", "refused", Unit::Count),
        Column::new("refused here", "throttled", Unit::Count),
        Column::new("in flight", "pending", Unit::Level),
        Column::new("refused now", "probability", Unit::Share),
        Column::new("retry tokens", "retry_tokens", Unit::Level),
        Column::new("push-back", "pushback", Unit::Seconds),
    ],
};

// ===== impl ThrottleHandle =====

impl ThrottleHandle {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// The numbers of every backend.
    pub fn snapshot(&self) -> Vec<BackendSnapshot> {
        let now = clock::now();
        self.0
            .all()
            .into_iter()
            .map(|(backend, ledger)| self.backend(backend, ledger, now))
            .collect()
    }

    /// What a retry policy should know of `backend`.
    ///
    /// A layer without a backend function has only the one called like itself. Asking makes no name a backend, its
    /// first answer does.
    pub fn budget(&self, backend: impl Into<Arc<str>>) -> RetryBudget {
        RetryBudget::new(self.0.clone(), backend.into())
    }

    fn backend(&self, backend: &str, ledger: &Ledger, now: Instant) -> BackendSnapshot {
        // Pending ones first: a call that ends meanwhile is counted twice rather than not at all.
        let [pending, accepted, refused, throttled, dropped] = [
            Cell::Pending,
            Cell::Accepted,
            Cell::Refused,
            Cell::Throttled,
            Cell::Dropped,
        ]
        .map(|cell| ledger.read(cell));
        let pushback = self.0.pushed(ledger, self.0.at(now));
        BackendSnapshot {
            backend: backend.to_owned(),
            requests: accepted + refused + throttled + dropped,
            accepted,
            refused,
            throttled,
            dropped,
            pending,
            probability: self.0.probability(ledger, now),
            retry_tokens: ledger.tokens.left(),
            pushback: pushback.unwrap_or_default(),
            pushbacks: [
                ("delay", ledger.read(Cell::Delays)),
                ("never", ledger.read(Cell::Stops)),
                ("capped", ledger.read(Cell::Capped)),
                ("malformed", ledger.read(Cell::Malformed)),
            ],
        }
    }
}

impl Inspect for ThrottleHandle {
    fn kind(&self) -> &'static str {
        "throttle"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0.settings.name)
    }

    fn snapshot(&self) -> Value {
        let backends = Self::snapshot(self).into_iter().map(|backend| {
            let pushbacks = backend
                .pushbacks
                .into_iter()
                .map(|(kind, count)| (kind, count.into()));
            Value::map([
                ("backend", backend.backend.into()),
                ("requests", backend.requests.into()),
                ("accepted", backend.accepted.into()),
                ("refused", backend.refused.into()),
                ("throttled", backend.throttled.into()),
                ("dropped", backend.dropped.into()),
                ("pending", backend.pending.into()),
                ("probability", backend.probability.into()),
                ("retry_tokens", backend.retry_tokens.into()),
                ("pushback", backend.pushback.into()),
                ("pushbacks", Value::map(pushbacks)),
            ])
        });
        Value::map([("backends", Value::list(backends))])
    }

    fn cost(&self) -> Option<&Cost> {
        Some(&self.0.cost)
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(&self.0.settings.name, &Self::snapshot(self), families);
    }

    fn vitals(&self) -> Vec<Vital> {
        let (mut pending, mut passed, mut throttled) = (0, 0, 0);
        for (_, ledger) in self.0.all() {
            pending += ledger.read(Cell::Pending);
            throttled += ledger.read(Cell::Throttled);
            let ends = [Cell::Accepted, Cell::Refused, Cell::Dropped];
            passed += ends.map(|cell| ledger.read(cell)).iter().sum::<u64>();
        }
        vec![
            Vital::count(Role::Requests, passed + throttled),
            Vital::level(Role::InFlight, pending as f64),
            Vital::count(Role::Refused, throttled),
            Vital::count(Role::Admitted, passed),
        ]
    }

    fn tables(&self) -> &'static [Table] {
        &[BACKENDS]
    }
}
