use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::core::{Answer, Cause, CloseReason, Gone};
use super::shared::Shared;
use super::stats::{PhaseStats, Stats};
use crate::base::clock::{self, Instant};
use crate::base::metrics::{Families, Histogram, Kind, Labels};
use crate::base::phases::{Dial, Phase};
use crate::base::stats::Bounds;

/// What happens rarely, a dial, a wait, an end, is measured under one lock; a request that finds a connection idle does
/// not come here.
#[derive(Debug)]
pub(super) struct Measures {
    retried: AtomicU64,
    rare: Mutex<Rare>,
}

#[derive(Debug)]
struct Rare {
    waits: BTreeMap<&'static str, Buckets>,
    /// By phase and result.
    dials: BTreeMap<(&'static str, &'static str), Buckets>,
    lives: Buckets,
    requests: Buckets,
    /// The hosts that have series of their own.
    named: BTreeSet<String>,
}

#[derive(Debug)]
struct Buckets {
    bounds: Bounds,
    counts: Vec<u64>,
    sum: f64,
}

/// OpenTelemetry's buckets of `http.client.connection.duration`.
fn lives() -> Bounds {
    Bounds::seconds([
        0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    ])
}

impl Default for Measures {
    fn default() -> Self {
        Self {
            retried: AtomicU64::new(0),
            rare: Mutex::new(Rare {
                waits: BTreeMap::new(),
                dials: BTreeMap::new(),
                lives: Buckets::new(lives()),
                named: BTreeSet::new(),
                requests: Buckets::new(Bounds::whole([
                    1.0, 2.0, 5.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0,
                ])),
            }),
        }
    }
}

impl Measures {
    pub(super) fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn retries(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    pub(super) fn waited(&self, answer: &Answer, waited: Duration) {
        let outcome = match answer {
            Answer::Granted(_) => "granted",
            Answer::Failed(_) => "failed",
            Answer::TimedOut { .. } => "timeout",
            Answer::Open(_) | Answer::Closed => "closed",
        };
        let mut rare = self.lock();
        let waits = rare.waits.entry(outcome);
        let waits = waits.or_insert_with(|| Buckets::new(Bounds::client_golang()));
        waits.add(waited);
    }

    /// A dial is over: with each of its phases, and `total`.
    pub(super) fn dialled(&self, dial: &Dial, now: Instant, result: Result<(), &Cause>) {
        let result = match result {
            Ok(()) => "ok",
            Err(cause) if cause.timed_out => "timeout",
            Err(_) => "error",
        };
        let took = |phase: Phase| dial.duration(phase).map(|took| (phase.as_str(), took));
        let total = now.saturating_duration_since(dial.started());
        let phases = Phase::ALL.into_iter().filter_map(took);
        let mut rare = self.lock();
        for (phase, took) in phases.chain([("total", total)]) {
            let dials = rare.dials.entry((phase, result));
            let dials = dials.or_insert_with(|| Buckets::new(Bounds::client_golang()));
            dials.add(took);
        }
    }

    pub(super) fn gone(&self, gone: &Gone, now: Instant) {
        if !gone.established {
            return;
        }
        let mut rare = self.lock();
        rare.lives.add(now.saturating_duration_since(gone.since));
        rare.requests.count(gone.requests);
    }

    /// The means of what went well.
    pub(super) fn phases(&self) -> Vec<PhaseStats> {
        let rare = self.lock();
        let waits = rare.waits.get("granted").map(|waits| ("wait", waits));
        let dials = rare
            .dials
            .iter()
            .filter_map(|((phase, result), dials)| (*result == "ok").then_some((*phase, dials)));
        waits
            .into_iter()
            .chain(dials)
            .map(|(phase, buckets)| buckets.mean(phase))
            .collect()
    }

    /// Whether `host` has series of its own, as the first `most` have.
    fn names(&self, host: String, most: usize) -> bool {
        let named = &mut self.lock().named;
        named.contains(&host) || (named.len() < most && named.insert(host))
    }

    fn lock(&self) -> MutexGuard<'_, Rare> {
        self.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    fn new(bounds: Bounds) -> Self {
        Self {
            counts: vec![0; bounds.buckets()],
            bounds,
            sum: 0.0,
        }
    }

    fn add(&mut self, duration: Duration) {
        self.counts[self.bounds.of(duration)] += 1;
        self.sum += duration.as_secs_f64();
    }

    fn count(&mut self, value: u64) {
        self.counts[self.bounds.index(value)] += 1;
        self.sum += value as f64;
    }

    fn mean(&self, phase: &'static str) -> PhaseStats {
        let count = self.counts.iter().sum();
        let mean = Duration::try_from_secs_f64(self.sum / count as f64);
        PhaseStats {
            phase,
            count,
            mean: mean.unwrap_or_default(),
        }
    }

    fn histogram(&self) -> Histogram {
        Histogram::new(&self.bounds, self.counts.clone(), self.sum)
    }
}

pub(super) fn collect<B: Send + 'static>(shared: &Shared<B>, families: &mut Families) {
    let name = || Labels::new().with("name", shared.options.name.to_string());
    let stats = Stats::of(shared);
    open(shared, &stats, families);
    gauges(&name(), &stats, families);
    counters(&name(), &stats, families);

