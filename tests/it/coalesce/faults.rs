//! Whatever of the user's panics, fails, or goes away: the layer stays usable, and nobody waits for ever.

use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt as _;
use tokio_test::task::Spawn;
use tokio_test::{assert_pending, assert_ready};
use tower::{Layer, Service, ServiceExt as _};
use tower_flow::BoxError;
use tower_flow::coalesce::{
    Admit, ArcError, CoalesceLayer, Facts, Keep, KeyBy, OnLeaderDrop, Share, Terms,
};
use tower_flow::error::Reason;
use tower_flow::error::SharedError;
use tower_flow::executor::Task;

use super::{
    Answer, Ask, Backend, Call, Count, Counted, Does, Fault, Running, ask, assert_quiet,
    assert_usable, call, ended, go, held, layer, message, ms, reason, rest, secs,
};

// ===== everything that may panic =====

/// The places where foreign code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Key,
    Terms,
    Prepare,
    Hash,
    Eq,
    KeyDrop,
    RequestDrop,
    ServiceClone,
    PollReady,
    InnerCall,
    InnerPoll,
    FutureDrop,
    Admit,
    Alone,
    Split,
    Join,
    Last,
    ResponseClone,
    ResponseDrop,
}

impl Place {
    const ALL: [Self; 19] = [
        Self::Key,
        Self::Terms,
        Self::Prepare,
        Self::Hash,
        Self::Eq,
        Self::KeyDrop,
        Self::RequestDrop,
        Self::ServiceClone,
        Self::PollReady,
        Self::InnerCall,
        Self::InnerPoll,
        Self::FutureDrop,
        Self::Admit,
        Self::Alone,
        Self::Split,
        Self::Join,
        Self::Last,
        Self::ResponseClone,
        Self::ResponseDrop,
    ];
}

/// Panics the so-many-th time when a place is passed, and counts what is alive.
#[derive(Default)]
struct Fuse {
    place: Mutex<Option<Place>>,
    left: AtomicUsize,
    burnt: AtomicBool,
    keys: Arc<Count>,
    requests: Arc<Count>,
    responses: Arc<Count>,
}

impl Fuse {
    fn set(&self, place: Place, passes: usize) {
        *self.place.lock().unwrap() = Some(place);
        self.left.store(passes, Ordering::SeqCst);
    }

    fn pass(&self, place: Place) {
        // A destructor that panics while another panic unwinds ends the process.
        if *self.place.lock().unwrap() != Some(place) || std::thread::panicking() {
            return;
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            *self.place.lock().unwrap() = None;
            self.burnt.store(true, Ordering::SeqCst);
            panic!("burnt in {place:?}");
        }
    }
}

struct Rigged<T> {
    it: T,
    fuse: Arc<Fuse>,
    drops: Option<Place>,
    _alive: Option<Counted>,
}

impl<T> Drop for Rigged<T> {
    fn drop(&mut self) {
        if let Some(place) = self.drops {
            self.fuse.pass(place);
        }
    }
}

fn rigged<T>(fuse: &Arc<Fuse>, it: T, drops: Place, count: &Arc<Count>) -> Rigged<T> {
    Rigged {
        it,
        fuse: fuse.clone(),
        drops: Some(drops),
        _alive: Some(Counted::new(count)),
    }
}

/// A key.
impl Hash for Rigged<u64> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fuse.pass(Place::Hash);
        self.it.hash(state);
    }
}

impl PartialEq for Rigged<u64> {
    fn eq(&self, other: &Self) -> bool {
        self.fuse.pass(Place::Eq);
        self.it == other.it
    }
}

impl Eq for Rigged<u64> {}

/// A response.
impl Clone for Rigged<Answer> {
    fn clone(&self) -> Self {
        self.fuse.pass(Place::ResponseClone);
        rigged(
            &self.fuse,
            self.it,
            Place::ResponseDrop,
            &self.fuse.responses,
        )
    }
}

