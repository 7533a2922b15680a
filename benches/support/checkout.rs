//! What it costs to take something out of a pool and give it back: on one thread, and on two that have a processor each.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use http::Uri;
use tokio::runtime::Runtime;
use tower_flow::pool::ConnPool;
use tower_flow::pool::bench::Checkout;

use super::{allocations, median, on, pin};

/// Times on each thread.
const TIMES: usize = 20_000;

type Work = Box<dyn Fn(usize) + Sync>;

/// What does the same, to be measured in turn.
#[derive(Default)]
pub struct Ways {
    names: Vec<String>,
    works: Vec<Work>,
}

/// What one way costs each time.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Nanoseconds on one thread, and of each worker of two.
    pub alone: f64,
    pub together: f64,
    pub allocations: f64,
}

impl Ways {
    /// `work` does it so many times.
    pub fn add(&mut self, name: impl Into<String>, work: impl Fn(usize) + Sync + 'static) {
        self.names.push(name.into());
        self.works.push(Box::new(work));
    }

    /// Does it so many times in the way with this name, and measures nothing.
    pub fn walk(&self, name: &str, times: usize) {
        let way = self.names.iter().position(|known| known == name);
        self.works[way.expect("one of the ways")](times);
    }

    /// `both`: on two threads too.
    pub fn measure(&self, rounds: usize, both: bool) -> Vec<Cost> {
        let mut alone = vec![Vec::new(); self.works.len()];
        let mut together = alone.clone();
        let mut allocated = vec![0; self.works.len()];
        for round in 0..rounds + 2 {
            for turn in 0..self.works.len() {
                let way = (round + turn) % self.works.len();
                let work = || self.works[way](TIMES);
                let before = allocations();
                work();
                allocated[way] = allocations() - before;
                let alone_took = on(1, TIMES, work);
                let together_took = if both { self.together(way) } else { f64::NAN };
                // The first two warm up.
                if round >= 2 {
                    alone[way].push(alone_took);
                    together[way].push(together_took);
                }
            }
        }
        let all = alone.into_iter().zip(together).zip(allocated);
        all.map(|((alone, together), allocated)| Cost {
            alone: median(alone),
            together: median(together),
            allocations: allocated as f64 / TIMES as f64,
        })
        .collect()
    }

    /// What each of two workers needs, the slower one's. Who is done goes on until the other is: alone, that one would be
    /// faster.
    fn together(&self, way: usize) -> f64 {
        let (begin, done) = (Barrier::new(2), AtomicUsize::new(0));
        let worker = &|n: usize| {
            pin(n);
            begin.wait();
            let start = Instant::now();
            for _ in 0..10 {
                self.works[way](TIMES);
            }
            let took = start.elapsed();
            done.fetch_add(1, Relaxed);
            while done.load(Relaxed) < 2 {
                self.works[way](TIMES / 100);
            }
            took.as_secs_f64() * 1e9 / (10 * TIMES) as f64
        };
        std::thread::scope(|scope| {
            let workers = [0, 1].map(|n| scope.spawn(move || worker(n)));
            let took = workers.map(|worker| worker.join().expect("a worker only calls"));
            took[0].max(took[1])
        })
    }

    /// Measures them and prints a table.
    pub fn print(&self, rounds: usize) -> Vec<Cost> {
        let costs = self.measure(rounds, true);
        println!(
            "| taken and given back | 1 thread, ns | 2 threads, ns per worker | allocations |"
        );
        println!("|---|---:|---:|---:|");
        for (name, cost) in self.names.iter().zip(&costs) {
            println!(
                "| {name} | {:.0} | {:.0} | {:.1} |",
                cost.alone, cost.together, cost.allocations
            );
        }
        println!();
        costs
    }

    /// The same on one thread, beside the first.
    pub fn print_alone(&self, rounds: usize) -> Vec<Cost> {
        let costs = self.measure(rounds, false);
        println!("| taken and given back | 1 thread, ns | of the first |");
        println!("|---|---:|---:|");
        for (name, cost) in self.names.iter().zip(&costs) {
            println!(
                "| {name} | {:.0} | {:.2} |",
                cost.alone,
                cost.alone / costs[0].alone
            );
        }
        println!();
        costs
    }

    /// The least there is, and ours.
    pub fn ours(runtime: &Runtime) -> Self {
        let mut ways = Self::default();
        let floor = Mutex::new((0..SIZE).map(Box::new).collect::<Vec<_>>());
        ways.add("floor: `Mutex<Vec>`", move |times| {
            for _ in 0..times {
                let one = floor.lock().expect("it only pops").pop();
                floor.lock().expect("it only pushes").extend(black_box(one));
            }
        });
        let uri: Uri = "http://service.internal:8080/a/path"
            .parse()
            .expect("a URI");
        let pool = idle(runtime, std::slice::from_ref(&uri), SIZE);
        ways.add("tower-flow", move |times| {
            for _ in 0..times {
                drop(black_box(pool.get(&uri).expect("some are idle")));
            }
        });
        ways
    }
}

/// How many are in a pool: more than workers.
pub const SIZE: usize = 16;

/// A pool with so many idle connections to each of the hosts.
pub fn idle(runtime: &Runtime, hosts: &[Uri], each: usize) -> Checkout {
    let builder = ConnPool::builder(())
        .max_connections(each * hosts.len())
        .max_connections_per_host(each)
        .max_idle(each * hosts.len())
        .max_idle_per_host(each);
    let pool = Checkout::new(builder);
    runtime.block_on(async {
        for uri in hosts {
            let there = pool.warm(uri, each).await.expect("nothing to fail");
            assert_eq!(there, each);
        }
    });
    pool
}
