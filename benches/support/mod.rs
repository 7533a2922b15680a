//! What the benches use: a counting allocator, a gRPC service in memory, and a loop that drives calls to their end.

#![allow(dead_code)] // Each of them uses a part.

pub mod batch;
pub mod checkout;
pub mod coalesce;
pub mod plain;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use tower_service::Service;

/// Counts the allocations of each thread.
pub struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static HELD: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: all work is done by the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        HELD.set(HELD.get() + layout.size() as i64);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HELD.set(HELD.get() - layout.size() as i64);
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// How often the calling thread has allocated.
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// The bytes the calling thread has allocated, less those it has freed.
pub fn held() -> i64 {
    HELD.get()
}

/// A unary gRPC answer: a message of 16 bytes and trailers.
pub struct Answer(u8);

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 += 1;
        Poll::Ready(match self.0 {
            1 => Some(Ok(Frame::data(Bytes::from_static(
                b"\0\0\0\0\x10sixteen bytes ok",
            )))),
            2 => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            _ => None,
        })
    }
}

/// A unary gRPC question, whose message the service reads.
#[derive(Clone)]
pub struct Question(bool);

impl Body for Question {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(std::mem::take(&mut self.0).then(|| {
            Ok(Frame::data(Bytes::from_static(
                b"\0\0\0\0\x10sixteen bytes ok",
            )))
        }))
    }
}

/// Reads its request and answers at once.
#[derive(Clone)]
pub struct Echo;

impl<B: Body + Unpin> Service<Request<B>> for Echo {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Answer>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<B>) -> Self::Future {
        drain(req.into_body());
        let mut response = Response::new(Answer(0));
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        std::future::ready(Ok(response))
    }
}

fn drain<B: Body + Unpin>(mut body: B) {
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut cx) {
        black_box(frame.is_ok());
    }
}

/// A request for one of 21 methods, as hyper hands it to a server.
pub fn requests() -> Vec<Request<Question>> {
    (0..21)
        .map(|n| {
            let mut req = Request::new(Question(true));
            *req.method_mut() = http::Method::POST;
            *req.uri_mut() = format!("http://localhost/bench.Service/Method{n}")
                .parse()
                .expect("a path");
            let headers = req.headers_mut();
            headers.insert(
                http::header::CONTENT_TYPE,
                HeaderValue::from_static("application/grpc"),
            );
            headers.insert("te", HeaderValue::from_static("trailers"));
            headers.insert("user-agent", HeaderValue::from_static("tonic/0.14"));
            req
        })
        .collect()
}

/// One call, driven until its body is over.
pub fn call<S, B>(service: &mut S, req: Request<Question>)
where
    S: Service<Request<Question>, Response = Response<B>, Error = Infallible>,
    B: Body + Unpin,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut future = std::pin::pin!(service.call(req));
    let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else {
        panic!("the service answers at once")
    };
    drain(response.into_body());
}

/// A way to answer one request.
pub struct Variant {
    pub name: &'static str,
    pub run: Box<dyn FnMut(&[Request<Question>])>,
}

impl Variant {
    /// The same service for every call.
    pub fn reused<S, B>(name: &'static str, mut service: S) -> Self
    where
        S: Service<Request<Question>, Response = Response<B>, Error = Infallible> + 'static,
        B: Body + Unpin,
    {
        let run = move |requests: &[Request<Question>]| {
            for req in requests {
                call(&mut service, req.clone());
            }
        };
        Self {
            name,
            run: Box::new(run),
        }
    }

    /// A clone of it for every call, as servers do.
    pub fn cloned<S, B>(name: &'static str, service: S) -> Self
    where
        S: Service<Request<Question>, Response = Response<B>, Error = Infallible> + Clone + 'static,
        B: Body + Unpin,
    {
        let run = move |requests: &[Request<Question>]| {
            for req in requests {
                call(&mut service.clone(), req.clone());
            }
        };
        Self {
            name,
            run: Box::new(run),
        }
    }
}

/// What a variant costs.
#[derive(Clone, Copy)]
pub struct Cost {
    pub median: f64,
    pub least: f64,
    pub allocations: f64,
}

/// Runs the variants in turn, again and again, so that a machine that slows down slows down all of them.
pub fn measure(variants: &mut [Variant], rounds: usize, calls: usize) -> Vec<Cost> {
    let requests: Vec<_> = requests().into_iter().cycle().take(calls).collect();
    let mut times = vec![Vec::with_capacity(rounds); variants.len()];
    let mut allocations = vec![0.0; variants.len()];
    for round in 0..rounds + 2 {
        for (index, variant) in variants.iter_mut().enumerate() {
            let before = ALLOCATIONS.get();
            let start = Instant::now();
            (variant.run)(&requests);
            let took = start.elapsed().as_secs_f64() * 1e9 / calls as f64;
            // The first two rounds warm up.
            if round >= 2 {
                times[index].push(took);
                allocations[index] = (ALLOCATIONS.get() - before) as f64 / calls as f64;
            }
        }
    }
    times
        .into_iter()
        .zip(allocations)
        .map(|(mut times, allocations)| {
            times.sort_by(f64::total_cmp);
            Cost {
                median: times[times.len() / 2],
                least: times[0],
                allocations,
            }
        })
        .collect()
}

/// How many rounds: 60, or what `TOWER_FLOW_ROUNDS` says.
pub fn rounds() -> usize {
    std::env::var("TOWER_FLOW_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60)
}

/// The CPU time of the calling thread.
#[cfg(target_os = "linux")]
pub fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Elsewhere the time that passes has to do.
#[cfg(not(target_os = "linux"))]
pub fn cpu() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}

/// The processor time of the process.
pub fn process() -> Duration {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
    #[cfg(not(target_os = "linux"))]
    cpu()
}

/// xorshift64*, from 0 to 1.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f64 {
        for (left, by) in [(false, 12), (true, 25), (false, 27)] {
            self.0 ^= if left { self.0 << by } else { self.0 >> by };
        }
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Whether a target is reached.
pub fn yes(reached: bool) -> &'static str {
    if reached { "yes" } else { "no" }
}

/// Fails when it is far beyond its bound: by a factor of 3, or of `TOWER_FLOW_SLACK`, since machines may be busy.
pub fn bounded(what: &str, is: f64, bound: f64) {
    let slack =
        std::env::var("TOWER_FLOW_SLACK").map_or(3.0, |slack| slack.parse().expect("a number"));
    assert!(
        is <= bound * slack,
        "{what}: {is:.2} is more than {slack} times {bound}"
    );
}

/// The one in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Keeps the thread on the `n`th processor: two workers on one would not contend.
pub fn pin(n: usize) {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let allowed = sched_getaffinity(None).expect("the thread's processors");
        let mut all = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        if let Some(cpu) = all.nth(n) {
            let mut one = CpuSet::new();
            one.set(cpu);
            sched_setaffinity(None, &one).expect("an allowed processor");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = n;
}

/// Runs `work` on `threads` threads at once and returns the nanoseconds each took for one of `times`.
pub fn on(threads: usize, times: usize, work: impl Fn() + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let took = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    pin(worker);
                    barrier.wait();
                    let start = Instant::now();
                    work();
                    start.elapsed().as_secs_f64()
                })
            })
            .collect();
        let took = workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker only calls"));
        took.fold(0.0, f64::max)
    });
    took * 1e9 / times as f64
}
