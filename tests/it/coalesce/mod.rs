//! Coalescing, over a backend that does as a script says.

mod acceptance;
mod controls;
mod faults;
mod grpc;
mod http;
mod props;
mod rules;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_test::task::Spawn;
use tower::Service;
use tower_flow::coalesce::{
    ArcError, Coalesce, CoalesceHandle, CoalesceLayer, Facts, KeyBy, Terms,
};
use tower_flow::deadline::Deadline;
use tower_flow::error::Reason;
use tower_flow::priority::Priority;
use tower_flow::{BoxError, Rejection, clock};

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Lets everything happen that needs no time. Under paused time the clock moves only when all tasks wait.
pub async fn rest() {
    tokio::time::sleep(ms(1)).await;
}

/// How many rounds the races run: `usual`, or what `TOWER_FLOW_ROUNDS` says.
pub fn rounds(usual: usize) -> usize {
    std::env::var("TOWER_FLOW_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(usual)
}

// ===== counters =====

/// How many there are, were at most, and have been.
#[derive(Debug, Default)]
pub struct Count {
    now: AtomicUsize,
    peak: AtomicUsize,
    total: AtomicUsize,
}

/// Counted up when made, down when dropped.
#[derive(Debug)]
pub struct Counted(Arc<Count>);

impl Count {
    pub fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::SeqCst)
    }

    pub fn total(&self) -> usize {
        self.total.load(Ordering::SeqCst)
    }
}

