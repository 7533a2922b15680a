use super::handle::BatchSnapshot;
use super::state::{Measure, State};
use crate::base::metrics::{Families, Kind, Labels};

pub(super) fn collect(state: &State, now: &BatchSnapshot, families: &mut Families) {
    let name = Labels::new().with("name", state.settings.name.to_string());
    let items = families.family(
        Kind::Counter,
        "tower_flow_batch_items",
        "Items, by what became of them",
    );
    for (result, count) in now.results {
        items.push(name.clone().with("result", result), count);
    }
    let flushes = families.family(
        Kind::Counter,
        "tower_flow_batch_flush",
        "Batches taken to be sent, by why they were when they were",
    );
    for (reason, count) in now.flushes {
        flushes.push(name.clone().with("reason", reason), count);
    }
    for (kind, family, help, value) in [
        (
            Kind::Counter,
            "tower_flow_batch_merged",
            "Items that waited for the same as another and were not sent themselves",
            now.merged,
        ),
        (
            Kind::Counter,
            "tower_flow_batch_split",
            "Calls made for parts of batches that had failed",
            now.splits,
        ),
        (
            Kind::Counter,
            "tower_flow_batch_unknown",
            "Answers for which there was no item",
            now.unknown,
        ),
        (
            Kind::Gauge,
            "tower_flow_batch_queued",
            "Items that wait to be sent",
            now.queued,
        ),
        (
            Kind::Gauge,
            "tower_flow_batch_in_flight",
            "Batches in flight",
            now.in_flight,
        ),
        (
            Kind::Gauge,
            "tower_flow_batch_shards",
            "Shards with items that wait or batches in flight",
            now.shards,
        ),
    ] {
        families
            .family(kind, family, help)
            .push(name.clone(), value);
    }
    for (family, help, measure) in [
        (
            "tower_flow_batch_size",
            "Requests of a batch",
            Measure::Size,
        ),
        (
            "tower_flow_batch_weight",
            "Weight of a batch",
            Measure::Weight,
        ),
        (
            "tower_flow_batch_wait_seconds",
            "From when an item was accepted until its batch was sent",
            Measure::Wait,
        ),
        (
            "tower_flow_batch_seconds",
            "From when a batch was sent until it was answered",
            Measure::Batch,
        ),
    ] {
        let family = families.family(Kind::Histogram, family, help);
        family.push(name.clone(), state.stats.histogram(measure));
    }
}
