//! What it costs to let equal requests share one call, and what it saves.
//!
//! `cargo bench --features full --bench coalesce`, with `-- --only NAME` for one part of `herd`, `alone`, `followers`,
//! `contention`, `zipf`, `body` and `keys`. For callgrind, `-- walk alone NAME CALLS` and
//! `-- walk followers NAME FOLLOWERS TIMES` do one thing so many times and measure nothing.

#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::type_complexity,
    dead_code
)]

mod alone;
mod body;
mod contention;
mod followers;
mod herd;
mod keys;
#[path = "../support/mod.rs"]
mod support;
mod zipf;

#[global_allocator]
static ALLOCATOR: support::Counting = support::Counting;

const PARTS: [(&str, fn()); 7] = [
    ("herd", herd::print),
    ("alone", alone::print),
    ("followers", followers::print),
    ("contention", contention::print),
    ("zipf", zipf::print),
    ("body", body::print),
    ("keys", keys::print),
];

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    // cargo says `--bench`.
    let args: Vec<_> = args.into_iter().filter(|arg| *arg != "--bench").collect();
    let number = |text: &str| text.parse().expect("a number");
    match args[..] {
        ["walk", "alone", name, calls] => alone::walk(name, number(calls)),
        ["walk", "followers", name, followers, times] => {
            followers::walk(name, number(followers), number(times));
        }
        ["child", "body", shared] => body::child(shared == "shared"),
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
