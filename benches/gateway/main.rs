//! What the gateway among the examples costs beside nginx, what its layers add, and what a stream through it takes.
//!
//! `cargo bench --features full --bench gateway`
//!
//! *Requests*: wrk asks a nginx for something small over keep-alive HTTP/1.1, through another nginx that proxies, through the
//! gateway without a layer and through the gateway with all of them, in turn; each address is another, so nothing is
//! coalesced. What counts is the processor time of whoever stands between, by the kernel's books of its threads. The same
//! with h2load over HTTP/2. nginx has one worker, and the gateway as many threads as there are processors.
//!
//! *Streams*: 10,000 HTTP/2 streams at a time are held by an upstream that answers when all are there; its connections are
//! counted where they are accepted.

#![allow(missing_docs, unreachable_pub, missing_debug_implementations)]

#[cfg(target_os = "linux")]
mod held;
#[cfg(target_os = "linux")]
mod nginx;
#[cfg(target_os = "linux")]
mod passed;
#[cfg(target_os = "linux")]
#[path = "../../tests/it/support/programs.rs"]
#[allow(dead_code)]
#[allow(clippy::unwrap_used)]
mod programs;

#[cfg(target_os = "linux")]
fn main() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("the soft limit is within the hard one");
    let rounds = std::env::var("TOWER_FLOW_ROUNDS")
        .map_or(9, |rounds| rounds.parse().expect("a number of rounds"));
    passed::main(rounds);
    held::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("the books of processor time are read as Linux keeps them");
}

/// Whether `program` is there; says so when it is not.
#[cfg(target_os = "linux")]
fn found(program: &str) -> bool {
    use std::process::{Command, Stdio};
    let mut command = Command::new(program);
    command
        .arg("-v")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let found = command.status().is_ok();
    if !found {
        println!("skipped: {program} not found");
    }
    found
}
