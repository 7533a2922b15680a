//! Every option and number of the layer, one by one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_test::{assert_pending, assert_ready};
use tower::{Layer, Service as _, ServiceBuilder, ServiceExt as _, service_fn};
use tower_flow::batch::{All, Batch, BatchHandle, BatchLayer, Flush, OnError};
use tower_flow::error::Reason;
use tower_flow::inspect::{Inspect, Value};
use tower_flow::{Flow, ServiceBuilderExt as _};

use super::{
    Answer, Asked, Backend, Count, Counted, Does, Fate, Fault, Hands, Item, all, answered,
    assert_quiet, assert_took, assert_usable, block_on, call, comer, ended, fault, flushed, go,
    held, item, layer, message, ms, reason, rest, secs, sharded,
};
use crate::support::{classic, sum, value};

// ===== how many, and when =====

#[tokio::test(start_paused = true)]
async fn sixty_four_items_are_a_batch_when_nothing_else_was_said() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    answered(all(&service, 0..200)).await;
    assert_eq!(backend.sizes(), [64, 64, 64, 8]);
    assert_eq!((flushed(&handle, "full"), flushed(&handle, "idle")), (3, 1));
    assert_eq!(assert_quiet(&handle).mean_size, 50.0);
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_does_not_wait_for_its_delay() {
    let layer = layer().max_items(3).max_delay(secs(10));
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    answered(all(&service, 0..3)).await;
    assert_took(begun.elapsed(), ms(0));
    assert_eq!(backend.last().flush, Flush::Full);
}

