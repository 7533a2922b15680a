//! Whether two threads get twice as much done: no key is common, all else of the layer is.

use tower_flow::coalesce::CoalesceLayer;
use tower_layer::Layer;

use crate::support::coalesce::{Floor, at_once, workers};
use crate::support::plain::Bare;
use crate::support::{self, median, yes};

const CALLS: usize = 100_000;

pub fn print() {
    let bare = Bare;
    let floor = Floor::new(Bare, |key: &u64| *key);
    let coalesce = CoalesceLayer::new(|key: &u64| Some(*key)).layer(Bare);
    let nobody = CoalesceLayer::new(|_: &u64| None::<u64>).layer(Bare);
    let drive = |work: std::pin::Pin<&mut dyn Future<Output = ()>>| at_once(work);
    type Row<'a> = (&'a str, Box<dyn Fn(usize) -> f64 + 'a>);
    let rows: [Row<'_>; 4] = [
        (
            "bare",
            Box::new(|threads| workers(&bare, threads, CALLS, drive)),
        ),
        (
            "floor",
            Box::new(|threads| workers(&floor, threads, CALLS, drive)),
        ),
        (
            "coalesce",
            Box::new(|threads| workers(&coalesce, threads, CALLS, drive)),
        ),
        (
            "bypassed",
            Box::new(|threads| workers(&nobody, threads, CALLS, drive)),
        ),
    ];
    let rounds = support::rounds().div_ceil(3);
    let mut times = [const { [const { Vec::new() }; 2] }; 4];
    for _ in 0..rounds {
        for ((_, work), [alone, together]) in rows.iter().zip(&mut times) {
            alone.push(work(1));
            together.push(work(2));
        }
    }
    println!(
        "{CALLS} keys for each thread, on clones of one service, {rounds} rounds in turn. Whoever else is on the machine \
         takes more from two threads than from one: the least is worth more here than the median.\n"
    );
    println!(
        "| contention | 1 thread, ns, median | least | 2 threads, ns per worker, median | least | scaling of the least |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let mut ours = 0.0;
    for ((name, _), [alone, together]) in rows.iter().zip(times) {
        let least = |times: &[f64]| times.iter().copied().fold(f64::MAX, f64::min);
        let (one, two) = (least(&alone), least(&together));
        let scaling = 2.0 * one / two;
        println!(
            "| {name} | {:.0} | {one:.0} | {:.0} | {two:.0} | {scaling:.2} |",
            median(alone),
            median(together)
        );
        if *name == "coalesce" {
            ours = scaling;
        }
    }
    println!();
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| two threads do at least 1.7 times as much | {}: {ours:.2} |",
        yes(ours >= 1.7)
    );
}