struct RiggedKeys(Arc<Fuse>);

impl KeyBy<Rigged<Ask>> for RiggedKeys {
    type Key = Rigged<u64>;

    fn key(&self, req: &Rigged<Ask>) -> Option<Rigged<u64>> {
        self.0.pass(Place::Key);
        let key = req.it.key?;
        Some(rigged(&self.0, key, Place::KeyDrop, &self.0.keys))
    }

    fn terms(&self, req: &Rigged<Ask>) -> Terms {
        self.0.pass(Place::Terms);
        req.it.terms
    }

    fn prepare(&self, _: &mut Rigged<Ask>, _: Facts) {
        self.0.pass(Place::Prepare);
    }
}

struct RiggedShare(Arc<Fuse>, Admit);

impl Keep for RiggedShare {}

type RiggedResult = Result<Rigged<Answer>, Fault>;

impl Share<Rigged<Answer>, Fault> for RiggedShare {
    type Response = Rigged<Answer>;
    type Shared = Result<Rigged<Answer>, SharedError>;

    fn admit(&self, _: &RiggedResult) -> Admit {
        self.0.pass(Place::Admit);
        self.1
    }

    fn alone(&self, result: RiggedResult) -> Result<Rigged<Answer>, BoxError> {
        self.0.pass(Place::Alone);
        ArcError.alone(result)
    }

    fn split(&self, result: RiggedResult) -> Self::Shared {
        self.0.pass(Place::Split);
        ArcError.split(result)
    }

    fn join(&self, shared: &Self::Shared) -> Result<Rigged<Answer>, BoxError> {
        self.0.pass(Place::Join);
        Share::<Rigged<Answer>, Fault>::join(&ArcError, shared)
    }

    fn last(&self, shared: Self::Shared) -> Result<Rigged<Answer>, BoxError> {
        self.0.pass(Place::Last);
        Share::<Rigged<Answer>, Fault>::last(&ArcError, shared)
    }
}

/// The backend, whose every step may panic.
impl Clone for Rigged<Backend> {
    fn clone(&self) -> Self {
        self.fuse.pass(Place::ServiceClone);
        Self {
            it: self.it.clone(),
            fuse: self.fuse.clone(),
            drops: None,
            _alive: None,
        }
    }
}

impl Service<Rigged<Ask>> for Rigged<Backend> {
    type Response = Rigged<Answer>;
    type Error = Fault;
    type Future = Rigged<Running>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.fuse.pass(Place::PollReady);
        self.it.poll_ready(cx)
    }

    fn call(&mut self, req: Rigged<Ask>) -> Rigged<Running> {
        self.fuse.pass(Place::InnerCall);
        let sent = ask(req.it.key.unwrap()).id(req.it.id);
        drop(req);
        Rigged {
            it: self.it.call(sent),
            fuse: self.fuse.clone(),
            drops: Some(Place::FutureDrop),
            _alive: None,
        }
    }
}

impl Future for Rigged<Running> {
    type Output = RiggedResult;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RiggedResult> {
        self.fuse.pass(Place::InnerPoll);
        let polled = Pin::new(&mut self.it).poll(cx);
        let fuse = &self.fuse;
        polled.map_ok(|answer| rigged(fuse, answer, Place::ResponseDrop, &fuse.responses))
    }
}

// ===== whatever panics, wherever, whenever =====

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Story {
    Alone,
    Followed,
    LeaderLeaves,
    AllLeave,
    AllLeaveUnsent,
    NotForOthers,
    NotForOthersLeaderLeaves,
    Kept,
    Reissue,
    Fail,
    Detached,
    DetachedAllLeave,
    DetachedTaskDropped,
    TimesOut,
}

