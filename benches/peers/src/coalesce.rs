//! What equal requests in flight cost each, in what lets them share one call: a caller that is alone, and one that
//! follows another.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, WeakShared};
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, oneshot};
use tower_flow::coalesce::CoalesceLayer;
use tower_layer::Layer;
use tower_service::Service;

use crate::support::coalesce::{Crowds, Direct, Floor, Followed, List, Ways, sequence, workers};
use crate::support::plain::Bare;
use crate::support::{self, cpu, median, yes};

const CALLS: usize = 1_000;
const FOLLOWERS: usize = 100;
const TAKES: Duration = Duration::from_millis(10);

pub fn print() {
    let rounds = support::rounds();
    let runtime = runtime();
    let _entered = runtime.enter();
    let mut rows = Rows {
        runtime,
        ways: Ways::default(),
        crowds: Crowds::default(),
        pairs: Vec::new(),
        waits: Vec::new(),
    };
    all(&mut rows);

    let costs = rows.ways.measure(rounds, CALLS);
    let followed = rows.crowds.measure(rounds, &[FOLLOWERS], 1, 1_000);
    let mut pairs = vec![(Vec::new(), Vec::new()); rows.pairs.len()];
    let mut waits = vec![Vec::new(); rows.waits.len()];
    for _ in 0..rounds.div_ceil(3) {
        for (run, (one, two)) in rows.pairs.iter().zip(&mut pairs) {
            one.push(run(1));
            two.push(run(2));
        }
        for (run, waited) in rows.waits.iter().zip(&mut waits) {
            waited.push(run());
        }
    }

    println!("## Equal requests in flight\n");
    println!(
        "Alone: one call after the other, each with a key of its own, in a runtime of one thread, over a backend that answers at \
         once. Followers: {FOLLOWERS} of one call, driven by hand, over its leader. Two threads: as alone, on clones; the \
         tasks of those that spawn any run on two threads more. Waiting: processor time while one follower waits {} ms for one leader. Layers are layers; \
         the others are called by a function for each request, which clones a handle and makes the backend's future. The \
         caches keep nothing: their capacity is 0.\n",
        TAKES.as_millis()
    );
    println!(
        "| peer | alone, ns | over bare | allocations | a follower, ns | allocations | polls | wakes | calls for {} | two threads, ns per worker | scaling | waiting {} ms, µs of CPU |",
        FOLLOWERS + 1,
        TAKES.as_millis()
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (row, cost) in costs.iter().enumerate() {
        let follower = followed.iter().find(|follower| follower.name == cost.name);
        let follower = follower.map_or("| | | |".to_owned(), |follower: &Followed| {
            format!(
                "{:.0} | {:.2} | {:.2} | {:.2} | {:.0}",
                follower.each[0],
                follower.allocations,
                follower.polls,
                follower.wakes,
                follower.calls
            )
        });
        let (one, two) = &pairs[row];
        let scaling = median(one.iter().zip(two).map(|(one, two)| 2.0 * one / two));
        println!(
            "| {} | {:.0} | {:.0} | {:.2} | {follower} | {:.0} | {scaling:.2} | {:.0} |",
            cost.name,
            cost.median(),
            cost.over(&costs[0]),
            cost.allocations - costs[0].allocations,
            median(two.iter().copied()),
            median(waits[row].iter().copied()),
        );
    }
    println!();

    let peers = &costs[4..];
    let ours = &costs[3];
    let best = peers
        .iter()
        .min_by(|a, b| a.over(&costs[0]).total_cmp(&b.over(&costs[0])))
        .expect("there are peers");
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| alone: less than every peer | {}: {:.0} against {:.0} of {} |",
        yes(ours.over(&costs[0]) < best.over(&costs[0])),
        ours.over(&costs[0]),
        best.over(&costs[0]),
        best.name
    );
    let (ours, peers) = (&followed[1], &followed[2..]);
    let best = peers
        .iter()
        .min_by(|a, b| a.each[0].total_cmp(&b.each[0]))
        .expect("there are peers");
    println!(
        "| a follower: less than every peer | {}: {:.0} against {:.0} of {} |",
        yes(ours.each[0] < best.each[0]),
        ours.each[0],
        best.each[0],
        best.name
    );
}

fn runtime() -> &'static Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Box::leak(Box::new(builder.enable_time().build().expect("a runtime")))
}

/// Where the tasks of two workers run, also when neither of them waits.
static TASKS: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).build().expect("a runtime")
});