impl Counted {
    pub fn new(by: &Arc<Count>) -> Self {
        let now = by.now.fetch_add(1, Ordering::SeqCst) + 1;
        by.peak.fetch_max(now, Ordering::SeqCst);
        by.total.fetch_add(1, Ordering::SeqCst);
        Self(by.clone())
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

// ===== requests =====

/// A request: what it has in common with others, and what tells it from them.
#[derive(Debug)]
pub struct Ask {
    pub key: Option<u64>,
    pub id: u64,
    pub terms: Terms,
    /// What was known of the flight when it was sent.
    pub facts: Option<Facts>,
}

pub fn ask(key: u64) -> Ask {
    Ask {
        key: Some(key),
        id: 0,
        terms: Terms::default(),
        facts: None,
    }
}

impl Ask {
    pub fn id(mut self, id: u64) -> Self {
        self.id = id;
        self
    }

    pub fn within(mut self, timeout: Duration) -> Self {
        let deadline = Deadline::after(clock::now(), timeout);
        self.terms = self.terms.deadline(deadline);
        self
    }

    pub fn priority(mut self, priority: Priority) -> Self {
        self.terms = self.terms.priority(priority);
        self
    }
}

/// Reads keys and terms from the requests, and writes the facts into the one that is sent.
#[derive(Debug, Clone, Copy)]
pub struct Keyed;

impl KeyBy<Ask> for Keyed {
    type Key = u64;

    fn key(&self, req: &Ask) -> Option<u64> {
        req.key
    }

    fn terms(&self, req: &Ask) -> Terms {
        req.terms
    }

    fn prepare(&self, req: &mut Ask, flight: Facts) {
        req.facts = Some(flight);
    }
}

pub type Keyedly = CoalesceLayer<Keyed>;
pub type Sut = Coalesce<Backend, Keyed, ArcError>;

pub fn layer() -> Keyedly {
    CoalesceLayer::new(Keyed)
}

// ===== the backend =====

/// Which call of the backend made it, and for which request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub call: usize,
    pub id: u64,
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
    Fails,
    Panics,
    PanicsInCall,
    /// Asks to be polled so many times more, then answers.
    Yields(usize),
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
    pub polls: AtomicUsize,
    /// The same as `busy`, by key.
    keys: Mutex<HashMap<u64, Arc<Count>>>,
    calls: Mutex<Vec<Ask>>,
    usual: Mutex<Does>,
    script: Mutex<VecDeque<Does>>,
    ready: Mutex<Ready>,
    /// By the number of the call.
    gates: Mutex<HashMap<usize, Gate>>,
    on_drop: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Backend {
    pub fn new(usual: Does) -> Self {
        let clones = Arc::new(Count::default());
        let clone = Counted::new(&clones);
        let watched = Watched {
            clones,
            futures: Arc::default(),
            busy: Arc::default(),
            polls: AtomicUsize::new(0),
            keys: Mutex::default(),
            calls: Mutex::default(),
            usual: Mutex::new(usual),
            script: Mutex::default(),
            ready: Mutex::default(),
            gates: Mutex::default(),
            on_drop: Mutex::default(),
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

impl std::ops::Deref for Backend {
    type Target = Watched;

    fn deref(&self) -> &Watched {
        &self.watched
    }
}

impl Watched {
    /// How often it was called.
    pub fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// The requests it was called with, by their ids.
    pub fn ids(&self) -> Vec<u64> {
        let calls = self.calls.lock().unwrap();
        calls.iter().map(|ask| ask.id).collect()
    }

    /// What was known of the flight of this call, counted from 1.
    pub fn facts(&self, call: usize) -> Option<Facts> {
        self.calls.lock().unwrap()[call - 1].facts
    }

    /// The key of a call, counted from 1.
    pub fn key_of(&self, call: usize) -> Option<u64> {
        self.calls.lock().unwrap()[call - 1].key
    }

    /// How many calls under this key were busy at once, at most.
    pub fn peak_of(&self, key: u64) -> usize {
        let keys = self.keys.lock().unwrap();
        keys.get(&key).map_or(0, |count| count.peak())
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

    /// Wakes a call that waits, for nothing.
    pub fn nudge(&self, call: usize) {
        let waker = self
            .gates
            .lock()
            .unwrap()
            .get_mut(&call)
            .and_then(|gate| gate.waker.take());
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Is not ready from now on.
    pub fn hold(&self) {
        *self.ready.lock().unwrap() = Ready::Held(Vec::new());
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

    /// What the next future that is dropped does.
    pub fn on_drop(&self, act: impl FnOnce() + Send + 'static) {
        *self.on_drop.lock().unwrap() = Some(Box::new(act));
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

impl Service<Ask> for Backend {
    type Response = Answer;
    type Error = Fault;
    type Future = Running;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
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

    fn call(&mut self, req: Ask) -> Running {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        let usual = *self.watched.usual.lock().unwrap();
        let does = self
            .watched
            .script
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(usual);
        let id = req.id;
        let mut keys = self.watched.keys.lock().unwrap();
        let key = req
            .key
            .map(|key| Counted::new(keys.entry(key).or_default()));
        drop(keys);
        let call = {
            let mut calls = self.watched.calls.lock().unwrap();
            calls.push(req);
            calls.len()
        };
        assert_ne!(does, Does::PanicsInCall, "told to");
        Running {
            answer: Answer { call, id },
            does,
            sleep: None,
            busy: Some((Counted::new(&self.watched.busy), key)),
            _future: Counted::new(&self.watched.futures),
            watched: self.watched.clone(),
        }
    }
}

/// The backend's future.
pub struct Running {
    answer: Answer,
    does: Does,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    busy: Option<(Counted, Option<Counted>)>,
    _future: Counted,
    watched: Arc<Watched>,
}

impl Running {
    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Fault>> {
        loop {
            match self.does {
                Does::Answers | Does::Yields(0) => return Poll::Ready(Ok(self.answer)),
                Does::Fails => return Poll::Ready(Err(Fault("told to"))),
                Does::Panics | Does::PanicsInCall => panic!("told to"),
                Does::Never => return Poll::Pending,
                Does::Yields(left) => {
                    self.does = Does::Yields(left - 1);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
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
                    let gate = gates.entry(self.answer.call).or_default();
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
    type Output = Result<Answer, Fault>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.watched.polls.fetch_add(1, Ordering::SeqCst);
        assert!(self.busy.is_some(), "polled after its end");
        let polled = self.step(cx);
        if polled.is_ready() {
            self.busy = None;
        }
        polled
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.busy = None;
        let act = self.watched.on_drop.lock().unwrap().take();
        if let Some(act) = act {
            act();
        }
    }
}

// ===== asking =====

/// A call that nobody has polled yet.
pub type Call<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

pub fn call<S, R>(service: &S, req: R) -> Call<S::Response>
where
    S: Service<R, Error = BoxError, Future: Send + 'static> + Clone,
{
    let mut service = service.clone();
    let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(ready, Poll::Ready(Ok(()))), "always ready");
    Box::pin(service.call(req))
}

/// A call the test polls by hand, under a waker that tells whether it was woken.
pub fn held<S, R>(service: &S, req: R) -> Spawn<Call<S::Response>>
where
    S: Service<R, Error = BoxError, Future: Send + 'static> + Clone,
{
    tokio_test::task::spawn(call(service, req))
}

/// A call in a task of its own, whose polls are counted.
#[derive(Debug)]
pub struct Asked<T = Answer> {
    task: JoinHandle<Result<T, BoxError>>,
    polls: Arc<AtomicUsize>,
}

pub fn go<S, R>(service: &S, req: R) -> Asked<S::Response>
where
    S: Service<R, Response: Send + 'static, Error = BoxError, Future: Send + 'static> + Clone,
{
    let polls = Arc::new(AtomicUsize::new(0));
    let mut call = call(service, req);
    let counted = polls.clone();
    let polled = std::future::poll_fn(move |cx| {
        counted.fetch_add(1, Ordering::SeqCst);
        call.as_mut().poll(cx)
    });
    let task = tokio::spawn(polled);
    Asked { task, polls }
}

impl<T: fmt::Debug> Asked<T> {
    /// Waits a minute at most, so that what hangs fails.
    pub async fn result(self) -> Result<T, BoxError> {
        let task = tokio::time::timeout(secs(60), self.task).await;
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

    /// What it panicked with.
    pub async fn panic(self) -> String {
        let task = tokio::time::timeout(secs(60), self.task).await;
        message(task.expect("it ends").unwrap_err().into_panic())
    }

    pub fn polls(&self) -> usize {
        self.polls.load(Ordering::SeqCst)
    }

    /// Drops the future.
    pub async fn cancel(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

/// What a panic said.
pub fn message(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().expect("a message")).to_owned(),
    }
}

/// Why the layer refused.
#[track_caller]
pub fn reason(error: &BoxError) -> Reason {
    let rejection = Rejection::find(error.as_ref()).unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!(rejection.layer(), "coalesce");
    rejection.reason()
}

// ===== threads =====

/// Runs `future` on this thread alone, and fails after half a minute without a wake.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    let since = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        std::thread::park_timeout(secs(30));
        assert!(since.elapsed() < secs(30), "it was never woken");
    }
}

// ===== what is shown =====

/// How many flights ended so.
#[track_caller]
pub fn ended(handle: &CoalesceHandle, how: &str) -> u64 {
    let ends = handle.snapshot().ends;
    let found = ends.iter().find(|(name, _)| *name == how);
    found.unwrap_or_else(|| panic!("no {how} in {ends:?}")).1
}

/// How many went alone, and why.
#[track_caller]
pub fn bypassed(handle: &CoalesceHandle, why: &str) -> u64 {
    let bypassed = handle.snapshot().bypassed;
    let found = bypassed.iter().find(|(name, _)| *name == why);
    found
        .unwrap_or_else(|| panic!("no {why} in {bypassed:?}"))
        .1
}

/// Nobody is in a flight.
#[track_caller]
pub fn assert_quiet(handle: &CoalesceHandle) {
    let now = handle.snapshot();
    assert_eq!((now.flights, now.waiters), (0, 0), "{now:?}");
}

/// A fresh request under a key that something happened to: the layer serves it, by a call of its own.
#[track_caller]
pub fn assert_usable<S>(service: &S, handle: &CoalesceHandle, backend: &Watched, key: u64)
where
    S: Service<Ask, Response = Answer, Error = BoxError, Future: Send + 'static> + Clone,
{
    assert_quiet(handle);
    backend.admit();
    backend.usual(Does::Answers);
    let calls = backend.calls();
    let mut fresh = held(service, ask(key).id(4_711));
    let Poll::Ready(result) = fresh.poll() else {
        panic!("the key is stuck");
    };
    let answer = result.unwrap();
    assert_eq!((answer.call, answer.id), (calls + 1, 4_711));
    assert_quiet(handle);
}
