//! The fourteen tests of the layer's contract, by number; the twelfth and the thirteenth are in `http.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready};
use tower::limit::ConcurrencyLimit;
use tower::util::BoxCloneService;
use tower::{Layer, Service, service_fn};
use tower_flow::coalesce::{Admit, ArcError, CoalesceLayer, ShareExt as _};
use tower_flow::error::SharedError;
use tower_flow::error::{Reason, find};
use tower_flow::{BoxError, Rejection};

use super::{
    Answer, Ask, Asked, Backend, Count, Counted, Does, Fault, Keyed, Sut, ask, assert_quiet,
    assert_usable, block_on, bypassed, call, ended, go, held, layer, message, ms, reason, rest,
    rounds, secs,
};
use crate::support::{allocations, bytes};

// ===== 1 =====

/// 1.
#[tokio::test(start_paused = true)]
async fn leader_dropped_mid_flight_ten_followers_get_the_value() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let leader = go(&service, ask(1).id(1));
    rest().await;
    let followers: Vec<_> = (2..12).map(|id| go(&service, ask(1).id(id))).collect();
    rest().await;
    let now = handle.snapshot();
    assert_eq!((now.flights, now.waiters), (1, 11));
    leader.cancel().await;
    assert_eq!(handle.snapshot().waiters, 10);
    assert_eq!(backend.futures.now(), 1, "the call goes on");
    for follower in followers {
        assert_eq!(follower.value().await, Answer { call: 1, id: 1 });
    }
    assert!(begun.elapsed() <= ms(101), "nothing was begun anew");
    assert_eq!((backend.calls(), backend.futures.now()), (1, 0));
    let now = handle.snapshot();
    assert_eq!((now.leaders, now.followers, now.shared), (1, 10, 10));
    assert!((now.saved_ratio - 10.0 / 11.0).abs() < 1e-9, "{now:?}");
    assert_eq!(ended(&handle, "handover"), 1, "{now:?}");
    assert_quiet(&handle);
}

/// 1, at every point: before the backend is ready, after it was called, after its wake, and after several wakes.
#[test]
fn whoever_is_dropped_at_whatever_point_the_last_gets_the_value() {
    for point in 0..4 {
        for keep in 0..11 {
            let layer = layer();
            let handle = layer.handle();
            let backend = Backend::new(Does::Waits);
            let service = layer.layer(backend.clone());
            backend.hold();
            if point > 0 {
                backend.admit();
            }
            let mut calls: Vec<_> = (0..11)
                .map(|id| Some(held(&service, ask(1).id(id))))
                .collect();
            for call in calls.iter_mut().flatten() {
                assert_pending!(call.poll());
            }
            if point == 2 {
                backend.finish(1, Does::Answers);
            }
            if point == 3 {
                backend.nudge(1);
                for call in calls.iter_mut().flatten() {
                    assert!(call.is_woken(), "any of them may go on");
                    assert_pending!(call.poll());
                }
            }
            for (id, call) in calls.iter_mut().enumerate() {
                if id != keep {
                    drop(call.take());
                }
            }
            assert_eq!(handle.snapshot().waiters, 1, "{point} {keep}");
            backend.admit();
            let mut last = calls[keep].take().unwrap();
            if point != 2 {
                // It sends the request if nobody has.
                assert_pending!(last.poll());
                backend.finish(1, Does::Answers);
            }
            assert!(last.is_woken(), "{point} {keep}");
            let answer = assert_ready!(last.poll()).unwrap();
            assert_eq!(answer, Answer { call: 1, id: 0 }, "{point} {keep}");
            assert_eq!(backend.calls(), 1);
            assert_quiet(&handle);
        }
    }
}

// ===== 2 =====

/// 2.
#[test]
fn leader_polled_once_and_parked_holds_nobody_up() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut leader = held(&service, ask(1).id(1));
    assert_pending!(leader.poll());
    let mut followers: Vec<_> = (2..5).map(|id| held(&service, ask(1).id(id))).collect();
    for follower in &mut followers {
        assert_pending!(follower.poll());
    }
    backend.finish(1, Does::Answers);
    // Two of them were woken and are not polled either.
    let mut last = followers.pop().unwrap();
    assert!(last.is_woken());
    assert_eq!(assert_ready!(last.poll()).unwrap().call, 1);
    // Those who come now begin anew, whoever sleeps over his answer.
    let mut fresh = held(&service, ask(1).id(9));
    assert_pending!(fresh.poll());
    assert_eq!(backend.calls(), 2);
    drop(fresh);
    for mut late in followers.into_iter().chain([leader]) {
        assert!(late.is_woken());
        assert_eq!(
            assert_ready!(late.poll()).unwrap(),
            Answer { call: 1, id: 1 }
        );
    }
    assert_quiet(&handle);
}

