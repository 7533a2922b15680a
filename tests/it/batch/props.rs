//! Random lives of a layer against a model. A failing one is shrunk, and printed with its seed; `TOWER_FLOW_SEED` begins
//! with that one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use tokio_test::task::Spawn;
use tower::util::BoxCloneService;
use tower::{Layer, Service};
use tower_flow::batch::{BatchHandle, Drain, OnError, Oversize};
use tower_flow::error::{Reason, find};
use tower_flow::{BoxError, Rejection};

use super::{
    Answer, Backend, Call, Count, Does, Fate, Fault, Hands, Item, assert_quiet, ended, item, ms,
    rounds, sharded,
};

// ===== programs =====

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Somebody asks.
    Call {
        shard: u64,
        key: u64,
        weight: usize,
        within: Option<u64>,
        fate: Fate,
    },
    /// The so-many-th caller is polled, or leaves.
    Poll(usize),
    Leave(usize),
    /// The so-many-th call of the backend goes on.
    Finish(usize, Does),
    /// The tasks run, or one of them is dropped.
    Tasks,
    DropTask(usize),
    Hold,
    Admit,
    Advance(u64),
    Flush,
    MaxItems(usize),
    MaxDelay(u64),
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    /// Tasks the test polls.
    Hands,
    Tokio,
    Callers,
}

#[derive(Debug, Clone, Copy)]
struct World {
    driver: Driver,
    max_items: usize,
    max_weight: usize,
    alone: bool,
    delay: u64,
    hint: usize,
    global: usize,
    per_shard: usize,
    queue: usize,
    dedup: bool,
    bisect: bool,
}

const MARGIN: u64 = 2;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![8 => Just(Fate::Fine), 1 => Just(Fate::Fails), 1 => Just(Fate::Poison)];
    let within = prop_oneof![6 => Just(None), 1 => (0..30u64).prop_map(Some)];
    let ask = (0..3u64, 0..4u64, 0..7usize, within, fate);
    let end = prop_oneof![
        6 => Just(Does::Answers),
        1 => Just(Does::Fails),
        1 => Just(Does::Panics),
        1 => Just(Does::Short(1)),
        1 => Just(Does::Long(1)),
    ];
    let step = prop_oneof![
        12 => ask.prop_map(|(shard, key, weight, within, fate)| Step::Call {
            shard,
            key,
            weight,
            within,
            fate
        }),
        5 => (0..24usize).prop_map(Step::Poll),
        3 => (0..24usize).prop_map(Step::Leave),
        5 => (1..12usize, end).prop_map(|(call, end)| Step::Finish(call, end)),
        6 => Just(Step::Tasks),
        1 => (0..8usize).prop_map(Step::DropTask),
        1 => Just(Step::Hold),
        2 => Just(Step::Admit),
        2 => (1..12u64).prop_map(Step::Advance),
        1 => Just(Step::Flush),
        1 => (1..6usize).prop_map(Step::MaxItems),
        1 => prop_oneof![Just(0u64), Just(5)].prop_map(Step::MaxDelay),
        1 => prop_oneof![9 => Just(Step::Tasks), 1 => Just(Step::Drain)],
    ];
    proptest::collection::vec(step, 0..100)
}

fn worlds() -> impl Strategy<Value = World> {
    let driver = prop_oneof![
        3 => Just(Driver::Hands),
        1 => Just(Driver::Tokio),
        1 => Just(Driver::Callers),
    ];
    let sizes = (
        prop_oneof![Just(1usize), Just(2), Just(3), Just(64)],
        prop_oneof![Just(5usize), Just(1_000)],
        any::<bool>(),
        prop_oneof![3 => Just(0u64), 1 => Just(3), 1 => Just(20)],
        prop_oneof![3 => Just(1usize), 1 => Just(3)],
    );
    let limits = (
        1..4usize,
        1..4usize,
        prop_oneof![Just(3usize), Just(100)],
        any::<bool>(),
        any::<bool>(),
    );
    (driver, sizes, limits).prop_map(|(driver, sizes, limits)| {
        let (max_items, max_weight, alone, delay, hint) = sizes;
        let (global, per_shard, queue, dedup, bisect) = limits;
        World {
            driver,
            max_items,
            max_weight,
            alone,
            delay,
            hint,
            global: global.max(per_shard),
            per_shard,
            queue,
            dedup,
            bisect,
        }
    })
}

// ===== the model =====

/// What the model knows of a caller.
struct Caller {
    item: Item,
    call: Option<Spawn<Call>>,
    polled: bool,
    accepted: bool,
    left: bool,
    answered: bool,
}

