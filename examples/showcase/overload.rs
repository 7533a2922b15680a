//! The second act: one tonic server under a rush that grows to ten times what it can do, bare and shed.
//!
//! Behind the server stands a database of eight slots, so its capacity does not depend on this machine. All variants get
//! the same arrivals over real connections; how many those are a second is measured on the bare server beforehand.

mod generator;
mod table;

use std::net::SocketAddr;
use std::time::Duration;

use tonic::transport::{Server, server::TcpIncoming};
use tower::ServiceBuilder;
use tower_flow::shed::{ShedHandle, ShedLayer};
use tower_flow::{BoxError, Flow};

use crate::echo::Bounded;
use crate::{Options, progress};
use generator::{Call, End, Rush};

const SLOTS: usize = 8;

/// In a slot, on average. Ten times the capacity are then some 2,400 calls a second, which two small processors can
/// make, answer and refuse.
const TIME: Duration = Duration::from_millis(32);

/// How long a caller waits for its answer.
const DEADLINE: Duration = Duration::from_millis(500);

/// In capacities; each load follows on the one before it, on the same server.
const LOADS: [f64; 5] = [0.5, 1.0, 2.0, 5.0, 10.0];

/// What the overload act found.
pub(crate) struct Overload {
    /// Calls a second that the bare server answers when nobody waits for a slot.
    capacity: f64,
    rows: Vec<Row>,
    /// What limit tower-flow came to.
    limit: usize,
    problems: Vec<String>,
}

/// One variant at one load.
struct Row {
    variant: Variant,
    load: f64,
    /// Calls a second that were really made.
    offered: f64,
    /// Answered in time, in capacities.
    goodput: f64,
    /// Of those that were answered in time.
    p50: Duration,
    p99: Duration,
    /// Parts of all that were made: refused, not answered in time, failed otherwise.
    refused: f64,
    missed: f64,
    failed: f64,
    /// Calls the generator could not make.
    unsent: usize,
}

/// What stands before the database.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Variant {
    Bare,
    Tower,
    Flow,
}

pub(crate) async fn run(options: &Options, flow: &Flow) -> Result<Overload, BoxError> {
    let time = Duration::from_secs(options.seconds);
    let step = (time / 4).clamp(Duration::from_millis(1_100), Duration::from_millis(2_500));
    // By then a bare server that cannot keep up has a queue longer than any caller's patience.
    let warm = (step * 2 / 5).max(Duration::from_millis(600));

    let (addr, stage) = Stage::set(Variant::Bare, flow)?;
    let measuring = generator::measure(addr, SLOTS, step);
    let showing = progress::show("measuring the capacity", step, options.json);
    let (capacity, ()) = tokio::join!(measuring, showing);
    let capacity = capacity?;
    stage.clear();

    let mut overload = Overload {
        capacity,
        rows: Vec::new(),
        limit: 0,
        problems: Vec::new(),
    };
    for variant in Variant::ALL {
        let (addr, stage) = Stage::set(variant, flow)?;
        let rush = Rush {
            rates: LOADS.map(|load| load * capacity).into(),
            step,
            deadline: DEADLINE,
        };
        let what = format!("{} under overload", variant.name());
        let showing = progress::show(&what, step * LOADS.len() as u32, options.json);
        let watching = watch(stage.books.as_ref(), generator::drive(addr, rush));
        let ((calls, limit), ()) = tokio::join!(watching, showing);
        let calls = calls?;
        for (load, calls) in LOADS.into_iter().zip(&calls) {
            let row = Row::of(variant, load, calls, warm..step, capacity);
            overload.rows.push(row);
        }
        let calls: Vec<_> = calls.into_iter().flatten().collect();
        overload.check(variant, &calls);
        if let Some(books) = &stage.books {
            overload.limit = limit;
            overload.check_books(books, &calls).await;
        }
        stage.clear();
    }
    Ok(overload)
}

/// What `driving` comes to, and the last limit the layer had meanwhile, other than to measure by.
async fn watch<T>(books: Option<&ShedHandle>, driving: impl Future<Output = T>) -> (T, usize) {
    let mut driving = std::pin::pin!(driving);
    let mut limit = 0;
    loop {
        let pause = Duration::from_millis(100);
        if let Ok(driven) = tokio::time::timeout(pause, driving.as_mut()).await {
            return (driven, limit);
        }
        if let Some(seen) = books.map(ShedHandle::snapshot)
            && !seen.probing
        {
            limit = seen.limit;
        }
    }
}

/// A server and what stands behind it.
struct Stage {
    database: Bounded,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    books: Option<ShedHandle>,
}

