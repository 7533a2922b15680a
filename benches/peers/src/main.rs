//! tower-flow's layers beside the published peers, as one Markdown document.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml`, with `-- shed` for admission alone and
//! `-- pool` for connection pools, `-- coalesce` for equal requests and `-- batch` for many small ones. For callgrind,
//! `-- path NAME CALLS` walks one path of shed so many times and measures nothing, `-- follow NAME FOLLOWERS TIMES`
//! one way of coalescing, without followers a caller alone, and `-- submit NAME ITEMS` one way of batching, with so many
//! items from each submitter.

mod batch;
mod coalesce;
mod cpu;
mod e2e;
mod echo;
mod floor;
mod layers;
mod paths;
mod pool;
mod shed;
#[path = "../../support/mod.rs"]
mod support;

#[global_allocator]
static ALLOCATOR: support::Counting = support::Counting;

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["path", name, calls] => paths::walk(name, calls.parse().expect("a number of calls")),
        ["shed"] => shed::print(),
        ["pool"] => pool::print(),
        ["coalesce"] => coalesce::print(),
        ["batch"] => batch::print(),
        ["submit", name, items] => batch::walk(name, items.parse().expect("a number of items")),
        ["follow", name, followers, times] => {
            let number = |text: &str| text.parse().expect("a number");
            coalesce::walk(name, number(followers), number(times));
        }
        _ => {
            println!("# tower-flow and its peers\n");
            layers::print();
            println!();
            shed::print();
            println!();
            pool::print();
            println!();
            coalesce::print();
            println!();
            batch::print();
            println!();
            e2e::print();
        }
    }
}
