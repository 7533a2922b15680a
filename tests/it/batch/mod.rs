//! Batching, over a backend that does as a script says.

mod acceptance;
mod breaks;
mod controls;
mod faults;
mod kills;
mod many;
mod props;
mod queue;
mod rules;
mod ultra;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_test::task::Spawn;
use tower::Service;
use tower_flow::batch::{Batch, BatchHandle, BatchLayer, BatchSnapshot, Flush};
use tower_flow::deadline::Deadline;
use tower_flow::error::{Reason, find};
use tower_flow::executor::Task;
use tower_flow::{BoxError, Rejection, clock};

pub use crate::coalesce::{Count, Counted, block_on, message, ms, rest, rounds, secs};

// ===== items =====

/// A request, and what the backend makes of it.
#[derive(Debug, Clone)]
pub struct Item {
    pub id: u64,
    pub shard: u64,
    /// What it has in common with others.
    pub key: u64,
    pub weight: usize,
    pub deadline: Option<Deadline>,
    pub fate: Fate,
    _alive: Option<Counted>,
}

/// What becomes of an item in a batch that does not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Fine,
    /// It alone fails.
    Fails,
    /// Every batch it is in fails.
    Poison,
}

pub fn item(id: u64) -> Item {
    Item {
        id,
        shard: 0,
        key: id,
        weight: 1,
        deadline: None,
        fate: Fate::Fine,
        _alive: None,
    }
}

impl Item {
    pub fn shard(self, shard: u64) -> Self {
        Self { shard, ..self }
    }

    pub fn key(self, key: u64) -> Self {
        Self { key, ..self }
    }

    pub fn weight(self, weight: usize) -> Self {
        Self { weight, ..self }
    }

    pub fn fate(self, fate: Fate) -> Self {
        Self { fate, ..self }
    }

    /// Has a deadline so long after now.
    pub fn within(self, timeout: Duration) -> Self {
        let deadline = Deadline::after(clock::now(), timeout);
        Self { deadline, ..self }
    }

    /// Is counted as long as it is anywhere.
    pub fn counted(self, by: &Arc<Count>) -> Self {
        let _alive = Some(Counted::new(by));
        Self { _alive, ..self }
    }
}

pub fn layer() -> BatchLayer<Item> {
    BatchLayer::new()
}

/// Items of one shard are in one batch.
pub fn sharded() -> BatchLayer<Item, u64> {
    layer().shard_by(|item: &Item| item.shard)
}

/// A service of single items.
pub trait Single<T = Answer>:
    Service<Item, Response = T, Error = BoxError, Future: Send + 'static> + Clone + Send + 'static
{
}

impl<T, S> Single<T> for S where
    S: Service<Item, Response = T, Error = BoxError, Future: Send + 'static>
        + Clone
        + Send
        + 'static
{
}

// ===== the backend =====

/// Which call of the backend made it, for which item, at which place of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub call: usize,
    pub id: u64,
    pub position: usize,
}

/// An error nobody can clone.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault(pub &'static str);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Fault {}

/// What comes of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Does {
    Answers,
    /// Answers all but the last so many.
    Short(usize),
    /// Answers so many more than there are.
    Long(usize),
    Fails,
    Panics,
    PanicsInCall,
    /// Answers after a while.
    Takes(Duration),
    /// Fails after a while.
    FailsAfter(Duration),
    /// Until the test says what comes of it.
    Waits,
    Never,
}

#[derive(Debug, Default)]
enum Ready {
    #[default]
    Always,
    Held(Vec<Waker>),
    Fails,
    Panics,
}

#[derive(Debug, Default)]
struct Gate {
    end: Option<Does>,
    waker: Option<Waker>,
}

/// What the backend was called with.
#[derive(Debug, Clone)]
pub struct Sent {
    pub ids: Vec<u64>,
    pub shard: u64,
    pub weight: usize,
    pub flush: Flush,
    pub deadline: Option<Deadline>,
    pub at: Instant,
}

/// Counts what is done to it. All clones are one backend.
pub struct Backend {
    watched: Arc<Watched>,
    ready: bool,
    _clone: Counted,
}

