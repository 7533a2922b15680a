//! What a connection pool costs and what it is good for: ours beside hyper-util's.
//!
//! `cargo bench --features full --bench pool`, with `-- --only NAME` for one part of `requests`, `checkout`, `hosts`,
//! `tls` and `held`. For callgrind, `-- walk CASE/CLIENT CALLS` and
//! `-- walk checkout NAME TIMES` do one thing so many times and measure nothing.

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::type_complexity,
    dead_code
)]

mod checkout;
mod clients;
mod held;
mod hosts;
mod requests;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tls;

#[global_allocator]
static ALLOCATOR: support::Counting = support::Counting;

const PARTS: [(&str, fn()); 5] = [
    ("requests", requests::print),
    ("checkout", checkout::print),
    ("hosts", hosts::print),
    ("tls", tls::print),
    ("held", held::print),
];

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    // cargo says `--bench`.
    let args: Vec<_> = args.into_iter().filter(|arg| *arg != "--bench").collect();
    match args[..] {
        ["walk", "checkout", name, times] => {
            checkout::walk(name, times.parse().expect("a number of times"));
        }
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
