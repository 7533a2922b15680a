//! One update of the page, cut to size.

use super::json::list;
use super::rows::Rows;

/// How long an update is at most, the event's own lines included.
pub(super) const LONGEST: usize = 20_000;
/// What is left of that for the event's own lines.
const ROOM: usize = LONGEST - 100;
/// How much of it the knobs may take; those that find no room come with the next update.
const KNOBS: usize = 4_000;
/// How many layers' own cost is shown.
const STACK: usize = 64;

/// What an update is made of: JSON, but not yet put together.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Time, values and limits, with neither brace.
    pub(super) head: String,
    /// All tables, by layer and place.
    pub(super) tables: Vec<((usize, usize), Rows)>,
    pub(super) stack: Vec<String>,
    pub(super) hot: Vec<String>,
    /// Those that changed, by layer and place.
    pub(super) knobs: Vec<((usize, usize), String)>,
}

/// What was sent last of what is sent only when it changes.
#[derive(Debug, Default)]
pub(super) struct Sent {
    tables: std::collections::HashMap<(usize, usize), String>,
    knobs: std::collections::HashMap<(usize, usize), String>,
}

impl Sent {
    /// Forgets it all: the next update is whole.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
        self.knobs.clear();
    }
}

/// The update's JSON: of tables and knobs what is not `sent` yet.
pub(super) fn compose(mut parts: Parts, sent: &mut Sent) -> String {
    parts.stack.truncate(STACK);
    let mut knobs = Vec::new();
    let mut taken = 0;
    for ((layer, knob), value) in parts.knobs {
        if sent.knobs.get(&(layer, knob)) == Some(&value) {
            continue;
        }
        let entry = format!("[{layer},{knob},{value}]");
        taken += entry.len() + 1;
        if taken > KNOBS {
            break;
        }
        sent.knobs.insert((layer, knob), value);
        knobs.push(entry);
    }
    let head = parts.head;
    let (knobs, stack, hot) = (list(knobs), list(parts.stack), list(parts.hot));
    let fixed = head.len() + knobs.len() + stack.len() + hot.len() + 64;

    let room = ROOM.saturating_sub(fixed);
    let most = fitting(&parts.tables, room);
    let (mut rows, mut more, mut used) = (Vec::new(), Vec::new(), 0);
    for (place, table) in &parts.tables {
        let shown = &table.shown[..most.min(table.shown.len())];
        let text = list(shown);
        // What rows and more say of it, with the most that their numbers can take.
        used += text.len() + OVERHEAD;
        if sent.tables.get(place) == Some(&text) {
            continue;
        }
        // More tables than there is room for even without their rows: the others stay unsent.
        if used > room {
            break;
        }
        let (layer, index) = place;
        rows.push(format!("[{layer},{index},{text}]"));
        let hidden = table.total - shown.len();
        if hidden > 0 {
            more.push(format!("[{layer},{index},{hidden}]"));
        }
        sent.tables.insert(*place, text);
    }
    let (rows, more) = (list(rows), list(more));
    format!(
        "{{{head},\"rows\":{rows},\"more\":{more},\"knobs\":{knobs},\"stack\":{stack},\"hot\":{hot}}}"
    )
}

/// What a table takes besides its rows.
const OVERHEAD: usize = 60;

/// The greatest number of rows, the same for each table, with which all of them fit: whether they changed or not, so
/// that it does not jump about.
fn fitting(tables: &[((usize, usize), Rows)], room: usize) -> usize {
    let most = tables.iter().map(|(_, table)| table.shown.len()).max();
    let mut taken = tables.len() * OVERHEAD;
    for rank in 0..most.unwrap_or(0) {
        let at = |(_, table): &(_, Rows)| table.shown.get(rank).map_or(0, |row| row.len() + 1);
        taken += tables.iter().map(at).sum::<usize>();
        if taken > room {
            return rank;
        }
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn table(place: (usize, usize), rows: usize, width: usize) -> ((usize, usize), Rows) {
        let row = format!("[\"{}\"]", "x".repeat(width));
        let shown = vec![row; rows.min(64)];
        (place, Rows { shown, total: rows })
    }

    fn parts(tables: Vec<((usize, usize), Rows)>) -> Parts {
        Parts {
            head: "\"now\":1".to_owned(),
            tables,
            ..Parts::default()
        }
    }

    fn composed(parts: Parts, sent: &mut Sent) -> Value {
        let text = compose(parts, sent);
        assert!(text.len() <= ROOM, "{}", text.len());
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn rows_are_cut_until_all_tables_fit() {
        let mut sent = Sent::default();
        let tables = || {
            vec![
                table((0, 0), 200, 150),
                table((1, 0), 64, 300),
                table((2, 1), 3, 10),
            ]
        };
        let whole = composed(parts(tables()), &mut sent);
        let shown: Vec<_> = (0..3)
            .map(|n| whole["rows"][n][2].as_array().unwrap().len())
            .collect();
        assert_eq!(shown[2], 3, "small tables lose nothing");
        assert!(shown[0] > 30 && shown[0] == shown[1], "{shown:?}");
        assert_eq!(whole["more"][0], serde_json::json!([0, 0, 200 - shown[0]]));
        let used: usize = compose(parts(tables()), &mut Sent::default()).len();
        assert!(used > ROOM - 500, "no more than needed: {used}");
        // Nothing changed, nothing is sent.
        let again = composed(parts(tables()), &mut sent);
        assert_eq!(again["rows"], serde_json::json!([]));
        let mut changed = tables();
        changed[2].1.shown.pop();
        changed[2].1.total = 2;
        let again = composed(parts(changed), &mut sent);
        assert_eq!(again["rows"].as_array().unwrap().len(), 1);
        assert_eq!(again["rows"][0][0], 2);
    }

    #[test]
    fn more_tables_and_knobs_than_fit_take_turns() {
        let mut sent = Sent::default();
        let knobs: Vec<_> = (0..1000)
            .map(|n| ((n, 0), "\"value\"".to_owned()))
            .collect();
        let mut parts = parts((0..500).map(|n| table((n, 0), 10, 100)).collect());
        parts.knobs = knobs.clone();
        let first = composed(parts, &mut sent);
        assert!(first["rows"].as_array().unwrap().len() > 100);
        let (mut seen, mut rounds) = (first["knobs"].as_array().unwrap().len(), 1);
        while seen < 1000 {
            let parts = Parts {
                head: "\"now\":1".to_owned(),
                knobs: knobs.clone(),
                ..Parts::default()
            };
            let next = composed(parts, &mut sent);
            seen += next["knobs"].as_array().unwrap().len();
            rounds += 1;
            assert!(rounds < 10);
        }
        assert_eq!(seen, 1000);
    }
}
