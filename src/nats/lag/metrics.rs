use super::LagSnapshot;
use super::core::LagState;
use crate::base::metrics::{Families, Kind, Labels};

pub(super) fn collect(name: &str, now: &LagSnapshot, families: &mut Families) {
    let name = Labels::new().with("name", name.to_owned());
    // What is not known has no series: a 0 would be a lie.
    for (family, help, value) in [
        (
            "tower_flow_nats_lag",
            "Messages that were not handed out yet, or not acknowledged",
            now.value,
        ),
        (
            "tower_flow_nats_lag_age_seconds",
            "How long ago the lag was learnt",
            now.age.map(|age| age.as_secs_f64()),
        ),
        (
            "tower_flow_nats_lag_pending",
            "Messages that were not handed out yet",
            now.value.map(|_| now.pending as f64),
        ),
        (
            "tower_flow_nats_lag_ack_pending",
            "Messages that were handed out and are not acknowledged",
            now.value.map(|_| now.ack_pending as f64),
        ),
        (
            "tower_flow_nats_lag_saturation",
            "Unacknowledged messages as a share of how many there may be",
            now.value.and(now.saturation),
        ),
    ] {
        let family = families.family(Kind::Gauge, family, help);
        if let Some(value) = value {
            family.push(name.clone(), value);
        }
    }
    let states = families.family(
        Kind::Gauge,
        "tower_flow_nats_lag_state",
        "1 for what the backlog is doing, 0 for all else",
    );
    for state in LagState::ALL {
        let is = u64::from(state == now.state);
        states.push(name.clone().with("state", state.as_str()), is);
    }
    let polls = families.family(
        Kind::Counter,
        "tower_flow_nats_lag_polls",
        "How often the server was asked, by whether it answered",
    );
    for (result, count) in [("ok", now.polls), ("error", now.failures)] {
        polls.push(name.clone().with("result", result), count);
    }
    for (family, help, count) in [
        (
            "tower_flow_nats_lag_observed",
            "Messages from which the lag was read",
            now.observed,
        ),
        (
            "tower_flow_nats_lag_corrected",
            "Answers about the consumer that the stream contradicted",
            now.corrected,
        ),
    ] {
        families
            .family(Kind::Counter, family, help)
            .push(name.clone(), count);
    }
}
