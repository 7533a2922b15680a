//! The acceptance tests of the design note, 15 to 20, by number.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, sleep_until};
use tokio_test::{assert_pending, assert_ready};
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt as _, service_fn};
use tower_flow::batch::{All, Batch, BatchLayer, Flush, IntoResults, OnError, Oversize};
use tower_flow::error::{Reason, SharedError};

use super::{
    Asked, Backend, Count, Does, Fate, Fault, Item, all, answered, assert_quiet, assert_took,
    assert_usable, block_on, call, comer, ended, fault, flushed, go, held, item, layer, ms, reason,
    rest, secs,
};

// ===== 15 =====

/// 15.
#[tokio::test(start_paused = true)]
async fn items_that_trickle_in_wait_no_longer_than_the_delay_from_the_first() {
    let layer = layer().max_delay(ms(100));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut came = Vec::new();
    let mut asked = Vec::new();
    for id in 0..17 {
        sleep_until(begun + ms(60) * id).await;
        came.push(Instant::now());
        asked.push(go(&service, item(u64::from(id))));
    }
    answered(asked).await;
    assert_eq!(backend.ids(), Vec::from_iter(0..17));
    assert_eq!(backend.sizes(), [2, 2, 2, 2, 2, 2, 2, 2, 1]);
    for sent in backend.sent() {
        assert_took(sent.at - came[sent.ids[0] as usize], ms(100));
        assert_eq!(sent.flush, Flush::Delay);
    }
    assert_eq!(flushed(&handle, "delay"), 9);
    assert_quiet(&handle);
}

/// 15.
#[tokio::test(start_paused = true)]
async fn a_batch_that_fills_early_leaves_the_next_its_full_delay() {
    let layer = layer().max_items(4).max_delay(ms(100));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut asked = all(&service, 0..3);
    sleep_until(begun + ms(50)).await;
    asked.extend(all(&service, [3]));
    sleep_until(begun + ms(60)).await;
    assert_eq!(backend.batches(), [[0, 1, 2, 3]]);
    assert_took(backend.last().at - begun, ms(50));
    asked.extend(all(&service, [4]));
    answered(asked).await;
    assert_eq!(backend.sizes(), [4, 1]);
    assert_took(backend.last().at - begun, ms(160));
    assert_eq!(
        (flushed(&handle, "full"), flushed(&handle, "delay")),
        (1, 1)
    );
}

/// 15.
#[tokio::test(start_paused = true)]
async fn what_a_full_batch_leaves_over_waits_from_its_own_beginning() {
    let backend = Backend::new(Does::Answers);
    let layer = layer().max_items(4).max_delay(ms(100));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut asked = all(&service, 0..3);
    sleep_until(begun + ms(50)).await;
    asked.extend(all(&service, 3..6));
    answered(asked).await;
    assert_eq!(backend.batches(), [vec![0, 1, 2, 3], vec![4, 5]]);
    let sent = backend.sent();
    assert_took(sent[0].at - begun, ms(50));
    assert_took(sent[1].at - begun, ms(150));
}

/// 15.
#[tokio::test(start_paused = true)]
async fn what_is_left_over_while_a_batch_is_in_flight_waits_no_longer_than_its_delay() {
    let backend = Backend::new(Does::Takes(ms(10)));
    let layer = layer().max_items(4).max_delay(ms(100));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let asked = all(&service, 0..6);
    answered(asked).await;
    assert_eq!(backend.batches(), [vec![0, 1, 2, 3], vec![4, 5]]);
    assert_took(backend.last().at - begun, ms(100));
}

/// 15.
#[tokio::test(start_paused = true)]
async fn the_delay_counts_from_the_oldest_that_still_waits() {
    let layer = layer().max_delay(ms(100));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let first = go(&service, item(0));
    sleep_until(begun + ms(40)).await;
    let second = go(&service, item(1));
    sleep_until(begun + ms(50)).await;
    first.cancel().await;
    second.value().await;
    assert_eq!(backend.batches(), [[1]]);
    assert_took(backend.last().at - begun, ms(140));
    // All gone: nothing is sent, and whoever comes then waits from then.
    let alone = go(&service, item(2));
    rest().await;
    alone.cancel().await;
    sleep_until(begun + ms(200)).await;
    go(&service, item(3)).value().await;
    assert_eq!(backend.batches(), [[1], [3]]);
    assert_took(backend.last().at - begun, ms(300));
    assert_eq!(ended(&handle, "cancelled"), 2);
    assert_quiet(&handle);
}

/// 15, without a delay.
#[tokio::test(start_paused = true)]
async fn without_a_delay_nobody_waits_for_others_and_batches_grow_while_one_is_in_flight() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut asked = all(&service, [0]);
    rest().await;
    assert_eq!(backend.batches(), [[0]]);
    assert!(backend.last().at - begun <= ms(0), "at once");
    for id in 1..10 {
        sleep_until(begun + ms(10) * id).await;
        asked.extend(all(&service, [u64::from(id)]));
    }
    answered(asked).await;
    assert_eq!(backend.sizes(), [1, 9]);
    assert_took(backend.last().at - begun, ms(100));
    assert_eq!(backend.ids(), Vec::from_iter(0..10));
    assert_eq!((flushed(&handle, "idle"), backend.busy.peak()), (2, 1));
    assert_quiet(&handle);
}

// ===== 16 =====

