//! Random lives of callers against a model. A failing one is printed with its seed, and shrunk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio_test::task::Spawn;
use tower::Layer;
use tower_flow::BoxError;
use tower_flow::Rejection;
use tower_flow::coalesce::{Admit, ArcError, CoalesceLayer, OnLeaderDrop, ShareExt as _};
use tower_flow::error::{Reason, find};
use tower_flow::executor::Task;

use super::{Answer, Ask, Backend, Call, Does, Fault, Keyed, ask, held, message, ms, rounds, secs};

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Somebody asks.
    Call {
        key: u64,
    },
    /// The so-many-th caller is polled, or dropped.
    Poll(usize),
    Drop(usize),
    /// The so-many-th call of the backend goes on.
    Finish(usize, Does),
    Nudge(usize),
    /// The executor polls what it has.
    Tasks,
    Advance(u64),
}

#[derive(Debug, Clone, Copy)]
struct World {
    policy: OnLeaderDrop,
    admit: Admit,
    max_waiters: usize,
    max_keys: usize,
    grace: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![
        4 => Just(Does::Answers),
        1 => Just(Does::Fails),
        1 => Just(Does::Panics),
    ];
    let step = prop_oneof![
        4 => (0..3u64).prop_map(|key| Step::Call { key }),
        8 => (0..24usize).prop_map(Step::Poll),
        3 => (0..24usize).prop_map(Step::Drop),
        3 => (1..12usize, end).prop_map(|(call, end)| Step::Finish(call, end)),
        1 => (1..12usize).prop_map(Step::Nudge),
        2 => Just(Step::Tasks),
        1 => prop_oneof![Just(1u64), Just(3_000), Just(31_000)].prop_map(Step::Advance),
    ];
    proptest::collection::vec(step, 0..80)
}

fn worlds() -> impl Strategy<Value = World> {
    let policy = prop_oneof![
        3 => Just(OnLeaderDrop::HandOver),
        1 => Just(OnLeaderDrop::Reissue),
        1 => Just(OnLeaderDrop::Detach),
        1 => Just(OnLeaderDrop::Fail),
    ];
    let admit = prop_oneof![
        3 => Just(Admit::Share),
        1 => Just(Admit::LeaderOnly),
        1 => Just(Admit::Retry),
    ];
    let max_waiters = prop_oneof![3 => Just(1_024usize), 1 => Just(2)];
    let max_keys = prop_oneof![3 => Just(512usize), 1 => Just(1)];
    let grace = prop_oneof![3 => Just(0u64), 1 => Just(2)];
    (policy, admit, max_waiters, max_keys, grace).prop_map(
        |(policy, admit, max_waiters, max_keys, grace)| World {
            policy,
            admit,
            max_waiters,
            max_keys,
            grace,
        },
    )
}

/// A caller: his request, and his future until it is done.
struct Caller {
    key: u64,
    call: Option<Spawn<Call<Answer>>>,
    polled: bool,
}

struct Life {
    world: World,
    backend: Backend,
    callers: Vec<Caller>,
    tasks: Arc<Mutex<Vec<Task>>>,
    /// Calls that were told to fail, and to panic.
    failed: bool,
    panicked: bool,
    dropped: bool,
    passed: u64,
}