    let rare = shared.measures.lock();
    let family = families.family(
        Kind::Histogram,
        "tower_flow_pool_wait_seconds",
        "How long requests waited that did not find a connection at once",
    );
    for (outcome, waits) in &rare.waits {
        family.push(name().with("outcome", *outcome), waits.histogram());
    }
    let family = families.family(
        Kind::Histogram,
        "tower_flow_pool_connect_seconds",
        "How long dials took, by phase",
    );
    for ((phase, result), dials) in &rare.dials {
        let labels = name().with("phase", *phase).with("result", *result);
        family.push(labels, dials.histogram());
    }
    families
        .family(
            Kind::Histogram,
            "http_client_connection_duration_seconds",
            "How long connections lived",
        )
        .push(name(), rare.lives.histogram());
    families
        .family(
            Kind::Histogram,
            "tower_flow_pool_requests_per_connection",
            "How many requests a connection carried",
        )
        .push(name(), rare.requests.histogram());
}

/// OpenTelemetry's gauges: by host as far as hosts have labels, the rest as `other`.
fn open<B: Send + 'static>(shared: &Shared<B>, stats: &Stats, families: &mut Families) {
    let name = || Labels::new().with("name", shared.options.name.to_string());
    let named = shared.options.host_metrics;
    let mut rest = [stats.idle, stats.active + stats.draining];
    let mut series = Vec::new();
    let hosts = match named {
        0 => Vec::new(),
        _ => shared.lock().core.views(clock::now(), usize::MAX),
    };
    for host in &hosts {
        let counts = [host.gauges.idle, host.gauges.active + host.gauges.draining];
        // Who has series keeps them: what is scraped over time stays bounded too.
        if !shared.measures.names(host.uri.to_string(), named) {
            continue;
        }
        let address = host.uri.host().unwrap_or_default().to_owned();
        let scheme = host.uri.scheme_str().unwrap_or_default().to_owned();
        let own = if scheme == "https" { 443 } else { 80 };
        let port = host.uri.port_u16().unwrap_or(own);
        for (at, count) in counts.into_iter().enumerate() {
            rest[at] = rest[at].saturating_sub(count);
        }
        let labels = name()
            .with("url_scheme", scheme)
            .with("server_address", address)
            .with("server_port", port.to_string());
        series.push((labels, counts));
    }
    let rest_labels = match named {
        0 => name(),
        _ => name()
            .with("url_scheme", "other")
            .with("server_address", "other")
            .with("server_port", "other"),
    };
    series.push((rest_labels, rest));
    for (labels, counts) in series {
        let family = families.family(
            Kind::Gauge,
            "http_client_open_connections",
            "Connections that are idle or carry requests",
        );
        for (state, count) in ["idle", "active"].into_iter().zip(counts) {
            let labels = labels.clone().with("http_connection_state", state);
            family.push(labels, count);
        }
    }
}

fn gauges(name: &Labels, stats: &Stats, families: &mut Families) {
    let each = [
        (
            "http_client_active_requests",
            "Requests on connections",
            stats.streams,
        ),
        (
            "tower_flow_pool_pending_requests",
            "Requests that wait for a connection",
            stats.waiting,
        ),
        ("tower_flow_pool_hosts", "Hosts that are known", stats.hosts),
        (
            "tower_flow_pool_peak_connections",
            "The most connections that were ever open",
            stats.peak_open,
        ),
    ];
    for (family, help, value) in each {
        families
            .family(Kind::Gauge, family, help)
            .push(name.clone(), value);
    }
    let family = families.family(
        Kind::Gauge,
        "tower_flow_pool_connections",
        "Connections that hold a slot, by state",
    );
    let states = [
        ("dialling", stats.dialling),
        ("idle", stats.idle),
        ("active", stats.active),
        ("draining", stats.draining),
        ("closing", stats.closing),
    ];
    for (state, count) in states {
        family.push(name.clone().with("state", state), count);
    }
    let family = families.family(
        Kind::Gauge,
        "tower_flow_pool_max_connections",
        "How many connections may hold a slot",
    );
    for (scope, most) in [
        ("total", stats.max_connections),
        ("host", stats.max_per_host),
    ] {
        family.push(name.clone().with("scope", scope), most);
    }
    families
        .family(
            Kind::Gauge,
            "tower_flow_pool_reuse_ratio",
            "The part of all requests that found a connection that had carried others",
        )
        .push(name.clone(), stats.reuse_ratio());
}

fn counters(name: &Labels, stats: &Stats, families: &mut Families) {
    let each = [
        (
            "tower_flow_pool_requests",
            "Requests that got a connection",
            stats.requests,
        ),
        (
            "tower_flow_pool_reused",
            "Requests that got a connection that had carried others",
            stats.reused,
        ),
        (
            "tower_flow_pool_retried",
            "Requests tried again that were never sent",
            stats.retried,
        ),
    ];
    for (family, help, value) in each {
        families
            .family(Kind::Counter, family, help)
            .push(name.clone(), value);
    }
    let family = families.family(
        Kind::Counter,
        "tower_flow_pool_connects",
        "Dials that came to an end",
    );
    let connects = [
        ("ok", stats.connects_ok),
        ("error", stats.connects_failed),
        ("timeout", stats.connects_timed_out),
    ];
    for (result, count) in connects {
        family.push(name.clone().with("result", result), count);
    }
    let family = families.family(
        Kind::Counter,
        "tower_flow_pool_closed",
        "Connections that are gone",
    );
    for (reason, count) in CloseReason::ALL.into_iter().zip(stats.closed) {
        family.push(name.clone().with("reason", reason.as_str()), count);
    }
    let family = families.family(
        Kind::Counter,
        "tower_flow_pool_rejected",
        "Requests that got no connection and were told so",
    );
    let rejected = [
        ("queue_full", stats.rejected_queue_full),
        ("timeout", stats.rejected_timeout),
        ("backing_off", stats.rejected_backing_off),
        ("closed", stats.rejected_closed),
    ];
    for (reason, count) in rejected {
        family.push(name.clone().with("reason", reason), count);
    }
}
