//! Shedding load: the fifteen tests of the layer's contract, numbered, and what else can go wrong.

mod overload;
mod protocol;
mod signals;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, Service, ServiceBuilder};
use tower_flow::error::Reason;
use tower_flow::priority::Priority;
use tower_flow::shed::limit::{Aimd, Limit, Next, Settable, Step, Window};
use tower_flow::shed::{Ask, Queue, ShedHandle, ShedLayer, Verdict};
use tower_flow::{BoxError, Rejection};

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A service whose calls end when the test says so.
#[derive(Debug, Clone, Default)]
pub struct Desk(Arc<Mutex<VecDeque<oneshot::Sender<Result<(), BoxError>>>>>);

impl Desk {
    /// How many calls reached it and have not ended. Those whose caller went away count until they are ended.
    pub fn open(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Ends the oldest call.
    pub fn end(&self, result: Result<(), BoxError>) {
        let call = self.0.lock().unwrap().pop_front().expect("a call is open");
        let _ = call.send(result);
    }
}

impl<Req> Service<Req> for Desk {
    type Response = ();
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Req) -> Self::Future {
        let (end, ended) = oneshot::channel();
        self.0.lock().unwrap().push_back(end);
        Box::pin(async move { ended.await.unwrap_or_else(|gone| Err(gone.into())) })
    }
}

pub fn refused<T: std::fmt::Debug>(polled: Poll<Result<T, BoxError>>) -> Rejection {
    let Poll::Ready(Err(error)) = polled else {
        panic!("not refused: {polled:?}")
    };
    let rejection = Rejection::find(error.as_ref()).unwrap_or_else(|| panic!("{error}"));
    assert_eq!(rejection.layer(), "shed");
    rejection.clone()
}

fn no_queue(limit: usize) -> ShedLayer {
    ShedLayer::fixed(limit).queue(Queue::none())
}

pub fn ended(handle: &ShedHandle, verdict: Verdict) -> u64 {
    handle.snapshot().ended[verdict as usize].1
}

// ===== 1 =====

#[tokio::test]
async fn a_thousand_clones_that_were_polled_ready_and_never_called_take_no_capacity() {
    let desk = Desk::default();
    let service = no_queue(4).layer(desk.clone());
    let mut idle: Vec<_> = (0..1_000).map(|_| service.clone()).collect();
    for clone in &mut idle {
        assert_ready_ok!(Service::<()>::poll_ready(clone, &mut cx()));
    }
    let mut running: Vec<_> = (0..4)
        .map(|_| task::spawn(service.clone().call(())))
        .collect();
    for call in &mut running {
        assert_pending!(call.poll());
    }
    assert_eq!(desk.open(), 4);

    // tower's own limit gives its slots to whoever polls first, called or not.
    let mut tower = tower::limit::ConcurrencyLimit::new(Desk::default(), 4);
    let mut idle: Vec<_> = (0..4).map(|_| tower.clone()).collect();
    for clone in &mut idle {
        assert_ready_ok!(Service::<()>::poll_ready(clone, &mut cx()));
    }
    assert!(Service::<()>::poll_ready(&mut tower, &mut cx()).is_pending());
}

// ===== 2 =====

#[tokio::test]
async fn a_clone_that_was_shed_and_stays_idle_takes_no_slot_from_those_who_call() {
    let desk = Desk::default();
    let layer = no_queue(1);
    let service = layer.layer(desk.clone());
    let mut first = task::spawn(service.clone().call(()));
    assert_pending!(first.poll());
    let mut idle: Vec<_> = (0..10).map(|_| service.clone()).collect();
    for clone in &mut idle {
        refused(task::spawn(clone.call(())).poll());
    }
    desk.end(Ok(()));
    assert_ready_ok!(first.poll());
    assert_pending!(task::spawn(service.clone().call(())).poll());
    assert_eq!(desk.open(), 1, "an active caller got the slot");

    // tower: the slot goes to the idle clone that was shed, and everybody else is shed too.
    let desk = Desk::default();
    let tower = ServiceBuilder::new().load_shed().concurrency_limit(1);
    let mut service = tower.service(desk.clone());
    assert_ready_ok!(Service::<()>::poll_ready(&mut service, &mut cx()));
    let mut first = task::spawn(service.call(()));
    assert_pending!(first.poll());
    let mut idle = service.clone();
    assert_ready_ok!(Service::<()>::poll_ready(&mut idle, &mut cx()));
    assert!(task::spawn(idle.call(())).poll().is_ready());
    desk.end(Ok(()));
    assert_ready_ok!(first.poll());
    drop(first);
    let mut active = service.clone();
    assert_ready_ok!(Service::<()>::poll_ready(&mut active, &mut cx()));
    let shed = task::spawn(active.call(())).poll();
    assert!(
        matches!(shed, Poll::Ready(Err(_))),
        "shed with nothing running"
    );
}