struct Life {
    world: World,
    backend: Backend,
    hands: Hands,
    handle: BatchHandle,
    callers: Vec<Caller>,
    drains: Vec<Spawn<Drain>>,
    /// The most items a batch may have had, and the limits now.
    most: usize,
    max_items: usize,
    delay: u64,
    /// What was told to calls.
    told: HashSet<&'static str>,
    dropped: bool,
    held: bool,
    flushed: bool,
    /// How many calls were looked at, how often each item was sent, and which of each shard was the last.
    seen: usize,
    times: HashMap<u64, usize>,
    last: HashMap<u64, u64>,
}

type Boxed = BoxCloneService<Item, Answer, BoxError>;

impl Life {
    fn ask(&mut self, service: &Boxed, early: &mut Vec<Boxed>, item: Item) {
        let mut service = service.clone();
        let mut cx = Context::from_waker(Waker::noop());
        let now = self.handle.snapshot();
        let open = service.poll_ready(&mut cx).is_ready();
        // The gate is shut just while so many wait. Where callers drive, whoever comes may make room.
        let room = now.queued < self.world.queue as u64 || !self.drains.is_empty();
        let drives = self.world.driver == Driver::Callers;
        assert!(open == room || open && drives, "{now:?}");
        if !open {
            // Somebody who was let in before.
            match early.pop() {
                Some(ready) => service = ready,
                None => return,
            }
        }
        let before = now.items;
        let call: Call = Box::pin(service.call(item.clone()));
        let accepted = self.handle.snapshot().items > before;
        self.callers.push(Caller {
            item,
            call: Some(tokio_test::task::spawn(call)),
            polled: false,
            accepted,
            left: false,
            answered: false,
        });
    }

    fn poll(&mut self, who: usize) {
        let Some(caller) = self.callers.get_mut(who) else {
            return;
        };
        let Some(call) = &mut caller.call else {
            return;
        };
        caller.polled = true;
        if let Poll::Ready(result) = call.poll() {
            caller.call = None;
            caller.answered = true;
            self.judge(who, result);
        }
    }

    /// Whether the model allows that.
    fn judge(&self, who: usize, result: Result<Answer, BoxError>) {
        let Caller { item, accepted, .. } = &self.callers[who];
        let told = |what| self.told.contains(what);
        let among = |fate| self.callers.iter().any(|caller| caller.item.fate == fate);
        match result {
            Ok(answer) => {
                let sent = self.backend.id_at(answer.call, answer.position);
                assert_eq!(sent, answer.id);
                let sent = &self.callers[answer.id as usize].item;
                let same = sent.shard == item.shard && sent.key == item.key;
                let its_own = answer.id == item.id || self.world.dedup && same;
                assert!(its_own && *accepted, "another's answer");
            }
            Err(error) => match Rejection::find(error.as_ref()).map(Rejection::reason) {
                None => match find::<Fault>(error.as_ref())
                    .expect("it comes from there")
                    .0
                {
                    "told to" => assert!(told("fail")),
                    "its own" => assert!(among(Fate::Fails)),
                    "poisoned" => assert!(among(Fate::Poison)),
                    other => panic!("{other}"),
                },
                Some(Reason::TooLarge) => {
                    assert!(!accepted && !self.world.alone);
                    assert!(item.weight > self.world.max_weight);
                }
                Some(Reason::QueueFull) => assert!(!accepted && self.world.queue < 100),
                Some(Reason::Closed) => assert!(!accepted && !self.drains.is_empty()),
                Some(Reason::Deadline) => assert!(item.deadline.is_some()),
                Some(Reason::Missing) => assert!(told("short")),
                Some(Reason::Panicked) => assert!(told("panic")),
                Some(Reason::Abandoned) => assert!(self.dropped),
                Some(_) => panic!("{error}"),
            },
        }
    }

    async fn tasks(&mut self) {
        match self.world.driver {
            Driver::Hands => drop(self.hands.run()),
            Driver::Tokio => {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            }
            Driver::Callers => {}
        }
    }

    /// Everybody whom somebody woke, and the tasks, until all are at rest.
    async fn settle(&mut self) {
        for _ in 0..200 {
            self.tasks().await;
            let mut moved = false;
            for who in 0..self.callers.len() {
                let caller = &self.callers[who];
                let due = |call: &Spawn<Call>| call.is_woken() || !caller.polled;
                if caller.call.as_ref().is_some_and(due) {
                    moved = true;
                    self.poll(who);
                }
            }
            if !moved {
                return;
            }
        }
        panic!("they spin");
    }

