//! The whole layer, among foreign code that does what it likes.

mod chaos;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, ServiceExt, service_fn};
use tower_service::Service;

use super::*;
use crate::base::clock;
use crate::base::deadline::Deadline;
use crate::base::error::{BoxError, Reason, Rejection};
use crate::base::executor::Task;
use crate::base::priority::Priority;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn reason<T: std::fmt::Debug>(result: Result<T, BoxError>) -> Reason {
    let error = result.expect_err("it was refused");
    Rejection::find(&*error).expect("by a layer").reason()
}

/// Calls in flight, each of which is answered by hand.
#[derive(Clone, Default)]
struct Backend<T>(Arc<Mutex<Vec<oneshot::Sender<T>>>>);

impl<T: Send + 'static> Backend<T> {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn service<Req: Send + 'static>(
        &self,
    ) -> impl Service<
        Req,
        Response = T,
        Error = BoxError,
        Future: Future<Output = Result<T, BoxError>> + Send + 'static,
    > + Clone
    + Send
    + 'static {
        let calls = self.0.clone();
        service_fn(move |_: Req| {
            let (sender, receiver) = oneshot::channel();
            calls.lock().unwrap().push(sender);
            async move { receiver.await.map_err(BoxError::from) }
        })
    }

    /// How many calls were not answered.
    fn calls(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Answers the oldest.
    fn answer(&self, answer: T) {
        let call = self.0.lock().unwrap().remove(0);
        assert!(call.send(answer).is_ok(), "somebody waits for it");
    }
}

fn caught<R>(work: impl FnOnce() -> R) -> Option<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}

// ===== Crowds =====

#[test]
fn a_crowd_is_woken_to_the_last() {
    let backend = Backend::new();
    let layer = by_number();
    let mut service = layer.layer(backend.service());
    let mut crowd: Vec<_> = (0..100).map(|_| task::spawn(service.call(7))).collect();
    for caller in &mut crowd {
        assert_pending!(caller.poll());
    }
    backend.answer(1);
    for caller in &mut crowd {
        assert!(caller.is_woken());
        assert_eq!(assert_ready!(caller.poll()).unwrap(), 1);
    }
    assert_eq!(backend.calls(), 0);
    assert_eq!(layer.handle().snapshot().shared, 99);
}

#[test]
fn a_million_who_come_and_go_leave_nothing() {
    let backend = Backend::<u32>::new();
    let layer = by_number();
    let mut service = layer.layer(backend.service());
    let mut leader = task::spawn(service.call(7));
    assert_pending!(leader.poll());
    let waker = std::task::Waker::noop();
    let mut cx = Context::from_waker(waker);
    for n in 0..1_000_000u32 {
        // One in eight to a flight of its own.
        let req = if n.is_multiple_of(8) { n } else { 7 };
        let mut call = std::pin::pin!(service.call(req));
        assert!(call.as_mut().poll(&mut cx).is_pending());
        if req != 7 || n % 1_000 == 1 {
            backend.0.lock().unwrap().truncate(1);
        }
    }
    let now = layer.handle().snapshot();
    assert_eq!((now.flights, now.waiters), (1, 1));
}

// ===== Destructors =====

/// A response whose destructor panics, once it is armed.
#[derive(Debug, Clone)]
struct Mine(Arc<AtomicBool>);

impl Drop for Mine {
    fn drop(&mut self) {
        assert!(!self.0.swap(false, SeqCst), "a mine");
    }
}

#[test]
fn a_result_nobody_wants_and_whose_destructor_panics_keeps_nobody_waiting() {
    let armed = Arc::new(AtomicBool::new(false));
    let backend = Backend::new();
    let policy = ArcError.when(|_: &Result<Mine, BoxError>| Admit::LeaderOnly);
    let layer = CoalesceLayer::new(|_: &()| Some(0)).share(policy);
    let mut service = layer.layer(backend.service());
    let mut leader = task::spawn(service.call(()));
    assert_pending!(leader.poll());
    let mut driver = task::spawn(service.call(()));
    assert_pending!(driver.poll());
    let mut waiter = task::spawn(service.call(()));
    assert_pending!(waiter.poll());
    drop(leader);
    backend.answer(Mine(armed.clone()));
    armed.store(true, SeqCst);
    assert!(caught(|| driver.poll().is_ready()).is_none());
    drop(driver);
    assert!(waiter.is_woken());
    assert_pending!(waiter.poll());
    assert_eq!(backend.calls(), 1, "it goes alone");
    assert_eq!(layer.handle().snapshot().flights, 0);
}