#[tokio::test(start_paused = true)]
async fn batches_of_one_are_as_good_as_none() {
    let layer = layer().max_items(1).max_in_flight(3, 3).queue(100, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    answered(all(&service, 0..9)).await;
    assert_took(begun.elapsed(), ms(30));
    assert_eq!((backend.sizes(), backend.busy.peak()), (vec![1; 9], 3));
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_passes_while_the_shard_is_busy_waits_for_a_slot_and_no_longer() {
    let layer = layer().max_delay(ms(10));
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut asked = all(&service, [0]);
    sleep_until(begun + ms(20)).await;
    asked.extend(all(&service, [1]));
    sleep_until(begun + ms(90)).await;
    asked.extend(all(&service, [2]));
    answered(asked).await;
    assert_eq!(backend.batches(), [vec![0], vec![1, 2]]);
    assert_took(backend.last().at - begun, ms(110));
    assert_eq!(flushed(&handle, "delay"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_delay_without_end_waits_for_a_full_batch() {
    let layer = layer().max_items(3).max_delay(Duration::MAX);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let mut asked = all(&service, 0..2);
    tokio::time::sleep(secs(86_400)).await;
    assert_eq!(backend.calls(), 0);
    asked.extend(all(&service, [2]));
    answered(asked).await;
    assert_eq!(backend.sizes(), [3]);
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn beside_a_batch_in_flight_another_begins_only_with_so_many() {
    let layer = layer().max_in_flight(5, 2).min_items_hint(3);
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut asked = all(&service, [0]);
    rest().await;
    assert_eq!(backend.sizes(), [1], "alone it does not wait");
    asked.extend(all(&service, [1, 2]));
    rest().await;
    assert_eq!(backend.sizes(), [1]);
    asked.extend(all(&service, [3]));
    rest().await;
    assert_eq!(backend.sizes(), [1, 3]);
    // Both slots are taken: they gather.
    asked.extend(all(&service, 4..8));
    rest().await;
    assert_eq!(backend.calls(), 2);
    backend.finish(2, Does::Answers);
    rest().await;
    assert_eq!(backend.sizes(), [1, 3, 4]);
    // Too few beside those in flight, and enough as soon as there is none.
    asked.extend(all(&service, [8]));
    rest().await;
    backend.finish(3, Does::Answers);
    rest().await;
    assert_eq!(backend.calls(), 3);
    backend.finish(1, Does::Answers);
    rest().await;
    assert_eq!(backend.sizes(), [1, 3, 4, 1]);
    backend.finish(4, Does::Answers);
    answered(asked).await;
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn a_hint_never_keeps_a_batch_that_is_full_or_asked_for() {
    let layer = layer().max_items(2).max_in_flight(5, 3).min_items_hint(10);
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut asked = all(&service, 0..4);
    rest().await;
    assert_eq!(backend.sizes(), [2, 2], "no batch has more");
    asked.extend(all(&service, [4]));
    rest().await;
    assert_eq!(backend.calls(), 2);
    handle.flush();
    rest().await;
    assert_eq!(backend.sizes(), [2, 2, 1]);
    for call in 1..4 {
        backend.finish(call, Does::Answers);
    }
    answered(asked).await;
}

// ===== how many at once =====

#[tokio::test(start_paused = true)]
async fn no_more_batches_are_in_flight_than_may() {
    for (global, per_shard) in [(1, 1), (2, 1), (3, 2), (5, 1), (8, 8)] {
        let layer = sharded()
            .max_items(2)
            .max_in_flight(global, per_shard)
            .queue(1_000, None);
        let handle = layer.handle();
        let backend = Backend::new(Does::Takes(ms(10)));
        let service = layer.layer(backend.clone());
        let begun = Instant::now();
        let asked: Vec<_> = (0..120)
            .map(|id| go(&service, item(id).shard(id % 6)))
            .collect();
        rest().await;
        let now = handle.snapshot();
        assert_eq!(now.in_flight as usize, global.min(6 * per_shard));
        assert_eq!(now.shards, 6);
        answered(asked).await;
        assert_eq!(backend.busy.peak(), global.min(6 * per_shard));
        for shard in 0..6 {
            assert!(backend.peak_of(shard) <= per_shard);
        }
        assert_eq!(backend.sizes(), [2; 60]);
        // Nobody idles while there is something to do.
        let turns = 60_u64.div_ceil(global.min(6 * per_shard) as u64);
        // Turns are taken in the order shards fall due, so that at the end one may have one more to take.
        let took = begun.elapsed();
        assert!(
            (ms(10 * turns)..ms(10 * turns + 11)).contains(&took),
            "{took:?}"
        );
        assert_quiet(&handle);
    }
}

#[tokio::test(start_paused = true)]
async fn five_at_once_and_one_of_each_shard_when_nothing_else_was_said() {
    let layer = sharded().max_items(1).queue(100, None);
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..90)
        .map(|id| go(&service, item(id).shard(id % 9)))
        .collect();
    answered(asked).await;
    assert_eq!(backend.busy.peak(), 5);
    assert!((0..9).all(|shard| backend.peak_of(shard) == 1));
}

// ===== shards =====

#[tokio::test(start_paused = true)]
async fn a_batch_holds_items_of_one_shard_in_their_order() {
    let layer = sharded().max_items(7);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(3)));
    let service = layer.layer(backend.clone());
    let mut asked = Vec::new();
    for id in 0..300 {
        asked.push(go(&service, item(id).shard(id * id % 11)));
        if id % 10 == 9 {
            tokio::time::sleep(ms(1)).await;
        }
    }
    for (id, answer) in (0..).zip(answered(asked).await) {
        assert_eq!(answer.id, id);
    }
    for shard in 0..11 {
        let sent = backend
            .sent()
            .into_iter()
            .filter(|sent| sent.shard == shard);
        let ids: Vec<_> = sent.flat_map(|sent| sent.ids).collect();
        assert!(ids.is_sorted(), "{shard}: {ids:?}");
    }
    assert_eq!(backend.ids().len(), 300);
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn a_flood_in_one_shard_leaves_the_others_their_turn() {
    let layer = sharded()
        .max_items(4)
        .max_in_flight(1, 1)
        .queue(1_000, None);
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let mut asked: Vec<_> = (0..100).map(|id| go(&service, item(id).shard(1))).collect();
    rest().await;
    asked.extend((100..103).map(|id| go(&service, item(id).shard(2))));
    asked.extend((103..106).map(|id| go(&service, item(id).shard(3))));
    answered(asked).await;
    let shards: Vec<_> = backend.sent().iter().map(|sent| sent.shard).collect();
    let first = |shard| shards.iter().position(|sent| *sent == shard).unwrap();
    assert!(first(2) <= 3 && first(3) <= 3, "{shards:?}");
    assert_eq!(shards.len(), 27);
}

#[tokio::test(start_paused = true)]
async fn shards_take_turns_when_all_have_enough() {
    let layer = sharded()
        .max_items(2)
        .max_in_flight(1, 1)
        .queue(1_000, None);
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..80)
        .map(|id| go(&service, item(id).shard(id / 20)))
        .collect();
    answered(asked).await;
    let shards: Vec<_> = backend.sent().iter().map(|sent| sent.shard).collect();
    for turn in shards.chunks(4) {
        let mut turn = turn.to_vec();
        turn.sort_unstable();
        assert_eq!(turn, [0, 1, 2, 3], "{shards:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_idle_is_gone() {
    let layer = sharded();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    for round in 0..100 {
        let asked: Vec<_> = (0..100)
            .map(|id| go(&service, item(id).shard(round * 100 + id)))
            .collect();
        assert_eq!(handle.snapshot().shards, 100);
        answered(asked).await;
        rest().await;
        assert_quiet(&handle);
    }
    // One whose items all left is idle too, though its delay has not passed.
    let layer = sharded().max_delay(secs(10));
    let handle = layer.handle();
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..100)
        .map(|id| go(&service, item(id).shard(id)))
        .collect();
    rest().await;
    for asked in asked {
        asked.cancel().await;
    }
    rest().await;
    assert_quiet(&handle);
}

// ===== equal items =====

#[tokio::test(start_paused = true)]
async fn equal_items_that_wait_are_sent_once_and_all_have_the_answer() {
    let layer = layer().max_delay(ms(10)).dedup_by(|item: &Item| item.key);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..100)
        .map(|id| go(&service, item(id).key(id % 3)))
        .collect();
    for (id, answer) in (0..).zip(answered(asked).await) {
        assert_eq!(answer.id, id % 3, "the first of its kind");
    }
    assert_eq!(backend.batches(), [[0, 1, 2]]);
    let now = assert_quiet(&handle);
    assert_eq!((now.items, now.batches, now.merged), (100, 1, 97));
    assert_eq!(ended(&handle, "ok"), 100);
}

#[tokio::test(start_paused = true)]
async fn an_item_is_not_the_same_as_one_that_was_sent_or_is_in_another_shard() {
    let layer = sharded().dedup_by(|item: &Item| item.key);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let mut asked = vec![go(&service, item(0).key(7))];
    rest().await;
    asked.push(go(&service, item(1).key(7)));
    asked.push(go(&service, item(2).key(7)));
    asked.push(go(&service, item(3).key(7).shard(1)));
    let ids: Vec<_> = answered(asked)
        .await
        .iter()
        .map(|answer| answer.id)
        .collect();
    assert_eq!(ids, [0, 1, 1, 3]);
    assert_eq!((backend.calls(), assert_quiet(&handle).merged), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_of_equal_items_leaves_the_others_have_the_answer() {
    for leaves in 0..3 {
        for in_flight in [false, true] {
            let layer = layer().max_delay(ms(10)).dedup_by(|item: &Item| item.key);
            let handle = layer.handle();
            let backend = Backend::new(Does::Takes(ms(10)));
            let service = layer.layer(backend.clone());
            let alive = Arc::new(Count::default());
            let mut asked: Vec<_> = (0..3)
                .map(|id| go(&service, item(id).key(7).counted(&alive)))
                .collect();
            asked.push(go(&service, item(9)));
            tokio::time::sleep(ms(if in_flight { 15 } else { 5 })).await;
            asked.remove(leaves).cancel().await;
            let answers = answered(asked).await;
            assert_eq!(answers[0], answers[1], "one answer");
            assert_eq!((backend.calls(), backend.last().ids.len()), (1, 2));
            assert_eq!((answers[2].id, alive.now()), (9, 0));
            assert_eq!(ended(&handle, "cancelled"), 1);
            assert_quiet(&handle);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn equal_items_that_all_leave_are_not_sent() {
    let weighed = layer().max_weight(|item: &Item| item.weight, 10);
    let layer = weighed.max_delay(ms(10)).dedup_by(|item: &Item| item.key);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    for asked in (0..3)
        .map(|id| go(&service, item(id).key(7).weight(9)))
        .collect::<Vec<_>>()
    {
        asked.cancel().await;
    }
    rest().await;
    assert_quiet(&handle);
    // Their weight is gone, and so is their key.
    let asked = [(10, 7, 4), (11, 7, 4), (12, 8, 6)]
        .map(|(id, key, weight)| go(&service, item(id).key(key).weight(weight)));
    answered(asked).await;
    assert_eq!(
        (backend.batches(), backend.last().weight),
        (vec![vec![10, 12]], 10)
    );
    assert_eq!(backend.last().flush, Flush::Full);
}

#[tokio::test(start_paused = true)]
async fn equal_items_fail_together_and_each_knows_why() {
    let layer = layer().max_delay(ms(10)).dedup_by(|item: &Item| item.key);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let fails = |id| item(id).key(7).fate(Fate::Fails);
    for asked in [0, 1, 2].map(|id| go(&service, fails(id))) {
        assert_eq!(fault(&asked.error().await), "its own");
    }
    backend.next([Does::Fails, Does::Short(1), Does::Panics]);
    for asked in [0, 1].map(|id| go(&service, fails(id))) {
        assert_eq!(fault(&asked.error().await), "told to");
    }
    for wanted in [Reason::Missing, Reason::Panicked] {
        for asked in [0, 1].map(|id| go(&service, fails(id))) {
            assert_eq!(reason(&asked.error().await), wanted);
        }
    }
    let ends = ["error", "missing", "panic"].map(|how| ended(&handle, how));
    assert_eq!((backend.calls(), ends), (4, [5, 2, 2]));
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn of_equal_items_each_has_its_own_deadline() {
    let layer = layer()
        .max_delay(secs(1))
        .deadline(|item: &Item| item.deadline, ms(20))
        .dedup_by(|item: &Item| item.key);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(50)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    // The twin is in a hurry: the batch is sent for it.
    let first = go(&service, item(0).key(7).within(ms(500)));
    let twin = go(&service, item(1).key(7).within(ms(60)));
    assert_eq!(reason(&twin.error().await), Reason::Deadline);
    assert_took(begun.elapsed(), ms(60));
    assert_eq!(first.value().await.id, 0);
    let sent = backend.last().at - begun;
    assert!((ms(39)..=ms(41)).contains(&sent), "{sent:?}");
    assert_eq!((backend.calls(), ended(&handle, "expired")), (1, 1));
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn a_twin_takes_no_place_in_the_batch_and_no_weight() {
    let layer = layer()
        .max_items(2)
        .max_weight(|item: &Item| item.weight, 10)
        .max_delay(ms(10))
        .dedup_by(|item: &Item| item.key);
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let asked: Vec<_> = (0..10)
        .map(|id| go(&service, item(id).key(7).weight(6)))
        .collect();
    sleep_until(begun + ms(5)).await;
    assert_eq!(backend.calls(), 0, "one item is no full batch");
    answered(asked).await;
    assert_eq!(
        (backend.batches(), backend.last().weight),
        (vec![vec![0]], 6)
    );
    assert_took(backend.last().at - begun, ms(10));
}

// ===== errors of a batch =====

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_is_sent_once_when_nothing_else_was_said() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..8)
        .map(|id| {
            let fate = if id == 3 { Fate::Poison } else { Fate::Fine };
            go(&service, item(id).fate(fate))
        })
        .collect();
    for asked in asked {
        assert_eq!(fault(&asked.error().await), "poisoned");
    }
    assert_eq!((backend.calls(), assert_quiet(&handle).splits), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn only_errors_one_would_split_for_are_split() {
    let layer = layer()
        .on_error(OnError::Bisect)
        .bisect_when(|error| error.to_string() == "poisoned");
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    backend.next([Does::Fails]);
    for asked in all(&service, 0..8) {
        assert_eq!(fault(&asked.error().await), "told to");
    }
    assert_eq!((backend.calls(), handle.snapshot().splits), (1, 0));
    let poisoned = go(&service, item(0).fate(Fate::Poison));
    let asked = all(&service, 1..8);
    assert_eq!(fault(&poisoned.error().await), "poisoned");
    answered(asked).await;
    assert_eq!(backend.sizes()[1..], [8, 4, 2, 1, 1, 2, 4]);
    assert_eq!(assert_quiet(&handle).splits, 6);
}

#[tokio::test(start_paused = true)]
async fn what_no_half_can_help_is_not_split() {
    let layer = layer().on_error(OnError::Bisect);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    for does in [Does::Panics, Does::PanicsInCall] {
        backend.next([does]);
        for asked in all(&service, 0..8) {
            assert_eq!(reason(&asked.error().await), Reason::Panicked);
        }
    }
    backend.unready();
    for asked in all(&service, 0..8) {
        assert_eq!(fault(&asked.error().await), "not ready");
    }
    backend.admit();
    // One alone, and items that fail by themselves.
    backend.next([Does::Fails]);
    assert_eq!(fault(&go(&service, item(0)).error().await), "told to");
    let own = go(&service, item(0).fate(Fate::Fails));
    let fine = go(&service, item(1));
    assert_eq!(fault(&own.error().await), "its own");
    fine.value().await;
    assert_eq!((backend.calls(), assert_quiet(&handle).splits), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn the_halves_go_in_order_and_keep_the_slot() {
    let layer = layer().max_items(8).on_error(OnError::Bisect);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    backend.next([Does::FailsAfter(ms(10))]);
    let first = all(&service, 0..8);
    let second = all(&service, 8..16);
    answered(first).await;
    assert_took(begun.elapsed(), ms(30));
    answered(second).await;
    assert_eq!(
        (backend.sizes(), backend.busy.peak()),
        (vec![8, 4, 4, 8], 1)
    );
    assert_eq!(backend.ids()[8..], Vec::from_iter(0..16));
    let now = assert_quiet(&handle);
    assert_eq!(
        (now.batches, now.splits),
        (2, 2),
        "halves are no batches of their own"
    );
}

#[tokio::test(start_paused = true)]
async fn who_leaves_amid_the_halves_keeps_nobody_from_his_answer() {
    let layer = layer().on_error(OnError::Bisect);
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut asked = all(&service, 0..8);
    rest().await;
    backend.finish(1, Does::Fails);
    rest().await;
    assert_eq!(backend.last().ids, [0, 1, 2, 3]);
    // One of the half that is in flight, two of the one that has not been sent again.
    for leaver in [7, 5, 2] {
        asked.remove(leaver).cancel().await;
    }
    for call in 2..4 {
        backend.finish(call, Does::Answers);
    }
    let answers = answered(asked).await;
    let ids: Vec<_> = answers.iter().map(|answer| answer.id).collect();
    assert_eq!(ids, [0, 1, 3, 4, 6]);
    rest().await;
    assert_eq!(ended(&handle, "cancelled"), 3);
    assert_quiet(&handle);
}

// ===== deadlines =====

#[tokio::test(start_paused = true)]
async fn items_without_a_deadline_wait_as_long_as_they_may() {
    let layer = layer()
        .max_delay(ms(100))
        .deadline(|item: &Item| item.deadline, ms(20));
    let backend = Backend::new(Does::Takes(secs(86_400)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let asked =
        [item(0), item(1).within(Duration::MAX)].map(|item| tokio::spawn(call(&service, item)));
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    assert_took(backend.last().at - begun, ms(100));
    assert_eq!(backend.last().deadline, None, "one of them has none");
}

#[tokio::test(start_paused = true)]
async fn a_margin_beyond_all_deadlines_sends_at_once() {
    let layer = layer()
        .max_delay(secs(1))
        .deadline(|item: &Item| item.deadline, Duration::MAX);
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    go(&service, item(0).within(secs(30))).value().await;
    assert_took(begun.elapsed(), ms(0));
    assert_eq!(backend.last().flush, Flush::Deadline);
}

#[tokio::test(start_paused = true)]
async fn whoever_expires_gives_back_weight_and_place() {
    let layer = layer()
        .max_weight(|item: &Item| item.weight, 10)
        .deadline(|item: &Item| item.deadline, ms(0))
        .queue(4, 20);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    backend.hold();
    let service = layer.layer(backend.clone());
    let expire: Vec<_> = (0..4)
        .map(|id| go(&service, item(id).weight(5).within(ms(10))))
        .collect();
    let mut late = comer(&service);
    assert_pending!(late.poll_ready());
    for asked in expire {
        assert_eq!(reason(&asked.error().await), Reason::Deadline);
    }
    assert!(late.is_woken());
    assert_ready!(late.poll_ready()).unwrap();
    let asked = [4, 5].map(|id| go(&service, item(id).weight(5)));
    backend.admit();
    answered(asked).await;
    assert_eq!(
        (backend.batches(), backend.last().weight),
        (vec![vec![4, 5]], 10)
    );
    assert_quiet(&handle);
}

// ===== who runs it =====

#[test]
fn callers_drive_each_other_without_any_runtime() {
    let layer = layer().caller_driven();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    assert_eq!(block_on(call(&service, item(7))).unwrap().id, 7);
    let mut calls: Vec<_> = (0..5).map(|id| held(&service, item(id))).collect();
    // Whoever is polled drives: the last of them serves all.
    let last = calls.last_mut().unwrap();
    assert_eq!(assert_ready!(last.poll()).unwrap().id, 4);
    for (id, call) in calls[..4].iter_mut().enumerate() {
        assert_eq!(assert_ready!(call.poll()).unwrap().id, id as u64);
    }
    assert_eq!(backend.sizes(), [1, 5]);
    assert_quiet(&handle);
}

#[test]
fn a_caller_who_drives_and_leaves_hands_over_to_another() {
    for parks in [false, true] {
        let layer = layer().max_items(2).caller_driven();
        let handle = layer.handle();
        let backend = Backend::new(Does::Waits);
        let service = layer.layer(backend.clone());
        let mut calls: Vec<_> = (0..6).map(|id| Some(held(&service, item(id)))).collect();
        for call in calls.iter_mut().flatten() {
            assert_pending!(call.poll());
        }
        assert_eq!(backend.sizes(), [2]);
        // Half of them, whoever drove among them, are gone, or not polled any more.
        let mut parked: Vec<_> = calls.drain(..3).collect();
        if !parks {
            parked.clear();
        }
        for round in 1..5 {
            backend.finish(round, Does::Answers);
            for (id, call) in (3..).zip(&mut calls) {
                if let Some(asked) = call
                    && asked.is_woken()
                    && let Poll::Ready(result) = asked.poll()
                {
                    assert_eq!(result.unwrap().id, id);
                    *call = None;
                }
            }
        }
        assert!(calls.iter().all(Option::is_none), "parked: {parks}");
        for (id, call) in (0..).zip(parked) {
            let mut call = call.unwrap();
            assert!(call.is_woken());
            assert_eq!(assert_ready!(call.poll()).unwrap().id, id);
        }
        assert_quiet(&handle);
    }
}

#[test]
fn threads_drive_each_other_without_any_runtime() {
    let layer = layer().max_items(4).caller_driven();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let per_thread = super::rounds(500) as u64;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let service = service.clone();
            scope.spawn(move || {
                for round in 0..per_thread {
                    let id = thread * per_thread + round;
                    assert_eq!(block_on(call(&service, item(id))).unwrap().id, id);
                }
            });
        }
    });
    assert_eq!(backend.ids().len() as u64, 4 * per_thread);
    assert_eq!(ended(&handle, "ok"), 4 * per_thread);
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn callers_keep_the_delay_where_there_is_a_clock() {
    let layer = layer().max_delay(ms(100)).max_items(4).caller_driven();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut asked = all(&service, [0]);
    sleep_until(begun + ms(60)).await;
    asked.extend(all(&service, [1]));
    answered(asked).await;
    assert_eq!(backend.batches(), [[0, 1]]);
    assert_took(backend.last().at - begun, ms(100));
    // Those who drive may go away.
    let begun = Instant::now();
    let mut asked = all(&service, 2..5);
    sleep_until(begun + ms(60)).await;
    asked.remove(0).cancel().await;
    answered(asked).await;
    assert_eq!(backend.batches()[1], [3, 4]);
    assert_took(backend.last().at - begun, ms(100));
    assert_quiet(&handle);
}

#[test]
fn the_executor_one_gives_runs_one_task_for_each_batch_and_none_for_life() {
    let hands = Hands::default();
    let layer = layer().max_items(2).executor(hands.executor());
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    assert_eq!(hands.len(), 0, "nothing runs for nothing");
    let mut calls: Vec<_> = (0..6).map(|id| held(&service, item(id))).collect();
    assert_eq!(hands.len(), 1);
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    hands.run();
    for (id, call) in calls.iter_mut().enumerate() {
        assert!(call.is_woken());
        assert_eq!(assert_ready!(call.poll()).unwrap().id, id as u64);
    }
    assert_eq!((backend.sizes(), hands.len()), (vec![2; 3], 0));
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn an_executor_may_be_another_runtime() {
    let other = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let runtime = other.handle().clone();
    let threads = Arc::new(Mutex::new(Vec::new()));
    let seen = threads.clone();
    let layer = layer().executor(move |task| drop(runtime.spawn(task)));
    let inner = service_fn(move |batch: Batch<Item>| {
        seen.lock().unwrap().push(std::thread::current().id());
        async move { Ok::<_, Fault>(All(batch.len())) }
    });
    let service = layer.layer(inner);
    for id in 0..10 {
        assert_eq!(call(&service, item(id)).await.unwrap(), 1);
    }
    let here = std::thread::current().id();
    assert!(threads.lock().unwrap().iter().all(|thread| *thread != here));
    other.shutdown_background();
}

// ===== products =====

#[tokio::test(start_paused = true)]
async fn items_of_two_products_share_no_batch_but_all_limits() {
    let layer = layer().max_in_flight(1, 1);
    let handle = layer.handle();
    let backends = [0, 1].map(|_| Backend::new(Does::Takes(ms(10))));
    let services = backends
        .each_ref()
        .map(|backend| layer.layer(backend.clone()));
    let begun = Instant::now();
    let mut asked = Vec::new();
    for id in 0..8 {
        let service = &services[id as usize % 2];
        asked.push(go(&service.clone(), item(id)));
    }
    answered(asked).await;
    assert_eq!(backends[0].batches(), [[0, 2, 4, 6]]);
    assert_eq!(backends[1].batches(), [[1, 3, 5, 7]]);
    assert_took(begun.elapsed(), ms(20));
    assert_eq!(assert_quiet(&handle).items, 8, "one handle shows all");
}

#[tokio::test(start_paused = true)]
async fn items_of_two_products_share_a_batch_when_they_may() {
    let layer = layer().across_services();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let services = [0, 1].map(|_| layer.layer(backend.clone()));
    let asked: Vec<_> = (0..8)
        .map(|id| go(&services[id as usize % 2], item(id)))
        .collect();
    drop(services);
    answered(asked).await;
    assert_eq!(backend.batches(), [Vec::from_iter(0..8)]);
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn clones_of_a_product_share_its_batches() {
    let layer = layer();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..8)
        .map(|id| go(&service.clone().clone(), item(id)))
        .collect();
    answered(asked).await;
    assert_eq!(backend.sizes(), [8]);
}

#[tokio::test(start_paused = true)]
async fn services_of_other_types_may_be_behind_one_layer() {
    let layer = layer();
    let handle = layer.handle();
    let texts = layer.layer(service_fn(async |batch: Batch<Item>| {
        Ok::<_, Fault>(
            batch
                .iter()
                .map(|item| Ok::<_, Fault>(item.id.to_string()))
                .collect::<Vec<_>>(),
        )
    }));
    let numbers = layer.layer(service_fn(async |batch: Batch<Item>| {
        Ok::<_, Fault>(All(batch.len()))
    }));
    let text = go(&texts, item(1));
    let number = go(&numbers, item(2));
    assert_eq!(text.value().await, "1");
    assert_eq!(number.value().await, 1);
    assert_eq!(assert_quiet(&handle).batches, 2);
}

// ===== the handle =====

#[tokio::test(start_paused = true)]
async fn flush_sends_what_waits_and_nothing_else() {
    let layer = sharded().max_delay(secs(10));
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    handle.flush();
    let begun = Instant::now();
    let asked: Vec<_> = (0..4)
        .map(|id| go(&service, item(id).shard(id % 2)))
        .collect();
    sleep_until(begun + ms(100)).await;
    assert_eq!(backend.calls(), 0, "it was for what waited then");
    handle.flush();
    answered(asked).await;
    assert_took(begun.elapsed(), ms(110));
    assert_eq!(
        (backend.sizes(), flushed(&handle, "asked")),
        (vec![2, 2], 2)
    );
    // Those who come after wait as usual.
    let begun = Instant::now();
    go(&service, item(9)).value().await;
    assert_took(begun.elapsed(), ms(10_010));
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn flush_is_not_forgotten_while_the_shard_is_busy() {
    let layer = layer().max_delay(secs(10)).max_items(3);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let mut asked = all(&service, 0..5);
    rest().await;
    handle.flush();
    rest().await;
    asked.extend(all(&service, [5]));
    answered(asked).await;
    assert_eq!(backend.sizes(), [3, 3], "who comes in time goes along");
    assert_took(begun.elapsed(), ms(200));
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn the_size_and_the_delay_can_be_changed_while_it_runs() {
    let layer = layer().max_delay(secs(10));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let mut asked = all(&service, 0..10);
    rest().await;
    assert_eq!(backend.calls(), 0);
    handle.set_max_items(4);
    rest().await;
    assert_eq!(backend.sizes(), [4, 4], "full, now");
    let begun = Instant::now();
    handle.set_max_delay(ms(100));
    answered(asked.drain(..)).await;
    assert!(begun.elapsed() <= ms(101), "{:?}", begun.elapsed());
    handle.set_max_items(100);
    asked.extend(all(&service, 0..50));
    answered(asked.drain(..)).await;
    assert_eq!(backend.sizes()[3..], [50]);
    // And all the way down.
    let waits = all(&service, 0..5);
    rest().await;
    handle.set_max_delay(Duration::ZERO);
    rest().await;
    assert!(waits.iter().all(Asked::is_done));
    assert_quiet(&handle);
    let refused = catch_unwind(AssertUnwindSafe(|| handle.set_max_items(0)));
    assert!(message(refused.unwrap_err()).contains('0'));
    assert_usable(&service, &handle, &backend).await;
}

#[tokio::test(start_paused = true)]
async fn the_knobs_are_those_and_refuse_what_they_cannot_be() {
    let layer = layer().max_delay(secs(10));
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let names: Vec<_> = handle.knobs().iter().map(|knob| knob.name).collect();
    assert_eq!(names, ["max_items", "max_delay"]);
    assert_eq!(handle.knobs()[0].value, Value::Whole(64));
    handle.turn("max_items", &Value::Whole(3)).unwrap();
    assert_eq!(handle.knobs()[0].value, Value::Whole(3));
    let asked = all(&service, 0..3);
    rest().await;
    assert_eq!(backend.sizes(), [3]);
    answered(asked).await;
    let bad = [
        ("max_items", Value::Whole(0)),
        ("max_items", Value::Flag(true)),
        ("max_items", Value::Number(1.5)),
        ("max_items", Value::Null),
        ("max_delay", Value::Number(-1.0)),
        ("max_delay", Value::Number(f64::NAN)),
        ("max_delay", Value::Number(f64::INFINITY)),
        ("max_delay", Value::Text("soon".to_owned())),
        ("max_weight", Value::Whole(1)),
    ];
    for (name, to) in bad {
        let before = handle.knobs();
        assert!(handle.turn(name, &to).is_err(), "{name} to {to}");
        assert_eq!(handle.knobs(), before);
    }
    handle.turn("max_delay", &Value::Whole(0)).unwrap();
    let begun = Instant::now();
    go(&service, item(7)).value().await;
    assert_took(begun.elapsed(), ms(0));
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_adds_up() {
    let layer = sharded()
        .name("writes")
        .max_items(4)
        .deadline(|item: &Item| item.deadline, ms(5))
        .queue(100, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let before = handle.snapshot();
    assert_eq!(
        (before.items, before.batches, before.mean_size),
        (0, 0, 0.0)
    );
    let waits: Vec<_> = (0..9)
        .map(|id| go(&service, item(id).shard(id % 2)))
        .collect();
    let now = handle.snapshot();
    assert_eq!(
        (now.items, now.queued, now.in_flight, now.shards),
        (9, 9, 0, 2)
    );
    rest().await;
    let now = handle.snapshot();
    assert_eq!(
        (now.items, now.queued, now.in_flight, now.batches),
        (9, 1, 2, 2)
    );
    answered(waits).await;
    let expires = go(&service, item(10).fate(Fate::Fine));
    rest().await;
    let late = go(&service, item(11).within(ms(3)));
    assert_eq!(reason(&late.error().await), Reason::Deadline);
    expires.value().await;
    backend.next([Does::Panics]);
    go(&service, item(12)).error().await;
    backend.next([Does::Short(1)]);
    go(&service, item(13)).error().await;
    backend.next([Does::Fails]);
    go(&service, item(14)).error().await;
    let leaves = go(&service, item(15));
    leaves.cancel().await;
    tokio::time::sleep(ms(12)).await;
    let now = assert_quiet(&handle);
    assert_eq!(now.items, 15);
    let wanted = [
        ("ok", 10),
        ("error", 1),
        ("missing", 1),
        ("panic", 1),
        ("abandoned", 0),
        ("cancelled", 1),
        ("expired", 1),
        ("rejected", 0),
    ];
    assert_eq!(now.results, wanted);
    assert_eq!(now.batches as usize, backend.calls());
    let items: usize = backend.sizes().iter().sum();
    assert_eq!(now.mean_size, items as f64 / now.batches as f64);
    assert_eq!(Inspect::name(&handle), "writes");
    assert_eq!(handle.kind(), "batch");
    let Value::Map(shown) = Inspect::snapshot(&handle) else {
        panic!("a map");
    };
    assert!(!shown.is_empty());
    assert!(format!("{handle:?}").contains("writes"));
}

#[tokio::test(start_paused = true)]
async fn the_metrics_say_what_the_snapshot_says() {
    let flow = Flow::new("here");
    let layer = layer()
        .name("writes")
        .max_items(4)
        .max_weight(|item: &Item| item.weight, 100)
        .attach(&flow);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..10).map(|id| go(&service, item(id).weight(3))).collect();
    rest().await;
    let named = [("name", "writes")];
    let families = flow.families();
    assert_eq!(
        value(&families, "tower_flow_batch_in_flight", &named),
        Some(1.0)
    );
    assert_eq!(
        value(&families, "tower_flow_batch_queued", &named),
        Some(6.0)
    );
    assert_eq!(
        value(&families, "tower_flow_batch_shards", &named),
        Some(1.0)
    );
    answered(asked).await;
    rest().await;
    let families = flow.families();
    for family in ["size", "weight", "seconds"] {
        let family = format!("tower_flow_batch_{family}");
        assert_eq!(value(&families, &family, &named), Some(3.0), "{family}");
    }
    assert_eq!(
        value(&families, "tower_flow_batch_wait_seconds", &named),
        Some(10.0)
    );
    let now = assert_quiet(&handle);
    for (how, count) in now.results {
        let labels = [("name", "writes"), ("result", how)];
        let shown = value(&families, "tower_flow_batch_items", &labels);
        assert_eq!(shown.unwrap_or_default(), count as f64, "{how}");
    }
    for (why, count) in now.flushes {
        let labels = [("name", "writes"), ("reason", why)];
        let shown = value(&families, "tower_flow_batch_flush", &labels);
        assert_eq!(shown.unwrap_or_default(), count as f64, "{why}");
    }
    assert_eq!(sum(&families, "tower_flow_batch_flush", &named), 3.0);
    for family in ["merged", "split", "unknown"] {
        let family = format!("tower_flow_batch_{family}");
        assert_eq!(value(&families, &family, &named), Some(0.0), "{family}");
    }
    let text = classic(&flow);
    assert!(
        text.contains("tower_flow_batch_size_sum{name=\"writes\"} 10"),
        "{text}"
    );
    assert!(
        text.contains("tower_flow_batch_weight_sum{name=\"writes\"} 30"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_builder_names_and_attaches_it() {
    let flow = Flow::new("here");
    let backend = Backend::new(Does::Answers);
    let service = ServiceBuilder::new()
        .batch("writes", &flow)
        .service(backend.clone());
    let asked: Vec<_> = (0..5).map(|id| go(&service, item(id))).collect();
    answered(asked).await;
    assert_eq!(backend.sizes(), [5]);
    let families = flow.families();
    let labels = [("name", "writes"), ("result", "ok")];
    assert_eq!(
        value(&families, "tower_flow_batch_items", &labels),
        Some(5.0)
    );
}

// ===== what is refused =====

#[test]
fn settings_nobody_can_mean_are_refused_with_their_value() {
    type Set = fn(BatchLayer<Item>) -> BatchLayer<Item>;
    let bad: [(Set, &[&str]); 7] = [
        (|layer| layer.max_items(0), &["0"]),
        (|layer| layer.max_weight(|_| 1, 0), &["0"]),
        (|layer| layer.max_in_flight(0, 1), &["0"]),
        (|layer| layer.max_in_flight(5, 0), &["0"]),
        (|layer| layer.max_in_flight(2, 3), &["2", "3"]),
        (|layer| layer.queue(0, 1), &["0"]),
        (|layer| layer.queue(1, 0), &["0"]),
    ];
    for (n, (set, says)) in bad.into_iter().enumerate() {
        let refused = catch_unwind(|| set(layer()));
        let said = message(
            refused
                .err()
                .unwrap_or_else(|| panic!("{n} is let through")),
        );
        assert!(says.iter().all(|value| said.contains(value)), "{n}: {said}");
    }
}

#[test]
fn options_come_before_the_layer_is_used() {
    type Use = fn(&BatchLayer<Item>);
    let uses: [Use; 3] = [
        |layer| drop(layer.handle()),
        |layer| drop(layer.layer(Backend::new(Does::Answers))),
        |layer| drop(layer.clone().attach(&Flow::new("here"))),
    ];
    type Set = fn(BatchLayer<Item>) -> BatchLayer<Item>;
    let sets: [Set; 12] = [
        |layer| layer.name("late"),
        |layer| layer.max_items(1),
        |layer| layer.max_weight(|_| 1, 1),
        |layer| layer.max_delay(ms(1)),
        |layer| layer.min_items_hint(1),
        |layer| layer.max_in_flight(1, 1),
        |layer| layer.deadline(|_| None, ms(1)),
        |layer| layer.queue(1, 1),
        |layer| layer.oversize(tower_flow::batch::Oversize::Alone),
        |layer| layer.on_error(OnError::Bisect),
        |layer| layer.caller_driven(),
        |layer| layer.across_services(),
    ];
    for used in uses {
        for (n, set) in sets.iter().enumerate() {
            let layer = layer();
            used(&layer);
            let refused = catch_unwind(AssertUnwindSafe(|| set(layer)));
            assert!(refused.is_err(), "{n} is set for nobody");
        }
        let layer = layer();
        used(&layer);
        assert!(
            catch_unwind(AssertUnwindSafe(|| layer.shard_by(|item: &Item| item.shard))).is_err()
        );
    }
}

// ===== what it is =====

#[tokio::test(start_paused = true)]
async fn an_item_is_accepted_when_it_is_called_and_not_when_it_is_polled() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    let calls: Vec<_> = (0..3).map(|id| held(&service, item(id))).collect();
    assert_eq!(handle.snapshot().queued, 3);
    rest().await;
    assert_eq!(backend.sizes(), [3], "nobody has polled them");
    for (id, call) in (0..).zip(calls) {
        assert_eq!(call.await.unwrap().id, id);
    }
    // Nor is an answer lost that nobody takes.
    let call = held(&service, item(7));
    rest().await;
    drop(call);
    assert_eq!(assert_quiet(&handle).items, 4);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_a_batch_in_flight_leaves_his_place_in_it() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let mut asked = all(&service, 0..4);
    rest().await;
    asked.remove(1).cancel().await;
    let answers = answered(asked).await;
    let positions: Vec<_> = answers.iter().map(|answer| answer.position).collect();
    assert_eq!(positions, [0, 2, 3]);
    // All of them: the batch goes on, whose writes may be half done.
    let asked = all(&service, 10..12);
    rest().await;
    for asked in asked {
        asked.cancel().await;
    }
    assert_eq!((handle.snapshot().in_flight, backend.futures.now()), (1, 1));
    tokio::time::sleep(ms(12)).await;
    assert_eq!(
        (assert_quiet(&handle).batches, backend.futures.now()),
        (2, 0)
    );
    assert_eq!(ended(&handle, "cancelled"), 3);
}

#[tokio::test(start_paused = true)]
async fn the_future_is_woken_once_and_not_polled_in_vain() {
    let layer = layer();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    let polls = Arc::new(AtomicUsize::new(0));
    let asked: Vec<_> = (0..64)
        .map(|id| {
            let (mut call, polls) = (call(&service, item(id)), polls.clone());
            tokio::spawn(std::future::poll_fn(move |cx| {
                polls.fetch_add(1, Ordering::SeqCst);
                call.as_mut().poll(cx)
            }))
        })
        .collect();
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    assert_eq!(polls.load(Ordering::SeqCst), 128);
}

#[tokio::test(start_paused = true)]
async fn an_idle_layer_holds_no_clone_of_the_inner_service_but_its_own() {
    let layer = layer().max_in_flight(4, 4).max_items(1).queue(100, None);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let watched = backend.watched();
    let service = layer.layer(backend);
    let before = watched.clones.now();
    for _ in 0..5 {
        answered(all(&service, 0..20)).await;
        rest().await;
        assert_quiet(&handle);
        assert_eq!(watched.clones.now(), before);
    }
    drop(service);
    assert_eq!(
        watched.clones.now(),
        0,
        "the layer and its handle hold none"
    );
}

#[test]
fn layers_services_and_futures_can_be_sent_and_shared() {
    fn sent<T: Send>(_: &T) {}
    fn shared<T: Sync>(_: &T) {}
    let layer = sharded();
    let handle: BatchHandle = layer.handle();
    sent(&layer);
    shared(&layer);
    sent(&handle);
    shared(&handle);
    let mut service = layer.layer(Backend::new(Does::Answers));
    sent(&service);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    let future = service.call(item(1));
    sent(&future);
    sent(&handle.drain());
    assert!(!format!("{layer:?}{service:?}{future:?}").is_empty());
}

#[test]
fn a_batch_one_makes_oneself_is_one_too() {
    let batch = Batch::new([item(1), item(2)]);
    assert_eq!(
        (batch.len(), batch.weight(), batch.is_empty()),
        (2, 2, false)
    );
    assert_eq!((batch.flush(), batch.deadline()), (Flush::Asked, None));
    assert_eq!(batch[1].id, 2);
    let ids: Vec<_> = (&batch).into_iter().map(|item| item.id).collect();
    assert_eq!(ids, [1, 2]);
    let keys = batch.keys(|item| item.id);
    assert_eq!((keys.len(), keys.iter().sum::<u64>()), (2, 3));
    let items: Vec<Item> = batch.into_iter().collect();
    assert_eq!(items.len(), 2);
    let mut counted = Backend::new(Does::Answers);
    let backend = counted.watched();
    let answers = block_on(async {
        let batch = items.into_iter().collect::<Batch<_>>();
        counted.ready().await.unwrap().call(batch).await.unwrap()
    });
    assert_eq!((answers.len(), backend.sizes()), (2, vec![2]));
    let answer = answers.into_iter().next().unwrap();
    assert_eq!(
        answer,
        Ok(Answer {
            call: 1,
            id: 1,
            position: 0
        })
    );
    drop(Counted::new(&Arc::default()));
}
