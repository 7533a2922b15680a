//! Traffic for an ingest, in an open loop: an item is due when the rate says so, whatever became of those before it, and what
//! it waited for since then is part of what it took.

mod paced;
mod report;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tower_flow::BoxError;

use crate::options::Load;
use crate::proto::IngestRequest;
use crate::proto::ingest_service_client::IngestServiceClient;
use paced::{Lane, Paced, Slots};
use report::Report;

/// How many calls of a lane wait for their answers at once.
const CALLS: usize = 4;

/// How many single calls do.
const UNARY_CALLS: usize = 4096;

/// How long answers are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the traffic and prints what came of it.
pub(crate) async fn run(options: Load) -> Result<(), BoxError> {
    let priority = options.priority.as_deref().map(str::parse).transpose();
    let priority = priority.map_err(|_| "the priority is no header value")?;
    let endpoint = Endpoint::from_shared(options.url.clone())?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true);
    let mut channels = Vec::new();
    for _ in 0..options.connections {
        let connected = endpoint.connect().await;
        let named = |error| format!("cannot connect to {}: {error:?}", options.url);
        channels.push(connected.map_err(named)?);
    }
    let report = Mutex::default();
    let shared = Arc::new(Shared {
        options,
        priority,
        report,
    });
    let start = Instant::now();
    let end = start + shared.options.time;
    let lanes = shared.options.streams;
    let mut running = JoinSet::new();
    for n in 0..lanes {
        let client = IngestServiceClient::new(channels[n % channels.len()].clone());
        let slots = Slots::new(n, lanes, shared.options.rate, start, end);
        let lane = Arc::new(Lane::new(shared.clone(), slots));
        match shared.options.unary {
            true => running.spawn(unary(client, lane)),
            false => running.spawn(stream(client, lane)),
        };
    }
    while let Some(ended) = running.join_next().await {
        ended?;
    }
    shared.report().print(start.elapsed(), &shared.options);
    Ok(())
}

/// What all lanes have in common.
#[derive(Debug)]
struct Shared {
    options: Load,
    priority: Option<AsciiMetadataValue>,
    report: Mutex<Report>,
}

impl Shared {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn item(&self, n: u64) -> IngestRequest {
        IngestRequest {
            id: format!("{}-{n}", self.options.ids),
            payload: vec![b'.'; self.options.payload],
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut req = Request::new(message);
        if let Some(priority) = &self.priority {
            req.metadata_mut().insert("x-priority", priority.clone());
        }
        req.set_timeout(PATIENCE + self.options.time);
        req
    }
}

type Client = IngestServiceClient<Channel>;

/// One stream after the other, while the answers to those before are still to come.
async fn stream(client: Client, lane: Arc<Lane>) {
    let mut calls = JoinSet::new();
    loop {
        while calls.len() >= CALLS {
            calls.join_next().await;
        }
        if !lane.wait().await {
            break;
        }
        let (paced, ended) = Paced::new(lane.clone());
        calls.spawn(one_stream(client.clone(), paced, lane.shared.clone()));
        // Its items are all sent, or it was refused.
        let _ = ended.await;
    }
    calls.join_all().await;
}

async fn one_stream(mut client: Client, paced: Paced, shared: Arc<Shared>) {
    let sent = paced.sent();
    let answer = client.ingest_stream(shared.request(paced)).await;
    let now = Instant::now();
    let sent = std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner));
    let mut report = shared.report();
    report.offered += sent.len() as u64;
    let stored = match &answer {
        Ok(answer) => {
            report.duplicates += answer.get_ref().duplicates;
            answer.get_ref().accepted
        }
        Err(status) => {
            let stored = accepted(status).min(sent.len() as u64);
            report.failed(status, sent.len() as u64 - stored);
            stored
        }
    };
    for due in sent.iter().take(stored as usize) {
        report.acknowledged(now - *due);
    }
}

/// How many items of a stream that failed are stored.
fn accepted(status: &Status) -> u64 {
    let told = status.metadata().get("ingest-accepted");
    told.and_then(|text| text.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

/// A call for each item.
async fn unary(client: Client, lane: Arc<Lane>) {
    let mut calls = JoinSet::new();
    let most = (UNARY_CALLS / lane.shared.options.streams).max(1);
    while lane.wait().await {
        while calls.len() >= most {
            calls.join_next().await;
        }
        while calls.try_join_next().is_some() {}
        if let Some((n, due)) = lane.take() {
            calls.spawn(one_item(client.clone(), n, due, lane.shared.clone()));
        }
    }
    calls.join_all().await;
}

async fn one_item(mut client: Client, n: u64, due: Instant, shared: Arc<Shared>) {
    let answer = client.ingest(shared.request(shared.item(n))).await;
    let mut report = shared.report();
    report.offered += 1;
    match answer {
        Ok(answer) => {
            report.duplicates += answer.get_ref().duplicates;
            report.acknowledged(due.elapsed());
        }
        Err(status) => report.failed(&status, 1),
    }
}
