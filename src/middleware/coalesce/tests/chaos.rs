//! Callers, backends and tasks in random order, and all foreign code panics now and then: nobody is left waiting, nothing
//! is left over, and every key works after that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI64, AtomicU32};
use std::task::{Wake, Waker};

use super::*;

/// Where foreign code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Key,
    Terms,
    Prepare,
    KeyHash,
    KeyEq,
    KeyDrop,
    ReqDrop,
    ServiceClone,
    ServiceReady,
    ServiceCall,
    ServiceDrop,
    FuturePoll,
    FutureDrop,
    ResponseClone,
    ResponseDrop,
    Admit,
    Alone,
    Split,
    Join,
    Last,
    Fail,
    Wake,
    Execute,
    TaskDrop,
}

const PLACES: [Place; 24] = [
    Place::Key,
    Place::Terms,
    Place::Prepare,
    Place::KeyHash,
    Place::KeyEq,
    Place::KeyDrop,
    Place::ReqDrop,
    Place::ServiceClone,
    Place::ServiceReady,
    Place::ServiceCall,
    Place::ServiceDrop,
    Place::FuturePoll,
    Place::FutureDrop,
    Place::ResponseClone,
    Place::ResponseDrop,
    Place::Admit,
    Place::Alone,
    Place::Split,
    Place::Join,
    Place::Last,
    Place::Fail,
    Place::Wake,
    Place::Execute,
    Place::TaskDrop,
];

/// Panics where and when it was set to, and counts what there is.
#[derive(Default)]
struct Fuse {
    /// The places, and how many times it goes well before.
    at: Mutex<Vec<(Place, u32)>>,
    hits: AtomicU32,
    alive: AtomicI64,
}

impl Fuse {
    fn burn(&self, place: Place) {
        if std::thread::panicking() {
            return;
        }
        let mut at = self.at.lock().unwrap();
        let Some(found) = at.iter().position(|(there, _)| *there == place) else {
            return;
        };
        if at[found].1 > 0 {
            at[found].1 -= 1;
            return;
        }
        at.remove(found);
        drop(at);
        self.hits.fetch_add(1, SeqCst);
        std::panic::resume_unwind(Box::new(place));
    }
}

/// Something foreign that is counted, and burns when it is dropped.
struct Thing(Arc<Fuse>, Place);

impl Thing {
    fn new(fuse: &Arc<Fuse>, place: Place) -> Self {
        fuse.alive.fetch_add(1, SeqCst);
        Self(fuse.clone(), place)
    }
}

impl Drop for Thing {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, SeqCst);
        self.0.burn(self.1);
    }
}

struct Name(u8, Thing);

impl std::hash::Hash for Name {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.1.0.burn(Place::KeyHash);
        state.write_u8(self.0);
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.1.0.burn(Place::KeyEq);
        self.0 == other.0
    }
}

impl Eq for Name {}

struct Req {
    name: u8,
    priority: Priority,
    thing: Thing,
}

struct By;

impl KeyBy<Req> for By {
    type Key = Name;

    fn key(&self, req: &Req) -> Option<Name> {
        req.thing.0.burn(Place::Key);
        Some(Name(req.name, Thing::new(&req.thing.0, Place::KeyDrop)))
    }

    fn terms(&self, req: &Req) -> Terms {
        req.thing.0.burn(Place::Terms);
        Terms::default().priority(req.priority)
    }

    fn prepare(&self, req: &mut Req, _: Facts) {
        req.thing.0.burn(Place::Prepare);
    }
}

struct Response(Admit, Thing);

impl Clone for Response {
    fn clone(&self) -> Self {
        self.1.0.burn(Place::ResponseClone);
        Self(self.0, Thing::new(&self.1.0, Place::ResponseDrop))
    }
}

struct Fair(Arc<Fuse>);

impl Keep for Fair {}

impl Share<Response, BoxError> for Fair {
    type Response = Response;
    type Shared = Response;

    fn admit(&self, result: &Result<Response, BoxError>) -> Admit {
        self.0.burn(Place::Admit);
        result.as_ref().map_or(Admit::Retry, |response| response.0)
    }

    fn alone(&self, result: Result<Response, BoxError>) -> Result<Response, BoxError> {
        self.0.burn(Place::Alone);
        result
    }

    fn split(&self, result: Result<Response, BoxError>) -> Response {
        self.0.burn(Place::Split);
        result.expect("errors are not shared")
    }

    fn join(&self, shared: &Response) -> Result<Response, BoxError> {
        self.0.burn(Place::Join);
        Ok(shared.clone())
    }

    fn last(&self, shared: Response) -> Result<Response, BoxError> {
        self.0.burn(Place::Last);
        Ok(shared)
    }

    fn fail(&self, rejection: Rejection) -> Result<Response, BoxError> {
        self.0.burn(Place::Fail);
        Err(rejection.into())
    }
}

/// A call that is answered by hand.
#[derive(Default)]
struct Call(Mutex<(Option<Admit>, Option<Waker>)>);

