//! Some keys are asked for far more often than others: what coalescing saves then, and whom it helps.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_flow::coalesce::CoalesceLayer;
use tower_layer::Layer;
use tower_service::Service;

use crate::support::{self, Random, yes};

const KEYS: usize = 10_000;
const WORKERS: u64 = 64;
const TAKES: Duration = Duration::from_millis(5);
/// What the narrow backend does at a time.
const NARROW: usize = 16;

pub fn print() {
    let rounds = support::rounds().div_ceil(20);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    let coalesce = || CoalesceLayer::new(|key: &u64| Some(*key));
    let narrow = GlobalConcurrencyLimitLayer::new(NARROW);
    let wide = [(); 4].map(|()| Backend::default());
    let mut rows = [
        ("any number of calls at a time", "without", Run::default()),
        ("any number of calls at a time", "coalesce", Run::default()),
        ("16 calls at a time", "without", Run::default()),
        ("16 calls at a time", "coalesce", Run::default()),
    ];
    let zipf = Arc::new(Zipf::new());
    let services = (
        wide[0].clone(),
        coalesce().layer(wide[1].clone()),
        narrow.layer(wide[2].clone()),
        coalesce().layer(narrow.layer(wide[3].clone())),
    );
    for _ in 0..rounds {
        rows[0].2.add(&runtime, &services.0, &wide[0], &zipf);
        rows[1].2.add(&runtime, &services.1, &wide[1], &zipf);
        rows[2].2.add(&runtime, &services.2, &wide[2], &zipf);
        rows[3].2.add(&runtime, &services.3, &wide[3], &zipf);
    }
    println!(
        "{WORKERS} workers ask for one of {KEYS} keys after the other, by Zipf's law with exponent 1; an answer takes {} ms. \
         {rounds} s of each in turn.\n",
        TAKES.as_millis()
    );
    println!("| backend | | requests/s | backend calls | saved | p50, ms | p99, ms |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    for (backend, name, run) in &rows {
        let ms = |quantile| run.times.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "| {backend} | {name} | {:.0} | {} | {:.1} % | {:.2} | {:.2} |",
            run.times.len() as f64 / run.took,
            run.calls,
            100.0 * run.saved(),
            ms(0.5),
            ms(0.99)
        );
    }
    println!();
    let [wide, shared, narrow, relieved] = rows.map(|row| row.2);
    let p99 = |run: &Run| run.times.value_at_quantile(0.99) as f64 / 1e3;
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| calls are saved | {}: {:.1} % |",
        yes(shared.saved() > 0.0),
        100.0 * shared.saved()
    );
    println!(
        "| nobody waits longer: p99 at most 1.1 × | {}: {:.2} × |",
        yes(p99(&shared) <= 1.1 * p99(&wide)),
        p99(&shared) / p99(&wide)
    );
    println!(
        "| and less where calls queue | {}: {:.2} × |",
        yes(p99(&relieved) < p99(&narrow)),
        p99(&relieved) / p99(&narrow)
    );
}

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

struct Run {
    times: Histogram<u64>,
    calls: u64,
    took: f64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            times: Histogram::new(3).expect("a histogram"),
            calls: 0,
            took: 0.0,
        }
    }
}

impl Run {
    fn saved(&self) -> f64 {
        1.0 - self.calls as f64 / self.times.len() as f64
    }

    fn add<S>(&mut self, runtime: &Runtime, service: &S, backend: &Backend, zipf: &Arc<Zipf>)
    where
        S: Service<u64, Error: std::fmt::Debug, Future: Send, Response: Send>
            + Clone
            + Send
            + 'static,
    {
        let before = backend.0.load(Relaxed);
        let start = Instant::now();
        let end = start + Duration::from_secs(1);
        let all = runtime.block_on(async {
            let workers: Vec<_> = (0..WORKERS)
                .map(|n| {
                    let (mut service, zipf) = (service.clone(), zipf.clone());
                    let mut random = Random(n + 1);
                    tokio::spawn(async move {
                        let mut times = Vec::new();
                        while Instant::now() < end {
                            let key = zipf.key(random.next());
                            let start = Instant::now();
                            std::future::poll_fn(|cx| service.poll_ready(cx))
                                .await
                                .expect("it is ready");
                            service.call(key).await.expect("an answer");
                            times.push(start.elapsed().as_micros() as u64);
                        }
                        times
                    })
                })
                .collect();
            let mut all = Vec::new();
            for worker in workers {
                all.extend(worker.await.expect("it only calls"));
            }
            all
        });
        self.took += start.elapsed().as_secs_f64();
        self.calls += backend.0.load(Relaxed) - before;
        for time in all {
            self.times.record(time).expect("any time");
        }
    }
}

/// How likely the keys up to each are.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new() -> Self {
        let mut sum = 0.0;
        let sums = (1..=KEYS).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        let sums: Vec<_> = sums.collect();
        Self(sums.iter().map(|upto| upto / sum).collect())
    }

    fn key(&self, random: f64) -> u64 {
        self.0.partition_point(|upto| *upto < random) as u64
    }
}
