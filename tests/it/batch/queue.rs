//! The gate before the queue: who is let in, who waits, who is woken, who is refused.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Waker};

use tokio_test::task::Spawn;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok};
use tower::{Layer, Service, ServiceExt as _};
use tower_flow::BoxError;
use tower_flow::batch::{BatchHandle, BatchLayer};
use tower_flow::error::Reason;

use super::{
    Asked, Backend, Call, Comer, Count, Does, Item, Single, all, answered, assert_quiet,
    assert_usable, comer, ended, go, item, layer, ms, reason, rest, rounds, secs, sharded,
};

/// A layer before a backend that is not ready: what is accepted waits.
fn still(layer: BatchLayer<Item>) -> (impl Single, BatchHandle, Backend) {
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    backend.hold();
    (layer.layer(backend.clone()), handle, backend)
}

/// A layer before a backend that stands still: one batch is in flight, and what is accepted after it waits.
async fn busy(layer: BatchLayer<Item>) -> (impl Single, Asked) {
    let service = layer.layer(Backend::new(Does::Waits));
    let mut first = all(&service, [1_000]);
    rest().await;
    (service, first.remove(0))
}

// ===== the limits =====

#[tokio::test(start_paused = true)]
async fn the_gate_closes_at_the_limit_and_opens_below() {
    let (service, handle, backend) = still(layer().queue(3, None));
    let mut asked = all(&service, 0..2);
    assert_ready_ok!(comer(&service).poll_ready());
    asked.extend(all(&service, [2]));
    let mut late = comer(&service);
    assert_pending!(late.poll_ready());
    assert_eq!(handle.snapshot().queued, 3);
    asked.remove(1).cancel().await;
    assert!(late.is_woken());
    assert_ready_ok!(late.poll_ready());
    backend.admit();
    answered(asked).await;
    assert_usable(&service, &handle, &backend).await;
}

