//! Whatever of the user's panics, fails, calls back or goes away: the layer stays usable, and nobody waits for ever.

use std::error::Error;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use tokio_test::task::Spawn;
use tokio_test::{assert_pending, assert_ready};
use tower::{Layer, Service, ServiceExt as _, service_fn};
use tower_flow::BoxError;
use tower_flow::batch::{All, Batch, BatchHandle, BatchLayer, IntoResults, OnError};
use tower_flow::error::Reason;
use tower_flow::executor::Task;

use super::{
    Answer, Backend, Call, Count, Counted, Does, Fate, Fault, Hands, Item, Running, all, answered,
    assert_quiet, assert_usable, block_on, call, comer, ended, go, held, item, layer, message, ms,
    reason, rest, secs, sharded,
};

// ===== everything of the user's =====

/// The places where foreign code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Shard,
    ShardHash,
    ShardEq,
    ShardDrop,
    Twin,
    TwinHash,
    TwinEq,
    TwinDrop,
    Weight,
    Deadline,
    RequestClone,
    RequestDrop,
    ServiceClone,
    ServiceDrop,
    PollReady,
    InnerCall,
    InnerPoll,
    FutureDrop,
    IntoResults,
    ResultsNext,
    ResultsDrop,
    ResponseClone,
    ResponseDrop,
    FaultDrop,
    BisectWhen,
    Execute,
}

impl Place {
    const ALL: [Self; 26] = [
        Self::Shard,
        Self::ShardHash,
        Self::ShardEq,
        Self::ShardDrop,
        Self::Twin,
        Self::TwinHash,
        Self::TwinEq,
        Self::TwinDrop,
        Self::Weight,
        Self::Deadline,
        Self::RequestClone,
        Self::RequestDrop,
        Self::ServiceClone,
        Self::ServiceDrop,
        Self::PollReady,
        Self::InnerCall,
        Self::InnerPoll,
        Self::FutureDrop,
        Self::IntoResults,
        Self::ResultsNext,
        Self::ResultsDrop,
        Self::ResponseClone,
        Self::ResponseDrop,
        Self::FaultDrop,
        Self::BisectWhen,
        Self::Execute,
    ];

    /// Whether it is the end of something that functions hand on. When a destructor panics on the way out of a function,
    /// the compiler forgets what the function returns (rust-lang/rust#47949); nobody can do anything about that.
    fn forgets(self) -> bool {
        matches!(
            self,
            Self::RequestDrop
                | Self::ServiceDrop
                | Self::FutureDrop
                | Self::ResultsDrop
                | Self::ResponseDrop
                | Self::FaultDrop
        )
    }

    /// Whether it is the comparison of keys that are stored, which alone may run under the layer's lock.
    fn compares(self) -> bool {
        matches!(self, Self::ShardEq | Self::TwinEq)
    }
}

type Act = Arc<dyn Fn() + Send + Sync>;

/// Panics, or acts, the so-many-th time when a place is passed, and counts what is alive.
#[derive(Default)]
struct Fuse {
    place: Mutex<Option<Place>>,
    left: AtomicUsize,
    burnt: AtomicBool,
    /// What it does instead of a panic.
    act: Mutex<Option<Act>>,
    alive: Arc<Count>,
}

impl Fuse {
    fn set(&self, place: Place, passes: usize) {
        *self.place.lock().unwrap() = Some(place);
        self.left.store(passes, Ordering::SeqCst);
    }

    fn out(&self) {
        *self.place.lock().unwrap() = None;
        *self.act.lock().unwrap() = None;
    }

    fn pass(&self, place: Place) {
        // A destructor that panics while another panic unwinds ends the process.
        if *self.place.lock().unwrap() != Some(place) || std::thread::panicking() {
            return;
        }
        let act = self.act.lock().unwrap().clone();
        if let Some(act) = act {
            self.burnt.store(true, Ordering::SeqCst);
            // What it does passes here too.
            *self.place.lock().unwrap() = None;
            act();
            *self.place.lock().unwrap() = Some(place);
        } else if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            *self.place.lock().unwrap() = None;
            self.burnt.store(true, Ordering::SeqCst);
            panic!("burnt in {place:?}");
        }
    }
}

/// Something whose drop, and whose clone, are places.
struct Rigged<T> {
    it: T,
    fuse: Arc<Fuse>,
    clones: Option<Place>,
    drops: Place,
    _alive: Counted,
}

fn rigged<T>(fuse: &Arc<Fuse>, it: T, clones: Option<Place>, drops: Place) -> Rigged<T> {
    let fuse = fuse.clone();
    let _alive = Counted::new(&fuse.alive);
    Rigged {
        it,
        fuse,
        clones,
        drops,
        _alive,
    }
}

