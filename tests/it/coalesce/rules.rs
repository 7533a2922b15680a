//! Every option and number of the layer, one by one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready};
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _};
use tower_flow::coalesce::{
    Admit, ArcError, CloneResult, Coalesce, CoalesceLayer, OnLeaderDrop, Readiness, ShareExt as _,
};
use tower_flow::error::SharedError;
use tower_flow::error::{Reason, find};
use tower_flow::executor::Task;
use tower_flow::inspect::{Inspect, Value};
use tower_flow::priority::Priority;
use tower_flow::{BoxError, Flow, ServiceBuilderExt as _};

use super::{
    Answer, Ask, Backend, Count, Counted, Does, Fault, Keyed, Keyedly, ask, assert_quiet,
    assert_usable, bypassed, call, ended, go, held, layer, message, ms, reason, rest, secs,
};
use crate::support::{bytes, classic, sum, value};

// ===== bounds =====

#[test]
fn an_attack_with_keys_leaves_flights_flat_and_everybody_served() {
    let layer = layer().max_keys(64);
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut calls: Vec<_> = (0..10_000)
        .map(|key| held(&service, ask(key).id(key)))
        .collect();
    for (n, call) in calls.iter_mut().enumerate() {
        assert_pending!(call.poll());
        assert_eq!(handle.snapshot().flights, (n as u64 + 1).min(64));
    }
    assert_eq!(
        (bypassed(&handle, "max_keys"), backend.calls()),
        (9_936, 10_000)
    );
    // A key that is there has room for others still.
    let mut joins = held(&service, ask(5));
    assert_pending!(joins.poll());
    assert_eq!((backend.calls(), handle.snapshot().followers), (10_000, 1));
    for n in 1..=10_000 {
        backend.finish(n, Does::Answers);
    }
    for (id, call) in calls.iter_mut().enumerate() {
        assert_eq!(assert_ready!(call.poll()).unwrap().id, id as u64);
    }
    assert_eq!(assert_ready!(joins.poll()).unwrap().id, 5);
    drop(calls);
    assert_quiet(&handle);
    // And there is room again.
    let mut pairs: Vec<_> = (0..128).map(|n| held(&service, ask(n / 2))).collect();
    for call in &mut pairs {
        assert_pending!(call.poll());
    }
    assert_eq!(
        (handle.snapshot().flights, bypassed(&handle, "max_keys")),
        (64, 9_936)
    );
}

#[test]
fn the_bound_of_keys_holds_over_shards() {
    let layer = layer().max_keys(4_096);
    let handle = layer.handle();
    let never = |_: Ask| std::future::pending::<Result<(), Fault>>();
    let mut service = layer.layer(tower::service_fn(never));
    let mut cx = Context::from_waker(Waker::noop());
    let before = bytes();
    let mut calls: Vec<_> = Vec::new();
    for key in 0..20_000 {
        let mut call = Box::pin(service.call(ask(key)));
        assert!(call.as_mut().poll(&mut cx).is_pending());
        calls.push(call);
    }
    let now = handle.snapshot();
    assert!((3_500..=4_096).contains(&now.flights), "{}", now.flights);
    assert_eq!(bypassed(&handle, "max_keys") + now.flights, 20_000);
    drop(calls);
    assert_quiet(&handle);
    let kept = bytes() - before;
    assert!(kept < 1 << 20, "{kept} bytes");
}

#[test]
fn a_flight_seats_so_many_and_no_more() {
    let layer = layer().max_waiters(3);
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut calls: Vec<_> = (0..5).map(|id| held(&service, ask(1).id(id))).collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    assert_eq!(
        backend.ids(),
        [0, 3],
        "the leader is one of three, and the fourth leads another"
    );
    assert_eq!(bypassed(&handle, "max_waiters"), 0);
    drop(calls.remove(1));
    let mut next = held(&service, ask(1).id(9));
    assert_pending!(next.poll());
    assert_eq!(backend.calls(), 2, "it follows the second");
    for call in 1..=2 {
        backend.finish(call, Does::Answers);
    }
    let ids = calls
        .iter_mut()
        .map(|call| assert_ready!(call.poll()).unwrap().id);
    assert_eq!(ids.collect::<Vec<_>>(), [0, 0, 3, 3]);
    assert_eq!(assert_ready!(next.poll()).unwrap().id, 3);
    assert_quiet(&handle);
}

#[test]
fn with_one_seat_nobody_follows() {
    let layer = layer().max_waiters(1);
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut calls = [1, 2].map(|id| held(&service, ask(1).id(id)));
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    assert_eq!(backend.calls(), 2);
}

#[test]
fn a_request_without_a_key_goes_alone() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut calls = [1, 2].map(|id| {
        let mut alone = ask(0).id(id);
        alone.key = None;
        held(&service, alone)
    });
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    assert_eq!((backend.calls(), bypassed(&handle, "no_key")), (2, 2));
    assert_quiet(&handle);
    assert_eq!(backend.facts(1), None, "it is sent as it is");
    backend.finish(1, Does::Fails);
    let error = assert_ready!(calls[0].poll()).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Fault("told to")));
}

// ===== time =====

