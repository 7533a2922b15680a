//! What is written to: a table that takes one call at a time, as a thread of its own, and counts.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tower::Service;
use tower_flow::BoxError;
use tower_flow::batch::Batch;

pub(super) struct Backend {
    pub(super) table: Table,
    pub(super) rows: Rows,
    sizes: Arc<Mutex<Vec<u64>>>,
}

/// Calls the backend: with a batch, or with a write, which is a call too.
#[derive(Debug, Clone)]
pub(super) struct Table {
    calls: mpsc::Sender<Call>,
}

/// What was written, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows(Arc<Mutex<Vec<u64>>>);

#[derive(Debug)]
struct Call {
    made: Instant,
    writes: Vec<u64>,
    answer: oneshot::Sender<Answer>,
}

/// The row of each write.
type Answer = Vec<Result<u64, Infallible>>;

type Answering<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

// ===== impl Backend =====

impl Backend {
    /// So long for a call, and so long for each item in it.
    pub(super) fn start(call: Duration, item: Duration) -> Result<Self, BoxError> {
        let (calls, received) = mpsc::channel::<Call>();
        let (rows, sizes) = (Rows::default(), Arc::<Mutex<Vec<u64>>>::default());
        let (stored, counted) = (rows.clone(), sizes.clone());
        let serve = move || {
            let mut free = Instant::now();
            for Call {
                made,
                writes,
                answer,
            } in received
            {
                // A thread sleeps a little too long; what is lost so is not lost to the next call if that waits already.
                free = free.max(made) + call + item * writes.len() as u32;
                thread::sleep(free.saturating_duration_since(Instant::now()));
                counted
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(writes.len() as u64);
                // Nobody waits for the answer of a caller that left.
                let _ = answer.send(stored.append(writes));
            }
        };
        thread::Builder::new().name("backend".into()).spawn(serve)?;
        let table = Table { calls };
        Ok(Self { table, rows, sizes })
    }

    /// How many rows there are, and how many writes each call had.
    pub(super) fn books(&self) -> (u64, Vec<u64>) {
        let sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        (self.rows.len(), sizes.clone())
    }
}

// ===== impl Rows =====

impl Rows {
    pub(super) fn get(&self, row: u64) -> Option<u64> {
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.get(row as usize).copied()
    }

    fn len(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn append(&self, writes: Vec<u64>) -> Answer {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = rows.len() as u64;
        rows.extend(writes);
        (first..rows.len() as u64).map(Ok).collect()
    }
}

// ===== impl Table =====

impl Table {
    fn answer(&self, writes: Vec<u64>) -> impl Future<Output = Result<Answer, BoxError>> + use<> {
        let (answer, answered) = oneshot::channel();
        let made = Instant::now();
        let sent = self.calls.send(Call {
            made,
            writes,
            answer,
        });
        async move {
            sent.map_err(|_| "the backend is gone")?;
            Ok(answered.await?)
        }
    }
}

impl Service<Batch<u64>> for Table {
    type Response = Answer;
    type Error = BoxError;
    type Future = Answering<Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, writes: Batch<u64>) -> Self::Future {
        Box::pin(self.answer(writes.into_vec()))
    }
}

impl Service<u64> for Table {
    type Response = u64;
    type Error = BoxError;
    type Future = Answering<u64>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, write: u64) -> Self::Future {
        let rows = self.answer(vec![write]);
        Box::pin(async move {
            let row = rows.await?.pop().ok_or("no answer")?;
            Ok(row?)
        })
    }
}
