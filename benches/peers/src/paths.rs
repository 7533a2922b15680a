//! What a request costs on each path through shed: admitted, queued, refused.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt::Debug;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower_flow::error::Reason;
use tower_flow::shed::{Queue, ShedLayer};
use tower_flow::{BoxError, Rejection};
use tower_layer::{Layer, Stack};
use tower_service::Service;

use crate::shed::timed;
use crate::support;
use crate::support::plain::{Bare, Hand};

/// So few that most slices see nobody else on the processor.
const CALLS: usize = 1_000;
/// Never reached.
const LIMIT: usize = 1 << 20;
/// Places in a full queue: what the default has for a limit of 1.
const PLACES: usize = 64;

type Run = Box<dyn FnMut(usize)>;

/// One request after the other on the same path. It costs what `less` does not: the path that does the same and is
/// not queued or refused.
struct Path {
    name: &'static str,
    less: Option<&'static str>,
    run: Run,
}

/// Walks one path, for callgrind.
pub fn walk(name: &str, calls: usize) {
    let mut paths = paths();
    let path = paths.iter_mut().find(|path| path.name == name);
    (path.expect("a path of this name").run)(calls);
}

pub fn print(rounds: usize) {
    let mut paths = paths();
    let mut times = vec![Vec::with_capacity(rounds); paths.len()];
    let mut allocated = vec![0.0; paths.len()];
    for round in 0..rounds + 2 {
        for (index, path) in paths.iter_mut().enumerate() {
            let before = support::allocations();
            let start = Instant::now();
            (path.run)(CALLS);
            let took = start.elapsed().as_secs_f64() * 1e9 / CALLS as f64;
            // The first two rounds warm up.
            if round >= 2 {
                times[index].push(took);
                allocated[index] = (support::allocations() - before) as f64 / CALLS as f64;
            }
        }
    }
    println!("## One request on each path, in memory\n");
    println!(
        "Nanoseconds, lower quartile of {rounds} rounds of {CALLS} in turn. Queued: a request waits for one slot, the \
         one that holds it completes, the waiter is woken and polled to its end, less what the same two cost with two \
         slots. Refused: called and polled to its error, less the making of that error.\n"
    );
    println!("| path | whole | of its own | allocations of its own |");
    println!("|---|---:|---:|---:|");
    let costs: Vec<_> = times.into_iter().map(quartile).zip(allocated).collect();
    for (path, (time, allocations)) in paths.iter().zip(&costs) {
        let less = paths.iter().position(|other| Some(other.name) == path.less);
        let less = less.map_or((0.0, 0.0), |less| costs[less]);
        println!(
            "| {} | {time:.0} | {:.0} | {:.1} |",
            path.name,
            time - less.0,
            allocations - less.1,
        );
    }
}

