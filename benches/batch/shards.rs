//! Very many shards: what each takes of memory while something of it waits, what is left of it when nothing does, and
//! whether an item costs more for the others.

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tower_flow::batch::{BatchHandle, BatchLayer};
use tower_layer::Layer;
use tower_service::Service;

use crate::server::Sent;
use crate::support::batch::Echoes;
use crate::support::{self, cpu, held, median, yes};

const OPEN: [usize; 3] = [10, 1_000, 100_000];
/// How many items join in a round, one each to as many shards if there are.
const ITEMS: usize = 1_000;
const LONG: Duration = Duration::from_secs(3_600);

pub fn print() {
    let rounds = support::rounds();
    let memory: Vec<_> = OPEN[1..].iter().map(|open| Memory::of(*open)).collect();
    let mut all: Vec<_> = OPEN.iter().map(|open| waiting(*open)).collect();
    let mut times = vec![(Vec::new(), Vec::new()); OPEN.len()];
    for round in 0..rounds + 2 {
        for (waiting, (pairs, churns)) in all.iter_mut().zip(&mut times) {
            let start = cpu();
            waiting.pairs();
            let paired = cpu() - start;
            waiting.churn();
            let churned = cpu() - start - paired;
            if round >= 2 {
                pairs.push(paired.as_secs_f64() * 1e9 / (2 * ITEMS) as f64);
                churns.push(churned.as_secs_f64() * 1e9 / ITEMS as f64);
            }
        }
    }
    println!(
        "Shards in each of which an item waits for an hour, and a second one that fills its batch: it is sent, both are answered, and the \
         next begins to wait. And items of new shards that come and are cancelled. Driven by hand on one thread, medians of {rounds} rounds of \
         {ITEMS} in turn.\n"
    );
    println!("| shards | sent and answered, ns an item | new and cancelled, ns an item |");
    println!("|---:|---:|---:|");
    let times: Vec<_> = times
        .into_iter()
        .map(|(pairs, churns)| (median(pairs), median(churns)))
        .collect();
    for (open, (pairs, churns)) in OPEN.iter().zip(&times) {
        println!("| {open} | {pairs:.0} | {churns:.0} |");
    }
    println!();
    println!(
        "| shards | in each waits | bytes for each | when they are answered | when they come again | and are cancelled | shards left |"
    );
    println!("|---:|---|---:|---:|---:|---:|---:|");
    for one in &memory {
        println!(
            "| {} | 1 item | {:.0} | {:.1} | {:.0} | {:.1} | {} |",
            one.shards, one.full, one.answered, one.again, one.cancelled, one.left
        );
    }
    println!();
    let last = memory.last().expect("some are measured");
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| an item costs the same among {} shards as among {}, but for misses of the cache: at most 3 × | {}: {:.2} × |",
        OPEN[2],
        OPEN[1],
        yes(times[2].0 <= 3.0 * times[1].0),
        times[2].0 / times[1].0
    );
    println!(
        "| at most 2 KiB for a shard with one item, its task and its timer | {}: {:.0} bytes |",
        yes(last.full <= 2048.0),
        last.full
    );
    println!(
        "| back to where it was when they are idle: at most 1 % is left, and no shard | {}: {:.2} %, {} |",
        yes(last.answered.max(last.cancelled) <= 0.01 * last.full && last.left == 0),
        100.0 * last.answered.max(last.cancelled) / last.full,
        last.left
    );
}

/// Bytes for each shard.
struct Memory {
    shards: usize,
    full: f64,
    answered: f64,
    again: f64,
    cancelled: f64,
    left: u64,
}

impl Memory {
    fn of(shards: usize) -> Self {
        let (mut out, handle) = out(shards, 0);
        let before = held();
        let each = || (held() - before) as f64 / shards as f64;
        out.fill(shards);
        let full = each();
        handle.flush();
        out.run();
        for slot in 0..shards {
            out.answered(slot);
        }
        let answered = each();
        out.fill(shards);
        let again = each();
        for slot in 0..shards {
            out.leave(slot);
        }
        out.run();
        Self {
            shards,
            full,
            answered,
            again,
            cancelled: each(),
            left: handle.snapshot().shards,
        }
    }
}