impl<T> Drop for Rigged<T> {
    fn drop(&mut self) {
        self.fuse.pass(self.drops);
    }
}

impl<T: Clone> Clone for Rigged<T> {
    fn clone(&self) -> Self {
        self.fuse.pass(self.clones.expect("nobody clones it"));
        rigged(&self.fuse, self.it.clone(), self.clones, self.drops)
    }
}

/// A key, of shards or of twins.
impl Hash for Rigged<u64> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let shard = self.drops == Place::ShardDrop;
        self.fuse.pass(if shard {
            Place::ShardHash
        } else {
            Place::TwinHash
        });
        self.it.hash(state);
    }
}

impl PartialEq for Rigged<u64> {
    fn eq(&self, other: &Self) -> bool {
        let shard = self.drops == Place::ShardDrop;
        self.fuse
            .pass(if shard { Place::ShardEq } else { Place::TwinEq });
        self.it == other.it
    }
}

impl Eq for Rigged<u64> {}

type Req = Rigged<Item>;

fn req(fuse: &Arc<Fuse>, item: Item) -> Req {
    rigged(fuse, item, Some(Place::RequestClone), Place::RequestDrop)
}

/// An error.
impl fmt::Debug for Rigged<Fault> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.it.fmt(f)
    }
}

impl fmt::Display for Rigged<Fault> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.it.fmt(f)
    }
}

impl Error for Rigged<Fault> {}

/// The backend, whose every step is a place.
impl Service<Batch<Req>> for Rigged<Backend> {
    type Response = Rigged<Vec<Result<Answer, Fault>>>;
    type Error = Rigged<Fault>;
    type Future = Rigged<(Running, Batch<Req>)>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.fuse.pass(Place::PollReady);
        self.it
            .poll_ready(cx)
            .map_err(|fault| rigged(&self.fuse, fault, None, Place::FaultDrop))
    }

    fn call(&mut self, batch: Batch<Req>) -> Self::Future {
        self.fuse.pass(Place::InnerCall);
        let running = self
            .it
            .call(Batch::new(batch.iter().map(|req| req.it.clone())));
        rigged(&self.fuse, (running, batch), None, Place::FutureDrop)
    }
}

impl Future for Rigged<(Running, Batch<Req>)> {
    type Output = Result<Rigged<Vec<Result<Answer, Fault>>>, Rigged<Fault>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.fuse.pass(Place::InnerPoll);
        let polled = Pin::new(&mut self.it.0).poll(cx);
        let fuse = &self.fuse;
        polled
            .map_ok(|answers| rigged(fuse, answers, None, Place::ResultsDrop))
            .map_err(|fault| rigged(fuse, fault, None, Place::FaultDrop))
    }
}

impl IntoResults for Rigged<Vec<Result<Answer, Fault>>> {
    type Response = Rigged<Answer>;
    type Error = Rigged<Fault>;

    fn into_results(
        self,
        _: usize,
    ) -> impl Iterator<Item = (usize, Result<Self::Response, Self::Error>)> {
        self.fuse.pass(Place::IntoResults);
        self.enumerate()
    }
}

impl Iterator for Rigged<Vec<Result<Answer, Fault>>> {
    type Item = Result<Rigged<Answer>, Rigged<Fault>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.fuse.pass(Place::ResultsNext);
        if self.it.is_empty() {
            return None;
        }
        let (fuse, clones) = (&self.fuse, Some(Place::ResponseClone));
        Some(match self.it.remove(0) {
            Ok(answer) => Ok(rigged(fuse, answer, clones, Place::ResponseDrop)),
            Err(fault) => Err(rigged(fuse, fault, None, Place::FaultDrop)),
        })
    }
}

type RiggedCall = Option<Spawn<Call<Rigged<Answer>>>>;

/// A service whose every part is rigged, and what belongs to it.
struct World<S> {
    fuse: Arc<Fuse>,
    hands: Hands,
    handle: BatchHandle,
    backend: Backend,
    service: S,
    calls: Vec<RiggedCall>,
    /// How many of them have been polled.
    polled: usize,
}

trait RiggedService:
    Service<Req, Response = Rigged<Answer>, Error = BoxError, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
}

impl<S> RiggedService for S where
    S: Service<Req, Response = Rigged<Answer>, Error = BoxError, Future: Send + 'static>
        + Clone
        + Send
        + 'static
{
}