struct Rows {
    runtime: &'static Runtime,
    ways: Ways,
    crowds: Crowds,
    pairs: Vec<Box<dyn Fn(usize) -> f64>>,
    waits: Vec<Box<dyn Fn() -> f64>>,
}

/// What a peer makes of a backend.
macro_rules! row {
    ($rows:ident, $name:expr, $layer:expr) => {{
        $rows.alone($name, $layer(Bare));
        $rows.waiting($layer(Slow));
        $rows.following($name, $layer);
    }};
}

impl Rows {
    fn alone<S>(&mut self, name: &'static str, service: S)
    where
        S: Service<u64, Error: Debug> + Clone + Send + 'static,
    {
        let runtime = self.runtime;
        let (mut one, mut from) = (service.clone(), 0);
        self.ways.add(name, move |times| {
            runtime.block_on(sequence(&mut one, from, times));
            from += times as u64;
        });
        self.pairs.push(Box::new(move |threads| {
            workers(&service, threads, 20 * CALLS, |work| TASKS.block_on(work))
        }));
    }

    fn waiting<S>(&mut self, service: S)
    where
        S: Service<u64, Error: Debug> + Clone + 'static,
    {
        let runtime = self.runtime;
        self.waits.push(Box::new(move || {
            let before = cpu();
            runtime.block_on(async {
                let (mut one, mut other) = (service.clone(), service.clone());
                let both = futures_util::future::join(
                    sequence(&mut one, 1, 1),
                    sequence(&mut other, 1, 1),
                );
                both.await;
            });
            (cpu() - before).as_secs_f64() * 1e6
        }));
    }

    fn following<S>(
        &mut self,
        name: &'static str,
        layer: impl FnOnce(support::coalesce::Gated) -> S,
    ) where
        S: Service<u64, Error: Debug> + 'static,
    {
        let runtime = self.runtime;
        // Tasks run when something is awaited.
        let between = move || {
            runtime.block_on(async {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
            });
        };
        match name.starts_with("Apollo") {
            true => self.crowds.add(name, FOLLOWERS, between, layer),
            false => self.crowds.add(name, FOLLOWERS, || (), layer),
        }
    }
}

/// What every peer is put round here.
trait Backend:
    Service<u64, Response = u64, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Backend for S where
    S: Service<u64, Response = u64, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Takes its time.
#[derive(Clone)]
struct Slow;

impl Service<u64> for Slow {
    type Response = u64;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<u64, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: u64) -> Self::Future {
        Box::pin(async move {
            tokio::time::sleep(TAKES).await;
            Ok(req)
        })
    }
}

fn all(rows: &mut Rows) {
    rows.alone("bare", Bare);
    rows.waiting(Slow);
    rows.alone("bare, once more", Bare);
    rows.waiting(Slow);
    rows.alone("floor", Floor::new(Bare, |key: &u64| *key));
    rows.waiting(List::new(Slow));
    rows.following("floor", List::new);
    row!(rows, "tower-flow, layer", coalesce);
    row!(rows, "tower-resilience-coalesce 0.14, layer", resilience);
    row!(rows, "Apollo Router's shape, by hand", |backend| apollo(
        backend, true
    ));
    row!(
        rows,
        "Apollo Router's shape, without its blocking task",
        |backend| apollo(backend, false)
    );
    row!(rows, "async_singleflight 0.6", singleflight);
    row!(rows, "singleflight-async 0.2", async_style);
    row!(
        rows,
        "futures 0.3, `Shared` in a map behind a mutex, by hand",
        shared
    );
    row!(rows, "moka 0.12, `try_get_with`", moka);
    row!(rows, "quick_cache 0.7, `get_or_insert_async`", quick);
}

fn coalesce<S: Backend>(backend: S) -> impl Service<u64, Error: Debug> + Clone + Send + 'static {
    CoalesceLayer::new(|key: &u64| Some(*key)).layer(backend)
}

fn resilience<S: Backend>(backend: S) -> impl Service<u64, Error: Debug> + Clone + Send + 'static {
    tower_resilience_coalesce::CoalesceLayer::new(|key: &u64| *key).layer(backend)
}

fn singleflight<S: Backend>(
    backend: S,
) -> impl Service<u64, Error: Debug> + Clone + Send + 'static {
    let group = Arc::new(async_singleflight::Group::<u64, u64, Infallible>::new());
    Direct(move |key: u64| {
        let (group, mut backend) = (group.clone(), backend.clone());
        async move { group.work(&key, backend.call(key)).await }
    })
}

