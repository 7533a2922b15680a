//! The published algorithms, each as the gate it was published as: refuse at the limit, learn from every end.
//!
//! Formulas and constants are those of the sources named at each, written anew for this bench only. A client that goes
//! away is what a timeout inside the original would be: a drop.

mod envoy;
mod kratos;
mod netflix;
mod vector;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::time::Instant;
use tower::util::BoxCloneService;
use tower::{BoxError, Service};

pub use envoy::Envoy;
pub use kratos::KratosBbr;
pub use netflix::{NetflixAimd, NetflixGradient2, NetflixVegas};
pub use vector::VectorArc;

use crate::machine::{Job, Machine, Policy, Running};

/// How a request ended. Times are in seconds since the gate was made.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub now: f64,
    pub started: f64,
    /// In flight when it was let in, itself included.
    pub in_flight: usize,
    /// Its client went away.
    pub dropped: bool,
}

/// What a gate asks and tells an algorithm.
pub trait Algorithm: Default + Send + 'static {
    /// Whether one more would be too many.
    fn refuses(&mut self, now: f64, in_flight: usize) -> bool;

    /// One more was let in; this many are in flight now.
    fn admitted(&mut self, in_flight: usize) {
        let _ = in_flight;
    }

    fn ended(&mut self, sample: Sample);
}

#[derive(Debug)]
struct Gate<A> {
    algorithm: A,
    made: Instant,
    in_flight: usize,
}

/// A service that lets in what its algorithm lets in.
#[derive(Debug)]
struct Gated<A>(Arc<Mutex<Gate<A>>>);

/// A request that was let in, or was not.
struct Pass<A: Algorithm> {
    gate: Arc<Mutex<Gate<A>>>,
    inner: Option<Running>,
    started: f64,
    in_flight: usize,
}

/// A gate in front of the machine.
pub fn gate<A: Algorithm>() -> Policy {
    BoxCloneService::new(Gated(Arc::new(Mutex::new(Gate {
        algorithm: A::default(),
        made: Instant::now(),
        in_flight: 0,
    }))))
}

// ===== impl Gated =====

impl<A: Algorithm> Service<Job> for Gated<A> {
    type Response = ();
    type Error = BoxError;
    type Future = Pass<A>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, job: Job) -> Pass<A> {
        let mut gate = self.0.lock().expect("no panics here");
        let now = gate.made.elapsed().as_secs_f64();
        let in_flight = gate.in_flight;
        let inner = if gate.algorithm.refuses(now, in_flight) {
            None
        } else {
            gate.in_flight += 1;
            gate.algorithm.admitted(in_flight + 1);
            Some(Machine.call(job))
        };
        Pass {
            gate: self.0.clone(),
            inner,
            started: now,
            in_flight: in_flight + 1,
        }
    }
}

impl<A> Clone for Gated<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

// ===== impl Pass =====

impl<A: Algorithm> Pass<A> {
    fn end(&mut self, dropped: bool) {
        if self.inner.take().is_none() {
            return;
        }
        let mut gate = self.gate.lock().expect("no panics here");
        gate.in_flight -= 1;
        let sample = Sample {
            now: gate.made.elapsed().as_secs_f64(),
            started: self.started,
            in_flight: self.in_flight,
            dropped,
        };
        gate.algorithm.ended(sample);
    }
}

impl<A: Algorithm> Future for Pass<A> {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(Err("refused".into()));
        };
        let polled = Pin::new(inner).poll(cx);
        if polled.is_ready() {
            self.end(false);
        }
        polled
    }
}

impl<A: Algorithm> Drop for Pass<A> {
    fn drop(&mut self) {
        self.end(true);
    }
}

// ===== impl Sample =====

impl Sample {
    pub fn round_trip(self) -> f64 {
        self.now - self.started
    }
}
