//! The fourth act: small writes into a table that takes 1 ms for a call and 10 µs for each thing in it, one call at a time;
//! bare, and with those that wait made one call.
//!
//! Writers come whether or not earlier writes were answered, twice as many as the table can take one by one; batched, ten
//! times as many again. Every writer is told which row it got, and looks whether that is so.

mod backend;
mod table;
mod writers;

use std::time::Duration;

use tower::{Layer as _, Service};
use tower_flow::batch::{BatchHandle, BatchLayer};
use tower_flow::inspect::{Inspect, Value};
use tower_flow::{BoxError, Flow};

use crate::{Options, progress};
use backend::Backend;

/// Writes a second, on average.
const PACE: f64 = 2_000.0;

/// The rush, in paces.
const RUSH: f64 = 10.0;

/// What a call takes, and what each item takes in it: 990 calls a second of one write each.
const CALL: Duration = Duration::from_millis(1);
const ITEM: Duration = Duration::from_micros(10);

/// The layer's name on the live page.
const NAME: &str = "writes";

/// What the batch act found.
pub(crate) struct Batch {
    rows: Vec<Row>,
    /// What the layer says of itself.
    books: Value,
    problems: Vec<String>,
}

/// One variant at one pace.
struct Row {
    variant: &'static str,
    /// Writes a second that were wanted.
    pace: f64,
    writes: u64,
    /// The calls the backend got for them, and the most that was in one.
    calls: u64,
    largest: u64,
    p50: Duration,
    p99: Duration,
    /// From the first write to the last answer.
    wall: Duration,
}

pub(crate) async fn run(options: &Options, flow: &Flow) -> Result<Batch, BoxError> {
    let time = Duration::from_secs(options.seconds) * 3 / 20;
    let time = time.clamp(Duration::from_millis(500), Duration::from_millis(1_500));
    let mut batch = Batch {
        rows: Vec::new(),
        books: Value::Null,
        problems: Vec::new(),
    };
    let dues = writers::plan(PACE, time);
    // The bar is not what anybody waits for.
    let least = (CALL + ITEM).mul_f64(PACE * time.as_secs_f64());
    let showing = progress::show("writing bare", least, options.json);
    let backend = Backend::start(CALL, ITEM)?;
    let driving = batch.drive("bare", PACE, &dues, backend.table.clone(), &backend);
    tokio::join!(driving, showing).0?;

    let layer = BatchLayer::new().name(NAME).attach(flow);
    for (pace, what) in [(PACE, "writing batched"), (PACE * RUSH, "a rush, batched")] {
        let dues = writers::plan(pace, time);
        let showing = progress::show(what, time, options.json);
        let backend = Backend::start(CALL, ITEM)?;
        let batched = layer.layer(backend.table.clone());
        let driving = batch.drive("batched", pace, &dues, batched, &backend);
        tokio::join!(driving, showing).0?;
    }
    batch.check_books(&layer.handle(), flow);
    Ok(batch)
}

// ===== impl Batch =====

impl Batch {
    /// Adds the row of a variant: `service`, behind which is `backend`.
    async fn drive<S>(
        &mut self,
        variant: &'static str,
        pace: f64,
        dues: &[Duration],
        service: S,
        backend: &Backend,
    ) -> Result<(), BoxError>
    where
        S: Service<u64, Response = u64, Error: Into<BoxError>, Future: Send>,
        S: Clone + Send + 'static,
    {
        let answers = writers::drive(service, dues.to_vec(), backend.rows.clone()).await?;
        let (stored, sizes) = backend.books();
        let writes = dues.len() as u64;
        if let Some(problem) = answers.problems.first() {
            let failed = answers.problems.len();
            let problem = format!("{variant}: {failed} writes failed, the first with: {problem}");
            self.problems.push(problem);
        }
        // Every writer found its own in a row of its own; were there more, something would be there twice.
        if stored != writes {
            let problem = format!("{variant}: {writes} writes made {stored} rows");
            self.problems.push(problem);
        }
        self.rows.push(Row {
            variant,
            pace,
            writes,
            calls: sizes.len() as u64,
            largest: sizes.into_iter().max().unwrap_or_default(),
            p50: answers.quantile(0.5),
            p99: answers.quantile(0.99),
            wall: answers.wall,
        });
        Ok(())
    }

    /// The layer knows of every write, of every call the backend got, and of nobody who still waits; and the live page
    /// shows what it knows.
    fn check_books(&mut self, books: &BatchHandle, flow: &Flow) {
        let batched = self.rows.iter().filter(|row| row.variant == "batched");
        let (writes, calls) = batched.fold((0, 0), |(writes, calls), row| {
            (writes + row.writes, calls + row.calls)
        });
        let seen = books.snapshot();
        let mut check = |ok: bool, problem: String| {
            if !ok {
                self.problems.push(problem);
            }
        };
        let items = seen.items;
        check(
            items == writes,
            format!("{writes} writes were made, {items} counted"),
        );
        let answered = seen.results.iter().find(|(result, _)| *result == "ok");
        check(
            answered.is_some_and(|(_, count)| *count == writes),
            format!(
                "{writes} writes were answered, counted were {:?}",
                seen.results
            ),
        );
        let flushes: u64 = seen.flushes.iter().map(|(_, count)| count).sum();
        let batches = seen.batches;
        check(
            batches == calls && flushes == calls,
            format!(
                "the backend got {calls} calls, the layer counted {batches}, and why for {flushes}"
            ),
        );
        let (queued, in_flight) = (seen.queued, seen.in_flight);
        check(
            queued == 0 && in_flight == 0,
            format!("{queued} writes and {in_flight} batches are left"),
        );
        self.books = Inspect::snapshot(books);
        let layers = flow.attached();
        let shown = layers
            .iter()
            .find(|layer| layer.kind() == "batch" && layer.name() == NAME)
            .map(|layer| layer.snapshot());
        check(
            shown.as_ref() == Some(&self.books),
            format!("the live page shows {shown:?}"),
        );
    }
}
