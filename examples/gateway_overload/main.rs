//! The gateway under overload: `cargo run --release --features full --example gateway_overload`
//!
//! A backend with 4, 16 or 64 slots, whose jobs take 50 ms on average and go on when their client has left; clients that
//! arrive by themselves and leave after a second; and between them the gateway with `--shed` and nothing else, told
//! neither the slots nor the time. The tables say how much of the backend's capacity became answers in time at up to ten
//! times the load, when half of the slots go away, what the critical fifth got, and what a refusal cost; beside it the
//! gateway told the right limit, nginx told the right limit, and no shedding at all.
//!
//! The gateway is the program beside this one, which is built if it is not there. It exits with 0 unless something is
//! broken; how much is reached on a busy machine does not matter.

mod backend;
mod cell;
mod front;
mod load;
mod random;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use cell::{Act, Cell};
use front::Front;
use random::Service;
use report::Report;

const SLOTS: [usize; 3] = [4, 16, 64];
const SERVICES: [Service; 2] = [Service::Exponential, Service::Bimodal];

fn main() -> ExitCode {
    let flags = flags().get_matches();
    files();
    let quick = flags.get_flag("quick");
    let seconds = flags
        .get_one("seconds")
        .copied()
        .unwrap_or(if quick { 3 } else { 10 });
    let seed = flags.get_one("seed").copied().unwrap_or(1);
    let cells = plan(&flags, quick);
    let gateway = match flags
        .get_one("gateway")
        .cloned()
        .map_or_else(front::build, Ok)
    {
        Ok(gateway) => gateway,
        Err(problem) => {
            eprintln!("gateway_overload: {problem}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::default();
    for (number, cell) in cells.iter().enumerate() {
        eprintln!("{} of {}: {cell:?}", number + 1, cells.len());
        match cell.run(&gateway, Duration::from_secs(seconds), seed) {
            Ok(outcome) => report.cells.push((*cell, outcome)),
            Err(problem) => report.problems.push(format!("{cell:?}: {problem}")),
        }
    }
    if flags.get_flag("json") {
        println!("{:#}", report.json(seconds));
    } else {
        print!("{}", report.markdown(seconds));
    }
    if report.broken().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn flags() -> Command {
    let list = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("LIST")
            .value_delimiter(',')
            .help(help)
    };
    Command::new("gateway_overload")
        .about("Goodput of the gateway and of others under overload")
        .arg(
            Arg::new("seconds")
                .long("seconds")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..=3600))
                .help("How long each cell is counted: 10, or 3 with --quick"),
        )
        .arg(
            Arg::new("quick")
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("16 slots, exponential jobs and two loads, in two minutes"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print one JSON object and nothing else on stdout"),
        )
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Another draw of arrivals and jobs, the same for all fronts [default: 1]"),
        )
        .arg(
            Arg::new("gateway")
                .long("gateway")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("Which gateway, instead of the one beside this program"),
        )
        .arg(
            list("rows", "Which fronts: shed, limit, nginx, open").value_parser(Front::ALL.map(Front::flag)),
        )
        .arg(
            list("acts", "Which tables: load, halved, critical, refusals")
                .value_parser(["load", "halved", "critical", "refusals"]),
        )
        .arg(list("slots", "Which backends: 4, 16, 64").value_parser(["4", "16", "64"]))
        .arg(
            list("services", "Which jobs: exponential, bimodal")
                .value_parser(SERVICES.map(Service::name)),
        )
        .arg(
            list("loads", "Which loads, in capacities: 0.9, 2, 5, 10; others than --shed run at 0.9, 2 and 10")
                .value_parser(value_parser!(f64)),
        )
}

/// The cells that were asked for, table by table.
fn plan(flags: &ArgMatches, quick: bool) -> Vec<Cell> {
    let asked = |name: &str, value: &str| {
        let mut values = flags.get_many::<String>(name).into_iter().flatten();
        flags.get_many::<String>(name).is_none() || values.any(|asked| asked == value)
    };
    let all = Front::ALL
        .into_iter()
        .filter(|front| asked("rows", front.flag()));
    let (fronts, missing): (Vec<_>, Vec<_>) = all.partition(|front| front.found());
    for front in missing {
        eprintln!("skipped: {} is not on this machine", front.name());
    }
    let sizes = SLOTS.into_iter().filter(|slots| !quick || *slots == 16);
    let sizes: Vec<_> = sizes
        .filter(|slots| asked("slots", &slots.to_string()))
        .collect();
    let services = SERVICES
        .into_iter()
        .filter(|service| !quick || *service == Service::Exponential)
        .filter(|service| asked("services", service.name()));
    let services: Vec<_> = services.collect();
    let loads: Option<Vec<f64>> = flags
        .get_many("loads")
        .map(|loads| loads.copied().collect());
    let mut cells = Vec::new();
    for &front in &fronts {
        for &slots in sizes.iter().filter(|_| asked("acts", "load")) {
            let loads = match &loads {
                Some(loads) => loads,
                None if quick => &vec![0.9, 5.0],
                None if front == Front::Shed => &vec![0.9, 2.0, 5.0, 10.0],
                None => &vec![0.9, 2.0, 10.0],
            };
            for &service in &services {
                let cell = |times: &f64| Cell {
                    front,
                    slots,
                    service,
                    act: Act::Load(*times),
                };
                cells.extend(loads.iter().map(cell));
            }
        }
    }
    for (act, name) in [(Act::Halved, "halved"), (Act::Critical, "critical")] {
        // Without shedding there is nothing to tell, and nginx knows no priorities.
        let able = |front: &&Front| match front {
            Front::Shed | Front::Limit => true,
            Front::Nginx => act == Act::Halved,
            Front::Open => false,
        };
        for &front in fronts.iter().filter(able).filter(|_| asked("acts", name)) {
            for &service in &services {
                cells.push(Cell {
                    front,
                    slots: 16,
                    service,
                    act,
                });
            }
        }
    }
    let refuse = |front: &&Front| **front != Front::Open && asked("acts", "refusals");
    cells.extend(fronts.iter().filter(refuse).map(|&front| Cell {
        front,
        slots: 4,
        service: Service::Exponential,
        act: Act::Refusals,
    }));
    cells
}

/// As many open files as this process and its children may have: every client that waits holds one.
fn files() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        // Where it stays as it is, clients that find no file are counted as broken.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