#[tokio::test(start_paused = true)]
async fn nobody_joins_a_flight_that_has_waited_too_long() {
    let layer = layer().leader_age(secs(5));
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut old = held(&service, ask(1).id(1));
    assert_pending!(old.poll());
    advance(ms(4_999)).await;
    let mut joins = held(&service, ask(1).id(2));
    assert_pending!(joins.poll());
    assert_eq!(backend.calls(), 1);
    advance(ms(1)).await;
    let mut fresh = held(&service, ask(1).id(3));
    assert_pending!(fresh.poll());
    assert_eq!((backend.calls(), handle.snapshot().flights), (2, 2));
    // The next join the younger one.
    let mut follows = held(&service, ask(1).id(4));
    assert_pending!(follows.poll());
    assert_eq!(backend.calls(), 2);
    // The younger one first: the older goes on for those who wait for it, and nobody else finds it.
    backend.finish(2, Does::Answers);
    for call in [&mut fresh, &mut follows] {
        assert_eq!(assert_ready!(call.poll()).unwrap().id, 3);
    }
    let mut third = held(&service, ask(1).id(5));
    assert_pending!(third.poll());
    assert_eq!(backend.calls(), 3);
    backend.finish(1, Does::Answers);
    for call in [&mut old, &mut joins] {
        assert_eq!(assert_ready!(call.poll()).unwrap().id, 1);
    }
    let mut joins = held(&service, ask(1).id(6));
    assert_pending!(joins.poll());
    assert_eq!(
        backend.calls(),
        3,
        "the end of the oldest takes the key from nobody"
    );
    drop((third, joins));
    assert_usable(&service, &handle, &backend, 1);
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_leader_may_be_none_or_for_ever() {
    let backend = Backend::new(Does::Waits);
    let service = layer().leader_age(Duration::ZERO).layer(backend.clone());
    let mut calls = [1, 2].map(|id| held(&service, ask(1).id(id)));
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    assert_eq!(backend.calls(), 2, "nobody joins a flight that waits");
    let backend = Backend::new(Does::Waits);
    let layer = layer().leader_age(Duration::MAX).flight_timeout(None);
    let service = layer.layer(backend.clone());
    let mut first = held(&service, ask(1));
    assert_pending!(first.poll());
    advance(secs(86_400)).await;
    let mut late = held(&service, ask(1));
    assert_pending!(late.poll());
    assert_eq!(backend.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flight_somebody_follows_takes_so_long_and_no_longer() {
    let layer = layer().leader_age(secs(3_600));
    let handle = layer.handle();
    let backend = Backend::new(Does::Never);
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let leader = go(&service, ask(1));
    rest().await;
    tokio::time::sleep_until(begun + secs(10)).await;
    let follower = go(&service, ask(1));
    for error in [leader.error().await, follower.error().await] {
        assert_eq!(reason(&error), Reason::Timeout, "{error}");
        assert!(error.to_string().contains("30s"), "{error}");
    }
    let elapsed = begun.elapsed();
    assert!((secs(40)..=ms(40_010)).contains(&elapsed), "{elapsed:?}");
    assert_eq!((backend.calls(), backend.futures.now()), (1, 0));
    assert_eq!(ended(&handle, "timeout"), 1);
    assert_usable(&service, &handle, &backend, 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_alone_is_not_timed_and_none_is_never() {
    let backend = Backend::new(Does::Takes(secs(1_000)));
    let layer = layer().leader_age(secs(3_600));
    let service = layer.layer(backend.clone());
    let alone = tokio::spawn(call(&service, ask(1)));
    assert!(alone.await.unwrap().is_ok());
    let layer = super::layer().flight_timeout(None).leader_age(secs(3_600));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let asked: Vec<_> = (0..3)
        .map(|_| tokio::spawn(call(&service, ask(1))))
        .collect();
    for asked in asked {
        assert_eq!(asked.await.unwrap().unwrap().call, 2);
    }
    assert!(begun.elapsed() >= secs(1_000));
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_for_all_is_told_how_long_it_may_take() {
    for timeout in [None, Some(secs(30)), Some(Duration::MAX)] {
        let layer = layer().flight_timeout(timeout);
        let backend = Backend::new(Does::Takes(ms(10)));
        let service = layer.layer(backend.clone());
        let asked: Vec<_> = (0..2)
            .map(|_| go(&service, ask(1).within(secs(1))))
            .collect();
        for asked in asked {
            asked.value().await;
        }
        assert_eq!(backend.facts(1).unwrap().timeout, timeout);
    }
}

// ===== grace =====

#[tokio::test(start_paused = true)]
async fn a_result_is_kept_for_the_time_of_grace() {
    let layer = layer().grace(secs(1));
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    for alone in [true, false] {
        let calls = backend.calls();
        let asked: Vec<_> = (0..if alone { 1 } else { 3 })
            .map(|_| go(&service, ask(1)))
            .collect();
        for asked in asked {
            assert_eq!(asked.value().await.call, calls + 1);
        }
        assert_eq!(handle.snapshot().kept, 1);
        assert_quiet(&handle);
        let before = handle.snapshot();
        advance(ms(500)).await;
        let begun = Instant::now();
        for _ in 0..2 {
            assert_eq!(go(&service, ask(1)).value().await.call, calls + 1);
        }
        assert_eq!(begun.elapsed(), ms(0), "at once");
        let now = handle.snapshot();
        assert_eq!(now.followers - before.followers, 2);
        assert_eq!(now.shared - before.shared, 2);
        advance(ms(501)).await;
        assert_eq!(handle.snapshot().kept, 0, "whoever reads the handle sweeps");
    }
    // Neither does a caller find what has expired, though nobody has swept it.
    let first = go(&service, ask(1)).value().await.call;
    advance(ms(1_001)).await;
    assert_eq!(go(&service, ask(1)).value().await.call, first + 1);
    // A failure may be over by then.
    advance(secs(2)).await;
    backend.next([Does::FailsAfter(ms(1))]);
    let calls = backend.calls();
    let error = go(&service, ask(1)).error().await;
    assert_eq!(find::<Fault>(error.as_ref()), Some(&Fault("told to")));
    assert_eq!(handle.snapshot().kept, 0);
    assert_eq!(go(&service, ask(1)).value().await.call, calls + 2);
}

/// Whoever looks while many hang on one key sees which.
#[test]
fn the_hottest_keys_are_seen_while_they_are_waited_for_and_after() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let keys = [1, 1, 1, 2, 2, 3];
    let mut held: Vec<_> = keys.map(|key| held(&service, ask(key))).into();
    for call in &mut held {
        assert_pending!(call.poll());
    }
    let hottest = handle.snapshot().hottest;
    let counts: Vec<_> = hottest.iter().map(|(_, count)| *count).collect();
    assert_eq!(counts, [2, 1]);
    drop(held);
    assert_eq!(handle.snapshot().hottest, hottest);
}

/// Services of a layer share their flights, those that have each their own do not.
#[test]
fn each_service_has_flights_of_its_own_if_told_so() {
    for (own, calls) in [(false, 1), (true, 2)] {
        let layer = layer();
        let layer = if own { layer.per_service() } else { layer };
        let backend = Backend::new(Does::Waits);
        let services = [layer.layer(backend.clone()), layer.layer(backend.clone())];
        let mut held: Vec<_> = services
            .iter()
            .flat_map(|service| [held(service, ask(1)), held(&service.clone(), ask(1))])
            .collect();
        for call in &mut held {
            assert_pending!(call.poll());
        }
        assert_eq!(backend.calls(), calls, "clones share all the same");
    }
}

/// Whoever is released, goes alone, or came too late keeps its own deadline.
#[tokio::test(start_paused = true)]
async fn a_deadline_holds_for_those_who_go_alone_too() {
    let retry = |_: &Result<_, Fault>| Admit::Retry;
    let layer = layer().share(ArcError.when(retry));
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    backend.next([Does::Takes(ms(100)), Does::Takes(secs(3_600))]);
    let service = layer.layer(backend.clone());
    let leader = go(&service, ask(1));
    let begun = Instant::now();
    let follower = go(&service, ask(1).within(secs(1)));
    leader.value().await;
    let error = follower.error().await;
    assert_eq!(reason(&error), Reason::Deadline);
    assert_eq!(begun.elapsed(), secs(1));
    let late = go(&service, ask(2).within(ms(0)));
    assert_eq!(reason(&late.error().await), Reason::Deadline);
    assert_eq!(backend.calls(), 2, "what came too late was not sent");
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn a_kept_result_is_dropped_when_swept() {
    let alive = Arc::new(Count::default());
    let counted = alive.clone();
    let layer = layer().grace(secs(1)).max_keys(512);
    let handle = layer.handle();
    let inner = Backend::new(Does::Answers).map_response(move |_| Counted::new(&counted));
    let service = layer.layer(inner);
    drop(call(&service, ask(1)).await.unwrap());
    assert_eq!((alive.now(), handle.snapshot().kept), (1, 1));
    advance(ms(1_001)).await;
    assert_eq!(alive.now(), 1, "nobody came");
    drop(call(&service, ask(2)).await.unwrap());
    assert_eq!(alive.now(), 1, "another key's caller swept it");
    advance(ms(1_001)).await;
    assert_eq!(handle.snapshot().kept, 0);
    assert_eq!(alive.now(), 0, "so did the handle");
}

/// The state of a layer may outlive it in the threads that have used it.
#[test]
fn kept_results_go_with_the_layer_and_the_threads_that_used_it() {
    let alive = Arc::new(Count::default());
    let counted = alive.clone();
    let user = std::thread::spawn(move || {
        let inner = Backend::new(Does::Answers).map_response(move |_| Counted::new(&counted));
        let service = layer().grace(secs(60)).layer(inner);
        drop(super::block_on(call(&service, ask(3))).unwrap());
    });
    user.join().unwrap();
    assert_eq!(
        (alive.now(), alive.total()),
        (0, 2),
        "what was kept, and a clone"
    );
}

#[tokio::test(start_paused = true)]
async fn kept_results_count_as_keys_and_those_that_are_not_for_all_are_not_kept() {
    let policy = ArcError.when(|result: &Result<Answer, Fault>| match result {
        Ok(answer) if answer.id == 1 => Admit::LeaderOnly,
        _ => Admit::Share,
    });
    let layer = CoalesceLayer::new(Keyed)
        .share(policy)
        .grace(secs(1))
        .max_keys(4)
        .remember_unshareable(secs(1), 0);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    for _ in 0..3 {
        call(&service, ask(1).id(1)).await.unwrap();
    }
    assert_eq!((backend.calls(), handle.snapshot().kept), (3, 0));
    for key in 10..20 {
        call(&service, ask(key)).await.unwrap();
    }
    assert_eq!(
        (handle.snapshot().kept, bypassed(&handle, "max_keys")),
        (4, 6)
    );
    advance(ms(1_001)).await;
    call(&service, ask(30)).await.unwrap();
    assert_eq!(
        (handle.snapshot().kept, bypassed(&handle, "max_keys")),
        (1, 6)
    );
}

// ===== what is not for all =====

fn selfish() -> impl tower_flow::coalesce::Share<
    Answer,
    Fault,
    Response = Answer,
    Shared = Result<Answer, SharedError>,
> + Send
+ Sync
+ 'static {
    ArcError.when(|_: &Result<Answer, Fault>| Admit::LeaderOnly)
}

/// One odd answer does not turn a hot key off: the next that may be shared turns it on again.
#[tokio::test(start_paused = true)]
async fn a_key_is_forgotten_when_its_answers_are_for_all_again() {
    let odd = Arc::new(AtomicUsize::new(1));
    let policy = ArcError.when(move |_: &Result<Answer, Fault>| {
        let odd = odd.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        });
        odd.map_or(Admit::Share, |_| Admit::LeaderOnly)
    });
    let layer = CoalesceLayer::new(Keyed).share(policy);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = layer.layer(backend.clone());
    for (calls, remembered) in [(2, 1), (4, 0), (5, 0)] {
        let pair = [0, 1].map(|_| go(&service, ask(1)));
        for asked in pair {
            asked.value().await;
        }
        let now = (backend.calls(), handle.snapshot().remembered);
        assert_eq!(now, (calls, remembered));
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_not_for_all_are_remembered_for_a_while_and_so_many() {
    let layer = CoalesceLayer::new(Keyed)
        .share(selfish())
        .max_keys(512)
        .remember_unshareable(secs(10), 2);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(1)));
    let service = layer.layer(backend.clone());
    // Met by two callers at once, since whoever is alone is asked nothing.
    let meet = async |key| {
        let pair = [0, 1].map(|_| go(&service, ask(key)));
        for asked in pair {
            asked.value().await;
        }
    };
    meet(1).await;
    assert_eq!(handle.snapshot().remembered, 1);
    meet(1).await;
    assert_eq!(bypassed(&handle, "unshareable"), 2, "both from the start");
    advance(secs(11)).await;
    assert_eq!(handle.snapshot().remembered, 0);
    meet(1).await;
    assert_eq!(
        bypassed(&handle, "unshareable"),
        2,
        "forgotten, and met anew"
    );
    meet(2).await;
    meet(3).await;
    assert_eq!(
        handle.snapshot().remembered,
        2,
        "the oldest of three is forgotten"
    );
    meet(3).await;
    meet(2).await;
    assert_eq!(bypassed(&handle, "unshareable"), 6);
    meet(1).await;
    assert_eq!(bypassed(&handle, "unshareable"), 6);

    let layer = CoalesceLayer::new(Keyed)
        .share(selfish())
        .remember_unshareable(secs(10), 0);
    let handle = layer.handle();
    let service = layer.layer(backend.clone());
    for _ in 0..3 {
        let pair = [0, 1].map(|_| go(&service, ask(1)));
        for asked in pair {
            asked.value().await;
        }
    }
    assert_eq!(
        (
            bypassed(&handle, "unshareable"),
            handle.snapshot().remembered
        ),
        (0, 0)
    );
    assert_eq!(ended(&handle, "unshareable"), 3);
}

#[tokio::test(start_paused = true)]
async fn results_can_be_cloned_with_their_errors() {
    #[derive(Debug, Clone, PartialEq)]
    struct Copied(usize);
    impl std::fmt::Display for Copied {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "copied {}", self.0)
        }
    }
    impl std::error::Error for Copied {}
    let layer = CoalesceLayer::new(Keyed).share(CloneResult);
    let inner = Backend::new(Does::FailsAfter(ms(1))).map_err(|_| Copied(7));
    let service = layer.layer(inner);
    let asked: Vec<_> = (0..3).map(|_| go(&service, ask(1))).collect();
    for asked in asked {
        let error = asked.error().await;
        assert_eq!(
            error.downcast_ref(),
            Some(&Copied(7)),
            "no wrapper round it"
        );
    }
}

// ===== leaders that leave =====

#[tokio::test(start_paused = true)]
async fn reissued_one_of_the_followers_asks_and_the_others_follow_it() {
    let layer = layer().on_leader_drop(OnLeaderDrop::Reissue);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let leader = go(&service, ask(1).id(1));
    let followers: Vec<_> = (2..12).map(|id| go(&service, ask(1).id(id))).collect();
    rest().await;
    tokio::time::sleep(ms(50)).await;
    let begun = Instant::now();
    leader.cancel().await;
    let mut ids = Vec::new();
    for follower in followers {
        ids.push(follower.value().await);
    }
    assert!((2..12).contains(&ids[0].id));
    assert!(ids.iter().all(|answer| *answer == ids[0]), "{ids:?}");
    let elapsed = begun.elapsed();
    assert!((ms(99)..=ms(103)).contains(&elapsed), "{elapsed:?}");
    assert_eq!(backend.calls(), 2);
    assert_eq!(backend.futures.peak(), 1, "it was cancelled at once");
    let now = handle.snapshot();
    assert_eq!((ended(&handle, "reissue"), now.shared), (1, 9), "{now:?}");
    assert_quiet(&handle);
    // A follower that leaves changes nothing.
    let leader = go(&service, ask(1).id(20));
    let follower = go(&service, ask(1).id(21));
    rest().await;
    follower.cancel().await;
    assert_eq!(leader.value().await.id, 20);
    assert_eq!(ended(&handle, "reissue"), 1);
}

#[tokio::test(start_paused = true)]
async fn failed_they_all_fail_with_their_leader() {
    let layer = layer().on_leader_drop(OnLeaderDrop::Fail);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let leader = go(&service, ask(1).id(1));
    let followers: Vec<_> = (2..5).map(|id| go(&service, ask(1).id(id))).collect();
    rest().await;
    let begun = Instant::now();
    leader.cancel().await;
    assert_eq!(backend.futures.now(), 0);
    for follower in followers {
        let error = follower.error().await;
        assert_eq!(reason(&error), Reason::Abandoned, "{error}");
    }
    assert!(begun.elapsed() <= ms(1), "at once");
    assert_eq!((backend.calls(), ended(&handle, "abandoned")), (1, 1));
    assert_usable(&service, &handle, &backend, 1);
}

/// Reissue and Fail end a flight its leader left even if another drives it just then.
#[test]
fn a_leader_that_leaves_while_another_polls_ends_the_flight_too() {
    for policy in [OnLeaderDrop::Reissue, OnLeaderDrop::Fail] {
        let layer = layer().on_leader_drop(policy);
        let handle = layer.handle();
        let leader: Arc<Mutex<Option<tokio_test::task::Spawn<super::Call<u64>>>>> = Arc::default();
        let slot = leader.clone();
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = polls.clone();
        let service = layer.layer(tower::service_fn(move |req: Ask| {
            let (slot, counted) = (slot.clone(), counted.clone());
            std::future::poll_fn(move |_| {
                // The second poll is the follower's, and the leader leaves in the middle of it.
                if counted.fetch_add(1, Ordering::SeqCst) == 1 {
                    drop(slot.lock().unwrap().take());
                }
                match req.id {
                    1 => Poll::Pending,
                    id => Poll::Ready(Ok::<_, Fault>(id)),
                }
            })
        }));
        let mut first = held(&service, ask(1).id(1));
        assert_pending!(first.poll());
        *leader.lock().unwrap() = Some(first);
        let mut follower = held(&service, ask(1).id(2));
        let mut polled = follower.poll();
        if polled.is_pending() {
            assert!(follower.is_woken());
            polled = follower.poll();
        }
        match (policy, assert_ready!(polled)) {
            (OnLeaderDrop::Reissue, result) => assert_eq!(result.unwrap(), 2),
            (_, result) => assert_eq!(reason(&result.unwrap_err()), Reason::Abandoned),
        }
        assert_quiet(&handle);
    }
}

#[tokio::test(start_paused = true)]
async fn detached_it_runs_to_its_end_whoever_leaves() {
    let layer = layer().on_leader_drop(OnLeaderDrop::Detach);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let leader = go(&service, ask(1).id(1));
    let followers: Vec<_> = (2..5).map(|id| go(&service, ask(1).id(id))).collect();
    rest().await;
    leader.cancel().await;
    for follower in followers {
        let polls = follower.polls.clone();
        assert_eq!(follower.value().await, Answer { call: 1, id: 1 });
        let polls = polls.load(Ordering::SeqCst);
        assert!(polls <= 2, "woken once: {polls}");
    }
    // All leave, and whoever comes finds it.
    let pair = [5, 6].map(|id| go(&service, ask(1).id(id)));
    rest().await;
    for asked in pair {
        asked.cancel().await;
    }
    assert_eq!((backend.futures.now(), handle.snapshot().flights), (1, 1));
    let late = go(&service, ask(1).id(7));
    assert_eq!(late.value().await, Answer { call: 2, id: 5 });
    // All leave, and nobody comes.
    let asked = go(&service, ask(1).id(8));
    rest().await;
    asked.cancel().await;
    tokio::time::sleep(ms(200)).await;
    assert_eq!(
        (backend.calls(), backend.busy.now(), backend.futures.now()),
        (3, 0, 0)
    );
    assert_eq!(ended(&handle, "detached"), 1);
    assert_quiet(&handle);
    // Without anybody to follow it, it is timed.
    backend.usual(Does::Never);
    let begun = Instant::now();
    let error = go(&service, ask(1)).error().await;
    assert_eq!(reason(&error), Reason::Timeout);
    let elapsed = begun.elapsed();
    assert!((secs(30)..=ms(30_010)).contains(&elapsed), "{elapsed:?}");
    assert_eq!(backend.futures.now(), 0);
    assert_usable_detached(&service, &handle, &backend).await;
}

async fn assert_usable_detached(
    service: &super::Sut,
    handle: &tower_flow::coalesce::CoalesceHandle,
    backend: &super::Watched,
) {
    backend.usual(Does::Answers);
    assert_eq!(go(service, ask(1).id(77)).value().await.id, 77);
    assert_quiet(handle);
}

#[tokio::test(start_paused = true)]
async fn only_detach_has_tasks_and_the_executor_is_ones_own() {
    let ran = Arc::new(AtomicUsize::new(0));
    for policy in [
        OnLeaderDrop::HandOver,
        OnLeaderDrop::Reissue,
        OnLeaderDrop::Fail,
        OnLeaderDrop::Detach,
    ] {
        ran.store(0, Ordering::SeqCst);
        let counted = ran.clone();
        let layer = layer().on_leader_drop(policy).executor(move |task: Task| {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(task);
        });
        let service = layer.layer(Backend::new(Does::Takes(ms(10))));
        let asked: Vec<_> = (0..5).map(|_| go(&service, ask(1))).collect();
        for asked in asked {
            asked.value().await;
        }
        let expected = usize::from(policy == OnLeaderDrop::Detach);
        assert_eq!(ran.load(Ordering::SeqCst), expected, "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_executor_that_drops_its_tasks_abandons_those_who_wait() {
    let layer = layer()
        .on_leader_drop(OnLeaderDrop::Detach)
        .executor(drop::<Task>);
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    for _ in 0..3 {
        let error = go(&service, ask(1)).error().await;
        assert_eq!(reason(&error), Reason::Abandoned, "{error}");
        assert_quiet(&handle);
    }
    assert_eq!((backend.calls(), backend.futures.now()), (0, 0));
    // Later, with followers.
    let tasks: Arc<Mutex<Vec<Task>>> = Arc::default();
    let queue = tasks.clone();
    let layer = super::layer()
        .on_leader_drop(OnLeaderDrop::Detach)
        .executor(move |task: Task| queue.lock().unwrap().push(task));
    let handle = layer.handle();
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..4).map(|_| go(&service, ask(1))).collect();
    rest().await;
    assert_eq!(handle.snapshot().waiters, 4);
    tasks.lock().unwrap().clear();
    for asked in asked {
        assert_eq!(reason(&asked.error().await), Reason::Abandoned);
    }
    assert_quiet(&handle);
    // One that panics is the leader's to see.
    let layer = super::layer()
        .on_leader_drop(OnLeaderDrop::Detach)
        .executor(|_: Task| panic!("told to"));
    let handle = layer.handle();
    let service = layer.layer(backend.clone());
    let mut leader = held(&service, ask(1));
    assert!(catch_unwind(AssertUnwindSafe(|| leader.poll())).is_err());
    drop(leader);
    assert_quiet(&handle);
}

// ===== readiness =====

#[tokio::test(start_paused = true)]
async fn eager_readiness_is_the_inner_services_and_behind_a_limit_of_one_nothing_coalesces() {
    let layer = layer().readiness(Readiness::Eager);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let permits = Arc::new(Semaphore::new(1));
    let limited = ConcurrencyLimit::with_semaphore(backend.clone(), permits.clone());
    let mut service = layer.layer(limited);
    service.ready().await.unwrap();
    assert_eq!(permits.available_permits(), 0, "it has taken one");
    let mut clone = service.clone();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        clone.poll_ready(&mut cx).is_pending(),
        "a clone has reserved nothing"
    );
    drop(clone);
    let begun = Instant::now();
    // The very service that was ready takes the call.
    let first = tokio::spawn(service.call(ask(1)));
    let others: Vec<_> = (0..2)
        .map(|_| {
            let mut service = service.clone();
            tokio::spawn(async move { service.ready().await?.call(ask(1)).await })
        })
        .collect();
    first.await.unwrap().unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    assert!(begun.elapsed() >= ms(300), "one after the other");
    assert_eq!((backend.calls(), handle.snapshot().followers), (3, 0));
    assert_eq!(permits.available_permits(), 1);

    // With room for two the second joins, and gives back what it took.
    let permits = Arc::new(Semaphore::new(2));
    let limited = ConcurrencyLimit::with_semaphore(backend.clone(), permits.clone());
    let mut service = layer.layer(limited);
    let mut asked = Vec::new();
    for _ in 0..3 {
        let call = service.ready().await.unwrap().call(ask(1));
        asked.push(tokio::spawn(call));
        rest().await;
        assert_eq!(permits.available_permits(), 1, "only the leader's");
    }
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    assert_eq!(backend.calls(), 4);
    // Errors of readiness are errors of readiness.
    let backend = Backend::new(Does::Answers);
    let mut service = super::layer()
        .readiness(Readiness::Eager)
        .layer(backend.clone());
    backend.unready();
    let error = service.ready().await.map(|_| ()).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Fault("not ready")));
}

