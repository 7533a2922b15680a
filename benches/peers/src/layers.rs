//! Table 1: one unary gRPC call through a layer, in memory.

use std::convert::Infallible;
use std::sync::Barrier;

use axum_prometheus::PrometheusMetricLayer;
use http::{Request, Response};
use http_body::Body;
use tower_flow::grpc::{GrpcServerLayer, GrpcType};
use tower_flow::{Flow, preset};
use tower_http::trace::TraceLayer;
use tower_layer::Layer;
use tower_otel_http_metrics::HTTPMetricsLayerBuilder;
use tower_service::Service;

use crate::cpu;
use crate::floor::Floor;
use crate::support::{self, Cost, Echo, Question, Variant};

const CALLS: usize = 10_000;

/// The ways every service is called in, in the order of the columns.
const WAYS: usize = 3;

/// Makes a provider that aggregates, of one version of OpenTelemetry, the global one.
macro_rules! provide {
    ($api:ident, $sdk:ident) => {
        $api::global::set_meter_provider(
            $sdk::metrics::SdkMeterProvider::builder()
                .with_reader($sdk::metrics::ManualReader::builder().build())
                .build(),
        )
    };
}
#[derive(Default)]
struct Rows {
    sees: Vec<&'static str>,
    variants: Vec<Variant>,
}

pub fn print() {
    let mut rows = Rows::default();
    rows.add("bare service", "", Echo);
    ours(&mut rows);
    peers(&mut rows);
    let rounds = support::rounds();
    let costs = support::measure(&mut rows.variants, rounds, CALLS);

    println!("## One unary gRPC call through a layer, in memory\n");
    println!(
        "Nanoseconds over the bare service, median (least) of {rounds} rounds of {CALLS} calls in turn; the requests are \
         for 21 methods, and every response is read to its trailers. With two threads, on a processor each, both \
         call a clone for every request; the time is that of the slower one, per call.\n"
    );
    println!(
        "| layer | it sees | one service | a clone a call | two threads | allocations, one service | a clone a call |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|");
    let nothing = Cost {
        median: 0.0,
        least: 0.0,
        allocations: 0.0,
    };
    let rows: Vec<_> = rows
        .variants
        .chunks(WAYS)
        .zip(rows.sees)
        .map(|(ways, sees)| (ways[0].name, sees))
        .zip(costs.chunks(WAYS))
        .collect();
    let bare = rows[0].1;
    for ((name, sees), costs) in &rows[1..] {
        line(name, sees, costs, bare);
    }
    line("bare service, whole", rows[0].0.1, bare, &[nothing; WAYS]);
    println!(
        "\n\"To the headers\" means that a call is over there: neither a status in the trailers nor the time of the body \
         counts. The OpenTelemetry layers report to the SDK's meter provider with its manual reader, \
         axum-prometheus to its own recorder with its upkeep every five seconds, tonic_prometheus_layer to its global \
         registry. TraceLayer has no subscriber, so its spans are disabled; axum-prometheus \
         turns on tracing's feature `log` for the whole build, which costs TraceLayer a little."
    );
}

fn ours(rows: &mut Rows) {
    let accounting = (0..21).fold(GrpcServerLayer::new(), |layer, n| {
        layer.register("bench.Service", format!("Method{n}"), GrpcType::Unary)
    });
    let flow = Flow::new("bench");
    rows.add(
        "floor",
        "2 clock readings, 8 relaxed additions",
        Floor(Echo),
    );
    rows.add(
        "tower-flow, gRPC accounting",
        "calls, codes, messages, bytes, time by method; to the trailers",
        accounting.layer(Echo),
    );
    rows.add(
        "tower-flow, preset",
        "the same, first byte, stalls, a sliding window; to the trailers",
        preset::grpc_server_observed(&flow).layer(Echo),
    );
}

fn peers(rows: &mut Rows) {
    rows.add(
        "tonic_prometheus_layer 0.3",
        "calls, codes, time by method; to the headers",
        tonic_prometheus_layer::MetricsLayer::new().layer(Echo),
    );
    rows.add(
        "tower-http 0.7, TraceLayer for gRPC",
        "outcome; to the trailers",
        TraceLayer::new_for_grpc().layer(Echo),
    );
    provide!(opentelemetry_033, opentelemetry_sdk_033);
    let meter = opentelemetry_033::global::meter("bench");
    rows.add(
        "tower-otel 0.12, HTTP metrics",
        "calls, HTTP status, time of all requests; to the headers",
        tower_otel::metrics::HttpLayer::server(&meter).layer(Echo),
    );
    rows.add(
        "axum-prometheus 0.10",
        "calls, HTTP status, time by path; to the headers",
        axum_prometheus().layer(Echo),
    );
    provide!(opentelemetry_032, opentelemetry_sdk_032);
    rows.add(
        "tonic-otel-layer 0.2",
        "calls, codes, time by method; to the headers",
        tonic_otel_layer::MetricsLayerBuilder::new()
            .build()
            .layer(Echo),
    );
    provide!(opentelemetry_030, opentelemetry_sdk_030);
    let layer = HTTPMetricsLayerBuilder::builder()
        .with_meter(opentelemetry_030::global::meter("bench"))
        .build()
        .expect("a meter is all it needs");
    rows.add(
        "tower-otel-http-metrics 0.16",
        "calls, HTTP status, time of all requests; to the headers",
        layer.layer(Echo),
    );
}

/// The layer as it comes, with its upkeep task on a runtime of its own.
fn axum_prometheus() -> PrometheusMetricLayer<'static> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let (layer, _) = runtime.block_on(async { PrometheusMetricLayer::pair() });
    // The upkeep goes on until the process ends.
    std::mem::forget(runtime);
    layer
}

impl Rows {
    fn add<S, B>(&mut self, name: &'static str, sees: &'static str, service: S)
    where
        S: Service<Request<Question>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        B: Body + Unpin,
    {
        self.sees.push(sees);
        self.variants.extend([
            Variant::reused(name, service.clone()),
            Variant::cloned(name, service.clone()),
            two_threads(name, service),
        ]);
    }
}

/// Two threads at once, with a clone of the service for every call, as servers do.
fn two_threads<S, B>(name: &'static str, service: S) -> Variant
where
    S: Service<Request<Question>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    B: Body + Unpin,
{
    let run = move |requests: &[Request<Question>]| {
        let begin = Barrier::new(2);
        std::thread::scope(|scope| {
            for (n, service) in [service.clone(), service.clone()].into_iter().enumerate() {
                let begin = &begin;
                scope.spawn(move || {
                    cpu::pin(n);
                    begin.wait();
                    for req in requests {
                        support::call(&mut service.clone(), req.clone());
                    }
                });
            }
        });
    };
    Variant {
        name,
        run: Box::new(run),
    }
}

fn line(name: &str, sees: &str, costs: &[Cost], bare: &[Cost]) {
    let over: Vec<_> = costs
        .iter()
        .zip(bare)
        .map(|(cost, bare)| {
            let (median, least) = (cost.median - bare.median, cost.least - bare.least);
            format!("{median:.0} ({least:.0})")
        })
        .collect();
    let allocations: Vec<_> = costs[..2]
        .iter()
        .zip(bare)
        .map(|(cost, bare)| format!("{:.1}", cost.allocations - bare.allocations))
        .collect();
    println!(
        "| {name} | {sees} | {} | {} |",
        over.join(" | "),
        allocations.join(" | ")
    );
}