impl Story {
    const ALL: [Self; 14] = [
        Self::Alone,
        Self::Followed,
        Self::LeaderLeaves,
        Self::AllLeave,
        Self::AllLeaveUnsent,
        Self::NotForOthers,
        Self::NotForOthersLeaderLeaves,
        Self::Kept,
        Self::Reissue,
        Self::Fail,
        Self::Detached,
        Self::DetachedAllLeave,
        Self::DetachedTaskDropped,
        Self::TimesOut,
    ];
}

type RiggedCall = Option<Spawn<Call<Rigged<Answer>>>>;

/// Drops it, and a panic with it.
fn discard<T>(it: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(it)));
}

/// Polls whoever was woken, and the tasks, until nobody is; what is done or has panicked is gone.
fn run(calls: &mut [RiggedCall], tasks: &Mutex<Vec<Task>>, first: bool) {
    let mut first = first;
    for _ in 0..100 {
        let mut moved = std::mem::take(&mut first);
        for call in calls.iter_mut() {
            if let Some(asked) = call
                && (moved || asked.is_woken())
            {
                moved = true;
                let polled = catch_unwind(AssertUnwindSafe(|| asked.poll()));
                match polled {
                    Ok(Poll::Pending) => {}
                    Ok(Poll::Ready(result)) => {
                        discard(result);
                        discard(call.take());
                    }
                    Err(_) => discard(call.take()),
                }
            }
        }
        let all = std::mem::take(&mut *tasks.lock().unwrap());
        for mut task in all {
            let mut cx = Context::from_waker(Waker::noop());
            match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut cx))) {
                Ok(Poll::Pending) => tasks.lock().unwrap().push(task),
                // What a destructor does is its executor's to see.
                Ok(Poll::Ready(())) | Err(_) => discard(task),
            }
        }
        if !moved && !calls.iter().flatten().any(|call| call.is_woken()) {
            return;
        }
    }
    panic!("they spin");
}

