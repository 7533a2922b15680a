//! What each layer adds to a unary gRPC call, beside the floor of what it cannot avoid.
//!
//! `cargo bench --features full --bench overhead`

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::type_complexity
)]

mod support;

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use support::plain::{Bare, Hand, Rows};
use support::{Answer, Counting, Echo, Question, Variant, measure, rounds};
use tower::util::MapErrLayer;
use tower_flow::connection::Connections;
use tower_flow::grpc::{GrpcServerLayer, GrpcType};
use tower_flow::preset::ByPath;
use tower_flow::profile::ProfileLayer;
use tower_flow::shed::ShedLayer;
use tower_flow::stats::Lease;
use tower_flow::timing::TimingLayer;
use tower_flow::{BoxError, Flow, preset};
use tower_layer::{Layer, Stack};
use tower_service::Service;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The same number of clock readings and relaxed additions, and nothing else.
#[derive(Clone)]
struct Floor<S> {
    inner: S,
    cells: &'static [AtomicU64; 32],
    clocks: usize,
    adds: usize,
}

impl<S> Service<http::Request<Question>> for Floor<S>
where
    S: Service<http::Request<Question>, Response = http::Response<Answer>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: http::Request<Question>) -> S::Future {
        for _ in 0..self.clocks {
            black_box(Instant::now());
        }
        for cell in &self.cells[..self.adds] {
            cell.fetch_add(1, Relaxed);
        }
        self.inner.call(req)
    }
}

