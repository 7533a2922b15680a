//! What the pool itself costs a request, without HTTP. Other pools stand beside it in benches/peers.

use crate::server::runtime;
use crate::support::checkout::Ways;
use crate::support::{self, yes};

pub fn print() {
    let runtime = runtime();
    let costs = Ways::ours(&runtime).print(support::rounds());
    let ours = costs[1];
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| checkout and return ≤ 300 ns on one thread | {}: {:.0} ns |",
        yes(ours.alone <= 300.0),
        ours.alone
    );
    println!(
        "| no allocation | {}: {:.1} |",
        yes(ours.allocations == 0.0),
        ours.allocations
    );
}

pub fn walk(name: &str, times: usize) {
    Ways::ours(&runtime()).walk(name, times);
}