// ===== priority =====

#[test]
fn a_request_is_sent_with_the_greatest_priority_of_those_who_wait() {
    let layer = layer();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    backend.hold();
    let asks = [
        ask(1).id(1).priority(Priority::Sheddable),
        ask(1).id(2).priority(Priority::Critical),
        ask(1).id(3).priority(Priority::BestEffort),
    ];
    let mut calls = asks.map(|ask| held(&service, ask));
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    backend.admit();
    assert_pending!(calls[0].poll());
    assert_eq!(backend.ids(), [1]);
    assert_eq!(backend.facts(1).unwrap().priority, Priority::Critical);
}

#[test]
fn who_matters_more_than_a_request_that_was_sent_begins_a_flight_of_its_own() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut low = held(&service, ask(1).id(1).priority(Priority::Sheddable));
    assert_pending!(low.poll());
    let mut same = held(&service, ask(1).id(2).priority(Priority::BestEffort));
    assert_pending!(same.poll());
    assert_eq!(backend.calls(), 1, "who matters less, or as much, follows");
    let mut high = held(&service, ask(1).id(3).priority(Priority::Critical));
    assert_pending!(high.poll());
    assert_eq!(backend.facts(2).unwrap().priority, Priority::Critical);
    assert_eq!(handle.snapshot().flights, 2);
    let mut next = held(&service, ask(1).id(4));
    assert_pending!(next.poll());
    assert_eq!(backend.calls(), 2, "the next follow the greater one");
    backend.finish(1, Does::Answers);
    backend.finish(2, Does::Answers);
    for (call, id) in [(low, 1), (same, 1), (high, 3), (next, 3)] {
        let mut call = call;
        assert_eq!(assert_ready!(call.poll()).unwrap().id, id);
    }
    assert_usable(&service, &handle, &backend, 1);
}

