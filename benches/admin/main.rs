//! What it costs to be looked at: a snapshot, an update and its listeners, a scrape.
//!
//! `cargo bench --features full --bench admin`, with `-- --only NAME` for one part of `snapshot`, `events` and `scrape`.

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::type_complexity,
    dead_code
)]

mod busy;
mod events;
mod scrape;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;

#[global_allocator]
static ALLOCATOR: support::Counting = support::Counting;

const PARTS: [(&str, fn()); 3] = [
    ("snapshot", snapshot::print),
    ("events", events::print),
    ("scrape", scrape::print),
];

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    // cargo says `--bench`.
    let args: Vec<_> = args
        .iter()
        .map(String::as_str)
        .filter(|arg| *arg != "--bench")
        .collect();
    match args[..] {
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
