use std::sync::Arc;

use super::core::LineState;
use super::handle::NatsPoolStats;
use super::shared::State;
use crate::base::metrics::{Families, Kind, Labels};

pub(super) fn collect(
    name: &Arc<str>,
    now: &NatsPoolStats,
    state: &State,
    families: &mut Families,
) {
    let name = Labels::new().with("name", name.to_string());
    let connections = families.family(
        Kind::Gauge,
        "tower_flow_nats_connections",
        "Connections, by what they are doing",
    );
    for line in LineState::ALL {
        let count = state.core.count(line) as u64;
        connections.push(name.clone().with("state", line.as_str()), count);
    }
    for (family, help, value) in [
        (
            "tower_flow_nats_max_connections",
            "How many connections there may be",
            state.core.limits().connections,
        ),
        (
            "tower_flow_nats_in_flight",
            "Requests that have a connection",
            now.in_flight,
        ),
        (
            "tower_flow_nats_waiting",
            "Requests that wait for a connection",
            now.waiting,
        ),
    ] {
        families
            .family(Kind::Gauge, family, help)
            .push(name.clone(), value as u64);
    }
    families
        .family(
            Kind::Gauge,
            "tower_flow_nats_utilisation",
            "Requests in flight as a share of what may be",
        )
        .push(name.clone(), now.utilisation);
    let requests = families.family(
        Kind::Counter,
        "tower_flow_nats_requests",
        "Requests, by how they ended",
    );
    for (result, count) in &now.results {
        requests.push(name.clone().with("result", *result), *count);
    }
    let connects = families.family(
        Kind::Counter,
        "tower_flow_nats_connects",
        "Connections that were made, or were not",
    );
    for (result, count) in [("ok", now.created), ("error", now.failed)] {
        connects.push(name.clone().with("result", result), count);
    }
    for (family, help, count) in [
        (
            "tower_flow_nats_acquired",
            "Times a request was given a connection",
            now.acquired,
        ),
        (
            "tower_flow_nats_released",
            "Times a request gave its connection back",
            now.released,
        ),
        (
            "tower_flow_nats_queued",
            "Requests that had to wait for a connection",
            now.queued,
        ),
        (
            "tower_flow_nats_lost",
            "Times a connection lost its server",
            now.lost,
        ),
        (
            "tower_flow_nats_closed",
            "Connections that closed for good",
            now.closed,
        ),
    ] {
        families
            .family(Kind::Counter, family, help)
            .push(name.clone(), count);
    }
    for (family, help, histogram) in state.histograms() {
        families
            .family(Kind::Histogram, family, help)
            .push(name.clone(), histogram);
    }
}