// ===== options =====

#[test]
fn options_come_before_the_handle_the_flow_and_the_service() {
    let uses: [fn(&Keyedly); 3] = [
        |layer| drop(layer.handle()),
        |layer| drop(layer.clone().attach(&Flow::new("late"))),
        |layer| drop(layer.layer(Backend::new(Does::Answers))),
    ];
    let setters: [fn(Keyedly); 12] = [
        |layer| drop(layer.name("late")),
        |layer| drop(layer.share(CloneResult)),
        |layer| drop(layer.on_leader_drop(OnLeaderDrop::Fail)),
        |layer| drop(layer.flight_timeout(None)),
        |layer| drop(layer.leader_age(secs(1))),
        |layer| drop(layer.grace(secs(1))),
        |layer| drop(layer.max_keys(1)),
        |layer| drop(layer.max_waiters(1)),
        |layer| drop(layer.remember_unshareable(secs(1), 1)),
        |layer| drop(layer.executor(drop::<Task>)),
        |layer| drop(layer.readiness(Readiness::Eager)),
        |layer| drop(layer.attach(&Flow::new("twice"))),
    ];
    for used in uses {
        for (n, set) in setters.into_iter().enumerate() {
            let layer = layer().name("rows");
            used(&layer);
            let set = catch_unwind(AssertUnwindSafe(|| set(layer)));
            if n == 11 {
                assert!(set.is_ok(), "to attach is no option");
            } else {
                let said = message(set.unwrap_err());
                assert!(
                    said.contains("rows") && said.contains("before"),
                    "{n}: {said}"
                );
            }
        }
    }
}