fn weighed(max: usize) -> BatchLayer<Item> {
    layer().max_weight(|item: &Item| item.weight, max)
}

/// 16.
#[tokio::test(start_paused = true)]
async fn an_item_that_would_be_too_much_seals_the_batch_before_it() {
    let layer = weighed(10).max_delay(ms(100));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut asked = all(&service, 0..9);
    sleep_until(begun + ms(20)).await;
    asked.push(go(&service, item(9).weight(5)));
    rest().await;
    assert_eq!(backend.batches(), [Vec::from_iter(0..9)]);
    assert_eq!(
        (backend.last().weight, backend.last().flush),
        (9, Flush::Full)
    );
    assert_took(backend.last().at - begun, ms(20));
    answered(asked).await;
    assert_eq!((backend.calls(), backend.last().ids), (2, vec![9]));
    assert_eq!(
        (backend.last().weight, backend.last().flush),
        (5, Flush::Delay)
    );
    assert_took(backend.last().at - begun, ms(120));
    assert_quiet(&handle);
}

/// 16.
#[tokio::test(start_paused = true)]
async fn a_batch_weighs_as_much_as_it_may_and_never_more() {
    let layer = weighed(10).max_delay(ms(100));
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let weights = [4, 6, 9, 1, 1, 10, 5, 5, 5, 0, 6, 4];
    let asked: Vec<_> = (0..)
        .zip(weights)
        .map(|(id, weight)| go(&service, item(id).weight(weight)))
        .collect();
    answered(asked).await;
    let sent = backend.sent();
    let weights: Vec<_> = sent.iter().map(|sent| sent.weight).collect();
    assert_eq!(weights, [10, 10, 1, 10, 10, 5, 10]);
    assert_eq!(backend.ids(), Vec::from_iter(0..12), "in order");
    assert!(sent[5].at - begun <= ms(1), "sealed by what came after");
    assert!(sent[6].at - begun <= ms(1), "it is full");
}

/// 16.
#[tokio::test(start_paused = true)]
async fn an_item_heavier_than_a_batch_is_refused() {
    let layer = weighed(10).max_delay(ms(100));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let alive = Arc::default();
    let before = go(&service, item(0).weight(3));
    let heavy = go(&service, item(1).weight(11).counted(&alive));
    let after = go(&service, item(2).weight(4));
    rest().await;
    assert_eq!(alive.now(), 0);
    assert!(heavy.is_done(), "at once");
    let error = heavy.error().await;
    assert_eq!(reason(&error), Reason::TooLarge);
    let said = error.to_string();
    assert!(said.contains("11") && said.contains("10"), "{said}");
    answered([before, after]).await;
    assert_eq!(backend.batches(), [[0, 2]]);
    assert_eq!(ended(&handle, "rejected"), 1);
    assert_eq!(assert_quiet(&handle).items, 2);
}

/// 16.
#[tokio::test(start_paused = true)]
async fn an_item_heavier_than_a_batch_goes_alone_if_it_may() {
    let layer = weighed(10).oversize(Oversize::Alone).max_delay(ms(100));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let asked = [
        (0, 3),
        (1, 11),
        (2, 4),
        (3, usize::MAX),
        (4, usize::MAX),
        (5, 0),
    ]
    .map(|(id, weight)| go(&service, item(id).weight(weight)));
    answered(asked).await;
    assert_eq!(
        backend.batches(),
        [[0], [1], [2], [3], [4], [5]],
        "none before its turn, none with another"
    );
    assert_eq!(
        (backend.sent()[1].weight, backend.sent()[3].weight),
        (11, usize::MAX)
    );
    assert_quiet(&handle);
}

/// 16.
#[tokio::test(start_paused = true)]
async fn a_flood_of_items_without_weight_still_is_sent() {
    let layer = weighed(10).max_items(1_000).max_delay(ms(10));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut came = Vec::new();
    let mut asked = Vec::new();
    for id in 0..200 {
        sleep_until(begun + ms(1) * id).await;
        came.push(Instant::now());
        asked.push(go(&service, item(u64::from(id)).weight(0)));
    }
    answered(asked).await;
    for sent in backend.sent() {
        assert_took(sent.at - came[sent.ids[0] as usize], ms(10));
        assert_eq!((sent.weight, sent.flush), (0, Flush::Delay));
    }
    assert_eq!(backend.ids(), Vec::from_iter(0..200));
    // At once, they are as many as a batch may have.
    let asked: Vec<_> = (0..3_000)
        .map(|id| go(&service, item(id).weight(0)))
        .collect();
    let calls = backend.calls();
    answered(asked).await;
    assert_eq!(backend.sizes()[calls..], [1_000; 3]);
    assert_quiet(&handle);
}

/// 16, where no sum can hold them.
#[tokio::test(start_paused = true)]
async fn weights_beyond_all_numbers_are_never_put_together() {
    let layer = weighed(usize::MAX).max_delay(ms(100));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let half = usize::MAX / 2 + 1;
    let asked = [half, half, usize::MAX, usize::MAX, half - 1, half, 0, 1]
        .into_iter()
        .zip(0..)
        .map(|(weight, id)| go(&service, item(id).weight(weight)));
    let asked: Vec<_> = asked.collect();
    answered(asked).await;
    assert_eq!(
        backend.batches(),
        [vec![0], vec![1], vec![2], vec![3], vec![4, 5, 6], vec![7]]
    );
    assert_quiet(&handle);
}

// ===== 17 =====