impl Call {
    fn answer(&self, admit: Admit) {
        let mut state = self.0.lock().unwrap();
        state.0 = Some(admit);
        let waker = state.1.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes for nothing.
    fn ring(&self) {
        let waker = self.0.lock().unwrap().1.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Inner {
    thing: Thing,
    ready: bool,
    /// Whether calls are answered at once.
    quick: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Arc<Call>>>>,
}

struct Answer {
    thing: Thing,
    call: Arc<Call>,
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        self.thing.0.burn(Place::ServiceClone);
        Self {
            thing: Thing::new(&self.thing.0, Place::ServiceDrop),
            ready: false,
            quick: self.quick.clone(),
            calls: self.calls.clone(),
        }
    }
}

impl Service<Req> for Inner {
    type Response = Response;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.thing.0.burn(Place::ServiceReady);
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Req) -> Answer {
        assert!(std::mem::take(&mut self.ready), "it was asked before");
        // A parameter that panics as the last thing leaks what is returned.
        drop(req);
        self.thing.0.burn(Place::ServiceCall);
        let call = Arc::new(Call::default());
        if self.quick.load(SeqCst) {
            call.answer(Admit::Share);
        }
        self.calls.lock().unwrap().push(call.clone());
        Answer {
            thing: Thing::new(&self.thing.0, Place::FutureDrop),
            call,
        }
    }
}

impl Future for Answer {
    type Output = Result<Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let fuse = &self.thing.0;
        fuse.burn(Place::FuturePoll);
        let mut state = self.call.0.lock().unwrap();
        match state.0 {
            Some(Admit::Retry) => Poll::Ready(Err("retry".into())),
            Some(admit) => {
                let thing = Thing::new(fuse, Place::ResponseDrop);
                Poll::Ready(Ok(Response(admit, thing)))
            }
            None => {
                state.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A caller or a task.
struct Actor<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    flag: Arc<Flag>,
    /// Counted with a task.
    _thing: Option<Thing>,
}

struct Flag(Arc<Fuse>, AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.1.store(true, SeqCst);
        self.0.burn(Place::Wake);
    }
}

impl<T> Actor<T> {
    fn new(
        fuse: &Arc<Fuse>,
        future: Pin<Box<dyn Future<Output = T> + Send>>,
        thing: Option<Thing>,
    ) -> Self {
        let flag = Arc::new(Flag(fuse.clone(), AtomicBool::new(true)));
        Self {
            future,
            flag,
            _thing: thing,
        }
    }

    fn runs(&self) -> bool {
        self.flag.1.load(SeqCst)
    }