impl Stage {
    fn set(variant: Variant, flow: &Flow) -> Result<(SocketAddr, Self), BoxError> {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
        let addr = incoming.local_addr()?;
        let database = Bounded::new(SLOTS, TIME);
        let service = database.server();
        let mut books = None;
        // Callers that give up reset their streams, more at once than a server puts up with by default.
        let mut server = Server::builder().http2_max_pending_accept_reset_streams(Some(10_000));
        let server = match variant {
            Variant::Bare => {
                let router = server.add_service(service);
                tokio::spawn(router.serve_with_incoming(incoming))
            }
            // It has to be told how much the database bears: here twice its slots, as many waiting as running.
            Variant::Tower => {
                let shed = ServiceBuilder::new()
                    .load_shed()
                    .concurrency_limit(2 * SLOTS)
                    .into_inner();
                let router = server.layer(shed).add_service(service);
                tokio::spawn(router.serve_with_incoming(incoming))
            }
            Variant::Flow => {
                let shed = ShedLayer::adaptive().grpc().attach(flow);
                books = Some(shed.handle());
                let router = server.layer(shed).add_service(service);
                tokio::spawn(router.serve_with_incoming(incoming))
            }
        };
        let stage = Self {
            database,
            server,
            books,
        };
        Ok((addr, stage))
    }

    /// Leaves nothing behind that would weigh on the next one.
    fn clear(self) {
        self.server.abort();
        self.database.close();
    }
}

// ===== impl Overload =====

impl Overload {
    /// Late and refused calls are what this act is about; other ends are faults.
    fn check(&mut self, variant: Variant, calls: &[Call]) {
        let failed = calls.iter().find_map(|call| match &call.end {
            End::Failed(status) => Some(status),
            _ => None,
        });
        if let Some(status) = failed {
            let problem = format!("{}: a call failed with {status}", variant.name());
            self.problems.push(problem);
        }
    }

    /// The layer gave every slot back, and knows of every call that was answered.
    async fn check_books(&mut self, books: &ShedHandle, calls: &[Call]) {
        let held = || {
            let seen = books.snapshot();
            seen.in_flight + seen.waiting.iter().sum::<usize>()
        };
        for _ in 0..500 {
            if held() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let held = held();
        if held > 0 {
            let problem = format!("tower-flow: {held} slots or places are held by nobody");
            self.problems.push(problem);
        }
        let seen = books.snapshot();
        let refused: u64 = seen.refused.iter().map(|(.., count)| count).sum();
        let counted = seen.admitted.iter().sum::<u64>() + refused;
        let answered = calls
            .iter()
            .filter(|call| matches!(call.end, End::Good(_) | End::Refused))
            .count() as u64;
        let made = calls.len() as u64;
        // A call that was given up while it waited is neither admitted nor refused.
        if !(answered..=made).contains(&counted) {
            self.problems.push(format!(
                "tower-flow counted {counted} calls; {made} were made and {answered} answered"
            ));
        }
    }
}

// ===== impl Row =====

impl Row {
    /// Of the calls that were due within `window` of the load's step.
    fn of(
        variant: Variant,
        load: f64,
        calls: &[Call],
        window: std::ops::Range<Duration>,
        capacity: f64,
    ) -> Self {
        let seconds = (window.end - window.start).as_secs_f64();
        let due: Vec<_> = calls
            .iter()
            .filter(|call| window.contains(&call.due))
            .collect();
        let count = |is: fn(&Call) -> bool| due.iter().filter(|call| is(call)).count();
        let unsent = count(|call| matches!(call.end, End::Unsent));
        let part = |n| n as f64 / (due.len() - unsent).max(1) as f64;
        let mut times: Vec<_> = due
            .iter()
            .filter_map(|call| match call.end {
                End::Good(time) => Some(time),
                _ => None,
            })
            .collect();
        times.sort_unstable();
        let quantile = |q: f64| {
            let rank = (q * times.len() as f64).ceil() as usize;
            times.get(rank.max(1) - 1).copied().unwrap_or_default()
        };
        // A generator that falls behind makes its calls later than they are due.
        let made = calls.iter().filter(|call| {
            !matches!(call.end, End::Unsent) && window.contains(&(call.due + call.late))
        });
        Self {
            variant,
            load,
            offered: made.count() as f64 / seconds,
            goodput: times.len() as f64 / seconds / capacity,
            p50: quantile(0.5),
            p99: quantile(0.99),
            refused: part(count(|call| matches!(call.end, End::Refused))),
            missed: part(count(|call| matches!(call.end, End::Missed))),
            failed: part(count(|call| matches!(call.end, End::Failed(_)))),
            unsent,
        }
    }
}

// ===== impl Variant =====

impl Variant {
    const ALL: [Self; 3] = [Self::Bare, Self::Tower, Self::Flow];

    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Tower => "tower",
            Self::Flow => "tower-flow",
        }
    }
}