/// 17.
#[tokio::test(start_paused = true)]
async fn each_item_has_its_own_result() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..10)
        .map(|id| {
            let fate = if id % 3 == 1 { Fate::Fails } else { Fate::Fine };
            go(&service, item(id).fate(fate))
        })
        .collect();
    for (id, asked) in (0..).zip(asked) {
        match asked.result().await {
            Ok(answer) => {
                assert_ne!(id % 3, 1);
                assert_eq!((answer.id, answer.position), (id, id as usize));
            }
            Err(error) => {
                assert_eq!(id % 3, 1);
                assert_eq!(error.downcast_ref(), Some(&Fault("its own")), "as it is");
            }
        }
    }
    assert_eq!(
        (
            backend.calls(),
            ended(&handle, "ok"),
            ended(&handle, "error")
        ),
        (1, 7, 3)
    );
    assert_quiet(&handle);
}

/// 17.
#[tokio::test(start_paused = true)]
async fn an_answer_too_short_leaves_the_last_missing() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Short(2));
    let service = layer.layer(backend.clone());
    let mut asked = all(&service, 0..5);
    let missing = asked.split_off(3);
    assert_eq!(answered(asked).await.len(), 3);
    for asked in missing {
        assert_eq!(reason(&asked.error().await), Reason::Missing);
    }
    assert_eq!((ended(&handle, "ok"), ended(&handle, "missing")), (3, 2));
    // None at all.
    backend.usual(Does::Short(usize::MAX));
    for asked in all(&service, 0..5) {
        assert_eq!(reason(&asked.error().await), Reason::Missing);
    }
    assert_eq!(assert_quiet(&handle).unknown, 0);
    assert_usable(&service, &handle, &backend).await;
}

/// 17.
#[tokio::test(start_paused = true)]
async fn an_answer_too_long_is_cut_and_counted() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Long(3));
    let service = layer.layer(backend.clone());
    let answers = answered(all(&service, 0..5)).await;
    assert_eq!(
        answers.iter().map(|answer| answer.id).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    rest().await;
    assert_eq!(assert_quiet(&handle).unknown, 3);
}

/// 17.
#[tokio::test(start_paused = true)]
async fn answers_by_position_may_come_in_any_order_with_gaps_and_strangers() {
    let layer = layer();
    let handle = layer.handle();
    let inner = service_fn(async |batch: Batch<Item>| {
        let mut answers: HashMap<usize, Result<u64, Fault>> = HashMap::new();
        for (position, item) in batch.iter().enumerate() {
            match position {
                2 => continue,
                4 => answers.insert(position, Err(Fault("its own"))),
                _ => answers.insert(position, Ok(item.id * 10)),
            };
        }
        answers.insert(7, Ok(70));
        answers.insert(usize::MAX, Ok(71));
        Ok::<_, Infallible>(answers)
    });
    let service = layer.layer(inner);
    let asked: Vec<_> = (0..6).map(|id| go(&service, item(id))).collect();
    for (id, asked) in (0..).zip(asked) {
        let result = asked.result().await;
        match id {
            2 => assert_eq!(reason(&result.unwrap_err()), Reason::Missing),
            4 => assert_eq!(fault(&result.unwrap_err()), "its own"),
            _ => assert_eq!(result.unwrap(), id * 10),
        }
    }
    rest().await;
    assert_eq!(assert_quiet(&handle).unknown, 2);
    // In a tree, the same.
    let layer = super::layer();
    let inner = service_fn(async |batch: Batch<Item>| {
        let last = batch.len() - 1;
        Ok::<_, Infallible>(BTreeMap::from([(last, Ok::<_, Fault>(batch[last].id))]))
    });
    let service = layer.layer(inner);
    let asked = [1, 2].map(|id| go(&service, item(id)));
    let [first, last] = asked;
    assert_eq!(reason(&first.error().await), Reason::Missing);
    assert_eq!(last.value().await, 2);
}

/// Positions as they come, the same ones as often as they come.
struct AsTheyCome(Vec<(usize, u64)>);

impl IntoResults for AsTheyCome {
    type Response = u64;
    type Error = Infallible;

    fn into_results(self, _: usize) -> impl Iterator<Item = (usize, Result<u64, Infallible>)> {
        self.0
            .into_iter()
            .map(|(position, answer)| (position, Ok(answer)))
    }
}

/// 17.
#[tokio::test(start_paused = true)]
async fn of_two_answers_for_an_item_the_first_counts() {
    let layer = layer();
    let handle = layer.handle();
    let inner = service_fn(async |_: Batch<Item>| {
        Ok::<_, Fault>(AsTheyCome(vec![(1, 10), (1, 11), (0, 0), (1, 12), (5, 5)]))
    });
    let service = layer.layer(inner);
    let asked: Vec<_> = (0..3).map(|id| go(&service, item(id))).collect();
    let results = futures_util::future::join_all(asked.into_iter().map(Asked::result)).await;
    let [first, second, third] = results.try_into().unwrap_or_else(|_| unreachable!());
    assert_eq!((first.unwrap(), second.unwrap()), (0, 10));
    assert_eq!(reason(&third.unwrap_err()), Reason::Missing);
    rest().await;
    assert_eq!(assert_quiet(&handle).unknown, 3);
}

