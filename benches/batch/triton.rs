//! What Triton's guide shows for its dynamic batching, with a server that takes as long as its model.

use tower_flow::batch::BatchLayer;
use tower_layer::Layer;

use crate::server::{
    Micros, Price, SECOND, Server, Unbatched, closed, simulated, throughput, waited,
};
use crate::support::yes;

/// Fitted to the published figures.
const PRICE: Price = Price {
    batch: 13_300,
    item: 360,
};
const CALLERS: [u64; 5] = [1, 2, 4, 8, 16];
/// What the model takes at most, what a user might set, and the default.
const MOST: [usize; 3] = [4, 8, 64];
const LAST: Micros = 60 * SECOND;

pub fn print() {
    println!(
        "A server that takes {:.1} ms for a batch and {:.2} ms for each of its items, one batch at a time, as fitted to Triton's \
         `docs/user_guide/optimization.md` (inception_graphdef, at most 4 in a batch): without batching 73.4 a second, with \
         `dynamic_batching {{}}` 165.2 at 4 callers (p95 33.0 ms) and 272 at 8 (p95 36.0 ms), 3.7 times as many. Items a second and p95 in ms.\n",
        PRICE.batch as f64 / 1e3,
        PRICE.item as f64 / 1e3
    );
    let columns = MOST
        .map(|most| format!("max_items {most} | gain"))
        .join(" | ");
    println!("| callers | unbatched | {columns} |");
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    let mut gain = 0.0;
    for callers in CALLERS {
        let (alone, wait) = run(callers, None);
        let cells = MOST.map(|most| {
            let (rate, wait) = run(callers, Some(most));
            if (callers, most) == (8, 4) {
                gain = rate / alone;
            }
            format!("{rate:.1} · {wait:.1} | {:.2} ×", rate / alone)
        });
        println!(
            "| {callers} | {alone:.1} · {wait:.1} | {} |",
            cells.join(" | ")
        );
    }
    println!();
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| 8 callers, at most 4 items: at least 3.7 × | {}: {gain:.3} × |",
        yes(gain >= 3.7)
    );
}

fn run(callers: u64, most: Option<usize>) -> (f64, f64) {
    let server = Server::new(PRICE);
    let all = simulated(async {
        match most {
            None => closed(Unbatched(server), callers, LAST).await,
            Some(most) => {
                let layer = BatchLayer::new().max_items(most);
                closed(layer.layer(server), callers, LAST).await
            }
        }
    });
    let (from, to) = (LAST / 10, LAST);
    (throughput(&all, from, to), waited(&all, from, to, 0.95))
}
