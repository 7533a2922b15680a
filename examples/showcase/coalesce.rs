//! The third act: a thousand callers read a thousand things, some far more often than others, from a hyper server that is
//! not up to it; bare, and with equal reads in flight made one.
//!
//! The loop is open: callers ask whether or not earlier reads were answered, as people and upstream services do. In a
//! closed loop a slow backend would slow its own load down, and the bare variant would look better than it is. Both
//! variants get the same reads at the same moments, over real connections, and every answer is checked against what was
//! asked for.

mod backend;
mod callers;
mod table;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Empty;
use tower::layer::util::Identity;
use tower::{Layer, Service};
use tower_flow::coalesce::{CoalesceHandle, CoalesceLayer};
use tower_flow::inspect::{Inspect, Value};
use tower_flow::{BoxError, Flow};

use crate::{Options, progress};
use backend::Backend;
use callers::{HyperClient, Read};

const CALLERS: usize = 1_000;

/// Reads a second and caller, on average.
const PACE: f64 = 4.0;

/// Things to read. Which one, by Zipf's law with exponent 1: the n-th of them is read 1/n times as often as the first.
const KEYS: usize = 1_000;

/// The backend answers so many at a time, and each takes so long: some 1,500 a second, two fifths of what is asked.
const SLOTS: usize = 32;
const TIME: Duration = Duration::from_millis(20);

/// The layer's name on the live page.
const NAME: &str = "reads";

/// What the coalesce act found.
pub(crate) struct Coalesce {
    rows: Vec<Row>,
    /// What the layer says of itself.
    books: Value,
    problems: Vec<String>,
}

/// One variant.
struct Row {
    variant: &'static str,
    /// How many were asked for.
    reads: u64,
    /// How many of them the backend was asked for.
    calls: u64,
    p50: Duration,
    p99: Duration,
    /// From the first read to the last answer.
    wall: Duration,
}

pub(crate) async fn run(options: &Options, flow: &Flow) -> Result<Coalesce, BoxError> {
    let time = Duration::from_secs(options.seconds) * 3 / 20;
    let time = time.clamp(Duration::from_millis(500), Duration::from_millis(1_500));
    let reads = callers::plan(CALLERS as f64 * PACE, time, KEYS);

    let mut coalesce = Coalesce {
        rows: Vec::new(),
        books: Value::Null,
        problems: Vec::new(),
    };
    // The slots need that long at least; the bar is not what anybody waits for.
    let least = TIME.mul_f64(reads.len() as f64 / SLOTS as f64);
    let showing = progress::show("reading bare", least, options.json);
    let driving = coalesce.drive("bare", Identity::new(), &reads);
    tokio::join!(driving, showing).0?;

    let layer = CoalesceLayer::http().name(NAME).attach(flow);
    let books = layer.handle();
    let showing = progress::show("reading coalesced", time, options.json);
    let driving = coalesce.drive("coalesced", layer, &reads);
    let calls = tokio::join!(driving, showing).0?;
    coalesce.check_books(&books, flow, reads.len() as u64, calls);
    Ok(coalesce)
}

// ===== impl Coalesce =====

impl Coalesce {
    /// Adds the row of a variant: hyper's client behind `layer`. Gives the number of calls its backend got.
    async fn drive<L, B>(
        &mut self,
        variant: &'static str,
        layer: L,
        reads: &[Read],
    ) -> Result<u64, BoxError>
    where
        L: Layer<HyperClient> + Send + 'static,
        L::Service: Service<Request<Empty<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
        L::Service: Service<Request<Empty<Bytes>>, Future: Send> + Clone + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let backend = Backend::start(SLOTS, TIME).await?;
        let answers = callers::drive(backend.addr, layer, reads.to_vec()).await?;
        let calls = backend.calls();
        if let Some(problem) = answers.problems.first() {
            let failed = answers.problems.len();
            let problem = format!("{variant}: {failed} reads failed, the first with: {problem}");
            self.problems.push(problem);
        }
        self.rows.push(Row {
            variant,
            reads: reads.len() as u64,
            calls,
            p50: answers.quantile(0.5),
            p99: answers.quantile(0.99),
            wall: answers.wall,
        });
        Ok(calls)
    }

    /// The layer knows of every read, of every call the backend got, and of nobody who still waits; and the live page
    /// shows what it knows.
    fn check_books(&mut self, books: &CoalesceHandle, flow: &Flow, reads: u64, calls: u64) {
        let seen = books.snapshot();
        let bypassed: u64 = seen.bypassed.iter().map(|(_, count)| count).sum();
        let mut check = |ok: bool, problem: String| {
            if !ok {
                self.problems.push(problem);
            }
        };
        let counted = seen.leaders + seen.followers + bypassed;
        check(
            counted == reads,
            format!("{reads} reads were made, {counted} counted"),
        );
        // Followers who were not served by somebody else's call were released to make their own.
        let released = seen.followers - seen.shared;
        let sent = seen.leaders + bypassed + released;
        check(
            sent == calls,
            format!("the backend got {calls} calls, the layer counted {sent}"),
        );
        let (flights, waiters) = (seen.flights, seen.waiters);
        check(
            flights == 0 && waiters == 0,
            format!("{flights} flights and {waiters} waiters are left"),
        );
        self.books = Inspect::snapshot(books);
        let layers = flow.attached();
        let shown = layers
            .iter()
            .find(|layer| layer.kind() == "coalesce" && layer.name() == NAME)
            .map(|layer| layer.snapshot());
        check(
            shown.as_ref() == Some(&self.books),
            format!("the live page shows {shown:?}"),
        );
    }
}