/// 2, while the backend is not ready.
#[test]
fn a_parked_leader_of_a_backend_that_is_not_ready_holds_nobody_up() {
    let layer = layer();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    backend.hold();
    let mut leader = held(&service, ask(1).id(1));
    assert_pending!(leader.poll());
    let mut follower = held(&service, ask(1).id(2));
    assert_pending!(follower.poll());
    backend.admit();
    assert!(follower.is_woken());
    let answer = assert_ready!(follower.poll()).unwrap();
    assert_eq!(
        answer,
        Answer { call: 1, id: 1 },
        "the leader's request was sent"
    );
    assert_eq!(assert_ready!(leader.poll()).unwrap(), answer);
}

/// 2, as it is met: a `select!` whose other branch asks for the same.
#[tokio::test(start_paused = true)]
async fn a_select_over_the_leader_may_ask_for_the_same_in_its_other_branch() {
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer().layer(backend.clone());
    let mut leader = call(&service, ask(1).id(1));
    let begun = Instant::now();
    let answer = tokio::select! {
        _ = &mut leader => panic!("it takes longer"),
        () = tokio::time::sleep(ms(10)) => {
            let follower = call(&service, ask(1).id(2));
            tokio::time::timeout(secs(1), follower).await.expect("it does not wait for the leader").unwrap()
        }
    };
    assert_eq!(answer, Answer { call: 1, id: 1 });
    assert!(begun.elapsed() <= ms(101));
    assert_eq!(leader.await.unwrap(), answer);
    assert_eq!(backend.calls(), 1);
}

// ===== 3 =====

/// 3.
#[test]
fn a_panic_in_the_inner_call_leaves_the_key_free() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::PanicsInCall);
    let service = layer.layer(backend.clone());
    for round in 1..4 {
        let mut leader = held(&service, ask(1));
        let panic = catch_unwind(AssertUnwindSafe(|| leader.poll())).unwrap_err();
        assert!(message(panic).contains("told to"), "with its own payload");
        drop(leader);
        assert_quiet(&handle);
        assert_eq!(
            (ended(&handle, "panic"), backend.calls()),
            (round, round as usize)
        );
    }
    assert_usable(&service, &handle, &backend, 1);
}

/// 3, with waiters: in `call`, in `poll`, in `poll_ready`; driven by the leader, by another, or with the leader gone.
#[test]
fn a_panic_wakes_every_waiter_with_an_error() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Drives {
        Leader,
        Follower,
        FollowerAlone,
    }
    for panics in ["call", "poll", "poll_ready"] {
        for drives in [Drives::Leader, Drives::Follower, Drives::FollowerAlone] {
            let what = format!("{panics} {drives:?}");
            let layer = layer();
            let handle = layer.handle();
            let backend = Backend::new(Does::Waits);
            let service = layer.layer(backend.clone());
            if panics != "poll" {
                backend.hold();
                backend.usual(Does::PanicsInCall);
            }
            let mut leader = held(&service, ask(1).id(1));
            let mut followers = [2, 3].map(|id| held(&service, ask(1).id(id)));
            assert_pending!(leader.poll());
            for follower in &mut followers {
                assert_pending!(follower.poll());
            }
            match panics {
                "call" => backend.admit(),
                "poll" => backend.finish(1, Does::Panics),
                _ => {
                    backend.admit();
                    backend.unready_by_panic();
                }
            }
            let mut leader = (drives != Drives::FollowerAlone).then_some(leader);
            if drives != Drives::Leader {
                let [first, _] = &mut followers;
                let result = catch_unwind(AssertUnwindSafe(|| first.poll()));
                let error = assert_ready!(result.expect("not the followers' panic")).unwrap_err();
                assert_eq!(reason(&error), Reason::Panicked, "{what}");
            }
            if let Some(leader) = &mut leader {
                assert!(leader.is_woken(), "{what}");
                let panic = catch_unwind(AssertUnwindSafe(|| leader.poll())).unwrap_err();
                assert!(message(panic).contains("told to"), "{what}");
            }
            for follower in &mut followers[usize::from(drives != Drives::Leader)..] {
                assert!(follower.is_woken(), "{what}");
                let error = assert_ready!(follower.poll()).unwrap_err();
                assert_eq!(reason(&error), Reason::Panicked, "{what}");
            }
            assert_eq!(ended(&handle, "panic"), 1, "{what}");
            assert_eq!(backend.futures.now(), 0, "{what}");
            drop((leader, followers));
            assert_usable(&service, &handle, &backend, 1);
        }
    }
}

// ===== 4 =====

/// 4.
#[tokio::test(start_paused = true)]
async fn followers_sleep_and_paused_time_goes_on() {
    let backend = Backend::new(Does::Takes(secs(1)));
    let service = layer().layer(backend.clone());
    let begun = Instant::now();
    let asked: Vec<_> = (0..101).map(|id| go(&service, ask(1).id(id))).collect();
    for _ in 0..500 {
        rest().await;
    }
    assert!(
        asked.iter().all(|asked| asked.polls() <= 2),
        "nobody is polled while nothing happens"
    );
    assert!(backend.polls.load(Ordering::SeqCst) <= 3, "nor is the call");
    let polls: Vec<_> = asked.iter().map(|asked| asked.polls.clone()).collect();
    for asked in asked {
        assert_eq!(asked.value().await.call, 1);
    }
    let elapsed = begun.elapsed();
    assert!((secs(1)..=ms(1_002)).contains(&elapsed), "{elapsed:?}");
    for polls in polls {
        let polls = polls.load(Ordering::SeqCst);
        assert!(polls <= 3, "{polls} polls");
    }
    assert!(backend.polls.load(Ordering::SeqCst) <= 5);
}