#[test]
fn absurd_settings_are_refused_with_the_value_in_the_message() {
    let said =
        |set: fn(Keyedly) -> Keyedly| message(catch_unwind(|| set(layer())).map(drop).unwrap_err());
    assert!(said(|layer| layer.max_keys(0)).contains('0'));
    assert!(said(|layer| layer.max_keys(usize::MAX)).contains("18446744073709551615"));
    assert!(said(|layer| layer.max_waiters(0)).contains('0'));
    assert!(said(|layer| layer.grace(secs(61))).contains("61s"));
    assert!(said(|layer| layer.grace(Duration::MAX)).contains("s is longer"));
}

#[tokio::test(start_paused = true)]
async fn settings_without_measure_are_no_panic_later() {
    let layer = layer()
        .leader_age(Duration::MAX)
        .flight_timeout(Some(Duration::MAX))
        .remember_unshareable(Duration::MAX, usize::MAX);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(1)));
    let service = layer.layer(backend.clone());
    for _ in 0..3 {
        let asked: Vec<_> = (0..3).map(|_| go(&service, ask(1))).collect();
        for asked in asked {
            asked.value().await;
        }
    }
    assert_eq!(backend.calls(), 3);
    assert_quiet(&handle);
    let layer = CoalesceLayer::new(Keyed)
        .share(selfish())
        .remember_unshareable(Duration::MAX, usize::MAX);
    let service = layer.layer(backend.clone());
    for _ in 0..2 {
        let asked: Vec<_> = (0..3).map(|_| go(&service, ask(1))).collect();
        for asked in asked {
            asked.value().await;
        }
    }
    assert_quiet(&layer.handle());
}

