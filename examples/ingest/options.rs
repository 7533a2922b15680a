//! The flags, and what they say.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

/// What to do.
#[derive(Debug)]
pub(crate) enum Options {
    Serve(Serve),
    Load(Load),
}

/// How to take items and process them.
#[derive(Debug, Clone)]
pub(crate) struct Serve {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) store: Where,
    pub(crate) queue: usize,
    pub(crate) queue_bytes: usize,
    pub(crate) window: usize,
    pub(crate) workers: usize,
    pub(crate) work_time: Duration,
    pub(crate) output: Option<PathBuf>,
    pub(crate) grace: Duration,
}

/// Where items are between their acknowledgement and their processing.
#[derive(Debug, Clone)]
pub(crate) enum Where {
    Memory { wal: Option<PathBuf>, wal_max: u64 },
    Nats(Stream),
}

/// Which stream of which server.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) url: String,
    pub(crate) name: String,
    pub(crate) ack_wait: Duration,
}

/// What traffic to make.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) url: String,
    /// Items a second; 0 is as many as are taken.
    pub(crate) rate: f64,
    pub(crate) time: Duration,
    pub(crate) streams: usize,
    pub(crate) connections: usize,
    pub(crate) unary: bool,
    pub(crate) payload: usize,
    pub(crate) per_call: usize,
    pub(crate) linger: Duration,
    pub(crate) ids: String,
    pub(crate) priority: Option<String>,
    pub(crate) json: bool,
}

// ===== impl Options =====

impl Options {
    /// Those of the command line; ends the program with code 2 if they are no good.
    pub(crate) fn read() -> Self {
        let flags = command().get_matches();
        match flags.get_one::<String>("load") {
            Some(url) => Self::Load(load(url, &flags)),
            None => Self::Serve(serve(&flags)),
        }
    }
}

fn command() -> Command {
    let flag = |name: &'static str, value: &'static str, default: &'static str| {
        let flag = Arg::new(name).long(name).value_name(value);
        match default {
            "" => flag,
            default => flag.default_value(default),
        }
    };
    let time = |name, default| flag(name, "TIME", default).value_parser(duration);
    let count = |name, default| {
        flag(name, "N", default).value_parser(|text: &str| match text.parse() {
            Ok(n @ 1..=16_777_216) => Ok::<usize, _>(n),
            _ => Err("a number from 1 to 16777216 is wanted"),
        })
    };
    let address =
        |name, default| flag(name, "ADDR", default).value_parser(value_parser!(SocketAddr));
    Command::new("ingest")
        .about("Takes items by gRPC, stores them, acknowledges them, and processes them")
        .args([
            address("listen", "127.0.0.1:50051").help("Where to serve; port 0 takes any"),
            address("admin", "").help("Where to show the live page and /metrics"),
            flag("store", "memory|nats://HOST:PORT", "memory").value_parser(store_name),
            flag("wal", "FILE", "")
                .help("A write-ahead file for the memory store: what is acknowledged survives"),
            flag("wal-max", "BYTES", "67108864")
                .value_parser(value_parser!(u64).range(1024..))
                .help("The file is written anew, without what is done, when it is longer"),
            flag("stream", "NAME", "INGEST").help("The JetStream stream; made if missing"),
            time("ack-wait", "30s").help("An item not processed by then is delivered again"),
            count("queue", "65536").help("Items between acknowledgement and processing"),
            count("queue-bytes", "16777216")
                .value_parser(value_parser!(u64).range(1..))
                .default_value("268435456")
                .help("And their payload's bytes"),
            count("window", "131072").help("Ids remembered to know an item sent twice (memory)"),
            count("workers", "4"),
            time("work-time", "0s").help("How long the processing of an item takes: a simulation"),
            flag("output", "FILE", "")
                .help("The id of each processed item is appended, a line each; not synced"),
            time("grace", "10s").help("How long streams may go on after SIGTERM"),
            flag("load", "URL", "").help("Make traffic for the ingest at URL instead"),
            flag("rate", "N", "1000")
                .value_parser(value_parser!(f64))
                .help("Items a second; 0 for as many as are taken"),
            flag("seconds", "N", "5").value_parser(value_parser!(f64)),
            count("streams", "8").help("Streams at once"),
            count("connections", "2"),
            flag("unary", "", "")
                .num_args(0)
                .action(ArgAction::SetTrue)
                .help("A call for each item instead of streams"),
            flag("payload", "BYTES", "100").value_parser(value_parser!(u64).range(0..=1 << 24)),
            count("per-call", "1000").help("A stream ends after so many items"),
            time("linger", "5ms").help("or after so long"),
            flag("ids", "PREFIX", "").help("Ids begin so; by default with what differs each run"),
            flag("priority", "NAME", "").help("Sent as x-priority"),
            flag("json", "", "")
                .num_args(0)
                .action(ArgAction::SetTrue)
                .help("The report as one line of JSON"),
        ])
}