// ===== 3 =====

#[tokio::test]
async fn an_exhausted_coop_budget_sheds_nobody_while_slots_are_free() {
    let service = no_queue(4).layer(Desk::default());
    let let_in = tokio::spawn(std::future::poll_fn(move |cx| {
        // Spends the task's budget: from some poll on, everything of tokio's answers Pending.
        let semaphore = tokio::sync::Semaphore::new(1);
        let spent = (0..1_000).any(|_| {
            let mut acquire = std::pin::pin!(semaphore.acquire());
            acquire.as_mut().poll(cx).is_pending()
        });
        assert!(spent, "a semaphore with a free permit says Pending");
        let mut service = service.clone();
        assert_ready_ok!(Service::<()>::poll_ready(&mut service, cx));
        Poll::Ready(Box::pin(service.call(())).as_mut().poll(cx).is_pending())
    }));
    assert!(let_in.await.unwrap());
}

// ===== 4 =====

#[tokio::test]
async fn a_future_that_is_done_and_not_dropped_holds_nothing() {
    let desk = Desk::default();
    let layer = no_queue(1);
    let handle = layer.handle();
    let service = layer.layer(desk.clone());
    let mut done = task::spawn(service.clone().call(()));
    assert_pending!(done.poll());
    desk.end(Ok(()));
    assert_ready_ok!(done.poll());
    assert_eq!(handle.snapshot().in_flight, 0);
    assert_pending!(task::spawn(service.clone().call(())).poll());

    // tower keeps the slot until the future is dropped.
    let desk = Desk::default();
    let mut tower = tower::limit::ConcurrencyLimit::new(desk.clone(), 1);
    assert_ready_ok!(Service::<()>::poll_ready(&mut tower, &mut cx()));
    let mut done_too = task::spawn(tower.call(()));
    assert_pending!(done_too.poll());
    desk.end(Ok(()));
    assert_ready_ok!(done_too.poll());
    assert!(Service::<()>::poll_ready(&mut tower, &mut cx()).is_pending());
    drop((done, done_too));
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_done_and_not_dropped_is_no_longer_timed() {
    let seen = Recorded::default();
    let layer = ShedLayer::new(seen.clone());
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    let mut kept = Vec::new();
    for _ in 0..200 {
        let mut call = task::spawn(service.clone().call(()));
        assert_pending!(call.poll());
        tokio::time::advance(ms(10)).await;
        desk.end(Ok(()));
        assert_ready_ok!(call.poll());
        kept.push(call);
    }
    let windows = seen.windows();
    assert!(windows.len() > 10);
    for window in windows {
        assert!(window.mean < ms(11), "{:?}", window.mean);
    }
}

/// Keeps a limit and remembers what it saw.
#[derive(Debug, Clone, Default)]
pub struct Recorded(Arc<Mutex<Vec<Window>>>);

impl Recorded {
    pub fn windows(&self) -> Vec<Window> {
        self.0.lock().unwrap().clone()
    }

    pub fn sum(&self, of: impl Fn(&Window) -> u64) -> u64 {
        self.windows().iter().map(of).sum()
    }
}

impl Limit for Recorded {
    fn start(&self) -> usize {
        100
    }

    fn look(&mut self, window: &Window) -> Step {
        self.0.lock().unwrap().push(window.clone());
        Step::Close(Next::of(100, ms(100)))
    }
}

// ===== 5 =====

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

#[test]
fn a_hundred_thousand_random_schedules_of_cancellation_lose_no_slot_and_no_waiter() {
    let schedules = std::env::var("TOWER_FLOW_SCHEDULES").ok();
    let schedules: u64 = schedules.map_or(100_000, |text| text.parse().unwrap());
    // Entered and not run: outside a task no coop budget makes what is ready look as if it were not.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let _entered = runtime.enter();
    for seed in 0..schedules {
        let outcome = std::panic::catch_unwind(|| schedule(seed));
        assert!(outcome.is_ok(), "TOWER_FLOW seed {seed}");
    }
}

/// Random calls, polls, ends and drops, of futures that wait, were granted, run or are done, and of bodies at any
/// frame.
fn schedule(seed: u64) {
    use crate::support::{Steps, data, trailers};
    use http::{Request, Response};
    use http_body::Body;

    let mut random = Random(seed);
    let desk = Desk::default();
    let queue = [Queue::fifo(), Queue::lifo(), Queue::codel()][random.below(3)].clone();
    let limit = 1 + random.below(3);
    let layer = ShedLayer::fixed(limit).queue(queue.max(random.below(4)));
    let layer = layer.http();
    let handle = layer.handle();
    let inner = desk.clone();
    let service = layer.layer(tower::service_fn(move |_: Request<Steps>| {
        let ended = inner.clone().call(());
        async move {
            ended.await?;
            let steps = [data(b"a"), None, data(b"b"), trailers("0")];
            Ok::<_, BoxError>(Response::new(Steps::new(steps)))
        }
    }));
    let mut calls = Vec::new();
    let mut bodies: Vec<tower_flow::shed::ResponseBody<Steps>> = Vec::new();
    for _ in 0..20 {
        match random.below(6) {
            0 => {
                let mut req = Request::new(Steps::default().known());
                req.extensions_mut().insert(Priority::ALL[random.below(4)]);
                // Not polled yet.
                calls.push((task::spawn(service.clone().call(req)), false));
            }
            1 if !calls.is_empty() => drop(calls.swap_remove(random.below(calls.len()))),
            2 if !bodies.is_empty() => drop(bodies.swap_remove(random.below(bodies.len()))),
            3 if !bodies.is_empty() => {
                let at = random.below(bodies.len());
                let _ = Pin::new(&mut bodies[at]).poll_frame(&mut cx());
            }
            4 if desk.open() > 0 => desk.end(Ok(())),
            _ if !calls.is_empty() => {
                let at = random.below(calls.len());
                calls[at].1 = true;
                if let Poll::Ready(Ok(response)) = calls[at].0.poll() {
                    bodies.push(response.into_body());
                    drop(calls.swap_remove(at));
                }
            }
            _ => {}
        }
        assert!(handle.in_flight() <= limit);
    }
    // All work is done, all bodies are read, and only those who were woken are polled: nobody is left behind.
    calls.retain_mut(|(call, polled)| *polled || call.poll().is_pending());
    for _ in 0..64 {
        while desk.open() > 0 {
            desk.end(Ok(()));
        }
        bodies.clear();
        calls.retain_mut(|(call, _)| {
            if !call.is_woken() {
                return true;
            }
            match call.poll() {
                Poll::Ready(Ok(response)) => {
                    bodies.push(response.into_body());
                    false
                }
                polled => polled.is_pending(),
            }
        });
    }
    drop(bodies);
    assert!(calls.is_empty(), "a waiter was lost");
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.waiting), (0, [0; 4]));
}

