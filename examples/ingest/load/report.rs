use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::json;
use tonic::Status;

use crate::options::Load;

/// What came of items.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) offered: u64,
    pub(super) duplicates: u64,
    acknowledged: u64,
    /// By status, each with an example of what it says.
    refused: BTreeMap<String, (u64, String)>,
    /// From due to acknowledged, in microseconds.
    took: Histogram<u64>,
}

// ===== impl Report =====

impl Report {
    pub(super) fn acknowledged(&mut self, took: Duration) {
        self.acknowledged += 1;
        self.took.saturating_record(took.as_micros() as u64);
    }

    /// So many items were refused, or nobody knows what became of them.
    pub(super) fn failed(&mut self, status: &Status, items: u64) {
        let code = format!("{:?}", status.code());
        let refused = self.refused.entry(code);
        refused
            .or_insert_with(|| (0, status.message().to_owned()))
            .0 += items;
    }

    pub(super) fn print(&self, took: Duration, options: &Load) {
        let refused: u64 = self.refused.values().map(|(count, _)| count).sum();
        let rate = self.acknowledged as f64 / took.as_secs_f64();
        let ms = |quantile: f64| self.took.value_at_quantile(quantile) as f64 / 1e3;
        let (p50, p95, p99, max) = (ms(0.5), ms(0.95), ms(0.99), ms(1.0));
        if options.json {
            let by: serde_json::Map<_, _> = self
                .refused
                .iter()
                .map(|(code, (count, message))| {
                    (code.clone(), json!({ "items": count, "message": message }))
                })
                .collect();
            let report = json!({
                "offered": self.offered,
                "acknowledged": self.acknowledged,
                "duplicates": self.duplicates,
                "refused": refused,
                "refused_by": by,
                "seconds": took.as_secs_f64(),
                "items_per_second": rate,
                "p50_ms": p50,
                "p95_ms": p95,
                "p99_ms": p99,
                "max_ms": max,
            });
            println!("{report}");
            return;
        }
        let seconds = took.as_secs_f64();
        println!(
            "{} offered in {seconds:.2} s, {} acknowledged, {rate:.0} a second, {refused} refused",
            self.offered, self.acknowledged
        );
        println!(
            "from due to acknowledged, ms: p50 {p50:.2}, p95 {p95:.2}, p99 {p99:.2}, max {max:.2}"
        );
        for (code, (count, message)) in &self.refused {
            println!("{code}: {count}, such as {message:?}");
        }
    }
}

impl Default for Report {
    fn default() -> Self {
        let took = Histogram::new_with_bounds(1, 3_600_000_000, 3);
        Self {
            offered: 0,
            duplicates: 0,
            acknowledged: 0,
            refused: BTreeMap::new(),
            took: took.expect("the bounds are the right way round"),
        }
    }
}
