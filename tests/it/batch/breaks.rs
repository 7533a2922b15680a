//! What once broke the layer, each as small as it was found.

use std::future::{Ready, poll_fn, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_test::task::{Spawn, spawn};
use tokio_test::{assert_pending, assert_ready};
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _, service_fn};
use tower_flow::BoxError;
use tower_flow::batch::{All, Batch, BatchLayer, OnError, Oversize};
use tower_flow::error::Reason;
use tower_flow::executor::Task;

use super::faults::in_time;
use super::{
    Backend, Call, Does, Fate, Fault, Item, Single, all, answered, assert_quiet, call, ended,
    fault, go, held, item, layer, ms, reason, rest, secs, sharded,
};

type Echoed<T> = Result<Vec<Result<T, Fault>>, Fault>;

fn echo<T>(batch: Batch<T>) -> Echoed<T> {
    Ok(batch.into_iter().map(Ok).collect())
}

/// A call of a service that was not asked whether it is ready.
fn rash<T>(service: &impl Single<T>, item: Item) -> Spawn<Call<T>> {
    let call: Call<T> = Box::pin(service.clone().call(item));
    spawn(call)
}

// ===== errors and answers =====

/// Each twin wrapped what the one before had: causes were out of sight, and to drop the last overflowed the stack.
#[tokio::test(start_paused = true)]
async fn the_error_of_many_twins_is_one_link_above_their_own() {
    let layer = layer().dedup_by(|item: &Item| item.key);
    let service = layer.layer(Backend::new(Does::Answers));
    let twin = |id| go(&service, item(id).key(7).fate(Fate::Fails));
    for asked in (0..500).map(twin).collect::<Vec<_>>() {
        let error = asked.error().await;
        assert_eq!(fault(&error), "its own");
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        assert_eq!(causes.count(), 1);
    }
}

/// An answer whose copies fail took the answers of all the others along.
#[tokio::test(start_paused = true)]
async fn an_answer_nobody_can_copy_fails_only_who_wanted_a_copy() {
    #[derive(Debug)]
    struct Unique(u64);
    impl Clone for Unique {
        fn clone(&self) -> Self {
            panic!("told to")
        }
    }
    let layer = layer().dedup_by(|item: &Item| item.key);
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |batch: Batch<Item>| {
        let answers = batch.iter().map(|item| Ok(Unique(item.id)));
        Ok::<Vec<Result<_, Fault>>, Fault>(answers.collect())
    }));
    let alone = go(&service, item(0));
    let first = go(&service, item(1).key(7));
    let twin = go(&service, item(2).key(7));
    assert_eq!(alone.value().await.0, 0);
    assert_eq!(first.value().await.0, 1);
    assert_eq!(reason(&twin.error().await), Reason::Panicked);
    assert_quiet(&handle);
}

/// What the future had answered was lost with it, and told as the end of a runtime.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_there_outlives_a_future_that_panics_when_it_is_dropped() {
    struct Grumpy;
    impl Future for Grumpy {
        type Output = Result<All<u8>, Fault>;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            Poll::Ready(Ok(All(7)))
        }
    }
    impl Drop for Grumpy {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "told to");
        }
    }
    let layer = layer();
    let service = layer.layer(service_fn(|_: Batch<Item>| Grumpy));
    assert_eq!(go(&service, item(0)).value().await, 7);
    rest().await;
    assert_eq!(ended(&layer.handle(), "ok"), 1);
    assert_quiet(&layer.handle());
}

/// The second of two requests that panicked while they were dropped ended the process.
#[test]
fn requests_that_panic_when_they_are_dropped_end_no_process() {
    struct Grumpy;
    impl Drop for Grumpy {
        fn drop(&mut self) {
            panic!("told to");
        }
    }
    let layer = BatchLayer::new();
    let handle = layer.handle();
    let mut service = layer.layer(service_fn(async |batch: Batch<Grumpy>| {
        std::mem::forget(batch);
        Ok::<_, Fault>(All(0))
    }));
    // Outside of a runtime nothing runs the task, and what it was for is dropped.
    let _calls = [0; 3].map(|_| service.call(Grumpy));
    assert_eq!(ended(&handle, "abandoned"), 3);
    assert_quiet(&handle);
}

// ===== room =====

/// The wake of who gave up and kept the service was lost, and who came after waited beside an empty queue.
#[tokio::test(start_paused = true)]
async fn who_gives_up_in_line_and_keeps_the_service_holds_up_nobody() {
    let layer = layer().queue(1, None);
    let service = layer.layer(Backend::new(Does::Takes(secs(1))));
    let first = go(&service, item(1));
    rest().await;
    let second = go(&service, item(2));
    let mut idle = service.clone();
    assert!(timeout(ms(5), idle.ready()).await.is_err());
    let mut other = service.clone();
    let third = tokio::spawn(async move { other.ready().await?.call(item(3)).await });
    first.value().await;
    second.value().await;
    let third = timeout(secs(30), third).await.expect("it is let in");
    assert_eq!(third.unwrap().unwrap().id, 3);
    drop(idle);
    assert_quiet(&layer.handle());
}

