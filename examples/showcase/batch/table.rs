//! What the batch act prints.

use tower_flow::inspect::Value;

use super::{Batch, CALL, ITEM, PACE, Row};
use crate::report::Act;

impl Act for Batch {
    fn name(&self) -> &'static str {
        "batch"
    }

    fn print(&self) {
        println!(
            "{PACE} small writes a second, answered or not, into a table that takes {} ms for a call and {} µs for each write \
             in it, one call at a time",
            CALL.as_millis(),
            ITEM.as_micros()
        );
        println!(
            "\n  {:<10}{:>10}{:>9}{:>8}{:>7}{:>9}{:>10}{:>9}{:>12}{:>8}",
            "variant",
            "wanted/s",
            "writes",
            "calls",
            "size",
            "largest",
            "p50 ms",
            "p99 ms",
            "answered/s",
            "wall s"
        );
        for row in &self.rows {
            row.print();
        }
        println!();
        match &*self.problems {
            [] => println!(
                "every write is in the table once, where its writer was told; the calls are those the layer says it sent"
            ),
            problems => problems
                .iter()
                .for_each(|problem| println!("wrong: {problem}")),
        }
    }

    fn json(&self) -> Value {
        let problems = self.problems.iter();
        Value::map([
            ("writes_per_second", PACE.into()),
            ("call_ms", (1e3 * CALL.as_secs_f64()).into()),
            ("item_ms", (1e3 * ITEM.as_secs_f64()).into()),
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
    fn size(&self) -> f64 {
        self.writes as f64 / self.calls.max(1) as f64
    }

    /// Writes a second that were answered.
    fn answered(&self) -> f64 {
        self.writes as f64 / self.wall.as_secs_f64()
    }

    fn print(&self) {
        println!(
            "  {:<10}{:>10.0}{:>9}{:>8}{:>7.1}{:>9}{:>10.1}{:>9.1}{:>12.0}{:>8.2}",
            self.variant,
            self.pace,
            self.writes,
            self.calls,
            self.size(),
            self.largest,
            1e3 * self.p50.as_secs_f64(),
            1e3 * self.p99.as_secs_f64(),
            self.answered(),
            self.wall.as_secs_f64(),
        );
    }

    fn json(&self) -> Value {
        Value::map([
            ("variant", self.variant.into()),
            ("wanted_per_second", self.pace.into()),
            ("writes", self.writes.into()),
            ("calls", self.calls.into()),
            ("size", self.size().into()),
            ("largest", self.largest.into()),
            ("p50_ms", (1e3 * self.p50.as_secs_f64()).into()),
            ("p99_ms", (1e3 * self.p99.as_secs_f64()).into()),
            ("answered_per_second", self.answered().into()),
            ("wall_seconds", self.wall.as_secs_f64().into()),
        ])
    }
}