fn serve(flags: &ArgMatches) -> Serve {
    let store = match text(flags, "store") {
        name if name == "memory" => Where::Memory {
            wal: flags.get_one::<String>("wal").map(PathBuf::from),
            wal_max: get(flags, "wal-max"),
        },
        url => Where::Nats(Stream {
            url,
            name: text(flags, "stream"),
            ack_wait: get(flags, "ack-wait"),
        }),
    };
    if matches!(store, Where::Nats(_)) && flags.contains_id("wal") {
        let clash = "--wal is for --store memory; what NATS has stored needs no file here";
        command()
            .error(clap::error::ErrorKind::ArgumentConflict, clash)
            .exit();
    }
    Serve {
        listen: get(flags, "listen"),
        admin: flags.get_one("admin").copied(),
        store,
        queue: get(flags, "queue"),
        queue_bytes: get::<u64>(flags, "queue-bytes") as usize,
        window: get(flags, "window"),
        workers: get(flags, "workers"),
        work_time: get(flags, "work-time"),
        output: flags.get_one::<String>("output").map(PathBuf::from),
        grace: get(flags, "grace"),
    }
}

fn load(url: &str, flags: &ArgMatches) -> Load {
    let seconds: f64 = get(flags, "seconds");
    let rate: f64 = get(flags, "rate");
    let wrong = |what: String| -> ! {
        command()
            .error(clap::error::ErrorKind::ValueValidation, what)
            .exit()
    };
    if !(0.0..=1e9).contains(&rate) {
        wrong(format!("--rate {rate} does not lie within 0 and 1e9"));
    }
    if !(0.001..=1e6).contains(&seconds) {
        wrong(format!(
            "--seconds {seconds} does not lie within 0.001 and 1e6"
        ));
    }
    let fresh = || {
        let since = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default();
        format!("{:x}-{:x}", since.as_millis(), std::process::id())
    };
    Load {
        url: url.to_owned(),
        rate,
        time: Duration::from_secs_f64(seconds),
        streams: get(flags, "streams"),
        connections: get(flags, "connections"),
        unary: flags.get_flag("unary"),
        payload: get::<u64>(flags, "payload") as usize,
        per_call: get(flags, "per-call"),
        linger: get(flags, "linger"),
        ids: flags.get_one("ids").cloned().unwrap_or_else(fresh),
        priority: flags.get_one("priority").cloned(),
        json: flags.get_flag("json"),
    }
}

fn get<T: Clone + Send + Sync + 'static>(flags: &ArgMatches, name: &str) -> T {
    let value = flags.get_one::<T>(name);
    value.expect("the flag has a default").clone()
}

fn text(flags: &ArgMatches, name: &str) -> String {
    get(flags, name)
}

fn store_name(text: &str) -> Result<String, &'static str> {
    let known = text == "memory" || text.starts_with("nats://") || text.starts_with("tls://");
    known
        .then(|| text.to_owned())
        .ok_or("memory, or the URL of a NATS server as nats://127.0.0.1:4222, is wanted")
}

/// `500ms`, `2s`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration; they read 500ms, 2s, 1m");
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let second = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = number * second;
    // A year is beyond all that is meant.
    if !(0.0..=366.0 * 86_400.0).contains(&seconds) {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(seconds))
}
