//! Table 3: what a layer costs a tonic server, end to end.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tonic::codegen::StdError;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tower_flow::grpc::{GrpcServerLayer, GrpcType};
use tower_flow::{Flow, preset};
use tower_http::trace::TraceLayer;
use tower_layer::{Identity, Layer};
use tower_service::Service;

use crate::echo::{Client, EchoServer};
use crate::{cpu, support};

const IN_FLIGHT: usize = 64;
const SLICE: Duration = Duration::from_millis(250);

/// A server on a thread of its own and a client of it.
struct Variant {
    name: &'static str,
    clock: mpsc::UnboundedSender<oneshot::Sender<Duration>>,
    client: Client<Channel>,
    /// Microseconds of the server's CPU per request, by round.
    costs: Vec<f64>,
}

pub fn print() {
    let rounds = support::rounds();
    cpu::pin(0);
    let variants = runtime().block_on(async {
        let mut variants = variants();
        for round in 0..=rounds {
            // Another one goes first in every round.
            for turn in 0..variants.len() {
                let place = (round + turn) % variants.len();
                let cost = variants[place].slice().await;
                // The first round warms up.
                if round > 0 {
                    variants[place].costs.push(cost);
                }
            }
        }
        variants
    });
    println!("## A tonic server, end to end\n");
    println!(
        "A unary echo over loopback, {IN_FLIGHT} calls in flight: the server's thread runs its own single-threaded \
         runtime on one processor, the client on another, and reads its own CPU clock before and after each slice of {} ms. All variants take turns in each of \
         {rounds} rounds, and a variant is compared with the server without a layer in the same round.\n",
        SLICE.as_millis()
    );
    println!(
        "| layer | µs of CPU per request, median | over none, µs, median | interquartile range | over none |"
    );
    println!("|---|---:|---:|---:|---:|");
    for variant in &variants {
        variant.print(&variants[0]);
    }
}

fn variants() -> Vec<Variant> {
    let accounting = GrpcServerLayer::new().register("bench.Echo", "Say", GrpcType::Unary);
    vec![
        Variant::new("none", Identity::new()),
        // What it differs by from the first is chance.
        Variant::new("none, once more", Identity::new()),
        Variant::new("tower-flow, gRPC accounting", accounting),
        Variant::new(
            "tower-flow, preset",
            preset::grpc_server_observed(&Flow::new("bench")),
        ),
        Variant::new(
            "tonic_prometheus_layer 0.3",
            tonic_prometheus_layer::MetricsLayer::new(),
        ),
        Variant::new(
            "tower-http 0.7, TraceLayer for gRPC",
            TraceLayer::new_for_grpc(),
        ),
    ]
}

impl Variant {
    fn new<L, B>(name: &'static str, layer: L) -> Self
    where
        L: Layer<Routes> + Clone + Send + Sync + 'static,
        L::Service: Service<Request<tonic::body::Body>, Response = Response<B>>,
        L::Service: Service<Request<tonic::body::Body>, Error: Into<StdError> + Send, Future: Send>,
        L::Service: Clone + Send + 'static,
        B: Body<Data = Bytes, Error: Into<StdError>> + Send + 'static,
    {
        let (clock, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<Duration>>();
        let (bound, address) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            cpu::pin(1);
            runtime().block_on(async {
                tokio::spawn(async move {
                    while let Some(reply) = asked.recv().await {
                        let _ = reply.send(cpu::time());
                    }
                });
                let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
                let incoming = incoming.with_nodelay(Some(true));
                bound
                    .send(incoming.local_addr().expect("an address"))
                    .expect("the client waits");
                tonic::transport::Server::builder()
                    .layer(layer)
                    .add_service(EchoServer)
                    .serve_with_incoming(incoming)
                    .await
                    .expect("it serves until the process ends");
            });
        });
        Self {
            name,
            clock,
            client: Client::new(channel(address.recv().expect("the server starts"))),
            costs: Vec::new(),
        }
    }

    /// Calls the server for a while: its CPU per request, in microseconds.
    async fn slice(&self) -> f64 {
        let before = self.server_time().await;
        let end = Instant::now() + SLICE;
        let callers: Vec<_> = (0..IN_FLIGHT)
            .map(|_| {
                let mut client = self.client.clone();
                tokio::spawn(async move {
                    let mut calls = 0u64;
                    while Instant::now() < end {
                        client.say("sixteen bytes ok").await;
                        calls += 1;
                    }
                    calls
                })
            })
            .collect();
        let mut calls = 0;
        for caller in callers {
            calls += caller.await.expect("no call fails");
        }
        let took = self.server_time().await - before;
        took.as_secs_f64() * 1e6 / calls as f64
    }

    /// The CPU time of the server's thread, as that thread reads it.
    async fn server_time(&self) -> Duration {
        let (reply, time) = oneshot::channel();
        self.clock.send(reply).expect("the server runs");
        time.await.expect("the server runs")
    }

    fn print(&self, none: &Self) {
        let pairs = self.costs.iter().zip(&none.costs);
        let over = sorted(pairs.clone().map(|(cost, none)| cost - none));
        let percent = sorted(pairs.map(|(cost, none)| (cost / none - 1.0) * 100.0));
        println!(
            "| {} | {:.2} | {:+.2} | {:+.2} to {:+.2} | {:+.1} % |",
            self.name,
            quantile(&sorted(self.costs.iter().copied()), 0.5),
            quantile(&over, 0.5),
            quantile(&over, 0.25),
            quantile(&over, 0.75),
            quantile(&percent, 0.5),
        );
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("an address")
        .connect_lazy()
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}
