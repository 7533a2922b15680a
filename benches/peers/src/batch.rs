//! What an item costs in what makes many requests one: 200 submitters, at most 100 items a batch, over a backend that
//! answers at once.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use batch_aint_one::{Batcher, BatchingPolicy, Limits, OnFull, Processor};
use tokio::sync::oneshot;
use tower::ServiceExt as _;
use tower::buffer::Buffer;
use tower_flow::batch::BatchLayer;
use tower_layer::Layer;
use tower_service::Service;
use ultra_batch::BatchExecutor;

use crate::support::batch::{
    Cost, Echoes, Floor, Submit, Tower, Ways, Woken, print as print_costs,
};
use crate::support::{self, median, yes};

const SUBMITTERS: usize = 200;
const MOST: usize = 100;
/// From each submitter in a round.
const ITEMS: usize = 250;
/// In a round of one submitter.
const ALONE: usize = 5_000;
/// For those that need one. Batches fill up at once, so it passes at the end of a round only.
const DELAY: Duration = Duration::from_millis(1);

pub fn print() {
    let rounds = support::rounds();
    let costs = ways().measure(rounds, SUBMITTERS, ITEMS);
    println!("## Many requests in one\n");
    println!(
        "{SUBMITTERS} submitters, each of them a task that sends one item after the other, at most {MOST} items a batch, over a backend \
         that answers at once: medians of {rounds} rounds of {} items in turn. One thread: its processor time. Two workers, a processor \
         each: the time that passes, and that of both processors. Own work: over submitters that wake themselves once for each item.\n",
        SUBMITTERS * ITEMS
    );
    print_costs("peer", &costs);
    println!();
    println!(
        "One submitter, a batch of one each time: those that do not wait for more. Own work: over the backend itself.\n"
    );
    print_costs("alone", &alone().measure(rounds, 1, ALONE));
    println!();

    let ours = &costs[2];
    // tower's Buffer makes no batches.
    let peers = costs[3..]
        .iter()
        .filter(|cost| !cost.name.contains("Buffer"));
    println!("| target | reached |");
    println!("|---|---|");
    let own = ours.over(&costs[0], |cost| &cost.alone);
    let allocations = ours.allocations - costs[0].allocations;
    println!(
        "| at most 300 ns of own work | {}: {own:.0} |",
        yes(own <= 300.0)
    );
    println!(
        "| at most 1 allocation | {}: {allocations:.2} |",
        yes(allocations <= 1.0)
    );
    let times: [(_, fn(&Cost) -> &[f64]); 2] = [
        ("one thread", |cost| &cost.alone),
        ("two workers", |cost| &cost.passed),
    ];
    for (what, of) in times {
        let middle = |cost: &Cost| median(of(cost).iter().copied());
        let best = peers
            .clone()
            .min_by(|a: &&Cost, b| middle(a).total_cmp(&middle(b)));
        let best = best.expect("there are peers");
        println!(
            "| {what}: less than every peer | {}: {:.0} against {:.0} of {} |",
            yes(middle(ours) < middle(best)),
            middle(ours),
            middle(best),
            best.name
        );
    }
}

pub fn walk(name: &str, items: usize) {
    ways().walk(name, SUBMITTERS, items);
}

fn alone() -> Ways {
    let mut ways = Ways::new();
    ways.add("bare: no batches", Tower);
    floor(&mut ways);
    ours(&mut ways);
    for (name, policy) in AT_ONCE {
        ways.add(name, move |backend| Aint::new(backend, policy.clone()));
    }
    buffer(&mut ways);
    ways
}

fn floor(ways: &mut Ways) {
    ways.add("floor: mpsc, `recv_many`, oneshot", |backend| {
        Floor::new(backend, MOST)
    });
}

fn ours(ways: &mut Ways) {
    ways.add("tower-flow, layer", |backend| {
        Tower(BatchLayer::new().max_items(MOST).layer(backend))
    });
}

const AT_ONCE: [(&str, BatchingPolicy); 2] = [
    (
        "batch-aint-one 0.16, `Immediate`",
        BatchingPolicy::Immediate,
    ),
    (
        "batch-aint-one 0.16, `Balanced`",
        BatchingPolicy::Balanced {
            min_size_hint: MOST,
        },
    ),
];

fn buffer(ways: &mut Ways) {
    ways.add("tower 0.5, `Buffer` alone", |backend| {
        Tower(Buffer::new(backend, 10 * MOST))
    });
}

fn ways() -> Ways {
    let mut ways = Ways::new();
    ways.add("harness: woken by itself", |_| Woken);
    floor(&mut ways);
    ours(&mut ways);
    ways.add("tower-batch 0.4, layer", |backend| {
        Tower(tower_batch::Batch::new(Lots::new(backend), MOST, DELAY))
    });
    ways.add("tower-batch-control 1.1, layer", |backend| {
        let batch = tower_batch_control::Batch::new(Told::new(backend), MOST, 5, DELAY);
        Tower(batch.map_request(Item))
    });
    let delayed = (
        "batch-aint-one 0.16, `Duration`",
        BatchingPolicy::Duration(DELAY, OnFull::Process),
    );
    for (name, policy) in AT_ONCE.into_iter().chain([delayed]) {
        ways.add(name, move |backend| Aint::new(backend, policy.clone()));
    }
    ways.add("ultra-batch 0.3, `BatchExecutor`", Ultra::new);
    buffer(&mut ways);
    ways
}

// ===== tower-batch =====

