mod world;

use proptest::prelude::*;

use self::world::{Step, World, limits, ms};
use super::*;

fn run(dice: [u16; 16], steps: impl IntoIterator<Item = Step>) -> World {
    let mut world = World::thrown(dice);
    for step in steps {
        world.step(step);
    }
    world
}

proptest! {
    #[test]
    fn the_core_keeps_its_promises_whatever_happens(
        dice in prop::array::uniform16(any::<u16>()),
        steps in prop::collection::vec((0u16..1_000, any::<u16>(), any::<u16>()), 0..120),
        seed in any::<u16>(),
    ) {
        let steps = steps.into_iter().map(|(roll, a, b)| Step::of(roll, a, b));
        run(dice, steps).quiet(usize::from(seed));
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[test]
fn a_hundred_thousand_random_steps_lose_no_slot_and_no_waiter() {
    let steps = std::env::var("TOWER_FLOW_SCHEDULES").ok();
    let steps: u64 = steps.map_or(100_000, |text| text.parse().expect("a number"));
    for seed in 0..steps.div_ceil(250) {
        let outcome = std::panic::catch_unwind(|| {
            let mut random = Random(seed);
            let dice = std::array::from_fn(|_| random.next() as u16);
            let steps: Vec<_> = (0..250)
                .map(|_| {
                    Step::of(
                        (random.next() % 1_000) as u16,
                        random.next() as u16,
                        random.next() as u16,
                    )
                })
                .collect();
            run(dice, steps).quiet(random.next() as u16 as usize);
        });
        assert!(outcome.is_ok(), "TOWER_FLOW seed {seed}");
    }
}

fn world(change: impl FnOnce(&mut Limits)) -> World {
    let mut limits = limits();
    change(&mut limits);
    World::new(limits, 4)
}

// ===== Giving =====

#[test]
fn the_connection_used_last_is_given_first() {
    let mut world = world(|_| {});
    let (first, second) = (world.busy_one(0), world.busy_one(0));
    world.done(second);
    world.done(first);
    assert_eq!(world.acquire(0, false), Ok(first));
    assert_eq!(world.acquire(0, false), Ok(second));
}

#[test]
fn the_least_loaded_of_http2_connections_is_given() {
    let mut world = world(|limits| limits.scale_at = 0.5);
    let first = world.streaming(1, 4);
    assert_eq!(world.acquire(1, false), Ok(first));
    world.look();
    let second = world.dials_of(1)[0];
    world.connected(second, Version::Http2, 4);
    assert_eq!(world.acquire(1, false), Ok(second));
    assert_eq!(world.acquire(1, false), Ok(second));
    world.look();
    world.done(first);
    assert_eq!(world.acquire(1, false), Ok(first));
}

#[test]
fn whoever_waits_is_served_in_turn_and_nobody_barges() {
    let mut world = world(|limits| limits.per_host = 1);
    let conn = world.busy_one(0);
    let waiters = [world.waits(0), world.waits(0), world.waits(0)];
    world.done(conn);
    // It was granted and not taken: a newcomer stands behind the others all the same.
    let newcomer = world.waits(0);
    for waiter in waiters.into_iter().chain([newcomer]) {
        assert_eq!(world.granted(waiter), Some(conn));
        world.done(conn);
    }
}

#[test]
fn who_lost_its_connection_stands_in_front() {
    let mut world = world(|limits| limits.per_host = 1);
    let conn = world.busy_one(0);
    let waiter = world.waits(0);
    let again = world.acquire(0, true).unwrap_err().unwrap();
    world.done(conn);
    assert_eq!(world.granted(waiter), None);
    assert_eq!(world.granted(again), Some(conn));
    world.done(conn);
    assert_eq!(world.granted(waiter), Some(conn));
}

#[test]
fn a_grant_nobody_came_for_goes_to_the_next() {
    let mut world = world(|limits| limits.per_host = 1);
    let conn = world.busy_one(0);
    let (leaver, stayer) = (world.waits(0), world.waits(0));
    world.done(conn);
    world.cancel(leaver);
    assert_eq!(world.granted(stayer), Some(conn));
}

#[test]
fn a_waiter_with_its_answer_may_leave_after_its_host_was_forgotten() {
    let mut world = world(|limits| limits.hosts = 1);
    let waiter = world.waits(0);
    let dial = world.dials_of(0)[0];
    world.failed(dial, false);
    world.gone(dial, CloseReason::Peer);
    let forgotten = world.host(0);
    world.host(1);
    assert!(!world.core.knows(forgotten));
    world.cancel(waiter);
}

#[test]
fn streams_beyond_a_lowered_limit_end_and_nothing_begins_before() {
    let mut world = world(|limits| limits.per_host = 1);
    let conn = world.streaming(1, 3);
    assert_eq!(world.acquire(1, false), Ok(conn));
    world.limited(conn, 1);
    let waiter = world.waits(1);
    world.done(conn);
    assert_eq!(world.granted(waiter), None, "one of one");
    world.done(conn);
    assert_eq!(world.granted(waiter), Some(conn));
    let waiter = world.waits(1);
    world.limited(conn, 2);
    assert_eq!(world.granted(waiter), Some(conn));
}

#[test]
fn an_http2_connection_without_room_hides_no_http1_one() {
    let mut world = world(|limits| limits.per_host = 2);
    let old = world.busy_one(0);
    let waiter = world.waits(0);
    let new = world.dials_of(0)[0];
    world.connected(new, Version::Http2, 1);
    assert_eq!(world.granted(waiter), Some(new));
    world.done(old);
    world.limited(new, 0);
    world.done(new);
    assert_eq!(world.acquire(0, false), Ok(old));
}

// ===== Dials =====

#[test]
fn a_dial_goes_on_without_the_one_it_began_for() {
    let mut world = world(|limits| limits.per_host = 1);
    let (leaver, stayer) = (world.waits(0), world.waits(0));
    world.cancel(leaver);
    let dial = world.dials_of(0)[0];
    world.connected(dial, Version::Http1, 1);
    assert_eq!(world.granted(stayer), Some(dial));
}

#[test]
fn one_dial_goes_ahead_while_nobody_knows_what_the_host_speaks() {
    let mut world = world(|_| {});
    for _ in 0..5 {
        world.waits(0);
    }
    let first = world.dials_of(0);
    assert_eq!(first.len(), 1);
    world.connected(first[0], Version::Http1, 1);
    assert_eq!(world.dials_of(0).len(), 4, "it speaks HTTP/1");
    for _ in 0..5 {
        world.waits(1);
    }
    let first = world.dials_of(1);
    world.connected(first[0], Version::Http2, 100);
    assert_eq!(
        world.dials_of(1).len(),
        0,
        "one HTTP/2 connection serves them all"
    );
}

#[test]
fn no_more_dials_at_a_time_than_may_be() {
    let mut world = world(|limits| {
        limits.connecting = 2;
        limits.version = Some(Version::Http1);
    });
    for _ in 0..5 {
        world.waits(0);
    }
    assert_eq!(world.dials_of(0).len(), 2);
    let dial = world.dials_of(0)[0];
    world.connected(dial, Version::Http1, 1);
    assert_eq!(world.dials_of(0).len(), 2);
}

#[test]
fn whom_a_dial_serves_is_not_pending() {
    let mut world = world(|limits| {
        limits.pending = 0;
        limits.per_host = 2;
        limits.version = Some(Version::Http1);
    });
    world.waits(0);
    world.waits(0);
    assert_eq!(world.acquire(0, false), Err(None), "and the third would be");
}

#[test]
fn the_last_request_of_a_connection_makes_no_dial_beyond_those_who_wait() {
    let mut world = world(|limits| {
        limits.requests = 1;
        limits.draining_allowance = 1;
    });
    let waiter = world.waits(0);
    let dial = world.dials_of(0)[0];
    world.connected(dial, Version::Http1, 1);
    assert_eq!(world.granted(waiter), Some(dial));
    assert_eq!(world.dials, [0]);
    world.done(dial);
    assert_eq!(world.reason(dial), Some(CloseReason::MaxRequests));
}

#[test]
fn http2_scales_out_before_it_is_full() {
    let mut world = world(|limits| limits.scale_at = 0.8);
    let conn = world.streaming(1, 5);
    for _ in 0..2 {
        assert_eq!(world.acquire(1, false), Ok(conn));
    }
    assert_eq!(world.dials_of(1).len(), 0, "three of five");
    assert_eq!(world.acquire(1, false), Ok(conn));
    assert_eq!(world.dials_of(1).len(), 1, "four of five");
    assert_eq!(world.acquire(1, false), Ok(conn));
    assert_eq!(world.dials_of(1).len(), 1, "one at a time");
}

#[test]
fn scaling_out_where_nothing_may_be_idle_dials_nothing() {
    let mut world = world(|limits| limits.idle_per_host = 0);
    let conn = world.streaming(1, 1);
    assert_eq!(world.dials, [1], "{conn:?} is full");
}

// ===== The limit in total =====

#[test]
fn a_full_pool_closes_what_was_idle_longest_of_any_host() {
    let mut world = world(|limits| limits.connections = 3);
    let conns = [world.busy_one(0), world.busy_one(1), world.busy_one(1)];
    for conn in [conns[1], conns[0], conns[2]] {
        world.done(conn);
    }
    let waiter = world.waits(2);
    assert_eq!(world.closes, [conns[1]]);
    assert_eq!(world.reason(conns[1]), Some(CloseReason::Evicted));
    assert_eq!(world.dials_of(2).len(), 0, "its socket is there still");
    world.gone(conns[1], CloseReason::Peer);
    world.look();
    let dial = world.dials_of(2)[0];
    world.connected(dial, Version::Http1, 1);
    assert_eq!(world.granted(waiter), Some(dial));
}

#[test]
fn hosts_starved_under_the_limit_in_total_take_turns() {
    let mut world = world(|limits| {
        limits.connections = 1;
        limits.requests = 1;
        limits.version = Some(Version::Http1);
    });
    let mut conn = world.busy_one(3);
    world.dials.clear();
    for host in [0, 0, 0, 1, 1, 2] {
        world.waits(host);
    }
    while world.dials.len() < 6 {
        world.done(conn);
        world.gone(conn, CloseReason::Peer);
        world.look();
        let host = *world.dials.last().unwrap();
        conn = world.dials_of(host)[0];
        world.connected(conn, Version::Http1, 1);
        world.take_all();
    }
    assert_eq!(world.dials, [0, 1, 2, 0, 1, 0]);
}

#[test]
fn a_draining_connection_may_exceed_its_hosts_limit_by_the_allowance() {
    let mut world = world(|limits| {
        limits.per_host = 1;
        limits.draining_allowance = 1;
    });
    let old = world.busy_one(0);
    let waiter = world.waits(0);
    world.leave(old);
    world.look();
    let new = world.dials_of(0)[0];
    world.connected(new, Version::Http1, 1);
    assert_eq!(world.granted(waiter), Some(new));
    // The old one closes, and the new one is no more than may be.
    world.done(old);
    assert_eq!(world.reason(old), Some(CloseReason::GoAway));
    world.done(new);
    assert_eq!(world.reason(new), None);
}

// ===== Failures =====

#[test]
fn a_failed_dial_fails_only_those_whom_nothing_else_can_serve() {
    let mut world = world(|limits| limits.version = Some(Version::Http1));
    let (first, second) = (world.waits(0), world.waits(0));
    let dials = world.dials_of(0);
    world.failed(dials[0], false);
    world.look();
    assert!(world.poll(first).is_none(), "the other dial may serve it");
    world.connected(dials[1], Version::Http1, 1);
    assert_eq!(world.granted(first), Some(dials[1]));
    assert_eq!(world.granted(second), None, "and then it");
    world.done(dials[1]);
    assert_eq!(world.granted(second), Some(dials[1]));

    let waiters = [world.waits(1), world.waits(1)];
    for dial in world.dials_of(1) {
        world.failed(dial, false);
        world.look();
    }
    for waiter in waiters {
        assert!(matches!(world.poll(waiter), Some(Answer::Failed(_))));
    }
}

#[test]
fn one_dial_goes_ahead_after_a_pause_that_doubles() {
    let mut world = world(|limits| {
        limits.version = Some(Version::Http1);
        limits.backoff = (ms(100), ms(300));
    });
    let busy = world.busy_one(0);
    for longest in [100, 200, 300, 300] {
        for _ in 0..3 {
            world.waits(0);
        }
        for dial in world.dials_of(0) {
            world.failed(dial, false);
            world.look();
        }
        world.pass(ms(longest * 8 / 10 - 1));
        assert_eq!(world.dials_of(0).len(), 0, "not yet");
        world.pass(ms(longest * 2 / 10 + 1));
        assert_eq!(world.dials_of(0).len(), 1, "one sees whether it is back");
    }
    let probe = world.dials_of(0)[0];
    world.connected(probe, Version::Http1, 1);
    world.look();
    assert_eq!(world.dials_of(0).len(), 11, "and then all");
    world.done(busy);
}

#[test]
fn a_host_that_failed_refuses_until_its_pause_ends() {
    let mut world = world(|_| {});
    let waiter = world.waits(0);
    let dial = world.dials_of(0)[0];
    world.failed(dial, true);
    assert!(matches!(world.poll(waiter), Some(Answer::Failed(_))));
    assert_eq!(world.acquire(0, false), Err(None));
    world.pass(ms(100));
    world.waits(0);
    assert_eq!(world.dials_of(0).len(), 1);
}

#[test]
fn a_refresh_ends_the_pause_for_those_who_wait_as_well() {
    let mut world = world(|limits| limits.backoff = (ms(5_000), ms(5_000)));
    let busy = world.busy_one(0);
    let waiter = world.waits(0);
    let dial = world.dials_of(0)[0];
    world.failed(dial, false);
    world.refresh(0);
    world.look();
    let dial = world.dials_of(0)[0];
    world.connected(dial, Version::Http1, 1);
    assert_eq!(world.granted(waiter), Some(dial));
    world.done(busy);
    assert_eq!(world.reason(busy), Some(CloseReason::Asked));
}

// ===== Time =====

#[test]
fn who_waited_long_enough_is_told_so() {
    let mut world = world(|limits| {
        limits.per_host = 1;
        limits.acquire = ms(50);
    });
    world.busy_one(0);
    let waiter = world.waits(0);
    world.pass(ms(49));
    assert!(world.poll(waiter).is_none());
    world.pass(ms(1));
    assert!(matches!(
        world.poll(waiter),
        Some(Answer::TimedOut { open: 1, .. })
    ));
}

#[test]
fn what_nobody_used_for_the_idle_timeout_closes() {
    let mut world = world(|limits| limits.idle_timeout = ms(100));
    let conn = world.idle_one(0);
    world.pass(ms(99));
    assert_eq!(world.acquire(0, false), Ok(conn));
    world.done(conn);
    world.pass(ms(99));
    assert_eq!(world.reason(conn), None);
    world.pass(ms(1));
    assert_eq!(world.reason(conn), Some(CloseReason::IdleTimeout));
}

#[test]
fn an_alarm_nobody_hears_any_more_is_set_again() {
    let mut world = world(|limits| limits.idle_timeout = ms(100));
    let conns = [world.busy_one(0), world.busy_one(0)];
    world.done(conns[0]);
    // The waiters' deadlines, and then only the idle one.
    world.pass(ms(50));
    world.core.disarm();
    assert_eq!(world.core.alarm(), None);
    world.done(conns[1]);
    assert!(world.core.alarm().is_some());
    world.pass(ms(100));
    assert_eq!(world.closes, conns);
}

#[test]
fn what_is_too_old_is_not_given_though_nobody_looked_at_the_time() {
    let mut world = world(|limits| limits.idle_timeout = ms(50));
    let old = world.idle_one(0);
    world.step(Step::Late(60));
    world.waits(0);
    assert_eq!(world.reason(old), Some(CloseReason::IdleTimeout));
}

#[test]
fn an_idle_timeout_of_zero_serves_who_waits() {
    let mut world = world(|limits| {
        limits.idle_timeout = ms(0);
        limits.lifetime = Some((ms(0), 1.0));
        limits.min_idle = 1;
    });
    let waiter = world.waits(0);
    let dial = world.dials_of(0)[0];
    world.core.connected(world.now, dial, Version::Http1, 1);
    let answer = world.core.waiters.iter().next().unwrap().1.answer.as_ref();
    assert!(
        matches!(answer, Some(Answer::Granted(_))),
        "{waiter}: {answer:?}"
    );
    // And time goes on.
    world.core.expire(world.now + ms(1));
}

#[test]
fn connections_made_together_do_not_end_together() {
    let mut world = world(|limits| limits.lifetime = Some((ms(1_000), 0.5)));
    let conns: Vec<_> = (0..100).map(|_| world.busy_one(0)).collect();
    conns.iter().for_each(|conn| world.done(*conn));
    world.pass(ms(499));
    assert_eq!(world.closes.len(), 0);
    for _ in 0..5 {
        let before = world.closes.len();
        world.pass(ms(100));
        let ended = world.closes.len() - before;
        assert!(
            (8..=35).contains(&ended),
            "{ended} of 100 in a fifth of the time"
        );
    }
    world.pass(ms(1));
    assert_eq!(world.closes.len(), 100);
}

#[test]
fn what_lived_long_enough_while_busy_closes_after_its_request() {
    let mut world = world(|limits| limits.lifetime = Some((ms(100), 0.0)));
    let conn = world.busy_one(0);
    world.pass(ms(200));
    assert_eq!(world.reason(conn), None);
    world.done(conn);
    assert_eq!(world.reason(conn), Some(CloseReason::MaxLifetime));
}

// ===== Idle ones =====

#[test]
fn one_idle_too_many_closes_the_one_used_longest_ago() {
    let mut world = world(|limits| {
        limits.idle = 3;
        limits.idle_per_host = 2;
    });
    let conns: Vec<_> = [0, 0, 0, 1, 1]
        .into_iter()
        .map(|host| world.busy_one(host))
        .collect();
    for conn in [conns[1], conns[0]] {
        world.done(conn);
    }
    world.done(conns[2]);
    assert_eq!(world.closes, [conns[1]], "the host's");
    world.done(conns[3]);
    world.done(conns[4]);
    assert_eq!(world.closes, [conns[1], conns[0]], "of all");
    assert_eq!(world.reason(conns[0]), Some(CloseReason::Surplus));
}

#[test]
fn a_host_has_idle_connections_in_hand_again_when_they_are_taken_or_lost() {
    let mut world = world(|limits| {
        limits.min_idle = 1;
        limits.version = Some(Version::Http1);
    });
    let first = world.busy_one(0);
    let spare = world.dials_of(0)[0];
    world.connected(spare, Version::Http1, 1);
    world.look();
    assert_eq!(world.dials_of(0).len(), 0);
    // Taken.
    assert_eq!(world.acquire(0, false), Ok(spare));
    let another = world.dials_of(0)[0];
    world.connected(another, Version::Http1, 1);
    // Lost, and nobody had used it: the next is not dialled at once.
    world.gone(another, CloseReason::Peer);
    world.look();
    assert_eq!(world.dials_of(0).len(), 0);
    world.pass(ms(1_000));
    assert_eq!(world.dials_of(0).len(), 1);
    world.done(first);
}

#[test]
fn a_host_that_refuses_is_not_dialled_without_end_to_have_some_in_hand() {
    let mut world = world(|limits| {
        limits.min_idle = 1;
        limits.version = Some(Version::Http1);
        limits.backoff = (Duration::ZERO, Duration::ZERO);
    });
    world.busy_one(0);
    let spare = world.dials_of(0)[0];
    world.failed(spare, false);
    world.look();
    assert_eq!(world.dials_of(0).len(), 0);
    world.pass(ms(1_000));
    assert_eq!(world.dials_of(0).len(), 1);
}

#[test]
fn a_connection_to_be_kept_begins_its_time_anew() {
    let mut world = world(|limits| {
        limits.min_idle = 1;
        limits.idle_timeout = ms(100);
    });
    let conns = [world.busy_one(0), world.busy_one(0), world.busy_one(0)];
    world.step(Step::Time(0));
    for dial in world.dials_of(0) {
        world.connected(dial, Version::Http1, 1);
        world.look();
    }
    conns.into_iter().for_each(|conn| world.done(conn));
    for _ in 0..10 {
        world.pass(ms(100));
        assert_eq!(world.open(0) - world.closes.len(), 1);
    }
}

#[test]
fn no_idle_connection_is_dialled_that_would_be_one_too_many() {
    let mut world = world(|limits| {
        limits.min_idle = 1;
        limits.idle = 1;
    });
    let conns = [world.busy_one(0), world.busy_one(1)];
    conns.into_iter().for_each(|conn| world.done(conn));
    world.quiet(0);
    assert!(world.dials.len() < 6, "{:?}", world.dials);
}

// ===== What the owner asks for =====

#[test]
fn a_lowered_limit_closes_as_many_as_are_too_many() {
    let mut world = world(|_| {});
    let conns: Vec<_> = (0..4).map(|_| world.busy_one(0)).collect();
    conns.iter().for_each(|conn| world.done(*conn));
    world.limit(|limits| limits.per_host = 3);
    world.look();
    assert_eq!(world.closes, [conns[0]]);
    world.limit(|limits| limits.connections = 2);
    world.look();
    assert_eq!(world.closes, [conns[0], conns[1]]);
    // Those closing are not too many once more.
    assert_eq!(world.acquire(0, false), Ok(conns[3]));
    world.done(conns[3]);
    assert_eq!(world.reason(conns[3]), None);
    // What is busy closes when it is done.
    assert_eq!(world.acquire(0, false), Ok(conns[3]));
    assert_eq!(world.acquire(0, false), Ok(conns[2]));
    world.limit(|limits| limits.connections = 1);
    world.done(conns[2]);
    world.done(conns[3]);
    assert_eq!(world.closes, [conns[0], conns[1], conns[2]]);
}

#[test]
fn a_raised_limit_serves_those_who_wait() {
    let mut world = world(|limits| limits.per_host = 1);
    world.busy_one(0);
    world.waits(0);
    assert_eq!(world.dials_of(0).len(), 0);
    world.limit(|limits| limits.per_host = 2);
    assert_eq!(world.dials_of(0).len(), 1);
}

#[test]
fn who_warms_is_told_when_they_are_there_or_can_be_no_more() {
    let mut world = world(|limits| limits.per_host = 3);
    let ticket = world.warm(0, 2).unwrap();
    for _ in 0..2 {
        assert!(world.poll(ticket).is_none());
        let dial = world.dials_of(0)[0];
        world.connected(dial, Version::Http1, 1);
        world.look();
    }
    assert!(matches!(world.poll(ticket), Some(Answer::Open(2))));
    // Three are all there may be.
    let ticket = world.warm(0, 9).unwrap();
    let dial = world.dials_of(0)[0];
    world.connected(dial, Version::Http1, 1);
    assert!(matches!(world.poll(ticket), Some(Answer::Open(3))));
    let ticket = world.warm(1, 1).unwrap();
    let dial = world.dials_of(1)[0];
    world.failed(dial, false);
    assert!(matches!(world.poll(ticket), Some(Answer::Failed(_))));
}

#[test]
fn a_refresh_closes_what_is_idle_and_drains_the_rest() {
    let mut world = world(|_| {});
    let (busy, idle, other) = (world.busy_one(0), world.busy_one(0), world.idle_one(1));
    world.done(idle);
    world.refresh(0);
    world.look();
    assert_eq!(world.closes, [idle]);
    world.done(busy);
    assert_eq!(world.reason(busy), Some(CloseReason::Asked));
    assert_eq!(world.reason(other), None);
}

#[test]
fn a_retired_pool_serves_who_waits_and_closes_the_rest() {
    let mut world = world(|limits| limits.per_host = 1);
    let idle = world.idle_one(0);
    let busy = world.busy_one(1);
    let waiter = world.waits(1);
    let leaver = world.waits(2);
    world.cancel(leaver);
    let dial = world.dials_of(2)[0];
    world.retire();
    world.look();
    assert_eq!(world.closes, [idle, dial]);
    world.done(busy);
    assert_eq!(world.granted(waiter), Some(busy));
    world.done(busy);
    assert_eq!(world.reason(busy), Some(CloseReason::Shutdown));
    for conn in [idle, dial, busy] {
        world.gone(conn, CloseReason::Peer);
    }
    assert!(world.core.ended());
}

#[test]
fn a_pool_shut_tells_who_waits_closes_what_is_idle_and_drains_the_rest() {
    let mut world = world(|limits| limits.per_host = 1);
    let idle = world.idle_one(0);
    let busy = world.busy_one(1);
    let waiter = world.waits(1);
    let dialled = world.waits(2);
    let dial = world.dials_of(2)[0];
    world.shut();
    world.look();
    for waiter in [waiter, dialled] {
        assert!(matches!(world.poll(waiter), Some(Answer::Closed)));
    }
    assert_eq!(world.closes, [idle, dial]);
    assert_eq!(world.acquire(1, false), Err(None));
    world.done(busy);
    assert_eq!(world.reason(busy), Some(CloseReason::Shutdown));
    for conn in [idle, dial, busy] {
        world.gone(conn, CloseReason::Peer);
    }
    assert!(world.core.over() && world.core.ended());
}