/// 17.
#[tokio::test(start_paused = true)]
async fn answers_by_key_reach_all_who_asked_for_the_key() {
    let layer = layer();
    let handle = layer.handle();
    let inner = service_fn(async |batch: Batch<Item>| {
        let keys = batch.keys(|item| item.key);
        Ok::<_, Fault>(keys.results([
            (1, Ok("one")),
            (9, Ok("nobody's")),
            (2, Err(Arc::new(Fault("its own")))),
            (1, Ok("again")),
        ]))
    });
    let service = layer.layer(inner);
    let asked: Vec<_> = [1, 2, 1, 3, 2]
        .into_iter()
        .zip(0..)
        .map(|(key, id)| (key, go(&service, item(id).key(key))))
        .collect();
    for (key, asked) in asked {
        let result = asked.result().await;
        match key {
            1 => assert_eq!(result.unwrap(), "one"),
            2 => assert!(result.unwrap_err().to_string().contains("its own")),
            _ => assert_eq!(reason(&result.unwrap_err()), Reason::Missing),
        }
    }
    rest().await;
    assert_eq!(assert_quiet(&handle).unknown, 3, "nobody's, and two again");
}

/// 17.
#[tokio::test(start_paused = true)]
async fn one_answer_for_all_reaches_all() {
    let layer = layer();
    let handle = layer.handle();
    let calls = Count::default();
    let calls = Arc::new(calls);
    let counted = calls.clone();
    let inner = service_fn(move |batch: Batch<Item>| {
        drop(super::Counted::new(&counted));
        let rows = batch.len();
        async move { Ok::<_, Fault>(All(format!("{rows} rows"))) }
    });
    let service = layer.layer(inner);
    let asked: Vec<_> = (0..5).map(|id| go(&service, item(id))).collect();
    for asked in asked {
        assert_eq!(asked.value().await, "5 rows");
    }
    assert_eq!(calls.total(), 1);
    assert_eq!(assert_quiet(&handle).unknown, 0);
}

/// 17.
#[tokio::test(start_paused = true)]
async fn the_error_of_a_batch_reaches_all_as_one_and_of_one_as_it_is() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Fails);
    let service = layer.layer(backend.clone());
    for asked in all(&service, 0..5) {
        let error = asked.error().await;
        assert!(error.is::<SharedError>(), "{error:?}");
        assert_eq!(error.source().unwrap().to_string(), "told to");
        assert_eq!(fault(&error), "told to");
    }
    assert_eq!((backend.calls(), ended(&handle, "error")), (1, 5));
    let error = go(&service, item(9)).error().await;
    assert_eq!(error.downcast_ref(), Some(&Fault("told to")));
    assert_usable(&service, &handle, &backend).await;
}

/// 17. The bound is that of halving: twice the binary logarithm, and one.
#[tokio::test(start_paused = true)]
async fn one_poison_item_of_sixty_four_fails_alone_in_thirteen_calls() {
    for poison in 0..64 {
        let layer = layer().on_error(OnError::Bisect);
        let handle = layer.handle();
        let backend = Backend::new(Does::Answers);
        let service = layer.layer(backend.clone());
        let asked: Vec<_> = (0..64)
            .map(|id| {
                let fate = if id == poison {
                    Fate::Poison
                } else {
                    Fate::Fine
                };
                go(&service, item(id).fate(fate))
            })
            .collect();
        for (id, asked) in (0..).zip(asked) {
            let result = asked.result().await;
            if id == poison {
                let error = result.unwrap_err();
                assert_eq!(error.downcast_ref(), Some(&Fault("poisoned")), "alone");
            } else {
                assert_eq!(result.unwrap().id, id);
            }
        }
        assert!(backend.calls() <= 13, "{}: {}", poison, backend.calls());
        assert_eq!(
            (backend.sizes()[0], backend.busy.peak()),
            (64, 1),
            "in one slot"
        );
        let now = assert_quiet(&handle);
        assert_eq!(now.splits as usize, backend.calls() - 1);
        assert_eq!((ended(&handle, "ok"), ended(&handle, "error")), (63, 1));
    }
}

/// 17.
#[tokio::test(start_paused = true)]
async fn more_poison_than_halving_can_find_ends_with_the_budget() {
    for step in [1, 2, 7, 32] {
        for n in [64, 37, 3, 2] {
            let layer = layer().on_error(OnError::Bisect);
            let handle = layer.handle();
            let backend = Backend::new(Does::Answers);
            let service = layer.layer(backend.clone());
            let asked: Vec<_> = (0..n)
                .map(|id| {
                    let fate = if id % step == 0 {
                        Fate::Poison
                    } else {
                        Fate::Fine
                    };
                    go(&service, item(id).fate(fate))
                })
                .collect();
            let mut fine = 0;
            for (id, asked) in (0..n).zip(asked) {
                match asked.result().await {
                    Ok(answer) => {
                        assert_eq!(answer.id, id);
                        assert_ne!(id % step, 0);
                        fine += 1;
                    }
                    Err(error) => assert_eq!(fault(&error), "poisoned"),
                }
            }
            let budget = 4 * (n as f64).log2().ceil() as usize + 1;
            assert!(backend.calls() <= budget, "{n}: {} calls", backend.calls());
            if n <= 3 {
                assert_eq!(
                    fine,
                    (0..n).filter(|id| id % step != 0).count(),
                    "all found"
                );
            }
            if step == 32 {
                let poison = (0..n).filter(|id| id % step == 0).count() as u64;
                assert_eq!(fine as u64, n - poison, "two are found");
            }
            assert_usable(&service, &handle, &backend).await;
        }
    }
}

