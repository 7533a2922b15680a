//! Very many calls out at once: what each takes of memory, and whether another costs more for them.

use std::pin::Pin;
use std::task::{Context, Waker};

use tower_flow::coalesce::CoalesceLayer;
use tower_layer::Layer;
use tower_service::Service;

use crate::support::coalesce::Gated;
use crate::support::{self, cpu, held, median, yes};

const MOST: usize = 100_000;
const FEW: usize = 1_000;
const MANY: usize = 60_000;
/// How many join on top of those.
const MORE: usize = 1_000;

pub fn print() {
    let rounds = support::rounds();
    let layer = || CoalesceLayer::new(|key: &u64| Some(*key)).max_keys(2 * MOST);

    // What they hold, less the futures their callers hold and the backend's own.
    let service = layer().layer(Gated::default());
    let mut out = Out::new(service, MOST);
    let before = held();
    out.join(MOST);
    let full = held() - before;
    out.leave(MOST);
    let after = held() - before;
    drop(out);

    let mut few = Out::new(layer().layer(Gated::default()), FEW + MORE);
    let mut many = Out::new(layer().layer(Gated::default()), MANY + MORE);
    few.join(FEW);
    many.join(MANY);
    let mut times = [const { (Vec::new(), Vec::new()) }; 2];
    for round in 0..rounds + 2 {
        for (out, (joins, leaves)) in [&mut few, &mut many].into_iter().zip(&mut times) {
            let start = cpu();
            out.join(MORE);
            let joined = cpu() - start;
            out.leave(MORE);
            let left = cpu() - start - joined;
            if round >= 2 {
                joins.push(joined.as_secs_f64() * 1e9 / MORE as f64);
                leaves.push(left.as_secs_f64() * 1e9 / MORE as f64);
            }
        }
    }
    println!(
        "Keys in flight, a caller each, and {MORE} more that join and leave again: medians of {rounds} rounds in turn.\n"
    );
    println!("| in flight | join, ns | leave, ns |");
    println!("|---:|---:|---:|");
    let [few, many] = times.map(|(joins, leaves)| (median(joins), median(leaves)));
    println!("| {FEW} | {:.0} | {:.0} |", few.0, few.1);
    println!("| {MANY} | {:.0} | {:.0} |", many.0, many.1);
    println!();
    println!("| in flight | bytes for each | bytes for each when they are over |");
    println!("|---:|---:|---:|");
    println!(
        "| {MOST} | {:.0} | {:.0} |",
        full as f64 / MOST as f64,
        after as f64 / MOST as f64
    );
    println!();
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| a key costs the same among {MANY} as among {FEW}, but for misses of the cache: at most 2 × | {}: {:.2} × |",
        yes(many.0 <= 2.0 * few.0),
        many.0 / few.0
    );
    println!(
        "| at most 1 KiB for each | {}: {:.0} bytes |",
        yes(full as f64 <= 1024.0 * MOST as f64),
        full as f64 / MOST as f64
    );
}

/// Calls that are out, each of its own key.
struct Out<S: Service<u64>> {
    service: S,
    slots: Vec<Pin<Box<Option<S::Future>>>>,
    next: u64,
    out: usize,
}

impl<S: Service<u64>> Out<S> {
    fn new(service: S, most: usize) -> Self {
        Self {
            service,
            slots: (0..most).map(|_| Box::pin(None)).collect(),
            next: 0,
            out: 0,
        }
    }

    fn join(&mut self, more: usize) {
        let mut cx = Context::from_waker(Waker::noop());
        for slot in &mut self.slots[self.out..self.out + more] {
            self.next += 1;
            slot.set(Some(self.service.call(self.next)));
            let future = slot.as_mut().as_pin_mut().expect("it was set");
            assert!(future.poll(&mut cx).is_pending());
        }
        self.out += more;
    }

    fn leave(&mut self, less: usize) {
        self.out -= less;
        for slot in &mut self.slots[self.out..self.out + less] {
            slot.set(None);
        }
    }
}
