//! A server of a known size, driven through a real layer under tokio's paused time.
//!
//! `size` workers behind a first-in-first-out run queue that no layer can see; requests arrive as a Poisson process
//! that does not care how the server fares; a client goes away after a second, and its work is done all the same.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::time::Instant;
use tower::util::BoxCloneService;
use tower::{BoxError, Service, ServiceExt};
use tower_flow::deadline::Deadline;
use tower_flow::priority::Priority;

/// The mean time a request needs.
pub const MEAN: f64 = 0.05;
/// How long a client waits.
pub const PATIENCE: f64 = 1.0;

/// How long requests need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Dist {
    /// Exponential.
    Exp,
    /// Within a fifth of the mean.
    Lowvar,
    /// Nine of ten take 20 ms on average, the tenth 320 ms.
    Bimodal,
    /// Log-normal with a coefficient of variation of 2.
    Lognormal,
    /// All the same.
    Constant,
}

impl Dist {
    pub const ALL: [Self; 5] = [
        Self::Exp,
        Self::Lowvar,
        Self::Bimodal,
        Self::Lognormal,
        Self::Constant,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Exp => "exp",
            Self::Lowvar => "lowvar",
            Self::Bimodal => "bimodal",
            Self::Lognormal => "lognormal",
            Self::Constant => "constant",
        }
    }

    fn draw(self, rng: &mut Rng) -> f64 {
        match self {
            Self::Exp => rng.exponential(MEAN),
            Self::Lowvar => MEAN * (0.8 + 0.4 * rng.uniform()),
            Self::Bimodal if rng.uniform() < 0.1 => rng.exponential(0.32),
            Self::Bimodal => rng.exponential(0.02),
            Self::Lognormal => {
                let sigma = 5f64.ln().sqrt();
                MEAN * (sigma * rng.normal() - sigma * sigma / 2.0).exp()
            }
            Self::Constant => MEAN,
        }
    }

    /// The 99th percentile of a request alone, in seconds.
    pub fn p99(self) -> f64 {
        let mut rng = Rng::new(99);
        let mut drawn: Vec<_> = (0..200_000).map(|_| self.draw(&mut rng)).collect();
        drawn.sort_by(f64::total_cmp);
        drawn[198_000]
    }
}

/// splitmix64: small, seedable, good enough.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.uniform()).ln()
    }

    fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }
}

/// A request: how long it needs, and what it says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub needs: f64,
    pub deadline: Deadline,
    pub priority: Priority,
}

/// What happens to the server and its clients.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    pub dist: Dist,
    pub size: usize,
    /// Offered load before `step_at`, and from then on; 1 is what the server can do.
    pub before: f64,
    pub load: f64,
    pub step_at: f64,
    pub until: f64,
    pub seed: u64,
    /// Between these moments only half of the workers are there.
    pub halved: Option<(f64, f64)>,
    /// Between these moments everything takes twice as long.
    pub slowed: Option<(f64, f64)>,
    /// Requests go through so many long-lived clones; 0 means a clone for each request.
    pub clones: usize,
    /// So many of all requests are critical.
    pub critical: f64,
}

impl Scenario {
    /// Ten seconds at half load, then `load` for `seconds`.
    pub fn step(dist: Dist, size: usize, load: f64, seed: u64, seconds: f64) -> Self {
        Self {
            dist,
            size,
            before: 0.5,
            load,
            step_at: 10.0,
            until: 10.0 + seconds,
            seed,
            halved: None,
            slowed: None,
            clones: 0,
            critical: 0.0,
        }
    }
}

/// What became of one request.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub arrived: f64,
    /// Seconds after it arrived; `None` when it was refused.
    pub latency: Option<f64>,
    pub critical: bool,
    /// How long it needed a worker, or would have.
    pub needs: f64,
}

pub type Policy = BoxCloneService<Job, (), BoxError>;

