//! How long a snapshot takes, and how large it is.

use std::time::Duration;

use tower_flow::metrics::Format;

use crate::busy::Busy;
use crate::support::{bounded, cpu, median, rounds, yes};

pub fn print() {
    let busy = Busy::new(200);
    let layers = busy.flow.attached();
    let mut taken: [Vec<f64>; 4] = Default::default();
    let mut sizes = (0, 0);
    for _ in 0..rounds() {
        busy.call_all();
        let timed = |work: &mut dyn FnMut()| {
            let start = cpu();
            work();
            cpu() - start
        };
        let took: [Duration; 4] = [
            timed(&mut || layers.iter().for_each(|layer| drop(layer.vitals()))),
            timed(&mut || layers.iter().for_each(|layer| drop(layer.snapshot()))),
            timed(&mut || sizes.0 = busy.flow.snapshot().to_string().len()),
            timed(&mut || sizes.1 = busy.flow.encode(Format::Classic).len()),
        ];
        for (taken, took) in taken.iter_mut().zip(took) {
            taken.push(took.as_secs_f64() * 1e3);
        }
    }
    let [vitals, snapshots, json, metrics] = taken.map(median);
    println!("### 200 routes and 50 hosts\n");
    println!("| what | ms of a core, median | KB | reached |\n|---|---:|---:|---|");
    println!("| the vitals of all layers | {vitals:.2} | | |");
    println!(
        "| their snapshots | {snapshots:.2} | | 2 ms: {} |",
        yes(snapshots <= 2.0)
    );
    println!(
        "| /snapshot.json, written | {json:.2} | {:.0} | 2 ms: {} |",
        sizes.0 as f64 / 1e3,
        yes(json <= 2.0)
    );
    println!(
        "| /metrics, written | {metrics:.2} | {:.0} | |",
        sizes.1 as f64 / 1e3
    );
    bounded("the snapshots of all layers, ms", snapshots, 2.0);
    bounded("/snapshot.json, ms", json, 2.0);
}
