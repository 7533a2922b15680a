//! Equal requests in flight become one: the least that takes, and callers driven by hand.

use std::fmt::Debug;
use std::hash::{BuildHasher, Hash, RandomState};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Instant;

use hashbrown::HashTable;
use tower_service::Service;

use super::{allocations, cpu, median, pin};

// ===== in turn =====

/// What is measured in turn.
#[derive(Default)]
pub struct Ways {
    names: Vec<&'static str>,
    runs: Vec<Run>,
}

type Run = Box<dyn FnMut(usize)>;

/// What one way costs each time.
#[derive(Debug, Clone)]
pub struct Cost {
    pub name: &'static str,
    /// Nanoseconds, a figure for each round.
    pub times: Vec<f64>,
    pub allocations: f64,
}

impl Ways {
    /// `run` does it so many times.
    pub fn add(&mut self, name: &'static str, run: impl FnMut(usize) + 'static) {
        self.names.push(name);
        self.runs.push(Box::new(run));
    }

    /// Does it so many times in the way with this name, and measures nothing.
    pub fn walk(mut self, name: &str, times: usize) {
        let way = self.names.iter().position(|known| *known == name);
        self.runs[way.unwrap_or_else(|| panic!("one of {:?}", self.names))](times);
    }

    /// In each round all of them, from another one on.
    pub fn measure(mut self, rounds: usize, times: usize) -> Vec<Cost> {
        let ways = self.runs.len();
        let named = self.names.iter().map(|name| Cost {
            name,
            times: Vec::with_capacity(rounds),
            allocations: 0.0,
        });
        let mut costs: Vec<_> = named.collect();
        for round in 0..rounds + 2 {
            for turn in 0..ways {
                let way = (round + turn) % ways;
                let before = allocations();
                // Of this thread's processor: what others take of it does not count.
                let start = cpu();
                (self.runs[way])(times);
                let took = (cpu() - start).as_secs_f64() * 1e9 / times as f64;
                // The first two warm up.
                if round >= 2 {
                    costs[way].times.push(took);
                    costs[way].allocations = (allocations() - before) as f64 / times as f64;
                }
            }
        }
        costs
    }
}

impl Cost {
    pub fn median(&self) -> f64 {
        median(self.times.iter().copied())
    }

    /// What it costs more than the other did in the same round.
    pub fn over(&self, other: &Self) -> f64 {
        let pairs = self.times.iter().zip(&other.times);
        median(pairs.map(|(this, other)| this - other))
    }

    /// Both less what `bare` took in the same round.
    pub fn ratio(&self, other: &Self, bare: &Self) -> f64 {
        let all = self.times.iter().zip(&other.times).zip(&bare.times);
        median(all.map(|((this, other), bare)| (this - bare) / (other - bare)))
    }
}

/// One call after the other, each with a key of its own.
pub async fn sequence<S>(service: &mut S, from: u64, times: usize)
where
    S: Service<u64, Error: Debug>,
{
    for key in from..from + times as u64 {
        std::future::poll_fn(|cx| service.poll_ready(cx))
            .await
            .expect("it is ready");
        std::hint::black_box(service.call(key).await.expect("an answer"));
    }
}

/// The output of what need not wait for others. Its waker is one that counts references, as those of tasks do.
pub fn at_once<F: Future>(future: F) -> F::Output {
    struct Nobody;
    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
        fn wake_by_ref(self: &Arc<Self>) {}
    }
    thread_local! {
        static WAKER: Waker = Waker::from(Arc::new(Nobody));
    }
    WAKER.with(|waker| {
        let mut cx = Context::from_waker(waker);
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return output;
            }
        }
    })
}