fn world(fuse: &Arc<Fuse>, driven: bool) -> World<impl RiggedService> {
    let hands = Hands::default();
    let [shard, twin, weight, deadline, when, executor] = [(); 6].map(|()| fuse.clone());
    let run = hands.executor();
    let mut layer = BatchLayer::<Req>::new()
        .max_items(4)
        .max_in_flight(2, 1)
        .queue(20, None)
        .shard_by(move |req: &Req| {
            shard.pass(Place::Shard);
            rigged(&shard, req.it.shard, None, Place::ShardDrop)
        })
        .dedup_by(move |req: &Req| {
            twin.pass(Place::Twin);
            rigged(&twin, req.it.key, None, Place::TwinDrop)
        })
        .max_weight(
            move |req: &Req| {
                weight.pass(Place::Weight);
                req.it.weight
            },
            100,
        )
        .deadline(
            move |req: &Req| {
                deadline.pass(Place::Deadline);
                req.it.deadline
            },
            ms(1),
        )
        .on_error(OnError::Bisect)
        .bisect_when(move |_| {
            when.pass(Place::BisectWhen);
            true
        })
        .executor(move |task: Task| {
            executor.pass(Place::Execute);
            run(task);
        });
    if driven {
        layer = layer.caller_driven();
    }
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(rigged(
        fuse,
        backend.clone(),
        Some(Place::ServiceClone),
        Place::ServiceDrop,
    ));
    World {
        fuse: fuse.clone(),
        hands,
        handle,
        backend,
        service,
        calls: Vec::new(),
        polled: 0,
    }
}

/// Drops it, and a panic with it.
fn discard<T>(it: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(it)));
}

impl<S: RiggedService> World<S> {
    /// Somebody asks; a panic that comes of it is his.
    fn ask(&mut self, item: Item) {
        let asked = catch_unwind(AssertUnwindSafe(|| {
            let mut service = self.service.clone();
            let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
            assert!(ready.is_ready(), "there is room");
            let call: Call<_> = Box::pin(service.call(req(&self.fuse, item)));
            let call = tokio_test::task::spawn(call);
            // Not at the end, where a panic would leak what is returned.
            drop(service);
            call
        }));
        self.calls.push(asked.ok());
    }

    fn leave(&mut self, who: usize) {
        discard(self.calls[who].take());
    }

    /// Polls tasks and callers until all are at rest; who is answered, or has panicked, is gone.
    fn run(&mut self) {
        for _ in 0..100 {
            let mut moved = catch_unwind(AssertUnwindSafe(|| self.hands.run())).unwrap_or(true);
            let polled = std::mem::replace(&mut self.polled, self.calls.len());
            for (who, call) in self.calls.iter_mut().enumerate() {
                let due = call.as_ref().is_some_and(|call| call.is_woken());
                if !due && (who < polled || call.is_none()) {
                    continue;
                }
                moved = true;
                let asked = call.as_mut().expect("it is due");
                match catch_unwind(AssertUnwindSafe(|| asked.poll())) {
                    Ok(Poll::Pending) => {}
                    Ok(Poll::Ready(result)) => {
                        discard(result);
                        discard(call.take());
                    }
                    Err(_) => discard(call.take()),
                }
            }
            if !moved {
                return;
            }
        }
        panic!("they spin");
    }

    fn finish(&mut self, call: usize, end: Does) {
        self.backend.finish(call, end);
        self.run();
    }

    /// Every batch comes to its end.
    fn settle(&mut self) {
        self.backend.admit();
        self.run();
        for call in 1..=60 {
            self.finish(call, Does::Answers);
        }
    }

    fn waiting(&self) -> usize {
        self.calls.iter().flatten().count()
    }
}

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Story {
    Alone,
    Several,
    TwinLeaves,
    AllLeaveWaiting,
    AllLeaveInFlight,
    Fails,
    Poisoned,
    OwnFaults,
    Short,
    TaskDropped,
    TaskDroppedInFlight,
    NotReady,
    NeverReady,
    Drained,
    Driven,
    DrivenAndLeft,
}

impl Story {
    const ALL: [Self; 16] = [
        Self::Alone,
        Self::Several,
        Self::TwinLeaves,
        Self::AllLeaveWaiting,
        Self::AllLeaveInFlight,
        Self::Fails,
        Self::Poisoned,
        Self::OwnFaults,
        Self::Short,
        Self::TaskDropped,
        Self::TaskDroppedInFlight,
        Self::NotReady,
        Self::NeverReady,
        Self::Drained,
        Self::Driven,
        Self::DrivenAndLeft,
    ];

    fn is_driven(self) -> bool {
        matches!(self, Self::Driven | Self::DrivenAndLeft)
    }
}

