//! What an item costs that is alone: a batch of one each time.

use tower_flow::batch::BatchLayer;
use tower_layer::Layer;

use crate::support;
use crate::support::batch::{Floor, Tower, Ways, print as print_costs};

const ITEMS: usize = 10_000;

pub fn print() {
    let rounds = support::rounds();
    let costs = ways().measure(rounds, 1, ITEMS);
    println!(
        "One submitter, which sends one item after the other: a batch of one each time, and for ours a task. Medians of {rounds} rounds of {ITEMS} in \
         turn; own work is over the backend itself.\n"
    );
    print_costs("alone", &costs);
}

fn ways() -> Ways {
    let mut ways = Ways::new();
    ways.add("bare: no batches", Tower);
    ways.add("floor", |backend| Floor::new(backend, 100));
    ways.add("batch", |backend| Tower(BatchLayer::new().layer(backend)));
    ways.add("batch, caller-driven", |backend| {
        Tower(BatchLayer::new().caller_driven().layer(backend))
    });
    ways
}