/// All in line were told of the one place there was, and all but two were refused.
#[tokio::test(start_paused = true)]
async fn who_was_told_of_room_may_take_a_while_to_call() {
    let layer = layer().queue(1, None).max_items(1);
    let service = layer.layer(Backend::new(Does::Takes(secs(1))));
    let mut asked = vec![go(&service, item(0))];
    rest().await;
    asked.push(go(&service, item(1)));
    let slow = (2..12).map(|id| {
        let mut service = service.clone();
        tokio::spawn(async move {
            service.ready().await?;
            sleep(ms(1)).await;
            service.call(item(id)).await
        })
    });
    for slow in slow.collect::<Vec<_>>() {
        slow.await.unwrap().expect("it was ready");
    }
    answered(asked).await;
    assert_eq!(assert_quiet(&layer.handle()).items, 12);
}

/// What weighs more than all may was accepted beside others.
#[tokio::test(start_paused = true)]
async fn an_item_beyond_all_weight_is_accepted_by_itself_only() {
    let layer = layer()
        .max_weight(|item: &Item| item.weight, 10)
        .oversize(Oversize::Alone)
        .queue(100, 10);
    let backend = Backend::new(Does::Answers);
    backend.hold();
    let service = layer.layer(backend.clone());
    let light = go(&service, item(0).weight(9));
    let error = assert_ready!(held(&service, item(1).weight(1 << 40)).poll()).unwrap_err();
    assert_eq!(reason(&error), Reason::QueueFull);
    backend.admit();
    light.value().await;
    go(&service, item(2).weight(1 << 40)).value().await;
    assert_quiet(&layer.handle());
}

/// Services that wait for their backends held all slots, with nothing in flight.
#[tokio::test(start_paused = true)]
async fn services_that_are_not_ready_keep_no_slot_from_one_that_is() {
    async fn check(services: [impl Single; 5], well: impl Single, sick: &Backend) {
        let (ids, services) = (0.., services.iter());
        let stuck: Vec<_> = ids
            .zip(services)
            .map(|(id, service)| go(service, item(id).shard(id)))
            .collect();
        rest().await;
        assert_eq!(go(&well, item(9).shard(9)).value().await.id, 9);
        sick.admit();
        answered(stuck).await;
    }
    let (sick, well) = (Backend::new(Does::Answers), Backend::new(Does::Answers));
    sick.hold();
    let layer = layer();
    let services = [(); 5].map(|()| layer.layer(sick.clone()));
    check(services, layer.layer(well.clone()), &sick).await;
    assert_quiet(&layer.handle());
    // And the shards of one service.
    sick.hold();
    let layer = sharded();
    let service = layer.layer(sick.clone());
    let services = [(); 5].map(|()| service.clone());
    check(services, layer.layer(well), &sick).await;
    assert_quiet(&layer.handle());
}

/// Whatever an inner service keeps for who was found ready goes back with those who wanted it.
#[tokio::test(start_paused = true)]
async fn a_batch_all_have_left_waits_for_no_permit() {
    let layer = layer();
    let inner = ServiceBuilder::new().concurrency_limit(1);
    let inner = inner.service(Backend::new(Does::Answers));
    let mut holder = inner.clone();
    holder.ready().await.unwrap();
    let service = layer.layer(inner.clone());
    let asked = go(&service, item(0));
    rest().await;
    asked.cancel().await;
    drop(holder);
    rest().await;
    let mut other = inner.clone();
    let permit = timeout(secs(1), other.ready()).await;
    permit.expect("nobody has it").unwrap();
    drop(other);
    go(&service, item(1)).value().await;
    assert_quiet(&layer.handle());
}

/// An item that was late when it came sent those that waited, and not itself.
#[tokio::test(start_paused = true)]
async fn who_comes_late_sends_nobody_early() {
    let layer = layer()
        .max_delay(secs(10))
        .deadline(|item: &Item| item.deadline, Duration::ZERO);
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let asked = go(&service, item(0));
    rest().await;
    let late = go(&service, item(1).within(Duration::ZERO));
    assert_eq!(reason(&late.error().await), Reason::Deadline);
    rest().await;
    assert_eq!(backend.calls(), 0);
    asked.value().await;
    assert_eq!(ended(&layer.handle(), "expired"), 1);
    assert_quiet(&layer.handle());
}

// ===== callers that drive =====