    /// What holds after every step.
    fn check(&mut self) {
        let World {
            max_weight,
            global,
            per_shard,
            queue,
            dedup,
            bisect,
            ..
        } = self.world;
        let now = self.handle.snapshot();
        assert!(now.in_flight <= global as u64, "{now:?}");
        assert!(now.queued <= 2 * queue as u64, "{now:?}");
        assert!(self.backend.busy.peak() <= global);
        let accepted = self.callers.iter().filter(|caller| caller.accepted);
        assert_eq!(now.items, accepted.clone().count() as u64, "{now:?}");
        let fresh = self.backend.since(self.seen);
        self.seen += fresh.len();
        for sent in fresh {
            assert!(sent.ids.len() <= self.most, "{sent:?}");
            let weights = sent.ids.iter();
            let weights = weights.map(|id| self.callers[*id as usize].item.weight);
            let weight: usize = weights.sum();
            assert_eq!(sent.weight, weight, "{sent:?}");
            assert!(weight <= max_weight || sent.ids.len() == 1, "{sent:?}");
            for id in sent.ids {
                *self.times.entry(id).or_default() += 1;
                if !bisect && !dedup {
                    // In a shard they go in the order they came.
                    let before = self.last.insert(sent.shard, id);
                    assert!(before.is_none_or(|before| before < id), "{id}");
                }
            }
        }
        for shard in 0..3 {
            assert!(self.backend.peak_of(shard) <= per_shard);
        }
        let (times, once) = (&self.times, if bisect { 8 } else { 1 });
        assert!(times.values().all(|times| *times <= once), "{times:?}");
        // What waits is what is neither sent nor gone; nobody says when a deadline is noticed, or who of twins is sent.
        let timed = accepted
            .clone()
            .any(|caller| caller.item.deadline.is_some());
        if !dedup && !timed {
            let waits = |caller: &&Caller| {
                let sent = times.contains_key(&caller.item.id);
                !sent && !caller.left && !caller.answered
            };
            let waiting = accepted.filter(waits).count() as u64;
            // Answers may be there that nobody has fetched: those of items that were given up unsent.
            let unfetched = ended(&self.handle, "abandoned")
                + ended(&self.handle, "panic")
                + ended(&self.handle, "error");
            assert!(now.queued <= waiting, "{now:?}");
            assert!(now.queued + unfetched >= waiting, "{now:?}");
        }
    }

    /// Nothing waits that could be sent, when all are at rest.
    fn check_prompt(&self) {
        let World {
            global,
            per_shard,
            hint,
            dedup,
            ..
        } = self.world;
        if self.held || self.dropped || dedup || self.flushed {
            return;
        }
        if self.delay > 0 || self.world.delay > 0 {
            return;
        }
        let busy = self.backend.busy.now();
        for shard in 0..3 {
            let waits = |caller: &&Caller| {
                let pending = caller.call.is_some() && caller.accepted;
                pending && caller.item.shard == shard && !self.times.contains_key(&caller.item.id)
            };
            let waiting = self.callers.iter().filter(waits).count();
            let mine = self.backend.busy_of(shard);
            if waiting == 0 || busy >= global {
                continue;
            }
            assert!(mine > 0, "{waiting} wait in an idle shard");
            if waiting >= hint.min(self.max_items) {
                assert!(mine >= per_shard, "{waiting} wait and could go");
            }
        }
    }
}

fn built(world: World, hands: &Hands, backend: &Backend) -> (Boxed, BatchHandle) {
    let mut layer = sharded()
        .max_items(world.max_items)
        .max_weight(|item: &Item| item.weight, world.max_weight)
        .max_delay(ms(world.delay))
        .min_items_hint(world.hint)
        .max_in_flight(world.global, world.per_shard)
        .deadline(|item: &Item| item.deadline, ms(MARGIN))
        .queue(world.queue, None);
    if world.alone {
        layer = layer.oversize(Oversize::Alone);
    }
    if world.bisect {
        layer = layer.on_error(OnError::Bisect);
    }
    match world.driver {
        Driver::Hands => layer = layer.executor(hands.executor()),
        Driver::Tokio => {}
        Driver::Callers => layer = layer.caller_driven(),
    }
    if world.dedup {
        let layer = layer.dedup_by(|item: &Item| item.key);
        let handle = layer.handle();
        (BoxCloneService::new(layer.layer(backend.clone())), handle)
    } else {
        let handle = layer.handle();
        (BoxCloneService::new(layer.layer(backend.clone())), handle)
    }
}

