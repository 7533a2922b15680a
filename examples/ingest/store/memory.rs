//! A bounded queue in memory, with a write-ahead file if that is wanted.
//!
//! # Invariants
//!
//! - Batches are stored one after the other: the batching layer has one in flight. So room that was found for a batch is
//!   still there when it is queued, since workers only make more.
//! - An id is remembered, and its item queued, when the item is stored, and in one step: what is a duplicate is stored.

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tower::service_fn;
use tower_flow::BoxError;
use tower_flow::batch::Batch;
use tower_flow::inspect::{Inspect, Value};
use tower_flow::metrics::Families;
use tower_flow::signal::Signal;

use super::seen::Seen;
use super::wal::{Entry, Wal};
use super::{Delivery, Item, Receipt, StoreError, Stored, Storing};
use crate::options::Serve;

#[derive(Debug)]
pub(crate) struct Memory {
    state: Mutex<State>,
    wal: Option<Wal>,
    /// Something was queued, or nothing will be.
    news: Notify,
    most: usize,
    most_bytes: usize,
    lag: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// With their numbers, oldest first.
    queue: VecDeque<(u64, Entry)>,
    /// Items with workers.
    working: usize,
    /// Payload's bytes of all of these.
    bytes: usize,
    seen: Seen<Arc<str>>,
    /// The number of the next item.
    next: u64,
    closed: bool,
    stored: u64,
    duplicates: u64,
    full: u64,
    processed: u64,
}

/// What becomes of an item of a batch.
enum Fate {
    Fresh,
    /// It was stored before.
    Known,
    /// It is in the batch already.
    Twice,
    Full,
}

// ===== impl Memory =====

impl Memory {
    /// Opens it, with what is left in the file.
    pub(super) fn open(options: &Serve, wal: Option<&Path>, most: u64) -> Result<Self, BoxError> {
        let mut state = State::new(options.window);
        let wal = match wal {
            Some(path) => {
                let named = |error| format!("cannot open the file {}: {error}", path.display());
                let (wal, found) = Wal::open(path, most).map_err(named)?;
                if found.torn > 0 {
                    let (torn, path) = (found.torn, path.display());
                    eprintln!(
                        "{torn} bytes at the end of {path} were no record: cut, and kept as {path}.torn"
                    );
                }
                for id in found.seen {
                    state.remember(id);
                }
                for (seq, entry) in found.live {
                    state.next = seq + 1;
                    state.bytes += entry.payload.len();
                    state.queue.push_back((seq, entry));
                }
                if !state.queue.is_empty() {
                    let (left, path) = (state.queue.len(), path.display());
                    eprintln!("{left} items of {path} are left to be processed");
                }
                Some(wal)
            }
            None => None,
        };
        let memory = Self {
            state: Mutex::new(state),
            wal,
            news: Notify::new(),
            most: options.queue,
            most_bytes: options.queue_bytes,
            lag: AtomicU64::new(0),
        };
        memory.tell(&memory.lock());
        // What was left, or the first of it; each who takes one wakes the next.
        memory.news.notify_one();
        Ok(memory)
    }

    pub(super) fn storing(self: Arc<Self>) -> Storing {
        Storing::new(service_fn(move |batch: Batch<Item>| {
            let memory = self.clone();
            async move { Ok(memory.store(batch.into_vec()).await) }
        }))
    }

    async fn store(self: Arc<Self>, items: Vec<Item>) -> Vec<Result<Stored, StoreError>> {
        let (fates, fresh) = self.place(items);
        let failed = match &self.wal {
            Some(_) if !fresh.is_empty() => self.clone().write(fresh.clone()).await.err(),
            _ => None,
        };
        let mut state = self.lock();
        if failed.is_none() {
            for (seq, entry) in fresh {
                state.remember(entry.id.clone());
                state.bytes += entry.payload.len();
                state.queue.push_back((seq, entry));
            }
        }
        let results = fates.into_iter().map(|fate| match (fate, &failed) {
            (Fate::Known, _) => Ok(Stored::Duplicate),
            (Fate::Full, _) => Err(state.full(self.most)),
            (_, Some(error)) => Err(error.clone()),
            (Fate::Fresh, None) => Ok(Stored::New),
            (Fate::Twice, None) => Ok(Stored::Duplicate),
        });
        let results: Vec<_> = results.collect();
        for result in &results {
            match result {
                Ok(Stored::New) => state.stored += 1,
                Ok(Stored::Duplicate) => state.duplicates += 1,
                Err(StoreError::Full(_)) => state.full += 1,
                Err(_) => {}
            }
        }
        self.tell(&state);
        drop(state);
        self.news.notify_one();
        results
    }