/// What `threads` workers need for one call each, on clones and with keys of their own: nanoseconds, the slowest's. Who
/// is done goes on until all are, as alone the others would be faster. `drive` runs a worker's future to its end.
pub fn workers<S>(
    service: &S,
    threads: usize,
    times: usize,
    drive: impl Fn(Pin<&mut dyn Future<Output = ()>>) + Sync,
) -> f64
where
    S: Service<u64, Error: Debug> + Clone + Send,
{
    let (begin, done) = (Barrier::new(threads), AtomicUsize::new(0));
    let worker = |n: usize, mut service: S| {
        pin(n);
        let first = (n as u64) << 40;
        drive(pin!(sequence(&mut service, first, times / 10)));
        begin.wait();
        let start = Instant::now();
        drive(pin!(sequence(&mut service, first, times)));
        let took = start.elapsed();
        done.fetch_add(1, Relaxed);
        while done.load(Relaxed) < threads {
            drive(pin!(sequence(&mut service, first, times / 100)));
        }
        took.as_secs_f64() * 1e9 / times as f64
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|n| {
                let (worker, service) = (&worker, service.clone());
                scope.spawn(move || worker(n, service))
            })
            .collect();
        let took = all
            .into_iter()
            .map(|one| one.join().expect("a worker only calls"));
        took.fold(0.0, f64::max)
    })
}

// ===== services =====

/// A function from a key to a future.
#[derive(Clone)]
pub struct Direct<F>(pub F);

impl<F, Fut, E> Service<u64> for Direct<F>
where
    F: FnMut(u64) -> Fut,
    Fut: Future<Output = Result<u64, E>>,
{
    type Response = u64;
    type Error = E;
    type Future = Fut;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, key: u64) -> Fut {
        (self.0)(key)
    }
}

/// Answers when it is polled again.
#[derive(Clone)]
pub struct Waits;

pub struct WaitsFuture(u64, bool);

impl Service<u64> for Waits {
    type Response = u64;
    type Error = std::convert::Infallible;
    type Future = WaitsFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: u64) -> WaitsFuture {
        WaitsFuture(req, false)
    }
}

impl Future for WaitsFuture {
    type Output = Result<u64, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.1, true) {
            false => Poll::Pending,
            true => Poll::Ready(Ok(self.0)),
        }
    }
}

/// The least a call of its own takes: a hash, an entry made and removed in a table behind one of many locks, and a
/// future in a box that is used again.
pub struct Floor<S, Y, K, F> {
    inner: S,
    key: Y,
    shards: Arc<Shards<K, F>>,
}

struct Shards<K, F> {
    hasher: RandomState,
    list: Box<[Shard<K, F>]>,
}

#[repr(align(128))]
struct Shard<K, F>(Mutex<Held<K, F>>);

struct Held<K, F> {
    table: HashTable<(u64, K)>,
    spare: Vec<Pin<Box<Option<F>>>>,
}

pub struct FloorFuture<K, F> {
    shards: Arc<Shards<K, F>>,
    hash: u64,
    work: Option<Pin<Box<Option<F>>>>,
}

impl<S, Y, K, F> Floor<S, Y, K, F> {
    pub fn new<Req>(inner: S, key: Y) -> Self
    where
        S: Service<Req, Future = F>,
        Y: Fn(&Req) -> K,
    {
        let shard = || {
            Shard(Mutex::new(Held {
                table: HashTable::new(),
                spare: Vec::new(),
            }))
        };
        Self {
            inner,
            key,
            shards: Arc::new(Shards {
                hasher: RandomState::new(),
                list: (0..16).map(|_| shard()).collect(),
            }),
        }
    }
}

impl<S: Clone, Y: Clone, K, F> Clone for Floor<S, Y, K, F> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            key: self.key.clone(),
            shards: self.shards.clone(),
        }
    }
}

impl<Req, S, Y, K> Service<Req> for Floor<S, Y, K, S::Future>
where
    S: Service<Req>,
    Y: Fn(&Req) -> K,
    K: Hash + Eq,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = FloorFuture<K, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: Req) -> Self::Future {
        let key = (self.key)(&req);
        let hash = self.shards.hasher.hash_one(&key);
        let mut shard = self.shards.of(hash).lock().expect("nothing panics in it");
        let there = shard.table.find(hash, |entry| entry.1 == key);
        assert!(there.is_none(), "keys are unique");
        shard
            .table
            .insert_unique(hash, (hash, key), |entry| entry.0);
        let spare = shard.spare.pop();
        drop(shard);
        let mut work = spare.unwrap_or_else(|| Box::pin(None));
        work.set(Some(self.inner.call(req)));
        FloorFuture {
            shards: self.shards.clone(),
            hash,
            work: Some(work),
        }
    }
}