/// Shards in each of which an item waits for a second.
struct Waiting<S: Service<u64>> {
    out: Out<S>,
    shards: usize,
    next: usize,
    fresh: u64,
}

impl<S: Sent> Waiting<S> {
    /// In turn, so many at a time as there are shards.
    fn pairs(&mut self) {
        let mut left = ITEMS;
        while left > 0 {
            let many = left.min(self.shards);
            let first = self.next;
            let shard = |n: usize| (first + n) % self.shards;
            for n in 0..many {
                self.out.join(self.shards + n, shard(n) as u64);
            }
            self.out.run();
            for n in 0..many {
                self.out.answered(self.shards + n);
                self.out.answered(shard(n));
                self.out.join(shard(n), shard(n) as u64);
            }
            self.out.run();
            self.next = shard(many);
            left -= many;
        }
    }

    fn churn(&mut self) {
        for n in 0..ITEMS {
            self.fresh += 1;
            self.out.join(self.shards + n, self.fresh);
        }
        self.out.run();
        for n in 0..ITEMS {
            self.out.leave(self.shards + n);
        }
        self.out.run();
    }
}

fn waiting(shards: usize) -> Waiting<impl Sent> {
    // Those that wait, and those that join.
    let (mut out, _) = out(shards, ITEMS);
    out.fill(shards);
    Waiting {
        out,
        shards,
        next: 0,
        fresh: shards as u64,
    }
}

/// Items that are out, driven by hand.
struct Out<S: Service<u64>> {
    // Before the runtime, whose tasks it may end.
    slots: Vec<Pin<Box<Option<S::Future>>>>,
    service: S,
    runtime: Runtime,
}

fn out(shards: usize, more: usize) -> (Out<impl Sent>, BatchHandle) {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_time().build().expect("a runtime");
    let layer = BatchLayer::new()
        .max_items(2)
        .max_delay(LONG)
        .max_in_flight(shards + more, 1)
        .queue(2 * (shards + more), usize::MAX)
        .shard_by(|shard: &u64| *shard);
    let out = Out {
        slots: (0..shards + more).map(|_| Box::pin(None)).collect(),
        service: layer.layer(Echoes::default()),
        runtime,
    };
    // The queue of the runtime grows before anybody looks.
    let entered = out.runtime.enter();
    (0..shards + more).for_each(|_| drop(tokio::spawn(async {})));
    drop(entered);
    out.run();
    (out, layer.handle())
}

impl<S: Sent> Out<S> {
    fn join(&mut self, slot: usize, shard: u64) {
        let _entered = self.runtime.enter();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(
            self.service.poll_ready(&mut cx),
            Poll::Ready(Ok(()))
        ));
        let slot = &mut self.slots[slot];
        slot.set(Some(self.service.call(shard)));
        let future = slot.as_mut().as_pin_mut().expect("it was set");
        assert!(future.poll(&mut cx).is_pending());
    }

    fn fill(&mut self, shards: usize) {
        for shard in 0..shards {
            self.join(shard, shard as u64);
        }
        self.run();
    }

    fn answered(&mut self, slot: usize) {
        let mut cx = Context::from_waker(Waker::noop());
        let slot = &mut self.slots[slot];
        let future = slot.as_mut().as_pin_mut().expect("it was set");
        let Poll::Ready(Ok(answer)) = future.poll(&mut cx) else {
            panic!("its batch was sent")
        };
        black_box(answer);
        slot.set(None);
    }

    fn leave(&mut self, slot: usize) {
        self.slots[slot].set(None);
    }

    /// Runs the tasks until they wait: those that are there, those whom they wake, and so on.
    fn run(&self) {
        for _ in 0..3 {
            // One that comes after all that were begun or woken out here, and one after those in there.
            let last = self.runtime.spawn(async {});
            self.runtime.block_on(async {
                last.await.expect("it does nothing");
                tokio::spawn(async {}).await.expect("it does nothing");
            });
        }
    }
}
