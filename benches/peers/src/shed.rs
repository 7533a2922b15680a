//! Table 2: what admission control costs over a bare service, without HTTP.

use std::time::Duration;

use tower::limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer};
use tower::load_shed::LoadShedLayer;
use tower_flow::shed::{Queue, ShedLayer};
use tower_layer::{Layer, Stack};

use crate::support::plain::{Bare, Hand, Rows};
use crate::{paths, support};

/// So few that most slices see nobody else on the processor.
const CALLS: usize = 5_000;
/// Never reached.
const LIMIT: usize = 1 << 20;

pub fn print() {
    let mut rows = Rows::default();
    rows.add("bare", Bare);
    floors(&mut rows);
    ours(&mut rows);
    peers(&mut rows);
    let rounds = 10 * support::rounds();
    println!("## Admission control, in memory\n");
    println!(
        "Nanoseconds over a bare service that answers at once, lower quartile of {rounds} rounds of {CALLS} calls in \
         turn; all are admitted. Two workers, on a processor each, call a clone for every request.\n"
    );
    rows.print(rounds, CALLS, support::allocations);
    println!(
        "\nAdaptive limits time every request up to 20,000 a second and a sample above, as here; \"every one timed\" is \
         what a slower service pays. The floors count in one shared atomic, decide in `call`, and clone one `Arc`.\n"
    );
    paths::print(rounds);
}

fn floors(rows: &mut Rows) {
    rows.add("floor: one atomic", Hand::new(0));
    rows.add("floor, adaptive: and two clock readings", Hand::new(2));
}

fn ours(rows: &mut Rows) {
    rows.add("tower-flow, fixed", ShedLayer::fixed(LIMIT).layer(Bare));
    rows.add(
        "tower-flow, fixed, no queue",
        ShedLayer::fixed(LIMIT).queue(Queue::none()).layer(Bare),
    );
    rows.add("tower-flow, adaptive", ShedLayer::adaptive().layer(Bare));
    rows.add(
        "tower-flow, adaptive, no queue",
        ShedLayer::adaptive().queue(Queue::none()).layer(Bare),
    );
    rows.add("tower-flow, adaptive, every one timed", timed().layer(Bare));
}

/// A paused algorithm goes on timing as it did: everything, at first.
pub fn timed() -> ShedLayer {
    let layer = ShedLayer::adaptive();
    layer.handle().pause(true);
    layer
}

fn peers(rows: &mut Rows) {
    let global = GlobalConcurrencyLimitLayer::new(LIMIT);
    rows.add(
        "tower 0.5, LoadShed + GlobalConcurrencyLimit",
        Stack::new(global, LoadShedLayer::new()).layer(Bare),
    );
    let limit = ConcurrencyLimitLayer::new(LIMIT);
    rows.add(
        "tower 0.5, LoadShed + ConcurrencyLimit",
        Stack::new(limit, LoadShedLayer::new()).layer(Bare),
    );
    rows.add(
        "tower-acc 0.1, Vegas",
        tower_acc::ConcurrencyLimitLayer::new(tower_acc::Vegas::default()).layer(Bare),
    );
    rows.add(
        "tower-acc 0.1, AIMD",
        tower_acc::ConcurrencyLimitLayer::new(tower_acc::Aimd::default()).layer(Bare),
    );
    let aimd = tower_resilience_adaptive::Aimd::builder().build();
    rows.add(
        "tower-resilience-adaptive 0.14, AIMD",
        tower_resilience_adaptive::AdaptiveLimiterLayer::new(aimd.expect("the defaults"))
            .layer(Bare),
    );
    let bulkhead = tower_resilience_bulkhead::BulkheadLayer::builder()
        .max_concurrent_calls(LIMIT)
        .build();
    rows.add(
        "tower-resilience-bulkhead 0.14",
        bulkhead.expect("a limit").layer(Bare),
    );
    rows.add(
        "little-loadshedder 0.2",
        little_loadshedder::LoadShedLayer::new(0.25, Duration::from_millis(100)).layer(Bare),
    );
}