/// Lets the story happen to its end.
fn tell<S: RiggedService>(world: &mut World<S>, story: Story) {
    let fate = match story {
        Story::OwnFaults => Fate::Fails,
        Story::Poisoned => Fate::Poison,
        _ => Fate::Fine,
    };
    if matches!(story, Story::NotReady | Story::NeverReady) {
        world.backend.hold();
    }
    world.ask(item(0));
    if story != Story::Alone {
        // Two shards, a twin, one more than fits in a batch.
        world.ask(item(1).key(0));
        world.ask(item(2).fate(fate));
        world.ask(item(3).shard(1).key(0));
        for id in 4..8 {
            world.ask(item(id));
        }
    }
    match story {
        Story::TaskDropped => discard(catch_unwind(AssertUnwindSafe(|| world.hands.shut()))),
        Story::AllLeaveWaiting => (0..world.calls.len()).for_each(|who| world.leave(who)),
        Story::TwinLeaves => world.leave(0),
        _ => {}
    }
    world.run();
    match story {
        Story::Fails => world.finish(1, Does::Fails),
        Story::Short => world.finish(1, Does::Short(2)),
        Story::TaskDroppedInFlight => {
            discard(catch_unwind(AssertUnwindSafe(|| world.hands.shut())));
        }
        Story::AllLeaveInFlight => (0..world.calls.len()).for_each(|who| world.leave(who)),
        Story::DrivenAndLeft => (0..2).for_each(|who| world.leave(who)),
        Story::NotReady => {
            world.ask(item(8));
            world.backend.admit();
        }
        Story::NeverReady => (0..world.calls.len()).for_each(|who| world.leave(who)),
        Story::Drained => discard(catch_unwind(AssertUnwindSafe(|| world.handle.drain()))),
        _ => {}
    }
    world.run();
    world.settle();
}

// ===== whatever panics, wherever, whenever =====

/// What is wrong with the layer after a story in which something panicked.
fn verdict(fuse: &Arc<Fuse>, place: Place, story: Story, passes: usize) -> Result<(), String> {
    let mut world = world(fuse, story.is_driven());
    fuse.set(place, passes);
    tell(&mut world, story);
    fuse.out();
    world.settle();
    let now = world.handle.snapshot();
    if world.waiting() > 0 {
        return Err(format!("they hang: {now:?}"));
    }
    if (now.queued, now.in_flight, now.shards) != (0, 0, 0) {
        return Err(format!("something is left: {now:?}"));
    }
    let ends: u64 = now.results.iter().map(|(_, count)| count).sum();
    if ends - ended(&world.handle, "rejected") != now.items {
        return Err(format!("it does not add up: {now:?}"));
    }
    if world.backend.futures.now() + world.hands.len() > 0 {
        return Err("a task for life".to_owned());
    }
    if story != Story::Drained {
        world.backend.usual(Does::Answers);
        let calls = world.backend.calls();
        world.ask(item(99));
        world.run();
        if world.waiting() > 0 || world.backend.calls() != calls + 1 {
            return Err("it is stuck".to_owned());
        }
    }
    let World { service, calls, .. } = world;
    discard(calls);
    discard(service);
    match fuse.alive.now() {
        0 => Ok(()),
        _ if place.forgets() => Ok(()),
        alive => Err(format!("a leak of {alive}")),
    }
}