async fn live(world: World, steps: &[Step]) {
    let hands = Hands::default();
    let backend = Backend::new(Does::Waits);
    let alive = Arc::new(Count::default());
    let (service, handle) = built(world, &hands, &backend);
    let mut early: Vec<Boxed> = (0..20).map(|_| service.clone()).collect();
    for early in &mut early {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(early.poll_ready(&mut cx).is_ready());
    }
    let mut life = Life {
        world,
        backend: backend.clone(),
        hands,
        handle,
        callers: Vec::new(),
        drains: Vec::new(),
        most: world.max_items,
        max_items: world.max_items,
        delay: world.delay,
        told: HashSet::new(),
        dropped: false,
        held: false,
        flushed: false,
        seen: 0,
        times: HashMap::new(),
        last: HashMap::new(),
    };
    for step in steps {
        match *step {
            Step::Call {
                shard,
                key,
                weight,
                within,
                fate,
            } => {
                let id = life.callers.len() as u64;
                let mut asks = item(id).shard(shard).key(key).weight(weight).fate(fate);
                if let Some(within) = within {
                    asks = asks.within(ms(within));
                }
                life.ask(&service, &mut early, asks.counted(&alive));
            }
            Step::Poll(who) => life.poll(who),
            Step::Leave(who) => {
                if let Some(caller) = life.callers.get_mut(who) {
                    caller.left |= caller.call.take().is_some();
                }
            }
            Step::Finish(call, end) => {
                if call <= life.backend.calls() {
                    life.told.insert(match end {
                        Does::Fails => "fail",
                        Does::Panics => "panic",
                        Does::Short(_) => "short",
                        _ => "answer",
                    });
                    life.backend.finish(call, end);
                }
            }
            Step::Tasks => life.tasks().await,
            Step::DropTask(which) => {
                if life.hands.len() > 0 {
                    life.dropped = true;
                    life.hands.drop_one(which);
                }
            }
            Step::Hold => {
                life.backend.hold();
                life.held = true;
            }
            Step::Admit => {
                life.backend.admit();
                life.settle().await;
                life.held = false;
            }
            Step::Advance(time) => {
                tokio::time::advance(ms(time)).await;
            }
            Step::Flush => {
                life.handle.flush();
                life.flushed = true;
            }
            Step::MaxItems(max) => {
                life.handle.set_max_items(max);
                life.max_items = max;
                life.most = life.most.max(max);
            }
            Step::MaxDelay(delay) => {
                life.handle.set_max_delay(ms(delay));
                life.delay = delay;
            }
            Step::Drain => life
                .drains
                .push(tokio_test::task::spawn(life.handle.drain())),
        }
        life.check();
    }
    life.settle().await;
    life.check();
    life.check_prompt();
    // In the end the backend answers, and everybody who still waits has his answer.
    life.backend.admit();
    for round in 0..400 {
        for call in 1..=life.backend.calls() {
            life.backend.finish(call, Does::Answers);
        }
        life.settle().await;
        life.check();
        let waits = life.callers.iter().any(|caller| caller.call.is_some());
        let flies = world.driver != Driver::Callers && life.handle.snapshot().shards > 0;
        if !waits && !flies && round > 3 {
            break;
        }
        tokio::time::advance(ms(10)).await;
    }
    let stuck = life.callers.iter().filter(|caller| caller.call.is_some());
    assert_eq!(stuck.count(), 0, "they hang");
    // Those who all left have left batches behind, which nobody drives where callers drive.
    if world.driver != Driver::Callers {
        for drain in &mut life.drains {
            assert!(drain.poll().is_ready(), "{:?}", life.handle.snapshot());
        }
        assert_quiet(&life.handle);
        assert_eq!((life.backend.futures.now(), life.hands.len()), (0, 0));
        assert_eq!(alive.now(), life.callers.len(), "kept requests");
    }
    let answered = life.callers.iter().filter(|caller| caller.answered).count();
    let left = life.callers.iter().filter(|caller| caller.left).count();
    assert_eq!(answered + left, life.callers.len(), "each has one end");
}

#[test]
fn whatever_happens_nothing_is_lost_nothing_sent_twice_and_no_limit_passed() {
    let seed = std::env::var("TOWER_FLOW_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0)
    });
    let config = Config {
        cases: rounds(400) as u32,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    let run = TestRunner::new(config).run(&(worlds(), steps()), |(world, steps)| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(live(world, &steps));
        Ok(())
    });
    if let Err(failed) = run {
        panic!("TOWER_FLOW_SEED={seed}: {failed}");
    }
}
