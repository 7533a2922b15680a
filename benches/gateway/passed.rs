//! Requests through nginx, the gateway, and the gateway with all layers.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::found;
use crate::nginx::Nginx;
use crate::programs::{Program, example};

/// How long each is asked in a round.
const TURN: Duration = Duration::from_secs(1);
const CONNECTIONS: &str = "32";

/// What the issue allows.
const NGINX: f64 = 2.0;
const LAYERS: f64 = 1.15;

struct Way {
    name: &'static str,
    process: u32,
    url: String,
    /// Microseconds of processor time a request, a figure for each round.
    cost: Vec<f64>,
}

pub fn main(rounds: usize) {
    if !found("nginx") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("tower-flow-gateway-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("there is a place for temporary files");
    let nginx = Nginx::start(&dir);
    let upstream = format!("http://127.0.0.1:{}", nginx.origin);
    let layers = "--admin 127.0.0.1:0 --grpc-metrics --coalesce --shed --throttle";
    let gateways = ["", layers].map(|flags| {
        let flags = format!("--listen 127.0.0.1:0 --upstream {upstream} {flags}");
        Program::start(example("gateway"), flags.split_whitespace())
    });
    let way = |name, process, url| Way {
        name,
        process,
        url,
        cost: Vec::new(),
    };
    let [off, on] = &gateways;
    let ways = || {
        [
            way(
                "nginx",
                nginx.worker,
                format!("http://127.0.0.1:{}", nginx.proxy),
            ),
            way("gateway", off.id(), off.line("listening on ")),
            way("gateway, all layers", on.id(), on.line("listening on ")),
        ]
    };
    let script = dir.join("addresses.lua");
    let lua = "local n = math.random(1000000000)\n\
               request = function() n = n + 1; return wrk.format('GET', '/' .. n) end\n";
    std::fs::write(&script, lua).expect("the directory is there");
    if found("wrk") {
        let load = |url: &str| wrk(url, &script);
        let [nginx, off, on] = measured("HTTP/1.1, wrk", ways(), rounds, load);
        println!(
            "HTTP/1.1: gateway {:.2} of nginx ({NGINX} is allowed), all layers {:.2} of none ({LAYERS} is wanted)",
            off / nginx,
            on / off
        );
        assert!(off / nginx < NGINX * 2.0, "far beyond what is allowed");
        assert!(on / off < LAYERS * 1.7, "far beyond what is wanted");
    }
    if found("h2load") {
        let [_, off, on] = ways();
        let [off, on] = measured("HTTP/2, h2load", [off, on], rounds, h2load);
        println!("HTTP/2: all layers {:.2} of none", on / off);
    }
    let _ = std::fs::remove_dir_all(&dir);
}

/// The medians, each way asked in turn.
fn measured<const N: usize>(
    title: &str,
    mut ways: [Way; N],
    rounds: usize,
    load: impl Fn(&str) -> u64,
) -> [f64; N] {
    for round in 0..=rounds {
        for way in &mut ways {
            let before = cpu(way.process);
            let requests = load(&way.url);
            let spent = cpu(way.process) - before;
            // The first is for warming up.
            if round > 0 {
                way.cost.push(spent.as_secs_f64() * 1e6 / requests as f64);
            }
        }
    }
    println!("{title:<24} us a request: median (least .. most)");
    ways.map(|mut way| {
        way.cost.sort_by(f64::total_cmp);
        let (least, most) = (way.cost[0], way.cost[rounds - 1]);
        let median = way.cost[rounds / 2];
        println!("  {:<22} {median:6.1} ({least:.1} .. {most:.1})", way.name);
        median
    })
}

/// What the threads of a process have computed.
fn cpu(process: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let nanos = tasks.flatten().filter_map(|task| {
        let books = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        books.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// How many requests were answered; all of them well.
fn wrk(url: &str, script: &Path) -> u64 {
    let mut command = Command::new("wrk");
    let seconds = format!("{}s", TURN.as_secs());
    command
        .args(["-t1", "-c", CONNECTIONS, "-d", &seconds, "-s"])
        .arg(script)
        .arg(url);
    let said = said(&mut command);
    assert!(
        !said.contains("Non-2xx") && !said.contains("Socket errors"),
        "{said}"
    );
    let line = said.lines().find(|line| line.contains(" requests in "));
    number(line.expect("wrk tells"))
}

fn h2load(url: &str) -> u64 {
    let mut command = Command::new("h2load");
    let (seconds, clients) = (format!("-D{}", TURN.as_secs()), format!("-c{CONNECTIONS}"));
    command.args(["-t1", &clients, "-m8", &seconds, "--warm-up-time=0", url]);
    let said = said(&mut command);
    let requests = said
        .lines()
        .find(|line| line.starts_with("requests: "))
        .expect("h2load tells");
    let part = |name: &str| {
        let part = requests
            .split(", ")
            .find(|part| part.ends_with(name))
            .expect("h2load tells");
        number(part.trim_start_matches("requests: "))
    };
    assert_eq!((part(" failed"), part(" errored")), (0, 0), "{said}");
    part(" succeeded")
}

fn number(text: &str) -> u64 {
    let number = text
        .split_whitespace()
        .next()
        .expect("it begins with a number");
    number.parse().expect("it begins with a number")
}

fn said(command: &mut Command) -> String {
    let output = command.output().expect("it is there");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
