//! What a connection pool costs and what it is good for: ours beside hyper-util's.
//!
//! `cargo bench --features full --bench pool`, with `-- --only NAME` for one part of `requests`, `checkout`, `hosts`,
//! `tls` and `held`. For callgrind, `-- walk NAME CALLS` makes so many requests of one kind and measures nothing.

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::type_complexity,
    dead_code
)]

mod clients;
mod requests;
mod server;
#[path = "../support/mod.rs"]
mod support;

#[global_allocator]
static ALLOCATOR: support::Counting = support::Counting;

const PARTS: [(&str, fn()); 1] = [("requests", requests::print)];

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    // cargo says `--bench`.
    let args: Vec<_> = args.into_iter().filter(|arg| *arg != "--bench").collect();
    match args[..] {
        ["walk", name, calls] => requests::walk(name, calls.parse().expect("a number of calls")),
        ["--only", only] => {
            let part = PARTS.iter().find(|(name, _)| *name == only);
            part.expect("one of the parts").1();
        }
        _ => {
            for (_, part) in PARTS {
                part();
                println!();
            }
        }
    }
}
