//! The main job on one command: `cargo run --release --features full --example showcase`
//!
//! *Accounting*: a tonic server wrapped by the server preset and a client wrapped by the client preset, on loopback,
//! under a mixed load: calls that succeed, fail, are cancelled and run out of time, messages large and tiny, in all four
//! kinds of method. At the end both sides' books are laid side by side.
//!
//! *Overload*: the same service with a scarce database behind it, bare, with tower's layers and with tower-flow, offered
//! up to ten times what it can do.
//!
//! *Coalesce*: a thousand callers read from a hyper server that is not up to it, bare, and with equal reads made one.
//!
//! *Batch*: two thousand small writes a second, twice what the table they go to can take one by one, bare and batched.
//!
//! Meanwhile the live page shows it all; its address is the first thing that is printed. The last is where the time went:
//! the hot paths, and what each layer itself costs a call.
//!
//! It exits with 0 only if the books agree and no call went astray; how fast this machine is does not matter.
//!
//! `--seconds N` drives accounting for N seconds (10) and each load of the overload for a quarter of that, within 1.1 and
//! 2.5 seconds; coalesce's callers read and batch's write for 3N/20, within 0.5 and 1.5 · `--json` prints one JSON object and nothing else on stdout · `--hold` keeps serving until Ctrl-C

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

use report::Act;
use tower_flow::BoxError;

/// What one run was asked to do.
struct Options {
    seconds: u64,
    json: bool,
    hold: bool,
}

impl Options {
    fn read() -> Result<Self, String> {
        let mut options = Self {
            seconds: 10,
            json: false,
            hold: false,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match &*arg {
                "--json" => options.json = true,
                "--hold" => options.hold = true,
                "--seconds" => {
                    let seconds = args.next().and_then(|text| text.parse().ok());
                    options.seconds = seconds
                        .filter(|seconds| (1..=86_400).contains(seconds))
                        .ok_or("--seconds takes a whole number from 1 to 86400")?;
                }
                other => {
                    return Err(format!(
                        "{other} is unknown; there are --seconds N, --json and --hold"
                    ));
                }
            }
        }
        Ok(options)
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let options = match Options::read() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("showcase: {problem}");
            return Ok(ExitCode::from(2));
        }
    };
    // Each act drives real traffic and returns its part of the report; later ones are added to this list.
    let live = live::Live::serve().await?;
    let accounting = accounting::run(&options, &live.flow).await?;
    let overload = overload::run(&options, &live.flow).await?;
    let coalesce = coalesce::run(&options, &live.flow).await?;
    let batch = batch::run(&options, &live.flow).await?;
    let acts: Vec<Box<dyn Act>> = vec![
        Box::new(accounting),
        Box::new(overload),
        Box::new(coalesce),
        Box::new(batch),
        Box::new(live.hot()),
    ];

    if options.json {
        println!("{}", report::json(&acts, &live.url));
    } else {
        for act in &acts {
            act.print();
            println!();
        }
        println!("live endpoint: {}", live.link);
    }
    if options.hold {
        eprintln!("serving until Ctrl-C");
        tokio::signal::ctrl_c().await?;
    }
    let good = acts.iter().all(|act| act.problems().is_empty());
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
