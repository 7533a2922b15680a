//! Runtimes, services and tasks that go away at random moments under load. A failing round says its seed;
//! `TOWER_FLOW_SEED` runs that one alone.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_test::task::Spawn;
use tower::{Layer, ServiceExt as _};
use tower_flow::BoxError;
use tower_flow::batch::BatchHandle;
use tower_flow::error::Reason;

use super::{
    Answer, Backend, Call, Count, Does, Fate, Hands, Item, Single, answered, assert_quiet,
    assert_usable, block_on, call, fault, go, held, item, layer, ms, reason, rest, rounds, secs,
    sharded,
};

// ===== chance =====

/// The same numbers for the same seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Once in so many times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Runs `round` with the seeds of `usual` rounds, and says which failed.
pub fn seeded(usual: usize, round: impl Fn(&mut Random)) {
    let asked = std::env::var("TOWER_FLOW_SEED").ok();
    let asked: Option<u64> = asked.and_then(|seed| seed.parse().ok());
    let seeds = asked.map_or(0..rounds(usual) as u64, |seed| seed..seed + 1);
    for seed in seeds {
        let round = || round(&mut Random::new(seed));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(round)) {
            eprintln!("TOWER_FLOW_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

/// The backend's work while a runtime goes away: it takes no time, some, or for ever.
fn pace(random: &mut Random) -> Does {
    random.pick(&[
        Does::Answers,
        Does::Takes(ms(1)),
        Does::Takes(ms(5)),
        Does::Takes(ms(40)),
        Does::FailsAfter(ms(3)),
        Does::Panics,
        Does::Short(1),
    ])
}

// ===== what became of each =====

/// A caller outside of all runtimes.
struct Caller {
    id: u64,
    call: Option<Spawn<Call>>,
    answer: Option<Result<Answer, BoxError>>,
}

#[derive(Default)]
struct Callers(Vec<Caller>);

impl Callers {
    fn add(&mut self, service: &impl Single, item: Item) {
        self.0.push(Caller {
            id: item.id,
            call: Some(held(service, item)),
            answer: None,
        });
    }

    /// Polls those that are woken, and new ones if they are `fresh`.
    fn poll(&mut self, fresh: bool) {
        for caller in &mut self.0 {
            let Some(call) = &mut caller.call else {
                continue;
            };
            if !fresh && !call.is_woken() {
                continue;
            }
            if let Poll::Ready(result) = call.poll() {
                assert!(caller.answer.replace(result).is_none(), "answered twice");
                caller.call = None;
            }
        }
    }

    fn waiting(&self) -> usize {
        self.0.iter().filter(|caller| caller.call.is_some()).count()
    }

    /// Every one of them has one answer: its own, or the reason why there is none.
    fn judge(self, backend: &Backend, cancelled: &HashSet<u64>) -> Tally {
        let mut tally = Tally::default();
        let mut sent = HashSet::new();
        for id in backend.ids() {
            assert!(sent.insert(id), "{id} was sent twice");
        }
        for caller in self.0 {
            if cancelled.contains(&caller.id) {
                continue;
            }
            let answer = caller.answer;
            match answer.unwrap_or_else(|| panic!("{} has no answer", caller.id)) {
                Ok(answer) => {
                    assert_eq!(answer.id, caller.id, "another's answer");
                    assert_eq!(backend.id_at(answer.call, answer.position), caller.id);
                    tally.served += 1;
                }
                Err(error) if tower_flow::Rejection::find(error.as_ref()).is_none() => {
                    assert_eq!(fault(&error), "told to");
                    assert!(sent.contains(&caller.id));
                    tally.failed += 1;
                }
                Err(error) => match reason(&error) {
                    Reason::Abandoned => tally.abandoned += 1,
                    Reason::Closed => tally.closed += 1,
                    Reason::QueueFull => tally.refused += 1,
                    Reason::Missing | Reason::Panicked => {
                        assert!(sent.contains(&caller.id), "{error}");
                        tally.failed += 1;
                    }
                    _ => panic!("{error}"),
                },
            }
        }
        tally
    }
}

#[derive(Debug, Default)]
struct Tally {
    served: u64,
    failed: u64,
    abandoned: u64,
    closed: u64,
    refused: u64,
}

fn count(handle: &BatchHandle, how: &str) -> u64 {
    super::ended(handle, how)
}

// ===== runtimes =====

/// The thousand kill points: whatever a runtime is amid of when it goes away, each item that was accepted has one answer, and
/// the next runtime goes on.
#[test]
fn wherever_a_runtime_is_shut_down_each_item_is_answered_once() {
    let (abandoned, served) = (AtomicU64::new(0), AtomicU64::new(0));
    seeded(1_000, |random| {
        let alive = Arc::new(Count::default());
        let layer = sharded()
            .max_items(1 + random.below(6) as usize)
            .max_delay(ms(random.pick(&[0, 0, 2, 10])))
            .max_in_flight(3, 1 + random.below(2) as usize)
            .queue(60, None);
        let handle = layer.handle();
        let backend = Backend::new(Does::Answers);
        let watched = backend.watched();
        let mut service = Some(layer.layer(backend.clone()));
        let mut callers = Callers::default();
        let mut cancelled = HashSet::new();
        let mut id = 0;
        for _ in 0..1 + random.below(3) {
            let runtime = runtime();
            let steps = random.below(30);
            runtime.block_on(async {
                for _ in 0..steps {
                    watched.usual(pace(random));
                    match random.below(10) {
                        0..4 => {
                            for _ in 0..random.below(12) {
                                let service = service.as_ref().expect("kept to the end");
                                if handle.snapshot().queued < 60 {
                                    let item = item(id).shard(random.below(4)).counted(&alive);
                                    callers.add(service, item);
                                    id += 1;
                                }
                            }
                        }
                        4 => tokio::task::yield_now().await,
                        5 => tokio::time::sleep(ms(random.below(10))).await,
                        6 => callers.poll(true),
                        7 => callers.poll(false),
                        8 => handle.flush(),
                        _ => {
                            let n = callers.0.len() as u64;
                            if n > 0 {
                                let leaves = &mut callers.0[random.below(n) as usize];
                                if leaves.call.take().is_some() {
                                    cancelled.insert(leaves.id);
                                }
                            }
                        }
                    }
                    if random.once_in(40) {
                        watched.hold();
                    } else if random.once_in(3) {
                        watched.admit();
                    }
                }
            });
            drop(runtime);
            assert_eq!(watched.futures.now(), 0, "its tasks are gone");
            // Outside of a runtime, some look at what became of them.
            if random.once_in(2) {
                callers.poll(false);
            }
        }
        // A last runtime serves whoever still waits. They are polled only when they are woken: nobody else will.
        watched.admit();
        watched.usual(Does::Answers);
        if random.once_in(2) {
            service = None;
        }
        runtime().block_on(async {
            // Some have never been polled, and are woken by nobody.
            callers.poll(true);
            for _ in 0..400 {
                if callers.waiting() == 0 {
                    break;
                }
                tokio::time::sleep(ms(5)).await;
                callers.poll(false);
            }
            assert_eq!(callers.waiting(), 0, "they hang");
            tokio::time::sleep(ms(50)).await;
            if let Some(service) = &service {
                assert_usable(service, &handle, &backend).await;
            }
        });
        let served_last = u64::from(service.is_some());
        let tally = callers.judge(&backend, &cancelled);
        assert_eq!(alive.now(), 0, "requests are kept");
        let now = assert_quiet(&handle);
        assert_eq!(now.items, id + served_last);
        assert_eq!(tally.closed + tally.refused, 0);
        assert!(count(&handle, "ok") >= tally.served + served_last);
        assert!(count(&handle, "abandoned") >= tally.abandoned);
        abandoned.fetch_add(tally.abandoned, Ordering::Relaxed);
        served.fetch_add(tally.served, Ordering::Relaxed);
    });
    if std::env::var_os("TOWER_FLOW_SEED").is_none() {
        assert!(
            abandoned.into_inner() > 100,
            "nothing was killed amid its work"
        );
        assert!(served.into_inner() > 10_000);
    }
}

/// The same with an executor's tasks, dropped one by one at any point between two polls.
#[test]
fn wherever_a_task_is_dropped_each_item_is_answered_once() {
    seeded(1_000, |random| {
        let hands = Hands::default();
        let layer = sharded()
            .max_items(1 + random.below(4) as usize)
            .max_in_flight(2, 1)
            .queue(100, None)
            .executor(hands.executor());
        let handle = layer.handle();
        let backend = Backend::new(Does::Waits);
        let service = layer.layer(backend.clone());
        let mut callers = Callers::default();
        let mut id = 0;
        for _ in 0..random.below(60) {
            match random.below(8) {
                0..2 => {
                    callers.add(&service, item(id).shard(random.below(3)));
                    id += 1;
                }
                2 => hands.poll(),
                3 => drop(hands.run()),
                4 => callers.poll(true),
                5 => callers.poll(false),
                6 if backend.calls() > 0 => {
                    let call = 1 + random.below(backend.calls() as u64) as usize;
                    backend.finish(call, Does::Answers);
                }
                _ if random.once_in(4) => hands.drop_one(random.next() as usize),
                _ => {}
            }
        }
        callers.poll(true);
        for call in 1..=400 {
            if callers.waiting() + hands.len() == 0 {
                break;
            }
            backend.finish(call, Does::Answers);
            hands.run();
            callers.poll(false);
        }
        assert_eq!(callers.waiting(), 0, "they hang");
        callers.judge(&backend, &HashSet::new());
        assert_eq!(assert_quiet(&handle).items, id);
        assert_eq!(hands.len(), 0);
    });
}

// ===== drain and drop =====

#[test]
fn whenever_drain_is_called_what_was_accepted_is_answered_and_the_rest_refused() {
    let refused = AtomicU64::new(0);
    seeded(300, |random| {
        runtime().block_on(async {
            let layer = sharded()
                .max_items(1 + random.below(6) as usize)
                .max_delay(ms(random.pick(&[0, 0, 2, 10_000])))
                .max_in_flight(3, 1 + random.below(2) as usize)
                .queue(8, None);
            let handle = layer.handle();
            let backend = Backend::new(pace(random));
            let service = layer.layer(backend.clone());
            let callers: Vec<_> = (0..60)
                .map(|id| {
                    let (service, nap) = (service.clone(), random.below(30));
                    let item = item(id).shard(random.below(3));
                    tokio::spawn(async move {
                        tokio::time::sleep(ms(nap)).await;
                        service.oneshot(item).await
                    })
                })
                .collect();
            tokio::time::sleep(ms(random.below(30))).await;
            for _ in 0..random.below(5) {
                tokio::task::yield_now().await;
            }
            let accepted = handle.snapshot().items;
            let drained = handle.drain();
            if random.once_in(2) {
                drop(service);
            }
            tokio::time::timeout(secs(5), drained)
                .await
                .expect("it ends");
            let now = assert_quiet(&handle);
            assert_eq!(now.items, accepted, "none after");
            let mut answers = Callers::default();
            for (id, caller) in (0..).zip(callers) {
                let answer = tokio::time::timeout(secs(5), caller)
                    .await
                    .expect("it ends");
                answers.0.push(Caller {
                    id,
                    call: None,
                    answer: Some(answer.unwrap()),
                });
            }
            let tally = answers.judge(&backend, &HashSet::new());
            assert_eq!(tally.abandoned + tally.refused, 0, "{tally:?}");
            assert_eq!(tally.served + tally.failed, accepted, "{tally:?}");
            assert_eq!(tally.served, count(&handle, "ok"));
            refused.fetch_add(tally.closed, Ordering::Relaxed);
        });
    });
    assert!(refused.into_inner() > 0);
}

#[test]
fn whenever_all_handles_are_dropped_what_was_accepted_is_answered() {
    seeded(300, |random| {
        runtime().block_on(async {
            let layer = sharded()
                .max_items(1 + random.below(6) as usize)
                .max_delay(ms(random.pick(&[0, 0, 2, 100])))
                .max_in_flight(3, 1)
                .queue(100, None);
            let backend = Backend::new(pace(random));
            let watched = backend.watched();
            let service = layer.layer(backend.clone());
            drop(layer);
            let mut asked = Vec::new();
            let mut callers = Callers::default();
            for id in 0..random.below(40) {
                asked.push((id, go(&service, item(id).shard(random.below(3)))));
                if random.once_in(10) {
                    tokio::time::sleep(ms(random.below(5))).await;
                }
            }
            drop(service);
            for (id, asked) in asked {
                let answer = Some(asked.result().await);
                callers.0.push(Caller {
                    id,
                    call: None,
                    answer,
                });
            }
            let tally = callers.judge(&backend, &HashSet::new());
            assert_eq!(
                tally.abandoned + tally.closed + tally.refused,
                0,
                "{tally:?}"
            );
            rest().await;
            drop(backend);
            assert_eq!((watched.clones.now(), watched.futures.now()), (0, 0));
        });
    });
}

// ===== threads =====

/// Callers on threads of their own, batches on a runtime that is shut down under them.
#[test]
fn threads_whose_runtime_is_shut_down_are_all_answered() {
    let abandoned = AtomicUsize::new(0);
    seeded(40, |random| {
        let current = std::sync::Mutex::new(None);
        let start = || {
            let mut runtime = Builder::new_multi_thread();
            runtime.worker_threads(2).enable_time().build().unwrap()
        };
        let current = Arc::new(current);
        let runs = current.clone();
        let layer = sharded()
            .max_items(1 + random.below(8) as usize)
            .max_in_flight(4, 2)
            .executor(move |task| {
                let runtime: Option<tokio::runtime::Handle> = runs.lock().unwrap().clone();
                drop(runtime.expect("there is one").spawn(task));
            });
        let handle = layer.handle();
        let backend = Backend::new(Does::Answers);
        backend.next([Does::Takes(Duration::from_micros(300)); 20]);
        let service = layer.layer(backend.clone());
        let first = start();
        *current.lock().unwrap() = Some(first.handle().clone());
        let spins = random.below(60_000);
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (service, done, abandoned) = (service.clone(), &done, &abandoned);
                scope.spawn(move || {
                    for round in 0..40 {
                        let id = thread * 40 + round;
                        match block_on(call(&service, item(id).shard(id % 3))) {
                            Ok(answer) => assert_eq!(answer.id, id),
                            Err(error) => {
                                assert_eq!(reason(&error), Reason::Abandoned);
                                abandoned.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..spins {
                std::hint::spin_loop();
            }
            let second = start();
            *current.lock().unwrap() = Some(second.handle().clone());
            first.shutdown_background();
            while done.load(Ordering::Relaxed) < 120 {
                std::thread::yield_now();
            }
            second.shutdown_background();
        });
        let mut ids = backend.ids();
        ids.sort_unstable();
        let all = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), all, "none is sent twice");
        assert_eq!(handle.snapshot().items, 120);
        assert_eq!(handle.snapshot().queued, 0);
    });
}

/// Poison and kills at once: a layer that splits is no exception.
#[test]
fn a_runtime_that_goes_away_amid_the_halves_leaves_nobody_waiting() {
    seeded(200, |random| {
        let layer = layer()
            .max_items(8)
            .on_error(tower_flow::batch::OnError::Bisect);
        let handle = layer.handle();
        let backend = Backend::new(Does::Takes(ms(2)));
        let service = layer.layer(backend.clone());
        let mut callers = Callers::default();
        let first = runtime();
        first.block_on(async {
            for id in 0..20 {
                let fate = if random.once_in(5) {
                    Fate::Poison
                } else {
                    Fate::Fine
                };
                callers.add(&service, item(id).fate(fate));
            }
            callers.poll(true);
            tokio::time::sleep(ms(random.below(30))).await;
        });
        drop(first);
        runtime().block_on(async {
            for _ in 0..100 {
                callers.poll(false);
                tokio::time::sleep(ms(2)).await;
            }
            assert_eq!(callers.waiting(), 0, "they hang");
            for caller in callers.0 {
                match caller.answer.unwrap() {
                    Ok(answer) => assert_eq!(answer.id, caller.id),
                    Err(error) if tower_flow::Rejection::find(error.as_ref()).is_some() => {
                        assert_eq!(reason(&error), Reason::Abandoned);
                    }
                    Err(error) => assert_eq!(fault(&error), "poisoned"),
                }
            }
            backend.usual(Does::Answers);
            let fresh = [go(&service, item(100)), go(&service, item(101))];
            answered(fresh).await;
            assert_quiet(&handle);
        });
    });
}
