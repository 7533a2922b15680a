//! Goodput under overload: our default, tower's layers and the published algorithms in front of a server of a known
//! size, under tokio's paused time. Results depend on seeds, not on the machine.
//!
//! `cargo bench --features full --bench overload` prints Markdown and writes `target/overload.json`.
//! `-- --untold` shows ours where it is not told of deadlines, beside one that knows the server and one that refuses nobody.
//! `-- --only NAME` runs the policy of that name, or all whose names hold it; then the JSON is left alone.
//! `TOWER_FLOW_ROUNDS=3`, or anything below 60, shortens it to one seed, ten seconds, and one size for the others.

#![allow(missing_docs, unreachable_pub, missing_debug_implementations)]

mod cells;
// The tests use the rest of it.
#[allow(dead_code)]
mod machine;
mod plan;
mod policies;
mod published;
mod report;
mod resilience;
#[path = "../support/mod.rs"]
#[allow(clippy::type_complexity)]
mod support;
mod targets;
mod untold;

use plan::Extent;
use policies::Entry;
use report::Report;

/// Each run has a server and a clock of its own on whatever thread it is.
const THREADS: usize = 2;

fn main() {
    if std::env::args().any(|arg| arg == "--untold") {
        let seeds = Extent::of(support::rounds()).seeds;
        println!("{}", untold::table(seeds, THREADS));
        return;
    }
    let only = only();
    let policies = chosen(only.as_deref());
    let extent = Extent::of(support::rounds());
    let runs = plan::plan(&policies, extent);
    let done = plan::go(&runs, THREADS);
    let report = Report::new(&done, &policies, extent);
    println!("{}", report.markdown());
    if only.is_none() {
        let path = report::path();
        let text = format!("{:#}\n", report.json());
        std::fs::write(&path, text).expect("the target directory can be written to");
        eprintln!("{}", path.display());
    }
}

/// What follows `--only`. Whatever else cargo passes means nothing here.
fn only() -> Option<String> {
    let mut args = std::env::args().skip_while(|arg| arg != "--only");
    args.next()?;
    Some(args.next().expect("--only is followed by a name"))
}

fn chosen(only: Option<&str>) -> Vec<Entry> {
    let Some(only) = only else {
        return policies::ALL.to_vec();
    };
    let all = || policies::ALL.into_iter();
    let same: Vec<_> = all().filter(|entry| entry.name == only).collect();
    if !same.is_empty() {
        return same;
    }
    let holds = all().filter(|entry| entry.name.to_lowercase().contains(&only.to_lowercase()));
    let holds: Vec<_> = holds.collect();
    assert!(!holds.is_empty(), "no policy is called {only}");
    holds
}