// ===== what is shown =====

/// One of each: a leader with two followers, one alone, one without a key, one that is dropped.
async fn traffic(service: &super::Sut) {
    let asked: Vec<_> = (0..3).map(|_| go(service, ask(1))).collect();
    for asked in asked {
        asked.value().await;
    }
    go(service, ask(2)).value().await;
    let mut alone = ask(0);
    alone.key = None;
    go(service, alone).value().await;
    let dropped = go(service, ask(3));
    rest().await;
    dropped.cancel().await;
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_has_every_number() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    traffic(&service).await;
    let now = handle.snapshot();
    assert_eq!((now.leaders, now.followers, now.shared), (3, 2, 2));
    assert_eq!(
        now.bypassed,
        [
            ("no_key", 1),
            ("max_keys", 0),
            ("max_waiters", 0),
            ("unshareable", 0),
            ("paused", 0)
        ]
    );
    assert_eq!(now.sent, 4);
    assert!((now.saved_ratio - 2.0 / 6.0).abs() < 1e-9);
    assert_eq!(
        (now.flights, now.waiters, now.remembered, now.evicted),
        (0, 0, 0, 0)
    );
    let names: Vec<_> = now.ends.iter().map(|(how, _)| *how).collect();
    assert_eq!(
        names,
        [
            "shared",
            "alone",
            "unshareable",
            "retry",
            "handover",
            "reissue",
            "detached",
            "abandoned",
            "panic",
            "timeout",
            "deadline"
        ]
    );
    let ends = [("shared", 1), ("alone", 1), ("abandoned", 1), ("panic", 0)];
    for (how, count) in ends {
        assert_eq!(ended(&handle, how), count, "{how}");
    }
    assert_eq!(now.hottest.len(), 1);
    assert_eq!(now.hottest[0].1, 2);
    assert_eq!(handle.clone().snapshot(), now, "clones are the same handle");

    assert_eq!((handle.kind(), &*handle.name()), ("coalesce", "coalesce"));
    let Value::Map(entries) = Inspect::snapshot(&handle) else {
        panic!("a map")
    };
    let keys: Vec<_> = entries.iter().map(|(key, _)| &**key).collect();
    for key in [
        "leaders",
        "followers",
        "bypassed",
        "shared",
        "saved_ratio",
        "ends",
        "flights",
        "waiters",
        "remembered",
        "evicted",
        "hottest",
    ] {
        assert!(keys.contains(&key), "{key} is not among {keys:?}");
    }
    let shown = Inspect::snapshot(&handle);
    assert_eq!(shown.get("shared"), Some(&Value::Whole(2)));
    let bypassed = shown.get("bypassed").unwrap();
    assert_eq!(bypassed.get("no_key"), Some(&Value::Whole(1)));
    assert_eq!(
        shown.get("ends").unwrap().get("alone"),
        Some(&Value::Whole(1))
    );
}