// ===== 5 =====

/// 5.
#[tokio::test(start_paused = true)]
async fn behind_a_limit_of_one_a_hundred_are_one_call_and_idle_clones_hold_no_permit() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let permits = Arc::new(Semaphore::new(1));
    let limited = ConcurrencyLimit::with_semaphore(backend.clone(), permits.clone());
    let service = layer.layer(limited);
    let mut idle: Vec<_> = (0..100).map(|_| service.clone()).collect();
    for idle in &mut idle {
        let ready = idle.poll_ready(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(ready, Poll::Ready(Ok(()))));
    }
    assert_eq!(permits.available_permits(), 1, "being ready takes none");
    let begun = Instant::now();
    let asked: Vec<_> = (0..100).map(|id| go(&service, ask(1).id(id))).collect();
    rest().await;
    assert_eq!(permits.available_permits(), 0);
    for asked in asked {
        assert_eq!(asked.value().await, Answer { call: 1, id: 0 });
    }
    assert!(begun.elapsed() <= ms(101));
    assert_eq!(backend.calls(), 1);
    assert_eq!(permits.available_permits(), 1, "with a hundred idle clones");

    // Two keys take turns, and a leader that leaves the queue takes nobody with it.
    let begun = Instant::now();
    let first = go(&service, ask(1));
    let second: Vec<_> = (0..3).map(|_| go(&service, ask(2))).collect();
    rest().await;
    let mut second = second.into_iter();
    second.next().unwrap().cancel().await;
    first.value().await;
    for second in second {
        assert_eq!(second.value().await.call, 3);
    }
    let elapsed = begun.elapsed();
    assert!((ms(200)..=ms(203)).contains(&elapsed), "{elapsed:?}");
    assert_eq!((backend.busy.peak(), permits.available_permits()), (1, 1));
    assert_quiet(&handle);
    drop(idle);
}

// ===== 6 =====

/// A waker that can be counted.
struct Nobody;

impl Wake for Nobody {
    fn wake(self: Arc<Self>) {}
}

/// 6.
#[test]
fn a_waiter_that_leaves_takes_its_waker_with_it() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let mut service = layer.layer(backend.clone());
    let mut leader = held(&service, ask(1));
    assert_pending!(leader.poll());
    let nobody = Arc::new(Nobody);
    for polls in 1..4 {
        let waker = Waker::from(nobody.clone());
        let mut cx = Context::from_waker(&waker);
        let mut follower = Box::pin(service.call(ask(1)));
        for _ in 0..polls {
            assert!(follower.as_mut().poll(&mut cx).is_pending());
        }
        assert!(Arc::strong_count(&nobody) >= 3, "it is in its seat");
        drop(follower);
        drop(waker);
        assert_eq!(Arc::strong_count(&nobody), 1, "after {polls} polls");
        assert_eq!(handle.snapshot().waiters, 1);
    }
    // The backend itself may hold a waker for as long as it likes: it keeps no waiter's.
    drop(leader);
    assert_eq!(backend.futures.now(), 0);
}

/// 6.
#[test]
fn a_million_joins_and_drops_use_no_memory() {
    // Nobody is too old to be joined, however slow the machine is.
    let layer = layer().leader_age(secs(3_600));
    let handle = layer.handle();
    let backend = Backend::new(Does::Never);
    let mut service = layer.layer(backend.clone());
    let mut leader = held(&service, ask(1));
    assert_pending!(leader.poll());
    let mut cx = Context::from_waker(Waker::noop());
    let mut cycles = |n: usize| {
        for _ in 0..n {
            let mut follower = std::pin::pin!(service.call(ask(1)));
            assert!(follower.as_mut().poll(&mut cx).is_pending());
        }
    };
    cycles(1_000);
    let (before, held) = (allocations(), bytes());
    let million = if cfg!(debug_assertions) {
        300_000
    } else {
        1_000_000
    };
    cycles(million);
    assert_eq!(bytes() - held, 0, "bytes");
    assert_eq!(allocations() - before, 0, "allocations");
    let now = handle.snapshot();
    assert_eq!((now.flights, now.waiters), (1, 1));
    assert_eq!(now.followers, million as u64 + 1_000);
    assert_eq!(backend.calls(), 1);
}