pub struct Watched {
    /// The services themselves.
    pub clones: Arc<Count>,
    /// Futures from the call to their drop.
    pub futures: Arc<Count>,
    /// Calls from the call to the answer, or to the drop before there was any.
    pub busy: Arc<Count>,
    /// The same by shard.
    shards: Mutex<HashMap<u64, Arc<Count>>>,
    sent: Mutex<Vec<Sent>>,
    usual: Mutex<Does>,
    script: Mutex<VecDeque<Does>>,
    ready: Mutex<Ready>,
    /// How often it was asked whether it is ready.
    pub asked: AtomicUsize,
    /// By the number of the call.
    gates: Mutex<HashMap<usize, Gate>>,
}

impl Backend {
    pub fn new(usual: Does) -> Self {
        let clones = Arc::new(Count::default());
        let clone = Counted::new(&clones);
        let watched = Watched {
            clones,
            futures: Arc::default(),
            busy: Arc::default(),
            shards: Mutex::default(),
            sent: Mutex::default(),
            usual: Mutex::new(usual),
            script: Mutex::default(),
            ready: Mutex::default(),
            asked: AtomicUsize::new(0),
            gates: Mutex::default(),
        };
        Self {
            watched: Arc::new(watched),
            ready: false,
            _clone: clone,
        }
    }

