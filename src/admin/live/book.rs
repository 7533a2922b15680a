//! What is known of all layers, and what is told of it.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::history::History;
use super::json::{Short, Text, list, scalar, short};
use super::measure::measures;
use super::rows::{Before, rows};
use super::update::{Parts, Sent, compose};
use crate::base::clock::Instant;
use crate::base::flow::{self, Flow};
use crate::base::inspect::{HotPath, Inspect, Knob, Table, Vital};

/// How many hot paths an update has.
const HOT: usize = 12;
/// What was read less than this ago is not read again.
const FRESH: Duration = Duration::from_millis(100);
/// What was counted longer ago makes no rate of now.
const STALE: Duration = Duration::from_secs(5);

/// The vitals of a while ago, the history made of them, and what listeners were told last.
#[derive(Debug, Default)]
pub(super) struct Book {
    history: History,
    looked: Option<Instant>,
    vitals: Vec<Vec<Vital>>,
    /// As far as listeners know; none before the first.
    shape: Option<Shape>,
    counted: HashMap<(usize, usize), Before>,
    told: Option<Instant>,
    sent: Sent,
}

/// The knobs and tables of each layer.
type Shape = Vec<(Vec<&'static str>, &'static [Table])>;

/// What a layer's own code answers, or nothing.
fn asked<T: Default>(ask: impl FnOnce() -> T) -> T {
    flow::asked(ask).unwrap_or_default()
}

impl Book {
    /// Reads the vitals. Whether there are measures among them that were not there before.
    pub(super) fn look(&mut self, layers: &[Arc<dyn Inspect>], now: Instant) -> bool {
        // Rates of a moment would be wild.
        if self.is_fresh(now) {
            return false;
        }
        let vitals: Vec<_> = layers
            .iter()
            .map(|layer| asked(|| layer.vitals()))
            .collect();
        let looked = self.looked.replace(now);
        let elapsed = looked.map_or(0.0, |looked| {
            now.saturating_duration_since(looked).as_secs_f64()
        });
        let none = Vec::new();
        let measured: Vec<_> = vitals
            .iter()
            .enumerate()
            .map(|(layer, now)| measures(now, self.vitals.get(layer).unwrap_or(&none), elapsed))
            .collect();
        self.vitals = vitals;
        self.history.push(now, &measured)
    }

    fn is_fresh(&self, now: Instant) -> bool {
        let looked = self.looked;
        looked.is_some_and(|looked| now.saturating_duration_since(looked) < FRESH)
    }

    /// Whether layers have other knobs or tables than listeners knew; they are to be told.
    pub(super) fn reshape(&mut self, layers: &[Arc<dyn Inspect>]) -> bool {
        let shape = shape(layers);
        let known = self.shape.replace(shape);
        known != self.shape
    }

    /// What there is, the part that is the same for all: `wall` is `now` outside. The brace that opens is not there.
    /// When nobody has looked yet, it does.
    pub(super) fn outline(
        &mut self,
        flow: &Flow,
        layers: &[Arc<dyn Inspect>],
        now: Instant,
        wall: SystemTime,
    ) -> String {
        if self.looked.is_none() {
            self.look(layers, now);
        }
        self.shape.get_or_insert_with(|| shape(layers));
        let layers = list(layers.iter().enumerate().map(|(id, layer)| {
            let (tables, knobs) = (asked(|| layer.tables()), asked(|| layer.knobs()));
            let tables = list(tables.iter().map(|table| {
                let columns = list(table.columns.iter().map(|column| {
                    format!("[{},\"{}\"]", Text(column.label), column.unit.as_str())
                }));
                format!("{{\"title\":{},\"columns\":{columns}}}", Text(table.title))
            }));
            let knobs = list(knobs.iter().map(|knob| {
                format!(
                    "{{\"name\":{},\"help\":{},\"value\":{}}}",
                    Text(knob.name),
                    Text(knob.help),
                    scalar(&knob.value)
                )
            }));
            format!(
                "{{\"id\":{id},\"kind\":{},\"name\":{},\"tables\":{tables},\"knobs\":{knobs}}}",
                Text(asked(|| layer.kind())),
                Text(&asked(|| layer.name().into_owned()))
            )
        }));
        let measures = list(self.history.series().iter().map(|series| {
            let [key, label, unit] = series.key.words();
            let layer = series.layer;
            format!(
                "{{\"layer\":{layer},\"key\":\"{key}\",\"label\":\"{label}\",\"unit\":\"{unit}\"}}"
            )
        }));
        let series = self.history.series().iter();
        let values = list(series.map(|series| list(series.values().map(short))));
        let limits = list(self.history.series().iter().map(|series| {
            let limits = series.limits();
            limits.map_or("null".to_owned(), |limits| list(limits.map(short)))
        }));
        format!(
            "\"service\":{},\"version\":\"{}\",\"now\":{},\"uptime\":{},\"period\":1,\"layers\":{layers},\
             \"measures\":{measures},\"unshown\":{},\"history\":{{\"at\":{},\"values\":{values},\"of\":{limits}}}}}",
            Text(flow.name()),
            env!("CARGO_PKG_VERSION"),
            unix(wall),
            uptime(flow),
            self.history.unshown(),
            list(self.history.at(now)),
        )
    }