// ===== 7 =====

#[tokio::test(start_paused = true)]
async fn a_limit_falls_at_once_and_a_greater_one_wakes_those_who_wait() {
    let desk = Desk::default();
    let layer = ShedLayer::fixed(100).queue(Queue::fifo().max(1_000).timeout(secs(60)));
    let handle = layer.handle();
    let service = layer.layer(desk.clone());
    let mut running: Vec<_> = (0..100)
        .map(|_| task::spawn(service.clone().call(())))
        .collect();
    for call in &mut running {
        assert_pending!(call.poll());
    }
    handle.set_limit(10);
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.limit_effective), (100, 10));
    let mut waiting: Vec<_> = (0..60)
        .map(|_| task::spawn(service.clone().call(())))
        .collect();
    for call in &mut waiting {
        assert_pending!(call.poll());
    }
    assert_eq!(desk.open(), 100, "nobody new runs");
    for call in &mut running[..95] {
        desk.end(Ok(()));
        assert_ready_ok!(call.poll());
    }
    assert_eq!(handle.snapshot().in_flight, 10, "five old ones, five new");
    handle.set_limit(50);
    let woken = waiting.iter().filter(|call| call.is_woken()).count();
    assert_eq!(woken, 45, "as many as there are slots: 5 of 50 are old");
    for call in &mut waiting {
        let _ = call.poll();
    }
    assert_eq!(handle.snapshot().in_flight, 50);
    assert_eq!(handle.snapshot().waiting.iter().sum::<usize>(), 15);

    // tower's semaphore cannot be lowered at all; what others built on it keeps a debt of permits.
}