#[derive(Debug, Default)]
struct Server {
    queue: VecDeque<(f64, usize)>,
    busy: usize,
    /// By completion time: the bits of a positive float sort as the float does.
    running: BinaryHeap<Reverse<(u64, usize)>>,
    jobs: Vec<JobState>,
    free: Vec<usize>,
    /// Workers there are, and worker-seconds so far: spent on requests, and all there were.
    workers: usize,
    worked: f64,
    manned: f64,
}

#[derive(Debug, Default)]
struct JobState {
    done: bool,
    gone: bool,
    waker: Option<Waker>,
}

thread_local!(static SERVER: RefCell<Server> = RefCell::default());

/// Worker-seconds so far: those spent on requests, and all there were. What a reading of the processor's use is made of.
pub fn worked() -> (f64, f64) {
    SERVER.with_borrow(|server| (server.worked, server.manned))
}

/// The server as a service.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

impl Service<Job> for Machine {
    type Response = ();
    type Error = BoxError;
    type Future = Running;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, job: Job) -> Running {
        SERVER.with_borrow_mut(|server| {
            let index = server.free.pop().unwrap_or_else(|| {
                server.jobs.push(JobState::default());
                server.jobs.len() - 1
            });
            server.jobs[index] = JobState::default();
            server.queue.push_back((job.needs, index));
            Running(index)
        })
    }
}

/// Done when the server is.
#[derive(Debug)]
pub struct Running(usize);

impl Future for Running {
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        SERVER.with_borrow_mut(|server| {
            let job = &mut server.jobs[self.0];
            if job.done {
                return Poll::Ready(Ok(()));
            }
            job.waker = Some(cx.waker().clone());
            Poll::Pending
        })
    }
}

impl Drop for Running {
    /// The client is gone; the work is not.
    fn drop(&mut self) {
        SERVER.with_borrow_mut(|server| {
            let job = &mut server.jobs[self.0];
            job.gone = true;
            if job.done {
                server.free.push(self.0);
            }
        });
    }
}

struct Flag {
    index: usize,
    ready: Arc<Mutex<Vec<usize>>>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.ready.lock().expect("no panics here").push(self.index);
    }
}

struct Client {
    arrived: f64,
    needs: f64,
    future: Pin<Box<dyn Future<Output = Result<(), BoxError>>>>,
    critical: bool,
    waker: Waker,
}

/// Runs a scenario against a policy: every request's end, in no order.
pub fn run(scenario: Scenario, policy: impl FnOnce() -> Policy) -> Vec<End> {
    watched(scenario, policy, |_| ())
}

/// As [`run`], with somebody who looks on after every event.
pub fn watched(
    scenario: Scenario,
    policy: impl FnOnce() -> Policy,
    watch: impl FnMut(f64),
) -> Vec<End> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    SERVER.set(Server {
        workers: scenario.size,
        ..Server::default()
    });
    runtime.block_on(async { Driver::new(scenario, policy()).drive(watch).await })
}

struct Driver {
    scenario: Scenario,
    policy: Policy,
    clones: Vec<Policy>,
    start: Instant,
    rng: Rng,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    ready: Arc<Mutex<Vec<usize>>>,
    /// Who leaves when: clients leave in the order they came.
    leaving: VecDeque<(f64, usize, u64)>,
    generation: Vec<u64>,
    ends: Vec<End>,
}

impl Driver {
    fn new(scenario: Scenario, policy: Policy) -> Self {
        Self {
            clones: (0..scenario.clones).map(|_| policy.clone()).collect(),
            policy,
            start: Instant::now(),
            rng: Rng::new(scenario.seed),
            scenario,
            clients: Vec::new(),
            free: Vec::new(),
            ready: Arc::default(),
            leaving: VecDeque::new(),
            generation: Vec::new(),
            ends: Vec::new(),
        }
    }