async fn tell(story: Story, place: Place, passes: usize) -> bool {
    let what = format!("{story:?}, {place:?}, pass {passes}");
    let fuse = Arc::new(Fuse::default());
    let admit = match story {
        Story::NotForOthers | Story::NotForOthersLeaderLeaves => Admit::LeaderOnly,
        _ => Admit::Share,
    };
    let leaves = match story {
        Story::Reissue => OnLeaderDrop::Reissue,
        Story::Fail => OnLeaderDrop::Fail,
        Story::Detached | Story::DetachedAllLeave | Story::DetachedTaskDropped => {
            OnLeaderDrop::Detach
        }
        _ => OnLeaderDrop::HandOver,
    };
    let tasks: Arc<Mutex<Vec<Task>>> = Arc::default();
    let queue = tasks.clone();
    let layer = CoalesceLayer::new(RiggedKeys(fuse.clone()))
        .share(RiggedShare(fuse.clone(), admit))
        .on_leader_drop(leaves)
        .grace(if story == Story::Kept { secs(1) } else { ms(0) })
        .executor(move |task: Task| queue.lock().unwrap().push(task));
    let handle = layer.handle();
    let inner = Backend::new(Does::Waits);
    let backend = inner.watched();
    let service = layer.layer(Rigged {
        it: inner,
        fuse: fuse.clone(),
        drops: None,
        _alive: None,
    });
    if story == Story::AllLeaveUnsent {
        backend.hold();
    }
    fuse.set(place, passes);
    let begin = |id: u64| {
        let req = rigged(&fuse, ask(1).id(id), Place::RequestDrop, &fuse.requests);
        catch_unwind(AssertUnwindSafe(|| held(&service, req))).ok()
    };
    let many = if story == Story::Alone { 1 } else { 4 };
    let mut calls: Vec<RiggedCall> = Vec::new();
    for id in 0..many {
        calls.push(begin(id));
        let new = calls.len() - 1;
        run(&mut calls[new..], &tasks, true);
    }
    run(&mut calls, &tasks, false);
    match story {
        Story::LeaderLeaves | Story::NotForOthersLeaderLeaves | Story::Reissue | Story::Fail => {
            discard(calls[0].take())
        }
        Story::AllLeave | Story::AllLeaveUnsent | Story::DetachedAllLeave => {
            calls.iter_mut().for_each(|call| discard(call.take()));
        }
        Story::DetachedTaskDropped => {
            let all = std::mem::take(&mut *tasks.lock().unwrap());
            all.into_iter().for_each(discard);
        }
        Story::TimesOut => {
            tokio::time::advance(secs(31)).await;
            tokio::task::yield_now().await;
            run(&mut calls, &tasks, true);
        }
        _ => {}
    }
    run(&mut calls, &tasks, false);
    for call in 1..=20 {
        backend.finish(call, Does::Answers);
        run(&mut calls, &tasks, false);
    }
    if story == Story::Kept {
        calls.push(begin(9));
        run(&mut calls, &tasks, true);
        tokio::time::advance(secs(2)).await;
        calls.push(begin(10));
        run(&mut calls, &tasks, true);
    }
    let stuck = calls.iter().flatten().count();
    assert_eq!(stuck, 0, "{what}: nobody wakes them");
    let left = tasks.lock().unwrap().len();
    assert_eq!(left, 0, "{what}: tasks");

    // What swept results do when dropped is the reader's to see, once.
    *fuse.place.lock().unwrap() = None;
    let now = handle.snapshot();
    assert_eq!((now.flights, now.waiters), (0, 0), "{what}: {now:?}");
    backend.admit();
    backend.usual(Does::Answers);
    tokio::time::advance(secs(200)).await;
    for key in [1, 2] {
        let mut req = ask(key);
        req.id = 4_711;
        let req = rigged(&fuse, req, Place::RequestDrop, &fuse.requests);
        let mut fresh = held(&service, req);
        run_one(&mut fresh, &tasks, &what);
    }
    let now = handle.snapshot();
    assert_eq!((now.flights, now.waiters), (0, 0), "{what}: {now:?}");
    tokio::time::advance(secs(2)).await;
    let _ = handle.snapshot();
    drop((service, layer, handle));
    // What is being returned leaks when the destructor of something else panics on the way out: rust-lang/rust#47949.
    if place != Place::KeyDrop {
        assert_eq!(backend.futures.now(), 0, "{what}: futures");
        assert_eq!(backend.clones.now(), 0, "{what}: services");
        assert_eq!(fuse.requests.now(), 0, "{what}: requests");
        assert_eq!(fuse.responses.now(), 0, "{what}: responses");
    }
    assert_eq!(fuse.keys.now(), 0, "{what}: keys");
    fuse.burnt.load(Ordering::SeqCst)
}

fn run_one(fresh: &mut Spawn<Call<Rigged<Answer>>>, tasks: &Mutex<Vec<Task>>, what: &str) {
    let mut polled = fresh.poll();
    let all = std::mem::take(&mut *tasks.lock().unwrap());
    for mut task in all {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(task.as_mut().poll(&mut cx).is_ready(), "{what}");
    }
    if polled.is_pending() {
        assert!(fresh.is_woken(), "{what}: the key is stuck");
        polled = fresh.poll();
    }
    let answer = assert_ready!(polled, "{what}: the key is stuck").unwrap();
    assert_eq!(answer.it.id, 4_711, "{what}");
}