#[test]
fn concurrent_changes_leave_the_gate_with_the_last_limit() {
    let layer = ShedLayer::new(Settable::new(5));
    let handle = layer.handle();
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let handle = handle.clone();
            scope.spawn(move || {
                for n in 0..2_000 {
                    handle.set_limit(1 + (thread * 2_000 + n) % 97);
                }
            });
        }
    });
    let snapshot = handle.snapshot();
    assert_eq!(snapshot.limit_manual, Some(snapshot.limit_effective));
    handle.set_limit(None);
    assert_eq!(handle.snapshot().limit_effective, 5);
}

// ===== 8 =====

#[tokio::test]
async fn two_services_of_a_layer_share_a_limit_unless_told_otherwise() {
    let layer = no_queue(1);
    let (one, two) = (layer.layer(Desk::default()), layer.layer(Desk::default()));
    let mut held = task::spawn(one.clone().call(()));
    assert_pending!(held.poll());
    let rejection = refused(task::spawn(two.clone().call(())).poll());
    assert_eq!(rejection.reason(), Reason::Limit);
    assert!(
        rejection
            .to_string()
            .starts_with("shed: 1 of 1 slots busy; retry later or raise the limit; retry after"),
        "{rejection}"
    );

    let layer = no_queue(1).per_service();
    let (one, two) = (layer.layer(Desk::default()), layer.layer(Desk::default()));
    let mut held = (
        task::spawn(one.clone().call(())),
        task::spawn(two.clone().call(())),
    );
    assert_pending!(held.0.poll());
    assert_pending!(held.1.poll());
}

// ===== 9 =====

