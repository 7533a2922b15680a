//! Many of everything: callers on threads, shards, items; and runtimes that lack something.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use tokio_test::assert_ready;
use tower::util::BoxCloneService;
use tower::{Layer, Service as _, ServiceExt as _, service_fn};
use tower_flow::BoxError;
use tower_flow::batch::{Batch, Flush};
use tower_flow::error::Reason;

use super::kills::Random;
use super::{
    Backend, Count, Does, Fault, Item, all, answered, assert_quiet, assert_usable, block_on, call,
    ended, go, held, item, layer, ms, reason, rest, rounds, secs, sharded,
};
use crate::support::bytes;

/// Callers come through the gate, some leave after a poll, batches run where there is a thread.
#[test]
fn on_many_threads_each_item_is_sent_once_and_answered_once() {
    let each = rounds(2_000) as u64;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    let layer = sharded()
        .max_items(7)
        .max_in_flight(4, 2)
        .queue(10, None)
        .dedup_by(|item: &Item| item.key);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let alive = Arc::new(Count::default());
    let (served, left, refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let counts = Arc::new((served, left, refused));
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let (service, counts, alive) = (service.clone(), counts.clone(), alive.clone());
            runtime.spawn(async move {
                let mut random = Random::new(caller);
                for round in 0..each {
                    let id = caller * each + round;
                    // A twin now and then, of the one before or of a neighbour's.
                    let key = if random.once_in(8) {
                        round
                    } else {
                        1_000_000 + id
                    };
                    let item = item(id).shard(random.below(3)).key(key);
                    let mut service = service.clone();
                    if random.once_in(20) {
                        // Asks for room and does not come.
                        let mut cx = Context::from_waker(Waker::noop());
                        let _ = service.poll_ready(&mut cx);
                        continue;
                    }
                    let ready = service.ready().await.unwrap();
                    let mut call = Box::pin(ready.call(item.counted(&alive)));
                    if random.once_in(5) {
                        let mut cx = Context::from_waker(Waker::noop());
                        if call.as_mut().poll(&mut cx).is_pending() {
                            drop(call);
                            counts.1.fetch_add(1, Ordering::Relaxed);
                        } else {
                            counts.0.fetch_add(1, Ordering::Relaxed);
                        }
                        continue;
                    }
                    match call.await {
                        Ok(_) => counts.0.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            assert_eq!(reason(&error), Reason::QueueFull);
                            counts.2.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            })
        })
        .collect();
    for caller in callers {
        runtime.block_on(caller).unwrap();
    }
    runtime.block_on(handle.drain());
    let now = assert_quiet(&handle);
    let mut ids = backend.ids();
    let sent = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), sent, "none is sent twice");
    assert_eq!(alive.now(), 0);
    assert!(backend.busy.peak() <= 4);
    assert!(backend.sizes().iter().all(|size| *size <= 7));
    let [served, left] = [&counts.0, &counts.1].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(now.items, served + left);
    assert!(ended(&handle, "cancelled") <= left);
    assert!(served > each, "{now:?}");
}

#[test]
fn a_churn_of_shards_leaves_no_memory_behind() {
    let layer = sharded().queue(1 << 20, None).max_in_flight(1_000, 1);
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |batch: Batch<Item>| {
        Ok::<_, Fault>(tower_flow::batch::All(batch.len()))
    }));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let round = async |keys: std::ops::Range<u64>| {
            let mut service = service.clone();
            let calls: Vec<_> = keys.map(|id| service.call(item(id).shard(id))).collect();
            // Half of them leave.
            for (n, call) in calls.into_iter().enumerate() {
                if n % 2 == 0 {
                    assert_eq!(call.await.unwrap(), 1);
                }
            }
            rest().await;
        };
        round(0..1_000).await;
        let before = bytes();
        for n in 1..10 {
            round(n * 2_000..(n + 1) * 2_000).await;
            assert_quiet(&handle);
        }
        let kept = bytes() - before;
        assert!(kept < 1 << 20, "{kept} bytes");
    });
}