/// 6.
#[test]
fn the_last_waiter_that_leaves_drops_the_future_at_once() {
    for keep in 0..3 {
        let layer = layer();
        let handle = layer.handle();
        let backend = Backend::new(Does::Waits);
        let service = layer.layer(backend.clone());
        let mut calls: Vec<_> = (0..3).map(|id| held(&service, ask(1).id(id))).collect();
        for call in &mut calls {
            assert_pending!(call.poll());
        }
        let last = calls.remove(keep);
        drop(calls);
        assert_eq!((backend.futures.now(), handle.snapshot().flights), (1, 1));
        drop(last);
        assert_eq!(backend.futures.now(), 0, "not later");
        assert_quiet(&handle);
        assert_eq!(ended(&handle, "abandoned"), 1);
        // Nobody asked for what was never polled.
        drop(call(&service, ask(2)));
        let now = handle.snapshot();
        assert_eq!((now.leaders, backend.calls()), (1, 1));
    }
}

/// 6, before the request was sent.
#[test]
fn a_flight_that_is_given_up_before_the_backend_is_ready_was_never_sent() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Answers);
    let service = layer.layer(backend.clone());
    backend.hold();
    let clones = backend.clones.now();
    let mut calls = [1, 2].map(|id| held(&service, ask(1).id(id)));
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    drop(calls);
    assert_eq!(backend.calls(), 0);
    assert_eq!(
        backend.clones.now(),
        clones,
        "nor is a clone of the service left"
    );
    assert_usable(&service, &handle, &backend, 1);
}

// ===== 7 =====

/// 7.
#[test]
fn a_caller_inside_the_drop_of_the_old_future_gets_a_flight_of_its_own() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut old = [1, 2].map(|id| held(&service, ask(1).id(id)));
    for old in &mut old {
        assert_pending!(old.poll());
    }
    let inside = Arc::new(Mutex::new(None));
    let (slot, again) = (inside.clone(), service.clone());
    backend.on_drop(move || {
        let mut fresh = held(&again, ask(1).id(3));
        let pending = fresh.poll().is_pending();
        *slot.lock().unwrap() = Some((fresh, pending));
    });
    drop(old);
    let (mut fresh, pending) = inside.lock().unwrap().take().expect("dropped at once");
    assert!(pending, "it inherits nothing");
    assert_eq!(backend.ids(), [1, 3]);
    let now = handle.snapshot();
    assert_eq!((now.flights, now.waiters, backend.futures.now()), (1, 1, 1));
    // And the flight is one that others join.
    let mut joins = held(&service, ask(1).id(4));
    assert_pending!(joins.poll());
    backend.finish(2, Does::Answers);
    for call in [&mut fresh, &mut joins] {
        assert_eq!(
            assert_ready!(call.poll()).unwrap(),
            Answer { call: 2, id: 3 }
        );
    }
    assert_quiet(&handle);
}

/// 7, from another thread.
#[test]
fn a_caller_on_another_thread_during_that_drop_gets_a_flight_of_its_own() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut old = held(&service, ask(1).id(1));
    assert_pending!(old.poll());
    let (tell, told) = mpsc::channel();
    let again = service.clone();
    backend.on_drop(move || {
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let mut fresh = held(&again, ask(1).id(2));
            let pending = fresh.poll().is_pending();
            let _ = done.send((fresh, pending));
        });
        // While it waits here, the old flight is still being dropped.
        let _ = tell.send(wait.recv_timeout(secs(20)));
    });
    drop(old);
    let (mut fresh, pending) = told.recv().unwrap().expect("it does not wait for the drop");
    assert!(pending);
    assert_eq!(backend.ids(), [1, 2]);
    backend.finish(2, Does::Answers);
    assert!(fresh.is_woken());
    assert_eq!(
        assert_ready!(fresh.poll()).unwrap(),
        Answer { call: 2, id: 2 }
    );
    assert_quiet(&handle);
}

/// 7, when the future ends by itself: the flight is not over before its future is gone, so a caller inside that drop may be
/// told that it would wait for itself, or begin anew; it never hangs, and it never holds up the answer.
#[test]
fn a_caller_inside_the_drop_of_a_future_that_ended_holds_nobody_up() {
    for followers in [0, 2] {
        let layer = layer();
        let handle = layer.handle();
        let backend = Backend::new(Does::Waits);
        let service = layer.layer(backend.clone());
        let mut calls: Vec<_> = (0..=followers)
            .map(|id| held(&service, ask(1).id(id)))
            .collect();
        for call in &mut calls {
            assert_pending!(call.poll());
        }
        let inside = Arc::new(Mutex::new(None));
        let (slot, again) = (inside.clone(), service.clone());
        backend.on_drop(move || {
            let mut fresh = held(&again, ask(1).id(9));
            let polled = fresh.poll();
            *slot.lock().unwrap() = Some((fresh, polled));
        });
        backend.finish(1, Does::Answers);
        for call in &mut calls {
            assert_eq!(assert_ready!(call.poll()).unwrap().call, 1);
        }
        drop(calls);
        let (mut fresh, polled) = inside.lock().unwrap().take().expect("dropped");
        match polled {
            Poll::Ready(result) => assert_eq!(reason(&result.unwrap_err()), Reason::Recursion),
            Poll::Pending => {
                backend.finish(2, Does::Answers);
                let answer = assert_ready!(fresh.poll()).unwrap();
                assert_eq!(answer, Answer { call: 2, id: 9 });
            }
        }
        drop(fresh);
        assert_usable(&service, &handle, &backend, 1);
    }
}