    /// Another view of the backend that is no clone of the service.
    pub fn watched(&self) -> Arc<Watched> {
        self.watched.clone()
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl std::ops::Deref for Backend {
    type Target = Watched;

    fn deref(&self) -> &Watched {
        &self.watched
    }
}

impl Watched {
    /// How often it was called.
    pub fn calls(&self) -> usize {
        self.sent.lock().unwrap().len()
    }

    /// All it was called with.
    pub fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// What it was called with after the first so many calls.
    pub fn since(&self, calls: usize) -> Vec<Sent> {
        self.sent.lock().unwrap()[calls..].to_vec()
    }

    /// The item at that place of that call, counted from 1.
    pub fn id_at(&self, call: usize, position: usize) -> u64 {
        self.sent.lock().unwrap()[call - 1].ids[position]
    }

    /// The last batch.
    pub fn last(&self) -> Sent {
        let sent = self.sent.lock().unwrap();
        sent.last().expect("a batch was sent").clone()
    }

    /// The items of each call.
    pub fn batches(&self) -> Vec<Vec<u64>> {
        self.sent().into_iter().map(|sent| sent.ids).collect()
    }

    /// How many items each call had.
    pub fn sizes(&self) -> Vec<usize> {
        self.batches().iter().map(Vec::len).collect()
    }

    /// All items in the order they came.
    pub fn ids(&self) -> Vec<u64> {
        self.batches().concat()
    }

    /// How many calls of this shard were busy at once, at most.
    pub fn peak_of(&self, shard: u64) -> usize {
        let shards = self.shards.lock().unwrap();
        shards.get(&shard).map_or(0, |count| count.peak())
    }

    /// How many calls of this shard are busy.
    pub fn busy_of(&self, shard: u64) -> usize {
        let shards = self.shards.lock().unwrap();
        shards.get(&shard).map_or(0, |count| count.now())
    }

    /// What the calls after this do.
    pub fn usual(&self, does: Does) {
        *self.usual.lock().unwrap() = does;
    }

    /// What the next calls do, before it does as usual.
    pub fn next(&self, does: impl IntoIterator<Item = Does>) {
        self.script.lock().unwrap().extend(does);
    }

    /// Lets a call that waits go on, counted from 1.
    pub fn finish(&self, call: usize, end: Does) {
        let waker = {
            let mut gates = self.gates.lock().unwrap();
            let gate = gates.entry(call).or_default();
            gate.end = Some(end);
            gate.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Is not ready from now on.
    pub fn hold(&self) {
        let mut ready = self.ready.lock().unwrap();
        if !matches!(*ready, Ready::Held(_)) {
            *ready = Ready::Held(Vec::new());
        }
    }

    /// Is ready from now on.
    pub fn admit(&self) {
        let held = std::mem::take(&mut *self.ready.lock().unwrap());
        if let Ready::Held(wakers) = held {
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Fails when asked whether it is ready.
    pub fn unready(&self) {
        *self.ready.lock().unwrap() = Ready::Fails;
    }

    /// Panics when asked whether it is ready.
    pub fn unready_by_panic(&self) {
        *self.ready.lock().unwrap() = Ready::Panics;
    }
}

impl Clone for Backend {
    fn clone(&self) -> Self {
        Self {
            watched: self.watched.clone(),
            ready: false,
            _clone: self._clone.clone(),
        }
    }
}

impl Service<Batch<Item>> for Backend {
    type Response = Vec<Result<Answer, Fault>>;
    type Error = Fault;
    type Future = Running;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.watched.asked.fetch_add(1, Ordering::SeqCst);
        match &mut *self.watched.ready.lock().unwrap() {
            Ready::Always => {
                self.ready = true;
                return Poll::Ready(Ok(()));
            }
            Ready::Held(wakers) => {
                wakers.push(cx.waker().clone());
                return Poll::Pending;
            }
            Ready::Fails => return Poll::Ready(Err(Fault("not ready"))),
            Ready::Panics => {}
        }
        panic!("told to")
    }

    fn call(&mut self, batch: Batch<Item>) -> Running {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        assert!(!batch.is_empty(), "a batch of nothing");
        let shard = batch[0].shard;
        assert!(
            batch.iter().all(|item| item.shard == shard),
            "items of several shards in one batch: {batch:?}"
        );
        let usual = *self.watched.usual.lock().unwrap();
        let script = self.watched.script.lock().unwrap().pop_front();
        let does = script.unwrap_or(usual);
        let by_shard = {
            let mut shards = self.watched.shards.lock().unwrap();
            Counted::new(shards.entry(shard).or_default())
        };
        let call = {
            let mut sent = self.watched.sent.lock().unwrap();
            sent.push(Sent {
                ids: batch.iter().map(|item| item.id).collect(),
                shard,
                weight: batch.weight(),
                flush: batch.flush(),
                deadline: batch.deadline(),
                at: clock::now(),
            });
            sent.len()
        };
        assert_ne!(does, Does::PanicsInCall, "told to");
        Running {
            call,
            items: batch.into_vec(),
            does,
            sleep: None,
            busy: Some((Counted::new(&self.watched.busy), by_shard)),
            _future: Counted::new(&self.watched.futures),
            watched: self.watched.clone(),
        }
    }
}

/// The backend's future. Holds the items to its end.
pub struct Running {
    call: usize,
    items: Vec<Item>,
    does: Does,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    busy: Option<(Counted, Counted)>,
    _future: Counted,
    watched: Arc<Watched>,
}

type Results = Vec<Result<Answer, Fault>>;

impl Running {
    fn answers(&self) -> Result<Results, Fault> {
        if self.items.iter().any(|item| item.fate == Fate::Poison) {
            return Err(Fault("poisoned"));
        }
        let answer = |(position, item): (usize, &Item)| match item.fate {
            Fate::Fails => Err(Fault("its own")),
            _ => Ok(Answer {
                call: self.call,
                id: item.id,
                position,
            }),
        };
        Ok(self.items.iter().enumerate().map(answer).collect())
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Results, Fault>> {
        loop {
            match self.does {
                Does::Answers => return Poll::Ready(self.answers()),
                Does::Short(by) => {
                    let mut answers = self.answers()?;
                    answers.truncate(answers.len().saturating_sub(by));
                    return Poll::Ready(Ok(answers));
                }
                Does::Long(by) => {
                    let mut answers = self.answers()?;
                    answers.extend((0..by).map(|_| Err(Fault("nobody's"))));
                    return Poll::Ready(Ok(answers));
                }
                Does::Fails => return Poll::Ready(Err(Fault("told to"))),
                Does::Panics | Does::PanicsInCall => panic!("told to"),
                Does::Never => return Poll::Pending,
                Does::Takes(time) | Does::FailsAfter(time) => {
                    let sleep = self
                        .sleep
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
                    std::task::ready!(sleep.as_mut().poll(cx));
                    self.does = match self.does {
                        Does::Takes(_) => Does::Answers,
                        _ => Does::Fails,
                    };
                }
                Does::Waits => {
                    let mut gates = self.watched.gates.lock().unwrap();
                    let gate = gates.entry(self.call).or_default();
                    let Some(end) = gate.end else {
                        gate.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    };
                    self.does = end;
                }
            }
        }
    }
}

impl Future for Running {
    type Output = Result<Results, Fault>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(self.busy.is_some(), "polled after its end");
        let polled = self.step(cx);
        if polled.is_ready() {
            self.busy = None;
        }
        polled
    }
}

// ===== asking =====

/// A call that nobody has polled yet.
pub type Call<T = Answer> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// A call of a service that is ready: it is accepted, or refused, here.
pub fn call<T>(service: &impl Single<T>, item: Item) -> Call<T> {
    let mut service = service.clone();
    let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(ready, Poll::Ready(Ok(()))), "there is room");
    Box::pin(service.call(item))
}

/// A call the test polls by hand, under a waker that tells whether it was woken.
pub fn held<T>(service: &impl Single<T>, item: Item) -> Spawn<Call<T>> {
    tokio_test::task::spawn(call(service, item))
}

/// A caller before the gate, under a waker that tells whether it was woken. Keeps his place until he is dropped.
pub struct Comer<S> {
    pub service: S,
    task: Spawn<()>,
}

pub fn comer<S: Clone>(service: &S) -> Comer<S> {
    Comer {
        service: service.clone(),
        task: tokio_test::task::spawn(()),
    }
}

impl<S> Comer<S> {
    pub fn poll_ready<T>(&mut self) -> Poll<Result<(), BoxError>>
    where
        S: Single<T>,
    {
        let service = &mut self.service;
        self.task.enter(|cx, _| service.poll_ready(cx))
    }

    pub fn is_woken(&self) -> bool {
        self.task.is_woken()
    }
}

/// A call in a task of its own.
#[derive(Debug)]
pub struct Asked<T = Answer>(pub JoinHandle<Result<T, BoxError>>);

pub fn go<T: Send + 'static>(service: &impl Single<T>, item: Item) -> Asked<T> {
    Asked(tokio::spawn(call(service, item)))
}

/// As many calls as there are ids.
pub fn all(service: &impl Single, ids: impl IntoIterator<Item = u64>) -> Vec<Asked> {
    ids.into_iter().map(|id| go(service, item(id))).collect()
}

/// Every one of them is answered, by its own answer.
pub async fn answered(asked: impl IntoIterator<Item = Asked>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for asked in asked {
        answers.push(asked.value().await);
    }
    answers
}

impl<T: fmt::Debug> Asked<T> {
    /// Waits a minute at most, so that what hangs fails.
    pub async fn result(self) -> Result<T, BoxError> {
        let task = tokio::time::timeout(secs(60), self.0).await;
        task.expect("it ends").expect("its task ends in peace")
    }

    pub async fn value(self) -> T {
        self.result()
            .await
            .unwrap_or_else(|error| panic!("{error:?}"))
    }

    pub async fn error(self) -> BoxError {
        match self.result().await {
            Ok(value) => panic!("answered by {value:?}"),
            Err(error) => error,
        }
    }

    /// Drops the future.
    pub async fn cancel(self) {
        self.0.abort();
        assert!(self.0.await.unwrap_err().is_cancelled());
    }

    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }
}

/// Why the layer refused.
#[track_caller]
pub fn reason(error: &BoxError) -> Reason {
    let rejection = Rejection::find(error.as_ref()).unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!(rejection.layer(), "batch");
    rejection.reason()
}

/// What the backend said, however it is wrapped.
#[track_caller]
pub fn fault(error: &BoxError) -> &'static str {
    find::<Fault>(error.as_ref())
        .unwrap_or_else(|| panic!("{error:?}"))
        .0
}

/// It took this long, give or take what the timer rounds.
#[track_caller]
pub fn assert_took(elapsed: Duration, wanted: Duration) {
    assert!(
        (wanted..=wanted + ms(2)).contains(&elapsed),
        "{elapsed:?} for {wanted:?}"
    );
}

// ===== tasks by hand =====

/// An executor whose tasks the test polls, or drops.
#[derive(Clone, Default)]
pub struct Hands(Arc<Mutex<Vec<Hand>>>);

struct Hand {
    task: Spawn<Task>,
    polled: bool,
}

impl Hands {
    pub fn executor(&self) -> impl Fn(Task) + Send + Sync + 'static {
        let hands = self.clone();
        move |task| {
            let task = tokio_test::task::spawn(task);
            let polled = false;
            hands.0.lock().unwrap().push(Hand { task, polled });
        }
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Polls those tasks once that `due` picks, and forgets those that are done. Says whether there was any.
    fn step(&self, due: impl Fn(&Hand) -> bool) -> bool {
        let (mut any, mut panic) = (false, None);
        let hands = std::mem::take(&mut *self.0.lock().unwrap());
        for mut hand in hands {
            let moves = due(&hand);
            any |= moves;
            let pending = !moves
                || match catch_unwind(AssertUnwindSafe(|| hand.task.poll())) {
                    Ok(polled) => polled.is_pending(),
                    Err(caught) => {
                        panic = Some(caught);
                        false
                    }
                };
            if pending {
                hand.polled |= moves;
                self.0.lock().unwrap().push(hand);
            } else if let Err(caught) = catch_unwind(AssertUnwindSafe(|| drop(hand))) {
                panic = Some(caught);
            }
        }
        // As a runtime does: the other tasks do not notice.
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        any
    }

