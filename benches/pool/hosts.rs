//! A pool that knows many hosts: what a request costs then, and what each host takes of memory.

use http::Uri;
use tokio::runtime::Runtime;
use tower_flow::pool::ConnPool;
use tower_flow::pool::bench::Checkout;

use crate::server::runtime;
use crate::support::checkout::{Ways, idle};
use crate::support::{self, held, yes};

const KNOWN: usize = 10_000;
const OPEN: usize = 1_000;

pub fn print() {
    let runtime = runtime();
    let one = uri(0);
    let small = idle(&runtime, std::slice::from_ref(&one), 1);
    let (large, bytes) = grown(&runtime);

    let mut ways = Ways::default();
    ways.add("1 host known, 1 connection open", move |times| {
        for _ in 0..times {
            drop(small.get(&one).expect("it is idle"));
        }
    });
    let (pool, last) = (large.clone(), uri(KNOWN - 1));
    ways.add("10,000 known, 1,000 open, the same again", move |times| {
        for _ in 0..times {
            drop(pool.get(&last).expect("it is idle"));
        }
    });
    let open: Vec<_> = (KNOWN - OPEN..KNOWN).map(uri).collect();
    ways.add(
        "10,000 known, 1,000 open, each of those in turn",
        move |times| {
            for n in 0..times {
                // Not in the order in which they lie in memory.
                drop(large.get(&open[n * 7 % OPEN]).expect("it is idle"));
            }
        },
    );
    let costs = ways.print_alone(support::rounds());

    println!("| hosts asked for | known | bytes for each known |");
    println!("|---:|---:|---:|");
    for (asked, bytes) in &bytes {
        let known = (*asked).min(KNOWN);
        println!(
            "| {asked} | {known} | {:.0} |",
            *bytes as f64 / known as f64
        );
    }
    println!();
    let ratio = costs[1].alone / costs[0].alone;
    let bounded = bytes[2].1 as f64 / bytes[1].1 as f64;
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| 10,000 hosts known, 1,000 open: a request costs what it does with one | {}: {ratio:.2}×; {:.2}× each in turn |",
        yes(ratio <= 1.1),
        costs[2].alone / costs[0].alone
    );
    println!(
        "| memory is bounded | {}: {bounded:.2}× after five times as many hosts |",
        yes(bounded <= 1.05)
    );
}

fn uri(n: usize) -> Uri {
    let uri = format!("http://host-{n}.example.internal:8080/a/path");
    uri.parse().expect("a URI")
}

/// A pool that asked for `KNOWN` hosts, has connections to the last of them, and what it took of memory when it had
/// asked for so many and nothing was open.
fn grown(runtime: &Runtime) -> (Checkout, Vec<(usize, i64)>) {
    let mut bytes = Vec::new();
    // The first shows what it takes; the last is for those that measure.
    for asked in [OPEN, KNOWN, 5 * KNOWN] {
        let before = held();
        let pool = pool();
        ask(runtime, &pool, 0..asked);
        shut(runtime, &pool);
        bytes.push((asked, held() - before));
    }
    let pool = pool();
    ask(runtime, &pool, 0..KNOWN);
    assert_eq!(pool.open(), OPEN);
    (pool, bytes)
}

fn pool() -> Checkout {
    let builder = ConnPool::builder(())
        .max_connections(OPEN)
        .max_idle(OPEN)
        .max_hosts(KNOWN);
    Checkout::new(builder)
}

fn ask(runtime: &Runtime, pool: &Checkout, hosts: std::ops::Range<usize>) {
    for n in hosts {
        if n % OPEN == 0 {
            shut(runtime, pool);
        }
        let there = runtime.block_on(pool.warm(&uri(n), 1));
        assert_eq!(there.expect("nothing to fail"), 1);
    }
}

fn shut(runtime: &Runtime, pool: &Checkout) {
    pool.close_idle();
    runtime.block_on(async {
        while pool.open() > 0 {
            tokio::task::yield_now().await;
        }
    });
}
