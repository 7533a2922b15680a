//! What the overload act prints.

use tower_flow::inspect::Value;

use super::{DEADLINE, LOADS, Overload, Row, SLOTS, Variant};
use crate::report::Act;

impl Act for Overload {
    fn name(&self) -> &'static str {
        "overload"
    }

    fn print(&self) {
        println!(
            "a rush on a server that answers {:.0} calls a second; callers wait {} ms",
            self.capacity,
            DEADLINE.as_millis()
        );
        println!(
            "\n  {:<12}{:>6}{:>11}{:>10}{:>9}{:>9}{:>11}{:>11}",
            "variant", "load", "offered/s", "goodput", "p50 ms", "p99 ms", "refused %", "missed %"
        );
        for row in &self.rows {
            row.print();
        }
        println!();
        let [bare, tower, flow] = Variant::ALL.map(|variant| self.worst(variant));
        println!(
            "answered in time beyond capacity, at worst: bare {bare:.0} % of what it can do; tower {tower:.0} %, with \
             its limit set to {} by hand; tower-flow {flow:.0} %, with a limit of {} it found by itself",
            2 * SLOTS,
            self.limit
        );
        let unsent: usize = self.rows.iter().map(|row| row.unsent).sum();
        if unsent > 0 {
            println!("the generator could not make {unsent} calls; they count for nobody");
        }
        for problem in &self.problems {
            println!("wrong: {problem}");
        }
    }

    fn json(&self) -> Value {
        Value::map([
            ("capacity_per_second", self.capacity.into()),
            ("limit", (self.limit as u64).into()),
            ("rows", Value::list(self.rows.iter().map(Row::json))),
            (
                "problems",
                Value::list(self.problems.iter().map(|problem| problem.as_str().into())),
            ),
        ])
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl Overload {
    /// The least goodput beyond capacity, in percent of it.
    fn worst(&self, variant: Variant) -> f64 {
        let rows = self.rows.iter();
        let beyond = rows.filter(|row| row.variant == variant && row.load > 1.0);
        100.0 * beyond.map(|row| row.goodput).fold(f64::INFINITY, f64::min)
    }
}

impl Row {
    fn print(&self) {
        let first = self.load == LOADS[0];
        println!(
            "  {:<12}{:>5}x{:>11.0}{:>10.2}{:>9.1}{:>9.1}{:>11.1}{:>11.1}",
            if first { self.variant.name() } else { "" },
            self.load,
            self.offered,
            self.goodput,
            1e3 * self.p50.as_secs_f64(),
            1e3 * self.p99.as_secs_f64(),
            100.0 * self.refused,
            100.0 * self.missed,
        );
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
