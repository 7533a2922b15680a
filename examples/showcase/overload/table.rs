//! What the overload act prints.

use tower_flow::inspect::Value;

use super::{DEADLINE, Overload, Row, SLOTS, Variant};
use crate::report::{Act, Table};

impl Act for Overload {
    fn name(&self) -> &'static str {
        "overload"
    }

    fn task(&self) -> String {
        format!(
            "a rush on a server that answers {:.0} calls a second; callers wait {} ms; goodput in parts of what it can do",
            self.capacity,
            DEADLINE.as_millis()
        )
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            "variant",
            "load",
            "offered/s",
            "goodput",
            "p50 ms",
            "p99 ms",
            "refused %",
            "missed %",
        ]);
        for row in &self.rows {
            table.row(row.cells());
        }
        table
    }

    fn verdict(&self) -> String {
        let [bare, tower, flow] = Variant::ALL.map(|variant| self.worst(variant));
        let unsent: usize = self.rows.iter().map(|row| row.unsent).sum();
        let unsent = match unsent {
            0 => String::new(),
            calls => format!("; {calls} calls could not be made and count for nobody"),
        };
        format!(
            "goodput beyond capacity at worst: bare {bare:.2}; tower {tower:.2}, with its limit set to {} by hand; \
             tower-flow {flow:.2}, with a limit of {} it found by itself{unsent}",
            2 * SLOTS,
            self.limit
        )
    }

    fn json(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("capacity_per_second", self.capacity.into()),
            ("limit", (self.limit as u64).into()),
            ("rows", Value::list(self.rows.iter().map(Row::json))),
        ]
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl Overload {
    /// The least goodput beyond capacity.
    fn worst(&self, variant: Variant) -> f64 {
        let rows = self.rows.iter();
        let beyond = rows.filter(|row| row.variant == variant && row.load > 1.0);
        beyond.map(|row| row.goodput).fold(f64::INFINITY, f64::min)
    }
}

impl Row {
    fn cells(&self) -> [String; 8] {
        [
            self.variant.name().into(),
            format!("{}x", self.load),
            format!("{:.0}", self.offered),
            format!("{:.2}", self.goodput),
            format!("{:.1}", 1e3 * self.p50.as_secs_f64()),
            format!("{:.1}", 1e3 * self.p99.as_secs_f64()),
            format!("{:.1}", 100.0 * self.refused),
            format!("{:.1}", 100.0 * self.missed),
        ]
    }

    fn json(&self) -> Value {
        Value::map([
            ("variant", self.variant.name().into()),
            ("load", self.load.into()),
            ("offered", self.offered.into()),
            ("goodput", self.goodput.into()),
            ("p50_ms", (1e3 * self.p50.as_secs_f64()).into()),
            ("p99_ms", (1e3 * self.p99.as_secs_f64()).into()),
            ("refused", self.refused.into()),
            ("missed", self.missed.into()),
            ("failed", self.failed.into()),
            ("unsent", (self.unsent as u64).into()),
        ])
    }
}