// ===== 18 =====

/// 18.
#[tokio::test(start_paused = true)]
async fn behind_a_backend_that_is_never_ready_memory_is_bounded() {
    let layer = layer().queue(10, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    backend.hold();
    let service = layer.layer(backend.clone());
    // Everybody has asked before anybody calls.
    let alive = Arc::new(Count::default());
    let mut callers: Vec<_> = (0..1_000).map(|_| service.clone()).collect();
    for caller in &mut callers {
        assert!(caller.ready().await.is_ok());
    }
    let calls: Vec<_> = (0..)
        .zip(&mut callers)
        .map(|(id, caller)| tokio::spawn(caller.call(item(id).counted(&alive))))
        .collect();
    rest().await;
    assert_eq!(alive.now(), 20, "twice what the gate lets in");
    assert_eq!(handle.snapshot().queued, 20);
    let mut refused = 0;
    let mut waiting = Vec::new();
    for call in calls {
        if call.is_finished() {
            assert_eq!(reason(&call.await.unwrap().unwrap_err()), Reason::QueueFull);
            refused += 1;
        } else {
            waiting.push(call);
        }
    }
    assert_eq!((refused, ended(&handle, "rejected")), (980, 980));
    // Whoever asks now has to wait.
    let mut late = comer(&service);
    assert_pending!(late.poll_ready());
    backend.admit();
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    assert!(late.is_woken());
    assert_ready!(late.poll_ready()).unwrap();
    assert_eq!((backend.sizes(), alive.now()), (vec![20], 0));
    assert_usable(&service, &handle, &backend).await;
}

/// 18.
#[tokio::test(start_paused = true)]
async fn behind_a_backend_that_never_answers_memory_is_bounded() {
    let layer = layer().max_items(4).queue(10, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Never);
    let service = layer.layer(backend.clone());
    let alive = Arc::new(Count::default());
    // They wait for the gate, as callers do.
    let callers: Vec<_> = (0..1_000)
        .map(|id| tokio::spawn(service.clone().oneshot(item(id).counted(&alive))))
        .collect();
    rest().await;
    let now = handle.snapshot();
    assert_eq!(now.in_flight, 1);
    assert!((10..=20).contains(&now.queued), "{now:?}");
    assert_eq!(now.items, now.queued + 4, "the others are Pending");
    assert!(callers.iter().all(|caller| !caller.is_finished()));
    // Who does not want to wait is shed.
    let shed = tower::load_shed::LoadShed::new(service.clone());
    let error = shed.oneshot(item(7)).await.unwrap_err();
    assert!(
        error.is::<tower::load_shed::error::Overloaded>(),
        "{error:?}"
    );
    // They all leave: what they hold goes with them, though the backend has not moved.
    for caller in callers {
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
    }
    assert_eq!(handle.snapshot().queued, 0);
    assert_eq!(
        (alive.now(), backend.futures.now()),
        (4, 1),
        "what is in flight"
    );
    assert_ready!(comer(&service).poll_ready()).unwrap();
    // A second time: nothing was used up.
    let again: Vec<_> = (0..20).map(|id| item(id).counted(&alive)).collect();
    let mut callers: Vec<_> = again.iter().map(|_| service.clone()).collect();
    for caller in &mut callers {
        assert!(caller.ready().await.is_ok());
    }
    let calls: Vec<_> = again
        .into_iter()
        .zip(&mut callers)
        .map(|(item, caller)| caller.call(item))
        .collect();
    assert_eq!(
        (handle.snapshot().queued, ended(&handle, "rejected")),
        (20, 0)
    );
    drop(calls);
    assert_eq!((handle.snapshot().queued, alive.now()), (0, 4));
}

/// 18.
#[tokio::test(start_paused = true)]
async fn a_thousand_callers_leave_and_the_queue_empties_though_the_backend_stands_still() {
    for in_flight in [false, true] {
        let layer = layer().max_items(64).queue(1_000, None);
        let handle = layer.handle();
        let backend = Backend::new(Does::Never);
        if !in_flight {
            backend.hold();
        }
        let service = layer.layer(backend.clone());
        let alive = Arc::new(Count::default());
        let asked: Vec<_> = (0..1_000)
            .map(|id| go(&service, item(id).counted(&alive)))
            .collect();
        rest().await;
        let sent = if in_flight { 64 } else { 0 };
        assert_eq!(
            (handle.snapshot().queued, alive.now()),
            (1_000 - sent as u64, 1_000)
        );
        for asked in asked {
            asked.cancel().await;
        }
        let now = handle.snapshot();
        assert_eq!((now.queued, alive.now()), (0, sent), "{now:?}");
        assert_eq!(ended(&handle, "cancelled"), 1_000);
        rest().await;
        assert_eq!(handle.snapshot().shards, u64::from(in_flight));
        if !in_flight {
            backend.usual(Does::Answers);
            assert_usable(&service, &handle, &backend).await;
        }
    }
}

// ===== 19 =====

/// 19.
#[tokio::test(start_paused = true)]
async fn a_call_of_the_only_handle_is_answered() {
    for delay in [ms(0), ms(100)] {
        let backend = Backend::new(Does::Takes(ms(10)));
        let watched = backend.watched();
        let service = layer().max_delay(delay).layer(backend);
        let begun = Instant::now();
        let answer = service.oneshot(item(7)).await.unwrap();
        assert_eq!((answer.id, watched.calls()), (7, 1));
        assert_took(begun.elapsed(), delay + ms(10));
        rest().await;
        assert_eq!(watched.clones.now(), 0, "nothing outlives it");
    }
}

/// 19.
#[tokio::test(start_paused = true)]
async fn what_was_accepted_is_sent_when_all_handles_are_gone() {
    for delay in [ms(0), ms(100)] {
        let backend = Backend::new(Does::Takes(ms(10)));
        let watched = backend.watched();
        let layer = layer().max_delay(delay).max_items(4);
        let service = layer.layer(backend);
        drop(layer);
        let asked = all(&service, 0..10);
        drop(service);
        let begun = Instant::now();
        let answers = answered(asked).await;
        assert_eq!(answers.len(), 10);
        assert!(begun.elapsed() <= delay + ms(32), "{:?}", begun.elapsed());
        assert_eq!(watched.sizes(), [4, 4, 2]);
        rest().await;
        assert_eq!((watched.clones.now(), watched.futures.now()), (0, 0));
    }
}

/// 19.
#[tokio::test(start_paused = true)]
async fn drain_sends_what_waits_and_ends_when_all_are_answered() {
    let layer = layer().max_delay(secs(10)).max_items(4);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let asked = all(&service, 0..10);
    rest().await;
    assert_eq!(backend.sizes(), [4]);
    let drained = tokio::spawn(handle.drain());
    rest().await;
    assert!(!drained.is_finished());
    drained.await.unwrap();
    assert_took(begun.elapsed(), ms(300));
    assert!(asked.iter().all(Asked::is_done), "answered before");
    answered(asked).await;
    assert_eq!(backend.sizes(), [4, 4, 2]);
    assert_eq!(backend.last().flush, Flush::Drain);
    let now = assert_quiet(&handle);
    assert_eq!((now.items, flushed(&handle, "drain")), (10, 1));
}

/// 19.
#[tokio::test(start_paused = true)]
async fn nothing_is_accepted_from_the_call_of_drain_on() {
    let layer = layer().queue(1, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let first = go(&service, item(0));
    rest().await;
    let second = go(&service, item(1));
    let early = service.clone().ready_oneshot();
    let waits = tokio::spawn(service.clone().oneshot(item(2)));
    rest().await;
    assert!(!waits.is_finished(), "the gate is closed");
    // Never polled, and in force all the same.
    let drain = handle.drain();
    let error = tokio::time::timeout(ms(1), waits).await.expect("woken");
    assert_eq!(reason(&error.unwrap().unwrap_err()), Reason::Closed);
    let error = service.clone().oneshot(item(3)).await.unwrap_err();
    assert_eq!(reason(&error), Reason::Closed);
    if let Ok(mut service) = early.await {
        let error = service.call(item(4)).await.unwrap_err();
        assert_eq!(reason(&error), Reason::Closed);
    }
    drain.await;
    answered([first, second]).await;
    assert_eq!(backend.ids(), [0, 1]);
    assert_eq!(ended(&handle, "rejected"), 3);
    assert_quiet(&handle);
    // Again and from others, it is over at once.
    handle.drain().await;
    layer.handle().drain().await;
    let error = layer.layer(backend.clone()).oneshot(item(5)).await;
    assert_eq!(
        reason(&error.unwrap_err()),
        Reason::Closed,
        "of all products"
    );
}

/// 19.
#[tokio::test(start_paused = true)]
async fn drain_ends_too_when_those_who_wait_leave_or_fail() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let flying = go(&service, item(0));
    rest().await;
    let waiting = go(&service, item(1));
    let drains = [0, 1].map(|_| tokio::spawn(handle.drain()));
    rest().await;
    waiting.cancel().await;
    rest().await;
    assert!(drains.iter().all(|drain| !drain.is_finished()));
    backend.finish(1, Does::Panics);
    assert_eq!(reason(&flying.error().await), Reason::Panicked);
    for drain in drains {
        tokio::time::timeout(ms(1), drain)
            .await
            .expect("over")
            .unwrap();
    }
    assert_eq!(backend.ids(), [0]);
    // One that is dropped closes the layer all the same.
    let layer = super::layer();
    let service = layer.layer(backend.clone());
    drop(layer.handle().drain());
    let error = service.oneshot(item(2)).await.unwrap_err();
    assert_eq!(reason(&error), Reason::Closed);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

/// 19.
#[test]
fn a_runtime_shut_down_amid_a_batch_answers_all_and_another_serves_the_layer() {
    for (delay, at) in [
        (ms(0), 0),
        (ms(0), 1),
        (ms(100), 0),
        (ms(100), 1),
        (ms(100), 101),
    ] {
        let layer = layer().max_items(4).max_delay(delay);
        let handle = layer.handle();
        let backend = Backend::new(Does::Takes(secs(1)));
        let service = layer.layer(backend.clone());
        let first = runtime();
        let mut calls: Vec<_> = first.block_on(async {
            let mut calls: Vec<_> = (0..10).map(|id| held(&service, item(id))).collect();
            if at > 0 {
                for call in &mut calls {
                    assert_pending!(call.poll());
                }
                tokio::time::sleep(ms(at)).await;
            }
            calls
        });
        let in_flight = backend.ids();
        drop(first);
        assert_eq!((backend.futures.now(), backend.busy.now()), (0, 0));
        let second = runtime();
        backend.usual(Does::Answers);
        second.block_on(async {
            // The first that is polled drives what was not sent, if it can be driven.
            let mut results = Vec::new();
            for (id, call) in (0..).zip(&mut calls) {
                assert!(at == 0 || call.is_woken(), "{id} would hang");
                results.push(tokio::time::timeout(secs(10), call).await.expect("it ends"));
            }
            for (id, result) in (0..).zip(results) {
                match result {
                    Ok(answer) => {
                        assert_eq!(answer.id, id);
                        assert!(!in_flight.contains(&id), "sent twice");
                    }
                    Err(error) => assert_eq!(reason(&error), Reason::Abandoned, "{error}"),
                }
            }
            rest().await;
            assert_usable(&service, &handle, &backend).await;
            assert_eq!(answered(all(&service, 20..30)).await.len(), 10);
        });
        let mut ids = backend.ids();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), backend.ids().len(), "none is sent twice");
        assert_quiet(&handle);
    }
}