/// The lower quartile: others on the machine only ever add.
fn quartile(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

fn paths() -> Vec<Path> {
    let path = |name, run| Path {
        name,
        less: None,
        run,
    };
    let over = |name, less, run| Path {
        name,
        less: Some(less),
        run,
    };
    let tower = |limit| Stack::new(ConcurrencyLimitLayer::new(limit), LoadShedLayer::new());
    vec![
        path("bare", reused(Bare)),
        over("floor", "bare", reused(Hand::new(0))),
        over("floor-adaptive", "bare", reused(Hand::new(2))),
        over("fixed", "bare", reused(ShedLayer::fixed(LIMIT).layer(Bare))),
        over(
            "fixed-cloned",
            "bare",
            cloned(ShedLayer::fixed(LIMIT).layer(Bare)),
        ),
        over(
            "adaptive",
            "bare",
            reused(ShedLayer::adaptive().layer(Bare)),
        ),
        over(
            "adaptive-cloned",
            "bare",
            cloned(ShedLayer::adaptive().layer(Bare)),
        ),
        over("adaptive-timed", "bare", reused(timed().layer(Bare))),
        over("tower", "bare", reused(tower(LIMIT).layer(Bare))),
        path("two-slots", two(2, runtime(false))),
        over("queued", "two-slots", two(1, runtime(false))),
        path("two-slots-io", two(2, runtime(true))),
        over("queued-io", "two-slots-io", two(1, runtime(true))),
        over("queued-io-timers", "two-slots-io", two(1, ticking())),
        path("tower-two-slots", tower_two(2)),
        over("tower-queued", "tower-two-slots", tower_two(1)),
        path("error", errors(Reason::Limit)),
        over("refused", "error", refused(Queue::none())),
        path("error-full", errors(Reason::QueueFull)),
        over(
            "refused-full",
            "error-full",
            refused(Queue::fifo().max(PLACES)),
        ),
        over("turned-out", "error-full", turned_out()),
        path("tower-refused", tower_refused(tower(1))),
    ]
}

// ===== admitted =====

fn reused<S>(mut service: S) -> Run
where
    S: Service<u64, Response = u64, Error: Debug> + 'static,
{
    Box::new(move |calls| (0..calls).for_each(|n| call(&mut service, n)))
}

fn cloned<S>(service: S) -> Run
where
    S: Service<u64, Response = u64, Error: Debug> + Clone + 'static,
{
    Box::new(move |calls| (0..calls).for_each(|n| call(&mut service.clone(), n)))
}

fn call<S>(service: &mut S, n: usize)
where
    S: Service<u64, Response = u64, Error: Debug>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let answer = pin!(service.call(n as u64)).poll(&mut cx);
    black_box(answer.is_ready());
}

// ===== queued =====

/// Runs until it is told to end.
#[derive(Clone, Default)]
struct Gated(Rc<Cell<bool>>);

struct Running(Rc<Cell<bool>>, u64);

impl Service<u64> for Gated {
    type Response = u64;
    type Error = Infallible;
    type Future = Running;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: u64) -> Running {
        Running(self.0.clone(), black_box(req))
    }
}

impl Future for Running {
    type Output = Result<u64, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.get() {
            true => Poll::Ready(Ok(self.1)),
            false => Poll::Pending,
        }
    }
}

/// Notes that it was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// Two requests at once at this limit; the second is queued where it is 1.
fn two(limit: usize, runtime: Runtime) -> Run {
    let inner = Gated::default();
    let end = inner.0.clone();
    let mut service = ShedLayer::fixed(limit).layer(inner);
    let woken = Arc::new(Woken::default());
    Box::new(move |calls| {
        let _entered = runtime.enter();
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        for n in 0..calls as u64 {
            end.set(false);
            let mut first = pin!(service.call(n));
            let mut second = pin!(service.call(n));
            assert!(first.as_mut().poll(&mut cx).is_pending());
            assert!(second.as_mut().poll(&mut cx).is_pending());
            end.set(true);
            assert!(first.as_mut().poll(&mut cx).is_ready());
            assert_eq!(woken.0.swap(false, Relaxed), limit == 1);
            assert!(second.as_mut().poll(&mut cx).is_ready());
        }
    })
}

/// The same through tower's own limit, whose waiters wait in `poll_ready` and without a timer.
fn tower_two(limit: usize) -> Run {
    let inner = Gated::default();
    let end = inner.0.clone();
    let service = ConcurrencyLimitLayer::new(limit).layer(inner);
    let woken = Arc::new(Woken::default());
    Box::new(move |calls| {
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let (mut one, mut other) = (service.clone(), service.clone());
        for n in 0..calls as u64 {
            end.set(false);
            assert!(one.poll_ready(&mut cx).is_ready());
            {
                let mut first = pin!(one.call(n));
                assert_eq!(other.poll_ready(&mut cx).is_pending(), limit == 1);
                assert!(first.as_mut().poll(&mut cx).is_pending());
                end.set(true);
                assert!(first.as_mut().poll(&mut cx).is_ready());
                // Its permit ends when it is dropped.
            }
            assert_eq!(woken.0.swap(false, Relaxed), limit == 1);
            assert!(other.poll_ready(&mut cx).is_ready());
            assert!(pin!(other.call(n)).poll(&mut cx).is_ready());
        }
    })
}

