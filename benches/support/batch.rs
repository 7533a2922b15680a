//! Many small requests become one: a backend that answers at once, the least it takes to hand it many together, and
//! submitters that keep each other company.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::{Ready, poll_fn, ready};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tower_flow::batch::Batch;
use tower_service::Service;

use super::{allocations, cpu, median, pin, process};

/// Takes an item and gives its answer: a service, or what else there is.
pub trait Submit: Clone + Send + 'static {
    fn submit(&mut self, item: u64) -> impl Future<Output = u64> + Send;
}

/// A service as what it is.
#[derive(Clone)]
pub struct Tower<S>(pub S);

/// Answers a batch at once with its items, and counts what it gets.
#[derive(Clone, Default)]
pub struct Echoes(Arc<[AtomicU64; 2]>);

/// What no way of batching can spare a submitter: it is woken once for each item, here by itself.
#[derive(Clone)]
pub struct Woken;

/// The least that batches: a task for life, a channel to it, and a channel back for each item.
#[derive(Clone)]
pub struct Floor(mpsc::Sender<(u64, oneshot::Sender<u64>)>);

/// Ways to answer items, to be measured in turn: each once on one thread and once on two workers.
pub struct Ways {
    runtimes: [Runtime; 2],
    names: Vec<&'static str>,
    rows: Vec<[Row; 2]>,
}

struct Row {
    /// So many items from each of so many submitters.
    run: Box<dyn Fn(&Runtime, usize, usize)>,
    backend: Echoes,
}

/// What one way costs, in nanoseconds an item, a figure for each round.
#[derive(Debug, Clone, Default)]
pub struct Cost {
    pub name: &'static str,
    /// Processor time of the one thread.
    pub alone: Vec<f64>,
    pub allocations: f64,
    /// With two workers, the time that passes and that of all processors.
    pub passed: Vec<f64>,
    pub worked: Vec<f64>,
    /// Items a batch, on one thread and on two.
    pub sizes: [Vec<f64>; 2],
}

// ===== impl Submit =====

impl<S> Submit for Tower<S>
where
    S: Service<u64, Response = u64, Error: Debug, Future: Send> + Clone + Send + 'static,
{
    async fn submit(&mut self, item: u64) -> u64 {
        let ready = poll_fn(|cx| self.0.poll_ready(cx));
        ready.await.expect("it is ready");
        self.0.call(item).await.expect("an answer")
    }
}

impl Submit for Woken {
    async fn submit(&mut self, item: u64) -> u64 {
        let mut woken = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut woken, true) {
                return Poll::Ready(item);
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}

impl Submit for Floor {
    async fn submit(&mut self, item: u64) -> u64 {
        let (tell, answer) = oneshot::channel();
        let sent = self.0.send((item, tell)).await;
        assert!(sent.is_ok(), "its task lives");
        answer.await.expect("as above")
    }
}

impl Floor {
    pub fn new(backend: Echoes, most: usize) -> Self {
        let (give, mut take) = mpsc::channel::<(u64, oneshot::Sender<u64>)>(10 * most);
        tokio::spawn(async move {
            let mut taken = Vec::with_capacity(most);
            let mut tells = Vec::with_capacity(most);
            while take.recv_many(&mut taken, most).await > 0 {
                let items = taken.drain(..).map(|(item, tell)| {
                    tells.push(tell);
                    item
                });
                let answers = backend.answer(items);
                for (tell, answer) in tells.drain(..).zip(answers) {
                    let Ok(answer) = answer;
                    let _ = tell.send(answer);
                }
            }
        });
        Self(give)
    }
}

// ===== impl Echoes =====

impl Echoes {
    pub fn answer(&self, items: impl Iterator<Item = u64>) -> Vec<Result<u64, Infallible>> {
        let answers: Vec<_> = items.map(|item| Ok(black_box(item))).collect();
        self.0[0].fetch_add(1, Relaxed);
        self.0[1].fetch_add(answers.len() as u64, Relaxed);
        answers
    }

    /// How many items a batch had since this was last asked.
    pub fn size(&self) -> Option<f64> {
        let [batches, items] = &*self.0;
        let [batches, items] = [batches, items].map(|count| count.swap(0, Relaxed) as f64);
        (batches > 0.0).then_some(items / batches)
    }
}

impl Service<Batch<u64>> for Echoes {
    type Response = Vec<Result<u64, Infallible>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, batch: Batch<u64>) -> Self::Future {
        ready(Ok(self.answer(batch.into_iter())))
    }
}

/// For what batches nothing.
impl Service<u64> for Echoes {
    type Response = u64;
    type Error = Infallible;
    type Future = Ready<Result<u64, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, item: u64) -> Self::Future {
        self.0[0].fetch_add(1, Relaxed);
        self.0[1].fetch_add(1, Relaxed);
        ready(Ok(black_box(item)))
    }
}

