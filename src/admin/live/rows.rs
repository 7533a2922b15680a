//! Table rows, made of a layer's snapshot.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt::Write;

use super::json::{Short, Text, short};
use crate::base::inspect::{Table, Unit, Value};

/// How many rows of a table are shown.
const SHOWN: usize = 64;

/// What one table counted when it was last looked at, by row.
#[derive(Debug, Default)]
pub(super) struct Before(HashMap<String, Vec<u64>>);

/// A table's rows as JSON, the busiest first.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Rows {
    pub(super) shown: Vec<String>,
    /// How many there are, shown or not.
    pub(super) total: usize,
}

/// One row as numbers.
struct Row<'a> {
    cells: Vec<Cell<'a>>,
    name: String,
}

enum Cell<'a> {
    Text(std::borrow::Cow<'a, str>),
    /// How much, and by how much each second.
    Count(Option<f64>, u64),
    Level(Option<f64>),
}

/// The rows of `table` in the snapshot `state`. `before` is what was counted `elapsed` seconds ago, and becomes what is
/// now; without `elapsed` nothing is known of rates.
pub(super) fn rows(
    table: &Table,
    state: &Value,
    before: &mut Before,
    elapsed: Option<f64>,
) -> Rows {
    let Some(Value::List(entries)) = find(state, table.rows) else {
        *before = Before::default();
        return Rows::default();
    };
    let mut counted = HashMap::with_capacity(entries.len());
    let mut rows: Vec<_> = entries
        .iter()
        .map(|entry| Row::of(table, entry, before, &mut counted, elapsed))
        .collect();
    *before = Before(counted);
    // Stable, so that those that do nothing stay in the layer's own order.
    rows.sort_by(Row::busier);
    Rows {
        total: rows.len(),
        shown: rows.iter().take(SHOWN).map(Row::shown).collect(),
    }
}

impl<'a> Row<'a> {
    fn of(
        table: &Table,
        entry: &'a Value,
        before: &Before,
        counted: &mut HashMap<String, Vec<u64>>,
        elapsed: Option<f64>,
    ) -> Self {
        let found: Vec<_> = table
            .columns
            .iter()
            .map(|column| (column.unit, find(entry, column.key)))
            .collect();
        let mut name = String::new();
        for (_, value) in found.iter().take_while(|(unit, _)| *unit == Unit::Text) {
            name.push_str(&text(*value));
            name.push('\0');
        }
        // Two of one name are told apart by nothing: the first has the past.
        let past = before.0.get(&name).filter(|_| !counted.contains_key(&name));
        let mut counts = Vec::new();
        let cells = found
            .into_iter()
            .map(|(unit, value)| match unit {
                Unit::Text => Cell::Text(text(value)),
                Unit::Count | Unit::Bytes => {
                    let count = value.and_then(number).unwrap_or(0.0) as u64;
                    let then = past.and_then(|past| past.get(counts.len()));
                    counts.push(count);
                    let rate = elapsed
                        .filter(|elapsed| *elapsed > 0.0)
                        .and_then(|elapsed| {
                            // What goes back has lost its past.
                            Some(count.checked_sub(*then?)? as f64 / elapsed)
                        });
                    Cell::Count(rate, count)
                }
                _ => Cell::Level(value.and_then(number)),
            })
            .collect();
        counted.entry(name.clone()).or_insert(counts);
        Self { cells, name }
    }

    /// By what its first count grows, then by its first level, then by its first count.
    fn busier(&self, other: &Self) -> Ordering {
        let order = |a: f64, b: f64| b.total_cmp(&a);
        let (a, b) = (self.business(), other.business());
        order(a.0, b.0)
            .then_with(|| order(a.1, b.1))
            .then_with(|| order(a.2, b.2))
    }

    fn business(&self) -> (f64, f64, f64) {
        let count = self.cells.iter().find_map(|cell| match cell {
            Cell::Count(rate, total) => Some((rate.unwrap_or(0.0), *total as f64)),
            _ => None,
        });
        let level = self.cells.iter().find_map(|cell| match cell {
            Cell::Level(level) => Some(level.unwrap_or(0.0)),
            _ => None,
        });
        let (rate, total) = count.unwrap_or_default();
        (rate, level.unwrap_or_default(), total)
    }

    fn shown(&self) -> String {
        let mut row = String::with_capacity(16 * self.cells.len() + self.name.len());
        row.push('[');
        for (index, cell) in self.cells.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            // A String takes all that is written.
            let _ = match cell {
                Cell::Text(text) => write!(row, "{comma}{}", Text(text)),
                Cell::Count(rate, total) => {
                    write!(row, "{comma}[{},{}]", short(*rate), Short(*total as f64))
                }
                Cell::Level(level) => write!(row, "{comma}{}", short(*level)),
            };
        }
        row.push(']');
        row
    }
}