#[test]
fn whatever_panics_wherever_and_whenever_nobody_hangs_and_nothing_leaks() {
    let mut burnt = Vec::new();
    let mut wrong = Vec::new();
    for place in Place::ALL {
        for story in Story::ALL {
            for passes in 1..=6 {
                let fuse = Arc::new(Fuse::default());
                let act = AssertUnwindSafe(|| verdict(&fuse, place, story, passes));
                let verdict = catch_unwind(act).unwrap_or_else(|panic| Err(message(panic)));
                if let Err(what) = verdict {
                    wrong.push(format!("{place:?} in {story:?} after {passes}: {what}"));
                }
                if fuse.burnt.load(Ordering::SeqCst) {
                    burnt.push(place);
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    for place in Place::ALL {
        assert!(burnt.contains(&place), "nothing passes {place:?}");
    }
}

/// Runs it in a thread of its own, and fails if it takes long.
pub fn in_time(what: &str, act: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        act();
        let _ = done.send(());
    });
    match ended.recv_timeout(secs(20)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        _ => thread.join().unwrap(),
    }
}

/// What the user's code calls of the layer, whenever it runs, it may call: the layer holds no lock then.
#[test]
fn the_users_code_may_call_the_layer_wherever_it_runs() {
    for place in Place::ALL {
        if place.compares() {
            continue;
        }
        for story in Story::ALL {
            let what = format!("{place:?} in {story:?}");
            let named = what.clone();
            in_time(&named, move || {
                let fuse = Arc::new(Fuse::default());
                let mut world = world(&fuse, story.is_driven());
                let handle = world.handle.clone();
                *fuse.act.lock().unwrap() = Some(Arc::new(move || {
                    let now = handle.snapshot();
                    assert!(now.in_flight <= 2);
                    handle.flush();
                    handle.set_max_items(4);
                }));
                fuse.set(place, usize::MAX);
                tell(&mut world, story);
                fuse.out();
                world.settle();
                assert_eq!(world.waiting(), 0, "{what}");
                assert_quiet(&world.handle);
            });
        }
    }
}

/// A waker that looks at the layer when it is cloned, woken and dropped.
struct Curious(BatchHandle, AtomicUsize);

impl Wake for Curious {
    fn wake(self: Arc<Self>) {
        self.0.snapshot();
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Curious {
    fn drop(&mut self) {
        self.0.snapshot();
    }
}

#[test]
fn wakers_may_call_the_layer_when_they_are_woken_and_dropped() {
    for driven in [false, true] {
        in_time("a waker", move || {
            let hands = Hands::default();
            let mut layer = layer()
                .max_items(2)
                .queue(4, None)
                .executor(hands.executor());
            if driven {
                layer = layer.caller_driven();
            }
            let handle = layer.handle();
            let backend = Backend::new(Does::Waits);
            let service = layer.layer(backend.clone());
            let waker = || Arc::new(Curious(handle.clone(), AtomicUsize::new(0)));
            let mut calls: Vec<_> = (0..4).map(|id| call(&service, item(id))).collect();
            let wakers: Vec<_> = (0..4).map(|_| waker()).collect();
            for (call, curious) in calls.iter_mut().zip(&wakers) {
                // Twice, under different wakers: the first is dropped.
                for curious in [waker(), curious.clone()] {
                    let waker = Waker::from(curious);
                    let _ = call.as_mut().poll(&mut Context::from_waker(&waker));
                }
            }
            let mut comers: Vec<_> = (0..3).map(|_| service.clone()).collect();
            let comes: Vec<_> = (0..3).map(|_| waker()).collect();
            for (comer, curious) in comers.iter_mut().zip(&comes) {
                for curious in [waker(), curious.clone()] {
                    let waker = Waker::from(curious);
                    let _ = comer.poll_ready(&mut Context::from_waker(&waker));
                }
            }
            drop(comers.pop());
            for round in 1..=2 {
                hands.run();
                backend.finish(round, Does::Answers);
                hands.run();
                for call in &mut calls {
                    let waker = Waker::from(waker());
                    if let Poll::Ready(result) =
                        call.as_mut().poll(&mut Context::from_waker(&waker))
                    {
                        assert!(result.unwrap().call <= round);
                        *call = Box::pin(std::future::pending());
                    }
                }
            }
            drop((calls, comers, wakers, comes));
            assert_quiet(&handle);
        });
    }
}

// ===== who leaves, and when =====

/// Every caller leaves at every point of a program of three batches; the others have their answers.
#[test]
fn whoever_leaves_at_whatever_point_the_others_are_answered() {
    for leaver in 0..5 {
        for point in 0..40 {
            for driven in [false, true] {
                let hands = Hands::default();
                let mut layer = layer().max_items(2).executor(hands.executor());
                if driven {
                    layer = layer.caller_driven();
                }
                let handle = layer.handle();
                let backend = Backend::new(Does::Waits);
                backend.hold();
                let service = layer.layer(backend.clone());
                let mut calls: Vec<_> = (0..5).map(|id| Some(held(&service, item(id)))).collect();
                let mut answers = [None; 5];
                let mut now = 0;
                // One poll of one task or caller is one point.
                let mut steps = 0;
                while steps < 60 {
                    steps += 1;
                    if steps - 1 == point {
                        calls[leaver] = None;
                    }
                    match steps % 7 {
                        0 => {
                            hands.poll();
                        }
                        1 if steps > 10 => backend.admit(),
                        2 => {
                            for call in 1..=backend.calls() {
                                backend.finish(call, Does::Answers);
                            }
                        }
                        _ => {
                            now = (now + 1) % 5;
                            if let Some(call) = &mut calls[now]
                                && let Poll::Ready(result) = call.poll()
                            {
                                answers[now] = Some(result.unwrap());
                                calls[now] = None;
                            }
                        }
                    }
                }
                // The rest goes by wakes alone.
                for _ in 0..50 {
                    for call in 1..=backend.calls() {
                        backend.finish(call, Does::Answers);
                    }
                    hands.run();
                    for who in 0..5 {
                        if let Some(call) = &mut calls[who]
                            && call.is_woken()
                            && let Poll::Ready(result) = call.poll()
                        {
                            answers[who] = Some(result.unwrap());
                            calls[who] = None;
                        }
                    }
                }
                for (who, answer) in answers.iter().enumerate() {
                    let what = format!("{who}, when {leaver} left at {point}, driven: {driven}");
                    match answer {
                        Some(answer) => assert_eq!(answer.id, who as u64, "{what}"),
                        None => assert_eq!(who, leaver, "{what} hangs"),
                    }
                }
                assert_eq!(hands.len(), 0);
                // A batch nobody waits for stands still until somebody comes, where callers drive.
                let mut drain = tokio_test::task::spawn(handle.drain());
                assert_ready!(drain.poll());
                assert_quiet(&handle);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_never_ready_keeps_nobody_who_leaves() {
    let layer = sharded().deadline(|item: &Item| item.deadline, ms(0));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    backend.hold();
    let service = layer.layer(backend.clone());
    let leave: Vec<_> = (0..30)
        .map(|id| go(&service, item(id).shard(id % 7)))
        .collect();
    let expire: Vec<_> = (30..60)
        .map(|id| go(&service, item(id).shard(id % 7).within(ms(50))))
        .collect();
    rest().await;
    for asked in leave {
        asked.cancel().await;
    }
    for asked in expire {
        assert_eq!(reason(&asked.error().await), Reason::Deadline);
    }
    rest().await;
    assert_eq!((backend.calls(), backend.busy.total()), (0, 0));
    assert_usable(&service, &handle, &backend).await;
}

// ===== executors =====

#[test]
fn an_executor_that_drops_its_tasks_leaves_nobody_waiting() {
    let layer = sharded().executor(drop::<Task>);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    for round in 0..3 {
        let mut calls: Vec<_> = (0..5)
            .map(|id| held(&service, item(id).shard(id % 2)))
            .collect();
        for call in &mut calls {
            let error = assert_ready!(call.poll()).unwrap_err();
            assert_eq!(reason(&error), Reason::Abandoned, "{round}: {error}");
        }
        assert_eq!(backend.calls(), 0);
        assert_quiet(&handle);
    }
    assert_eq!(ended(&handle, "abandoned"), 15);
}

#[test]
fn an_executor_that_never_polls_bounds_what_it_holds() {
    let hands = Hands::default();
    let layer = layer().queue(5, None).executor(hands.executor());
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let mut calls: Vec<_> = (0..5).map(|id| held(&service, item(id))).collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    let mut late = comer(&service);
    assert_pending!(late.poll_ready());
    assert_eq!(hands.len(), 1);
    drop(calls);
    assert!(late.is_woken());
    assert_eq!(handle.snapshot().queued, 0);
    // It never ran, and what comes after still depends on it: when it goes, another is tried, and then that is told.
    let mut call = held(&service, item(9));
    for _ in 0..2 {
        assert_pending!(call.poll());
        hands.shut();
        assert!(call.is_woken());
    }
    let error = assert_ready!(call.poll()).unwrap_err();
    assert_eq!(reason(&error), Reason::Abandoned);
    assert_quiet(&handle);
}

#[test]
fn an_executor_may_run_its_task_before_it_returns() {
    in_time("a task that runs at once", || {
        let layer = sharded().max_items(2).executor(|mut task: Task| {
            let mut cx = Context::from_waker(Waker::noop());
            // It gives way once, and has nothing else to wait for.
            let mut polled = (0..2).map(|_| task.as_mut().poll(&mut cx));
            assert!(polled.any(|polled| polled.is_ready()));
        });
        let handle = layer.handle();
        let backend = Backend::new(Does::Answers);
        let service = layer.layer(backend.clone());
        for id in 0..10 {
            let mut call = held(&service, item(id).shard(id % 3));
            assert_eq!(assert_ready!(call.poll()).unwrap().id, id);
        }
        assert_eq!(backend.sizes(), [1; 10]);
        assert_quiet(&handle);
    });
}

#[test]
fn an_executor_may_poll_once_before_it_keeps_the_task() {
    in_time("a task that is polled early", || {
        let hands = Hands::default();
        let keep = hands.executor();
        let layer = layer().max_items(2).executor(move |mut task: Task| {
            let mut cx = Context::from_waker(Waker::noop());
            if task.as_mut().poll(&mut cx).is_pending() {
                keep(task);
            }
        });
        let handle = layer.handle();
        let backend = Backend::new(Does::Waits);
        let service = layer.layer(backend.clone());
        let mut calls: Vec<_> = (0..6).map(|id| held(&service, item(id))).collect();
        for round in 1..=4 {
            hands.run();
            backend.finish(round, Does::Answers);
        }
        hands.run();
        for (id, call) in (0..).zip(&mut calls) {
            assert_eq!(assert_ready!(call.poll()).unwrap().id, id);
        }
        assert_quiet(&handle);
    });
}

#[test]
fn an_executor_that_panics_fails_the_call_and_no_other() {
    let panics = Arc::new(AtomicBool::new(true));
    let (hands, told) = (Hands::default(), panics.clone());
    let keep = hands.executor();
    let layer = layer().executor(move |task: Task| {
        assert!(!told.load(Ordering::SeqCst), "told to");
        keep(task);
    });
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    match catch_unwind(AssertUnwindSafe(|| held(&service, item(0)))) {
        Ok(mut call) => {
            let error = assert_ready!(call.poll()).unwrap_err();
            assert!(matches!(
                reason(&error),
                Reason::Abandoned | Reason::Panicked
            ));
        }
        Err(panic) => assert!(message(panic).contains("told to")),
    }
    assert_quiet(&handle);
    panics.store(false, Ordering::SeqCst);
    let mut call = held(&service, item(1));
    hands.run();
    assert_eq!(assert_ready!(call.poll()).unwrap().id, 1);
    assert_quiet(&handle);
}

// ===== what panics where =====

/// A key that panics when the so-many-th of them is dropped.
struct Grumbles(Arc<AtomicUsize>);

impl Drop for Grumbles {
    fn drop(&mut self) {
        let left = self.0.fetch_sub(1, Ordering::SeqCst);
        assert!(left != 1 || std::thread::panicking(), "told to");
    }
}

impl PartialEq for Grumbles {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Grumbles {}

impl Hash for Grumbles {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[test]
fn a_key_that_panics_when_it_is_dropped_takes_no_shard_along() {
    let (hands, left) = (Hands::default(), Arc::new(AtomicUsize::new(1)));
    let fuse = left.clone();
    let layer = layer()
        .shard_by(move |_: &Item| Grumbles(fuse.clone()))
        .executor(hands.executor());
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    // A batch is in flight, and the shard has no collector. The key of the next is the second, and not needed.
    let mut calls = vec![held(&service, item(0))];
    hands.run();
    calls.extend(catch_unwind(AssertUnwindSafe(|| held(&service, item(1)))).ok());
    assert!(left.load(Ordering::SeqCst) != 1, "it was dropped");
    calls.push(held(&service, item(2)));
    for call in 1..5 {
        backend.finish(call, Does::Answers);
        hands.run();
    }
    for call in &mut calls {
        assert!(assert_ready!(call.poll()).is_ok());
    }
    drop(calls);
    assert_quiet(&handle);
}

/// Whatever of the user's panics while a batch is handled, its items are told that it was a panic.
#[test]
fn a_panic_amid_a_batch_is_told_as_one() {
    let places = [
        Place::ServiceClone,
        Place::PollReady,
        Place::InnerCall,
        Place::InnerPoll,
        Place::IntoResults,
        Place::ResultsNext,
        Place::ResponseClone,
        Place::RequestClone,
        Place::BisectWhen,
        Place::FutureDrop,
        Place::ResultsDrop,
    ];
    let mut wrong = Vec::new();
    for place in places {
        let fuse = Arc::new(Fuse::default());
        let mut world = world(&fuse, false);
        if place == Place::BisectWhen {
            world.backend.next([Does::Fails]);
        }
        for id in 0..3 {
            let mut service = world.service.clone();
            let call: Call<_> = Box::pin(service.call(req(&fuse, item(id).key(id / 2))));
            world.calls.push(Some(tokio_test::task::spawn(call)));
        }
        fuse.set(place, 1);
        for call in 1..4 {
            let _ = catch_unwind(AssertUnwindSafe(|| world.hands.run()));
            world.backend.finish(call, Does::Answers);
        }
        assert!(
            fuse.burnt.load(Ordering::SeqCst),
            "nothing passes {place:?}"
        );
        for call in world.calls.iter_mut().flatten() {
            let Err(error) = assert_ready!(call.poll()) else {
                continue;
            };
            if place == Place::BisectWhen {
                // Who cannot say that an error is worth it has not said so.
                assert!(error.to_string().contains("told to"), "{error}");
            } else if reason(&error) != Reason::Panicked {
                wrong.push(format!("{place:?} is told as {:?}", reason(&error)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

// ===== what panics in the answers =====

#[tokio::test(start_paused = true)]
async fn a_codec_that_panics_amid_the_answers_fails_the_rest_of_its_batch() {
    struct Half;
    impl IntoResults for Half {
        type Response = usize;
        type Error = Fault;

        fn into_results(self, _: usize) -> impl Iterator<Item = (usize, Result<usize, Fault>)> {
            (0..).map(|position| {
                assert!(position < 3, "told to");
                (position, Ok(position))
            })
        }
    }
    let layer = layer();
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |_: Batch<Item>| Ok::<_, Fault>(Half)));
    for _ in 0..2 {
        let asked: Vec<_> = (0..6).map(|id| go(&service, item(id))).collect();
        for (id, asked) in asked.into_iter().enumerate() {
            match asked.result().await {
                Ok(position) => assert_eq!((position, id < 3), (id, true)),
                Err(error) => assert_eq!(reason(&error), Reason::Panicked, "{id}"),
            }
        }
        rest().await;
        assert_quiet(&handle);
    }
    assert!(ended(&handle, "panic") >= 6);
}

#[tokio::test(start_paused = true)]
async fn answers_without_end_come_to_an_end() {
    struct Endless;
    impl IntoResults for Endless {
        type Response = usize;
        type Error = Fault;

        fn into_results(self, items: usize) -> impl Iterator<Item = (usize, Result<usize, Fault>)> {
            (0..items)
                .chain(std::iter::repeat_n(0, 1_000_000))
                .map(|n| (n, Ok(n)))
        }
    }
    let layer = layer();
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |_: Batch<Item>| Ok::<_, Fault>(Endless)));
    let asked: Vec<_> = (0..6).map(|id| go(&service, item(id))).collect();
    for (id, asked) in asked.into_iter().enumerate() {
        assert_eq!(asked.value().await, id);
    }
    assert!(assert_quiet(&handle).unknown > 0);
}

#[tokio::test(start_paused = true)]
async fn a_future_that_panics_when_it_is_dropped_takes_nobody_along() {
    struct Grumpy(bool);
    impl Future for Grumpy {
        type Output = Result<All<u8>, Fault>;

        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            self.0 = true;
            Poll::Ready(Ok(All(7)))
        }
    }
    impl Drop for Grumpy {
        fn drop(&mut self) {
            assert!(std::thread::panicking() || !self.0, "told to");
        }
    }
    let layer = layer();
    let handle = layer.handle();
    let service = layer.layer(service_fn(|_: Batch<Item>| Grumpy(false)));
    for _ in 0..3 {
        let asked: Vec<_> = (0..4).map(|id| go(&service, item(id))).collect();
        for asked in asked {
            // It has answered; whether that counts, the layer decides. It ends.
            match asked.result().await {
                Ok(answer) => assert_eq!(answer, 7),
                Err(error) => assert_eq!(reason(&error), Reason::Panicked),
            }
        }
        rest().await;
        assert_quiet(&handle);
    }
}

#[test]
fn a_panic_of_a_caller_amid_its_poll_leaves_the_layer_whole() {
    // A caller-driven layer runs foreign code in the caller's poll.
    let layer = layer().caller_driven();
    let handle = layer.handle();
    let backend = Backend::new(Does::Panics);
    let service = layer.layer(backend.clone());
    let mut calls: Vec<_> = (0..3).map(|id| held(&service, item(id))).collect();
    for call in &mut calls {
        match catch_unwind(AssertUnwindSafe(|| call.poll())) {
            Ok(polled) => {
                let error = assert_ready!(polled).unwrap_err();
                assert_eq!(reason(&error), Reason::Panicked);
            }
            Err(panic) => assert!(message(panic).contains("told to")),
        }
    }
    drop(calls);
    assert_quiet(&handle);
    backend.usual(Does::Answers);
    assert_eq!(block_on(call(&service, item(9))).unwrap().id, 9);
    assert_quiet(&handle);
}

/// A layer none of whose batches end is no reason not to end a program.
#[tokio::test(start_paused = true)]
async fn everything_can_be_dropped_at_any_time() {
    for waits in [false, true] {
        let layer = layer().max_items(2);
        let backend = Backend::new(Does::Never);
        let watched = backend.watched();
        if waits {
            watched.hold();
        }
        let service = layer.layer(backend);
        let handle = layer.handle();
        let asked = all(&service, 0..10);
        rest().await;
        drop((layer, service));
        for asked in asked {
            asked.cancel().await;
        }
        rest().await;
        let in_flight = usize::from(!waits);
        assert_eq!(handle.snapshot().in_flight, in_flight as u64);
        assert_eq!(watched.futures.now(), in_flight);
    }
    let service = layer().layer(Backend::new(Does::Answers));
    let error = service.clone().oneshot(item(1)).await;
    assert!(error.is_ok());
    answered(all(&service, 0..3)).await;
}
