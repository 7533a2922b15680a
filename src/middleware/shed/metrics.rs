use super::handle::ShedSnapshot;
use super::sampler::{REASONS, at, refused_at};
use super::state::State;
use crate::base::inspect::Value;
use crate::base::metrics::{Families, Histogram, Kind, Labels};
use crate::base::priority::Priority;
use crate::base::signal::{PressureSnapshot, PressureState};

pub(super) fn collect(state: &State, snapshot: &ShedSnapshot, families: &mut Families) {
    let name = Labels::new().with("name", state.name.to_string());
    gauges(&name, snapshot, families);
    counters(&name, state, snapshot, families);
    signals(&name, snapshot, families);
}

fn gauges(name: &Labels, snapshot: &ShedSnapshot, families: &mut Families) {
    let mut gauge = |family: &'static str, help: &'static str, labels: Labels, value: f64| {
        families
            .family(Kind::Gauge, family, help)
            .push(labels, value);
    };
    let float = |flag: bool| f64::from(u8::from(flag));
    let each = [
        (
            "tower_flow_shed_limit",
            "What the algorithm wants",
            snapshot.limit as f64,
        ),
        (
            "tower_flow_shed_limit_effective",
            "The limit in force",
            snapshot.limit_effective as f64,
        ),
        (
            "tower_flow_shed_inflight",
            "Requests that hold a slot",
            snapshot.in_flight as f64,
        ),
        (
            "tower_flow_shed_streams",
            "Streams that hold a slot of theirs",
            snapshot.streams as f64,
        ),
        (
            "tower_flow_shed_rtt_window_seconds",
            "Mean round trip of the last window",
            snapshot.round_trip.as_secs_f64(),
        ),
        (
            "tower_flow_shed_probe_active",
            "Whether the round trip without queueing is being measured",
            float(snapshot.probing),
        ),
        (
            "tower_flow_shed_dry_run",
            "Whether refusals are only counted",
            float(snapshot.dry_run),
        ),
        (
            "tower_flow_shed_paused",
            "Whether the algorithm rests",
            float(snapshot.paused),
        ),
    ];
    for (family, help, value) in each {
        gauge(family, help, name.clone(), value);
    }
    if let Some(floor) = snapshot.floor {
        gauge(
            "tower_flow_shed_rtt_floor_seconds",
            "Round trip without queueing",
            name.clone(),
            floor.as_secs_f64(),
        );
    }
    if let Some(gradient) = snapshot.gradient {
        gauge(
            "tower_flow_shed_gradient",
            "The floor over the round trip",
            name.clone(),
            gradient,
        );
    }
    for (level, waiting) in Priority::ALL.into_iter().zip(snapshot.waiting) {
        gauge(
            "tower_flow_shed_queue_depth",
            "Requests that wait",
            name.clone().with("priority", level.as_str()),
            waiting as f64,
        );
    }
    for (partition, in_flight, _) in &snapshot.partitions {
        gauge(
            "tower_flow_shed_partition_inflight",
            "Slots held by a partition",
            name.clone().with("partition", partition.to_string()),
            *in_flight as f64,
        );
    }
}

fn counters(name: &Labels, state: &State, snapshot: &ShedSnapshot, families: &mut Families) {
    let cells = &state.sampler.cells;
    let mut counter = |family: &'static str, help: &'static str, labels: Labels, value: u64| {
        families
            .family(Kind::Counter, family, help)
            .push(labels, value);
    };
    for (level, admitted) in Priority::ALL.into_iter().zip(snapshot.admitted) {
        let labels = name.clone().with("priority", level.as_str());
        counter(
            "tower_flow_shed_admitted",
            "Requests let in",
            labels,
            admitted,
        );
    }
    for (index, reason) in REASONS.into_iter().enumerate() {
        let labels = name.clone().with("reason", reason.as_str());
        for level in Priority::ALL {
            counter(
                "tower_flow_shed_rejected",
                "Requests refused",
                labels.clone().with("priority", level.as_str()),
                cells.sum(refused_at(reason, level)),
            );
        }
        counter(
            "tower_flow_shed_would_reject",
            "Requests a dry run would have refused",
            labels,
            cells.sum(at::WOULD + index),
        );
    }
    for (verdict, count) in snapshot.ended {
        let labels = name.clone().with("outcome", verdict.as_str());
        counter(
            "tower_flow_shed_outcomes",
            "Ends, by what they say about load",
            labels,
            count,
        );
    }
    let each = [
        (
            "tower_flow_shed_streams_admitted",
            "Streams let in",
            snapshot.streams_admitted,
        ),
        (
            "tower_flow_shed_streams_rejected",
            "Streams refused",
            cells.sum(at::STREAMS_REFUSED),
        ),
        (
            "tower_flow_shed_streams_would_reject",
            "Streams a dry run would have refused",
            cells.sum(at::STREAMS_WOULD),
        ),
        (
            "tower_flow_shed_abandoned",
            "Requests that went away before they were let in or refused",
            snapshot.abandoned,
        ),
        (
            "tower_flow_shed_bypassed",
            "Requests that passed by",
            snapshot.bypassed,
        ),
        (
            "tower_flow_shed_malformed",
            "Requests with a deadline or priority that could not be read",
            snapshot.malformed,
        ),
        (
            "tower_flow_shed_panics",
            "Hooks and algorithms that panicked",
            snapshot.panics,
        ),
    ];
    for (family, help, value) in each {
        counter(family, help, name.clone(), value);
    }
    let mut waited = vec![0; 1 + state.waits.buckets()];
    cells.sum_into(at::WAITED, &mut waited);
    let sum = std::time::Duration::from_nanos(waited.remove(0)).as_secs_f64();
    families
        .family(
            Kind::Histogram,
            "tower_flow_shed_queue_wait_seconds",
            "How long those who waited did until they were let in or refused",
        )
        .push(name.clone(), Histogram::new(&state.waits, waited, sum));
}

fn signals(name: &Labels, snapshot: &ShedSnapshot, families: &mut Families) {
    for signal in &snapshot.pressures {
        let labels = name.clone().with("signal", signal.name.to_string());
        let pressure = match signal.state {
            PressureState::Inactive => 0.0,
            _ => signal.level,
        };
        families
            .family(
                Kind::Gauge,
                "tower_flow_shed_pressure",
                "How much a signal presses, 0 to 1",
            )
            .push(labels.clone(), pressure);
        families
            .family(
                Kind::Gauge,
                "tower_flow_shed_pressure_state",
                "0 inactive, 1 warning, 2 active",
            )
            .push(labels.clone(), signal.state as u64);
        families
            .family(
                Kind::Counter,
                "tower_flow_shed_signal_stale",
                "Times a signal had nothing to say for too long",
            )
            .push(labels.clone(), signal.stale);
        families
            .family(
                Kind::Counter,
                "tower_flow_shed_signal_failures",
                "Readings of a signal that failed",
            )
            .push(labels, signal.failures);
    }
}

/// A signal as it is shown.
pub(super) fn shown(signal: &PressureSnapshot) -> Value {
    Value::map([
        ("signal", (&*signal.name).into()),
        ("value", signal.value.map_or(Value::Null, Value::from)),
        ("level", signal.level.into()),
        ("state", signal.state.as_str().into()),
        ("stale", signal.stale.into()),
        ("failures", signal.failures.into()),
    ])
}