/// Gets the items one by one. What each is answered is in what its batch leaves behind when it is flushed: the worker
/// tells nobody before.
struct Lots {
    backend: Echoes,
    items: Vec<u64>,
    answers: Answers,
}

type Answers = Arc<OnceLock<Vec<Result<u64, Infallible>>>>;

enum Lot {
    Item(usize, Answers),
    Flush,
}

impl Lots {
    fn new(backend: Echoes) -> Self {
        Self {
            backend,
            items: Vec::new(),
            answers: Answers::default(),
        }
    }
}

impl Service<tower_batch::BatchControl<u64>> for Lots {
    type Response = u64;
    type Error = tower_batch::BoxError;
    type Future = Lot;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, control: tower_batch::BatchControl<u64>) -> Lot {
        match control {
            tower_batch::BatchControl::Item(item) => {
                self.items.push(item);
                Lot::Item(self.items.len() - 1, self.answers.clone())
            }
            tower_batch::BatchControl::Flush => {
                let answers = self.backend.answer(self.items.drain(..));
                let set = std::mem::take(&mut self.answers).set(answers);
                set.expect("a batch is flushed once");
                Lot::Flush
            }
        }
    }
}

impl Future for Lot {
    type Output = Result<u64, tower_batch::BoxError>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match &*self {
            Self::Item(position, answers) => {
                let answer = answers.get().expect("it is flushed")[*position];
                let Ok(answer) = answer;
                answer
            }
            Self::Flush => 0,
        }))
    }
}

// ===== tower-batch-control =====

/// Gets the items one by one, and tells each its answer when it is to flush: callers wait for that themselves.
struct Told {
    backend: Echoes,
    items: Vec<u64>,
    tells: Vec<oneshot::Sender<u64>>,
}

struct Item(u64);

enum Tell {
    Item(oneshot::Receiver<u64>),
    Flush,
}

impl tower_batch_control::RequestWeight for Item {}

impl Told {
    fn new(backend: Echoes) -> Self {
        Self {
            backend,
            items: Vec::new(),
            tells: Vec::new(),
        }
    }
}

impl Service<tower_batch_control::BatchControl<Item>> for Told {
    type Response = u64;
    type Error = tower_batch::BoxError;
    type Future = Tell;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, control: tower_batch_control::BatchControl<Item>) -> Tell {
        match control {
            tower_batch_control::BatchControl::Item(Item(item)) => {
                let (tell, answer) = oneshot::channel();
                self.items.push(item);
                self.tells.push(tell);
                Tell::Item(answer)
            }
            tower_batch_control::BatchControl::Flush => {
                let answers = self.backend.answer(self.items.drain(..));
                for (tell, answer) in self.tells.drain(..).zip(answers) {
                    let Ok(answer) = answer;
                    let _ = tell.send(answer);
                }
                Tell::Flush
            }
        }
    }
}

impl Future for Tell {
    type Output = Result<u64, tower_batch::BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Item(answer) => Pin::new(answer).poll(cx).map_err(Into::into),
            Self::Flush => Poll::Ready(Ok(0)),
        }
    }
}

// ===== batch-aint-one =====

#[derive(Clone)]
struct Aint(Arc<Batcher<Echoing>>);

#[derive(Clone)]
struct Echoing(Echoes);

impl Aint {
    fn new(backend: Echoes, policy: BatchingPolicy) -> Self {
        let limits = Limits::builder()
            .max_batch_size(MOST)
            .max_key_concurrency(1)
            // It refuses what does not fit, so all fit.
            .max_key_queued_items(10 * MOST);
        let batcher = Batcher::builder()
            .name("bench")
            .processor(Echoing(backend))
            .limits(limits.build())
            .batching_policy(policy);
        Self(Arc::new(batcher.build()))
    }
}

impl Submit for Aint {
    async fn submit(&mut self, item: u64) -> u64 {
        self.0.add((), item).await.expect("an answer")
    }
}

impl Processor for Echoing {
    type Key = ();
    type Input = u64;
    type Output = u64;
    type Error = Never;
    type Resources = ();

    async fn acquire_resources(&self, (): ()) -> Result<(), Never> {
        Ok(())
    }

    async fn process(
        &self,
        (): (),
        items: impl Iterator<Item = u64> + Send,
        (): (),
    ) -> Result<Vec<u64>, Never> {
        let answers = self.0.answer(items).into_iter();
        Ok(answers.map(|Ok(answer)| answer).collect())
    }
}

// ===== ultra-batch =====

#[derive(Clone)]
struct Ultra(BatchExecutor<Echoing>);

impl Ultra {
    fn new(backend: Echoes) -> Self {
        let batches = BatchExecutor::build(Echoing(backend))
            .eager_batch_size(Some(MOST))
            .delay_duration(DELAY);
        Self(batches.finish())
    }
}

impl Submit for Ultra {
    async fn submit(&mut self, item: u64) -> u64 {
        let answer = self.0.execute(item).await.expect("it is answered");
        answer.expect("an answer")
    }
}

impl ultra_batch::Executor for Echoing {
    type Value = u64;
    type Result = u64;
    type Error = Never;

    async fn execute(&self, items: Vec<u64>) -> Result<Vec<u64>, Never> {
        let answers = self.0.answer(items.into_iter()).into_iter();
        Ok(answers.map(|Ok(answer)| answer).collect())
    }
}

/// The error of what never fails.
#[derive(Debug, Clone)]
enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}