/// A key whose destructor panics, once it is armed.
struct Trap(Arc<AtomicBool>);

impl Drop for Trap {
    fn drop(&mut self) {
        assert!(!self.0.swap(false, SeqCst), "a trap");
    }
}

impl PartialEq for Trap {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Trap {}

impl std::hash::Hash for Trap {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

#[test]
fn a_key_whose_destructor_panics_keeps_nobody_waiting() {
    let armed = Arc::new(AtomicBool::new(false));
    let trap = armed.clone();
    let backend = Backend::new();
    let layer = CoalesceLayer::new(move |_: &()| Some(Trap(trap.clone()))).leader_age(ms(50));
    let mut service = layer.layer(backend.service());
    let mut old = task::spawn(service.call(()));
    assert_pending!(old.poll());
    // The entry keeps its key; that of whoever takes it over goes.
    std::thread::sleep(ms(60));
    let mut new = task::spawn(service.call(()));
    armed.store(true, SeqCst);
    assert!(caught(|| new.poll().is_ready()).is_none());
    drop(new);
    assert_eq!(layer.handle().snapshot().flights, 1, "the old one's");
    let mut next = task::spawn(service.call(()));
    assert_pending!(next.poll());
    let calls = backend.calls();
    backend.answer(1);
    assert_eq!(assert_ready!(old.poll()).unwrap(), 1);
    while backend.calls() > 0 {
        let _ = caught(|| backend.answer(2));
    }
    assert!(next.is_woken(), "of {calls} calls one is its own");
    assert_eq!(assert_ready!(next.poll()).unwrap(), 2);
    assert_eq!(layer.handle().snapshot().flights, 0);
}

/// A service and what a thread waits for, till the thread ends.
struct Last(Option<(Job, std::sync::mpsc::Sender<bool>)>);

type Job = Box<dyn FnOnce() + Send>;

impl Drop for Last {
    fn drop(&mut self) {
        if let Some((last, report)) = self.0.take() {
            let well = caught(last).is_some();
            report.send(well).expect("somebody asks");
        }
    }
}

thread_local! {
    static LAST: std::cell::RefCell<Last> = const { std::cell::RefCell::new(Last(None)) };
}

#[test]
fn a_thread_may_poll_a_flight_as_the_last_thing_it_does() {
    let layer = by_number();
    let mut service = layer.layer(service_fn(|req| async move {
        match req {
            1 => std::future::pending().await,
            _ => Ok::<_, BoxError>(req),
        }
    }));
    let (report, well) = std::sync::mpsc::channel();
    let mut other = service.clone();
    let thread = std::thread::spawn(move || {
        let mut first = task::spawn(other.call(1));
        let mut second = task::spawn(other.call(2));
        LAST.with_borrow_mut(|last| {
            let poll = move || assert!(matches!(second.poll(), Poll::Ready(Ok(2))));
            last.0 = Some((Box::new(poll), report));
        });
        // What this leaves in the thread goes before what was there already.
        assert_pending!(first.poll());
    });
    thread.join().unwrap();
    assert!(well.recv().unwrap(), "it panicked");
    assert_eq!(layer.handle().snapshot().flights, 0);
    let mut next = task::spawn(service.call(2));
    assert_eq!(assert_ready!(next.poll()).unwrap(), 2);
}

// ===== One inside the other =====

/// A future that does something when it is dropped.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl<F: FnMut() + Unpin> Future for Finally<F> {
    type Output = Result<u32, BoxError>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

type AnyFuture = Pin<Box<dyn Future<Output = Result<u32, BoxError>> + Send>>;
type AnyService = tower::util::BoxCloneService<u32, u32, BoxError>;

/// A layer round a service that may do anything with the whole.
fn round(
    layer: &CoalesceLayer<fn(&u32) -> Option<u32>>,
    does: impl Fn(u32, AnyService) -> AnyFuture + Clone + Send + Sync + 'static,
) -> AnyService {
    let whole = Arc::new(Mutex::new(None::<AnyService>));
    let place = whole.clone();
    let inner = service_fn(move |req| {
        let whole = place.lock().unwrap().clone().expect("it is whole");
        does(req, whole)
    });
    let service = AnyService::new(layer.layer(inner));
    *whole.lock().unwrap() = Some(service.clone());
    service
}

fn by_number() -> CoalesceLayer<fn(&u32) -> Option<u32>> {
    CoalesceLayer::new((|req| Some(*req)) as fn(&u32) -> Option<u32>)
}

#[test]
fn whoever_comes_while_a_flight_that_nobody_wants_is_dropped_has_one_of_its_own() {
    let layer = by_number();
    let calls = Arc::new(AtomicUsize::new(0));
    let inside = Arc::new(Mutex::new(None));
    let (count, place) = (calls.clone(), inside.clone());
    let mut service = round(&layer, move |req, whole| {
        let first = count.fetch_add(1, SeqCst) == 0;
        let place = place.clone();
        let mut whole = Some(whole);
        Box::pin(Finally(move || {
            if let (true, Some(mut whole)) = (first, whole.take()) {
                let mut task = task::spawn(whole.call(req));
                assert_pending!(task.poll());
                *place.lock().unwrap() = Some(task);
            }
        }))
    });
    let mut caller = task::spawn(service.call(7));
    assert_pending!(caller.poll());
    drop(caller);
    assert_eq!(calls.load(SeqCst), 2);
    assert_eq!(layer.handle().snapshot().flights, 1);
    drop(inside.lock().unwrap().take());
    assert_eq!(layer.handle().snapshot().flights, 0);
}

#[test]
fn a_flight_may_drop_those_who_wait_for_it_while_it_is_polled() {
    for others in 0..3 {
        let layer = by_number();
        let waiting = Arc::new(Mutex::new(Vec::new()));
        let place = waiting.clone();
        let polls = Arc::new(AtomicUsize::new(0));
        let mut service = round(&layer, move |_, _| {
            let (place, polls) = (place.clone(), polls.clone());
            Box::pin(std::future::poll_fn(move |cx| {
                let waiting: Vec<task::Spawn<_>> = std::mem::take(&mut *place.lock().unwrap());
                drop(waiting);
                cx.waker().wake_by_ref();
                match polls.fetch_add(1, SeqCst) {
                    0..5 => Poll::Pending,
                    _ => Poll::Ready(Ok(7)),
                }
            }))
        });
        let mut leader = task::spawn(service.call(7));
        assert_pending!(leader.poll());
        for _ in 0..others {
            let mut other = task::spawn(service.call(7));
            assert_pending!(other.poll());
            waiting.lock().unwrap().push(other);
        }
        // Another flight's last waiter, too.
        let mut last = task::spawn(service.call(8));
        drop(last.poll());
        waiting.lock().unwrap().push(last);
        let mut turns = 0;
        let result = loop {
            assert!(leader.is_woken() && turns < 10);
            turns += 1;
            if let Poll::Ready(result) = leader.poll() {
                break result;
            }
        };
        assert_eq!(result.unwrap(), 7);
        let now = layer.handle().snapshot();
        assert_eq!((now.flights, now.waiters), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_asks_for_itself_is_told_so() {
    for policy in [OnLeaderDrop::HandOver, OnLeaderDrop::Detach] {
        let layer = by_number().on_leader_drop(policy);
        // 1 asks for 2, 2 for 3, 3 for 1.
        let service = round(&layer, |req, whole| {
            Box::pin(async move { whole.oneshot(req % 3 + 1).await })
        });
        let result = tokio::time::timeout(ms(1_000), service.oneshot(1)).await;
        if policy == OnLeaderDrop::HandOver {
            assert_eq!(reason(result.expect("it ends")), Reason::Recursion);
            let now = layer.handle().snapshot();
            assert_eq!((now.flights, now.waiters), (0, 0));
        } else {
            // Each waits in a task of its own: only time tells.
            assert!(result.is_err());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_asks_for_its_own_flight_is_told_so() {
    let layer = by_number().on_leader_drop(OnLeaderDrop::Detach);
    let service = round(&layer, |req, whole| Box::pin(whole.oneshot(req)));
    let result = tokio::time::timeout(ms(1_000), service.oneshot(1)).await;
    assert_eq!(reason(result.expect("it ends")), Reason::Recursion);
    let now = layer.handle().snapshot();
    assert_eq!((now.flights, now.waiters), (0, 0));
}

// ===== Panics =====

#[test]
fn a_panic_goes_on_in_the_leader_and_the_others_are_told() {
    let layer = by_number();
    let backend = Backend::new();
    let inner = backend.service::<u32>();
    let mut service = round(&layer, move |req, _| {
        let inner = inner.clone();
        Box::pin(async move {
            match inner.oneshot(req).await? {
                13 => std::panic::resume_unwind(Box::new("a panic")),
                other => Ok(other),
            }
        })
    });
    let mut leader = task::spawn(service.call(7));
    assert_pending!(leader.poll());
    let mut others = [7, 7].map(|req| task::spawn(service.call(req)));
    for other in &mut others {
        assert_pending!(other.poll());
    }
    backend.answer(13);
    for other in &mut others {
        assert!(other.is_woken());
        assert_eq!(reason(assert_ready!(other.poll())), Reason::Panicked);
    }
    assert!(leader.is_woken());
    let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| leader.poll()));
    let payload = payload.expect_err("it panics");
    assert_eq!(payload.downcast_ref(), Some(&"a panic"));
    let now = layer.handle().snapshot();
    assert_eq!((now.flights, now.waiters), (0, 0));
}

// ===== Rules =====

#[test]
fn who_matters_more_than_what_was_sent_sends_a_request_of_its_own() {
    for policy in [OnLeaderDrop::HandOver, OnLeaderDrop::Detach] {
        let (backend, tasks) = (Backend::<()>::new(), Tasks::new());
        let layer = CoalesceLayer::new(Important)
            .on_leader_drop(policy)
            .executor(tasks.executor());
        let mut service = layer.layer(backend.service());
        let mut calls = Vec::new();
        let wanted = [
            (Priority::Sheddable, 1),
            (Priority::BestEffort, 1),
            (Priority::Critical, 2),
            (Priority::Default, 2),
            (Priority::Critical, 2),
        ];
        for (priority, sent) in wanted {
            let mut call = task::spawn(service.call(priority));
            assert_pending!(call.poll());
            calls.push(call);
            while !tasks.0.lock().unwrap().is_empty() {
                let mut running = tasks.take();
                assert_pending!(running.poll());
                // It goes on for as long as the test does.
                std::mem::forget(running);
            }
            assert_eq!(backend.calls(), sent, "{priority:?}, {policy:?}");
        }
    }
}

#[test]
fn a_request_that_was_not_sent_has_no_priority_of_another_flight() {
    let (inner, mut handle) = tower_test::mock::pair::<Priority, ()>();
    let layer = CoalesceLayer::new(Important).max_keys(1);
    let mut service = layer.layer(inner);
    handle.allow(1);
    let mut first = task::spawn(service.call(Priority::BestEffort));
    assert_pending!(first.poll());
    // A second one, so that the work is parked and put aside.
    drop(first);
    let mut leader = task::spawn(service.call(Priority::BestEffort));
    assert_pending!(leader.poll());
    let mut follower = task::spawn(service.call(Priority::Critical));
    assert_pending!(follower.poll());
    assert_eq!(layer.handle().snapshot().followers, 1);
}

#[test]
fn those_who_follow_a_leader_that_leaves_begin_anew_together_or_fail() {
    for policy in [OnLeaderDrop::Reissue, OnLeaderDrop::Fail] {
        let backend = Backend::new();
        let layer = by_number().on_leader_drop(policy);
        let mut service = layer.layer(backend.service());
        let mut leader = task::spawn(service.call(7));
        assert_pending!(leader.poll());
        let mut others = [7, 7, 7].map(|req| task::spawn(service.call(req)));
        for other in &mut others {
            assert_pending!(other.poll());
        }
        drop(leader);
        backend.0.lock().unwrap().retain(|call| !call.is_closed());
        assert_eq!(backend.calls(), 0, "the call was given up");
        for other in &mut others {
            assert!(other.is_woken());
            if policy == OnLeaderDrop::Fail {
                assert_eq!(reason(assert_ready!(other.poll())), Reason::Abandoned);
            } else {
                assert_pending!(other.poll());
            }
        }
        if policy == OnLeaderDrop::Reissue {
            assert_eq!(backend.calls(), 1);
            backend.answer(1);
            for other in &mut others {
                assert_eq!(assert_ready!(other.poll()).unwrap(), 1);
            }
        }
        let now = layer.handle().snapshot();
        assert_eq!((now.flights, now.waiters), (0, 0));
    }
}

#[test]
fn a_result_is_kept_though_nobody_waited_for_it() {
    let (backend, tasks) = (Backend::new(), Tasks::new());
    let layer = by_number()
        .on_leader_drop(OnLeaderDrop::Detach)
        .grace(ms(60_000))
        .executor(tasks.executor());
    let mut service = layer.layer(backend.service());
    let mut caller = task::spawn(service.call(7));
    assert_pending!(caller.poll());
    let mut running = tasks.take();
    assert_pending!(running.poll());
    drop(caller);
    backend.answer(1);
    assert_ready!(running.poll());
    let mut late = task::spawn(service.call(7));
    assert_eq!(assert_ready!(late.poll()).unwrap(), 1);
}

#[test]
fn who_follows_gives_back_what_it_reserved() {
    let backend = Backend::<u32>::new();
    let layer = by_number().readiness(Readiness::Eager);
    let inner = tower::limit::ConcurrencyLimit::new(backend.service::<u32>(), 2);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut callers = Vec::new();
    for req in [7, 7, 8] {
        let mut service = layer.layer(inner.clone());
        assert!(service.poll_ready(&mut cx).is_ready());
        let mut caller = task::spawn(service.call(req));
        assert_pending!(caller.poll());
        callers.push(caller);
    }
    assert_eq!(backend.calls(), 2);
    assert!(layer.layer(inner).poll_ready(&mut cx).is_pending());
}

#[test]
fn those_who_come_from_inside_of_another_flight_are_woken() {
    let layer = by_number();
    let backend = Backend::new();
    let inner = backend.service::<u32>();
    let mut service = round(&layer, move |req, whole| {
        let inner = inner.clone();
        Box::pin(async move {
            match req {
                // Both ask for the same.
                1 | 2 => Ok(req + whole.oneshot(10).await?),
                _ => inner.oneshot(req).await,
            }
        })
    });
    let mut callers = [1, 2, 1, 2].map(|req| task::spawn(service.call(req)));
    for caller in &mut callers {
        assert_pending!(caller.poll());
    }
    assert_eq!(backend.calls(), 1);
    backend.answer(100);
    for _ in 0..4 {
        for caller in &mut callers {
            if caller.is_woken() {
                drop(caught(|| caller.poll()));
            }
        }
    }
    let now = layer.handle().snapshot();
    assert_eq!((now.flights, now.waiters), (0, 0));
    assert_eq!(now.shared, 3);
}

// ===== Deadlines and timers =====

struct Impatient;

impl KeyBy<u64> for Impatient {
    type Key = ();

    fn key(&self, _: &u64) -> Option<()> {
        Some(())
    }

    fn terms(&self, req: &u64) -> Terms {
        Terms::default().deadline(Deadline::after(clock::now(), ms(*req)))
    }
}

#[tokio::test(start_paused = true)]
async fn the_leaders_deadline_ends_its_wait_and_not_the_flight() {
    let layer = CoalesceLayer::new(Impatient);
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let service = layer.layer(service_fn(move |_: u64| {
        count.fetch_add(1, SeqCst);
        async {
            tokio::time::sleep(ms(100)).await;
            Ok::<_, BoxError>(7)
        }
    }));
    let begun = clock::now();
    let timed = |deadline| {
        let call = service.clone().oneshot(deadline);
        async move { (call.await, clock::now() - begun) }
    };
    let (leader, follower) = tokio::join!(timed(10), timed(1_000));
    assert_eq!(reason(leader.0), Reason::Deadline);
    assert_eq!(leader.1, ms(10));
    assert_eq!((follower.0.unwrap(), follower.1), (7, ms(100)));
    assert_eq!(calls.load(SeqCst), 1);
    // One who is alone, too.
    let begun = clock::now();
    assert_eq!(reason(service.oneshot(10).await), Reason::Deadline);
    assert_eq!(clock::now() - begun, ms(10));
    assert_eq!(layer.handle().snapshot().flights, 0);
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_is_its_leaders_alone_again_is_not_timed_any_more() {
    let backend = Backend::<u32>::new();
    let layer = CoalesceLayer::new(|_: &()| Some(0))
        .flight_timeout(ms(30))
        .leader_age(ms(1_000_000));
    let mut service = layer.layer(backend.service());
    let mut leader = task::spawn(service.call(()));
    assert_pending!(leader.poll());
    let mut follower = task::spawn(service.call(()));
    assert_pending!(follower.poll());
    drop(follower);
    tokio::time::sleep(ms(50)).await;
    while leader.is_woken() {
        assert_pending!(leader.poll());
    }
    let mut follower = task::spawn(service.call(()));
    assert_pending!(follower.poll());
    tokio::time::sleep(ms(29)).await;
    assert!(!leader.is_woken() && !follower.is_woken());
    tokio::time::sleep(ms(2)).await;
    assert!(leader.is_woken() && follower.is_woken());
    assert_eq!(reason(assert_ready!(follower.poll())), Reason::Timeout);
    assert_eq!(reason(assert_ready!(leader.poll())), Reason::Timeout);
}

#[test]
fn a_flight_outlives_the_runtime_in_which_its_time_was_taken() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let backend = Backend::new();
    let layer = CoalesceLayer::new(|_: &()| Some(0));
    let mut service = layer.layer(backend.service());
    let (first, second) = (runtime(), runtime());
    let mut callers: Vec<_> = (0..3).map(|_| task::spawn(service.call(()))).collect();
    first.block_on(async {
        for caller in &mut callers {
            assert_pending!(caller.poll());
        }
    });
    drop(first);
    let _inside = second.enter();
    for caller in &mut callers {
        if caller.is_woken() {
            assert_pending!(caller.poll());
        }
    }
    backend.answer(7);
    for caller in &mut callers {
        assert!(caller.is_woken());
        assert_eq!(assert_ready!(caller.poll()).unwrap(), 7);
    }
}

#[test]
fn outside_of_a_runtime_time_is_looked_at_when_somebody_polls() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let layer = by_number().flight_timeout(ms(100));
    let mut service = layer.layer(Backend::<u32>::new().service());
    let mut callers = [7, 7].map(|req| task::spawn(service.call(req)));
    runtime.block_on(async {
        for caller in &mut callers {
            assert_pending!(caller.poll());
        }
    });
    let begun = clock::now();
    while begun.elapsed() < ms(100) {
        std::thread::yield_now();
    }
    // Woken for whatever reason.
    let [leader, follower] = &mut callers;
    drop(runtime);
    assert!(leader.is_woken() && follower.is_woken());
    assert_eq!(reason(assert_ready!(follower.poll())), Reason::Timeout);
    assert_eq!(reason(assert_ready!(leader.poll())), Reason::Timeout);
}

// ===== Tasks =====

#[test]
fn an_executor_that_panics_or_drops_its_task_leaves_nobody_behind() {
    for panics in [false, true] {
        let layer = by_number()
            .on_leader_drop(OnLeaderDrop::Detach)
            .executor(move |task: Task| {
                assert!(!panics, "no room");
                drop(task);
            });
        let mut service = layer.layer(Backend::<u32>::new().service());
        let mut caller = task::spawn(service.call(7));
        match caught(|| caller.poll()) {
            Some(polled) => assert_eq!(reason(assert_ready!(polled)), Reason::Abandoned),
            None => assert!(panics),
        }
        drop(caller);
        let now = layer.handle().snapshot();
        assert_eq!((now.flights, now.waiters), (0, 0));
        assert!(now.ends.contains(&("abandoned", 1)), "{:?}", now.ends);
    }
}

/// Tasks, of which each is polled by hand.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<Vec<Task>>>);

impl Tasks {
    fn new() -> Self {
        Self::default()
    }

    fn executor(&self) -> impl Fn(Task) + Send + Sync + 'static {
        let tasks = self.0.clone();
        move |task| tasks.lock().unwrap().push(task)
    }

    fn take(&self) -> task::Spawn<Task> {
        task::spawn(self.0.lock().unwrap().remove(0))
    }
}

#[test]
fn a_task_runs_to_its_end_though_nobody_waits() {
    let (backend, tasks) = (Backend::new(), Tasks::new());
    let layer = by_number()
        .on_leader_drop(OnLeaderDrop::Detach)
        .executor(tasks.executor());
    let mut service = layer.layer(backend.service());
    let mut caller = task::spawn(service.call(7));
    assert_pending!(caller.poll());
    let mut task = tasks.take();
    assert_pending!(task.poll());
    drop(caller);
    assert_eq!(layer.handle().snapshot().flights, 1);
    backend.answer(1);
    assert!(task.is_woken());
    assert_ready!(task.poll());
    let now = layer.handle().snapshot();
    assert_eq!(now.flights, 0);
    assert!(now.ends.contains(&("detached", 1)));
}

/// Sends the greatest priority among those who wait as the request.
struct Important;

impl KeyBy<Priority> for Important {
    type Key = ();

    fn key(&self, _: &Priority) -> Option<()> {
        Some(())
    }

    fn terms(&self, req: &Priority) -> Terms {
        Terms::default().priority(*req)
    }

    fn prepare(&self, req: &mut Priority, flight: Facts) {
        *req = flight.priority;
    }
}

#[test]
fn a_request_is_sent_with_the_priority_of_those_who_came_before_it_was() {
    for policy in [OnLeaderDrop::HandOver, OnLeaderDrop::Detach] {
        let tasks = Tasks::new();
        let layer = CoalesceLayer::new(Important)
            .on_leader_drop(policy)
            .executor(tasks.executor());
        let (inner, mut handle) = tower_test::mock::pair::<Priority, ()>();
        handle.allow(0);
        let mut service = layer.layer(inner);
        let mut leader = task::spawn(service.call(Priority::BestEffort));
        assert_pending!(leader.poll());
        let mut running = (policy == OnLeaderDrop::Detach).then(|| tasks.take());
        if let Some(running) = &mut running {
            assert_pending!(running.poll());
        }
        let mut follower = task::spawn(service.call(Priority::Critical));
        assert_pending!(follower.poll());
        handle.allow(1);
        match &mut running {
            Some(running) => assert_pending!(running.poll()),
            None => assert_pending!(follower.poll()),
        }
        let mut next = task::spawn(handle.next_request());
        let (sent, _answer) = assert_ready!(next.poll()).expect("it was sent");
        assert_eq!(sent, Priority::Critical, "{policy:?}");
    }
}

#[test]
fn an_answer_nobody_shares_is_untouched_whoever_drove() {
    for policy in [OnLeaderDrop::HandOver, OnLeaderDrop::Detach] {
        let tasks = Tasks::new();
        let layer = by_number()
            .on_leader_drop(policy)
            .executor(tasks.executor());
        let inner = service_fn(|_: u32| async {
            tokio::task::yield_now().await;
            Err::<u32, _>(std::fmt::Error)
        });
        let mut service = layer.layer(inner);
        let mut caller = task::spawn(service.call(7));
        assert_pending!(caller.poll());
        if policy == OnLeaderDrop::Detach {
            let mut running = tasks.take();
            assert_pending!(running.poll());
            assert_ready!(running.poll());
        }
        let error = assert_ready!(caller.poll()).expect_err("it failed");
        assert!(error.is::<std::fmt::Error>(), "{policy:?}: {error:?}");
        assert!(layer.handle().snapshot().ends.contains(&("alone", 1)));
    }
}

#[test]
fn a_task_that_goes_with_its_runtime_tells_those_who_wait() {
    let backend = Backend::<u32>::new();
    let layer = by_number().on_leader_drop(OnLeaderDrop::Detach);
    let mut service = layer.layer(backend.service());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut caller = task::spawn(service.call(7));
    runtime.block_on(async { assert_pending!(caller.poll()) });
    drop(runtime);
    assert!(caller.is_woken());
    assert_eq!(reason(assert_ready!(caller.poll())), Reason::Abandoned);
    // Outside of any runtime there is nobody to run it.
    let mut caller = task::spawn(service.call(7));
    assert_eq!(reason(assert_ready!(caller.poll())), Reason::Abandoned);
    assert_eq!(layer.handle().snapshot().flights, 0);
}
