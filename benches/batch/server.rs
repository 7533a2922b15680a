//! A server in simulated time: it serves one batch at a time, in the order they come.
//!
//! Times are whole microseconds. tokio's timers go by milliseconds, so a microsecond of the model is one of those.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tower_flow::batch::Batch;
use tower_service::Service;

use crate::support::Random;

/// Microseconds.
pub type Micros = u64;

pub const SECOND: Micros = 1_000_000;

/// What a batch takes, and each of its items.
#[derive(Clone, Copy)]
pub struct Price {
    pub batch: Micros,
    pub item: Micros,
}

#[derive(Clone)]
pub struct Server {
    price: Price,
    free: Arc<Semaphore>,
    served: Arc<[AtomicU64; 2]>,
}

/// Sends each item by itself.
#[derive(Clone)]
pub struct Unbatched(pub Server);

/// When an item was sent and when it was answered.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub sent: Micros,
    pub answered: Micros,
}

// ===== impl Price =====

impl Price {
    pub fn of(self, items: u64) -> Micros {
        self.batch + items * self.item
    }

    /// Items a second, so many at a time.
    pub fn capacity(self, items: u64) -> f64 {
        (items * SECOND) as f64 / self.of(items) as f64
    }
}

/// In the time of tokio's clock.
pub fn lasts(time: Micros) -> Duration {
    Duration::from_millis(time)
}

// ===== impl Server =====

impl Server {
    pub fn new(price: Price) -> Self {
        Self {
            price,
            free: Arc::new(Semaphore::new(1)),
            served: Arc::default(),
        }
    }

    /// How many calls it got, and how many items.
    pub fn served(&self) -> (u64, u64) {
        (self.served[0].load(Relaxed), self.served[1].load(Relaxed))
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Infallible>> + Send>>;

impl Service<Batch<u64>> for Server {
    type Response = Vec<Result<u64, Infallible>>;
    type Error = Infallible;
    type Future = Answer<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, batch: Batch<u64>) -> Self::Future {
        let (server, items) = (self.clone(), batch.len() as u64);
        Box::pin(async move {
            let _turn = server.free.acquire().await.expect("it stays open");
            server.served[0].fetch_add(1, Relaxed);
            server.served[1].fetch_add(items, Relaxed);
            sleep(lasts(server.price.of(items))).await;
            Ok(batch.into_iter().map(Ok).collect())
        })
    }
}

impl Service<u64> for Unbatched {
    type Response = u64;
    type Error = Infallible;
    type Future = Answer<u64>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, item: u64) -> Self::Future {
        let answer = self.0.call(Batch::new([item]));
        Box::pin(async move { answer.await.map(|_| item) })
    }
}

// ===== loads =====

/// What is sent over and over by whom.
pub trait Sent:
    Service<u64, Response = u64, Error: Debug + Send, Future: Send> + Clone + Send + 'static
{
}

impl<S> Sent for S where
    S: Service<u64, Response = u64, Error: Debug + Send, Future: Send> + Clone + Send + 'static
{
}

/// Runs with a clock of its own, which goes on when nothing else does.
pub fn simulated<T>(work: impl Future<Output = T>) -> T {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(work)
}

/// So many callers, each of whom sends its next item when it has the answer to the last, for so long.
pub async fn closed<S: Sent>(service: S, callers: u64, last: Micros) -> Vec<Answered> {
    let start = Instant::now();
    let callers: Vec<_> = (0..callers)
        .map(|n| {
            let mut service = service.clone();
            tokio::spawn(async move {
                let mut all = Vec::new();
                while since(start) < last {
                    all.push(send(&mut service, n, start).await);
                }
                all
            })
        })
        .collect();
    joined(callers).await.concat()
}

/// An item at each of these times, whatever becomes of those before.
pub async fn open<S: Sent>(service: S, arrivals: &[Micros]) -> Vec<Answered> {
    let start = Instant::now();
    let mut senders = Vec::with_capacity(arrivals.len());
    for (n, at) in arrivals.iter().enumerate() {
        sleep_until(start + lasts(*at)).await;
        let mut service = service.clone();
        senders.push(tokio::spawn(async move {
            send(&mut service, n as u64, start).await
        }));
    }
    joined(senders).await
}

async fn send<S: Sent>(service: &mut S, item: u64, start: Instant) -> Answered {
    let sent = since(start);
    let ready = poll_fn(|cx| service.poll_ready(cx));
    ready.await.expect("it is ready");
    service.call(item).await.expect("an answer");
    Answered {
        sent,
        answered: since(start),
    }
}

async fn joined<T>(tasks: Vec<tokio::task::JoinHandle<T>>) -> Vec<T> {
    let mut all = Vec::with_capacity(tasks.len());
    for task in tasks {
        all.push(task.await.expect("it only sends"));
    }
    all
}

fn since(start: Instant) -> Micros {
    start.elapsed().as_millis() as Micros
}

/// Times of a Poisson process with so many arrivals a second.
pub fn poisson(rate: f64, last: Micros, seed: u64) -> Vec<Micros> {
    let mut random = Random(seed);
    let mut now = 0.0;
    let times = std::iter::repeat_with(|| {
        now -= (1.0 - random.next()).ln() / rate;
        (now * SECOND as f64) as Micros
    });
    times.take_while(|at| *at < last).collect()
}

/// The best a server can do: whenever it is free it takes all that have arrived, at most so many.
pub fn ideal(price: Price, most: usize, arrivals: &[Micros]) -> Vec<Answered> {
    let (mut free, mut next) = (0, 0);
    let mut all = Vec::with_capacity(arrivals.len());
    while let Some(first) = arrivals.get(next) {
        let start = free.max(*first);
        let here = arrivals[next..].iter().take(most);
        let batch: Vec<_> = here.take_while(|at| **at <= start).collect();
        free = start + price.of(batch.len() as u64);
        next += batch.len();
        all.extend(batch.into_iter().map(|sent| Answered {
            sent: *sent,
            answered: free,
        }));
    }
    all
}

// ===== what comes of it =====

/// How many of them a second were answered between two times.
pub fn throughput(all: &[Answered], from: Micros, to: Micros) -> f64 {
    let within = all
        .iter()
        .filter(|one| (from..to).contains(&one.answered))
        .count();
    (within as u64 * SECOND) as f64 / (to - from) as f64
}

/// The `quantile` of what those waited, in milliseconds, who were sent between two times.
pub fn waited(all: &[Answered], from: Micros, to: Micros, quantile: f64) -> f64 {
    let within = all.iter().filter(|one| (from..to).contains(&one.sent));
    let mut times: Vec<_> = within.map(|one| one.answered - one.sent).collect();
    times.sort_unstable();
    let rank = (times.len() as f64 * quantile) as usize;
    times[rank.min(times.len() - 1)] as f64 / 1e3
}