#[tokio::test(start_paused = true)]
async fn whatever_panics_nobody_is_stuck_and_nothing_is_left() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info
            .payload_as_str()
            .is_some_and(|said| said.starts_with("burnt in"))
        {
            hook(info);
        }
    }));
    let (mut burnt, mut failed) = ([0; Place::ALL.len()], Vec::new());
    for story in Story::ALL {
        for (place, burnt) in Place::ALL.into_iter().zip(&mut burnt) {
            for passes in 1..=6 {
                match AssertUnwindSafe(tell(story, place, passes))
                    .catch_unwind()
                    .await
                {
                    Ok(burns) => *burnt += usize::from(burns),
                    Err(panic) => failed.push(message(panic)),
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} fail: {failed:#?}", failed.len());
    for (place, burnt) in Place::ALL.into_iter().zip(burnt) {
        assert!(burnt > 0, "{place:?} is never passed");
    }
}

// ===== who sees the panic =====

/// Whoever's own code it is that panics sees it; who waits for the same is told, or served.
#[test]
fn a_response_that_panics_when_cloned_costs_one_caller_its_answer() {
    #[derive(Debug)]
    struct Once(Arc<AtomicBool>);
    impl Clone for Once {
        fn clone(&self) -> Self {
            assert!(!self.0.swap(false, Ordering::SeqCst), "told to");
            Self(self.0.clone())
        }
    }
    let fuse = Arc::new(AtomicBool::new(true));
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let responses = move |_| Once(fuse.clone());
    let service = layer.layer(backend.clone().map_response(responses));
    let mut calls: Vec<_> = (0..4).map(|_| held(&service, ask(1))).collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    backend.finish(1, Does::Answers);
    let (mut panics, mut answers) = (0, 0);
    for mut call in calls {
        assert!(call.is_woken());
        match catch_unwind(AssertUnwindSafe(|| call.poll())) {
            Ok(Poll::Ready(Ok(_))) => answers += 1,
            Ok(other) => panic!("{other:?}"),
            Err(_) => panics += 1,
        }
    }
    assert_eq!((panics, answers), (1, 3));
    assert_quiet(&handle);
}

#[test]
fn a_policy_that_panics_is_the_leaders_to_see() {
    struct Angry;
    impl Share<Answer, Fault> for Angry {
        type Response = Answer;
        type Shared = Answer;
        fn admit(&self, _: &Result<Answer, Fault>) -> Admit {
            panic!("told to")
        }
        fn alone(&self, result: Result<Answer, Fault>) -> Result<Answer, BoxError> {
            result.map_err(Into::into)
        }
        fn split(&self, _: Result<Answer, Fault>) -> Answer {
            unreachable!("nothing was admitted")
        }
        fn join(&self, _: &Answer) -> Result<Answer, BoxError> {
            unreachable!("nothing was admitted")
        }
    }
    let layer = CoalesceLayer::new(super::Keyed).share(Angry);
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut leader = held(&service, ask(1));
    let mut follower = held(&service, ask(1));
    assert_pending!(leader.poll());
    assert_pending!(follower.poll());
    backend.finish(1, Does::Answers);
    let error = assert_ready!(follower.poll()).unwrap_err();
    assert_eq!(reason(&error), Reason::Panicked);
    assert!(leader.is_woken());
    let panic = catch_unwind(AssertUnwindSafe(|| leader.poll())).unwrap_err();
    assert_eq!(message(panic), "told to");
    drop((leader, follower));
    // Alone it is not asked.
    assert_usable(&service, &handle, &backend, 1);
}

#[test]
fn a_panic_with_nobody_to_see_it_is_told_to_those_who_wait() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut calls: Vec<_> = (0..4).map(|id| held(&service, ask(1).id(id))).collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    drop(calls.remove(0));
    backend.finish(1, Does::Panics);
    for call in &mut calls {
        let error = assert_ready!(call.poll()).unwrap_err();
        assert_eq!(reason(&error), Reason::Panicked);
    }
    drop(calls);
    assert_usable(&service, &handle, &backend, 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_detached_flight_goes_on_in_its_leader() {
    let layer = layer().on_leader_drop(OnLeaderDrop::Detach);
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let leader = go(&service, ask(1));
    rest().await;
    let follower = go(&service, ask(1));
    rest().await;
    backend.finish(1, Does::Panics);
    assert!(leader.panic().await.contains("told to"));
    assert_eq!(reason(&follower.error().await), Reason::Panicked);
    assert_eq!(ended(&handle, "panic"), 1);
    assert_quiet(&handle);
}

// ===== readiness that fails =====

#[test]
fn an_error_of_readiness_is_the_answer_of_all() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    backend.hold();
    let mut calls: Vec<_> = (0..3).map(|id| held(&service, ask(1).id(id))).collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    backend.admit();
    backend.unready();
    for call in &mut calls {
        assert!(call.is_woken());
        let error = assert_ready!(call.poll()).unwrap_err();
        let fault = tower_flow::error::find::<Fault>(error.as_ref());
        assert_eq!(fault, Some(&Fault("not ready")));
    }
    drop(calls);
    // Alone it is what it was.
    let error = assert_ready!(held(&service, ask(1)).poll()).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Fault("not ready")));
    backend.hold();
    assert_eq!(backend.calls(), 0);
    assert_usable(&service, &handle, &backend, 1);
}

// ===== who goes away =====

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_never_polled_again_holds_nobody_up() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let mut parked = [1, 2].map(|id| held(&service, ask(1).id(id)));
    for call in &mut parked {
        assert_pending!(call.poll());
    }
    // Both sleep, and who joins them is answered; who comes after that has a flight of his own.
    assert_eq!(go(&service, ask(1).id(3)).value().await.id, 1);
    let begun = tokio::time::Instant::now();
    assert_eq!(go(&service, ask(1).id(4)).value().await.id, 4);
    assert!(begun.elapsed() <= ms(101));
    for mut call in parked {
        assert_eq!(assert_ready!(call.poll()).unwrap().id, 1);
    }
    assert_quiet(&handle);
    // Leaked altogether: its place stays taken, the key does not.
    let mut leaked = held(&service, ask(5).id(1));
    assert_pending!(leaked.poll());
    std::mem::forget(leaked);
    assert_eq!(go(&service, ask(5)).value().await.id, 1);
    assert_eq!(go(&service, ask(5).id(2)).value().await.id, 2);
    let now = handle.snapshot();
    assert_eq!((now.flights, now.waiters), (1, 1), "{now:?}");
}