#[tokio::test(start_paused = true)]
async fn a_knob_pauses_it_and_flights_under_way_go_on() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let pair = [1, 2].map(|id| go(&service, ask(1).id(id)));
    rest().await;
    let knob = handle.knobs().remove(0);
    assert_eq!((knob.name, knob.value), ("paused", Value::Flag(false)));
    handle.turn("paused", &Value::Flag(true)).unwrap();
    let alone = [3, 4].map(|id| go(&service, ask(1).id(id)));
    rest().await;
    assert_eq!((backend.calls(), bypassed(&handle, "paused")), (3, 2));
    for (id, asked) in [1, 1, 3, 4].into_iter().zip(pair.into_iter().chain(alone)) {
        assert_eq!(asked.value().await.id, id);
    }
    assert_eq!(handle.knobs()[0].value, Value::Flag(true));
    assert!(handle.turn("paused", &Value::Whole(1)).is_err());
    assert!(handle.turn("other", &Value::Flag(true)).is_err());
    handle.pause(false);
    let pair = [5, 6].map(|id| go(&service, ask(1).id(id)));
    for asked in pair {
        assert_eq!(asked.value().await.id, 5);
    }
    assert_eq!(handle.snapshot().sent, 4);
    assert_quiet(&handle);
}

#[tokio::test(start_paused = true)]
async fn the_hottest_keys_come_first() {
    let layer = layer();
    let handle = layer.handle();
    let service = layer.layer(Backend::new(Does::Never));
    let mut calls = Vec::new();
    for key in 0..40 {
        for _ in 0..=key {
            let mut call = held(&service, ask(key));
            assert_pending!(call.poll());
            calls.push(call);
        }
    }
    // Counted when their flights are over.
    drop(calls);
    let hottest = handle.snapshot().hottest;
    assert!(hottest.len() <= 16, "{hottest:?}");
    assert_eq!(hottest[0].1, 39, "{hottest:?}");
    assert!(hottest.is_sorted_by(|a, b| a.1 >= b.1), "{hottest:?}");
}