/// What is at `key`; dots lead into maps.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    // A key may have dots of its own.
    value.get(key).or_else(|| {
        let (outer, inner) = key.split_once('.')?;
        find(value.get(outer)?, inner)
    })
}

/// A number, or the sum of a map or list of them.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Flag(flag) => Some(f64::from(u8::from(*flag))),
        Value::Whole(whole) => Some(*whole as f64),
        Value::Number(number) => Some(*number).filter(|number| number.is_finite()),
        Value::Map(entries) => Some(entries.iter().filter_map(|(_, value)| number(value)).sum()),
        Value::List(entries) => Some(entries.iter().filter_map(number).sum()),
        Value::Null | Value::Text(_) => None,
    }
}

fn text(value: Option<&Value>) -> std::borrow::Cow<'_, str> {
    match value {
        None | Some(Value::Null) => "".into(),
        Some(Value::Text(text)) => text.as_str().into(),
        Some(other) => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::inspect::Column;

    const TABLE: Table = Table {
        title: "routes",
        rows: "routes",
        columns: &[
            Column::new("route", "route", Unit::Text),
            Column::new("started", "started", Unit::Count),
            Column::new("p99", "window.p99", Unit::Seconds),
            Column::new("failed", "ended", Unit::Count),
        ],
    };

    fn route(name: &str, started: u64, p99: f64) -> Value {
        Value::map([
            ("route", name.into()),
            ("started", started.into()),
            (
                "window",
                Value::map([("p99", p99)].map(|(key, value)| (key, value.into()))),
            ),
            (
                "ended",
                Value::map([("ok", 3u64.into()), ("error", started.into())]),
            ),
        ])
    }

    fn state(routes: impl IntoIterator<Item = Value>) -> Value {
        Value::map([("routes", Value::list(routes))])
    }

    #[test]
    fn counts_become_rates_and_the_busiest_come_first() {
        let mut before = Before::default();
        let first = rows(
            &TABLE,
            &state([route("a", 10, 0.25), route("b", 20, f64::NAN)]),
            &mut before,
            None,
        );
        assert_eq!(
            first.shown,
            [
                r#"["a",[null,10],0.25,[null,13]]"#,
                r#"["b",[null,20],null,[null,23]]"#
            ]
        );
        let next = state([
            route("a", 14, 0.25),
            route("b", 30, 0.5),
            route("c", 1, 0.0),
        ]);
        let second = rows(&TABLE, &next, &mut before, Some(2.0));
        assert_eq!(
            second.shown,
            [
                r#"["b",[5,30],0.5,[5,33]]"#,
                r#"["a",[2,14],0.25,[2,17]]"#,
                r#"["c",[null,1],0,[null,4]]"#
            ]
        );
        assert_eq!(second.total, 3);
    }

    #[test]
    fn without_a_past_there_is_no_rate() {
        let mut before = Before::default();
        let mut shown = |routes: &[(&str, u64)]| {
            let routes = routes.iter().map(|(name, n)| route(name, *n, 0.0));
            rows(&TABLE, &state(routes), &mut before, Some(1.0)).shown
        };
        shown(&[("a", 1_000_000), ("b", 9)]);
        shown(&[("b", 9)]);
        // One was away, the other began anew.
        let back = shown(&[("a", 1_000_001), ("b", 2)]);
        assert!(back[0].starts_with(r#"["a",[null,1000000]"#), "{back:?}");
        assert!(back[1].starts_with(r#"["b",[null,2]"#), "{back:?}");
        let next = shown(&[("a", 1_000_003), ("b", 2)]);
        assert!(next[0].starts_with(r#"["a",[2,1000000]"#), "{next:?}");
        assert!(next[1].starts_with(r#"["b",[0,2]"#), "{next:?}");
    }

    #[test]
    fn so_many_rows_are_shown_and_the_others_counted() {
        let mut before = Before::default();
        let many = state((0..200).map(|n| route(&n.to_string(), n, 0.0)));
        let rows = rows(&TABLE, &many, &mut before, Some(1.0));
        assert_eq!((rows.shown.len(), rows.total), (SHOWN, 200));
    }

    #[test]
    fn what_is_missing_or_odd_breaks_nothing() {
        let mut before = Before::default();
        for odd in [
            Value::Null,
            Value::map([("routes", Value::from(3u64))]),
            state([]),
        ] {
            assert_eq!(rows(&TABLE, &odd, &mut before, Some(1.0)), Rows::default());
        }
        let twins = state([Value::Null, route("<b>\"", 5, 1.0), route("<b>\"", 7, 1.0)]);
        rows(&TABLE, &twins, &mut before, None);
        let twins = rows(&TABLE, &twins, &mut before, Some(1.0));
        assert_eq!(twins.total, 3);
        for row in &twins.shown {
            assert!(!row.contains('<'), "{row}");
            serde_json::from_str::<serde_json::Value>(row).unwrap();
        }
    }
}
