use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::connection::Connections;
use super::metrics;
use super::route::{Measures, Phase, State};
use crate::base::clock;
use crate::base::inspect::{Column, Cost, Inspect, Role, Table, Unit, Value, Vital};
use crate::base::metrics::Families;
use crate::base::outcome::Outcome;
use crate::base::phases;
use crate::base::signal::LatencySignal;
use crate::base::stats::{Counts, Quantiles, interval_log};

/// Reads a [`TimingLayer`](super::TimingLayer); cheap to clone.
#[derive(Debug, Clone)]
pub struct TimingHandle(Arc<State>);

/// The numbers of one route at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RouteSnapshot {
    /// Its name.
    pub route: String,
    /// Calls that started.
    pub started: u64,
    /// Calls that ended, by how.
    pub ended: Vec<(Outcome, u64)>,
    /// Calls that started and have not ended.
    pub in_flight: u64,
    /// All time spent waiting for the service to be ready.
    pub ready: Duration,
    /// The mean time to the first byte, in the HTTP form.
    pub first_byte: Option<Duration>,
    /// All time bodies waited for their producer, in the HTTP form.
    pub producer_stall: Duration,
    /// All time bodies waited for their consumer, in the HTTP form.
    pub consumer_stall: Duration,
    /// What calls spent on their connections, in the HTTP form, once a response came with
    /// [`Timings`](crate::phases::Timings).
    pub connections: Option<ConnectionTimes>,
    /// The durations within the window.
    pub window: Quantiles,
    /// The same, corrected for coordinated omission, when an
    /// [`expected_interval`](super::TimingLayer::expected_interval) is set.
    pub corrected: Option<Quantiles>,
}

/// What the calls of one route spent on their connections.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionTimes {
    /// Calls on connections that others had used.
    pub reused: u64,
    /// Calls on new connections.
    pub new: u64,
    /// The phases that happened, in their order.
    pub phases: Vec<PhaseTimes>,
}

/// How long one phase took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PhaseTimes {
    /// Which.
    pub phase: phases::Phase,
    /// How often it happened.
    pub count: u64,
    /// How long it took on average.
    pub mean: Duration,
}

/// What the live page shows of each route.
const ROUTES: Table = Table {
    title: "routes",
    rows: "routes",
    columns: &[
        Column::new("route", "route", Unit::Text),
        Column::new("started", "started", Unit::Count),
        Column::new("failed", "failed", Unit::Count),
        Column::new("in flight", "in_flight", Unit::Level),
        Column::new("p50", "window.p50", Unit::Seconds),
        Column::new("p95", "window.p95", Unit::Seconds),
        Column::new("p99", "window.p99", Unit::Seconds),
        Column::new("max", "window.max", Unit::Seconds),
    ],
};

// ===== impl TimingHandle =====

impl TimingHandle {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// The numbers of every route.
    pub fn snapshot(&self) -> Vec<RouteSnapshot> {
        let routes = self.0.all();
        routes
            .into_iter()
            .map(|(route, measures)| self.route(route, measures))
            .collect()
    }

    /// The `quantile` (0 to 1) of `route`'s durations within the window, as a signal.
    ///
    /// Naming a route here makes it one; `None` when there is no room. A layer without a route function has only the
    /// one called like itself.
    ///
    /// # Panics
    ///
    /// When `quantile` does not lie within 0 and 1.
    pub fn signal(&self, route: &str, quantile: f64) -> Option<LatencySignal> {
        let window = self.0.window_of(route)?.clone();
        Some(LatencySignal::new(route, window, quantile))
    }

    /// Writes `route`'s window as an HdrHistogram V2 interval log, a line for each slice, for HdrHistogram's own
    /// tools: values in nanoseconds, maxima shown in milliseconds.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] when there is no such route, else what `to` failed with.
    pub fn hdr_log(&self, route: &str, mut to: impl io::Write) -> io::Result<()> {
        let routes = self.0.all();
        let found = routes.iter().find(|(name, _)| *name == route);
        let (_, measures) = found.ok_or_else(|| {
            let message = format!("timing {:?} has no route {route:?}", self.0.name);
            io::Error::new(io::ErrorKind::NotFound, message)
        })?;
        interval_log(&mut to, route, &measures.total.slices(clock::now()))
    }