    async fn drive(mut self, mut watch: impl FnMut(f64)) -> Vec<End> {
        let size = self.scenario.size as f64;
        let mut now = 0.0f64;
        let mut arrival = 0.0;
        // Not at the very moment a layer was made.
        arrival += self.rng.exponential(MEAN / size / self.scenario.before);
        loop {
            let done = SERVER.with_borrow(|server| {
                let next = server.running.peek();
                next.map(|Reverse((at, _))| f64::from_bits(*at))
            });
            let leaves = self.leaving.front().map(|(at, ..)| *at);
            let arrives = (arrival < self.scenario.until).then_some(arrival);
            if leaves.is_none() && arrives.is_none() {
                // What is left on the server is nobody's.
                return self.ends;
            }
            let next = [done, leaves, arrives].into_iter().flatten();
            let Some(next) = next.min_by(f64::total_cmp) else {
                return self.ends;
            };
            if next > now {
                SERVER.with_borrow_mut(|server| {
                    server.worked += server.busy as f64 * (next - now);
                    server.manned += server.workers.max(server.busy) as f64 * (next - now);
                });
                let to = self.start + Duration::from_secs_f64(next);
                tokio::time::advance(to.saturating_duration_since(Instant::now())).await;
                now = next;
            }
            if done == Some(next) {
                self.complete();
            } else if leaves == Some(next) {
                self.leave();
            } else {
                self.arrive(now);
                let load = match now < self.scenario.step_at {
                    true => self.scenario.before,
                    false => self.scenario.load,
                };
                arrival += self.rng.exponential(MEAN / size / load);
            }
            self.settle(now);
            watch(now);
        }
    }

