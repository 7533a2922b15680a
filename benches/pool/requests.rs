//! What a request costs that finds a connection idle.

use hyper_util::client::legacy::connect::HttpConnector;
use tokio::runtime::Runtime;

use crate::clients::{Client, Cost, floor, legacy, measured, ours};
use crate::server::{Server, Speaks, runtime};
use crate::support::{self, median, yes};

const NAMES: [&str; 4] = [
    "`SendRequest`, no pool",
    "hyper-util 0.1, `Client`",
    "tower-flow",
    "tower-flow, no timings",
];

/// One table.
struct Case {
    name: &'static str,
    about: &'static str,
    speaks: Speaks,
    memory: bool,
    callers: usize,
}

const CASES: [Case; 6] = [
    Case {
        name: "http1-tcp-1",
        about: "HTTP/1 over TCP, one at a time",
        speaks: Speaks::Http1,
        memory: false,
        callers: 1,
    },
    Case {
        name: "http1-tcp-64",
        about: "HTTP/1 over TCP, 64 at a time",
        speaks: Speaks::Http1,
        memory: false,
        callers: 64,
    },
    Case {
        name: "http1-memory-1",
        about: "HTTP/1 in memory, one at a time",
        speaks: Speaks::Http1,
        memory: true,
        callers: 1,
    },
    Case {
        name: "http1-memory-64",
        about: "HTTP/1 in memory, 64 at a time",
        speaks: Speaks::Http1,
        memory: true,
        callers: 64,
    },
    Case {
        name: "http2-tcp-64",
        about: "HTTP/2 over TCP, 64 streams of one connection",
        speaks: Speaks::Http2,
        memory: false,
        callers: 64,
    },
    Case {
        name: "http2-memory-64",
        about: "HTTP/2 in memory, 64 streams of one connection",
        speaks: Speaks::Http2,
        memory: true,
        callers: 64,
    },
];

/// Requests of a slice.
const CALLS: usize = 3_200;

pub fn print() {
    support::pin(0);
    let runtime = runtime();
    let rounds = support::rounds();
    println!(
        "A request that finds a connection idle: CPU time of the client's thread, median of {rounds} rounds of {CALLS} \
         requests in turn; ratios are those of one round.\n"
    );
    let mut verdicts = Vec::new();
    for case in &CASES {
        let server = Server::start(case.speaks);
        let mut clients: Vec<_> = (0..NAMES.len())
            .map(|which| case.client(which, &runtime, &server))
            .collect();
        let mut costs = vec![Vec::new(); clients.len()];
        for round in 0..rounds + 2 {
            for turn in 0..clients.len() {
                let which = (round + turn) % clients.len();
                let calls = CALLS / case.callers;
                let cost = measured(&mut *clients[which], &runtime, &server, calls);
                // The first two warm up.
                if round >= 2 {
                    costs[which].push(cost);
                }
            }
        }
        verdicts.extend(case.print(&costs));
    }
    println!("| target | reached |");
    println!("|---|---|");
    for verdict in verdicts {
        println!("{verdict}");
    }
}

/// Makes so many requests of one kind: a case, a slash and a number of `NAMES`.
pub fn walk(name: &str, calls: usize) {
    let (case, which) = name.rsplit_once('/').expect("CASE/CLIENT");
    let case = CASES.iter().find(|known| known.name == case);
    let case = case.expect("one of the cases");
    let (runtime, server) = (runtime(), Server::start(case.speaks));
    let mut client = case.client(which.parse().expect("a number"), &runtime, &server);
    client.run(&runtime, calls / case.callers);
}

impl Case {
    fn client(&self, which: usize, runtime: &Runtime, server: &Server) -> Box<dyn Client> {
        let uri = format!("http://{}/", server.address);
        let uri = uri.parse().expect("a URI");
        let (speaks, callers) = (self.speaks, self.callers);
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        let memory = server.memory.clone();
        // Tasks that a client begins with need a runtime.
        let _in = runtime.enter();
        match (which, self.memory) {
            (0, false) => floor(runtime, tcp, speaks, &uri, callers),
            (0, true) => floor(runtime, memory, speaks, &uri, callers),
            (1, false) => legacy(tcp, speaks, &uri, callers),
            (1, true) => legacy(memory, speaks, &uri, callers),
            (_, false) => ours(tcp, speaks, &uri, callers, which == 2),
            (_, true) => ours(memory, speaks, &uri, callers, which == 2),
        }
    }

    /// The table, and what it says of the targets.
    fn print(&self, costs: &[Vec<Cost>]) -> Vec<String> {
        println!(
            "| {} | µs of CPU | of `Client` | over no pool, µs | allocations | tasks |",
            self.about
        );
        println!("|---|---:|---:|---:|---:|---:|");
        let paired = |which: usize, to: usize, by: fn(f64, f64) -> f64| {
            let pairs = costs[which].iter().zip(&costs[to]);
            median(pairs.map(|(one, other)| by(one.cpu, other.cpu)))
        };
        let middle = |which: usize, of: fn(&Cost) -> f64| median(costs[which].iter().map(of));
        for (which, name) in NAMES.iter().enumerate() {
            println!(
                "| {name} | {:.2} | {:.2} | {:.2} | {:.1} | {:.3} |",
                middle(which, |cost| cost.cpu) / 1e3,
                paired(which, 1, |one, other| one / other),
                paired(which, 0, |one, other| one - other) / 1e3,
                middle(which, |cost| cost.allocations),
                middle(which, |cost| cost.tasks),
            );
        }
        println!();
        let ratio = paired(2, 1, |one, other| one / other);
        let allocations = [2, 1].map(|which| middle(which, |cost| cost.allocations));
        let tasks = middle(2, |cost| cost.tasks);
        vec![
            format!(
                "| {}: ≤ 0.90× the CPU of `Client` | {}: {ratio:.2}× |",
                self.about,
                yes(ratio <= 0.9)
            ),
            format!(
                "| {}: fewer allocations, no task | {}: {:.1} against {:.1}, {tasks:.3} |",
                self.about,
                yes(allocations[0] < allocations[1] && tasks < 0.0005),
                allocations[0],
                allocations[1]
            ),
        ]
    }
}
