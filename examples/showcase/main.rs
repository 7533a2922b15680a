//! The main job on one command, in less than a minute: `cargo run --release --features full --example showcase`
//!
//! First it prints the address of the live page, which shows all of it while it goes on. Then, for each act, a table and
//! in a line what came of it:
//!
//! - *accounting*: a tonic server and a client, each in its preset, under a mixed load: calls that succeed, fail, are
//!   cancelled and run out of time, messages large and tiny, in all four kinds of method. Both sides' books are laid side
//!   by side;
//! - *overload*: a scarce database behind a server that is bare, has tower's layers, or tower-flow, and is offered up to
//!   ten times what it can do;
//! - *coalesce*: a thousand callers read from a hyper server that is not up to it, bare, and with equal reads made one;
//! - *batch*: small writes, twice what the table they go to can take one by one, bare and batched;
//! - *hot*: where the time went;
//! - *overhead*: what each layer itself takes of a call.
//!
//! It exits with 0 only if the books agree and no call went astray; how fast this machine is does not matter.
//!
//! # Flags
//!
//! `--seconds N` drives accounting for N seconds (8) and each load of the overload for a quarter of that, within 1.1 and
//! 2.5 seconds; coalesce's callers read and batch's write for 3N/20, within 0.5 and 1.5 · `--hold` keeps serving until
//! Ctrl-C · `--json` prints one object and nothing else on stdout; the page's address is on stderr then, as progress always
//! is:
//!
//! | key | is |
//! |---|---|
//! | `version` | 1; goes up when a key changes its meaning or goes away |
//! | `ok` | whether nothing went wrong; in each act too, beside `problems`, which says what |
//! | `seconds` | what it took |
//! | `live` | the page's address, without its token |
//! | `acts.accounting` | `calls`, `seconds`, `connections`, and of each of the `sides` its methods: `method`, `type`, `started`, `handled` by code, `messages_…`, `bytes_…`, `p50_ms`, `p99_ms` |
//! | `acts.overload` | `capacity_per_second`, the `limit` tower-flow came to, and `rows`: `variant`, `load`, `offered` a second, `goodput` in capacities, `p50_ms`, `p99_ms`, the parts `refused`, `missed`, `failed`, and `unsent` |
//! | `acts.coalesce` | the setting, `rows`: `variant`, `reads`, `calls`, `saved`, `p50_ms`, `p99_ms`, `wall_seconds`; the layer's own `books` |
//! | `acts.batch` | the setting, `rows`: `variant`, `wanted_per_second`, `writes`, `calls`, `size`, `largest`, `p50_ms`, `p99_ms`, `answered_per_second`, `wall_seconds`; the layer's own `books` |
//! | `acts.hot` | `cpu`, `paths`: `layer`, `route`, `stage`, `polls`, `busy`, `max`, `slow`, `share` |
//! | `acts.overhead` | `rows`: `layer`, `per_call`, `sampled`, `inside` |
//!
//! Times without a unit are seconds, what is not known is null.

mod accounting;
mod arrivals;
mod batch;
mod coalesce;
#[path = "../echo/mod.rs"]
mod echo;
mod live;
mod load;
mod overload;
mod progress;
mod report;

use std::process::ExitCode;

use clap::{Arg, ArgAction, Command, value_parser};
use report::Report;
use tower_flow::BoxError;

/// What one run was asked to do.
struct Options {
    seconds: u64,
    json: bool,
    hold: bool,
}

impl Options {
    fn read() -> Self {
        let flag = |name, help| {
            Arg::new(name)
                .long(name)
                .action(ArgAction::SetTrue)
                .help(help)
        };
        let seconds = Arg::new("seconds")
            .long("seconds")
            .value_name("N")
            .default_value("8")
            .value_parser(value_parser!(u64).range(1..=86_400))
            .help("How long accounting is driven; the other acts scale with it");
        let flags = Command::new("showcase")
            .about("tower-flow's layers at work, act by act")
            .arg(seconds)
            .arg(flag(
                "json",
                "Print one JSON object and nothing else on stdout",
            ))
            .arg(flag("hold", "Keep serving the live page until Ctrl-C"))
            .get_matches();
        Self {
            seconds: flags.get_one("seconds").copied().unwrap_or(8),
            json: flags.get_flag("json"),
            hold: flags.get_flag("hold"),
        }
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let options = Options::read();
    let mut report = Report::new(options.json);
    let live = live::Live::serve(options.json).await?;
    // Each act drives real traffic; later ones are added to this list.
    report.add(&accounting::run(&options, &live.flow).await?);
    report.add(&overload::run(&options, &live.flow).await?);
    report.add(&coalesce::run(&options, &live.flow).await?);
    report.add(&batch::run(&options, &live.flow).await?);
    report.add(&live.hot());
    report.add(&live.costs());
    let good = report.end(&live.url);
    if options.hold {
        eprintln!("serving until Ctrl-C");
        tokio::signal::ctrl_c().await?;
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
