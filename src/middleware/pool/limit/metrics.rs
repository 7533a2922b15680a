use super::handle::LimitSnapshot;
use super::state::{State, What};
use crate::base::error::Reason;
use crate::base::metrics::{Families, Histogram, Kind, Labels};

/// A name, a help text, and what it measures.
type Single<T> = (&'static str, &'static str, fn(&LimitSnapshot) -> T);

const GAUGES: [Single<usize>; 5] = [
    (
        "tower_flow_pool_limit_max",
        "How many permits there may be",
        |now| now.max,
    ),
    (
        "tower_flow_pool_limit_max_per_host",
        "How many permits there may be to one host",
        |now| now.max_per_host,
    ),
    (
        "tower_flow_pool_limit_held",
        "Permits that are held",
        |now| now.held,
    ),
    (
        "tower_flow_pool_limit_waiting",
        "How many wait for a permit",
        |now| now.waiting,
    ),
    (
        "tower_flow_pool_limit_hosts",
        "Hosts with a permit or somebody who waits",
        |now| now.hosts,
    ),
];

/// Without their `_total`.
const COUNTERS: [Single<u64>; 2] = [
    (
        "tower_flow_pool_limit_granted",
        "Permits that were granted",
        |now| now.granted,
    ),
    (
        "tower_flow_pool_limit_abandoned",
        "Waits for a permit that were given up",
        |now| now.abandoned,
    ),
];

const OF_CONNECTIONS: [Single<u64>; 2] = [
    (
        "tower_flow_pool_limit_ghosts",
        "Queued dials that were ended because their requests had got other connections",
        |now| now.ghosts,
    ),
    (
        "tower_flow_pool_limit_failed_dials",
        "Dials that failed",
        |now| now.failed,
    ),
];

pub(super) fn collect(state: &State, now: LimitSnapshot, families: &mut Families) {
    let what = state.settings.what;
    let labels = || {
        Labels::new()
            .with("name", state.settings.name.to_string())
            .with("of", what.as_str())
    };
    for (name, help, measure) in GAUGES {
        let family = families.family(Kind::Gauge, name, help);
        family.push(labels(), measure(&now) as u64);
    }
    for (name, help, count) in COUNTERS {
        let family = families.family(Kind::Counter, name, help);
        family.push(labels(), count(&now));
    }
    if what == What::Connections {
        let family = families.family(
            Kind::Gauge,
            "tower_flow_pool_limit_connections",
            "Connections by state",
        );
        family.push(labels().with("state", "open"), now.open as u64);
        family.push(labels().with("state", "dialling"), now.dialling as u64);
        for (name, help, count) in OF_CONNECTIONS {
            let family = families.family(Kind::Counter, name, help);
            family.push(labels(), count(&now));
        }
    }
    let family = families.family(
        Kind::Counter,
        "tower_flow_pool_limit_refused",
        "Refused without a permit",
    );
    for (reason, count) in [
        (Reason::QueueFull, now.full),
        (Reason::QueueTimeout, now.timeouts),
        (Reason::Closed, now.closed),
    ] {
        family.push(labels().with("reason", reason.as_str()), count);
    }
    let waits = Histogram::new(&state.bounds, now.waits, now.wait_time.as_secs_f64());
    families
        .family(
            Kind::Histogram,
            "tower_flow_pool_limit_wait_seconds",
            "How long those waited that were granted a permit after a wait",
        )
        .push(labels(), waits);
}