#[test]
fn a_runtime_that_is_shut_down_takes_nobody_elses_flights_with_it() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    for detach in [false, true] {
        let mut layer = layer();
        if detach {
            layer = layer.on_leader_drop(OnLeaderDrop::Detach);
        }
        let handle = layer.handle();
        let backend = Backend::new(Does::Waits);
        let service = layer.layer(backend.clone());
        let (first, second) = (runtime(), runtime());
        let asked: Vec<_> = {
            let _inside = first.enter();
            (0..3).map(|id| go(&service, ask(1).id(id))).collect()
        };
        first.block_on(rest());
        assert_eq!(handle.snapshot().waiters, 3);
        let outside = {
            let _inside = second.enter();
            go(&service, ask(1).id(9))
        };
        second.block_on(rest());
        assert_eq!(handle.snapshot().waiters, 4);
        drop(first);
        drop(asked);
        if detach {
            // Its task is gone, and with it the call.
            let error = second.block_on(outside.error());
            assert_eq!(reason(&error), Reason::Abandoned);
        } else {
            assert_eq!(handle.snapshot().waiters, 1);
            backend.finish(1, Does::Answers);
            assert_eq!(second.block_on(outside.value()).call, 1);
        }
        assert_quiet(&handle);
        assert_eq!(backend.futures.now(), 0);
        // From a new runtime, as if nothing had been.
        backend.usual(Does::Takes(ms(10)));
        let third = runtime();
        third.block_on(async {
            let asked: Vec<_> = (20..23).map(|id| go(&service, ask(1).id(id))).collect();
            for asked in asked {
                assert_eq!(asked.value().await.id, 20);
            }
        });
        assert_quiet(&handle);
    }
}

