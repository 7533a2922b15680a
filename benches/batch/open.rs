//! Items that come when they come, whatever becomes of those before.

use tower_flow::batch::BatchLayer;
use tower_layer::Layer;

use crate::server::{
    Answered, Micros, Price, SECOND, Server, Unbatched, ideal, lasts, open, poisson, simulated,
    throughput, waited,
};
use crate::support::{self, median, yes};

const PRICE: Price = Price {
    batch: 1_000,
    item: 10,
};
/// Of what the server can do one by one.
const LOADS: [f64; 5] = [0.2, 0.8, 2.0, 20.0, 35.0];
const MOST: usize = 64;
const LINGER: Micros = 5_000;
const LAST: Micros = 10 * SECOND;
const WARM: Micros = SECOND;

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Ideal,
    Unbatched,
    Batched(Micros),
}

const WAYS: [(&str, Way); 4] = [
    ("ideal", Way::Ideal),
    ("unbatched", Way::Unbatched),
    ("batch", Way::Batched(0)),
    ("batch, max_delay 5 ms", Way::Batched(LINGER)),
];

/// What one way makes of one load, a figure for each seed.
#[derive(Default)]
struct Row {
    throughput: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// Of the last third over the first.
    growth: Vec<f64>,
    items: Vec<f64>,
}

pub fn print() {
    let seeds = support::rounds().div_ceil(12).max(3) as u64;
    println!(
        "The same server, items by Poisson's law, {seeds} seeds of {} s of simulated time: medians of the seeds. Loads are in parts of the {:.0} \
         items a second it does one by one; with {MOST} in each batch it does {:.1} times as many. The ideal takes all that wait, up to \
         {MOST}, whenever the server is free. Growth: the 99th percentile of the last third over that of the first.\n",
        LAST / SECOND,
        PRICE.capacity(1),
        PRICE.capacity(MOST as u64) / PRICE.capacity(1),
    );
    println!("| load | | items/s | of the ideal | p50, ms | p99, ms | growth | items a call |");
    println!("|---:|---|---:|---:|---:|---:|---:|---:|");
    let rows: Vec<_> = LOADS.map(|load| rows(load, seeds)).into();
    for (load, rows) in LOADS.iter().zip(&rows) {
        for ((name, _), row) in WAYS.iter().zip(rows) {
            let Some(row) = row else { continue };
            let ideal = rows[0].as_ref().expect("it runs at every load");
            println!(
                "| {load} × | {name} | {:.0} | {:.3} | {:.2} | {:.2} | {:.2} | {:.1} |",
                row.middle(|row| &row.throughput),
                row.over(ideal, |row| &row.throughput),
                row.middle(|row| &row.p50),
                row.middle(|row| &row.p99),
                row.middle(|row| &row.growth),
                row.middle(|row| &row.items),
            );
        }
    }
    println!();

    let row = |load: usize, way: usize| rows[load][way].as_ref().expect("it was run");
    println!("| target | reached |");
    println!("|---|---|");
    let pairs = row(0, 2).p50.iter().zip(&row(0, 1).p50);
    let added = pairs.map(|(batched, alone)| batched - alone);
    let added = added.fold(f64::MIN, f64::max);
    println!(
        "| at 0.2 ×: batching adds at most 0.02 ms to the median, whatever the seed | {}: {added:+.3} |",
        yes(added <= 0.02)
    );
    let lingered = row(0, 3).middle(|row| &row.p50) - row(0, 1).middle(|row| &row.p50);
    println!(
        "| and max_delay about what it is, {} ms at most | {}: {lingered:+.2} |",
        LINGER / 1_000,
        yes((1.0..=LINGER as f64 / 1e3).contains(&lingered))
    );
    for (load, name) in [(2, "2"), (3, "20"), (4, "35")] {
        let (batched, ideal) = (row(load, 2), row(load, 0));
        let parts = batched.throughput.iter().zip(&ideal.throughput);
        let part = parts.map(|(a, b)| a / b).fold(f64::MAX, f64::min);
        println!(
            "| at {name} ×: at least 0.95 of the ideal, whatever the seed | {}: {part:.3} |",
            yes(part >= 0.95)
        );
        let most = batched.growth.iter().copied().fold(0.0, f64::max);
        let limit = 1.15 * ideal.growth.iter().copied().fold(1.0, f64::max);
        println!(
            "| and a flat p99: grows no more than 1.15 × that of the ideal | {}: {most:.2} × at most |",
            yes(most <= limit)
        );
    }
    let grows = row(2, 1).middle(|row| &row.growth);
    println!(
        "| unbatched at 2 ×: the wait grows and grows | {}: {grows:.1} × |",
        yes(grows > 2.0)
    );
}

fn rows(load: f64, seeds: u64) -> [Option<Row>; 4] {
    let rate = load * PRICE.capacity(1);
    WAYS.map(|(_, way)| {
        // Twice what it can do is enough to see that it diverges.
        if way == Way::Unbatched && load > 2.0 {
            return None;
        }
        let mut row = Row::default();
        for seed in 1..=seeds {
            let arrivals = poisson(rate, LAST, 0x9E37_79B9 * seed);
            let server = Server::new(PRICE);
            let all = match way {
                Way::Ideal => ideal(PRICE, MOST, &arrivals),
                Way::Unbatched => simulated(open(Unbatched(server.clone()), &arrivals)),
                Way::Batched(linger) => simulated(async {
                    let layer = BatchLayer::new().max_items(MOST).max_delay(lasts(linger));
                    open(layer.layer(server.clone()), &arrivals).await
                }),
            };
            row.add(&all, &server);
        }
        Some(row)
    })
}

impl Row {
    fn add(&mut self, all: &[Answered], server: &Server) {
        let third = (LAST - WARM) / 3;
        let p99 = |from, to| waited(all, from, to, 0.99);
        self.throughput.push(throughput(all, WARM, LAST));
        self.p50.push(waited(all, WARM, LAST, 0.5));
        self.p99.push(p99(WARM, LAST));
        self.growth
            .push(p99(LAST - third, LAST) / p99(WARM, WARM + third));
        let (calls, items) = server.served();
        let batches = match calls {
            // The ideal has no server: who is answered at the same time was in one batch.
            0 => {
                let mut ends: Vec<_> = all.iter().map(|one| one.answered).collect();
                ends.dedup();
                ends.len() as u64
            }
            _ => calls,
        };
        self.items
            .push(items.max(all.len() as u64) as f64 / batches as f64);
    }

    fn middle(&self, of: fn(&Self) -> &[f64]) -> f64 {
        median(of(self).iter().copied())
    }

    /// In parts of the other's.
    fn over(&self, other: &Self, of: fn(&Self) -> &[f64]) -> f64 {
        let pairs = of(self).iter().zip(of(other));
        median(pairs.map(|(this, other)| this / other))
    }
}
