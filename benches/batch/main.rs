//! What it gains to send many small requests as one, what it costs each, and what many shards cost.
//!
//! `cargo bench --features full --bench batch`, with `-- --only NAME` for one part of `closed`, `open`, `triton`,
//! `shards`, `items` and `lone`. For callgrind, `-- walk NAME SUBMITTERS ITEMS` sends so many items from each of so many
//! submitters in one way, and measures nothing.

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::type_complexity,
    dead_code
)]

mod closed;
mod items;
mod lone;
mod open;
mod server;
mod shards;
#[path = "../support/mod.rs"]
mod support;
mod triton;

#[global_allocator]
static ALLOCATOR: support::Counting = support::Counting;

const PARTS: [(&str, fn()); 6] = [
    ("closed", closed::print),
    ("open", open::print),
    ("triton", triton::print),
    ("shards", shards::print),
    ("items", items::print),
    ("lone", lone::print),
];

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    // cargo says `--bench`.
    let args: Vec<_> = args.into_iter().filter(|arg| *arg != "--bench").collect();
    let number = |text: &str| text.parse().expect("a number");
    match args[..] {
        ["walk", name, submitters, count] => items::walk(name, number(submitters), number(count)),
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
