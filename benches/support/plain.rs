//! What a layer costs over a service that does nothing, without HTTP: one service reused, a clone for every call as
//! servers do, and two workers on clones at once.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Ready;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tower_service::Service;

/// Answers at once.
#[derive(Clone)]
pub struct Bare;

impl Service<u64> for Bare {
    type Response = u64;
    type Error = Infallible;
    type Future = Ready<Result<u64, Infallible>>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, req: u64) -> Self::Future {
        std::future::ready(Ok(black_box(req)))
    }
}

/// The floor of a limit: in flight counted by hand in one shared atomic, the decision made in `call`, and so many
/// readings of the clock.
#[derive(Clone)]
pub struct Hand {
    count: Arc<AtomicU64>,
    clocks: usize,
}

impl Hand {
    pub fn new(clocks: usize) -> Self {
        Self {
            count: Arc::default(),
            clocks,
        }
    }
}

impl Service<u64> for Hand {
    type Response = u64;
    type Error = Infallible;
    type Future = HandFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: u64) -> HandFuture {
        if self.clocks > 0 {
            black_box(Instant::now());
        }
        let admitted = self.count.fetch_update(Relaxed, Relaxed, |count| {
            (count < 1 << 20).then_some(count + 1)
        });
        assert!(admitted.is_ok(), "never full here");
        HandFuture(Bare.call(req), Some(Held(self.count.clone(), self.clocks)))
    }
}

pub struct HandFuture(Ready<Result<u64, Infallible>>, Option<Held>);

impl Future for HandFuture {
    type Output = Result<u64, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.0).poll(cx);
        self.1 = None;
        polled
    }
}

struct Held(Arc<AtomicU64>, usize);

impl Drop for Held {
    fn drop(&mut self) {
        if self.1 > 0 {
            black_box(Instant::now());
        }
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What one way of calling costs.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Nanoseconds a call, lower quartile over the rounds: others on the machine only ever add.
    pub quartile: f64,
    pub allocations: f64,
}

type Run = Box<dyn FnMut(usize)>;

/// Services to measure in turn.
#[derive(Default)]
pub struct Rows {
    names: Vec<&'static str>,
    runs: Vec<[Run; 3]>,
}

impl Rows {
    pub fn add<S>(&mut self, name: &'static str, service: S)
    where
        S: Service<u64> + Clone + Send + 'static,
        S::Error: Debug,
    {
        self.names.push(name);
        let mut one = service.clone();
        let each = service.clone();
        let reused = move |calls| (0..calls).for_each(|n| call(&mut one, n));
        let cloned = move |calls| (0..calls).for_each(|n| call(&mut each.clone(), n));
        let contended = move |calls| {
            let begin = Barrier::new(2);
            std::thread::scope(|scope| {
                for (worker, service) in [service.clone(), service.clone()].into_iter().enumerate()
                {
                    let begin = &begin;
                    scope.spawn(move || {
                        super::pin(worker);
                        begin.wait();
                        (0..calls).for_each(|n| call(&mut service.clone(), n));
                    });
                }
            });
        };
        self.runs
            .push([Box::new(reused), Box::new(cloned), Box::new(contended)]);
    }

    /// Prints a table of what each adds to the first. Two workers run in every tenth round and ten times as long, so
    /// that starting them does not count.
    pub fn print(mut self, rounds: usize, calls: usize, allocations: impl Fn() -> u64) {
        let mut times = vec![[const { Vec::new() }; 3]; self.runs.len()];
        let mut allocated = vec![[0.0; 3]; self.runs.len()];
        for round in 0..rounds + 2 {
            for (row, runs) in self.runs.iter_mut().enumerate() {
                for (way, run) in runs.iter_mut().enumerate() {
                    let calls = match way {
                        2 if round % 10 != 2 => continue,
                        2 => 10 * calls,
                        _ => calls,
                    };
                    let before = allocations();
                    let start = Instant::now();
                    run(calls);
                    let took = start.elapsed().as_secs_f64() * 1e9 / calls as f64;
                    if round >= 2 {
                        times[row][way].push(took);
                        allocated[row][way] = (allocations() - before) as f64 / calls as f64;
                    }
                }
            }
        }
        println!(
            "| over a bare service | reused | a clone a call | per worker of two | allocations |"
        );
        println!("|---|---:|---:|---:|---:|");
        let ways: Vec<_> = times
            .iter_mut()
            .zip(&allocated)
            .map(|(times, allocated)| {
                let mut way = 0;
                times.each_mut().map(|times| {
                    times.sort_by(f64::total_cmp);
                    way += 1;
                    Way {
                        quartile: times[times.len() / 4],
                        allocations: allocated[way - 1],
                    }
                })
            })
            .collect();
        for (name, ways_of) in self.names.iter().zip(&ways) {
            let over: Vec<_> = (0..3)
                .map(|way| format!("{:.0}", ways_of[way].quartile - ways[0][way].quartile))
                .collect();
            println!(
                "| {name} | {} | {:.1} |",
                over.join(" | "),
                ways_of[1].allocations
            );
        }
    }
}

fn call<S>(service: &mut S, n: usize)
where
    S: Service<u64>,
    S::Error: Debug,
{
    let mut cx = Context::from_waker(Waker::noop());
    while service.poll_ready(&mut cx).is_pending() {
        // A peer that waits for its own background work.
        std::thread::yield_now();
    }
    let mut future = std::pin::pin!(service.call(n as u64));
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut cx) {
            black_box(answer.is_ok());
            return;
        }
    }
}
