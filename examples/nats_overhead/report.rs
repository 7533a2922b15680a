//! The study, as Markdown.

use std::fmt;
use std::time::Duration;

use tower_flow::inspect::HotPath;

use super::Settings;
use super::measure::{Round, Ticks, median};
use super::split::PARTS;
use super::study::LAYERS;

/// What it is to stay below, in percent.
const TARGET: f64 = 5.0;

/// All that was measured.
pub struct Study {
    pub settings: Settings,
    pub version: String,
    /// Whether the server is ours, and so its CPU time is known.
    pub own: bool,
    pub rounds: usize,
    pub length: Duration,
    pub direct: Vec<Round>,
    pub nats: Vec<Round>,
    /// The server's CPU time in all rounds by NATS.
    pub server: Option<Duration>,
    pub hot: Vec<HotPath>,
    pub breakdown: Breakdown,
    /// How long an event is, encoded.
    pub event: usize,
}

/// Where the time of a request by NATS goes.
pub enum Breakdown {
    Sampled {
        samples: [u64; PARTS.len()],
        ticks: Ticks,
        calls: u64,
        /// The profiler's own.
        cost: Duration,
    },
    Sections {
        why: String,
        serialising: Duration,
        ticks: Ticks,
        calls: u64,
    },
}

impl fmt::Display for Study {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.method(f)?;
        self.costs(f)?;
        self.paths(f)?;
        self.breakdown.fmt(f)?;
        self.verdict(f)
    }
}

impl Study {
    fn direct(&self) -> f64 {
        median(self.direct.iter().map(Round::cpu_micros))
    }

    fn nats(&self) -> f64 {
        median(self.nats.iter().map(Round::cpu_micros))
    }

    fn server(&self) -> Option<f64> {
        let calls: u64 = self.nats.iter().map(|round| round.calls).sum();
        Some(self.server?.as_secs_f64() * 1e6 / calls.max(1) as f64)
    }

    fn method(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.own {
            "started for the study"
        } else {
            "given by --server"
        };
        writeln!(f, "# The overhead of NATS request/reply\n")?;
        writeln!(f, "## Method\n")?;
        writeln!(
            f,
            "- One write: a chat event is encoded with prost ({} bytes), decoded again by the store, which checks it, and \
             appended to a log in memory and to the index of its room; the answer is its number. Nothing is written to disk.",
            self.event
        )?;
        writeln!(
            f,
            "- *direct* calls the store as a tower service in this process. *NATS* sends the same bytes as a request by \
             `NatsService` over loopback to a nats-server {} ({whose}); a responder in this process, with a connection of \
             its own, calls the same store and replies. The caller's and the responder's CPU time are one figure.",
            self.version
        )?;
        writeln!(
            f,
            "- `ProfileLayer` is round both, round the responder and round the store. {} tasks call at a time.",
            self.settings.callers
        )?;
        writeln!(
            f,
            "- {} rounds of each in turn, {:.2} s long, after one of each that does not count; medians. CPU time is that \
             of the process as the kernel counts it, both client and responder; the server's own comes from \
             `/proc`, in steps of 10 ms, over all rounds.\n",
            self.rounds,
            self.length.as_secs_f64()
        )
    }