fn async_style<S: Backend>(backend: S) -> impl Service<u64, Error: Debug> + Clone + Send + 'static {
    let flights = Arc::new(singleflight_async::SingleFlight::<
        u64,
        Result<u64, Infallible>,
    >::new());
    Direct(move |key: u64| {
        let (flights, mut backend) = (flights.clone(), backend.clone());
        async move { flights.work(key, || backend.call(key)).await }
    })
}

fn moka<S: Backend>(backend: S) -> impl Service<u64, Error: Debug> + Clone + Send + 'static {
    let cache = moka::future::Cache::<u64, u64>::new(0);
    Direct(move |key: u64| {
        let (cache, mut backend) = (cache.clone(), backend.clone());
        async move { cache.try_get_with(key, backend.call(key)).await }
    })
}

fn quick<S: Backend>(backend: S) -> impl Service<u64, Error: Debug> + Clone + Send + 'static {
    let cache = Arc::new(quick_cache::sync::Cache::<u64, u64>::new(0));
    Direct(move |key: u64| {
        let (cache, mut backend) = (cache.clone(), backend.clone());
        async move { cache.get_or_insert_async(&key, backend.call(key)).await }
    })
}

fn shared<S: Backend>(backend: S) -> impl Service<u64, Error: Debug> + Clone + Send + 'static {
    type Flights = Mutex<HashMap<u64, WeakShared<BoxFuture<'static, Result<u64, Infallible>>>>>;
    let flights = Arc::new(Flights::default());
    Direct(move |key: u64| {
        let (flights, mut backend) = (flights.clone(), backend.clone());
        async move {
            let flight = {
                let mut map = flights.lock().expect("nothing panics in it");
                match map.get(&key).and_then(WeakShared::upgrade) {
                    Some(flight) => flight,
                    None => {
                        let flights = flights.clone();
                        let flight = async move {
                            let answer = backend.call(key).await;
                            flights.lock().expect("as above").remove(&key);
                            answer
                        };
                        let flight = flight.boxed().shared();
                        map.extend(flight.downgrade().map(|weak| (key, weak)));
                        flight
                    }
                }
            };
            flight.await
        }
    })
}

/// What Apollo Router's `deduplication.rs` does, for a key that is a number: a map behind an async mutex, a broadcast
/// channel a flight, a task that removes the entry whatever happens, and one of the blocking kind that tells the others.
fn apollo<S: Backend>(
    backend: S,
    blocking: bool,
) -> impl Service<u64, Error: Debug> + Clone + Send + 'static {
    type Answer = Result<u64, String>;
    let flights = Arc::new(tokio::sync::Mutex::new(HashMap::<
        u64,
        broadcast::Sender<Answer>,
    >::new()));
    Direct(move |key: u64| {
        let (flights, mut backend) = (flights.clone(), backend.clone());
        async move {
            loop {
                let mut map = flights.lock().await;
                if let Some(flight) = map.get(&key) {
                    let mut answer = flight.subscribe();
                    drop(map);
                    match answer.recv().await {
                        Ok(answer) => return answer,
                        Err(_) => continue,
                    }
                }
                let (tell, _) = broadcast::channel(1);
                map.insert(key, tell.clone());
                drop(map);
                let answer = {
                    let (_guard, dropped) = oneshot::channel::<()>();
                    let flights = flights.clone();
                    tokio::spawn(async move {
                        let _ = dropped.await;
                        flights.lock().await.remove(&key);
                    });
                    backend.call(key).await.map_err(|error| error.to_string())
                };
                let told = answer.clone();
                match blocking {
                    true => {
                        let told = tokio::task::spawn_blocking(move || tell.send(told));
                        let _ = told.await.expect("it only sends");
                    }
                    false => drop(tell.send(told)),
                }
                return answer;
            }
        }
    })
}

pub fn walk(name: &str, followers: usize, times: usize) {
    let runtime = runtime();
    let _entered = runtime.enter();
    let mut rows = Rows {
        runtime,
        ways: Ways::default(),
        crowds: Crowds::default(),
        pairs: Vec::new(),
        waits: Vec::new(),
    };
    all(&mut rows);
    match followers {
        0 => rows.ways.walk(name, times),
        _ => rows.crowds.walk(name, followers, times),
    }
}