#[tokio::test(start_paused = true)]
async fn by_default_twice_as_many_wait_as_can_be_in_flight() {
    let (service, handle, backend) = still(layer().max_items(4).max_in_flight(3, 2));
    let mut asked = all(&service, 0..24);
    assert_pending!(comer(&service).poll_ready());
    assert_eq!(handle.snapshot().queued, 24);
    backend.admit();
    answered(asked.drain(..)).await;
    // And that is 640, when nothing else was said.
    let (service, _, _) = still(layer());
    let asked = all(&service, 0..639);
    assert_ready_ok!(comer(&service).poll_ready());
    let last = go(&service, item(639));
    assert_pending!(comer(&service).poll_ready());
    drop((asked, last));
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_does_not_wait() {
    let layer = layer().max_items(2).queue(3, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut asked = all(&service, 0..2);
    rest().await;
    asked.extend(all(&service, 2..5));
    let now = handle.snapshot();
    assert_eq!((now.queued, now.in_flight), (3, 1));
    let mut late = comer(&service);
    assert_pending!(late.poll_ready());
    backend.finish(1, Does::Answers);
    rest().await;
    assert!(late.is_woken(), "two more were sent");
    assert_ready_ok!(late.poll_ready());
    assert_eq!(handle.snapshot().queued, 1);
    for call in 2..4 {
        backend.finish(call, Does::Answers);
    }
    answered(asked).await;
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn weight_closes_the_gate_too() {
    let weighed = layer().max_weight(|item: &Item| item.weight, 100);
    let (service, handle, backend) = still(weighed.queue(1_000, 10));
    let mut asked = vec![go(&service, item(0).weight(9))];
    assert_ready_ok!(comer(&service).poll_ready());
    // The gate cannot know what comes; the weight of what is in closes it.
    let mut early: Vec<_> = (0..4).map(|_| service.clone()).collect();
    for service in &mut early {
        assert!(service.ready().await.is_ok());
    }
    asked.push(go(&service, item(1).weight(5)));
    let mut late = comer(&service);
    assert_pending!(late.poll_ready());
    // Who was let in before gets in up to twice the weight.
    let calls: Vec<_> = [(2, 6), (3, 7), (4, 6), (5, 1)]
        .into_iter()
        .zip(&mut early)
        .map(|((id, weight), service)| tokio::spawn(service.call(item(id).weight(weight))))
        .collect();
    rest().await;
    assert_eq!(handle.snapshot().queued, 3, "9 and 5 and 6");
    let refused: Vec<_> = calls.iter().map(|call| call.is_finished()).collect();
    assert_eq!(refused, [false, true, true, true]);
    for (call, refused) in calls.into_iter().zip(refused) {
        if refused {
            let error = call.await.unwrap().unwrap_err();
            assert_eq!(reason(&error), Reason::QueueFull, "{error}");
        } else {
            asked.push(Asked(call));
        }
    }
    // What leaves takes its weight with it.
    asked.remove(0).cancel().await;
    assert_pending!(late.poll_ready());
    asked.remove(0).cancel().await;
    assert!(late.is_woken());
    assert_ready_ok!(late.poll_ready());
    backend.admit();
    answered(asked).await;
    assert_eq!(backend.last().weight, 6);
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn weights_without_end_neither_open_the_gate_nor_close_it_for_ever() {
    use tower_flow::batch::Oversize;
    let weighed = layer()
        .max_weight(|item: &Item| item.weight, 10)
        .oversize(Oversize::Alone)
        .queue(1_000, usize::MAX);
    let (service, handle, backend) = still(weighed);
    let mut early: Vec<_> = (0..4).map(|_| service.clone()).collect();
    for service in &mut early {
        assert!(service.ready().await.is_ok());
    }
    let calls: Vec<_> = (0..)
        .zip(&mut early)
        .map(|(id, service)| tokio::spawn(service.call(item(id).weight(usize::MAX))))
        .collect();
    rest().await;
    assert_pending!(comer(&service).poll_ready());
    backend.admit();
    let mut served = 0;
    for call in calls {
        match Asked(call).result().await {
            Ok(_) => served += 1,
            Err(error) => assert_eq!(reason(&error), Reason::QueueFull),
        }
    }
    assert!(served >= 1);
    rest().await;
    assert_ready_ok!(comer(&service).poll_ready());
    assert_usable(&service, &handle, &backend).await;
}

#[tokio::test(start_paused = true)]
async fn the_layer_has_one_gate_for_all_its_shards_and_products() {
    let layer = sharded().queue(4, None);
    let backend = Backend::new(Does::Answers);
    backend.hold();
    let products = [0, 1].map(|_| layer.layer(backend.clone()));
    let asked: Vec<_> = (0..4)
        .map(|id| go(&products[id as usize % 2], item(id).shard(id)))
        .collect();
    let mut late = comer(&products[0]);
    assert_pending!(late.poll_ready());
    assert_pending!(comer(&products[1]).poll_ready());
    backend.admit();
    answered(asked).await;
    assert!(late.is_woken());
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_sends_what_it_has() {
    let layer = layer().max_delay(secs(10)).queue(5, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let begun = tokio::time::Instant::now();
    // More can wait than may: to wait for a full batch would be to wait for nobody.
    let callers: Vec<_> = (0..20)
        .map(|id| Asked(tokio::spawn(service.clone().oneshot(item(id)))))
        .collect();
    answered(callers).await;
    assert!(begun.elapsed() < secs(10), "{:?}", begun.elapsed());
    assert!(
        super::flushed(&handle, "memory") >= 3,
        "{:?}",
        handle.snapshot()
    );
    assert_eq!(backend.ids().len(), 20);
    assert_quiet(&handle);
}

// ===== who is woken =====

#[tokio::test(start_paused = true)]
async fn the_gate_lets_in_who_has_waited_longest() {
    let (service, _first) = busy(layer().queue(2, None)).await;
    let mut asked = all(&service, 0..2);
    let mut comers: Vec<_> = (0..4).map(|_| comer(&service)).collect();
    for comer in &mut comers {
        assert_pending!(comer.poll_ready());
    }
    asked.remove(0).cancel().await;
    let woken: Vec<_> = comers.iter().map(Comer::is_woken).collect();
    assert_eq!(woken, [true, false, false, false], "one place, one wake");
    assert_ready_ok!(comers[0].poll_ready());
    let mut calls = vec![Asked(tokio::spawn(comers[0].service.call(item(2))))];
    assert_pending!(comers[1].poll_ready());
    // Two places, the next two.
    asked.remove(0).cancel().await;
    calls.remove(0).cancel().await;
    let woken: Vec<_> = comers[1..].iter().map(Comer::is_woken).collect();
    assert_eq!(woken, [true, true, false]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_sent_lets_in_as_many_as_it_took() {
    let layer = layer().max_items(3).queue(5, None);
    let backend = Backend::new(Does::Waits);
    backend.hold();
    let service = layer.layer(backend.clone());
    let asked = all(&service, 0..5);
    let mut comers: Vec<_> = (0..5).map(|_| comer(&service)).collect();
    for comer in &mut comers {
        assert_pending!(comer.poll_ready());
    }
    rest().await;
    backend.admit();
    rest().await;
    assert_eq!(backend.sizes(), [3]);
    let woken: Vec<_> = comers.iter().map(Comer::is_woken).collect();
    assert_eq!(woken, [true, true, true, false, false]);
    drop(asked);
}

#[tokio::test(start_paused = true)]
async fn who_polls_again_keeps_his_place_in_the_line() {
    let (service, _first) = busy(layer().queue(1, None)).await;
    let mut asked = all(&service, 0..1);
    let mut first = comer(&service);
    let mut second = comer(&service);
    assert_pending!(first.poll_ready());
    assert_pending!(second.poll_ready());
    for _ in 0..10 {
        assert_pending!(first.poll_ready());
    }
    asked.remove(0).cancel().await;
    assert!(first.is_woken() && !second.is_woken());
}

#[tokio::test(start_paused = true)]
async fn a_wake_that_its_receiver_drops_goes_to_the_next() {
    let (service, _first) = busy(layer().queue(1, None)).await;
    let mut asked = all(&service, 0..1);
    let mut comers: Vec<_> = (0..4).map(|_| comer(&service)).collect();
    for comer in &mut comers {
        assert_pending!(comer.poll_ready());
    }
    // One leaves the line before it is his turn, and one when it is.
    drop(comers.remove(1));
    asked.remove(0).cancel().await;
    let woken: Vec<_> = comers.iter().map(Comer::is_woken).collect();
    assert_eq!(woken, [true, false, false]);
    drop(comers.remove(0));
    let woken: Vec<_> = comers.iter().map(Comer::is_woken).collect();
    assert_eq!(woken, [true, false]);
    assert_ready_ok!(comers[0].poll_ready());
}

#[tokio::test(start_paused = true)]
async fn who_is_woken_and_stays_idle_keeps_nobody_out() {
    let (service, handle, backend) = still(layer().queue(2, None));
    let mut asked = all(&service, 0..2);
    let mut idle = comer(&service);
    let mut lazy = comer(&service);
    let mut eager = comer(&service);
    for comer in [&mut idle, &mut lazy, &mut eager] {
        assert_pending!(comer.poll_ready());
    }
    // Two places: one for who never polls again, one for who polls and never calls.
    for asked in asked.drain(..) {
        asked.cancel().await;
    }
    assert!(idle.is_woken() && lazy.is_woken());
    assert_ready_ok!(lazy.poll_ready());
    // There is room all the while: whoever asks gets in, and so does who waits, at the latest with the next event.
    assert_ready_ok!(comer(&service).poll_ready());
    let late = go(&service, item(7));
    rest().await;
    backend.admit();
    late.value().await;
    rest().await;
    assert!(eager.is_woken(), "lost behind two who do not come");
    assert_ready_ok!(eager.poll_ready());
    drop((idle, lazy));
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn a_comer_who_is_woken_for_nothing_is_woken_again() {
    let (service, _, _) = still(layer().queue(1, None));
    let mut asked = all(&service, 0..1);
    let mut first = comer(&service);
    assert_pending!(first.poll_ready());
    for id in 1..10 {
        asked.remove(0).cancel().await;
        assert!(first.is_woken());
        // Somebody else was faster.
        asked.push(go(&service, item(id)));
        assert_pending!(first.poll_ready());
    }
    asked.remove(0).cancel().await;
    assert!(first.is_woken());
    assert_ready_ok!(first.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn the_last_waker_of_a_comer_is_the_one_that_is_woken() {
    let (service, _, _) = still(layer().queue(1, None));
    let mut asked = all(&service, 0..1);
    let mut moved = service.clone();
    let mut first = tokio_test::task::spawn(());
    let mut second = tokio_test::task::spawn(());
    let polled = first.enter(|cx, _| moved.poll_ready(cx));
    assert!(polled.is_pending());
    let polled = second.enter(|cx, _| moved.poll_ready(cx));
    assert!(polled.is_pending());
    asked.remove(0).cancel().await;
    assert!(second.is_woken());
    assert_ready!(second.enter(|cx, _| moved.poll_ready(cx))).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_clone_has_no_place_in_the_line() {
    let (service, handle, _) = still(layer().queue(1, None));
    let asked = all(&service, 0..1);
    let mut first = comer(&service);
    assert_pending!(first.poll_ready());
    let copies: Vec<_> = (0..100).map(|_| first.service.clone()).collect();
    drop(first);
    for asked in asked {
        asked.cancel().await;
    }
    assert_eq!(handle.snapshot().queued, 0);
    for mut copy in copies {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(copy.poll_ready(&mut cx).is_ready());
    }
}

/// Everybody wants in, some leave, some hesitate: in the end all who stayed were in.
#[tokio::test(start_paused = true)]
async fn however_comers_behave_none_is_forgotten() {
    for seed in 0..rounds(200) as u64 {
        let mut random = super::kills::Random::new(seed);
        let layer = layer().max_items(3).queue(2, None);
        let handle = layer.handle();
        let backend = Backend::new(Does::Takes(ms(5)));
        let service = layer.layer(backend.clone());
        let mut comers = Vec::new();
        for id in 0..40 {
            let mut service = service.clone();
            let (patience, hesitates) = (random.below(60), random.below(4) == 0);
            let nap = random.below(10);
            comers.push(tokio::spawn(async move {
                tokio::time::sleep(ms(nap)).await;
                let ready = poll_fn(|cx| service.poll_ready(cx));
                if patience < 5 {
                    // Gives up, and keeps its handle for a while.
                    let _ = tokio::time::timeout(ms(patience), ready).await;
                    tokio::time::sleep(ms(patience)).await;
                    return Ok::<_, BoxError>(None);
                }
                ready.await?;
                if hesitates {
                    tokio::time::sleep(ms(patience)).await;
                    poll_fn(|cx| service.poll_ready(cx)).await?;
                }
                service.call(item(id)).await.map(Some)
            }));
        }
        for (id, comer) in (0..).zip(comers) {
            let result = tokio::time::timeout(secs(60), comer).await;
            let result = result.unwrap_or_else(|_| panic!("{id} is forgotten, seed {seed}"));
            match result.unwrap() {
                Ok(answer) => assert!(answer.is_none_or(|answer| answer.id == id)),
                Err(error) => assert_eq!(reason(&error), Reason::QueueFull, "seed {seed}"),
            }
        }
        rest().await;
        assert_quiet(&handle);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_item_is_dropped_at_once_and_counted() {
    let (service, handle, _) = still(layer().queue(1, None));
    let alive = Arc::new(Count::default());
    let mut callers: Vec<_> = (0..5).map(|_| service.clone()).collect();
    for caller in &mut callers {
        assert!(caller.ready().await.is_ok());
    }
    let mut calls: Vec<Spawn<Call>> = (0..)
        .zip(&mut callers)
        .map(|(id, caller)| {
            let call: Call = Box::pin(caller.call(item(id).counted(&alive)));
            tokio_test::task::spawn(call)
        })
        .collect();
    assert_eq!(alive.now(), 2);
    for (id, call) in calls.iter_mut().enumerate() {
        if id < 2 {
            assert_pending!(call.poll());
        } else {
            let error = assert_ready!(call.poll()).unwrap_err();
            assert_eq!(reason(&error), Reason::QueueFull);
            assert!(error.to_string().contains('2'), "{error}: what is full");
        }
    }
    let now = handle.snapshot();
    assert_eq!((now.items, ended(&handle, "rejected")), (2, 3));
    drop(calls);
    rest().await;
    assert_quiet(&handle);
}