#[tokio::test(start_paused = true)]
async fn metrics_have_these_names_and_labels_and_add_up() {
    let flow = Flow::new("shown");
    let layer = layer().name("rows").attach(&flow);
    let service = layer.layer(Backend::new(Does::Takes(ms(100))));
    traffic(&service).await;
    let families = flow.families();
    let of = |name: &str, labels: &[(&str, &str)]| {
        let labels = [&[("name", "rows")], labels].concat();
        value(&families, &format!("tower_flow_coalesce_{name}"), &labels)
            .unwrap_or_else(|| panic!("no {name} {labels:?}"))
    };
    assert_eq!(of("requests", &[("role", "leader")]), 3.0);
    assert_eq!(of("requests", &[("role", "follower")]), 2.0);
    for (reason, count) in [
        ("no_key", 1.0),
        ("max_keys", 0.0),
        ("max_waiters", 0.0),
        ("unshareable", 0.0),
    ] {
        assert_eq!(
            of("requests", &[("role", "bypass"), ("reason", reason)]),
            count
        );
    }
    assert_eq!(sum(&families, "tower_flow_coalesce_requests", &[]), 6.0);
    for (how, count) in [
        ("shared", 1.0),
        ("alone", 1.0),
        ("abandoned", 1.0),
        ("timeout", 0.0),
    ] {
        assert_eq!(of("end", &[("how", how)]), count, "{how}");
    }
    assert_eq!((of("shared", &[]), of("body_evicted", &[])), (2.0, 0.0));
    assert_eq!(
        (
            of("flights", &[]),
            of("waiters", &[]),
            of("remembered", &[])
        ),
        (0.0, 0.0, 0.0)
    );
    assert_eq!(of("wait_seconds", &[]), 2.0, "of each follower");
    let text = classic(&flow);
    for line in [
        "# TYPE tower_flow_coalesce_requests_total counter",
        "# TYPE tower_flow_coalesce_end_total counter",
        "# TYPE tower_flow_coalesce_shared_total counter",
        "# TYPE tower_flow_coalesce_body_evicted_total counter",
        "# TYPE tower_flow_coalesce_flights gauge",
        "# TYPE tower_flow_coalesce_waiters gauge",
        "# TYPE tower_flow_coalesce_remembered gauge",
        "# TYPE tower_flow_coalesce_flight_seconds histogram",
        "# TYPE tower_flow_coalesce_wait_seconds histogram",
        "tower_flow_coalesce_wait_seconds_sum{name=\"rows\"} 0.2\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(flow.snapshot().to_string().contains("\"saved_ratio\":"));
}

#[tokio::test(start_paused = true)]
async fn the_builder_makes_it_and_a_closure_is_a_key() {
    let flow = Flow::new("built");
    let backend = Backend::new(Does::Takes(ms(10)));
    let service = ServiceBuilder::new()
        .coalesce("rows", &flow, |ask: &Ask| ask.key)
        .service(backend.clone());
    let asked: Vec<_> = (0..4).map(|_| go(&service, ask(1))).collect();
    for asked in asked {
        asked.value().await;
    }
    assert_eq!(backend.calls(), 1);
    let saved = value(
        &flow.families(),
        "tower_flow_coalesce_shared",
        &[("name", "rows")],
    );
    assert_eq!(saved, Some(3.0));
    // It can be seen, and taken off again.
    assert!(format!("{:?}", service.clone().call(ask(1))).starts_with("ResponseFuture"));
    assert_eq!(service.get_ref().calls(), 1);
    drop(service.into_inner());
}

#[test]
fn all_of_it_can_be_sent_and_shown() {
    fn sent<T: Send>(_: &T) {}
    fn shared<T: Send + Sync + Clone + std::fmt::Debug>(_: &T) {}
    let layer = layer();
    let service: Coalesce<_, _, _> =
        layer.layer(tower::service_fn(async |_: Ask| Ok::<_, BoxError>(1)));
    shared(&layer);
    shared(&layer.handle());
    sent(&service);
    sent(&service.clone().call(ask(1)));
}