    fn route(&self, route: &str, measures: &Measures) -> RouteSnapshot {
        let ended = measures.ended();
        let started = measures.started();
        let recent = measures.total.recent(clock::now());
        let (first_counts, first_sum) = measures.histogram(Phase::First);
        let firsts: u64 = first_counts.iter().sum();
        let [producer_stall, consumer_stall] = measures.stalls();
        RouteSnapshot {
            route: route.to_owned(),
            started,
            in_flight: started.saturating_sub(ended.iter().sum()),
            ended: Outcome::ALL
                .into_iter()
                .zip(ended)
                .filter(|(_, count)| *count > 0)
                .collect(),
            ready: measures.histogram(Phase::Ready).1,
            first_byte: (firsts > 0).then(|| first_sum.div_f64(firsts as f64)),
            producer_stall,
            consumer_stall,
            connections: measures.connections().map(ConnectionTimes::of),
            window: recent.quantiles(),
            corrected: self.0.expected.map(|expected| recent.corrected(expected)),
        }
    }
}

impl Inspect for TimingHandle {
    fn kind(&self) -> &'static str {
        "timing"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0.name)
    }

    fn snapshot(&self) -> Value {
        let routes = Self::snapshot(self).into_iter().map(|route| {
            let failed = route.ended.iter().filter(|(end, _)| end.is_failure());
            let failed: u64 = failed.map(|(_, count)| count).sum();
            let ended = route
                .ended
                .into_iter()
                .map(|(outcome, count)| (outcome.as_str(), count.into()));
            Value::map([
                ("route", route.route.into()),
                ("started", route.started.into()),
                ("in_flight", route.in_flight.into()),
                ("ended", Value::map(ended)),
                ("failed", failed.into()),
                ("ready", route.ready.into()),
                (
                    "first_byte",
                    route.first_byte.map_or(Value::Null, Value::from),
                ),
                ("producer_stall", route.producer_stall.into()),
                ("consumer_stall", route.consumer_stall.into()),
                (
                    "connections",
                    route
                        .connections
                        .map_or(Value::Null, ConnectionTimes::shown),
                ),
                ("window", shown(&route.window)),
                (
                    "corrected",
                    route.corrected.as_ref().map_or(Value::Null, shown),
                ),
            ])
        });
        Value::map([("routes", Value::list(routes))])
    }

    fn cost(&self) -> Option<&Cost> {
        Some(&self.0.cost)
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(&self.0, families);
    }

    fn vitals(&self) -> Vec<Vital> {
        let now = clock::now();
        let (mut started, mut ended, mut failed) = (0, 0, 0);
        let mut recent = Counts::zero();
        for (_, measures) in self.0.all() {
            for (outcome, count) in Outcome::ALL.into_iter().zip(measures.ended()) {
                ended += count;
                failed += if outcome.is_failure() { count } else { 0 };
            }
            started += measures.started();
            recent.add(&measures.total.recent(now));
        }
        let quantile = |q| {
            let quantile = recent.quantile(q);
            quantile.map_or(f64::NAN, |quantile| quantile.as_secs_f64())
        };
        vec![
            Vital::count(Role::Requests, started),
            Vital::count(Role::Errors, failed),
            Vital::level(Role::InFlight, started.saturating_sub(ended) as f64),
            Vital::level(Role::P50, quantile(0.5)),
            Vital::level(Role::P95, quantile(0.95)),
            Vital::level(Role::P99, quantile(0.99)),
        ]
    }

    fn tables(&self) -> &'static [Table] {
        &[ROUTES]
    }

    fn interval_log(&self, route: &str, to: &mut dyn io::Write) -> io::Result<()> {
        self.hdr_log(route, to)
    }
}

fn shown(quantiles: &Quantiles) -> Value {
    let count = ("count", quantiles.count.into());
    Value::map(
        [count]
            .into_iter()
            .chain(quantiles.iter().map(|(name, value)| (name, value.into()))),
    )
}

// ===== impl ConnectionTimes =====

impl ConnectionTimes {
    fn of(connections: &Connections) -> Self {
        let [reused, new] = connections.counts();
        let phases = connections.histograms().map(|(phase, counts, sum)| {
            let count = counts.iter().sum();
            PhaseTimes {
                phase,
                count,
                mean: sum.div_f64(count as f64),
            }
        });
        Self {
            reused,
            new,
            phases: phases.collect(),
        }
    }

    fn shown(self) -> Value {
        let phases = self.phases.into_iter().map(|spent| {
            let shown = [("count", spent.count.into()), ("mean", spent.mean.into())];
            (spent.phase.as_str(), Value::map(shown))
        });
        Value::map([
            ("reused", self.reused.into()),
            ("new", self.new.into()),
            ("phases", Value::map(phases)),
        ])
    }
}
