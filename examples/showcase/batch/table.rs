//! What the batch act prints.

use tower_flow::inspect::Value;

use super::{Batch, CALL, ITEM, PACE, Row};
use crate::report::{Act, Table};

impl Act for Batch {
    fn name(&self) -> &'static str {
        "batch"
    }

    fn task(&self) -> String {
        format!(
            "{PACE} small writes a second, answered or not, into a table that takes {} ms for a call and {} µs for each write \
             in it, one call at a time",
            CALL.as_millis(),
            ITEM.as_micros()
        )
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            "variant",
            "wanted/s",
            "writes",
            "calls",
            "size",
            "largest",
            "p50 ms",
            "p99 ms",
            "answered/s",
            "wall s",
        ]);
        for row in &self.rows {
            table.row(row.cells());
        }
        table
    }

    fn verdict(&self) -> String {
        "every write is in the table once, where its writer was told; the calls are those the layer says it sent".into()
    }

    fn json(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("writes_per_second", PACE.into()),
            ("call_ms", (1e3 * CALL.as_secs_f64()).into()),
            ("item_ms", (1e3 * ITEM.as_secs_f64()).into()),
            ("rows", Value::list(self.rows.iter().map(Row::json))),
            ("books", self.books.clone()),
        ]
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

    fn cells(&self) -> [String; 10] {
        [
            self.variant.into(),
            format!("{:.0}", self.pace),
            self.writes.to_string(),
            self.calls.to_string(),
            format!("{:.1}", self.size()),
            self.largest.to_string(),
            format!("{:.1}", 1e3 * self.p50.as_secs_f64()),
            format!("{:.1}", 1e3 * self.p99.as_secs_f64()),
            format!("{:.0}", self.answered()),
            format!("{:.2}", self.wall.as_secs_f64()),
        ]
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