/// Calls one after the other, each taking `took`, for `span`.
async fn calls<S>(
    service: &S,
    desk: &Desk,
    span: Duration,
    took: Duration,
    ends: fn() -> Result<(), BoxError>,
) where
    S: Service<(), Response = (), Error = BoxError> + Clone,
{
    let until = tokio::time::Instant::now() + span;
    while tokio::time::Instant::now() < until {
        let mut together: Vec<_> = (0..10)
            .map(|_| task::spawn(service.clone().call(())))
            .collect();
        together.retain_mut(|call| call.poll().is_pending());
        tokio::time::advance(took).await;
        while desk.open() > 0 {
            desk.end(ends());
        }
        together.retain_mut(|call| call.poll().is_pending());
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_fails_fast_raises_no_limit() {
    for adaptive in [true, false] {
        let layer = match adaptive {
            true => ShedLayer::adaptive(),
            false => ShedLayer::new(Aimd::default()),
        };
        let handle = layer.handle();
        let service = layer.layer(Desk::default());
        let desk = service.get_ref().clone();
        calls(&service, &desk, secs(5), ms(50), || Ok(())).await;
        let before = handle.snapshot().limit;
        calls(&service, &desk, secs(5), ms(1), || Err("broken".into())).await;
        let after = handle.snapshot().limit;
        assert!(after <= before, "{before} became {after}");
        assert!(ended(&handle, Verdict::Ignore) > 1_000);
    }
}

#[tokio::test(start_paused = true)]
async fn signs_of_overload_cut_once_a_window_not_once_each() {
    /// Notes how often the limit fell.
    #[derive(Debug, Clone)]
    struct Falls(Aimd, Arc<Mutex<Vec<usize>>>);
    impl Limit for Falls {
        fn start(&self) -> usize {
            self.0.start()
        }
        fn look(&mut self, window: &Window) -> Step {
            let step = self.0.look(window);
            if let Step::Close(next) = step {
                self.1.lock().unwrap().push(next.limit);
            }
            step
        }
    }
    let limits = Arc::new(Mutex::new(Vec::new()));
    let layer = ShedLayer::new(Falls(Aimd::default(), limits.clone()));
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    calls(&service, &desk, secs(3), ms(50), || Ok(())).await;
    limits.lock().unwrap().clear();
    let before = handle.snapshot().limit;
    // Thousands of them within a few windows.
    calls(&service, &desk, secs(1), ms(1), || {
        Err(tower::timeout::error::Elapsed::new().into())
    })
    .await;
    let overloads = ended(&handle, Verdict::Overload) as usize;
    let limits = limits.lock().unwrap().clone();
    assert!(overloads > 100 * limits.len(), "{overloads} in {limits:?}");
    assert!(handle.snapshot().limit < before);
    for pair in limits.windows(2) {
        assert!(pair[1] as f64 >= 0.9 * pair[0] as f64 - 1.0, "{limits:?}");
    }
}

// ===== 10 =====

#[tokio::test(start_paused = true)]
async fn clients_that_time_out_lower_the_limit_and_those_who_change_their_mind_do_not() {
    let layer = ShedLayer::new(Aimd::default());
    let layer = layer.triage_by(|_: &()| Ask::new().timeout(secs(1)));
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    calls(&service, &desk, secs(5), ms(50), || Ok(())).await;
    let before = handle.snapshot().limit;

    // Quick: a user closes the page.
    for _ in 0..100 {
        let mut call = task::spawn(service.clone().call(()));
        assert_pending!(call.poll());
        tokio::time::advance(ms(20)).await;
        drop(call);
        desk.end(Ok(()));
    }
    assert_eq!(ended(&handle, Verdict::Overload), 0);
    assert_eq!(ended(&handle, Verdict::Cancelled), 100);
    let unmoved = handle.snapshot().limit;
    assert!(unmoved >= before);

    // Late: the client's own deadline.
    for _ in 0..20 {
        let mut call = task::spawn(service.clone().call(()));
        assert_pending!(call.poll());
        tokio::time::advance(ms(900)).await;
        drop(call);
        desk.end(Ok(()));
    }
    assert_eq!(ended(&handle, Verdict::Overload), 20);
    let after = handle.snapshot().limit;
    assert!(after < unmoved, "{unmoved} became {after}");
}

// ===== what else =====

#[tokio::test(start_paused = true)]
async fn whoever_waits_too_long_is_told_so_and_a_slot_granted_in_that_moment_is_used() {
    let desk = Desk::default();
    let layer = ShedLayer::fixed(1).queue(Queue::fifo().max(8).timeout(ms(100)));
    let handle = layer.handle();
    let service = layer.layer(desk.clone());
    let mut first = task::spawn(service.clone().call(()));
    assert_pending!(first.poll());
    let mut second = task::spawn(service.clone().call(()));
    assert_pending!(second.poll());
    tokio::time::sleep(ms(112)).await;
    let rejection = refused(second.poll());
    assert_eq!(rejection.reason(), Reason::QueueTimeout);
    assert!(rejection.retry_delay().is_some());

    let mut third = task::spawn(service.clone().call(()));
    assert_pending!(third.poll());
    desk.end(Ok(()));
    assert_ready_ok!(first.poll());
    tokio::time::sleep(ms(200)).await;
    assert_pending!(third.poll());
    assert_eq!(desk.open(), 1, "it had a slot before its time was up");
    desk.end(Ok(()));
    assert_ready_ok!(third.poll());
    let snapshot = handle.snapshot();
    assert_eq!(snapshot.refused.len(), 1);
    assert_eq!(snapshot.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn an_expired_deadline_never_reaches_the_service() {
    let desk = Desk::default();
    let layer = ShedLayer::fixed(1).queue(Queue::fifo().max(8));
    let layer = layer.triage_by(|timeout: &Duration| Ask::new().timeout(*timeout));
    let handle = layer.handle();
    let service = layer.layer(desk.clone());
    let rejection = refused(task::spawn(service.clone().call(Duration::ZERO)).poll());
    assert_eq!(rejection.reason(), Reason::Deadline);
    assert_eq!(desk.open(), 0);

    let mut first = task::spawn(service.clone().call(secs(10)));
    assert_pending!(first.poll());
    let mut second = task::spawn(service.clone().call(ms(50)));
    assert_pending!(second.poll());
    tokio::time::sleep(ms(75)).await;
    desk.end(Ok(()));
    assert_ready_ok!(first.poll());
    assert_eq!(refused(second.poll()).reason(), Reason::Deadline);
    assert_eq!(desk.open(), 0);
    assert_eq!(handle.snapshot().in_flight, 0);
}

#[tokio::test]
async fn hooks_that_panic_are_counted_and_cost_nobody_a_slot() {
    let layer = no_queue(1)
        .triage_by(|kind: &u8| -> Ask<'_> {
            assert_ne!(*kind, 1, "told to");
            Ask::new()
        })
        .classify_by(|result: Result<&(), &BoxError>| -> Verdict {
            assert!(result.is_ok(), "told to");
            Verdict::Success
        });
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    for ends in [Ok(()), Err("broken".into())] {
        let mut call = task::spawn(service.clone().call(1));
        assert_pending!(call.poll());
        desk.end(ends);
        assert!(call.poll().is_ready());
    }
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.panics, snapshot.in_flight), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn an_algorithm_that_panics_is_counted_and_leaves_the_limit() {
    #[derive(Debug, Clone)]
    struct Broken;
    impl Limit for Broken {
        fn start(&self) -> usize {
            7
        }
        fn look(&mut self, _: &Window) -> Step {
            panic!("told to")
        }
    }
    let layer = ShedLayer::new(Broken);
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    calls(&service, &desk, secs(3), ms(50), || Ok(())).await;
    let snapshot = handle.snapshot();
    assert!(snapshot.panics >= 1);
    assert_eq!((snapshot.limit_effective, snapshot.in_flight), (7, 0));
}

#[tokio::test(start_paused = true)]
async fn a_limit_set_by_hand_holds_at_once_and_is_given_back() {
    let layer = ShedLayer::new(Aimd::default());
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    calls(&service, &desk, secs(3), ms(50), || Ok(())).await;
    let chosen = handle.snapshot().limit;
    handle.set_limit(3);
    assert_eq!(handle.snapshot().limit_effective, 3);
    calls(&service, &desk, secs(3), ms(50), || Ok(())).await;
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.limit, snapshot.limit_effective), (chosen, 3));
    handle.set_limit(None);
    assert_eq!(handle.snapshot().limit_effective, chosen);
    handle.pause(true);
    calls(&service, &desk, secs(3), ms(50), || Ok(())).await;
    assert_eq!(handle.snapshot().limit, chosen);
}

#[test]
#[should_panic(expected = "limit must be at least 1, not 0")]
fn a_limit_of_nothing_is_refused() {
    ShedLayer::fixed(0);
}

#[test]
#[should_panic(expected = "the part NaN of partition")]
fn a_share_that_is_no_number_is_refused() {
    let _ = ShedLayer::adaptive().partition("batch", f64::NAN);
}

#[test]
#[should_panic(expected = "more than 1")]
fn more_than_everything_cannot_be_shared_out() {
    let _ = ShedLayer::adaptive()
        .partition("a", 0.6)
        .partition("b", 0.6);
}

#[test]
#[should_panic(expected = "set options before its handle")]
fn an_option_after_the_handle_is_refused() {
    let layer = ShedLayer::adaptive();
    let _handle = layer.handle();
    let _ = layer.dry_run(true);
}

#[tokio::test(start_paused = true)]
async fn absurd_durations_and_limits_are_taken_in_their_stride() {
    let queue = Queue::codel()
        .timeout(Duration::MAX)
        .patience(Duration::MAX)
        .interval(Duration::MAX)
        .max(usize::MAX);
    let layer = ShedLayer::fixed(usize::MAX).queue(queue);
    let layer = layer.triage_by(|timeout: &Duration| Ask::new().timeout(*timeout));
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    handle.set_limit(1);
    let mut first = task::spawn(service.clone().call(Duration::MAX));
    assert_pending!(first.poll());
    let mut second = task::spawn(service.clone().call(secs(1 << 40)));
    assert_pending!(second.poll());
    desk.end(Ok(()));
    assert_ready_ok!(first.poll());
    assert_pending!(second.poll());
    desk.end(Ok(()));
    assert_ready_ok!(second.poll());
    handle.set_limit(usize::MAX);
    handle.set_limit(None);
    assert_eq!(handle.in_flight(), 0);
}

#[test]
fn without_a_runtime_requests_wait_and_nothing_is_lost() {
    let layer = ShedLayer::fixed(1);
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    let mut first = task::spawn(service.clone().call(()));
    assert_pending!(first.poll());
    let mut second = task::spawn(service.clone().call(()));
    assert_pending!(second.poll());
    desk.end(Ok(()));
    assert_ready_ok!(first.poll());
    assert!(second.is_woken());
    assert_pending!(second.poll());
    desk.end(Ok(()));
    assert_ready_ok!(second.poll());
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.waiting), (0, [0; 4]));
}

