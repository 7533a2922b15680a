//! tower-resilience-adaptive, the crate itself, with the simulated time put in.
//!
//! It measures with `std::time::Instant`, which stands still beside tokio's paused clock: every round trip would take
//! a microsecond. Its service calls its algorithm in the same poll in which the inner future completes, so a wrapper
//! round the machine leaves the round trip where a wrapper round the algorithm finds it. Permits, queue and
//! algorithms are the crate's own, with their default settings.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower::load_shed::LoadShed;
use tower::util::BoxCloneService;
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_resilience_adaptive::{
    AdaptiveLimiterLayer, AdaptiveService, Aimd, ConcurrencyAlgorithm, Gradient2, Vegas,
};

use crate::machine::{Job, Machine, Policy, Running};

thread_local!(static TOOK: Cell<Duration> = const { Cell::new(Duration::ZERO) });

/// The machine, noting how long each request took.
#[derive(Debug, Clone)]
struct Timed;

#[derive(Debug)]
struct TimedFuture(Running, Instant);

/// An algorithm that is told the simulated time.
struct Told<A>(A);

/// As it comes: it never refuses, requests wait in `poll_ready`.
pub fn aimd_waiting() -> Policy {
    let aimd = Aimd::builder().build().expect("the defaults are valid");
    BoxCloneService::new(limited(aimd).map_err(BoxError::from))
}

/// Within tower's `LoadShed`, which refuses what would wait.
pub fn aimd() -> Policy {
    shed(Aimd::builder().build().expect("the defaults are valid"))
}

/// See [`aimd`].
pub fn vegas() -> Policy {
    shed(Vegas::builder().build().expect("the defaults are valid"))
}

/// See [`aimd`].
pub fn gradient2() -> Policy {
    shed(
        Gradient2::builder()
            .build()
            .expect("the defaults are valid"),
    )
}

fn shed(algorithm: impl ConcurrencyAlgorithm + 'static) -> Policy {
    BoxCloneService::new(LoadShed::new(limited(algorithm)))
}

fn limited<A: ConcurrencyAlgorithm + 'static>(algorithm: A) -> AdaptiveService<Timed, Told<A>> {
    AdaptiveLimiterLayer::new(Told(algorithm)).layer(Timed)
}

// ===== impl Timed =====

impl Service<Job> for Timed {
    type Response = ();
    type Error = BoxError;
    type Future = TimedFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Machine.poll_ready(cx)
    }

    fn call(&mut self, job: Job) -> TimedFuture {
        TimedFuture(Machine.call(job), Instant::now())
    }
}

impl Future for TimedFuture {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.0).poll(cx);
        if polled.is_ready() {
            TOOK.set(self.1.elapsed());
        }
        polled
    }
}

// ===== impl Told =====

impl<A: ConcurrencyAlgorithm> ConcurrencyAlgorithm for Told<A> {
    fn record_success(&self, _: Duration) {
        self.0.record_success(TOOK.get());
    }

    fn record_success_with_load(&self, _: Duration, in_flight: usize) {
        self.0.record_success_with_load(TOOK.get(), in_flight);
    }

    fn record_failure(&self) {
        self.0.record_failure();
    }

    fn record_dropped(&self) {
        self.0.record_dropped();
    }

    fn limit(&self) -> usize {
        self.0.limit()
    }

    fn min_limit(&self) -> usize {
        self.0.min_limit()
    }

    fn max_limit(&self) -> usize {
        self.0.max_limit()
    }
}
