//! `cargo run --release --features full --example nats_overhead -- [--seconds 10] [--server nats://HOST:4222]`
//!
//! What NATS request/reply costs: the same write of a chat event into a store in this process, called directly and by
//! way of a NATS server, `profile` round both. Prints its method, the figures and a verdict as Markdown.

#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]

use clap::{Arg, Command, value_parser};

#[cfg(target_os = "linux")]
mod measure;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod server;
#[cfg(target_os = "linux")]
mod split;
#[cfg(target_os = "linux")]
mod study;
#[cfg(target_os = "linux")]
mod work;

/// What is to be measured.
#[derive(Debug, Clone)]
struct Settings {
    seconds: f64,
    callers: usize,
    server: Option<String>,
}

fn settings() -> Settings {
    let flags = Command::new("nats_overhead")
        .about("What NATS request/reply costs, beside the same service called directly")
        .arg(
            Arg::new("seconds")
                .long("seconds")
                .value_name("N")
                .help("How long it measures, in all")
                .value_parser(value_parser!(u32).range(1..=3600))
                .default_value("10"),
        )
        .arg(
            Arg::new("callers")
                .long("callers")
                .value_name("N")
                .help("How many call at a time")
                .value_parser(value_parser!(u32).range(1..=4096))
                .default_value("16"),
        )
        .arg(
            Arg::new("server")
                .long("server")
                .value_name("URL")
                .help("A NATS server; without one a nats-server is started on a free port"),
        )
        .get_matches();
    let number = |name| flags.get_one::<u32>(name).copied().unwrap_or(1);
    Settings {
        seconds: f64::from(number("seconds")),
        callers: number("callers") as usize,
        server: flags.get_one("server").cloned(),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    let _ = settings();
    println!("the study reads CPU times as Linux shows them; run it there");
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let settings = settings();
    let study = tokio::runtime::Runtime::new()
        .map_err(tower_flow::BoxError::from)
        .and_then(|runtime| runtime.block_on(study::run(settings)));
    match study {
        Ok(study) => {
            print!("{study}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nats_overhead: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