    /// What becomes of each, and those that are to be stored, with their numbers.
    fn place(&self, items: Vec<Item>) -> (Vec<Fate>, Vec<(u64, Entry)>) {
        let mut state = self.lock();
        let mut here = HashSet::new();
        let (mut fates, mut fresh) = (Vec::with_capacity(items.len()), Vec::new());
        let (mut held, mut bytes) = (state.held(), state.bytes);
        for Item { id, payload, .. } in items {
            let fate = if state.seen.contains(&*id) {
                Fate::Known
            } else if here.contains(&id) {
                Fate::Twice
            } else if held >= self.most || (bytes + payload.len() > self.most_bytes && bytes > 0) {
                Fate::Full
            } else {
                (held, bytes) = (held + 1, bytes + payload.len());
                if !id.is_empty() {
                    here.insert(id.clone());
                }
                fresh.push((state.next, Entry { id, payload }));
                state.next += 1;
                Fate::Fresh
            };
            fates.push(fate);
        }
        (fates, fresh)
    }

    /// Writes a batch to the file, on a thread that may wait for the disk.
    async fn write(self: Arc<Self>, fresh: Vec<(u64, Entry)>) -> Result<(), StoreError> {
        let written = spawn_blocking(move || {
            let wal = self.wal.as_ref().expect("there is a file to write to");
            wal.append(fresh, || self.lock().seen.iter().cloned().collect())
        });
        let why = match written.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        eprintln!("cannot write the write-ahead file: {why}");
        Err(StoreError::Unavailable(format!(
            "the write-ahead file cannot be written: {why}"
        )))
    }

    pub(super) async fn next(&self) -> Option<Delivery> {
        loop {
            {
                let mut state = self.lock();
                if state.closed && (state.queue.is_empty() || self.wal.is_some()) {
                    self.news.notify_one();
                    return None;
                }
                if let Some((seq, Entry { id, payload })) = state.queue.pop_front() {
                    state.working += 1;
                    if !state.queue.is_empty() || state.closed {
                        self.news.notify_one();
                    }
                    let receipt = Receipt::Memory(seq);
                    return Some(Delivery {
                        id,
                        payload,
                        receipt,
                    });
                }
            }
            self.news.notified().await;
        }
    }

    pub(super) async fn done(self: Arc<Self>, seq: u64, bytes: usize) {
        if let Some(wal) = &self.wal {
            let noted = match wal.try_done(seq) {
                Some(noted) => noted,
                None => {
                    let this = self.clone();
                    let done = spawn_blocking(move || this.wal.as_ref().map(|wal| wal.done(seq)));
                    done.await.ok().flatten().unwrap_or(Ok(()))
                }
            };
            if let Err(error) = noted {
                eprintln!(
                    "an item is processed again after a restart, since this cannot be written: {error}"
                );
            }
        }
        let mut state = self.lock();
        state.working -= 1;
        state.bytes -= bytes;
        state.processed += 1;
        self.tell(&state);
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.news.notify_one();
    }

    /// Pushes the lag: items, or as many as there were if they were as the queue is full by their bytes.
    fn tell(&self, state: &State) {
        let by_bytes = state.bytes as f64 / self.most_bytes as f64 * self.most as f64;
        let lag = (state.held() as f64).max(by_bytes);
        self.lag.store(lag.to_bits(), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ===== impl State =====

impl State {
    fn new(window: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            working: 0,
            bytes: 0,
            seen: Seen::new(window),
            next: 0,
            closed: false,
            stored: 0,
            duplicates: 0,
            full: 0,
            processed: 0,
        }
    }

    /// Items that are not processed.
    fn held(&self) -> usize {
        self.queue.len() + self.working
    }

    /// Items without an id are all different.
    fn remember(&mut self, id: Arc<str>) {
        if !id.is_empty() {
            self.seen.insert(id);
        }
    }

    fn full(&self, most: usize) -> StoreError {
        let (held, bytes) = (self.held(), self.bytes);
        StoreError::Full(format!(
            "{held} of {most} items with {bytes} bytes wait to be processed; retry later or raise --queue or --workers"
        ))
    }
}

// ===== what is shown =====

impl Signal for Memory {
    fn name(&self) -> &str {
        "lag"
    }

    fn sample(&self) -> Option<f64> {
        Some(f64::from_bits(self.lag.load(Relaxed)))
    }
}

impl Inspect for Memory {
    fn kind(&self) -> &'static str {
        "store"
    }

    fn name(&self) -> Cow<'_, str> {
        "memory".into()
    }

    fn snapshot(&self) -> Value {
        let state = self.lock();
        Value::map([
            ("queued", state.queue.len().into()),
            ("working", state.working.into()),
            ("bytes", state.bytes.into()),
            ("stored", state.stored.into()),
            ("duplicates", state.duplicates.into()),
            ("full", state.full.into()),
            ("processed", state.processed.into()),
        ])
    }

    fn collect(&self, _: &mut Families) {}
}