#[test]
fn a_runtime_that_shuts_down_takes_its_timer_along_and_the_next_brings_another() {
    let layer = ShedLayer::fixed(1).queue(Queue::fifo().timeout(ms(50)));
    let service = layer.layer(Desk::default());
    let mut first = task::spawn(service.clone().call(()));
    assert_pending!(first.poll());
    for _ in 0..3 {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        let waited = runtime.block_on(async { service.clone().call(()).await });
        assert_eq!(refused(Poll::Ready(waited)).reason(), Reason::QueueTimeout);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_that_begins_lets_those_who_wait_through() {
    let layer = ShedLayer::fixed(1).queue(Queue::fifo().timeout(ms(50)));
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let mut first = task::spawn(service.clone().call(()));
    assert_pending!(first.poll());
    let mut second = task::spawn(service.clone().call(()));
    assert_pending!(second.poll());
    handle.dry_run(true);
    tokio::time::sleep(ms(75)).await;
    assert_pending!(second.poll());
    let snapshot = handle.snapshot();
    assert_eq!(snapshot.would_refuse, [(Reason::QueueTimeout, 1)]);
    drop((first, second));
    assert_eq!(handle.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_algorithm_that_panics_over_its_facts_costs_nobody_a_slot() {
    #[derive(Debug, Clone)]
    struct Broken;
    impl Limit for Broken {
        fn start(&self) -> usize {
            7
        }
        fn look(&mut self, _: &Window) -> Step {
            Step::Close(Next::of(9, ms(100)))
        }
        fn facts(&self) -> tower_flow::shed::limit::Facts {
            static ASKED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
            // The first time is when the layer is made.
            let again = ASKED.swap(true, std::sync::atomic::Ordering::Relaxed);
            assert!(!again, "told to");
            Default::default()
        }
    }
    let layer = ShedLayer::new(Broken);
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    calls(&service, &desk, secs(3), ms(50), || Ok(())).await;
    let snapshot = handle.snapshot();
    assert!(snapshot.panics >= 1);
    assert_eq!((snapshot.limit_effective, snapshot.in_flight), (7, 0));
}

#[tokio::test]
async fn refused_streams_are_in_books_of_their_own() {
    let late = ShedLayer::fixed(10);
    let late = late.triage_by(|_: &()| Ask::new().stream().timeout(Duration::ZERO));
    let rejection = refused(task::spawn(late.layer(Desk::default()).call(())).poll());
    assert_eq!(rejection.reason(), Reason::Deadline, "nobody waits for it");

    let layer = ShedLayer::fixed(10).streams(1);
    let layer = layer.triage_by(|_: &()| Ask::new().stream());
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let mut held = task::spawn(service.clone().call(()));
    assert_pending!(held.poll());
    for _ in 0..50 {
        refused(task::spawn(service.clone().call(())).poll());
    }
    let snapshot = handle.snapshot();
    assert_eq!(snapshot.refused, []);
    assert_eq!(
        (snapshot.streams_admitted, snapshot.streams_refused),
        (1, 50)
    );
    assert_eq!((snapshot.streams, snapshot.in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_books_balance() {
    let desk = Desk::default();
    let layer = ShedLayer::fixed(2).queue(Queue::fifo().max(3).timeout(ms(50)));
    let handle = layer.handle();
    let service = layer.layer(desk.clone());
    let mut calls: Vec<_> = (0..10)
        .map(|_| task::spawn(service.clone().call(())))
        .collect();
    calls.retain_mut(|call| call.poll().is_pending());
    assert_eq!(calls.len(), 5, "two run, three wait");
    drop(calls.remove(4));
    desk.end(Ok(()));
    assert_ready_ok!(calls[0].poll());
    tokio::time::sleep(ms(75)).await;
    for call in &mut calls[1..] {
        let _ = call.poll();
    }
    drop(calls);
    let snapshot = handle.snapshot();
    let refused: u64 = snapshot.refused.iter().map(|(.., count)| count).sum();
    let admitted: u64 = snapshot.admitted.iter().sum();
    let ended: u64 = snapshot.ended.iter().map(|(_, count)| count).sum();
    assert_eq!((admitted, refused, snapshot.abandoned), (3, 6, 1));
    assert_eq!(ended + snapshot.in_flight as u64, admitted);
}

#[test]
fn waits_end_on_every_runtime_whatever_becomes_of_the_others() {
    let new = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap()
    };
    let layer = ShedLayer::fixed(1).queue(Queue::fifo().timeout(ms(100)));
    let service = layer.layer(Desk::default());
    let mut held = task::spawn(service.clone().call(()));
    assert_pending!(held.poll());
    // The first that waits does so on a runtime that nobody drives from then on, and that is gone later.
    let idle = new();
    let mut first = task::spawn(service.clone().call(()));
    {
        let _entered = idle.enter();
        assert_pending!(first.poll());
    }
    let other = new();
    let waited = other.block_on(async {
        let waits = service.clone().call(());
        idle.shutdown_background();
        tokio::time::timeout(secs(1), waits)
            .await
            .expect("somebody ended the wait")
    });
    assert_eq!(refused(Poll::Ready(waited)).reason(), Reason::QueueTimeout);
    assert_eq!(refused(first.poll()).reason(), Reason::QueueTimeout);
}

#[test]
fn a_runtime_without_time_ends_no_wait_and_loses_none() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let layer = ShedLayer::fixed(1);
    let service = layer.layer(Desk::default());
    let desk = service.get_ref().clone();
    let _entered = runtime.enter();
    let mut first = task::spawn(service.clone().call(()));
    assert_pending!(first.poll());
    let mut second = task::spawn(service.clone().call(()));
    let mut third = task::spawn(service.clone().call(()));
    assert_pending!(second.poll());
    assert_pending!(third.poll());
    desk.end(Ok(()));
    assert_ready_ok!(first.poll());
    assert_pending!(second.poll());
    assert_eq!(desk.open(), 1);
}

#[tokio::test]
async fn a_waker_may_do_what_it_likes_when_it_is_dropped() {
    #[allow(dead_code)] // Kept for its drop.
    struct Owner(
        std::sync::Mutex<
            Option<task::Spawn<Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>>>,
        >,
    );
    impl std::task::Wake for Owner {
        fn wake(self: Arc<Self>) {
            panic!("told to");
        }
    }
    let layer = ShedLayer::fixed(1).queue(Queue::fifo().max(8));
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let boxed = |mut service: tower_flow::shed::Shed<Desk, _, _>| -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> {
        Box::pin(Service::<()>::call(&mut service, ()))
    };
    let mut running = task::spawn(boxed(service.clone()));
    assert_pending!(running.poll());
    let mut waiting = Box::pin(Service::<()>::call(&mut service.clone(), ()));
    // The last handle of the first waker owns the call that runs.
    let owner = Waker::from(Arc::new(Owner(std::sync::Mutex::new(Some(running)))));
    assert!(
        waiting
            .as_mut()
            .poll(&mut Context::from_waker(&owner))
            .is_pending()
    );
    drop(owner);
    assert!(
        waiting.as_mut().poll(&mut cx()).is_pending(),
        "the first waker went, and its call with it"
    );
    assert!(waiting.as_mut().poll(&mut cx()).is_pending(), "now it runs");
    assert_eq!(handle.in_flight(), 1);
}
