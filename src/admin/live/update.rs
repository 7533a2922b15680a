//! One update of the page, cut to size.

use std::collections::HashMap;

use super::json::list;
use super::rows::Rows;

/// How long an update is at most, the event's own lines included.
pub(super) const LONGEST: usize = 20_000;
/// What is left of that for the event's own lines.
const ROOM: usize = LONGEST - 100;
/// How much of it the knobs may take; those that find no room come with the next update.
const KNOBS: usize = 4_000;
/// How much of it the hot paths may take,
const HOT: usize = 4_000;
/// and the layers' own costs.
const STACK: usize = 2_500;

/// Which layer, and which of its tables or knobs.
type Place = (usize, usize);

/// What an update is made of: JSON, but not yet put together.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Time, values and limits, with neither brace.
    pub(super) head: String,
    /// All tables, by layer and place.
    pub(super) tables: Vec<(Place, Rows)>,
    pub(super) stack: Vec<String>,
    /// What took most first.
    pub(super) hot: Vec<String>,
    /// All knobs' values, by layer and place.
    pub(super) knobs: Vec<(Place, String)>,
}

/// What was sent last of what is sent only when it changes.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// All rows there were, and how many of them were sent.
    tables: HashMap<Place, (Rows, usize)>,
    knobs: HashMap<Place, String>,
    /// The first that found no room the last time: with it the next update begins.
    next_table: Place,
    next_knob: Place,
}

impl Sent {
    /// Forgets it all, but not whose turn it is: the next update is whole.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
        self.knobs.clear();
    }
}

/// The update's JSON: of tables and knobs what is not `sent` yet.
pub(super) fn compose(parts: Parts, sent: &mut Sent) -> String {
    let head = parts.head;
    let knobs = list(knobs(parts.knobs, sent));
    let stack = list(within(parts.stack, STACK));
    let hot = list(within(parts.hot, HOT));
    let fixed = head.len() + knobs.len() + stack.len() + hot.len() + 64;
    let (rows, more) = tables(parts.tables, ROOM.saturating_sub(fixed), sent);
    let (rows, more) = (list(rows), list(more));
    format!(
        "{{{head},\"rows\":{rows},\"more\":{more},\"knobs\":{knobs},\"stack\":{stack},\"hot\":{hot}}}"
    )
}

/// Those entries that have room one after the other.
fn within(entries: Vec<String>, mut room: usize) -> impl Iterator<Item = String> {
    entries
        .into_iter()
        .filter(move |entry| take(&mut room, entry.len() + 1))
}

/// Takes so much of the room, if it has so much.
fn take(room: &mut usize, size: usize) -> bool {
    let left = room.checked_sub(size);
    *room = left.unwrap_or(*room);
    left.is_some()
}

/// The values that are new, as far as there is room for them.
fn knobs(mut knobs: Vec<(Place, String)>, sent: &mut Sent) -> Vec<String> {
    knobs.retain(|(place, value)| sent.knobs.get(place) != Some(value));
    turn(&mut knobs, sent.next_knob);
    let (mut room, mut missed) = (KNOBS, None);
    let mut entries = Vec::new();
    for (place, value) in knobs {
        let (layer, knob) = place;
        let entry = format!("[{layer},{knob},{value}]");
        if take(&mut room, entry.len() + 1) {
            sent.knobs.insert(place, value);
            entries.push(entry);
        } else {
            missed.get_or_insert(place);
        }
    }
    sent.next_knob = missed.unwrap_or_default();
    entries
}

/// Begins with `next`; they are in the order of their places.
fn turn<T>(entries: &mut [(Place, T)], next: Place) {
    let at = entries.partition_point(|(place, _)| *place < next);
    entries.rotate_left(at);
}

/// A table that may be sent.
struct Wanted {
    place: Place,
    rows: Rows,
    /// Which of the rows are sent.
    taken: Vec<usize>,
    /// What it takes besides its rows.
    own: usize,
}

/// The rows of those tables that are new, and how many of each are left out.
fn tables(
    tables: Vec<(Place, Rows)>,
    mut room: usize,
    sent: &mut Sent,
) -> (Vec<String>, Vec<String>) {
    let (mut new, mut cut) = (Vec::new(), Vec::new());
    for (place, rows) in tables {
        match sent.tables.get(&place) {
            Some((known, told)) if *known == rows => {
                if *told < rows.shown.len() {
                    cut.push(((place, rows), *told));
                }
            }
            _ => new.push((place, rows)),
        }
    }
    turn(&mut new, sent.next_table);
    let mut new: Vec<_> = new.into_iter().map(Wanted::new).collect();
    fill(&mut new, &mut room);
    // The first had all the room there is: there is never any for it.
    let missed = new.iter().skip(1).find(|table| !table.is_told());
    sent.next_table = missed.map_or(Place::default(), |table| table.place);
    new.retain(Wanted::is_told);
    // Whoever was cut short gets what the others leave, when it is more than it had.
    for (table, told) in cut {
        let (mut table, mut left) = ([Wanted::new(table)], room);
        fill(&mut table, &mut left);
        if table[0].taken.len() > told {
            room = left;
            new.extend(table);
        }
    }
    new.sort_by_key(|table| table.place);
    let (mut entries, mut more) = (Vec::new(), Vec::new());
    for table in new {
        let Wanted {
            place, rows, taken, ..
        } = table;
        let (layer, index) = place;
        let text = list(taken.iter().map(|row| &rows.shown[*row]));
        entries.push(format!("[{layer},{index},{text}]"));
        let hidden = rows.total - taken.len();
        if hidden > 0 {
            more.push(format!("[{layer},{index},{hidden}]"));
        }
        sent.tables.insert(place, (rows, taken.len()));
    }
    (entries, more)
}