/// 19, where there never was a runtime.
#[test]
fn without_a_runtime_an_item_is_told_so_and_the_layer_lives() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let error = block_on(call(&service, item(1))).unwrap_err();
    assert_eq!(reason(&error), Reason::Abandoned, "{error}");
    assert_quiet(&handle);
    runtime().block_on(assert_usable(&service, &handle, &backend));
}

// ===== 20 =====

/// 20.
#[tokio::test(start_paused = true)]
async fn readiness_that_waits_for_a_running_batch_is_no_deadlock() {
    let layer = layer().max_items(2).max_in_flight(5, 5);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let permits = Arc::new(tokio::sync::Semaphore::new(1));
    let limited = ConcurrencyLimit::with_semaphore(backend.clone(), permits.clone());
    let service = layer.layer(limited);
    let begun = Instant::now();
    answered(all(&service, 0..20)).await;
    assert_took(begun.elapsed(), ms(100));
    assert_eq!((backend.sizes(), backend.busy.peak()), (vec![2; 10], 1));
    rest().await;
    assert_eq!(permits.available_permits(), 1, "nobody keeps it");
    assert_quiet(&handle);
}

/// 20.
#[tokio::test(start_paused = true)]
async fn items_join_as_long_as_the_backend_is_not_ready() {
    for delay in [ms(0), ms(5)] {
        let layer = layer().max_items(8).max_delay(delay);
        let handle = layer.handle();
        let backend = Backend::new(Does::Takes(ms(10)));
        backend.hold();
        let service = layer.layer(backend.clone());
        let mut asked = all(&service, 0..3);
        tokio::time::sleep(ms(50)).await;
        asked.extend(all(&service, 3..6));
        tokio::time::sleep(ms(50)).await;
        asked.extend(all(&service, 6..10));
        rest().await;
        assert_eq!((backend.calls(), handle.snapshot().queued), (0, 10));
        backend.admit();
        answered(asked).await;
        assert_eq!(backend.sizes(), [8, 2]);
        assert_eq!(backend.ids(), Vec::from_iter(0..10));
        assert_quiet(&handle);
    }
}

