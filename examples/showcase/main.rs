//! The main job on one command: `cargo run --release --features full --example showcase`
//!
//! A tonic server wrapped by the server preset and a client wrapped by the client preset, on loopback, under a mixed
//! load: calls that succeed, fail, are cancelled and run out of time, messages large and tiny, in all four kinds of
//! method. At the end both sides' books are laid side by side. It exits with 0 only if they agree.
//!
//! `--seconds N` drives for N seconds (10) · `--json` prints one JSON object and nothing else on stdout · `--hold`
//! keeps serving until Ctrl-C

mod accounting;
#[path = "../echo/mod.rs"]
mod echo;
mod load;
mod report;

use std::error::Error;
use std::process::ExitCode;

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
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = match Options::read() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("showcase: {problem}");
            return Ok(ExitCode::from(2));
        }
    };
    // Each act drives real traffic and returns its part of the report; later ones are added to this list.
    let (act, live) = accounting::run(&options).await?;
    let acts = vec![act];

    if options.json {
        println!("{}", report::json(&acts, &live.url));
    } else {
        acts.iter().for_each(report::Act::print);
        println!("\nlive endpoint: {}", live.url);
    }
    if options.hold {
        eprintln!("serving until Ctrl-C");
        tokio::signal::ctrl_c().await?;
    }
    let agree = acts.iter().all(|act| act.problems.is_empty());
    Ok(if agree {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