// ===== impl Ways =====

impl Ways {
    pub fn new() -> Self {
        let one = Builder::new_current_thread().enable_time().build();
        let worker = Arc::new(AtomicU64::new(0));
        let two = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .on_thread_start(move || pin(worker.fetch_add(1, Relaxed) as usize % 2))
            .build();
        Self {
            runtimes: [one, two].map(|runtime| runtime.expect("a runtime")),
            names: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// `make` is run in a runtime, as some begin a task.
    pub fn add<S: Submit>(&mut self, name: &'static str, make: impl Fn(Echoes) -> S) {
        self.names.push(name);
        let rows = self.runtimes.each_ref().map(|runtime| {
            let _entered = runtime.enter();
            let backend = Echoes::default();
            let way = make(backend.clone());
            Row {
                run: Box::new(move |runtime, submitters, items| {
                    runtime.block_on(crowd(&way, submitters, items));
                }),
                backend,
            }
        });
        self.rows.push(rows);
    }

    /// Does it in the way with this name on one thread, and measures nothing.
    pub fn walk(&self, name: &str, submitters: usize, items: usize) {
        let way = self.names.iter().position(|known| *known == name);
        let way = way.unwrap_or_else(|| panic!("one of {:?}", self.names));
        (self.rows[way][0].run)(&self.runtimes[0], submitters, items);
    }

    /// So many `items` from each of so many `submitters`; in each round all ways, from another one on.
    pub fn measure(&self, rounds: usize, submitters: usize, items: usize) -> Vec<Cost> {
        let ways = self.rows.len();
        let mut costs: Vec<_> = self.names.iter().map(|name| Cost::of(name)).collect();
        let each = 1e9 / (submitters * items) as f64;
        for round in 0..rounds + 2 {
            for turn in 0..ways {
                let way = (round + turn) % ways;
                let ([one, two], cost) = (&self.rows[way], &mut costs[way]);
                let (before, start) = (allocations(), cpu());
                (one.run)(&self.runtimes[0], submitters, items);
                let alone = (cpu() - start).as_secs_f64() * each;
                let allocated = allocations() - before;
                let (start, worked) = (Instant::now(), process());
                (two.run)(&self.runtimes[1], submitters, items);
                let passed = start.elapsed().as_secs_f64() * each;
                let worked = (process() - worked).as_secs_f64() * each;
                // The first two warm up.
                if round >= 2 {
                    cost.alone.push(alone);
                    cost.allocations = allocated as f64 / (submitters * items) as f64;
                    cost.passed.push(passed);
                    cost.worked.push(worked);
                    for (sizes, row) in cost.sizes.iter_mut().zip([one, two]) {
                        sizes.extend(row.backend.size());
                    }
                }
            }
        }
        costs
    }
}

/// So many items from each of so many tasks, one after the other: the submitter above, the item below.
async fn crowd<S: Submit>(way: &S, submitters: usize, items: usize) {
    let submitters: Vec<_> = (0..submitters as u64)
        .map(|submitter| {
            let mut way = way.clone();
            tokio::spawn(async move {
                for item in 0..items as u64 {
                    black_box(way.submit(submitter << 32 | item).await);
                }
            })
        })
        .collect();
    for submitter in submitters {
        submitter.await.expect("it only submits");
    }
}

// ===== impl Cost =====

impl Cost {
    fn of(name: &'static str) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// What it costs more than the other did in the same round.
    pub fn over(&self, other: &Self, of: fn(&Self) -> &[f64]) -> f64 {
        let pairs = of(self).iter().zip(of(other));
        median(pairs.map(|(this, other)| this - other))
    }
}

/// What each costs over the first, which is the harness.
pub fn print(title: &str, costs: &[Cost]) {
    println!(
        "| {title} | 1 thread, ns an item | own work | allocations | items a batch | 2 workers, ns an item | own | processors' ns | own | items a batch |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    let size = |sizes: &[f64]| match sizes {
        [] => String::new(),
        _ => format!("{:.1}", median(sizes.iter().copied())),
    };
    for cost in costs {
        let middle = |of: fn(&Cost) -> &[f64]| {
            let whole = median(of(cost).iter().copied());
            format!("{whole:.0} | {:.0}", cost.over(&costs[0], of))
        };
        println!(
            "| {} | {} | {:.2} | {} | {} | {} | {} |",
            cost.name,
            middle(|cost| &cost.alone),
            cost.allocations - costs[0].allocations,
            size(&cost.sizes[0]),
            middle(|cost| &cost.passed),
            middle(|cost| &cost.worked),
            size(&cost.sizes[1]),
        );
    }
}
