//! The first act: accounting and timing round a live tonic server and its client.

mod table;

use std::time::Duration;

use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tower::ServiceBuilder;
use tower_flow::connection::{Connections, ConnectionsSnapshot};
use tower_flow::grpc::{GrpcClientLayer, GrpcHandle, GrpcServerLayer, MethodSnapshot};
use tower_flow::inspect::Value;
use tower_flow::outcome::Code;
use tower_flow::preset::ByPath;
use tower_flow::profile::ProfileLayer;
use tower_flow::throttle::ThrottleLayer;
use tower_flow::{BoxError, Flow, preset};

use crate::echo::{Echo, EchoClient, EchoServer, FDS};
use crate::load::Driven;
use crate::{Options, load};

/// What the accounting act found.
pub(crate) struct Accounting {
    sides: Vec<Side>,
    driven: Driven,
    connections: ConnectionsSnapshot,
    problems: Vec<String>,
}

/// One side's books.
struct Side {
    name: &'static str,
    methods: Vec<MethodSnapshot>,
    /// What timing shows of itself.
    times: Value,
}

pub(crate) async fn run(options: &Options, flow: &Flow) -> Result<Accounting, BoxError> {
    let accounting = GrpcServerLayer::new().register_fds(FDS)?;
    let server_books = accounting.handle();
    let server = preset::grpc_server_observed_with(accounting, flow);
    let connections = Connections::server("showcase").attach(flow);
    let profiled = |place| {
        let layer = ProfileLayer::new(place).route_with(ByPath);
        layer.attach(flow).http()
    };
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let addr = incoming.local_addr()?;
    tokio::spawn(
        Server::builder()
            // This load resets more streams than an honest peer would; by default a server hangs up on one that does.
            .http2_max_pending_accept_reset_streams(Some(10_000))
            .layer(profiled("server"))
            .layer(server)
            .layer(connections.streams())
            .layer(profiled("handler"))
            .add_service(EchoServer::new(Echo))
            .serve_with_incoming(connections.incoming(incoming)),
    );

    let accounting = GrpcClientLayer::new().register_fds(FDS)?;
    let client_books = accounting.handle();
    let throttle = ThrottleLayer::new("showcase");
    let client = preset::grpc_client_with(accounting, throttle, flow);
    let channel = Endpoint::from_shared(format!("http://{addr}"))?
        .connect()
        .await?;
    let stub = EchoClient::new(ServiceBuilder::new().layer(client).service(channel));

    let driven = load::drive(stub, Duration::from_secs(options.seconds), options.json).await;
    settle(&server_books, &client_books).await;
    let sides = vec![
        Side::new("server", &server_books, flow, "grpc_server"),
        Side::new("client", &client_books, flow, "grpc_client"),
    ];
    let problems = disagreements(&server_books, &client_books, driven.calls);
    Ok(Accounting {
        sides,
        driven,
        connections: connections.snapshot(),
        problems,
    })
}

/// Waits until the last resets have arrived: cancelled calls end on the server a little after the client left them.
async fn settle(server: &GrpcHandle, client: &GrpcHandle) {
    let quiet = |handle: &GrpcHandle| handle.snapshot().iter().all(|method| method.in_flight == 0);
    for _ in 0..500 {
        if quiet(server) && quiet(client) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the two sides' books do not agree on.
///
/// A call that is cut short may have messages under way that only one side ever saw; so messages are compared exactly
/// for the methods whose calls all ran to the same end on both sides, and as "never received more than was sent" for the
/// others.
fn disagreements(server: &GrpcHandle, client: &GrpcHandle, calls: u64) -> Vec<String> {
    let mut problems = Vec::new();
    let mut check = |ok: bool, problem: String| {
        if !ok {
            problems.push(problem);
        }
    };
    let handled =
        |method: &MethodSnapshot| method.handled.iter().map(|(_, count)| count).sum::<u64>();
    let mut started = 0;
    for ours in client.snapshot() {
        let name = &ours.method;
        let Some(theirs) = server
            .snapshot()
            .into_iter()
            .find(|theirs| theirs.method == *name)
        else {
            check(false, format!("{name}: the server never heard of it"));
            continue;
        };
        started += ours.started;
        for (side, method) in [("client", &ours), ("server", &theirs)] {
            let (started, handled) = (method.started, handled(method));
            check(
                started == handled,
                format!("{name}: {side} started {started} and handled {handled}"),
            );
            check(
                method.truncated == 0 || handled > 0,
                format!("{name}: {side} saw truncated bodies"),
            );
        }
        let cut = ours
            .handled
            .iter()
            .any(|(code, _)| matches!(code, Code::Cancelled | Code::DeadlineExceeded));
        let whole = !cut && ours.handled == theirs.handled;
        for (what, sent, received) in [
            (
                "messages to the server",
                ours.messages_sent,
                theirs.messages_received,
            ),
            (
                "messages to the client",
                theirs.messages_sent,
                ours.messages_received,
            ),
            (
                "bytes to the server",
                ours.bytes_sent,
                theirs.bytes_received,
            ),
            (
                "bytes to the client",
                theirs.bytes_sent,
                ours.bytes_received,
            ),
        ] {
            let agree = if whole {
                sent == received
            } else {
                sent >= received
            };
            check(
                agree,
                format!("{name}: {sent} {what} sent, {received} received"),
            );
        }
        // A call may end before it ever reached the wire; none may appear from nowhere.
        let (here, there) = (ours.started, theirs.started);
        check(
            if whole { here == there } else { here >= there },
            format!("{name}: {here} calls sent, {there} received"),
        );
    }
    check(
        started == calls,
        format!("{calls} calls were made, {started} were counted"),
    );
    problems
}

impl Side {
    fn new(name: &'static str, books: &GrpcHandle, flow: &Flow, timing: &str) -> Self {
        let layers = flow.attached();
        let timing = layers
            .iter()
            .find(|layer| layer.kind() == "timing" && layer.name() == timing);
        Self {
            name,
            methods: books.snapshot(),
            times: timing.map_or(Value::Null, |timing| timing.snapshot()),
        }
    }
}