fn floor(clocks: usize, adds: usize) -> Floor<Echo> {
    let cells = Box::leak(Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
    Floor {
        inner: Echo,
        cells,
        clocks,
        adds,
    }
}

fn grpc() -> GrpcServerLayer {
    (0..21).fold(GrpcServerLayer::new(), |layer, n| {
        layer.register("bench.Service", format!("Method{n}"), GrpcType::Unary)
    })
}

fn main() {
    let flow = Flow::new("bench");
    let timing = TimingLayer::new("t").route_with(ByPath).http().grpc();
    let connection = Connections::server("bench");
    let tracked = connection.accept(std::io::empty());
    let mut variants = vec![
        Variant::reused("bare", Echo),
        Variant::reused("floor of accounting: 2 clocks, 8 adds", floor(2, 8)),
        Variant::reused("grpc accounting", grpc().layer(Echo)),
        Variant::cloned("grpc accounting, a clone a call", grpc().layer(Echo)),
        Variant::reused(
            "grpc accounting, OpenTelemetry names",
            grpc().otel().layer(Echo),
        ),
        Variant::reused("floor of timing: 3 clocks, 8 adds", floor(3, 8)),
        Variant::reused("timing, generic", TimingLayer::new("t").layer(Echo)),
        Variant::reused("timing, HTTP, by path", timing.layer(Echo)),
        Variant::reused("floor of both: 3 clocks, 16 adds", floor(3, 16)),
        Variant::reused(
            "preset: accounting and timing",
            preset::grpc_server_observed(&flow).layer(Echo),
        ),
        Variant::cloned(
            "preset, a clone a call",
            preset::grpc_server_observed(&flow).layer(Echo),
        ),
        Variant::reused(
            "preset: grpc_server without its profile",
            Stack::new(
                ShedLayer::adaptive().grpc(),
                preset::grpc_server_observed(&flow),
            )
            .layer(Echo),
        ),
        Variant::reused(
            "preset: grpc_server, its profile off",
            Stack::new(
                ProfileLayer::new("p").route_with(ByPath).every(0).http(),
                Stack::new(
                    ShedLayer::adaptive().grpc(),
                    preset::grpc_server_observed(&flow),
                ),
            )
            .layer(Echo),
        ),
        Variant::reused(
            "preset: grpc_server",
            preset::grpc_server(&flow).layer(Echo),
        ),
        Variant::reused(
            "preset: http_server",
            preset::http_server(&flow).layer(Echo),
        ),
        Variant::reused(
            "preset: http_client",
            MapErrLayer::new(|error: BoxError| -> Infallible { panic!("{error}") })
                .layer(preset::http_client(&flow).layer(Echo)),
        ),
        Variant::reused("profile, off", ProfileLayer::new("t").every(0).layer(Echo)),
        Variant::reused("floor of a profile: 4 clocks, 6 adds", floor(4, 6)),
        Variant::reused(
            "profile, every call",
            ProfileLayer::new("t").delay_every(0).layer(Echo),
        ),
        Variant::reused(
            "profile, every call, one in 16 with its wake-ups",
            ProfileLayer::new("t").layer(Echo),
        ),
        Variant::reused(
            "profile, one call in 64",
            ProfileLayer::new("t").every(64).layer(Echo),
        ),
        Variant::reused("floor of a profile with a body: 8 clocks", floor(8, 12)),
        Variant::reused(
            "profile, HTTP, by path",
            ProfileLayer::new("t").route_with(ByPath).http().layer(Echo),
        ),
        Variant::reused("connection streams", tracked.connection().service(Echo)),
    ];
    // The first stays: all others are told as what they add to it.
    if let Some(only) = std::env::args().skip(1).find(|arg| !arg.starts_with('-')) {
        let mut index = 0;
        variants.retain(|variant| {
            index += 1;
            index == 1 || variant.name.contains(&only)
        });
    }
    let costs = measure(&mut variants, rounds(), 20_000);
    let bare = costs[0];
    println!("| layer | ns over bare, median | least | allocations over bare |");
    println!("|---|---:|---:|---:|");
    for (variant, cost) in variants.iter().zip(&costs) {
        println!(
            "| {} | {:.0} | {:.0} | {:.1} |",
            variant.name,
            cost.median - bare.median,
            cost.least - bare.least,
            cost.allocations - bare.allocations
        );
    }
    println!();
    shed();
    println!();
    parts();
}

/// What admission costs, beside tower's own layers and the floor.
fn shed() {
    let mut rows = Rows::default();
    rows.add("bare", Bare);
    rows.add("floor of a gate: one atomic", Hand::new(0));
    rows.add("floor of an adaptive gate: and two clocks", Hand::new(2));
    rows.add("shed, fixed", ShedLayer::fixed(1 << 20).layer(Bare));
    rows.add("shed, adaptive", ShedLayer::adaptive().layer(Bare));
    let tower = tower::ServiceBuilder::new()
        .layer(tower::load_shed::LoadShedLayer::new())
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(1 << 20));
    rows.add("tower LoadShed + ConcurrencyLimit", tower.service(Bare));
    rows.print(10 * rounds(), 5_000, support::allocations);
}

struct Leased(#[allow(dead_code)] u64);
tower_flow::leased!(Leased);

/// The parts a layer is made of, alone.
fn parts() {
    let lease = Lease::new(std::sync::Arc::new(Leased(0)));
    let cells = tower_flow::stats::Striped::new(16);
    let fine = tower_flow::stats::Exponential::new();
    let mut parts: Vec<(&str, Box<dyn FnMut()>)> = vec![
        (
            "std::time::Instant::now",
            Box::new(|| _ = black_box(Instant::now())),
        ),
        (
            "clock::now",
            Box::new(|| _ = black_box(tower_flow::clock::now())),
        ),
        (
            "Lease clone and drop",
            Box::new(move || drop(black_box(lease.clone()))),
        ),
        ("Striped add", Box::new(move || _ = cells.local().add(3, 1))),
        (
            "Exponential record",
            Box::new(move || fine.record(std::time::Duration::from_nanos(black_box(12_345)))),
        ),
    ];
    println!("| part | ns |");
    println!("|---|---:|");
    for (name, part) in &mut parts {
        let mut least = f64::MAX;
        for _ in 0..20 {
            let start = Instant::now();
            for _ in 0..100_000 {
                part();
            }
            least = least.min(start.elapsed().as_secs_f64() * 1e9 / 1e5);
        }
        println!("| {name} | {least:.1} |");
    }
}
