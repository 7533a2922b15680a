use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connection::Connections;
use super::route::{Measures, Phase, State};
use crate::base::clock;
use crate::base::metrics::{Families, Histogram, Kind, Labels};
use crate::base::outcome::Outcome;

/// How fine the native buckets are: 8 to the octave, Prometheus' own recommendation.
const SCHEMA: i32 = 3;

pub(super) fn collect(state: &State, families: &mut Families) {
    for (route, measures) in state.all() {
        let labels = Labels::new()
            .with("name", state.name.to_string())
            .with("route", route.to_owned());
        Route {
            state,
            measures,
            labels,
        }
        .collect(families);
    }
}

struct Route<'a> {
    state: &'a State,
    measures: &'a Measures,
    labels: Labels,
}

impl Route<'_> {
    fn collect(&self, families: &mut Families) {
        let ended = self.measures.ended();
        let started = self.measures.started();
        families
            .family(Kind::Counter, "tower_flow_timing_started", "Calls started")
            .push(self.labels.clone(), started);
        let family = families.family(
            Kind::Counter,
            "tower_flow_timing_ended",
            "Calls ended, by how",
        );
        for (outcome, count) in Outcome::ALL.into_iter().zip(ended) {
            family.push(self.labels.clone().with("outcome", outcome.as_str()), count);
        }
        let in_flight = started.saturating_sub(ended.iter().sum());
        families
            .family(
                Kind::Gauge,
                "tower_flow_timing_in_flight",
                "Calls started and not ended",
            )
            .push(self.labels.clone(), in_flight);

        let ready = self.histogram(Phase::Ready);
        families
            .family(
                Kind::Histogram,
                "tower_flow_timing_ready_seconds",
                "Wait until the service was ready",
            )
            .push(self.labels.clone(), ready);
        // Calls are recorded fine first, so read so they are never fewer than in the classic buckets.
        let duration = self.histogram(Phase::Total);
        let fine = self.measures.total.whole().counts();
        let duration = duration.with_native(&fine, SCHEMA);
        families
            .family(
                Kind::Histogram,
                "tower_flow_timing_duration_seconds",
                "From the call to its end",
            )
            .push(self.labels.clone(), duration);
        if self.state.http.load(Ordering::Relaxed) {
            self.http(families);
        }
        if let Some(connections) = self.measures.connections() {
            self.connections(connections, families);
        }

        let quantiles = self.measures.total.quantiles(clock::now());
        let family = families.family(
            Kind::Gauge,
            "tower_flow_timing_window_seconds",
            "Durations within the sliding window",
        );
        let family = family.greatest();
        for (name, value) in quantiles.iter().filter(|_| quantiles.count > 0) {
            family.push(self.labels.clone().with("stat", name), value.as_secs_f64());
        }
    }

    fn http(&self, families: &mut Families) {
        let first = self.histogram(Phase::First);
        families
            .family(
                Kind::Histogram,
                "tower_flow_timing_first_byte_seconds",
                "From the call to the response headers",
            )
            .push(self.labels.clone(), first);
        let stalls = ["producer", "consumer"]
            .into_iter()
            .zip(self.measures.stalls());
        let family = families.family(
            Kind::Counter,
            "tower_flow_timing_stall_seconds",
            "Time response bodies waited for their producer or consumer",
        );
        for (side, stall) in stalls {
            family.push(self.labels.clone().with("side", side), stall.as_secs_f64());
        }
    }

    fn connections(&self, connections: &Connections, families: &mut Families) {
        let counts = ["true", "false"].into_iter().zip(connections.counts());
        let family = families.family(
            Kind::Counter,
            "tower_flow_timing_connections",
            "Calls by whether others had used their connection",
        );
        for (reused, count) in counts {
            family.push(self.labels.clone().with("reused", reused), count);
        }
        let family = families.family(
            Kind::Histogram,
            "tower_flow_timing_phase_seconds",
            "Time before the first byte, by what it went on",
        );
        for (phase, counts, sum) in connections.histograms() {
            let histogram = Histogram::new(&self.state.bounds, counts, sum.as_secs_f64());
            family.push(self.labels.clone().with("phase", phase.as_str()), histogram);
        }
    }

    fn histogram(&self, phase: Phase) -> Histogram {
        let (counts, sum): (_, Duration) = self.measures.histogram(phase);
        Histogram::new(&self.state.bounds, counts, sum.as_secs_f64())
    }
}