    /// What is new; when it is `whole`, all that there is.
    pub(super) fn update(
        &mut self,
        flow: &Flow,
        layers: &[Arc<dyn Inspect>],
        now: Instant,
        wall: SystemTime,
        whole: bool,
    ) -> String {
        if whole {
            self.sent.clear();
        }
        let told = self.told.replace(now);
        let elapsed = told
            .map(|told| now.saturating_duration_since(told))
            .filter(|elapsed| *elapsed <= STALE)
            .map(|elapsed| elapsed.as_secs_f64());
        let mut parts = Parts {
            head: self.head(flow, wall),
            ..Parts::default()
        };
        let mut hot = Vec::new();
        for (id, layer) in layers.iter().enumerate() {
            let tables = asked(|| layer.tables());
            if !tables.is_empty() {
                let state = asked(|| Some(layer.snapshot()));
                for (index, table) in tables.iter().enumerate() {
                    let before = self.counted.entry((id, index)).or_default();
                    let Some(state) = &state else { continue };
                    let rows = rows(table, state, before, elapsed);
                    parts.tables.push(((id, index), rows));
                }
            }
            let knobs = asked(|| layer.knobs()).into_iter().enumerate();
            parts
                .knobs
                .extend(knobs.map(|(index, knob)| ((id, index), scalar(&knob.value))));
            hot.extend(asked(|| layer.hot()));
        }
        parts.stack = asked(|| flow.overhead())
            .into_iter()
            .map(|cost| {
                let inside = cost
                    .inside
                    .map_or("null".to_owned(), |inside| inside.to_string());
                let nanos = Short(cost.per_call.as_nanos() as f64);
                format!(
                    "[{},{nanos},{inside},{},{}]",
                    cost.layer, cost.sampled, cost.nested
                )
            })
            .collect();
        hot.sort_by_key(|path| std::cmp::Reverse(path.busy));
        parts.hot = hot.iter().take(HOT).map(heat).collect();
        compose(parts, &mut self.sent)
    }

    fn head(&self, flow: &Flow, wall: SystemTime) -> String {
        let series = self.history.series();
        let values = list(series.iter().map(|series| short(series.last())));
        let of = list(series.iter().map(|series| short(series.limit())));
        let mut head = format!("\"now\":{},\"uptime\":{}", unix(wall), uptime(flow));
        // A String takes all that is written.
        let _ = write!(head, ",\"values\":{values},\"of\":{of}");
        head
    }
}

fn heat(path: &HotPath) -> String {
    format!(
        "[{},{},{},{},{},{},{},{}]",
        Text(&path.layer),
        Text(&path.route),
        Text(path.stage),
        path.polls,
        Short(path.busy.as_secs_f64()),
        short(path.share),
        Short(path.max.as_secs_f64()),
        path.slow
    )
}

fn shape(layers: &[Arc<dyn Inspect>]) -> Shape {
    let names = |knobs: Vec<Knob>| knobs.iter().map(|knob| knob.name).collect();
    let of = |layer: &Arc<dyn Inspect>| (names(asked(|| layer.knobs())), asked(|| layer.tables()));
    layers.iter().map(of).collect()
}

/// Seconds, to the tenth; no clock that is set changes it.
fn uptime(flow: &Flow) -> f64 {
    flow.uptime().as_millis().div_euclid(100) as f64 / 10.0
}

/// Seconds since 1970, to the millisecond.
fn unix(wall: SystemTime) -> f64 {
    let since = wall.duration_since(SystemTime::UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    millis as f64 / 1000.0
}