/// Two who ring for each other in one line did so until the stack was full.
#[test]
fn a_batch_that_waits_in_its_own_line_is_not_woken_for_ever() {
    type Inner = BoxCloneService<Item, u64, BoxError>;
    let itself: Arc<Mutex<Option<Inner>>> = Arc::default();
    let own = itself.clone();
    let layer = sharded()
        .caller_driven()
        .max_items(1)
        .max_in_flight(3, 1)
        .queue(2, None);
    let service = layer.layer(service_fn(move |batch: Batch<Item>| {
        let own = own.lock().unwrap().clone().expect("it is there");
        async move {
            if batch[0].shard == 0 {
                own.oneshot(item(7).shard(2)).await?;
            }
            Ok::<Vec<Result<_, Fault>>, BoxError>(vec![Ok(batch[0].id)])
        }
    }));
    *itself.lock().unwrap() = Some(BoxCloneService::new(service.clone()));
    let items = [(0, 0), (1, 1), (2, 1), (3, 1)];
    let mut calls = items.map(|(id, shard)| Some(rash(&service, item(id).shard(shard))));
    for _ in 0..10 {
        for asked in &mut calls {
            if asked.as_mut().is_some_and(|call| call.poll().is_ready()) {
                *asked = None;
            }
        }
    }
    assert!(calls.iter().all(Option::is_none));
    itself.lock().unwrap().take();
    assert_quiet(&layer.handle());
}

/// What was woken while one who left afterwards drove it was nobody's to drive.
#[test]
fn a_batch_that_is_woken_while_it_is_driven_is_driven_on_by_who_is_left() {
    let other: Arc<Mutex<Option<Spawn<Call<Item>>>>> = Arc::default();
    let asks = other.clone();
    let layer = layer().caller_driven();
    let service = layer.layer(service_fn(move |batch: Batch<Item>| {
        let mut asks = Some(asks.clone());
        async move {
            poll_fn(|cx| {
                let Some(asks) = asks.take() else {
                    return Poll::Ready(());
                };
                cx.waker().wake_by_ref();
                // At this moment somebody else asks, and finds nothing to drive.
                let mut other = asks.lock().unwrap();
                assert_pending!(other.as_mut().expect("it is there").poll());
                Poll::Pending
            })
            .await;
            echo(batch)
        }
    }));
    let mut driver = held(&service, item(0));
    *other.lock().unwrap() = Some(held(&service, item(1)));
    assert_pending!(driver.poll());
    drop(driver);
    let mut other = other.lock().unwrap().take().expect("it is there");
    assert!(other.is_woken());
    assert_eq!(assert_ready!(other.poll()).unwrap().id, 1);
    assert_quiet(&layer.handle());
}

/// Where no timer wakes anybody, nobody looked whether the delay was over.
#[test]
fn without_a_timer_whoever_polls_sees_that_the_delay_is_over() {
    fn poll(call: &mut Spawn<Call>, begun: Instant) -> bool {
        assert!(begun.elapsed() < secs(30), "nobody looks");
        call.poll().is_ready()
    }
    let begun = Instant::now();
    let outside = layer().max_delay(ms(3)).caller_driven();
    let service = outside.layer(Backend::new(Does::Answers));
    let mut asked = held(&service, item(0));
    while !poll(&mut asked, begun) {
        std::thread::yield_now();
    }
    assert!(begun.elapsed() >= ms(3));
    // In a runtime without timers, by a task.
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap();
    runtime.block_on(async {
        let begun = Instant::now();
        let layer = layer().max_delay(ms(3));
        let service = layer.layer(Backend::new(Does::Answers));
        let mut asked = held(&service, item(0));
        while !poll(&mut asked, begun) {
            tokio::task::yield_now().await;
        }
        assert!(begun.elapsed() >= ms(3));
    });
}

// ===== halves =====

/// A service that could not be ready for a half was asked again for half of it, and so on.
#[tokio::test(start_paused = true)]
async fn halves_are_not_tried_with_a_service_that_fails_to_be_ready() {
    let layer = layer().on_error(OnError::Bisect);
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let asked = all(&service, 0..64);
    rest().await;
    let before = backend.asked.load(Ordering::SeqCst);
    backend.unready();
    backend.finish(1, Does::Fails);
    for asked in asked {
        assert_eq!(fault(&asked.error().await), "not ready");
    }
    assert_eq!(backend.asked.load(Ordering::SeqCst), before + 1);
    let now = assert_quiet(&layer.handle());
    assert_eq!((backend.calls(), now.splits), (1, 0));
}