/// 7, the same from another thread: it gets that answer, or one of its own.
#[test]
fn a_caller_on_another_thread_during_the_drop_of_a_future_that_ended_is_answered() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let mut leader = held(&service, ask(1).id(1));
    assert_pending!(leader.poll());
    let (tell, told) = mpsc::channel();
    let again = service.clone();
    backend.on_drop(move || {
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let mut late = held(&again, ask(1).id(2));
            let polled = late.poll();
            let _ = done.send((late, polled));
        });
        let _ = tell.send(wait.recv_timeout(secs(20)));
    });
    backend.finish(1, Does::Answers);
    backend.usual(Does::Answers);
    assert_eq!(assert_ready!(leader.poll()).unwrap().call, 1);
    let (mut late, polled) = told.recv().unwrap().expect("it does not wait for the drop");
    let polled = if polled.is_pending() {
        late.poll()
    } else {
        polled
    };
    let answer = assert_ready!(polled).unwrap();
    assert!([1, 2].contains(&answer.id));
    drop((leader, late));
    assert_usable(&service, &handle, &backend, 1);
}

// ===== 8 =====

/// 8.
#[test]
fn two_hundred_thousand_keys_leave_nothing_behind() {
    let keys = 100_000;
    let layer = layer();
    let handle = layer.handle();
    let watched = Arc::new(AtomicUsize::new(0));
    let calls = watched.clone();
    let backend = service_fn(move |req: Ask| {
        calls.fetch_add(1, Ordering::Relaxed);
        let mut yielded = false;
        std::future::poll_fn(move |cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(Ok::<_, Fault>(req.id));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    });
    let service = layer.layer(backend);
    let churn = |from: u64, to: u64| {
        let mut service = service.clone();
        let mut cx = Context::from_waker(Waker::noop());
        for key in from..to {
            let mut call = std::pin::pin!(service.call(ask(key).id(key)));
            assert!(call.as_mut().poll(&mut cx).is_pending());
            if key % 2 == 0 {
                let Poll::Ready(Ok(id)) = call.as_mut().poll(&mut cx) else {
                    panic!("it was awake");
                };
                assert_eq!(id, key);
            }
        }
    };
    churn(0, 1_000);
    let start = Barrier::new(2);
    // What each thread has allocated and not freed; one may free what the other has allocated.
    let kept: i64 = std::thread::scope(|scope| {
        let threads = [1, 2].map(|thread| {
            let (churn, start) = (&churn, &start);
            scope.spawn(move || {
                start.wait();
                let before = bytes();
                let from = 1_000_000_000 * thread;
                churn(from, from + keys);
                bytes() - before
            })
        });
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert!(kept.abs() < 64 * 1024, "{kept} bytes");
    assert_quiet(&handle);
    let now = handle.snapshot();
    assert_eq!(now.leaders, 2 * keys + 1_000);
    assert_eq!(watched.load(Ordering::Relaxed) as u64, now.leaders);
    assert_eq!((now.followers, now.remembered), (0, 0));
    assert_eq!(ended(&handle, "abandoned"), now.leaders / 2);
    assert_eq!(ended(&handle, "alone"), now.leaders / 2);
}

/// 8, a wave: all keys at once, then none.
#[test]
fn a_wave_of_keys_gives_its_memory_back() {
    let layer = layer();
    let handle = layer.handle();
    let mut service = layer.layer(service_fn(|_: Ask| {
        std::future::pending::<Result<u64, Fault>>()
    }));
    let mut wave = || {
        let mut cx = Context::from_waker(Waker::noop());
        let mut calls: Vec<_> = (0..20_000)
            .map(|key| Box::pin(service.call(ask(key))))
            .collect();
        for call in &mut calls {
            assert!(call.as_mut().poll(&mut cx).is_pending());
        }
    };
    let before = bytes();
    wave();
    let after = bytes();
    // Every shard keeps a little to use again; so many flights are ten times as much.
    let kept = after - before;
    assert!(kept < 1 << 20, "{kept} bytes after the first");
    for _ in 0..3 {
        wave();
    }
    assert!(
        bytes() - after < 64 * 1024,
        "{} bytes after four",
        bytes() - after
    );
    assert_quiet(&handle);
}

// ===== 9 =====

/// Rounds of callers on threads of their own, all for one key, while another thread ends the calls.
///
/// A caller leaves early where `leaves` says so.
fn race(rounds: usize, leaves: impl Fn(u64) -> bool + Sync) -> (u64, u64) {
    const CALLERS: u64 = 4;
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Waits);
    let service = layer.layer(backend.clone());
    let (start, done) = (Barrier::new(CALLERS as usize), AtomicBool::new(false));
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (service, start, answered, leaves) = (&service, &start, &answered, &leaves);
                scope.spawn(move || {
                    for round in 0..rounds as u64 {
                        start.wait();
                        let id = round * CALLERS + caller;
                        let mut call = call(service, ask(round % 3).id(id));
                        if leaves(id) {
                            let mut cx = Context::from_waker(Waker::noop());
                            let _ = call.as_mut().poll(&mut cx);
                            continue;
                        }
                        let answer = block_on(call).unwrap();
                        answered.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(
                            answer.id / CALLERS % 3,
                            round % 3,
                            "an answer of another key"
                        );
                        assert!(answer.id / CALLERS <= round);
                    }
                })
            })
            .collect();
        let (backend, done) = (&backend, &done);
        scope.spawn(move || {
            let mut ended = 0;
            while !done.load(Ordering::SeqCst) {
                while ended < backend.calls() {
                    ended += 1;
                    backend.finish(ended, Does::Answers);
                }
                std::thread::yield_now();
            }
        });
        let callers: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
        done.store(true, Ordering::SeqCst);
        for caller in callers {
            caller.unwrap();
        }
    });
    assert_quiet(&handle);
    assert_eq!(backend.futures.now(), 0);
    let now = handle.snapshot();
    assert_eq!(now.leaders as usize, backend.calls());
    assert_eq!(now.leaders + now.followers, rounds as u64 * CALLERS);
    (
        answered.load(Ordering::Relaxed) as u64,
        backend.busy.peak() as u64,
    )
}