impl<K, F: Future> Future for FloorFuture<K, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let work = this.work.as_mut().expect("it was not over");
        let future = work.as_mut().as_pin_mut().expect("it was set");
        let output = ready!(future.poll(cx));
        work.set(None);
        let mut shard = this.shards.of(this.hash).lock().expect("as above");
        if let Ok(entry) = shard.table.find_entry(this.hash, |e| e.0 == this.hash) {
            entry.remove();
        }
        shard.spare.extend(this.work.take());
        Poll::Ready(output)
    }
}

impl<K, F> Unpin for FloorFuture<K, F> {}

impl<K, F> Shards<K, F> {
    fn of(&self, hash: u64) -> &Mutex<Held<K, F>> {
        &self.list[(hash >> 48) as usize % self.list.len()].0
    }
}

// ===== followers =====

/// A backend that answers when the gate is opened, and the gate.
#[derive(Clone, Default)]
pub struct Gated(Arc<Gate>);

#[derive(Default)]
struct Gate {
    open: AtomicBool,
    calls: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

pub struct Behind {
    gate: Arc<Gate>,
    key: u64,
    begun: bool,
}

impl Gated {
    fn shut(&self) {
        self.0.open.store(false, Relaxed);
        self.0.calls.store(0, Relaxed);
    }

    fn open(&self) {
        self.0.open.store(true, Relaxed);
        self.knock();
    }