#[test]
fn a_runtime_that_is_shut_down_with_all_its_callers_leaves_nothing() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(secs(1)));
    let service = layer.layer(backend.clone());
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let asked: Vec<_> = {
            let _inside = runtime.enter();
            (0..10).map(|id| go(&service, ask(id % 2).id(id))).collect()
        };
        runtime.block_on(rest());
        assert_eq!(handle.snapshot().flights, 2);
        drop(runtime);
        drop(asked);
        assert_quiet(&handle);
        assert_eq!(backend.futures.now(), 0);
    }
    assert_usable(&service, &handle, &backend, 1);
}

/// Without any runtime: nothing is timed, and nothing is missing.
#[test]
fn no_runtime_is_needed() {
    let layer = layer();
    let backend = Backend::new(Does::Yields(2));
    let service = layer.layer(backend.clone());
    let others: Vec<_> = (0..3)
        .map(|id| {
            let call = call(&service, ask(1).id(id));
            std::thread::spawn(move || super::block_on(call).unwrap())
        })
        .collect();
    for other in others {
        let _ = other.join().unwrap();
    }
    // Detach has nobody to run its task, and says so.
    let layer = super::layer().on_leader_drop(OnLeaderDrop::Detach);
    let service = layer.layer(backend.clone());
    let error = super::block_on(call(&service, ask(1))).unwrap_err();
    assert_eq!(reason(&error), Reason::Abandoned);
    assert_quiet(&layer.handle());
}

/// A runtime whose timers are off is no reason to fail, nor to time nothing in another.
#[test]
fn a_runtime_without_timers_will_do() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let layer = layer().flight_timeout(secs(1));
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    runtime.block_on(async {
        let asked: Vec<_> = (0..3)
            .map(|id| tokio::spawn(call(&service, ask(1).id(id))))
            .collect();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        backend.finish(1, Does::Answers);
        for asked in asked {
            assert_eq!(asked.await.unwrap().unwrap().call, 1);
        }
    });
    let timed = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    timed.block_on(async {
        let asked = [(); 2].map(|()| go(&service, ask(1)));
        for asked in asked {
            assert_eq!(reason(&asked.error().await), Reason::Timeout);
        }
    });
    assert_quiet(&handle);
}

// ===== wakers =====

#[test]
fn a_waker_that_panics_keeps_nobody_else_asleep() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("told to");
        }
    }
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let bomb = Waker::from(Arc::new(Bomb));
    let mut calls: Vec<_> = (0..70).map(|id| held(&service, ask(1).id(id))).collect();
    let mut bombed = call(&service, ask(1));
    for (n, call) in calls.iter_mut().enumerate() {
        assert_pending!(call.poll());
        if n == 1 {
            let mut cx = Context::from_waker(&bomb);
            assert!(bombed.as_mut().poll(&mut cx).is_pending());
        }
    }
    let woken = catch_unwind(AssertUnwindSafe(|| backend.finish(1, Does::Answers)));
    assert!(woken.is_err(), "whoever wakes sees it");
    for call in &mut calls {
        assert!(call.is_woken());
    }
    for call in &mut calls {
        // Whoever ends the flight wakes the rest, and may see it, too.
        if let Ok(polled) = catch_unwind(AssertUnwindSafe(|| call.poll())) {
            assert_eq!(assert_ready!(polled).unwrap().call, 1);
        }
    }
    drop((calls, bombed));
    assert_usable(&service, &handle, &backend, 1);
}

/// A lock that was held by whoever panicked is no reason to fail, from any thread.
#[test]
fn a_panic_on_one_thread_is_none_on_another() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::PanicsInCall);
    let service = layer.layer(backend.clone());
    for _ in 0..3 {
        let asked = call(&service, ask(1));
        let thread = std::thread::spawn(move || super::block_on(asked));
        assert!(thread.join().is_err());
    }
    let (tell, told) = mpsc::channel();
    backend.usual(Does::Answers);
    let asked = call(&service, ask(1));
    std::thread::spawn(move || tell.send(super::block_on(asked).unwrap()));
    assert_eq!(told.recv_timeout(secs(20)).unwrap().call, 4);
    assert_quiet(&handle);
}
