//! A fixed number of callers, each with one item out at a time.

use tower_flow::batch::BatchLayer;
use tower_layer::Layer;

use crate::server::{
    Answered, Micros, Price, SECOND, Server, Unbatched, closed, lasts, simulated, throughput,
    waited,
};
use crate::support::yes;

const PRICE: Price = Price {
    batch: 1_000,
    item: 10,
};
const CALLERS: [u64; 5] = [1, 4, 16, 64, 256];
const MOST: [usize; 5] = [1, 4, 16, 64, 256];
const LINGER: [Micros; 3] = [0, 1_000, 5_000];
const LAST: Micros = 2 * SECOND;

pub fn print() {
    println!(
        "A server that takes {} ms for a batch and {} µs for each of its items, one batch at a time; callers with one item out each. \
         Items a second, median and 99th percentile of the wait in ms, items a call; {} s of simulated time.\n",
        PRICE.batch / 1_000,
        PRICE.item,
        LAST / SECOND
    );
    let mut worst = f64::MAX;
    let mut at = (0, 0);
    for linger in LINGER {
        let columns = MOST.map(|most| format!("max_items {most}")).join(" | ");
        println!(
            "| closed loop, max_delay {} ms | unbatched | {columns} |",
            linger / 1_000
        );
        println!("|---:|---:|---:|---:|---:|---:|---:|");
        for callers in CALLERS {
            let (alone, _) = run(callers, None);
            let cells = MOST.map(|most| {
                let (shown, rate) = run(callers, Some((most, linger)));
                let part = rate / PRICE.capacity(callers.min(most as u64));
                if linger == 0 && part < worst {
                    (worst, at) = (part, (callers, most));
                }
                shown
            });
            println!("| {callers} callers | {alone} | {} |", cells.join(" | "));
        }
        println!();
    }
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| without a delay at least 0.95 of what full batches, or all callers in one, would do | {}: {worst:.3} at least, with {} callers and max_items {} |",
        yes(worst >= 0.95),
        at.0,
        at.1
    );
}

fn run(callers: u64, batched: Option<(usize, Micros)>) -> (String, f64) {
    let server = Server::new(PRICE);
    let all = simulated(async {
        match batched {
            None => closed(Unbatched(server.clone()), callers, LAST).await,
            Some((most, linger)) => {
                let layer = BatchLayer::new().max_items(most).max_delay(lasts(linger));
                closed(layer.layer(server.clone()), callers, LAST).await
            }
        }
    });
    show(&all, &server)
}

fn show(all: &[Answered], server: &Server) -> (String, f64) {
    let (from, to) = (LAST / 10, LAST);
    let rate = throughput(all, from, to);
    let (calls, items) = server.served();
    let shown = format!(
        "{rate:.0} · {:.2} / {:.2} · {:.1}",
        waited(all, from, to, 0.5),
        waited(all, from, to, 0.99),
        items as f64 / calls as f64
    );
    (shown, rate)
}