    /// Whether it is over, well or not.
    fn poll(&mut self) -> bool {
        self.flag.1.store(false, SeqCst);
        let waker = self.flag.clone().into();
        let polled = safely(|| {
            self.future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready()
        });
        polled.unwrap_or(true)
    }
}

fn safely<R>(work: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => Some(result),
        // It is foreign code that panicked, and nobody else.
        Err(payload) if payload.is::<Place>() => None,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

struct World {
    fuse: Arc<Fuse>,
    layer: CoalesceLayer<By, Fair>,
    service: Coalesce<Inner, By, Fair>,
    quick: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Arc<Call>>>>,
    callers: Vec<Actor<Result<Response, BoxError>>>,
    spawned: Arc<Mutex<Vec<Task>>>,
    tasks: Vec<Actor<()>>,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

impl World {
    fn new(random: &mut Random) -> Self {
        let fuse = Arc::new(Fuse::default());
        let spawned = Arc::new(Mutex::new(Vec::new()));
        let policies = [
            OnLeaderDrop::HandOver,
            OnLeaderDrop::Detach,
            OnLeaderDrop::Reissue,
            OnLeaderDrop::Fail,
        ];
        let hour = Duration::from_secs(3_600);
        let (tasks, burns) = (spawned.clone(), fuse.clone());
        let layer = CoalesceLayer::new(By)
            .share(Fair(fuse.clone()))
            .flight_timeout(None)
            .on_leader_drop(policies[random.below(4)])
            .readiness([Readiness::Late, Readiness::Eager][random.below(2)])
            .leader_age([Duration::ZERO, hour, hour][random.below(3)])
            .grace([0, 0, 1, 60_000_000_000].map(Duration::from_nanos)[random.below(4)])
            .max_keys([1, 2, 1_000][random.below(3)])
            .max_waiters([1, 2, 1_000][random.below(3)])
            .remember_unshareable(hour, 0)
            .executor(move |task: Task| {
                burns.burn(Place::Execute);
                tasks.lock().unwrap().push(task);
            });
        let calls = Arc::default();
        let quick = Arc::default();
        let inner = Inner {
            thing: Thing::new(&fuse, Place::ServiceDrop),
            ready: false,
            quick: Arc::clone(&quick),
            calls: Arc::clone(&calls),
        };
        Self {
            service: layer.layer(inner),
            fuse,
            layer,
            quick,
            calls,
            callers: Vec::new(),
            spawned,
            tasks: Vec::new(),
        }
    }

    fn comes(&mut self, name: u8, priority: Priority) {
        let thing = Thing::new(&self.fuse, Place::ReqDrop);
        let req = Req {
            name,
            priority,
            thing,
        };
        let service = &mut self.service;
        let called = safely(|| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(service.poll_ready(&mut cx).is_ready());
            service.call(req)
        });
        if let Some(future) = called {
            self.callers
                .push(Actor::new(&self.fuse, Box::pin(future), None));
        }
    }

    fn polls(&mut self, place: usize) {
        if self.callers[place].poll() {
            self.goes(place);
        }
    }

    fn goes(&mut self, place: usize) {
        let caller = self.callers.swap_remove(place);
        safely(|| drop(caller));
    }

    fn polls_task(&mut self, place: usize) {
        if self.tasks[place].poll() {
            let task = self.tasks.swap_remove(place);
            safely(|| drop(task));
        }
    }

    fn spawns(&mut self) {
        let tasks = std::mem::take(&mut *self.spawned.lock().unwrap());
        for task in tasks {
            let thing = Thing::new(&self.fuse, Place::TaskDrop);
            self.tasks.push(Actor::new(&self.fuse, task, Some(thing)));
        }
    }

    fn call(&self, random: &mut Random) -> Option<Arc<Call>> {
        let mut calls = self.calls.lock().unwrap();
        // Those that nobody polls any more.
        calls.retain(|call| Arc::strong_count(call) > 1);
        (!calls.is_empty()).then(|| calls[random.below(calls.len())].clone())
    }

    fn step(&mut self, random: &mut Random) {
        self.spawns();
        let callers = self.callers.len();
        match random.below(16) {
            0..5 => {
                let priority = Priority::ALL[2 + random.below(2)];
                self.comes(random.below(2) as u8, priority);
                if random.below(8) > 0 && self.callers.len() > callers {
                    self.polls(callers);
                }
            }
            5..8 if callers > 0 => self.polls(random.below(callers)),
            8 if callers > 0 => self.goes(random.below(callers)),
            9..11 => {
                let admit = [Admit::Share, Admit::LeaderOnly, Admit::Retry][random.below(3)];
                if let Some(call) = self.call(random) {
                    safely(|| call.answer(admit));
                }
            }
            11 => {
                if let Some(call) = self.call(random) {
                    safely(|| call.ring());
                }
            }
            12..14 if !self.tasks.is_empty() => {
                let place = random.below(self.tasks.len());
                if random.below(8) == 0 {
                    let task = self.tasks.swap_remove(place);
                    safely(|| drop(task));
                } else {
                    self.polls_task(place);
                }
            }
            14 => {
                // One panic may follow another.
                let mut at = self.fuse.at.lock().unwrap();
                at.truncate(1);
                at.insert(
                    0,
                    (PLACES[random.below(PLACES.len())], random.below(3) as u32),
                );
            }
            _ => {
                self.quick.store(random.below(4) == 0, SeqCst);
                safely(|| _ = self.layer.handle().snapshot());
            }
        }
    }

    /// Everything is answered, and whoever was woken is polled.
    fn settles(&mut self) {
        self.fuse.at.lock().unwrap().clear();
        loop {
            self.spawns();
            for call in self.calls.lock().unwrap().drain(..).collect::<Vec<_>>() {
                call.answer(Admit::Share);
            }
            if let Some(place) = self.tasks.iter().position(Actor::runs) {
                self.polls_task(place);
            } else if let Some(place) = self.callers.iter().position(Actor::runs) {
                self.polls(place);
            } else if self.calls.lock().unwrap().is_empty() {
                break;
            }
        }
        assert!(self.callers.is_empty(), "somebody waits for ever");
        assert!(self.tasks.is_empty(), "a task waits for ever");
        let now = self.layer.handle().snapshot();
        assert_eq!((now.flights, now.waiters), (0, 0));
    }

    fn ends(mut self) -> u32 {
        self.settles();
        // Every key works.
        for name in 0..2 {
            self.comes(name, Priority::Critical);
            self.polls(0);
            self.settles();
        }
        let Self {
            fuse,
            layer,
            service,
            ..
        } = self;
        drop((layer, service));
        fuse.hits.load(SeqCst)
    }
}

#[test]
fn whatever_panics_and_whenever_nobody_is_left_behind() {
    let steps = std::env::var("TOWER_FLOW_SCHEDULES").ok();
    let steps: u64 = steps.map_or(100_000, |text| text.parse().expect("a number"));
    let mut hits = 0;
    for seed in 0..steps.div_ceil(100) {
        let outcome = std::thread::spawn(move || {
            let mut random = Random(seed);
            let mut world = World::new(&mut random);
            let fuse = world.fuse.clone();
            for _ in 0..100 {
                world.step(&mut random);
            }
            (world.ends(), fuse)
        })
        .join();
        let Ok((count, fuse)) = outcome else {
            panic!("TOWER_FLOW seed {seed}");
        };
        // What the thread put aside of the layer went with it.
        let alive = fuse.alive.load(SeqCst);
        assert_eq!(alive, 0, "TOWER_FLOW seed {seed}: something is left");
        hits += count;
    }
    assert!(u64::from(hits) > steps / 500, "{hits} of {steps}");
}
