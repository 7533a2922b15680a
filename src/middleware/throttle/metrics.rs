use super::handle::BackendSnapshot;
use crate::base::metrics::{Families, Kind, Labels, Value};

/// A name without its `_total`, a help text, and what it counts.
type Counter = (&'static str, &'static str, fn(&BackendSnapshot) -> u64);
type Gauge = (&'static str, &'static str, fn(&BackendSnapshot) -> f64);

const COUNTERS: [Counter; 5] = [
    (
        "tower_flow_throttle_requests",
        "Calls that were answered, refused here, or given up",
        |backend| backend.requests,
    ),
    (
        "tower_flow_throttle_accepted",
        "Calls the backend took",
        |backend| backend.accepted,
    ),
    (
        "tower_flow_throttle_refused",
        "Calls the backend refused",
        |backend| backend.refused,
    ),
    (
        "tower_flow_throttle_throttled",
        "Calls refused here, to spare the backend",
        |backend| backend.throttled,
    ),
    (
        "tower_flow_throttle_dropped",
        "Calls given up before an answer",
        |backend| backend.dropped,
    ),
];

const GAUGES: [Gauge; 3] = [
    (
        "tower_flow_throttle_probability",
        "Share of calls refused here now",
        |backend| backend.probability,
    ),
    (
        "tower_flow_throttle_retry_tokens",
        "Tokens left in the retry budget",
        |backend| backend.retry_tokens,
    ),
    (
        "tower_flow_throttle_pushback_seconds",
        "Time until the backend's push-back ends",
        |backend| backend.pushback.as_secs_f64(),
    ),
];

pub(super) fn collect(name: &str, backends: &[BackendSnapshot], families: &mut Families) {
    for backend in backends {
        let labels = Labels::new()
            .with("name", name.to_owned())
            .with("backend", backend.backend.clone());
        for (name, help, count) in COUNTERS {
            let family = families.family(Kind::Counter, name, help);
            family.push(labels.clone(), count(backend));
        }
        for (name, help, measure) in GAUGES {
            let family = families.family(Kind::Gauge, name, help).greatest();
            family.push(labels.clone(), Value::from(measure(backend)));
        }
        let family = families.family(
            Kind::Counter,
            "tower_flow_throttle_pushbacks",
            "Push-backs the backend asked for, by kind",
        );
        for (kind, count) in backend.pushbacks {
            family.push(labels.clone().with("kind", kind), count);
        }
    }
}