    fn arrive(&mut self, now: f64) {
        let deadline = Instant::now() + Duration::from_secs_f64(PATIENCE);
        let critical = self.rng.uniform() < self.scenario.critical;
        let job = Job {
            needs: self.scenario.dist.draw(&mut self.rng),
            deadline: Deadline::at(deadline),
            priority: match critical {
                true => Priority::Critical,
                false => Priority::Sheddable,
            },
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.generation.push(0);
            self.clients.len() - 1
        });
        self.generation[index] += 1;
        let waker = Waker::from(Arc::new(Flag {
            index,
            ready: self.ready.clone(),
        }));
        let future: Pin<Box<dyn Future<Output = _>>> = if self.clones.is_empty() {
            Box::pin(self.policy.clone().oneshot(job))
        } else {
            let owner = (self.rng.next() % self.clones.len() as u64) as usize;
            let clone = &mut self.clones[owner];
            match clone.poll_ready(&mut Context::from_waker(&waker)) {
                Poll::Ready(Ok(())) => Box::pin(clone.call(job)),
                // A client with nothing but this clone has nowhere to wait.
                _ => Box::pin(std::future::ready(Err("not ready".into()))),
            }
        };
        self.clients[index] = Some(Client {
            arrived: now,
            needs: job.needs,
            future,
            critical,
            waker,
        });
        self.leaving
            .push_back((now + PATIENCE, index, self.generation[index]));
        self.ready.lock().expect("no panics here").push(index);
    }

    fn leave(&mut self) {
        let Some((_, index, generation)) = self.leaving.pop_front() else {
            return;
        };
        if self.generation[index] == generation
            && let Some(client) = self.clients[index].take()
        {
            // A late answer is no answer.
            self.end(index, &client, Some(f64::INFINITY));
        }
    }

    fn end(&mut self, index: usize, client: &Client, latency: Option<f64>) {
        self.ends.push(End {
            arrived: client.arrived,
            latency,
            critical: client.critical,
            needs: client.needs,
        });
        self.free.push(index);
    }

    fn complete(&mut self) {
        let waker = SERVER.with_borrow_mut(|server| {
            let Reverse((_, index)) = server.running.pop()?;
            server.busy -= 1;
            let job = &mut server.jobs[index];
            job.done = true;
            if job.gone {
                server.free.push(index);
                return None;
            }
            server.jobs[index].waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Polls whoever was woken, and gives free workers something to do.
    fn settle(&mut self, now: f64) {
        loop {
            let Some(index) = self.ready.lock().expect("no panics here").pop() else {
                break;
            };
            let Some(client) = &mut self.clients[index] else {
                continue;
            };
            let waker = client.waker.clone();
            let polled = client
                .future
                .as_mut()
                .poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(result) = polled
                && let Some(client) = self.clients[index].take()
            {
                let latency = result.is_ok().then_some(now - client.arrived);
                self.end(index, &client, latency);
            }
        }
        let within =
            |span: Option<(f64, f64)>| span.is_some_and(|(from, to)| (from..to).contains(&now));
        let workers = match within(self.scenario.halved) {
            true => self.scenario.size / 2,
            false => self.scenario.size,
        };
        let slower = if within(self.scenario.slowed) {
            2.0
        } else {
            1.0
        };
        SERVER.with_borrow_mut(|server| {
            server.workers = workers;
            while server.busy < workers
                && let Some((needs, index)) = server.queue.pop_front()
            {
                server.busy += 1;
                let done = (now + needs * slower).to_bits();
                server.running.push(Reverse((done, index)));
            }
        });
    }
}

/// How a policy fared between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub struct Score {
    /// Answers in time, as a part of what the server can do.
    pub goodput: f64,
    /// The same, as a part of what the server could do with the requests that happened to come.
    pub realised: f64,
    /// Of those who were let in, in milliseconds; clients that went away count as a second.
    pub p50: f64,
    pub p99: f64,
    /// Percent of all requests.
    pub rejected: f64,
    /// Answers in time, as a part of what was offered.
    pub served: f64,
}

pub fn score(ends: &[End], scenario: &Scenario, from: f64, to: f64) -> Score {
    let asked: Vec<_> = ends
        .iter()
        .filter(|end| (from..to).contains(&end.arrived))
        .collect();
    let mut latencies: Vec<_> = asked
        .iter()
        .filter_map(|end| end.latency)
        .map(|latency| latency.min(PATIENCE))
        .collect();
    latencies.sort_by(f64::total_cmp);
    let good = latencies
        .iter()
        .filter(|latency| **latency < PATIENCE)
        .count() as f64;
    let rejected = asked.iter().filter(|end| end.latency.is_none()).count() as f64;
    let at = |part: f64| {
        let rank = (latencies.len() as f64 * part) as usize;
        latencies
            .get(rank)
            .map_or(f64::NAN, |latency| latency * 1e3)
    };
    let capacity = scenario.size as f64 / MEAN * (to - from);
    Score {
        goodput: good / capacity,
        realised: good / capacity * needed(ends, from, to) / MEAN,
        p50: at(0.5),
        p99: at(0.99),
        rejected: 100.0 * rejected / asked.len().max(1) as f64,
        served: good / asked.len().max(1) as f64,
    }
}

/// How long those who were let in needed a worker on average. In a run of heavy tails that is not [`MEAN`], and what the
/// server can do differs by as much.
pub fn needed(ends: &[End], from: f64, to: f64) -> f64 {
    let here = ends.iter().filter(|end| (from..to).contains(&end.arrived));
    let taken = here.filter(|end| end.latency.is_some());
    let (sum, count) = taken.fold((0.0, 0.0), |(sum, count), end| {
        (sum + end.needs, count + 1.0)
    });
    sum / count
}

/// Seconds from `from` until answers in time come at 90 % of `want` (a part of what the server can do) for a second
/// and a half.
pub fn recovery(ends: &[End], scenario: &Scenario, from: f64, to: f64, want: f64) -> f64 {
    let mut bins = vec![0.0; (to * 2.0) as usize + 8];
    for end in ends {
        if let Some(latency) = end.latency.filter(|latency| *latency < PATIENCE) {
            let bin = ((end.arrived + latency) * 2.0) as usize;
            if let Some(bin) = bins.get_mut(bin) {
                *bin += 2.0 * MEAN / scenario.size as f64;
            }
        }
    }
    let last = (to * 2.0) as usize;
    let mean = |bins: &[f64]| bins.iter().sum::<f64>() / bins.len() as f64;
    let first = (from * 2.0) as usize;
    (first..last - 3)
        .find(|bin| {
            mean(&bins[*bin..bin + 3]) >= 0.9 * want && mean(&bins[*bin..last]) >= 0.9 * want
        })
        .map_or(f64::INFINITY, |bin| bin as f64 / 2.0 - from)
}
