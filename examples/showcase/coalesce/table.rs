//! What the coalesce act prints.

use tower_flow::inspect::Value;

use super::{CALLERS, Coalesce, KEYS, PACE, Row, SLOTS, TIME};
use crate::report::{Act, Table};

impl Act for Coalesce {
    fn name(&self) -> &'static str {
        "coalesce"
    }

    fn task(&self) -> String {
        format!(
            "{CALLERS} callers, each of whom reads {PACE} times a second, answered or not, one of {KEYS} things by Zipf's \
             law; the backend has {SLOTS} slots and takes {} ms",
            TIME.as_millis()
        )
    }

    fn table(&self) -> Table {
        let heads = [
            "variant", "reads", "calls", "saved %", "p50 ms", "p99 ms", "wall s",
        ];
        let mut table = Table::new(heads);
        for row in &self.rows {
            table.row(row.cells());
        }
        table
    }

    fn verdict(&self) -> String {
        "what the backend was asked is what the layer says it sent; every answer was the right one"
            .into()
    }

    fn json(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("callers", (CALLERS as u64).into()),
            ("reads_per_second", (CALLERS as f64 * PACE).into()),
            ("keys", (KEYS as u64).into()),
            ("slots", (SLOTS as u64).into()),
            ("answer_ms", (1e3 * TIME.as_secs_f64()).into()),
            ("rows", Value::list(self.rows.iter().map(Row::json))),
            ("books", self.books.clone()),
        ]
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

    fn cells(&self) -> [String; 7] {
        [
            self.variant.into(),
            self.reads.to_string(),
            self.calls.to_string(),
            format!("{:.1}", 100.0 * self.saved()),
            format!("{:.1}", 1e3 * self.p50.as_secs_f64()),
            format!("{:.1}", 1e3 * self.p99.as_secs_f64()),
            format!("{:.2}", self.wall.as_secs_f64()),
        ]
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
