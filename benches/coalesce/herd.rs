//! A thousand tasks ask for the same at once: how often the backend is asked, how long that takes, and what of the
//! processors.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tower_flow::coalesce::{CoalesceLayer, OnLeaderDrop};
use tower_layer::Layer;
use tower_service::Service;

use crate::support::{self, median, process, yes};

const TASKS: usize = 1_000;
const TAKES: Duration = Duration::from_millis(10);

pub fn print() {
    let rounds = support::rounds();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    let coalesce = || CoalesceLayer::new(|key: &u64| Some(*key));
    let detach = coalesce().on_leader_drop(OnLeaderDrop::Detach);
    let backends = [const { 0 }; 4].map(|_| Backend::default());
    let alone = coalesce().layer(backends[1].clone());
    let shared = coalesce().layer(backends[2].clone());
    let detached = detach.layer(backends[3].clone());
    type Row<'a> = (&'a str, Box<dyn Fn(bool) -> Round + 'a>);
    let rows: [Row<'_>; 4] = [
        (
            "bare: each its own call",
            Box::new(|_| herd(&runtime, &backends[0], TASKS, false)),
        ),
        ("one task", Box::new(|_| herd(&runtime, &alone, 1, false))),
        (
            "coalesce",
            Box::new(|counted| herd(&runtime, &shared, TASKS, counted)),
        ),
        (
            "coalesce, Detach",
            Box::new(|counted| herd(&runtime, &detached, TASKS, counted)),
        ),
    ];
    let mut all = [const { Vec::<Round>::new() }; 4];
    let mut calls = [0u64; 4];
    for round in 0..rounds + 1 {
        for (row, (_, run)) in rows.iter().enumerate() {
            backends[row].0.store(0, Relaxed);
            let took = run(false);
            if round > 0 {
                all[row].push(took);
                calls[row] = calls[row].max(backends[row].0.load(Relaxed));
            }
        }
    }
    println!(
        "{TASKS} tasks on two threads ask for one key, the backend takes {} ms: medians of {rounds} rounds in turn. Processor \
         time is that of the whole process, with starting the tasks; polls and wakes are those of every caller but one.\n",
        TAKES.as_millis()
    );
    println!(
        "| herd | backend calls, most | wall, ms | of one call | CPU, ms | CPU over bare, ms | polls each | wakes each |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    let mut walls = [0.0; 4];
    let mut counts = [(f64::NAN, f64::NAN); 4];
    for (row, (name, run)) in rows.iter().enumerate() {
        let middle = |of: fn(&Round) -> f64| median(all[row].iter().map(of));
        let (wall, cpu) = (middle(|round| round.wall), middle(|round| round.cpu));
        let pairs = all[row].iter().zip(&all[1]);
        walls[row] = median(pairs.map(|(this, one)| this.wall / one.wall));
        let pairs = all[row].iter().zip(&all[0]);
        let over = median(pairs.map(|(this, bare)| this.cpu - bare.cpu));
        let counted = run(true);
        counts[row] = (counted.polls, counted.wakes);
        let show = |n: f64| {
            if n > 0.0 {
                format!("{n:.2}")
            } else {
                String::new()
            }
        };
        println!(
            "| {name} | {} | {wall:.2} | {:.2} | {cpu:.2} | {over:+.2} | {} | {} |",
            calls[row],
            walls[row],
            show(counted.polls),
            show(counted.wakes)
        );
    }
    println!();
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| one backend call | {}: {} |",
        yes(calls[2] == 1),
        calls[2]
    );
    println!(
        "| at most 1.2 × as long as one call | {}: {:.2} × |",
        yes(walls[2] <= 1.2),
        walls[2]
    );
    println!(
        "| at most 3 polls each | {}: {:.2} |",
        yes(counts[2].0 <= 3.0),
        counts[2].0
    );
}

/// Takes its time.
#[derive(Clone, Default)]
struct Backend(Arc<AtomicU64>);

impl Service<u64> for Backend {
    type Response = u64;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<u64, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: u64) -> Self::Future {
        self.0.fetch_add(1, Relaxed);
        Box::pin(async move {
            tokio::time::sleep(TAKES).await;
            Ok(req)
        })
    }
}

#[derive(Clone, Copy)]
struct Round {
    wall: f64,
    cpu: f64,
    polls: f64,
    wakes: f64,
}

fn herd<S>(runtime: &Runtime, service: &S, tasks: usize, counted: bool) -> Round
where
    S: Service<u64, Error: std::fmt::Debug, Future: Send, Response: Send> + Clone + Send + 'static,
{
    let cpu = process();
    let start = Instant::now();
    let counts = runtime.block_on(async {
        let callers: Vec<_> = (0..tasks)
            .map(|_| {
                let mut service = service.clone();
                tokio::spawn(async move {
                    let future = service.call(7);
                    if counted {
                        return count(future).await;
                    }
                    future.await.expect("an answer");
                    (0, 0)
                })
            })
            .collect();
        let mut counts = Vec::new();
        for caller in callers {
            counts.push(caller.await.expect("it only calls"));
        }
        counts
    });
    let wall = start.elapsed();
    let cpu = process() - cpu;
    // The leader is who was polled first; one in a thousand does not matter.
    let each = |of: fn(&(u64, u64)) -> u64| {
        let mut counts: Vec<_> = counts.iter().map(of).collect();
        counts.sort_unstable();
        let followers = &counts[..counts.len() - 1];
        followers.iter().sum::<u64>() as f64 / followers.len().max(1) as f64
    };
    Round {
        wall: wall.as_secs_f64() * 1e3,
        cpu: cpu.as_secs_f64() * 1e3,
        polls: each(|counts| counts.0),
        wakes: each(|counts| counts.1),
    }
}

/// How often the future was polled and woken.
async fn count<F: Future>(future: F) -> (u64, u64) {
    let mut future = pin!(future);
    let counting = Arc::new(Counting {
        wakes: AtomicU64::new(0),
        task: std::sync::Mutex::new(None),
    });
    let waker = Waker::from(counting.clone());
    let mut polls = 0;
    std::future::poll_fn(|cx| {
        polls += 1;
        *counting.task.lock().expect("nothing panics in it") = Some(cx.waker().clone());
        future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .map(drop)
    })
    .await;
    (polls, counting.wakes.load(Relaxed))
}

struct Counting {
    wakes: AtomicU64,
    task: std::sync::Mutex<Option<Waker>>,
}

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Relaxed);
        let task = self.task.lock().expect("nothing panics in it").clone();
        task.into_iter().for_each(Waker::wake);
    }
}
