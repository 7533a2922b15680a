//! What a layer costs when every worker uses it at once: 1 thread, and as many as there are cores, on clones.
//!
//! `cargo bench --features full --bench contention`

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::type_complexity
)]
#![allow(dead_code)] // The other bench uses the rest.

mod support;

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::{Request, Response};
use http_body::Body;
use support::{Counting, Echo, Question, call, on, requests, rounds};
use tower_flow::grpc::{GrpcServerLayer, GrpcType};
use tower_flow::stats::{Lease, Striped};
use tower_flow::timing::TimingLayer;
use tower_flow::{Flow, preset};
use tower_layer::Layer;
use tower_service::Service;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CALLS: usize = 20_000;

/// What every worker does: nanoseconds for each time, the slowest worker's.
type Work<'a> = Box<dyn Fn(usize) -> f64 + 'a>;

/// Each worker with a clone of the service, and a clone of that for every call, as servers do.
fn served<'a, S, B>(service: S) -> Work<'a>
where
    S: Service<Request<Question>, Response = Response<B>, Error = Infallible> + Clone + Sync + 'a,
    B: Body + Unpin,
{
    Box::new(move |threads| {
        on(threads, CALLS, || {
            let (service, requests) = (service.clone(), requests());
            for req in requests.iter().cycle().take(CALLS) {
                call(&mut service.clone(), req.clone());
            }
        })
    })
}

fn repeated<'a>(work: impl Fn() + Sync + 'a) -> Work<'a> {
    Box::new(move |threads| on(threads, 50 * CALLS, || (0..50 * CALLS).for_each(|_| work())))
}

struct Leased;
tower_flow::leased!(Leased);

fn main() {
    let grpc = (0..21).fold(GrpcServerLayer::new(), |layer, n| {
        layer.register("bench.Service", format!("Method{n}"), GrpcType::Unary)
    });
    let preset = preset::grpc_server_observed(&Flow::new("bench"));
    let shared = AtomicU64::new(0);
    let striped = Striped::new(1);
    let counted = std::sync::Arc::new(0u8);
    let lease = Lease::new(std::sync::Arc::new(Leased));
    let rows: Vec<(&str, Work<'_>)> = vec![
        ("bare service", served(Echo)),
        ("grpc accounting", served(grpc.layer(Echo))),
        ("timing, generic", served(TimingLayer::new("t").layer(Echo))),
        ("preset: accounting and timing", served(preset.layer(Echo))),
        (
            "one shared atomic",
            repeated(|| _ = shared.fetch_add(1, Relaxed)),
        ),
        (
            "one striped counter",
            repeated(|| _ = striped.local().add(0, 1)),
        ),
        (
            "one Arc, clone and drop",
            repeated(|| drop(black_box(counted.clone()))),
        ),
        (
            "one Lease, clone and drop",
            repeated(|| drop(black_box(lease.clone()))),
        ),
    ];
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let mut times = vec![(Vec::new(), Vec::new()); rows.len()];
    // In turn, so that a machine that slows down slows down all of them.
    for _ in 0..rounds().div_ceil(3) {
        for ((_, work), (alone, together)) in rows.iter().zip(&mut times) {
            alone.push(work(1));
            together.push(work(cores));
        }
    }
    println!("| what | 1 thread, ns | {cores} threads, ns per worker | ratio |");
    println!("|---|---:|---:|---:|");
    for ((name, _), (alone, together)) in rows.iter().zip(times) {
        let (alone, together) = (median(alone), median(together));
        println!(
            "| {name} | {alone:.1} | {together:.1} | {:.2} |",
            together / alone
        );
    }
}
