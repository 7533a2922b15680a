//! What it was asked to do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{TypedValueParser as _, ValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use http::HeaderName;

use crate::upstream::Target;

pub(crate) struct Flags {
    pub(crate) listen: SocketAddr,
    pub(crate) upstreams: Vec<Target>,
    pub(crate) upstream_ca: Option<PathBuf>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) tls: Option<Tls>,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_host: usize,
    pub(crate) acquire_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) coalesce: bool,
    pub(crate) shed: Option<Shed>,
    pub(crate) throttle: bool,
    pub(crate) profile: bool,
    /// With the descriptor sets to read.
    pub(crate) grpc_metrics: Option<Option<PathBuf>>,
    pub(crate) timeout: Duration,
    pub(crate) max_body: Option<u64>,
    pub(crate) grace: Duration,
}

/// Where the certificate comes from.
pub(crate) enum Tls {
    Files { cert: PathBuf, key: PathBuf },
    SelfSigned,
}

pub(crate) struct Shed {
    /// `None` finds itself.
    pub(crate) limit: Option<usize>,
    pub(crate) queue: Option<usize>,
    pub(crate) priority: Option<HeaderName>,
}

impl Flags {
    /// Ends the program with a sentence and 2 where they make no sense.
    pub(crate) fn read() -> Self {
        let flags = Self::from(&command().get_matches());
        if let Some(target) = Target::ambiguous(&flags.upstreams) {
            let message = format!("--upstream {target} is there with another scheme too\n");
            command().error(ErrorKind::ValueValidation, message).exit();
        }
        flags
    }

    fn from(args: &ArgMatches) -> Self {
        let one = |name| args.get_one::<usize>(name).copied();
        let time = |name| args.get_one::<Duration>(name).copied();
        let path = |name| args.get_one::<PathBuf>(name).cloned();
        let tls = match (path("tls-cert"), path("tls-key")) {
            (Some(cert), Some(key)) => Some(Tls::Files { cert, key }),
            _ if args.get_flag("tls-self-signed") => Some(Tls::SelfSigned),
            _ => None,
        };
        let timeout = time("timeout").unwrap_or(Duration::from_secs(60));
        let total = one("max-connections");
        let per_host = one("max-connections-per-host");
        Self {
            listen: *args.get_one("listen").expect("it has a default"),
            upstreams: args
                .get_many("upstream")
                .expect("one is required")
                .cloned()
                .collect(),
            upstream_ca: path("upstream-ca"),
            admin: args.get_one("admin").copied(),
            tls,
            max_connections: total.unwrap_or_else(|| per_host.map_or(1_024, |one| one.max(1_024))),
            max_connections_per_host: per_host
                .map_or(total.unwrap_or(512), |one| one.min(total.unwrap_or(one))),
            acquire_timeout: time("acquire-timeout").unwrap_or(Duration::from_secs(5)),
            connect_timeout: Duration::from_secs(2).min(timeout),
            coalesce: args.get_flag("coalesce"),
            shed: args.get_flag("shed").then(|| Shed {
                limit: args.get_one::<Option<usize>>("limit").copied().flatten(),
                queue: one("queue"),
                priority: args.get_one("priority-header").cloned(),
            }),
            throttle: args.get_flag("throttle"),
            profile: args.get_flag("profile"),
            grpc_metrics: args
                .get_flag("grpc-metrics")
                .then(|| path("descriptor-set")),
            timeout,
            max_body: args.get_one("max-body").copied(),
            grace: time("grace").unwrap_or(Duration::from_secs(30)),
        }
    }
}

