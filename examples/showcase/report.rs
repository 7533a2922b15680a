//! What the showcase prints: tables for people, one object for machines.

use tower_flow::connection::ConnectionsSnapshot;
use tower_flow::grpc::MethodSnapshot;
use tower_flow::inspect::Value;

use crate::load::Driven;

/// One act's part of the report.
pub(crate) trait Act {
    /// Its name among `acts`.
    fn name(&self) -> &'static str;

    /// For people.
    fn print(&self);

    /// For machines.
    fn json(&self) -> Value;

    /// What went wrong; empty is success.
    fn problems(&self) -> &[String];
}

/// What the accounting act found.
pub(crate) struct Accounting {
    pub(crate) sides: Vec<Side>,
    pub(crate) driven: Driven,
    pub(crate) connections: ConnectionsSnapshot,
    pub(crate) problems: Vec<String>,
}

/// One side's books.
pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) methods: Vec<MethodSnapshot>,
    /// What timing shows of itself.
    pub(crate) times: Value,
}

pub(crate) fn json(acts: &[Box<dyn Act>], url: &str) -> Value {
    let acts = acts.iter().map(|act| (act.name(), act.json()));
    Value::map([("acts", Value::map(acts)), ("live", url.into())])
}

// ===== impl Accounting =====

impl Act for Accounting {
    fn name(&self) -> &'static str {
        "accounting"
    }

    fn print(&self) {
        let rate = self.driven.calls as f64 / self.driven.took.as_secs_f64();
        println!(
            "{} calls in {:.1?}, {rate:.0} a second, over {} connection(s)",
            self.driven.calls, self.driven.took, self.connections.opened
        );
        for side in &self.sides {
            side.print();
        }
        println!();
        match &*self.problems {
            [] => println!(
                "both sides' books agree: started = handled; sent = received but for what was cut short under way"
            ),
            problems => {
                println!("the books do not agree:");
                problems.iter().for_each(|problem| println!("  {problem}"));
            }
        }
    }

    fn json(&self) -> Value {
        Value::map([
            ("calls", self.driven.calls.into()),
            ("seconds", self.driven.took.into()),
            ("connections", self.connections.opened.into()),
            ("agree", self.problems.is_empty().into()),
            (
                "problems",
                Value::list(self.problems.iter().map(|problem| problem.as_str().into())),
            ),
            (
                "sides",
                Value::map(self.sides.iter().map(|side| (side.name, side.json()))),
            ),
        ])
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}

// ===== impl Side =====

impl Side {
    fn print(&self) {
        println!("\n{}", self.name);
        println!(
            "  {:<9}{:<14}{:>9}{:>11}{:>11}{:>11}{:>11}{:>10}{:>10}  handled by code",
            "method",
            "type",
            "started",
            "msgs in",
            "msgs out",
            "MiB in",
            "MiB out",
            "p50 ms",
            "p99 ms"
        );
        for method in &self.methods {
            let (p50, p99) = self.quantiles(method);
            let codes: Vec<_> = method
                .handled
                .iter()
                .map(|(code, count)| format!("{}={count}", code.as_go()))
                .collect();
            println!(
                "  {:<9}{:<14}{:>9}{:>11}{:>11}{:>11.1}{:>11.1}{p50:>10.2}{p99:>10.2}  {}",
                method.method,
                method.kind,
                method.started,
                method.messages_received,
                method.messages_sent,
                mib(method.bytes_received),
                mib(method.bytes_sent),
                codes.join(" "),
            );
        }
    }

    fn json(&self) -> Value {
        Value::list(self.methods.iter().map(|method| {
            let (p50, p99) = self.quantiles(method);
            let handled = method
                .handled
                .iter()
                .map(|(code, count)| (code.as_go(), (*count).into()));
            Value::map([
                ("method", method.method.clone().into()),
                ("type", method.kind.as_str().into()),
                ("started", method.started.into()),
                ("handled", Value::map(handled)),
                ("messages_received", method.messages_received.into()),
                ("messages_sent", method.messages_sent.into()),
                ("bytes_received", method.bytes_received.into()),
                ("bytes_sent", method.bytes_sent.into()),
                ("p50_ms", p50.into()),
                ("p99_ms", p99.into()),
            ])
        }))
    }

    /// Milliseconds, over timing's window.
    fn quantiles(&self, method: &MethodSnapshot) -> (f64, f64) {
        let path = Value::from(format!("/{}/{}", method.service, method.method));
        let Some(Value::List(routes)) = self.times.get("routes") else {
            return (0.0, 0.0);
        };
        let window = routes
            .iter()
            .find(|route| route.get("route") == Some(&path))
            .and_then(|route| route.get("window"));
        let ms = |name| match window.and_then(|window| window.get(name)) {
            Some(Value::Number(seconds)) => seconds * 1e3,
            _ => 0.0,
        };
        (ms("p50"), ms("p99"))
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