    /// Wakes who waits, for nothing.
    fn knock(&self) {
        let waker = self.0.waker.lock().expect("nothing panics in it").take();
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Service<u64> for Gated {
    type Response = u64;
    type Error = std::convert::Infallible;
    type Future = Behind;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: u64) -> Behind {
        Behind {
            gate: self.0.clone(),
            key: req,
            begun: false,
        }
    }
}

impl Future for Behind {
    type Output = Result<u64, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Some make a future for each caller, and poll one.
        if !std::mem::replace(&mut self.begun, true) {
            self.gate.calls.fetch_add(1, Relaxed);
        }
        if self.gate.open.load(Relaxed) {
            return Poll::Ready(Ok(self.key));
        }
        *self.gate.waker.lock().expect("nothing panics in it") = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// The least that joining and being woken takes: a list of wakers behind a lock, and the answer beside it.
#[derive(Clone)]
pub struct List<S> {
    inner: S,
    shared: Arc<Mutex<Listed>>,
}

#[derive(Default)]
struct Listed {
    led: bool,
    answer: Option<u64>,
    wakers: Vec<Waker>,
    waiting: usize,
}

pub struct ListFuture<F> {
    shared: Arc<Mutex<Listed>>,
    leads: Option<Pin<Box<F>>>,
    joined: bool,
}

impl<S> List<S> {
    pub fn new(inner: S) -> Self {
        let shared = Arc::default();
        Self { inner, shared }
    }
}

impl<S> Service<u64> for List<S>
where
    S: Service<u64, Response = u64>,
{
    type Response = u64;
    type Error = S::Error;
    type Future = ListFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: u64) -> Self::Future {
        let mut shared = self.shared.lock().expect("nothing panics in it");
        let leads = !std::mem::replace(&mut shared.led, true);
        shared.waiting += usize::from(!leads);
        drop(shared);
        ListFuture {
            leads: leads.then(|| Box::pin(self.inner.call(req))),
            shared: self.shared.clone(),
            joined: false,
        }
    }
}

impl<F, E> Future for ListFuture<F>
where
    F: Future<Output = Result<u64, E>>,
{
    type Output = Result<u64, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(work) = &mut this.leads {
            let answer = ready!(work.as_mut().poll(cx))?;
            let mut shared = this.shared.lock().expect("as above");
            shared.led = false;
            shared.answer = (shared.waiting > 0).then_some(answer);
            let mut wakers = std::mem::take(&mut shared.wakers);
            drop(shared);
            wakers.drain(..).for_each(Waker::wake);
            this.shared.lock().expect("as above").wakers = wakers;
            return Poll::Ready(Ok(answer));
        }
        let mut shared = this.shared.lock().expect("as above");
        if let Some(answer) = shared.answer {
            shared.waiting -= 1;
            if shared.waiting == 0 {
                shared.answer = None;
            }
            return Poll::Ready(Ok(answer));
        }
        if !std::mem::replace(&mut this.joined, true) {
            shared.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Callers of one key, each polled when it was woken and not before.
pub struct Crowd<S, F> {
    service: S,
    gate: Gated,
    slots: Vec<Pin<Box<Option<F>>>>,
    tasks: Vec<(Arc<Task>, Waker)>,
    between: Box<dyn FnMut()>,
    next: u64,
}

#[derive(Default)]
struct Task {
    woken: AtomicBool,
    wakes: AtomicU64,
}

/// Of all callers but the first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub polls: u64,
    pub wakes: u64,
    pub calls: u64,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Nobody else writes: these are plain stores.
        self.woken.store(true, Relaxed);
        self.wakes.store(self.wakes.load(Relaxed) + 1, Relaxed);
    }
}

impl<S> Crowd<S, S::Future>
where
    S: Service<u64, Error: Debug>,
{
    /// `between` lets others do what the callers wait for.
    pub fn new(service: S, gate: Gated, most: usize, between: impl FnMut() + 'static) -> Self {
        let tasks = (0..=most).map(|_| {
            let task = Arc::new(Task::default());
            (task.clone(), Waker::from(task))
        });
        Self {
            service,
            gate,
            slots: (0..=most).map(|_| Box::pin(None)).collect(),
            tasks: tasks.collect(),
            between: Box::new(between),
            next: 0,
        }
    }

    /// A leader and so many followers; the backend wakes its caller so often, the last time with an answer.
    pub fn run(&mut self, followers: usize, wakes: usize) -> Counts {
        self.next += 1;
        self.gate.shut();
        let mut polls = 0;
        for caller in 0..=followers {
            let future = self.service.call(self.next);
            self.slots[caller].set(Some(future));
            self.tasks[caller].0.wakes.store(0, Relaxed);
            let over = self.poll(caller, &mut polls);
            assert!(!over, "the gate is shut");
        }
        for _ in 1..wakes {
            (self.between)();
            self.gate.knock();
            // Twice: some wake themselves for ever.
            for _ in 0..2 {
                let over = self.pass(followers, &mut polls);
                assert!(over == 0, "the gate is shut");
            }
        }
        (self.between)();
        self.gate.open();
        let mut left = followers + 1;
        while left > 0 {
            left -= self.pass(followers, &mut polls);
            if left > 0 {
                (self.between)();
            }
        }
        let tasks = &self.tasks[1..=followers];
        Counts {
            polls,
            wakes: tasks.iter().map(|task| task.0.wakes.load(Relaxed)).sum(),
            calls: self.gate.0.calls.load(Relaxed),
        }
    }

    /// Polls all who were woken; how many are over.
    fn pass(&mut self, followers: usize, polls: &mut u64) -> usize {
        let mut over = 0;
        for caller in 0..=followers {
            if self.tasks[caller].0.woken.load(Relaxed) && self.slots[caller].is_some() {
                over += usize::from(self.poll(caller, polls));
            }
        }
        over
    }

    fn poll(&mut self, caller: usize, polls: &mut u64) -> bool {
        let (task, waker) = &self.tasks[caller];
        task.woken.store(false, Relaxed);
        *polls += u64::from(caller > 0);
        let slot = &mut self.slots[caller];
        let future = slot.as_mut().as_pin_mut().expect("it is not over");
        match future.poll(&mut Context::from_waker(waker)) {
            Poll::Pending => false,
            Poll::Ready(answer) => {
                std::hint::black_box(answer.expect("an answer"));
                slot.set(None);
                true
            }
        }
    }
}

/// What followers cost.
#[derive(Debug, Clone)]
pub struct Followed {
    pub name: &'static str,
    /// Nanoseconds for each follower, over a leader alone, by how many there are.
    pub each: Vec<f64>,
    /// Of the most.
    pub allocations: f64,
    pub polls: f64,
    pub wakes: f64,
    pub calls: f64,
}

type Led = Box<dyn FnMut(usize, usize) -> Counts>;

/// Crowds that are measured in turn.
#[derive(Default)]
pub struct Crowds {
    names: Vec<&'static str>,
    runs: Vec<Led>,
}

impl Crowds {
    /// `between` lets others do what the callers wait for.
    pub fn add<S>(
        &mut self,
        name: &'static str,
        most: usize,
        between: impl FnMut() + 'static,
        layer: impl FnOnce(Gated) -> S,
    ) where
        S: Service<u64, Error: Debug> + 'static,
    {
        let gate = Gated::default();
        let mut crowd = Crowd::new(layer(gate.clone()), gate, most, between);
        self.names.push(name);
        self.runs.push(Box::new(move |followers, wakes| {
            crowd.run(followers, wakes)
        }));
    }