/// 9.
#[test]
fn completion_races_with_join_and_nobody_is_lost() {
    let rounds = rounds(5_000);
    let (answered, peak) = race(rounds, |_| false);
    assert_eq!(answered, rounds as u64 * 4);
    assert_eq!(
        peak, 1,
        "all callers are in the same round: never two flights for a key"
    );
}

/// 9, while others leave.
#[test]
fn completion_races_with_join_and_with_drop_and_nobody_is_lost() {
    let rounds = rounds(5_000);
    let (answered, _) = race(rounds, |id| id % 3 == 0);
    assert_eq!(
        answered,
        (0..rounds as u64 * 4).filter(|id| id % 3 != 0).count() as u64
    );
}

// ===== 10 =====

/// 10.
#[tokio::test(start_paused = true)]
async fn an_error_nobody_can_clone_reaches_all_as_one() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::FailsAfter(ms(100)));
    let service = layer.layer(backend.clone());
    let asked: Vec<_> = (0..5).map(|id| go(&service, ask(1).id(id))).collect();
    for asked in asked {
        let error = asked.error().await;
        assert!(error.is::<SharedError>(), "{error:?}");
        assert_eq!(find::<Fault>(error.as_ref()), Some(&Fault("told to")));
        assert_eq!(error.source().unwrap().to_string(), "told to");
        assert!(Rejection::find(error.as_ref()).is_none(), "not ours");
    }
    assert_eq!((backend.calls(), ended(&handle, "shared")), (1, 1));
    // Alone it is what it was.
    let error = go(&service, ask(1)).error().await;
    assert_eq!(error.downcast_ref(), Some(&Fault("told to")));
    assert_eq!(ended(&handle, "alone"), 1);
}

/// 10.
#[tokio::test(start_paused = true)]
async fn what_may_not_be_shared_releases_the_followers_side_by_side() {
    for admit in [Admit::Retry, Admit::LeaderOnly] {
        let policy = ArcError.when(move |result: &Result<Answer, Fault>| match result {
            Ok(_) => Admit::Share,
            Err(_) => admit,
        });
        let layer = CoalesceLayer::new(Keyed).share(policy);
        let handle = layer.handle();
        let backend = Backend::new(Does::Takes(ms(100)));
        backend.next([Does::FailsAfter(ms(100)), Does::FailsAfter(ms(100))]);
        let service = layer.layer(backend.clone());
        let begun = Instant::now();
        let mut asked: Vec<_> = (0..21).map(|id| go(&service, ask(1).id(id))).collect();
        let leader = asked.remove(0).error().await;
        assert_eq!(leader.downcast_ref(), Some(&Fault("told to")), "untouched");
        assert!(begun.elapsed() <= ms(101));
        rest().await;
        assert_eq!(backend.busy.now(), 20, "at once");
        let mut ids = Vec::new();
        let mut failed = 0;
        for (follower, asked) in asked.into_iter().enumerate() {
            match asked.result().await {
                Ok(answer) => {
                    assert_eq!(answer.id, follower as u64 + 1, "its own");
                    ids.push(answer.id);
                }
                Err(error) => {
                    assert_eq!(error.downcast_ref(), Some(&Fault("told to")), "untouched");
                    failed += 1;
                }
            }
        }
        let elapsed = begun.elapsed();
        assert!(
            (ms(200)..=ms(203)).contains(&elapsed),
            "{admit:?}: {elapsed:?}"
        );
        assert_eq!((ids.len(), failed), (19, 1));
        assert_eq!((backend.calls(), backend.busy.peak()), (21, 20));
        let now = handle.snapshot();
        assert_eq!(
            (now.shared, now.leaders, now.followers),
            (0, 1, 20),
            "{now:?}"
        );
        assert_quiet(&handle);
        let (how, remembered) = match admit {
            Admit::Retry => ("retry", 0),
            _ => ("unshareable", 1),
        };
        assert_eq!(ended(&handle, how), 1, "{:?}", now.ends);
        assert_eq!(now.remembered, remembered);
        // What is remembered goes side by side from the start.
        backend.usual(Does::Takes(ms(100)));
        let begun = Instant::now();
        let again: Vec<_> = (30..35).map(|id| go(&service, ask(1).id(id))).collect();
        rest().await;
        let side_by_side = backend.busy.now() as u64;
        assert_eq!(side_by_side, if remembered == 1 { 5 } else { 1 });
        for asked in again {
            asked.value().await;
        }
        assert!(begun.elapsed() <= ms(101));
        assert_eq!(bypassed(&handle, "unshareable"), 5 * remembered);
    }
}