    fn costs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## CPU per operation\n")?;
        writeln!(
            f,
            "| | CPU per operation, µs, median | least | most | operations a second |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---:|")?;
        for (name, rounds) in [("direct", &self.direct), ("NATS, this process", &self.nats)] {
            let micros: Vec<_> = rounds.iter().map(Round::cpu_micros).collect();
            writeln!(
                f,
                "| {name} | {:.2} | {:.2} | {:.2} | {:.0} |",
                median(micros.iter().copied()),
                micros.iter().copied().fold(f64::INFINITY, f64::min),
                micros.iter().copied().fold(0.0, f64::max),
                median(rounds.iter().map(Round::per_second)),
            )?;
        }
        match self.server() {
            Some(server) => writeln!(f, "| NATS, nats-server | {server:.2} | | | |"),
            None => writeln!(
                f,
                "| NATS, nats-server | not measured: it is not ours | | | |"
            ),
        }?;
        let (direct, nats) = (self.direct(), self.nats());
        writeln!(
            f,
            "\nOverhead of this process: {:.0} % ({:.2} µs an operation).",
            percent(direct, nats),
            nats - direct
        )?;
        if let Some(server) = self.server() {
            let both = nats + server;
            writeln!(
                f,
                "With the server: {:.0} % ({:.2} µs).",
                percent(direct, both),
                both - direct
            )?;
        }
        writeln!(f)
    }

    fn paths(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## Hot paths\n")?;
        writeln!(
            f,
            "The top three of each way, as `profile` saw them in the rounds above: time within polls, without that of \
             profiled layers further inside. The tasks of async-nats' connections are outside of every layer, and in the breakdown below.\n"
        )?;
        writeln!(
            f,
            "| way | layer | stage | polls | time, s | a poll, µs | share of its way |"
        )?;
        writeln!(f, "|---|---|---|---:|---:|---:|---:|")?;
        for way in ["NATS", "direct"] {
            let of = |path: &&HotPath| LAYERS.contains(&(path.layer.as_str(), way));
            let all: f64 = self
                .hot
                .iter()
                .filter(of)
                .map(|path| path.busy.as_secs_f64())
                .sum();
            for path in self.hot.iter().filter(of).take(3) {
                let busy = path.busy.as_secs_f64();
                writeln!(
                    f,
                    "| {way} | {} | {} | {} | {busy:.3} | {:.2} | {:.0} % |",
                    path.layer,
                    path.stage,
                    path.polls,
                    busy * 1e6 / path.polls.max(1) as f64,
                    100.0 * busy / all.max(f64::MIN_POSITIVE),
                )?;
            }
        }
        writeln!(f)
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (direct, nats) = (self.direct(), self.nats());
        let (overhead, cost) = (percent(direct, nats), nats - direct);
        writeln!(f, "## Verdict\n")?;
        if overhead <= TARGET {
            return writeln!(f, "Met: {overhead:.1} % is within {TARGET:.0} %.");
        }
        writeln!(
            f,
            "**Missed**: {overhead:.0} % is beyond {TARGET:.0} %, by far. The write itself takes {direct:.2} µs of CPU time, \
             and a request by NATS {cost:.2} µs more in this process alone. It makes four hops over sockets (caller to \
             server, server to responder, and the answer back): this process writes twice and reads twice, parses what it \
             reads, wakes a task for each, and matches the answer with who asked. None of that depends on what the request \
             does, so no client can bring it to {TARGET:.0} % of a write this small.\n"
        )?;
        writeln!(
            f,
            "- What takes {:.0} µs of CPU time or more per request keeps within {TARGET:.0} %: a query to a database, \
             not an append to memory.",
            cost * 100.0 / TARGET
        )?;
        writeln!(
            f,
            "- Of {:.0} such writes sent in one request (`batch`), each bears its part of the cost, and the overhead is \
             within {TARGET:.0} % if the rest of what a request costs does not grow with its size.",
            (cost * 100.0 / TARGET / direct.max(f64::MIN_POSITIVE)).ceil()
        )
    }
}

impl fmt::Display for Breakdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## Breakdown of a request by NATS\n")?;
        match self {
            Self::Sampled {
                samples,
                ticks,
                calls,
                cost,
            } => {
                let all: u64 = samples.iter().sum();
                writeln!(
                    f,
                    "By the sampling profiler at 999 Hz in a round of its own, {all} samples: a call chain belongs to the \
                     innermost function whose owner is known by its name. Chains are as long as frame pointers lead, and where \
                     none of a chain is owned (RUSTFLAGS=\"-C force-frame-pointers=yes\" leaves less there) it is told by \
                     what it ends in, and by whether `profile` was polling a call. It sees this process's own code; the kernel's \
                     time for it ({:.0} % of all) is `stime` in `/proc`, and is reading, writing and waiting for sockets, \
                     and waking threads. The profiler's own {:.0} ms are in the total and in no line.\n",
                    100.0 * share(ticks.kernel, ticks.total()),
                    cost.as_secs_f64() * 1e3
                )?;
                head(f)?;
                let user = ticks.user.saturating_sub(*cost);
                for (part, samples) in PARTS.iter().zip(samples) {
                    let time = user.mul_f64(*samples as f64 / all.max(1) as f64);
                    line(f, part, time, *ticks, *calls)?;
                }
                line(
                    f,
                    "network and wake-ups, in the kernel",
                    ticks.kernel,
                    *ticks,
                    *calls,
                )
            }
            Self::Sections {
                why,
                serialising,
                ticks,
                calls,
            } => {
                writeln!(
                    f,
                    "By measured sections, since the sampling profiler did not run: {why}. Serialisation is measured \
                     alone; what the NATS client and the runtime take is not told apart.\n"
                )?;
                head(f)?;
                let all = serialising.mul_f64(*calls as f64);
                line(f, "serialisation", all, *ticks, *calls)?;
                let rest = ticks.user.saturating_sub(all);
                line(f, "NATS client, runtime, other", rest, *ticks, *calls)?;
                line(
                    f,
                    "network and wake-ups, in the kernel",
                    ticks.kernel,
                    *ticks,
                    *calls,
                )
            }
        }?;
        writeln!(f)
    }
}

fn head(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "| part | CPU per request, µs | share |")?;
    writeln!(f, "|---|---:|---:|")
}

fn line(
    f: &mut fmt::Formatter<'_>,
    part: &str,
    time: Duration,
    ticks: Ticks,
    calls: u64,
) -> fmt::Result {
    writeln!(
        f,
        "| {part} | {:.2} | {:.0} % |",
        time.as_secs_f64() * 1e6 / calls.max(1) as f64,
        100.0 * share(time, ticks.total())
    )
}

fn share(part: Duration, whole: Duration) -> f64 {
    part.as_secs_f64() / whole.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn percent(base: f64, with: f64) -> f64 {
    100.0 * (with - base) / base.max(f64::MIN_POSITIVE)
}
