//! An open-loop generator: calls arrive whether or not earlier ones were answered, as those of many callers do.
//!
//! It has a thread and a runtime of its own, so that the server's work does not hold an arrival up; where it falls
//! behind all the same, that is noted with each call.

use std::error::Error as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tower_flow::BoxError;

use crate::arrivals::{Random, apart};
use crate::echo::{EchoClient, Note};

const CONNECTIONS: usize = 4;

/// Loads, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Rush {
    /// Calls a second.
    pub(super) rates: Vec<f64>,
    /// How long each rate lasts.
    pub(super) step: Duration,
    pub(super) deadline: Duration,
}

#[derive(Debug)]
pub(super) struct Call {
    /// From the start of its step.
    pub(super) due: Duration,
    /// By how much later it was made.
    pub(super) late: Duration,
    pub(super) end: End,
}

#[derive(Debug)]
pub(super) enum End {
    /// Answered in time, so long after it was due.
    Good(Duration),
    Refused,
    /// Not answered in time.
    Missed,
    Failed(Status),
    /// It never left: the connection was broken, or the generator came to it too late.
    Unsent,
}

/// How many calls a second `callers` get answered that have one call each at a time.
pub(super) async fn measure(
    addr: SocketAddr,
    callers: usize,
    time: Duration,
) -> Result<f64, BoxError> {
    apart(async move {
        let stubs = connect(addr).await?;
        let start = Instant::now();
        // The first and the last round are not full.
        let (from, until) = (start + time / 5, start + time);
        let callers: Vec<JoinHandle<Result<u32, Status>>> = (0..callers)
            .map(|caller| {
                let mut stub = stubs[caller % CONNECTIONS].clone();
                tokio::spawn(async move {
                    let mut answered = 0;
                    loop {
                        stub.say(Note::default()).await?;
                        let now = Instant::now();
                        if now >= until {
                            return Ok(answered);
                        }
                        answered += u32::from(now >= from);
                    }
                })
            })
            .collect();
        let mut answered = 0;
        for caller in callers {
            answered += caller.await??;
        }
        Ok(f64::from(answered) / (until - from).as_secs_f64())
    })
    .await
}

/// The calls of each step, once all of them have ended.
pub(super) async fn drive(addr: SocketAddr, rush: Rush) -> Result<Vec<Vec<Call>>, BoxError> {
    apart(async move {
        let stubs = connect(addr).await?;
        let mut random = Random(18);
        let mut steps = Vec::new();
        let mut start = Instant::now();
        for rate in rush.rates {
            let mut calls = Vec::new();
            // The gaps of a Poisson process: what many independent callers amount to.
            let mut due = random.gap(rate);
            while due < rush.step {
                sleep_until(start + due).await;
                let stub = stubs[calls.len() % CONNECTIONS].clone();
                calls.push(tokio::spawn(call(stub, start, due, rush.deadline)));
                due += random.gap(rate);
            }
            steps.push(calls);
            start += rush.step;
        }
        let mut ended = Vec::new();
        for calls in steps {
            let mut step = Vec::with_capacity(calls.len());
            for call in calls {
                step.push(call.await?);
            }
            ended.push(step);
        }
        Ok(ended)
    })
    .await
}

async fn call(
    mut stub: EchoClient<Channel>,
    start: Instant,
    due: Duration,
    deadline: Duration,
) -> Call {
    let late = (start + due).elapsed();
    let mut req = Request::new(Note::default());
    // The deadline runs from when the call was due, whatever the generator was busy with.
    let left = deadline.saturating_sub(late);
    req.set_timeout(left);
    let end = if left.is_zero() {
        End::Unsent
    } else {
        match timeout_at(start + due + deadline, stub.say(req)).await {
            Ok(Ok(_)) => End::Good((start + due).elapsed()),
            Ok(Err(status)) => End::of(status),
            Err(_) => End::Missed,
        }
    };
    Call { due, late, end }
}

async fn connect(addr: SocketAddr) -> Result<Vec<EchoClient<Channel>>, BoxError> {
    let mut stubs = Vec::new();
    for _ in 0..CONNECTIONS {
        let channel = Endpoint::from_shared(format!("http://{addr}"))?
            .connect()
            .await?;
        stubs.push(EchoClient::new(channel));
    }
    Ok(stubs)
}

// ===== impl End =====

impl End {
    fn of(status: Status) -> Self {
        match status.code() {
            // tonic's clients and servers say "cancelled" when a call's own time is up.
            Code::DeadlineExceeded | Code::Cancelled => Self::Missed,
            // What the transport came to on this side has a source; what a server said has none.
            _ if status.source().is_some() => Self::Unsent,
            Code::Unavailable | Code::ResourceExhausted => Self::Refused,
            _ => Self::Failed(status),
        }
    }
}