/// Halves went on being sent, a slot held, when everybody had left.
#[tokio::test(start_paused = true)]
async fn halves_nobody_waits_for_are_not_sent() {
    let layer = layer().on_error(OnError::Bisect);
    let handle = layer.handle();
    let backend = Backend::new(Does::FailsAfter(secs(1)));
    let service = layer.layer(backend.clone());
    let asked = all(&service, 0..64);
    rest().await;
    for asked in asked {
        asked.cancel().await;
    }
    handle.drain().await;
    assert_eq!(backend.calls(), 1);
    assert_quiet(&handle);
}

/// The very service whose call had panicked was asked for the other half.
#[tokio::test(start_paused = true)]
async fn a_service_that_panicked_is_not_asked_again() {
    struct Fragile {
        broken: bool,
        again: Arc<AtomicUsize>,
    }
    impl Clone for Fragile {
        fn clone(&self) -> Self {
            let again = self.again.clone();
            Self {
                broken: false,
                again,
            }
        }
    }
    impl Service<Batch<Item>> for Fragile {
        type Response = Vec<Result<Item, Fault>>;
        type Error = Fault;
        type Future = Ready<Echoed<Item>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
            self.again
                .fetch_add(usize::from(self.broken), Ordering::SeqCst);
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, batch: Batch<Item>) -> Self::Future {
            if batch.len() == 2 {
                return ready(Err(Fault("both")));
            }
            if batch[0].id == 0 {
                self.broken = true;
                panic!("told to");
            }
            ready(echo(batch))
        }
    }
    let again = Arc::new(AtomicUsize::new(0));
    let layer = layer().on_error(OnError::Bisect);
    let service = layer.layer(Fragile {
        broken: false,
        again: again.clone(),
    });
    let (first, second) = (go(&service, item(0)), go(&service, item(1)));
    assert_eq!(reason(&first.error().await), Reason::Panicked);
    assert_eq!(second.value().await.id, 1);
    assert_eq!(again.load(Ordering::SeqCst), 0);
    assert_quiet(&layer.handle());
}

// ===== executors and runtimes =====

/// The executor's panic over the next batch was the end of the one that had been taken.
#[tokio::test(start_paused = true)]
async fn an_executor_that_panics_for_the_next_batch_leaves_the_one_that_was_taken() {
    let tasks = AtomicUsize::new(0);
    let layer = layer().max_items(1).executor(move |task: Task| {
        let before = tasks.fetch_add(1, Ordering::SeqCst);
        assert_ne!(before, 1, "told to");
        tokio::spawn(task);
    });
    let service = layer.layer(Backend::new(Does::Answers));
    let (first, second) = (go(&service, item(0)), go(&service, item(1)));
    assert_eq!(first.value().await.id, 0);
    assert_eq!(reason(&second.error().await), Reason::Abandoned);
    go(&service, item(2)).value().await;
    assert_quiet(&layer.handle());
}

/// Each task that was dropped made another, all within one poll, without end.
#[test]
fn an_executor_that_polls_once_and_drops_the_task_ends_the_wait() {
    in_time("an executor that polls once", || {
        let layer = layer().max_delay(secs(3_600)).executor(|mut task: Task| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(task.as_mut().poll(&mut cx).is_pending());
        });
        let service = layer.layer(Backend::new(Does::Answers));
        let mut asked = held(&service, item(0));
        let error = assert_ready!(asked.poll()).unwrap_err();
        assert_eq!(reason(&error), Reason::Abandoned);
        assert_quiet(&layer.handle());
    });
}

/// A runtime that never ran its task took the items of callers elsewhere along.
#[test]
fn a_runtime_that_ends_before_it_ran_anything_costs_another_nothing() {
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap()
    };
    let (here, there) = (runtime(), runtime());
    let layer = layer();
    let service = layer.layer(Backend::new(Does::Answers));
    let ours = {
        let _here = here.enter();
        call(&service, item(0))
    };
    let theirs = {
        let _there = there.enter();
        call(&service, item(1))
    };
    drop((ours, here));
    assert_eq!(there.block_on(theirs).unwrap().id, 1);
    assert_quiet(&layer.handle());
}

/// What a drain that was given up had left stayed until the layer was drained.
#[tokio::test(start_paused = true)]
async fn drains_that_are_given_up_leave_nothing() {
    struct Bell;
    impl Wake for Bell {
        fn wake(self: Arc<Self>) {}
    }
    let bell = Arc::new(Bell);
    let layer = layer();
    let handle = layer.handle();
    let service = layer.layer(Backend::new(Does::Takes(secs(1))));
    let asked = go(&service, item(0));
    rest().await;
    for _ in 0..10 {
        let waker = bell.clone().into();
        let mut drain = Box::pin(handle.drain());
        assert_pending!(drain.as_mut().poll(&mut Context::from_waker(&waker)));
    }
    assert_eq!(Arc::strong_count(&bell), 1);
    asked.value().await;
    handle.drain().await;
    assert_quiet(&handle);
}