fn command() -> Command {
    let takes = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .action(ArgAction::SetTrue)
            .help(help)
    };
    let count = || {
        ValueParser::from(
            value_parser!(u64)
                .range(1..=1 << 20)
                .try_map(usize::try_from),
        )
    };
    Command::new("gateway")
        .about("A reverse proxy for HTTP/1.1, HTTP/2 and gRPC with every layer of tower-flow by a flag")
        .after_help("Durations read 500ms, 2s, 1m. A connection to an upstream has 2s to be made, or --timeout where that is less; 16384 \
             requests may wait for one. A client may be idle for 60s between requests and in the midst of an answer, and may have 1024 HTTP/2 streams.")
        .args([
            takes("listen", "ADDR", "Where to listen; port 0 takes a free one")
                .value_parser(value_parser!(SocketAddr))
                .default_value("127.0.0.1:8080"),
            takes("upstream", "URL", "http://, https:// or h2c://; again for each further one")
                .value_parser(Target::parse)
                .action(ArgAction::Append)
                .required(true),
            takes("upstream-ca", "PEM", "Whom to trust for https upstreams, instead of Mozilla's roots")
                .value_parser(value_parser!(PathBuf)),
            takes("admin", "ADDR", "Where to serve the live page and /metrics")
                .value_parser(value_parser!(SocketAddr)),
            takes("tls-cert", "PEM", "Speak TLS with this chain of certificates")
                .value_parser(value_parser!(PathBuf))
                .requires("tls-key"),
            takes("tls-key", "PEM", "Its private key")
                .value_parser(value_parser!(PathBuf))
                .requires("tls-cert"),
            flag("tls-self-signed", "Speak TLS with a certificate for localhost made up now")
                .conflicts_with("tls-cert"),
            takes("max-connections", "N", "Connections to all upstreams together [default: 1024]")
                .value_parser(count()),
            takes("max-connections-per-host", "N", "Connections to one upstream [default: 512]")
                .value_parser(count()),
            takes("acquire-timeout", "D", "How long a request waits for a connection [default: 5s]")
                .value_parser(duration),
            flag("coalesce", "Make equal reads in flight one"),
            flag("shed", "Refuse what the upstreams cannot do in time"),
            takes("limit", "auto|N", "Requests at a time; auto finds it [default: auto]")
                .value_parser(limit)
                .requires("shed"),
            takes("queue", "N", "Requests that wait for that [default: as many as the limit]")
                .value_parser(value_parser!(u64).range(..=1 << 20).try_map(usize::try_from))
                .requires("shed"),
            takes("priority-header", "NAME", "Header that says critical, default, sheddable or best-effort")
                .value_parser(|name: &str| name.parse::<HeaderName>())
                .requires("shed"),
            flag("throttle", "Stop asking an upstream that refuses"),
            flag("profile", "Measure where the time goes"),
            flag("grpc-metrics", "Count what each gRPC method did"),
            takes("descriptor-set", "FILE", "Methods and their types, as protoc --descriptor_set_out writes them")
                .value_parser(value_parser!(PathBuf))
                .requires("grpc-metrics"),
            takes("timeout", "D", "How long an upstream may be silent, before its answer and in it, and a client in the midst of a request [default: 60s]")
                .value_parser(duration),
            takes("max-body", "BYTES", "The largest request body [default: any]")
                .value_parser(value_parser!(u64)),
            takes("grace", "D", "How long requests may take to end after SIGTERM [default: 30s]")
                .value_parser(duration),
        ])
}

fn limit(text: &str) -> Result<Option<usize>, String> {
    match text.parse() {
        _ if text == "auto" => Ok(None),
        Ok(limit @ 1..=1_048_576) => Ok(Some(limit)),
        _ => Err("auto or a number from 1 to 1048576 is wanted".into()),
    }
}

/// `500ms`, `2s`, `1.5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let seconds = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err("a number with ms, s, m or h is wanted, as in 500ms or 2s".into()),
    };
    let number: f64 = text[..text.len() - unit.len()]
        .parse()
        .map_err(|_| format!("{text} has no number before its unit"))?;
    let duration = Duration::try_from_secs_f64(number * seconds)
        .map_err(|_| format!("{text} is longer than anybody waits"))?;
    if duration < Duration::from_millis(1) || duration > Duration::from_secs(86_400) {
        return Err("it must be from 1ms to a day".into());
    }
    Ok(duration)
}