    pub fn walk(mut self, name: &str, followers: usize, times: usize) {
        let way = self.names.iter().position(|known| *known == name);
        let run = &mut self.runs[way.unwrap_or_else(|| panic!("one of {:?}", self.names))];
        (0..times).for_each(|_| _ = run(followers, 1));
    }

    /// About `work` followers each time.
    pub fn measure(
        mut self,
        rounds: usize,
        crowds: &[usize],
        wakes: usize,
        work: usize,
    ) -> Vec<Followed> {
        let ways = self.runs.len();
        let mut times = vec![vec![Vec::new(); crowds.len()]; ways];
        let mut last = vec![(0.0, Counts::default()); ways];
        for round in 0..rounds + 2 {
            for turn in 0..ways {
                let way = (round + turn) % ways;
                let run = &mut self.runs[way];
                let mut timed = |followers: usize, flights: usize| {
                    let start = cpu();
                    (0..flights).for_each(|_| _ = run(followers, wakes));
                    (cpu() - start).as_secs_f64() * 1e9 / flights as f64
                };
                for (size, &followers) in crowds.iter().enumerate() {
                    let flights = (work / followers).max(1);
                    let alone = timed(0, flights.max(work / 20));
                    let took = timed(followers, flights);
                    if round >= 2 {
                        times[way][size].push((took - alone) / followers as f64);
                    }
                }
                let before = allocations();
                let most = crowds[crowds.len() - 1];
                let counts = run(most, wakes);
                last[way] = ((allocations() - before) as f64 / most as f64, counts);
            }
        }
        let most = crowds[crowds.len() - 1] as f64;
        let all = self.names.iter().zip(times).zip(last);
        all.map(|((name, times), (allocations, counts))| Followed {
            name,
            each: times.into_iter().map(median).collect(),
            allocations,
            polls: counts.polls as f64 / most,
            wakes: counts.wakes as f64 / most,
            calls: counts.calls as f64,
        })
        .collect()
    }
}

/// Prints what followers cost.
pub fn print_followed(crowds: &[usize], rows: &[Followed]) {
    print!("| followers of one flight |");
    crowds.iter().for_each(|n| print!(" {n}, ns each |"));
    println!(" allocations each | polls each | wakes each | calls |");
    print!("|---|");
    crowds.iter().for_each(|_| print!("---:|"));
    println!("---:|---:|---:|---:|");
    for row in rows {
        print!("| {} |", row.name);
        row.each.iter().for_each(|ns| print!(" {ns:.0} |"));
        println!(
            " {:.2} | {:.2} | {:.2} | {:.0} |",
            row.allocations, row.polls, row.wakes, row.calls
        );
    }
    println!();
}