/// 20. Where time is paused a task that spins stops it, hence the yields.
#[tokio::test(start_paused = true)]
async fn a_backend_that_is_not_ready_is_asked_when_it_says_so_and_not_all_the_time() {
    let layer = layer().max_items(4).max_in_flight(5, 2);
    let backend = Backend::new(Does::Answers);
    backend.hold();
    let service = layer.layer(backend.clone());
    let asked = all(&service, 0..3);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let polls = backend.asked.load(Ordering::SeqCst);
    assert!(polls <= 3, "asked {polls} times in 100 turns");
    backend.admit();
    answered(asked).await;
}

/// 20.
#[test]
fn a_layer_that_could_never_send_is_refused() {
    for (global, per_shard) in [(0, 0), (0, 1), (5, 0)] {
        let refused = std::panic::catch_unwind(|| layer().max_in_flight(global, per_shard));
        let said = super::message(refused.expect_err("it cannot send"));
        assert!(said.contains('0'), "{said}");
    }
}

/// 20.
#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_or_panics_fails_alone() {
    let layer = layer().max_items(4);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let bad = [
        (Does::Fails, None),
        (Does::FailsAfter(ms(1)), None),
        (Does::Panics, Some(Reason::Panicked)),
        (Does::PanicsInCall, Some(Reason::Panicked)),
    ];
    for (does, wanted) in bad {
        backend.next([Does::Answers, does, Does::Answers]);
        let mut asked = all(&service, 0..12);
        let last = asked.split_off(8);
        let failed = asked.split_off(4);
        answered(asked).await;
        for asked in failed {
            let error = asked.error().await;
            match wanted {
                Some(wanted) => assert_eq!(reason(&error), wanted, "{does:?}"),
                None => assert_eq!(fault(&error), "told to"),
            }
        }
        answered(last).await;
        assert_usable(&service, &handle, &backend).await;
    }
    assert_eq!((ended(&handle, "error"), ended(&handle, "panic")), (8, 8));
    assert_eq!(backend.futures.now(), 0);
}

