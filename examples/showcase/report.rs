//! What the showcase prints: for people a table and a verdict of each act as soon as it is over, for machines one object.

use std::fmt;
use std::time::Instant;

use tower_flow::inspect::Value;

/// Goes up when a key changes its meaning or goes away; new ones may come.
const VERSION: u64 = 1;

/// What one act found.
pub(crate) trait Act {
    /// Its name among `acts`.
    fn name(&self) -> &'static str;

    /// What was done, in a line.
    fn task(&self) -> String;

    fn table(&self) -> Table;

    /// What came of it, in a line, where nothing went wrong.
    fn verdict(&self) -> String;

    /// For machines.
    fn json(&self) -> Vec<(&'static str, Value)>;

    /// What went wrong; empty is success.
    fn problems(&self) -> &[String];
}

/// Columns as wide as what is in them: numbers to the right, all else to the left.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

/// All acts that are over.
pub(crate) struct Report {
    json: bool,
    start: Instant,
    acts: Vec<(&'static str, Value)>,
    good: bool,
}

// ===== impl Report =====

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            start: Instant::now(),
            acts: Vec::new(),
            good: true,
        }
    }

    /// An act is over.
    pub(crate) fn add(&mut self, act: &impl Act) {
        let problems = act.problems();
        self.good &= problems.is_empty();
        if !self.json {
            println!(
                "\n{}: {}\n\n{}",
                act.name().to_uppercase(),
                act.task(),
                act.table()
            );
            match problems {
                [] => println!("  ok: {}", act.verdict()),
                _ => problems
                    .iter()
                    .for_each(|problem| println!("  wrong: {problem}")),
            }
        }
        let list = problems.iter().map(|problem| problem.as_str().into());
        let mut json = act.json();
        json.push(("ok", problems.is_empty().into()));
        json.push(("problems", Value::list(list)));
        self.acts.push((act.name(), Value::map(json)));
    }

    /// Whether nothing went wrong.
    pub(crate) fn end(self, live: &str) -> bool {
        let took = self.start.elapsed();
        match self.json {
            true => println!(
                "{}",
                Value::map([
                    ("version", VERSION.into()),
                    ("ok", self.good.into()),
                    ("seconds", took.into()),
                    ("live", live.into()),
                    ("acts", Value::map(self.acts)),
                ])
            ),
            false => println!("\nall acts took {:.0} s", took.as_secs_f64()),
        }
        self.good
    }
}

// ===== impl Table =====

impl Table {
    pub(crate) fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self {
            rows: vec![heads.map(str::to_owned).into()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |cell: &str| cell.starts_with(|first: char| first.is_ascii_digit());
        for row in &self.rows {
            let mut line = String::from(" ");
            for (column, cell) in row.iter().enumerate() {
                let cells = || self.rows.iter().map(|row| row[column].as_str());
                let width = cells().map(|cell| cell.chars().count()).max().unwrap_or(0);
                let mut below = cells().skip(1);
                match below.all(|cell| number(cell) || cell == "-") {
                    true => line += &format!(" {cell:>width$} "),
                    false => line += &format!(" {cell:<width$} "),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
