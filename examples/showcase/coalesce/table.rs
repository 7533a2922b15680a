//! What the coalesce act prints.

use tower_flow::inspect::Value;

use super::{CALLERS, Coalesce, KEYS, PACE, Row, SLOTS, TIME};
use crate::report::Act;

impl Act for Coalesce {
    fn name(&self) -> &'static str {
        "coalesce"
    }

    fn print(&self) {
        println!(
            "{CALLERS} callers, each of whom reads {PACE} times a second, answered or not, one of {KEYS} things by Zipf's \
             law; the backend has {SLOTS} slots and takes {} ms",
            TIME.as_millis()
        );
        println!(
            "\n  {:<12}{:>8}{:>8}{:>9}{:>10}{:>9}{:>8}",
            "variant", "reads", "calls", "saved %", "p50 ms", "p99 ms", "wall s"
        );
        for row in &self.rows {
            row.print();
        }
        println!();
        match &*self.problems {
            [] => println!(
                "what the backend was asked is what the layer says it sent; every answer was the right one"
            ),
            problems => problems
                .iter()
                .for_each(|problem| println!("wrong: {problem}")),
        }
    }

    fn json(&self) -> Value {
        let problems = self.problems.iter();
        Value::map([
            ("callers", (CALLERS as u64).into()),
            ("reads_per_second", (CALLERS as f64 * PACE).into()),
            ("keys", (KEYS as u64).into()),
            ("slots", (SLOTS as u64).into()),
            ("answer_ms", (1e3 * TIME.as_secs_f64()).into()),
            ("rows", Value::list(self.rows.iter().map(Row::json))),
            ("books", self.books.clone()),
            (
                "problems",
                Value::list(problems.map(|problem| problem.as_str().into())),
            ),
        ])
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl Row {
    /// The part of the reads the backend was not asked for.
    fn saved(&self) -> f64 {
        1.0 - self.calls as f64 / self.reads.max(1) as f64
    }

    fn print(&self) {
        println!(
            "  {:<12}{:>8}{:>8}{:>9.1}{:>10.1}{:>9.1}{:>8.2}",
            self.variant,
            self.reads,
            self.calls,
            100.0 * self.saved(),
            1e3 * self.p50.as_secs_f64(),
            1e3 * self.p99.as_secs_f64(),
            self.wall.as_secs_f64(),
        );
    }

    fn json(&self) -> Value {
        Value::map([
            ("variant", self.variant.into()),
            ("reads", self.reads.into()),
            ("calls", self.calls.into()),
            ("saved", self.saved().into()),
            ("p50_ms", (1e3 * self.p50.as_secs_f64()).into()),
            ("p99_ms", (1e3 * self.p99.as_secs_f64()).into()),
            ("wall_seconds", self.wall.as_secs_f64().into()),
        ])
    }
}