/// A runtime to enter: with a timer alone, or with its IO too, whose sleep a nearer timer ends by a system call.
fn runtime(io: bool) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    if io {
        builder.enable_io();
    }
    builder.enable_time().build().expect("a runtime")
}

/// One that has slept since a timer was set which is due before any waiter's.
fn ticking() -> Runtime {
    let runtime = runtime(true);
    runtime.block_on(async {
        tokio::spawn(tokio::time::sleep(Duration::from_millis(900)));
        tokio::time::sleep(Duration::from_millis(2)).await;
    });
    runtime
}

// ===== refused =====

/// Makes the error that a refusal for this reason is, and drops it.
fn errors(reason: Reason) -> Run {
    Box::new(move |calls| {
        for n in 0..calls as u64 {
            let [busy, limit, waiting, places] = black_box([1usize, 1, PLACES, PLACES]);
            let message = match reason {
                Reason::QueueFull => format!(
                    "{busy} of {limit} slots busy and {waiting} of {places} waiting; retry later or raise the limit"
                ),
                _ => format!("{busy} of {limit} slots busy; retry later or raise the limit"),
            };
            let rejection = Rejection::new("shed", reason, message)
                .retry_after(Duration::from_nanos(black_box(n)));
            drop(black_box(BoxError::from(rejection)));
        }
    })
}

/// Every request is refused at once: the slot is busy and every place taken.
fn refused(queue: Queue) -> Run {
    let mut service = ShedLayer::fixed(1).queue(queue).layer(Gated::default());
    let runtime = runtime(false);
    let mut held = Vec::new();
    loop {
        let _entered = runtime.enter();
        let mut cx = Context::from_waker(Waker::noop());
        let mut future = Box::pin(service.call(0));
        match future.as_mut().poll(&mut cx) {
            Poll::Pending => held.push(future),
            Poll::Ready(answer) => break assert!(answer.is_err()),
        }
    }
    Box::new(move |calls| {
        let _held = &held;
        let mut cx = Context::from_waker(Waker::noop());
        for n in 0..calls as u64 {
            let answer = pin!(service.call(n)).poll(&mut cx);
            assert!(matches!(answer, Poll::Ready(Err(_))));
        }
    })
}

/// Every request finds the default queue full and turns the oldest out of it, who learns of it.
fn turned_out() -> Run {
    let mut service = ShedLayer::fixed(1).layer(Gated::default());
    let runtime = runtime(false);
    let mut running = Box::pin(service.call(0));
    let mut places: Vec<_> = (0..=PLACES).map(|_| Box::pin(None)).collect();
    let mut next = 0;
    let woken = Arc::new(Woken::default());
    Box::new(move |calls| {
        let _entered = runtime.enter();
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(running.as_mut().poll(&mut cx).is_pending());
        for n in 0..calls as u64 {
            places[next].set(Some(service.call(n)));
            let newest = places[next].as_mut().as_pin_mut().expect("it was set");
            assert!(newest.poll(&mut cx).is_pending());
            next = (next + 1) % places.len();
            if let Some(oldest) = places[next].as_mut().as_pin_mut() {
                assert!(woken.0.swap(false, Relaxed));
                assert!(matches!(oldest.poll(&mut cx), Poll::Ready(Err(_))));
                places[next].set(None);
            }
        }
    })
}

/// tower's own, whole: its error is a unit struct, boxed.
fn tower_refused(layer: Stack<ConcurrencyLimitLayer, LoadShedLayer>) -> Run {
    let service = layer.layer(Gated::default());
    let mut cx = Context::from_waker(Waker::noop());
    let mut first = service.clone();
    assert!(first.poll_ready(&mut cx).is_ready());
    let held = first.call(0);
    let mut service = service.clone();
    Box::new(move |calls| {
        let _held = &held;
        let mut cx = Context::from_waker(Waker::noop());
        for n in 0..calls as u64 {
            assert!(service.poll_ready(&mut cx).is_ready());
            let answer = pin!(service.call(n)).poll(&mut cx);
            assert!(matches!(answer, Poll::Ready(Err(_))));
        }
    })
}