#[test]
fn a_flood_that_leaves_is_forgotten() {
    let layer = layer().queue(1 << 20, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    backend.hold();
    let service = layer.layer(backend.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let before = bytes();
        for _ in 0..3 {
            let mut service = service.clone();
            let calls: Vec<_> = (0..20_000).map(|id| service.call(item(id))).collect();
            assert_eq!(handle.snapshot().queued, 20_000);
            // From the middle to both ends: leaving is no search.
            let mut calls: std::collections::VecDeque<_> = calls.into();
            calls.rotate_left(10_000);
            while calls.pop_front().is_some() {
                calls.pop_back();
            }
            rest().await;
            assert_quiet(&handle);
        }
        let kept = bytes() - before;
        assert!(kept < 8 << 20, "{kept} bytes for nobody");
        assert_usable(&service, &handle, &backend).await;
    });
}

// ===== runtimes that lack something =====

#[test]
fn in_a_runtime_without_timers_whoever_asks_sends() {
    let layer = layer().max_delay(secs(3_600));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let asked = all(&service, 0..3);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(backend.calls(), 0);
        handle.flush();
        for asked in asked {
            asked.0.await.unwrap().unwrap();
        }
    });
    assert_eq!(
        (backend.sizes(), backend.last().flush),
        (vec![3], Flush::Asked)
    );
    assert_quiet(&handle);
}

#[test]
fn without_a_runtime_a_deadline_that_has_passed_is_seen() {
    let layer = layer()
        .deadline(|item: &Item| item.deadline, ms(0))
        .caller_driven();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let mut late = held(&service, item(0).within(ms(0)));
    let error = assert_ready!(late.poll()).unwrap_err();
    assert_eq!(reason(&error), Reason::Deadline);
    assert_eq!(
        block_on(call(&service, item(1).within(secs(60))))
            .unwrap()
            .id,
        1
    );
    assert_eq!(backend.batches(), [[1]]);
    drop(late);
    let mut drained = tokio_test::task::spawn(handle.drain());
    assert_ready!(drained.poll());
    assert_quiet(&handle);
}

// ===== a batch that asks its own layer =====

#[tokio::test(start_paused = true)]
async fn a_batch_may_ask_its_own_layer_where_there_is_a_slot() {
    type Boxed = BoxCloneService<Item, u64, BoxError>;
    let again: Arc<std::sync::Mutex<Option<Boxed>>> = Arc::default();
    let outer = again.clone();
    let inner = service_fn(move |batch: Batch<Item>| {
        let outer = outer.lock().unwrap().clone().unwrap();
        async move {
            let mut sums = Vec::new();
            for item in batch {
                let below = match item.shard.checked_sub(1) {
                    Some(shard) => {
                        outer
                            .clone()
                            .oneshot(super::item(item.id).shard(shard))
                            .await?
                    }
                    None => 0,
                };
                sums.push(Ok::<_, BoxError>(below + 1));
            }
            Ok::<_, BoxError>(sums)
        }
    });
    let layer = sharded().max_in_flight(5, 1);
    let handle = layer.handle();
    let service = layer.layer(inner);
    *again.lock().unwrap() = Some(BoxCloneService::new(service.clone()));
    let asked: Vec<_> = (0..3).map(|id| go(&service, item(id).shard(4))).collect();
    for asked in asked {
        assert_eq!(asked.value().await, 5);
    }
    rest().await;
    assert_eq!(assert_quiet(&handle).items, 15);
    // One that waits for itself ends with its deadline, if it has one.
    *again.lock().unwrap() = None;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_nobody_polls_again_is_no_leak_of_a_slot() {
    let layer = layer().max_items(1).max_in_flight(2, 2).queue(100, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(1)));
    let service = layer.layer(backend.clone());
    let mut parked: Vec<_> = (0..10).map(|id| held(&service, item(id))).collect();
    for call in &mut parked {
        assert!(matches!(call.poll(), Poll::Pending));
    }
    answered(all(&service, 10..20)).await;
    assert_eq!(backend.ids(), Vec::from_iter(0..20));
    for (id, call) in (0..).zip(parked) {
        assert_eq!(call.await.unwrap().id, id);
    }
    assert_quiet(&handle);
}
