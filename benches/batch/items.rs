//! What an item costs that is one of many.

use std::time::Duration;

use tower_flow::batch::BatchLayer;
use tower_flow::deadline::Deadline;
use tower_layer::Layer;

use crate::support::batch::{Echoes, Floor, Tower, Ways, Woken, print as print_costs};
use crate::support::{self, yes};

const SUBMITTERS: usize = 200;
const MOST: usize = 100;
/// From each submitter in a round.
const ITEMS: usize = 250;

pub fn print() {
    let rounds = support::rounds();
    let costs = ways().measure(rounds, SUBMITTERS, ITEMS);
    println!(
        "{SUBMITTERS} submitters, each of them a task that sends one item after the other, at most {MOST} items a batch, over a backend \
         that answers at once: medians of {rounds} rounds of {} items in turn. One thread: its processor time. Two workers, a processor \
         each: the time that passes, and that of both processors. Own work: over submitters that wake themselves once for each item.\n",
        SUBMITTERS * ITEMS
    );
    print_costs("items", &costs);
    println!();
    let ours = &costs[2];
    let own = ours.over(&costs[0], |cost| &cost.alone);
    let allocations = ours.allocations - costs[0].allocations;
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| at most 300 ns of own work | {}: {own:.0} |",
        yes(own <= 300.0)
    );
    println!(
        "| at most 1 allocation | {}: {allocations:.2} |",
        yes(allocations <= 1.0)
    );
}

pub fn walk(name: &str, submitters: usize, items: usize) {
    ways().walk(name, submitters, items);
}

pub fn ways() -> Ways {
    let mut ways = Ways::new();
    ways.add("harness", |_| Woken);
    ways.add("floor", |backend| Floor::new(backend, MOST));
    let layer = || BatchLayer::new().max_items(MOST);
    ways.add("batch", |backend| Tower(layer().layer(backend)));
    ways.add("batch, caller-driven", |backend| {
        Tower(layer().caller_driven().layer(backend))
    });
    ways.add("batch, max_delay 1 ms", |backend| {
        Tower(layer().max_delay(Duration::from_millis(1)).layer(backend))
    });
    ways.add("batch, max_weight", |backend| {
        Tower(layer().max_weight(|_| 1, 10 * MOST).layer(backend))
    });
    ways.add("batch, deadline", |backend: Echoes| {
        let hour = Deadline::at(tokio::time::Instant::now() + Duration::from_secs(3_600));
        let deadline = move |_: &u64| Some(hour);
        Tower(layer().deadline(deadline, Duration::ZERO).layer(backend))
    });
    ways.add("batch, shard_by, 10 shards", |backend| {
        let shard = |item: &u64| (item >> 32) % 10;
        Tower(layer().shard_by(shard).layer(backend))
    });
    ways.add("batch, dedup_by, all distinct", |backend| {
        Tower(layer().dedup_by(|item: &u64| *item).layer(backend))
    });
    ways.add("batch, dedup_by, about 200 equal", |backend| {
        let key = |item: &u64| item & u64::from(u32::MAX);
        Tower(layer().dedup_by(key).layer(backend))
    });
    ways
}
