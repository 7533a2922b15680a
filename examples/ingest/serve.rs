//! The server: what stands in front of what, and how it comes to its end.

use std::io::Write as _;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower_flow::connection::Connections;
use tower_flow::grpc::GrpcServerLayer;
use tower_flow::{BoxError, Flow, preset};

use crate::intake::Intake;
use crate::options::Serve;
use crate::proto::FDS;
use crate::proto::ingest_service_server::IngestServiceServer;
use crate::store::Store;
use crate::worker::Workers;

/// Idle connections are asked whether they live.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What a stream, and a connection, may have on its way.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Calls of a connection at once.
const CALLS: u32 = 1024;

/// Serves until SIGTERM or SIGINT, and then until what was acknowledged is processed or safe.
pub(crate) async fn serve(options: Serve) -> Result<(), BoxError> {
    let mut signals = Signals::new()?;
    let flow = Flow::new("ingest");
    let store = Store::open(&options, &flow).await?;
    let workers = Workers::start(&store, &options)?;

    let (end, ending) = watch::channel(false);
    let (intake, batches) = Intake::new(&store, options.queue, ending.clone(), &flow);
    let accounting = GrpcServerLayer::new().register_fds(FDS)?;
    let connections = Connections::server("grpc").attach(&flow);
    let incoming = TcpIncoming::bind(options.listen)
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?
        .with_nodelay(Some(true));
    say(format_args!(
        "listening on http://{}",
        incoming.local_addr()?
    ));

    let mut beside = JoinSet::new();
    if let Some(address) = options.admin {
        let admin = flow.admin().bind(address).await;
        let admin = admin.map_err(|error| format!("cannot show on {address}: {error}"))?;
        say(format_args!("admin on http://{}", admin.local_addr()));
        beside.spawn(admin.run());
    }

    let (stop, mut stopping) = watch::channel(false);
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(CALLS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .layer(preset::grpc_server_observed_with(accounting, &flow))
        .layer(connections.streams())
        .add_service(IngestServiceServer::new(intake))
        .serve_with_incoming_shutdown(connections.incoming(incoming), async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        });
    let mut server = Box::pin(server);
    tokio::select! {
        ended = &mut server => ended?,
        () = signals.next() => {
            eprintln!("shutting down; a second signal ends at once");
            stop.send_replace(true);
            let stopped = async {
                // Streams may end by themselves first; then they are ended, with an answer; then they are cut.
                let soft = options.grace.mul_f64(0.8);
                if let Ok(ended) = tokio::time::timeout(soft, &mut server).await {
                    return ended;
                }
                end.send_replace(true);
                let hard = options.grace.saturating_sub(soft).max(Duration::from_millis(100));
                tokio::time::timeout(hard, &mut server).await.unwrap_or(Ok(()))
            };
            tokio::select! {
                ended = stopped => ended?,
                () = signals.next() => return Err("ended at once; what was not processed may be lost".into()),
            }
        }
    }
    drop(server);
    let finish = async {
        batches.drain().await;
        store.close();
        workers.finish().await?;
        store.finish().await;
        Ok(())
    };
    tokio::select! {
        finished = finish => finished,
        () = signals.next() => Err("ended at once; what was not processed may be lost".into()),
    }
}

/// A line for whoever has started the program. Nobody need read it.
fn say(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// What asks the program to end.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