/// 10, with the leader gone: what was his alone is nobody's.
#[tokio::test(start_paused = true)]
async fn an_answer_for_a_leader_who_left_is_dropped_and_the_others_ask_themselves() {
    let policy = ArcError.when(|result: &Result<Answer, Fault>| match result {
        Ok(answer) if answer.call == 1 => Admit::LeaderOnly,
        _ => Admit::Share,
    });
    let layer = CoalesceLayer::new(Keyed).share(policy);
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let leader = go(&service, ask(1).id(0));
    let followers: Vec<_> = (1..4).map(|id| go(&service, ask(1).id(id))).collect();
    rest().await;
    leader.cancel().await;
    for (id, follower) in (1..).zip(followers) {
        let answer = follower.value().await;
        assert_eq!(answer.id, id, "its own, not the leader's");
    }
    assert_eq!((backend.calls(), backend.busy.peak()), (4, 3));
    assert_quiet(&handle);
}

// ===== 11 =====

/// 11.
#[tokio::test(start_paused = true)]
async fn a_deadline_ends_one_wait_and_never_the_flight() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let begun = Instant::now();
    let leader = go(&service, ask(1).id(1).within(ms(10)));
    let follower = go(&service, ask(1).id(2).within(secs(1)));
    let error = leader.error().await;
    assert_eq!(reason(&error), Reason::Deadline, "{error}");
    let elapsed = begun.elapsed();
    assert!((ms(10)..=ms(12)).contains(&elapsed), "{elapsed:?}");
    assert_eq!(follower.value().await, Answer { call: 1, id: 1 });
    let elapsed = begun.elapsed();
    assert!((ms(100)..=ms(102)).contains(&elapsed), "{elapsed:?}");
    assert_eq!((backend.calls(), backend.futures.now()), (1, 0));
    assert_quiet(&handle);

    // The other way round: a follower whose time is up leaves the leader alone.
    let begun = Instant::now();
    let leader = go(&service, ask(1).id(3).within(secs(1)));
    let follower = go(&service, ask(1).id(4).within(ms(10)));
    assert_eq!(reason(&follower.error().await), Reason::Deadline);
    assert!(begun.elapsed() <= ms(12));
    assert_eq!(leader.value().await, Answer { call: 2, id: 3 });
    assert_quiet(&handle);

    // Alone: the flight ends with the wait, since nobody is left.
    let error = go(&service, ask(1).within(ms(10))).error().await;
    assert_eq!(
        (reason(&error), backend.futures.now()),
        (Reason::Deadline, 0)
    );
    assert_usable(&service, &handle, &backend, 1);
}

/// 11, with deadlines that have passed already.
#[tokio::test(start_paused = true)]
async fn whoever_comes_too_late_is_told_so_and_nothing_hangs() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let service = layer.layer(backend.clone());
    let late = go(&service, ask(1).within(ms(0)));
    assert_eq!(reason(&late.error().await), Reason::Deadline);
    let leader = go(&service, ask(1).id(1));
    rest().await;
    let late = go(&service, ask(1).within(ms(0)));
    assert_eq!(reason(&late.error().await), Reason::Deadline);
    leader.value().await;
    assert_quiet(&handle);
    assert_eq!(backend.futures.now(), 0);
}

// ===== 14 =====