    /// Polls all tasks once, woken or not.
    pub fn poll(&self) {
        self.step(|_| true);
    }

    /// Polls the tasks that are new or were woken, until none is. Says whether there was any.
    pub fn run(&self) -> bool {
        let due = |hand: &Hand| !hand.polled || hand.task.is_woken();
        let mut any = false;
        for _ in 0..1_000 {
            if !self.step(due) {
                return any;
            }
            any = true;
        }
        panic!("they spin");
    }

    /// Drops the so-many-th task, counted round and round.
    pub fn drop_one(&self, which: usize) {
        let mut hands = self.0.lock().unwrap();
        if !hands.is_empty() {
            let which = which % hands.len();
            let hand = hands.remove(which);
            drop(hands);
            drop(hand);
        }
    }

    /// Drops all tasks.
    pub fn shut(&self) {
        let hands = std::mem::take(&mut *self.0.lock().unwrap());
        drop(hands);
    }
}

// ===== what is shown =====

/// How many items ended so.
#[track_caller]
pub fn ended(handle: &BatchHandle, how: &str) -> u64 {
    count(&handle.snapshot().results, how)
}

/// How many batches were sent for this reason.
#[track_caller]
pub fn flushed(handle: &BatchHandle, why: &str) -> u64 {
    count(&handle.snapshot().flushes, why)
}

#[track_caller]
fn count(counts: &[(&str, u64)], name: &str) -> u64 {
    let found = counts.iter().find(|(named, _)| *named == name);
    found.unwrap_or_else(|| panic!("no {name} in {counts:?}")).1
}

/// Nothing waits, nothing is in flight, and everything that was accepted has ended.
#[track_caller]
pub fn assert_quiet(handle: &BatchHandle) -> BatchSnapshot {
    let now = handle.snapshot();
    assert_eq!(
        (now.queued, now.in_flight, now.shards),
        (0, 0, 0),
        "{now:?}"
    );
    let ended: u64 = now
        .results
        .iter()
        .filter(|(how, _)| *how != "rejected")
        .map(|(_, count)| count)
        .sum();
    assert_eq!(ended, now.items, "{now:?}");
    let flushed: u64 = now.flushes.iter().map(|(_, count)| count).sum();
    assert_eq!(flushed, now.batches, "{now:?}");
    now
}

/// The layer is quiet, and serves a fresh item by a call of its own. Needs a runtime.
pub async fn assert_usable(service: &impl Single, handle: &BatchHandle, backend: &Watched) {
    assert_quiet(handle);
    backend.admit();
    backend.usual(Does::Answers);
    let calls = backend.calls();
    let asked = go(service, item(4_711));
    let answer = asked.value().await;
    assert_eq!((answer.call, answer.id), (calls + 1, 4_711));
    rest().await;
    assert_quiet(handle);
}
