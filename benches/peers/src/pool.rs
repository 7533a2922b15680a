//! What it costs to take a connection out of a pool and give it back, without HTTP.

use std::convert::Infallible;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::runtime::Runtime;

use crate::support::checkout::{SIZE, Ways};
use crate::support::{self, yes};

pub fn print() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut ways = Ways::ours(&runtime);
    bb8(&mut ways, &runtime, "bb8 0.9", true);
    bb8(&mut ways, &runtime, "bb8 0.9, no test on checkout", false);
    deadpool(&mut ways, &runtime);
    println!("## Connection pools, without connections\n");
    println!(
        "A pool of {SIZE} idle connections that lead nowhere and never break; one is taken and given back, in turn. \
         tower-flow's is one of many hosts: it looks the request's URI up and reads the clock twice.\n"
    );
    let costs = ways.print(support::rounds());
    let (ours, peers) = (costs[1], &costs[2..]);
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| ≤ 300 ns on one thread | {}: {:.0} |",
        yes(ours.alone <= 300.0),
        ours.alone
    );
    println!(
        "| no allocation | {}: {:.1} |",
        yes(ours.allocations == 0.0),
        ours.allocations
    );
    let least = peers.iter().map(|peer| peer.together);
    let least = least.fold(f64::MAX, f64::min);
    println!(
        "| two workers: less than bb8 and deadpool | {}: {:.0} against {least:.0} at least |",
        yes(ours.together < least),
        ours.together
    );
}

struct Nothing;

impl bb8::ManageConnection for Nothing {
    type Connection = Box<u8>;
    type Error = Infallible;

    async fn connect(&self) -> Result<Box<u8>, Infallible> {
        Ok(Box::new(0))
    }

    async fn is_valid(&self, _: &mut Box<u8>) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Box<u8>) -> bool {
        false
    }
}

impl deadpool::managed::Manager for Nothing {
    type Type = Box<u8>;
    type Error = Infallible;

    async fn create(&self) -> Result<Box<u8>, Infallible> {
        Ok(Box::new(0))
    }

    async fn recycle(
        &self,
        _: &mut Box<u8>,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

fn bb8(ways: &mut Ways, runtime: &Runtime, name: &str, test: bool) {
    let builder = bb8::Pool::builder()
        .max_size(SIZE as u32)
        .min_idle(SIZE as u32);
    let pool = runtime.block_on(builder.test_on_check_out(test).build(Nothing));
    let pool = pool.expect("nothing to fail");
    let handle = runtime.handle().clone();
    ways.add(name, move |times| {
        // It starts a timer each time.
        let _in = handle.enter();
        for _ in 0..times {
            drop(black_box(at_once(pool.get()).expect("some are idle")));
        }
    });
}

fn deadpool(ways: &mut Ways, runtime: &Runtime) {
    let pool = deadpool::managed::Pool::<Nothing>::builder(Nothing).max_size(SIZE);
    let pool = pool.build().expect("a pool");
    runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..SIZE {
            held.push(pool.get().await.expect("nothing to fail"));
        }
    });
    ways.add("deadpool 0.13", move |times| {
        for _ in 0..times {
            drop(black_box(at_once(pool.get()).expect("some are idle")));
        }
    });
}

/// The output of what need not wait.
fn at_once<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        // Another worker may hold what it spins for.
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}