impl Life {
    fn poll(&mut self, who: usize) {
        let Some(caller) = self.callers.get_mut(who) else {
            return;
        };
        let Some(call) = &mut caller.call else {
            return;
        };
        caller.polled = true;
        match catch_unwind(AssertUnwindSafe(|| call.poll())) {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(result)) => {
                let key = caller.key;
                self.judge(who, key, result);
            }
            Err(panic) => {
                assert!(self.panicked, "{}", message(panic));
                assert!(message(panic).contains("told to"));
            }
        }
        self.callers[who].call = None;
    }

    /// Whether the model allows that.
    fn judge(&self, who: usize, key: u64, result: Result<Answer, BoxError>) {
        match result {
            Ok(answer) => {
                assert_eq!(self.backend.key_of(answer.call), Some(key), "another's");
                if self.world.admit != Admit::Share {
                    assert_eq!(answer.id, who as u64, "not for him");
                }
            }
            Err(error) => match Rejection::find(error.as_ref()).map(Rejection::reason) {
                None => {
                    assert!(self.failed, "{error}");
                    assert!(find::<Fault>(error.as_ref()).is_some());
                }
                Some(Reason::Panicked) => assert!(self.panicked, "{error}"),
                Some(Reason::Timeout) => assert!(self.passed >= 30_000, "{error}"),
                Some(Reason::Abandoned) => {
                    assert!(
                        self.world.policy == OnLeaderDrop::Fail && self.dropped,
                        "{error}"
                    );
                }
                Some(_) => panic!("{error}"),
            },
        }
    }

    fn tasks(&mut self) {
        let all = std::mem::take(&mut *self.tasks.lock().unwrap());
        for mut task in all {
            let mut cx = Context::from_waker(Waker::noop());
            if task.as_mut().poll(&mut cx).is_pending() {
                self.tasks.lock().unwrap().push(task);
            }
        }
    }

    /// Everybody whom somebody woke, and the tasks, until all are at rest.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.tasks();
            let mut moved = false;
            for who in 0..self.callers.len() {
                let caller = &self.callers[who];
                let due = caller
                    .call
                    .as_ref()
                    .is_some_and(|call| call.is_woken() || !caller.polled);
                if due {
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
}

async fn live(world: World, steps: &[Step]) {
    let tasks: Arc<Mutex<Vec<Task>>> = Arc::default();
    let queue = tasks.clone();
    let admit = world.admit;
    let layer = CoalesceLayer::new(Keyed)
        .share(ArcError.when(move |_: &Result<Answer, Fault>| admit))
        .on_leader_drop(world.policy)
        .max_waiters(world.max_waiters)
        .max_keys(world.max_keys)
        .grace(secs(world.grace))
        .leader_age(secs(1_000_000))
        .executor(move |task: Task| queue.lock().unwrap().push(task));
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut life = Life {
        world,
        backend,
        callers: Vec::new(),
        tasks,
        failed: false,
        panicked: false,
        dropped: false,
        passed: 0,
    };
    for step in steps {
        match *step {
            Step::Call { key } => {
                let id = life.callers.len() as u64;
                let asks: Ask = ask(key).id(id);
                let call = held(&service, asks);
                life.callers.push(Caller {
                    key,
                    call: Some(call),
                    polled: false,
                });
            }
            Step::Poll(who) => life.poll(who),
            Step::Drop(who) => {
                if let Some(caller) = life.callers.get_mut(who) {
                    life.dropped |= caller.call.take().is_some();
                }
            }
            Step::Finish(call, end) => {
                if call <= life.backend.calls() {
                    life.failed |= end == Does::Fails;
                    life.panicked |= end == Does::Panics;
                    life.backend.finish(call, end);
                }
            }
            Step::Nudge(call) => life.backend.nudge(call),
            Step::Tasks => life.tasks(),
            Step::Advance(time) => {
                life.passed += time;
                tokio::time::advance(ms(time)).await;
            }
        }
        let now = handle.snapshot();
        let waiting = life
            .callers
            .iter()
            .filter(|caller| caller.call.is_some())
            .count();
        assert!(now.waiters <= waiting as u64, "{now:?}");
        assert!(now.flights <= world.max_keys as u64, "{now:?}");
    }
    // In the end every call that is made is answered, and whoever is still there has his answer.
    life.settle();
    for call in 1..=200 {
        if call <= life.backend.calls() {
            life.backend.finish(call, Does::Answers);
            life.settle();
        }
    }
    let stuck = life
        .callers
        .iter()
        .filter(|caller| caller.call.is_some())
        .count();
    assert_eq!(stuck, 0, "nobody wakes them");
    assert_eq!(life.backend.futures.now(), 0);
    assert!(life.tasks.lock().unwrap().is_empty());
    let now = handle.snapshot();
    assert_eq!((now.flights, now.waiters), (0, 0), "{now:?}");
    // What is for all is asked for once at a time, where there is room for all.
    if admit == Admit::Share && world.max_waiters > 2 && world.max_keys > 2 {
        for key in 0..3 {
            assert!(life.backend.peak_of(key) <= 1, "two calls for one key");
        }
        assert_eq!(now.leaders, life.backend.calls() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: rounds(400) as u32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_callers_do_nobody_hangs_and_nothing_is_asked_twice(
        world in worlds(),
        steps in steps(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(live(world, &steps));
    }
}