/// 14.
#[tokio::test(start_paused = true)]
async fn two_products_of_a_layer_share_flights() {
    let layer = layer();
    let handle = layer.handle();
    let backend = Backend::new(Does::Takes(ms(100)));
    let products: Vec<Sut> = vec![
        layer.layer(backend.clone()),
        layer.layer(backend.clone()),
        layer.clone().layer(backend.clone()),
    ];
    let asked: Vec<Asked> = products.iter().map(|service| go(service, ask(1))).collect();
    for asked in asked {
        assert_eq!(asked.value().await.call, 1);
    }
    let now = handle.snapshot();
    assert_eq!((backend.calls(), now.leaders, now.followers), (1, 1, 2));
    // Over services of different types they cannot, and must not: what one answers is no answer of the other.
    let texts = layer.layer(service_fn(async |_: Ask| {
        tokio::time::sleep(ms(100)).await;
        Ok::<_, Fault>("a text")
    }));
    let number = go(&products[0], ask(1).id(7));
    let text = go(&texts, ask(1));
    assert_eq!(number.value().await.id, 7);
    assert_eq!(text.value().await, "a text");
    let now = handle.snapshot();
    assert_eq!((now.leaders, now.followers), (3, 2), "one handle shows all");
    assert_quiet(&handle);
}

type Boxed = BoxCloneService<Ask, u64, BoxError>;

/// A service whose calls call the layer they are behind, under the keys of `route`, until there is none.
fn winding(
    route: fn(u64) -> Option<u64>,
    nap: fn(u64) -> Option<u64>,
) -> (Boxed, Arc<Count>, super::CoalesceHandle) {
    let outer: Arc<Mutex<Option<Boxed>>> = Arc::default();
    let calls = Arc::new(Count::default());
    let (again, counted) = (outer.clone(), calls.clone());
    let inner = service_fn(move |req: Ask| {
        let counted = Counted::new(&counted);
        let outer = again.lock().unwrap().clone().unwrap();
        async move {
            let _counted = counted;
            let key = req.key.unwrap();
            if let Some(nap) = nap(key) {
                tokio::time::sleep(ms(nap)).await;
            }
            match route(key) {
                Some(next) => {
                    let mut outer = outer;
                    outer.call(ask(next)).await
                }
                None => Ok::<_, BoxError>(key),
            }
        }
    });
    let layer = layer();
    let handle = layer.handle();
    let service = BoxCloneService::new(layer.layer(inner));
    *outer.lock().unwrap() = Some(service.clone());
    (service, calls, handle)
}

/// 14.
#[tokio::test(start_paused = true)]
async fn a_flight_that_waits_for_itself_fails_at_once() {
    let routes: [(&str, fn(u64) -> Option<u64>); 2] = [
        ("by itself", |_| Some(1)),
        ("by way of others", |key| Some(key % 5 + 1)),
    ];
    for (what, route) in routes {
        for nap in [(|_| None) as fn(u64) -> Option<u64>, |_| Some(10)] {
            let (service, calls, handle) = winding(route, nap);
            let begun = Instant::now();
            let error = go(&service, ask(1)).error().await;
            assert_eq!(reason(&error), Reason::Recursion, "{what}");
            assert!(begun.elapsed() <= ms(60), "{what}: {:?}", begun.elapsed());
            assert_eq!(calls.now(), 0, "{what}");
            assert_quiet(&handle);
        }
    }
    // A chain that ends is no circle.
    let (service, calls, handle) = winding(|key| key.checked_sub(1), |_| None);
    assert_eq!(go(&service, ask(20)).value().await, 0);
    assert_eq!(calls.total(), 21);
    assert_quiet(&handle);
}

/// 14, where no stack shows it: each of two flights waits for the other, begun by callers of their own.
#[tokio::test(start_paused = true)]
async fn two_flights_that_wait_for_each_other_end() {
    let (service, _, handle) = winding(|key| Some(3 - key), |key| Some(10 * key));
    let begun = Instant::now();
    let asked = [1, 2].map(|key| go(&service, ask(key)));
    for asked in asked {
        let error = asked.error().await;
        let reason = reason(&error);
        assert!(
            matches!(reason, Reason::Recursion | Reason::Timeout),
            "{error}"
        );
    }
    assert!(begun.elapsed() <= secs(31), "{:?}", begun.elapsed());
    assert_quiet(&handle);
}

/// 14, by way of a task: nothing can see it, and the flight's timeout ends it.
#[tokio::test(start_paused = true)]
async fn a_flight_that_waits_for_itself_in_a_task_ends_with_its_timeout() {
    let outer: Arc<Mutex<Option<Boxed>>> = Arc::default();
    let again = outer.clone();
    let inner = service_fn(move |req: Ask| {
        let mut outer = again.lock().unwrap().clone().unwrap();
        async move { tokio::spawn(outer.call(req)).await.unwrap() }
    });
    let layer = layer();
    let handle = layer.handle();
    let service = BoxCloneService::new(layer.layer(inner));
    *outer.lock().unwrap() = Some(service.clone());
    let begun = Instant::now();
    let error = go(&service, ask(1)).error().await;
    assert!(
        matches!(reason(&error), Reason::Timeout | Reason::Recursion),
        "{error}"
    );
    assert!(begun.elapsed() <= secs(31), "{:?}", begun.elapsed());
    rest().await;
    assert_quiet(&handle);
}