/// Gives each table its first row, then each its second, and so on. A row that is too long is passed over.
fn fill(tables: &mut [Wanted], room: &mut usize) {
    let longest = tables.iter().map(|table| table.rows.shown.len()).max();
    for rank in 0..longest.unwrap_or(0).max(1) {
        for table in &mut *tables {
            let own = if table.taken.is_empty() { table.own } else { 0 };
            match table.rows.shown.get(rank) {
                Some(row) if take(room, row.len() + 1 + own) => table.taken.push(rank),
                // There is nothing of it but that it is empty now.
                None if rank == 0 && take(room, own) => table.own = 0,
                _ => {}
            }
        }
    }
}

impl Wanted {
    fn new((place, rows): (Place, Rows)) -> Self {
        let (layer, index) = place;
        // What rows and more say of it, with the most that their numbers can take.
        let own = format!("[{layer},{index},[]],[{layer},{index},{}],", rows.total).len();
        Self {
            place,
            rows,
            taken: Vec::new(),
            own,
        }
    }

    /// Whether it found room.
    fn is_told(&self) -> bool {
        !self.taken.is_empty() || self.own == 0
    }
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
        assert!(shown[1] > 30 && shown[0] >= shown[1], "{shown:?}");
        assert_eq!(whole["more"][0], serde_json::json!([0, 0, 200 - shown[0]]));
        let used: usize = compose(parts(tables()), &mut Sent::default()).len();
        assert!(used > ROOM - 500, "no more than needed: {used}");
        // Nothing changed, nothing is sent but what there was no room for.
        for _ in 0..2 {
            composed(parts(tables()), &mut sent);
        }
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

    #[test]
    fn the_longest_names_keep_the_bound() {
        // All that can be long is as long as it gets: 120 characters of six bytes each.
        let name = format!("\"{}…\"", "\\u003c".repeat(120));
        let numbers = vec!["-1.797e308"; 96].join(",");
        let row = format!("[{name},{name},[1.5,20]]");
        let rows = Rows {
            shown: vec![row; 64],
            total: 200,
        };
        let mut parts = parts(vec![((0, 0), rows)]);
        parts.head = format!("\"now\":1790000000.123,\"values\":[{numbers}],\"of\":[{numbers}]");
        parts.hot = vec![format!("[{name},{name},\"future\",1,2,3,4,5]"); 12];
        parts
            .hot
            .push("[\"short\",\"\",\"call\",1,2,3,4,5]".to_owned());
        let cost = |n| format!("[{n},-1.797e308,{n},18446744073709551615]");
        parts.stack = (0..1000).map(cost).collect();
        parts.knobs = (0..50).map(|n| ((n, 0), name.clone())).collect();
        let value = composed(parts, &mut Sent::default());
        let entries = |key: &str| value[key].as_array().unwrap().len();
        assert!(entries("stack") > 40 && entries("knobs") == 5);
        assert_eq!(entries("hot"), 3, "what is short finds room");
        assert!(value["rows"][0][2].as_array().unwrap().len() > 3);
    }

    #[test]
    fn a_row_that_does_not_fit_takes_no_room_from_others() {
        let mut tables: Vec<_> = (0..45).map(|n| table((n, 0), 2, 400)).collect();
        tables[0].1.shown[0] = format!("[\"{}\"]", "x".repeat(ROOM));
        let value = composed(parts(tables), &mut Sent::default());
        let shown = |n: usize| value["rows"][n][2].as_array().unwrap().len();
        assert!((0..45).all(|n| shown(n) >= 1), "{value}");
    }

    #[test]
    fn tables_that_found_no_room_come_with_a_later_update() {
        let mut sent = Sent::default();
        let mut seen = std::collections::HashSet::new();
        for round in 0..5 {
            // Somebody new each time, who needs all of it.
            if round % 2 == 0 {
                sent.clear();
            }
            let tables = (0..500).map(|n| table((n, 0), 10, 100)).collect();
            for entry in composed(parts(tables), &mut sent)["rows"]
                .as_array()
                .unwrap()
            {
                seen.insert(entry[0].as_u64().unwrap());
            }
        }
        assert_eq!(seen.len(), 500);
    }

    #[test]
    fn what_was_cut_short_is_completed_when_there_is_room() {
        let mut sent = Sent::default();
        let tables = || vec![table((0, 0), 64, 200), table((1, 0), 64, 200)];
        let first = composed(parts(tables()), &mut sent);
        assert_eq!(first["more"].as_array().unwrap().len(), 2);
        let again = composed(parts(tables()), &mut sent);
        assert_eq!(again["rows"][0][2].as_array().unwrap().len(), 64);
        assert_eq!(again["more"], serde_json::json!([]));
        // It ends, and what is empty now is told once.
        composed(parts(tables()), &mut sent);
        let again = composed(parts(tables()), &mut sent);
        assert_eq!(again["rows"], serde_json::json!([]));
        let emptied = || vec![((0, 0), Rows::default())];
        let last = composed(parts(emptied()), &mut sent);
        assert_eq!(last["rows"], serde_json::json!([[0, 0, []]]));
        assert_eq!(
            composed(parts(emptied()), &mut sent)["rows"],
            serde_json::json!([])
        );
    }
}
