//! The example `ingest`, as processes that are fed, ended and killed.

mod faults;
mod intake;
mod kills;

mod wal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::stream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::nats::server;
use crate::support;
use crate::support::programs::{Program, example};

#[path = "../../../examples/ingest/proto/mod.rs"]
mod proto;

use proto::ingest_service_client::IngestServiceClient;
use proto::{IngestRequest, IngestResponse};

/// How long anything may take that takes no time.
const PATIENCE: Duration = Duration::from_secs(20);

type Client = IngestServiceClient<Channel>;

/// A process that takes items.
struct Ingest {
    program: Program,
    url: String,
}

impl Ingest {
    fn start(flags: &[&str]) -> Self {
        let flags = ["--listen", "127.0.0.1:0"].iter().chain(flags);
        let program = Program::start(example("ingest"), flags);
        let url = program.line("listening on ");
        Self { program, url }
    }

    async fn client(&self) -> Client {
        let connected = IngestServiceClient::connect(self.url.clone());
        tokio::time::timeout(PATIENCE, connected)
            .await
            .unwrap()
            .unwrap()
    }

    /// SIGTERM, and the exit code.
    fn end(&self) -> i32 {
        self.program.terminate();
        self.program.wait(PATIENCE).code().unwrap()
    }
}

fn item(id: &str) -> IngestRequest {
    IngestRequest {
        id: id.to_owned(),
        payload: b"payload".to_vec(),
    }
}

async fn send(client: &Client, id: &str) -> Result<IngestResponse, Status> {
    let mut client = client.clone();
    let answer = tokio::time::timeout(PATIENCE, client.ingest(item(id)));
    Ok(answer.await.expect("an answer comes in time")?.into_inner())
}

async fn send_all(client: &Client, ids: &[String]) -> Result<IngestResponse, Status> {
    let mut client = client.clone();
    let items: Vec<_> = ids.iter().map(|id| item(id)).collect();
    let answer = tokio::time::timeout(PATIENCE, client.ingest_stream(stream::iter(items)));
    Ok(answer.await.expect("an answer comes in time")?.into_inner())
}

/// How many items of a stream that failed it says are stored.
fn accepted(status: &Status) -> usize {
    let told = status.metadata().get("ingest-accepted").unwrap();
    told.to_str().unwrap().parse().unwrap()
}

fn pushed_back(status: &Status) -> bool {
    status.metadata().contains_key("grpc-retry-pushback-ms")
}

/// How often each id was processed.
fn processed(output: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(output).unwrap_or_default().lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    counts
}

/// Waits until something is so.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let late = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < late, "it is not so that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn scratch() -> PathBuf {
    support::scratch("ingest")
}