/// 20.
#[tokio::test(start_paused = true)]
async fn readiness_that_fails_or_panics_fails_one_batch() {
    let layer = layer().max_items(4);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    for panics in [false, true] {
        if panics {
            backend.unready_by_panic();
        } else {
            backend.unready();
        }
        let asked = all(&service, 0..4);
        for asked in asked {
            let error = asked.error().await;
            if panics {
                assert_eq!(reason(&error), Reason::Panicked);
            } else {
                assert_eq!(fault(&error), "not ready");
            }
        }
        assert_usable(&service, &handle, &backend).await;
    }
    assert_eq!(backend.calls(), 2);
    // Of many that wait, none hangs.
    backend.unready();
    for asked in all(&service, 0..21) {
        assert_eq!(fault(&asked.error().await), "not ready");
    }
    assert_usable(&service, &handle, &backend).await;
}

fn timed() -> BatchLayer<Item> {
    layer().deadline(|item: &Item| item.deadline, ms(20))
}

/// 20.
#[tokio::test(start_paused = true)]
async fn the_earliest_deadline_sends_the_batch_in_time() {
    let layer = timed().max_delay(secs(1));
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let asked = [
        go(&service, item(0)),
        go(&service, item(1).within(ms(500))),
        go(&service, item(2).within(ms(100))),
        go(&service, item(3).within(ms(300))),
    ];
    answered(asked).await;
    assert_eq!(backend.batches(), [[0, 1, 2, 3]]);
    let sent = backend.last();
    assert!(
        (ms(79)..=ms(81)).contains(&(sent.at - begun)),
        "{:?}",
        sent.at - begun
    );
    assert_eq!((sent.flush, sent.deadline), (Flush::Deadline, None));
    // An earlier one that comes later moves it forward; one that leaves moves it back.
    let begun = Instant::now();
    let first = go(&service, item(4).within(ms(500)));
    rest().await;
    let second = go(&service, item(5).within(ms(50)));
    let third = go(&service, item(6).within(ms(200)));
    rest().await;
    second.cancel().await;
    answered([first, third]).await;
    let sent = backend.last();
    assert_eq!(sent.ids, [4, 6]);
    assert!(
        (ms(179)..=ms(183)).contains(&(sent.at - begun)),
        "{:?}",
        sent.at - begun
    );
    let last = sent.deadline.expect("all have one");
    assert!((ms(499)..=ms(501)).contains(&(last.moment() - begun)));
    // One closer than the margin is sent at once.
    let begun = Instant::now();
    go(&service, item(7).within(ms(15))).value().await;
    assert_took(begun.elapsed(), ms(10));
    assert_eq!(flushed(&handle, "deadline"), 3);
    assert_quiet(&handle);
}

/// 20.
#[tokio::test(start_paused = true)]
async fn a_deadline_is_kept_by_what_came_while_a_batch_was_in_flight() {
    let layer = timed().max_items(2).max_delay(secs(1));
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut asked = all(&service, 0..2);
    rest().await;
    asked.push(go(&service, item(2).within(ms(200))));
    answered(asked).await;
    let sent = backend.last().at - begun;
    assert!((ms(180)..=ms(182)).contains(&sent), "{sent:?}");
}

/// 20.
#[tokio::test(start_paused = true)]
async fn an_expired_item_is_answered_at_its_deadline_and_never_sent() {
    let layer = timed();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let alive = Arc::new(Count::default());
    let begun = Instant::now();
    let flying = go(&service, item(0));
    rest().await;
    let expires = go(&service, item(1).within(ms(50)).counted(&alive));
    let stays = go(&service, item(2).within(ms(500)));
    let late = go(&service, item(3).within(ms(0)).counted(&alive));
    rest().await;
    assert!(late.is_done(), "at once");
    assert_eq!(reason(&late.error().await), Reason::Deadline);
    assert_eq!(reason(&expires.error().await), Reason::Deadline);
    assert_took(begun.elapsed(), ms(51));
    assert_eq!(alive.now(), 0, "it is gone");
    answered([flying, stays]).await;
    assert_eq!(backend.ids(), [0, 2]);
    assert_eq!(ended(&handle, "expired"), 2);
    assert_quiet(&handle);
}

/// 20, while the backend is not ready, and while it works.
#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_wait_wherever_the_item_is() {
    let layer = timed().max_items(2);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    backend.hold();
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let error = go(&service, item(0).within(ms(30))).error().await;
    assert_eq!(reason(&error), Reason::Deadline);
    assert_took(begun.elapsed(), ms(30));
    rest().await;
    assert_quiet(&handle);
    backend.admit();
    assert_eq!(backend.calls(), 0);
    // In flight: only its own wait ends.
    let begun = Instant::now();
    let short = go(&service, item(1).within(ms(30)));
    let long = go(&service, item(2).within(secs(1)));
    assert_eq!(reason(&short.error().await), Reason::Deadline);
    assert_took(begun.elapsed(), ms(30));
    assert_eq!(handle.snapshot().in_flight, 1);
    assert_eq!(long.value().await.position, 1);
    assert_eq!(
        (backend.batches(), ended(&handle, "expired")),
        (vec![vec![1, 2]], 2)
    );
    assert_quiet(&handle);
}

/// 20, with all of them expired before anybody was ready.
#[tokio::test(start_paused = true)]
async fn a_batch_whose_items_all_expired_is_no_batch() {
    let layer = timed();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let first = go(&service, item(0));
    rest().await;
    let expire: Vec<_> = (1..10)
        .map(|id| go(&service, item(id).within(ms(40))))
        .collect();
    for asked in expire {
        assert_eq!(reason(&asked.error().await), Reason::Deadline);
    }
    first.value().await;
    rest().await;
    assert_eq!(backend.batches(), [[0]]);
    assert_quiet(&handle);
}
