//! What the accounting act prints.

use tower_flow::grpc::MethodSnapshot;
use tower_flow::inspect::Value;

use super::{Accounting, Side};
use crate::report::{Act, Table};

impl Act for Accounting {
    fn name(&self) -> &'static str {
        "accounting"
    }

    fn task(&self) -> String {
        let rate = self.driven.calls as f64 / self.driven.took.as_secs_f64();
        format!(
            "{} calls of all kinds and endings in {:.1?}, {rate:.0} a second, over {} connection(s)",
            self.driven.calls, self.driven.took, self.connections.opened
        )
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            "side",
            "method",
            "type",
            "started",
            "msgs in",
            "msgs out",
            "MiB in",
            "MiB out",
            "p50 ms",
            "p99 ms",
            "handled by code",
        ]);
        for side in &self.sides {
            side.rows(&mut table);
        }
        table
    }

    fn verdict(&self) -> String {
        "both sides' books agree: started = handled; sent = received but for what was cut short under way"
            .into()
    }

    fn json(&self) -> Vec<(&'static str, Value)> {
        let sides = self.sides.iter().map(|side| (side.name, side.json()));
        vec![
            ("calls", self.driven.calls.into()),
            ("seconds", self.driven.took.into()),
            ("connections", self.connections.opened.into()),
            ("sides", Value::map(sides)),
        ]
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl Side {
    fn rows(&self, table: &mut Table) {
        for method in &self.methods {
            let (p50, p99) = self.quantiles(method);
            let codes: Vec<_> = method
                .handled
                .iter()
                .map(|(code, count)| format!("{}={count}", code.as_go()))
                .collect();
            table.row([
                self.name.into(),
                method.method.clone(),
                method.kind.to_string(),
                method.started.to_string(),
                method.messages_received.to_string(),
                method.messages_sent.to_string(),
                format!("{:.1}", mib(method.bytes_received)),
                format!("{:.1}", mib(method.bytes_sent)),
                format!("{p50:.2}"),
                format!("{p99:.2}"),
                codes.join(" "),
            ]);
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
