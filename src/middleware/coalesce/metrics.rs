use super::handle::CoalesceSnapshot;
use super::state::{State, Time};
use crate::base::metrics::{Families, Kind, Labels};

pub(super) fn collect(state: &State, now: &CoalesceSnapshot, families: &mut Families) {
    let name = Labels::new().with("name", state.settings.name.to_string());
    let requests = families.family(
        Kind::Counter,
        "tower_flow_coalesce_requests",
        "Requests, by what they found under their key",
    );
    let labels = |role: &'static str, reason: &'static str| {
        name.clone().with("role", role).with("reason", reason)
    };
    requests.push(labels("leader", ""), now.leaders);
    requests.push(labels("follower", ""), now.followers);
    for (reason, count) in now.bypassed {
        requests.push(labels("bypass", reason), count);
    }
    let ends = families.family(
        Kind::Counter,
        "tower_flow_coalesce_end",
        "Flights that ended, by how",
    );
    for (how, count) in now.ends {
        ends.push(name.clone().with("how", how), count);
    }
    let mut plain = |kind, family: &'static str, help: &'static str, value: u64| {
        let family = families.family(kind, family, help);
        family.push(name.clone(), value);
    };
    let counter = Kind::Counter;
    plain(
        counter,
        "tower_flow_coalesce_shared",
        "Requests answered by somebody else's call",
        now.shared,
    );
    plain(
        counter,
        "tower_flow_coalesce_sent",
        "Requests sent: leaders, those that went alone, and followers released",
        now.sent,
    );
    plain(
        counter,
        "tower_flow_coalesce_body_evicted",
        "Readers of shared bodies put out for holding up the others",
        now.evicted,
    );
    let gauge = Kind::Gauge;
    plain(
        gauge,
        "tower_flow_coalesce_flights",
        "Flights now",
        now.flights,
    );
    plain(
        gauge,
        "tower_flow_coalesce_waiters",
        "Callers that wait for a flight now",
        now.waiters,
    );
    plain(
        gauge,
        "tower_flow_coalesce_remembered",
        "Keys known for answers that are not to be shared",
        now.remembered,
    );
    for (family, help, time) in [
        (
            "tower_flow_coalesce_flight_seconds",
            "From when a flight first had to wait to its result",
            Time::Flight,
        ),
        (
            "tower_flow_coalesce_wait_seconds",
            "From when a follower joined to its answer",
            Time::Wait,
        ),
    ] {
        let family = families.family(Kind::Histogram, family, help);
        family.push(name.clone(), state.stats.histogram(time));
    }
}
