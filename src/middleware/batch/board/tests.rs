mod model;
mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use self::model::Told;
use self::world::{Heard, Step, Went, World, ms, rules};
use super::*;
use crate::base::clock;
use crate::middleware::batch::shard::State;

fn run(dice: [u16; 10], steps: impl IntoIterator<Item = Step>) -> World {
    let mut world = World::thrown(dice);
    for step in steps {
        world.step(step);
    }
    world
}

proptest! {
    #[test]
    fn a_board_keeps_its_promises_whatever_happens(
        dice in any::<[u16; 10]>(),
        steps in prop::collection::vec((0u16..1_000, any::<u16>(), any::<u16>()), 0..120),
    ) {
        let steps = steps.into_iter().map(|(roll, a, b)| Step::of(roll, a, b));
        run(dice, steps).quiet();
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

/// The number a variable of the environment gives.
fn given(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

#[test]
fn a_hundred_thousand_random_steps_lose_no_item_and_no_wake() {
    let steps = given("TOWER_FLOW_SCHEDULES").unwrap_or(100_000);
    let seeds = match given("TOWER_FLOW_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..steps.div_ceil(250),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut random = Random(seed);
            let dice = std::array::from_fn(|_| random.next() as u16);
            let steps: Vec<_> = (0..250)
                .map(|_| {
                    let roll = (random.next() % 1_000) as u16;
                    Step::of(roll, random.next() as u16, random.next() as u16)
                })
                .collect();
            run(dice, steps).quiet();
        });
        assert!(outcome.is_ok(), "again with TOWER_FLOW_SEED={seed}");
    }
}

fn world(change: impl FnOnce(&mut Rules)) -> World {
    let mut rules = rules();
    change(&mut rules);
    World::new(rules)
}

const FAR: Duration = Duration::from_millis(1_000);

impl World {
    /// A caller comes, and asks once.
    fn comes(&mut self, key: u64, weight: usize, deadline: Option<Duration>) -> usize {
        let deadline = deadline.map(|within| self.model.now + within);
        let (caller, _) = self.push(key, weight, deadline, None).expect("accepted");
        assert_eq!(self.ask(caller), Heard::Waits);
        caller
    }

    /// One like any other.
    fn item(&mut self, key: u64) -> usize {
        self.comes(key, 1, None)
    }

    /// One of whom others may be twins.
    fn twin(&mut self, key: u64, same: u64) -> usize {
        let (caller, _) = self.push(key, 1, None, Some(same)).expect("accepted");
        assert_eq!(self.ask(caller), Heard::Waits);
        caller
    }

    /// Polls the collector of a shard.
    fn polls(&mut self, key: u64) -> Next {
        self.poll(self.collector(key))
    }

    /// What the collector of a shard takes, whose turn it is.
    fn sends(&mut self, key: u64) -> Went {
        let collector = self.collector(key);
        let next = self.poll(collector);
        assert!(matches!(next, Next::Take(_)), "{next:?}");
        self.take(collector).expect("it takes")
    }

    /// A batch that is sent, and its callers.
    fn sends_these(&mut self, key: u64, callers: &[usize]) -> Went {
        let went = self.sends(key);
        let requests: Vec<_> = callers.iter().map(|caller| self.requests[caller]).collect();
        assert_eq!(went.requests, requests);
        went
    }

    /// Keeps a shard busy.
    fn busy(&mut self, key: u64) -> usize {
        self.item(key);
        self.sends(key).batch
    }

    fn answers(&mut self, batch: usize) {
        self.deliver(batch, usize::MAX, 0);
        self.settle(batch);
    }

    /// When the collector of a shard comes by itself; it waits.
    fn timer(&mut self, key: u64) -> Option<Duration> {
        match self.polls(key) {
            Next::Wait(until) => until.map(|until| until - self.model.now),
            other => panic!("{other:?}"),
        }
    }

    /// Somebody comes to the gate and finds it shut.
    fn queues(&mut self) -> usize {
        let visitor = self.visit();
        assert!(!self.enter(visitor));
        visitor
    }
}

// ===== What goes together =====

#[test]
fn an_item_goes_at_once_when_nothing_is_in_flight() {
    let mut world = world(|_| {});
    let caller = world.item(0);
    let went = world.sends_these(0, &[caller]);
    assert_eq!((went.flush, went.next), (Flush::Idle, None));
    world.answers(went.batch);
    assert!(world.caller_runs(caller));
    assert!(matches!(world.ask(caller), Heard::Has(Told::Answer(_))));
    world.quiet();
}

#[test]
fn what_comes_while_a_batch_is_in_flight_goes_together_after_it() {
    let mut world = world(|_| {});
    let batch = world.busy(0);
    let callers = [world.item(0), world.item(0), world.item(0)];
    assert_eq!(world.timer(0), None);
    assert_eq!(world.state(0), State::Blocked);
    let collector = world.collector(0);
    world.answers(batch);
    assert!(world.collector_runs(collector));
    world.sends_these(0, &callers);
    world.quiet();
}

#[test]
fn items_join_until_the_batch_is_taken() {
    let mut world = world(|_| {});
    let first = world.item(0);
    assert_eq!(world.polls(0), Next::Take(Flush::Idle));
    let second = world.item(0);
    world.sends_these(0, &[first, second]);
    world.quiet();
}

#[test]
fn a_batch_is_no_larger_than_it_may_be_and_the_rest_goes_next() {
    let mut world = world(|rules| {
        rules.max_items = 2;
        rules.max_in_flight_per_shard = 3;
    });
    let callers: Vec<_> = (0..5).map(|_| world.item(0)).collect();
    for (full, callers) in [true, true, false].into_iter().zip(callers.chunks(2)) {
        let went = world.sends_these(0, callers);
        assert_eq!(went.flush == Flush::Full, full);
        assert_eq!(went.next.is_some(), full);
    }
    world.quiet();
}

#[test]
fn what_would_make_a_batch_too_heavy_goes_with_the_next() {
    let mut world = world(|rules| {
        rules.max_weight = Some(10);
        rules.max_delay = FAR;
        rules.max_in_flight_per_shard = 2;
    });
    let nine = world.comes(0, 9, None);
    assert_eq!(world.state(0), State::Open);
    let five = world.comes(0, 5, None);
    assert_eq!(world.sends_these(0, &[nine]).flush, Flush::Full);
    // It has a delay of its own.
    assert_eq!(world.timer(0), Some(FAR));
    world.pass(FAR);
    assert_eq!(world.sends_these(0, &[five]).flush, Flush::Delay);
    world.quiet();
}

#[test]
fn a_batch_as_heavy_as_may_be_goes_at_once() {
    let mut world = world(|rules| {
        rules.max_weight = Some(10);
        rules.max_delay = FAR;
    });
    let callers = [world.comes(0, 9, None), world.comes(0, 1, None)];
    assert_eq!(world.sends_these(0, &callers).flush, Flush::Full);
    world.quiet();
}

#[test]
fn items_that_weigh_nothing_fill_a_batch_all_the_same() {
    let mut world = world(|rules| {
        rules.max_weight = Some(1);
        rules.max_items = 3;
        rules.max_delay = FAR;
    });
    let callers = [0; 3].map(|weight| world.comes(0, weight, None));
    assert_eq!(world.sends_these(0, &callers).flush, Flush::Full);
    world.quiet();
}

#[test]
fn what_is_heavier_than_a_batch_is_refused_or_goes_alone() {
    for alone in [false, true] {
        let mut world = world(|rules| {
            rules.max_weight = Some(10);
            rules.max_in_flight_per_shard = 3;
            rules.alone = alone;
        });
        let before = world.comes(0, 0, None);
        if !alone {
            let (weight, max) = (11, 10);
            let refused = world.push(0, weight, None, None);
            assert_eq!(refused, Err(Refused::TooHeavy { weight, max }));
            world.sends_these(0, &[before]);
            continue;
        }
        let heavy = world.comes(0, 11, None);
        let after = world.comes(0, 0, None);
        world.sends_these(0, &[before]);
        world.sends_these(0, &[heavy]);
        world.sends_these(0, &[after]);
        world.quiet();
    }
}

#[test]
fn weights_beyond_all_numbers_are_added_up_nevertheless() {
    let mut world = world(|rules| rules.max_delay = FAR);
    let callers = [usize::MAX; 3].map(|weight| world.comes(0, weight, None));
    assert_eq!(world.board.waiting_weight, 3 * usize::MAX as u128);
    world.leave(callers[1]);
    world.pass(FAR);
    world.sends_these(0, &[callers[0], callers[2]]);
    world.quiet();
}

#[test]
fn few_items_wait_for_the_batch_in_flight_and_enough_do_not() {
    let mut world = world(|rules| {
        rules.min_items = 2;
        rules.max_in_flight_per_shard = 2;
    });
    let first = world.busy(0);
    world.item(0);
    assert_eq!(world.timer(0), None);
    world.item(0);
    let second = world.sends(0);
    assert_eq!(second.flush, Flush::Idle);
    let caller = world.item(0);
    assert_eq!(world.timer(0), None);
    world.answers(first);
    assert_eq!(world.timer(0), None);
    world.answers(second.batch);
    assert_eq!(world.sends_these(0, &[caller]).flush, Flush::Idle);
    world.quiet();
}

// ===== When =====

#[test]
fn nobody_waits_longer_than_the_delay_however_many_come() {
    let mut world = world(|rules| rules.max_delay = ms(10));
    let mut callers = vec![world.item(0)];
    assert_eq!(world.timer(0), Some(ms(10)));
    let collector = world.collector(0);
    world.pass(ms(6));
    callers.push(world.item(0));
    assert!(!world.collector_runs(collector), "its timer is good");
    world.pass(ms(4));
    assert_eq!(world.sends_these(0, &callers).flush, Flush::Delay);
    world.quiet();
}

#[test]
fn the_timer_of_a_batch_that_went_early_is_nobodys() {
    let mut world = world(|rules| {
        rules.max_delay = ms(10);
        rules.max_items = 2;
        rules.max_in_flight_per_shard = 2;
    });
    world.item(0);
    let early = world.collector(0);
    assert_eq!(world.timer(0), Some(ms(10)));
    world.pass(ms(9));
    world.item(0);
    assert!(world.collector_runs(early));
    world.sends(0);
    world.item(0);
    world.pass(ms(1));
    assert_eq!(world.timer(0), Some(ms(9)));
    world.quiet();
}

#[test]
fn a_shard_that_was_blocked_sets_its_timer_when_it_is_not() {
    let mut world = world(|rules| rules.max_delay = ms(10));
    world.item(0);
    world.pass(ms(10));
    let batch = world.sends(0).batch;
    world.item(0);
    assert_eq!(world.timer(0), None);
    world.pass(ms(1));
    let collector = world.collector(0);
    world.answers(batch);
    assert!(world.collector_runs(collector));
    assert_eq!(world.timer(0), Some(ms(9)));
    world.quiet();
}

#[test]
fn a_batch_goes_before_the_first_deadline_of_all_who_wait() {
    let mut world = world(|rules| {
        rules.max_delay = FAR;
        rules.margin = ms(5);
    });
    world.comes(0, 1, Some(ms(100)));
    assert_eq!(world.timer(0), Some(ms(95)));
    let collector = world.collector(0);
    world.comes(0, 1, Some(ms(200)));
    assert!(!world.collector_runs(collector));
    world.comes(0, 1, Some(ms(50)));
    assert!(world.collector_runs(collector));
    assert_eq!(world.timer(0), Some(ms(45)));
    world.pass(ms(45));
    assert_eq!(world.sends(0).flush, Flush::Deadline);
    world.quiet();
}

#[test]
fn the_deadline_of_a_twin_counts() {
    let mut world = world(|rules| rules.max_delay = FAR);
    world.twin(0, 0);
    assert_eq!(world.timer(0), Some(FAR));
    let collector = world.collector(0);
    let soon = world.model.now + ms(3);
    world.push(0, 1, Some(soon), Some(0)).expect("accepted");
    assert!(world.collector_runs(collector));
    assert_eq!(world.timer(0), Some(ms(3)));
    world.quiet();
}

#[test]
fn the_deadline_of_one_that_was_sent_does_not_count() {
    let mut world = world(|rules| {
        rules.max_delay = FAR;
        rules.max_in_flight_per_shard = 2;
    });
    world.comes(0, 1, Some(ms(10)));
    world.flush();
    world.sends(0);
    world.item(0);
    assert_eq!(world.timer(0), Some(FAR));
    world.quiet();
}

#[test]
fn the_deadline_of_one_who_has_left_does_not_count() {
    let mut world = world(|rules| {
        rules.max_delay = FAR;
        rules.margin = ms(5);
    });
    let hasty = world.comes(0, 1, Some(ms(10)));
    world.item(0);
    world.leave(hasty);
    world.pass(ms(6));
    // Neither when another comes nor when its collector does.
    world.item(0);
    assert_eq!(world.state(0), State::Open);
    assert_eq!(world.timer(0), Some(FAR - ms(6)));
    world.quiet();
}

#[test]
fn a_deadline_long_past_or_a_margin_beyond_all_time_is_due_at_once() {
    let mut world = world(|rules| {
        rules.max_delay = Duration::MAX;
        rules.margin = Duration::MAX;
    });
    world.item(0);
    assert_eq!(world.timer(0), None);
    world.comes(0, 1, Some(FAR));
    assert_eq!(world.sends(0).flush, Flush::Deadline);
    world.quiet();
}

#[test]
fn whoever_is_late_is_answered_and_not_sent() {
    let mut world = world(|_| {});
    let late = world.comes(0, 1, Some(ms(5)));
    let other = world.item(0);
    let later = world.comes(0, 1, Some(ms(6)));
    world.pass(ms(5));
    world.sends_these(0, &[other, later]);
    assert!(world.caller_runs(late));
    assert_eq!(world.ask(late), Heard::Has(Told::Expired));
    world.quiet();
}

#[test]
fn a_shard_of_which_all_are_late_sends_nothing_and_keeps_no_slot() {
    let mut world = world(|rules| rules.max_in_flight = 1);
    world.comes(0, 1, Some(ms(5)));
    world.item(1);
    let collector = world.collector(0);
    world.poll(collector);
    assert!(matches!(world.state(1), State::Due(_)));
    world.pass(ms(5));
    assert_eq!(world.take(collector), None);
    world.sends(1);
    world.quiet();
}

#[test]
fn a_flush_sends_what_waits_and_nothing_that_comes_after() {
    let mut world = world(|rules| {
        rules.max_delay = FAR;
        rules.max_items = 2;
        rules.max_in_flight_per_shard = 3;
    });
    let first = world.item(0);
    world.flush();
    let second = world.item(0);
    // It joins what is about to go.
    world.sends_these(0, &[first, second]);
    let third = world.item(0);
    assert_eq!(world.state(0), State::Open);
    world.flush();
    assert_eq!(world.sends_these(0, &[third]).flush, Flush::Asked);
    world.quiet();
}

#[test]
fn a_flush_sends_all_that_waits_in_a_shard_that_is_blocked() {
    let mut world = world(|rules| {
        rules.max_delay = FAR;
        rules.max_items = 2;
    });
    let callers = [0; 5].map(|key| world.item(key));
    let mut batch = world.sends_these(0, &callers[..2]).batch;
    world.flush();
    let after = world.item(0);
    for callers in [&callers[2..4], &[callers[4], after]] {
        world.answers(batch);
        batch = world.sends_these(0, callers).batch;
    }
    world.item(0);
    world.answers(batch);
    assert_eq!(world.state(0), State::Open);
    world.quiet();
}

#[test]
fn when_as_many_wait_as_may_all_are_due_until_there_is_room() {
    let mut world = world(|rules| {
        rules.max_delay = FAR;
        rules.queue_items = 3;
    });
    for key in 0..2 {
        world.item(key);
        assert_eq!(world.state(key), State::Open);
    }
    world.item(2);
    world.item(3);
    for key in 0..4 {
        assert_eq!(world.state(key), State::Granted(Flush::Memory));
    }
    world.sends(0);
    world.sends(1);
    world.item(4);
    assert_eq!(world.state(4), State::Granted(Flush::Memory));
    world.sends(2);
    world.item(5);
    assert_eq!(world.state(5), State::Granted(Flush::Memory));
    world.sends(3);
    world.sends(4);
    world.item(6);
    assert_eq!(world.state(6), State::Open);
    world.quiet();
}

#[test]
fn a_layer_that_closes_sends_what_it_has_and_takes_no_more() {
    let mut world = world(|rules| rules.max_delay = FAR);
    world.item(0);
    let caller = world.item(1);
    world.close();
    assert_eq!(world.push(0, 1, None, None), Err(Refused::Closed));
    world.drain();
    assert!(!world.drain_runs());
    let batch = world.sends(0);
    assert_eq!(batch.flush, Flush::Drain);
    world.leave(caller);
    assert!(!world.drain_runs());
    world.answers(batch.batch);
    assert!(world.drain_runs());
    world.quiet();
}

#[test]
fn reasons_have_an_order() {
    // All at once; each is taken away in turn.
    let mut rules = rules();
    rules.max_delay = ms(1);
    rules.max_items = 2;
    rules.queue_items = 2;
    let now = clock::now() + FAR;
    let mut board = Board::<world::Toy>::new(rules);
    for (weight, ago) in [(1, ms(2)), (1, ms(0))] {
        world::put(&mut board, weight, now - ago, now);
    }
    let why = |board: &Board<world::Toy>, urge| {
        let shard = board.shards.peek(0);
        shard.due(&board.rules, urge, &board.items, now)
    };
    let mut urge = Urge {
        closed: true,
        asked: 2,
        pressed: true,
    };
    assert_eq!(why(&board, urge), Some(Flush::Full));
    board.rules.max_items = 3;
    assert_eq!(why(&board, urge), Some(Flush::Drain));
    urge.closed = false;
    assert_eq!(why(&board, urge), Some(Flush::Asked));
    urge.asked = 1;
    assert_eq!(why(&board, urge), Some(Flush::Deadline));
    board.shards.at(0).earliest = None;
    assert_eq!(why(&board, urge), Some(Flush::Delay));
    board.rules.max_delay = ms(3);
    assert_eq!(why(&board, urge), Some(Flush::Memory));
    urge.pressed = false;
    assert_eq!(why(&board, urge), None);
}

#[test]
fn nobody_is_told_that_nothing_is_under_way_while_an_item_waits() {
    let mut world = world(|rules| {
        rules.max_delay = FAR;
        rules.queue_items = 2;
    });
    let callers = [world.item(0), world.item(1)];
    assert_eq!(world.state(0), State::Granted(Flush::Memory));
    let visitor = world.queues();
    world.drain();
    let batches = [world.sends(0).batch, world.sends(1).batch];
    // There is room, and it comes in; what it brings is not due.
    assert!(world.enter(visitor));
    world.item(2);
    for batch in batches {
        world.answers(batch);
        assert!(!world.drain_runs());
    }
    for caller in callers {
        assert!(matches!(world.ask(caller), Heard::Has(Told::Answer(_))));
    }
    world.quiet();
}

#[test]
fn where_nothing_tells_the_time_whoever_waits_looks() {
    let mut world = world(|rules| rules.max_delay = ms(10));
    let caller = world.item(0);
    world.pass(ms(9));
    world.look(caller);
    assert_eq!(world.state(0), State::Open);
    world.pass(ms(1));
    world.look(caller);
    assert_eq!(world.state(0), State::Granted(Flush::Delay));
    world.sends(0);
    world.look(caller);
    world.quiet();
}

// ===== Knobs =====

#[test]
fn a_delay_that_is_made_shorter_or_longer_holds_for_what_waits() {
    let mut world = world(|rules| rules.max_delay = ms(10));
    world.item(0);
    assert_eq!(world.timer(0), Some(ms(10)));
    let collector = world.collector(0);
    world.set_rules(|rules| rules.max_delay = ms(20));
    assert_eq!(world.timer(0), Some(ms(20)));
    world.set_rules(|rules| rules.max_delay = ms(5));
    assert!(world.collector_runs(collector));
    assert_eq!(world.timer(0), Some(ms(5)));
    world.pass(ms(2));
    world.set_rules(|rules| rules.max_delay = ms(2));
    assert_eq!(world.sends(0).flush, Flush::Delay);
    world.item(1);
    world.set_rules(|rules| rules.max_delay = Duration::ZERO);
    assert_eq!(world.sends(1).flush, Flush::Idle);
    world.quiet();
}

#[test]
fn a_batch_that_may_be_smaller_or_larger_is_so_from_now_on() {
    let mut world = world(|rules| {
        rules.max_delay = FAR;
        rules.max_in_flight_per_shard = 3;
    });
    let callers = [0; 4].map(|key| world.item(key));
    world.set_rules(|rules| rules.max_items = 2);
    assert_eq!(world.state(0), State::Granted(Flush::Full));
    world.set_rules(|rules| rules.max_items = 3);
    let went = world.sends_these(0, &callers[..3]);
    assert_eq!(went.flush, Flush::Full);
    assert_eq!(world.state(0), State::Open);
    world.quiet();
}

#[test]
fn a_queue_that_becomes_longer_lets_those_in_line_in() {
    let mut world = world(|rules| {
        rules.max_delay = FAR;
        rules.queue_items = 1;
    });
    world.item(0);
    let visitors = [(); 3].map(|()| world.queues());
    world.set_rules(|rules| rules.queue_items = 3);
    assert_eq!(
        visitors.map(|visitor| world.visitor_runs(visitor)),
        [true, true, false]
    );
    world.quiet();
}

// ===== Slots =====

#[test]
fn slots_go_round_between_shards_that_are_due() {
    let mut world = world(|rules| {
        rules.max_in_flight = 1;
        rules.max_items = 1;
    });
    for key in [0, 0, 0, 1, 2, 1] {
        world.item(key);
    }
    for key in [0, 1, 2, 0, 1, 0] {
        let batch = world.sends(key).batch;
        world.answers(batch);
    }
    world.quiet();
}

#[test]
fn a_shard_has_no_more_in_flight_than_it_may() {
    let mut world = world(|rules| {
        rules.max_items = 1;
        rules.max_in_flight_per_shard = 2;
    });
    let callers = [0; 4].map(|key| world.item(key));
    let first = world.sends_these(0, &callers[..1]).batch;
    let second = world.sends_these(0, &callers[1..2]).batch;
    assert_eq!(world.state(0), State::Blocked);
    world.item(1);
    world.sends(1);
    world.answers(second);
    world.sends_these(0, &callers[2..3]);
    assert_eq!(world.state(0), State::Blocked);
    world.answers(first);
    world.sends_these(0, &callers[3..]);
    world.quiet();
}

#[test]
fn a_collector_is_not_woken_for_what_it_has_just_heard() {
    let mut world = world(|rules| rules.max_delay = ms(10));
    world.item(0);
    let collector = world.collector(0);
    assert_eq!(world.timer(0), Some(ms(10)));
    world.pass(ms(10));
    // Its service is not ready, however often it is polled: then nothing but the service wakes it.
    for _ in 0..3 {
        assert_eq!(world.poll(collector), Next::Take(Flush::Delay));
        assert_eq!(world.wakes(collector), 0);
        world.hold(collector);
        assert_eq!(world.wakes(collector), 0);
    }
    world.sends(0);
    world.quiet();
}

#[test]
fn a_shard_whose_service_is_not_ready_keeps_no_slot() {
    let mut world = world(|rules| rules.max_in_flight = 1);
    let caller = world.item(0);
    world.item(1);
    let collector = world.collector(0);
    world.poll(collector);
    world.hold(collector);
    assert_eq!(world.state(1), State::Granted(Flush::Idle));
    // It is ready now, and has its turn after those who were due meanwhile.
    world.item(2);
    assert_eq!(world.poll(collector), Next::Wait(None));
    let batch = world.sends(1).batch;
    world.answers(batch);
    let batch = world.sends(2).batch;
    world.answers(batch);
    assert!(world.collector_runs(collector));
    world.sends_these(0, &[caller]);
    world.quiet();
}

#[test]
fn when_the_last_item_leaves_its_slot_is_free_and_its_collector_goes() {
    let mut world = world(|rules| rules.max_in_flight = 1);
    let caller = world.item(0);
    let collector = world.collector(0);
    assert_eq!(world.polls(0), Next::Take(Flush::Idle));
    world.item(1);
    assert!(matches!(world.state(1), State::Due(_)));
    world.leave(caller);
    // It waits for its service to be ready, and hears of it by itself.
    assert!(world.collector_runs(collector));
    assert_eq!(world.state(1), State::Granted(Flush::Idle));
    // A shard that is there again has nothing to do with it.
    world.item(0);
    assert_eq!(world.poll(collector), Next::Leave);
    assert_eq!(world.board.shards.len(), 2);
    world.quiet();
}

#[test]
fn a_claim_on_a_shard_that_is_no_more_is_nobodys() {
    let mut world = world(|rules| rules.max_in_flight = 2);
    let caller = world.item(0);
    let collector = world.collector(0);
    assert_eq!(world.polls(0), Next::Take(Flush::Idle));
    world.leave(caller);
    // Another shard has its place.
    world.item(1);
    assert_eq!(world.take(collector), None);
    world.sends(1);
    world.quiet();
}

// ===== Twins =====

#[test]
fn those_who_want_the_same_are_sent_once_and_each_is_answered() {
    let mut world = world(|rules| rules.max_delay = FAR);
    let callers = [world.twin(0, 0), world.twin(0, 1), world.twin(0, 0)];
    world.flush();
    let batch = world.sends_these(0, &callers[..2]).batch;
    world.answers(batch);
    let heard: BTreeSet<_> = callers
        .into_iter()
        .map(|caller| match world.ask(caller) {
            Heard::Has(Told::Answer(number)) => number,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(heard.len(), 3);
    world.quiet();
}

#[test]
fn the_same_in_another_shard_or_another_batch_is_another() {
    let mut world = world(|rules| rules.max_in_flight_per_shard = 2);
    let first = world.twin(0, 0);
    let other = world.twin(1, 0);
    world.sends_these(0, &[first]);
    let later = world.twin(0, 0);
    world.sends_these(0, &[later]);
    world.sends_these(1, &[other]);
    world.quiet();
}

#[test]
fn whoever_leaves_takes_nothing_from_those_who_want_the_same() {
    let mut world = world(|rules| rules.max_delay = ms(10));
    let first = world.twin(0, 0);
    world.pass(ms(4));
    let second = world.item(0);
    let twins = [world.twin(0, 0), world.twin(0, 0)];
    world.leave(twins[0]);
    world.leave(first);
    // The turn of the first is that of its request, and so is the delay.
    assert_eq!(world.timer(0), Some(ms(6)));
    world.pass(ms(6));
    let batch = world.sends_these(0, &[first, second]).batch;
    world.answers(batch);
    assert!(matches!(world.ask(twins[1]), Heard::Has(Told::Answer(_))));
    world.quiet();
}

#[test]
fn what_was_asked_for_is_so_when_whoever_brought_it_has_left() {
    let mut world = world(|rules| rules.max_delay = FAR);
    let batch = {
        world.item(0);
        world.flush();
        world.sends(0).batch
    };
    let first = world.twin(0, 0);
    world.item(0);
    world.flush();
    world.twin(0, 0);
    world.leave(first);
    world.answers(batch);
    assert_eq!(world.sends(0).flush, Flush::Asked);
    world.quiet();
}

#[test]
fn a_request_for_which_nobody_waits_is_gone_with_its_weight() {
    let mut world = world(|rules| rules.max_delay = FAR);
    let callers = [world.twin(0, 0), world.twin(0, 0), world.twin(0, 0)];
    world.item(0);
    for caller in callers {
        assert_eq!(world.board.waiting_weight, 2);
        world.leave(caller);
    }
    assert_eq!(world.board.waiting_weight, 1);
    assert_eq!(world.board.items.len(), 1);
    world.twin(0, 0);
    assert_eq!(world.board.waiting_weight, 2);
    world.quiet();
}

#[test]
fn a_request_is_sent_for_those_who_are_not_late() {
    for late in 0..3 {
        let mut world = world(|_| {});
        let batch = world.busy(0);
        let callers = [0, 1, 2].map(|n| {
            let deadline = (n == late).then(|| world.model.now + ms(5));
            let (caller, _) = world.push(0, 1, deadline, Some(0)).expect("accepted");
            caller
        });
        world.pass(ms(5));
        world.answers(batch);
        let batch = world.sends_these(0, &callers[..1]).batch;
        world.answers(batch);
        for (n, caller) in callers.into_iter().enumerate() {
            let heard = world.ask(caller);
            assert_eq!(heard == Heard::Has(Told::Expired), n == late);
        }
        world.quiet();
    }
}

#[test]
fn a_late_request_in_nobodys_way_waits_for_its_turn() {
    let mut world = world(|rules| {
        rules.max_items = 1;
        rules.max_in_flight_per_shard = 2;
    });
    let first = world.item(0);
    let soon = world.model.now + ms(5);
    let (second, _) = world.push(0, 1, Some(soon), Some(0)).expect("accepted");
    let third = world.twin(0, 0);
    world.pass(ms(5));
    world.sends_these(0, &[first]);
    world.sends_these(0, &[second]);
    assert_eq!(world.ask(second), Heard::Has(Told::Expired));
    assert_eq!(world.ask(third), Heard::Waits);
    world.quiet();
}

// ===== Callers that leave =====

#[test]
fn whoever_leaves_before_it_is_sent_takes_its_weight_along() {
    let mut world = world(|rules| {
        rules.max_weight = Some(10);
        rules.max_delay = FAR;
    });
    let heavy = world.comes(0, 9, None);
    let light = world.comes(0, 1, None);
    let went = world.polls(0);
    assert_eq!(went, Next::Take(Flush::Full));
    world.leave(heavy);
    let other = world.comes(0, 8, None);
    world.sends_these(0, &[light, other]);
    world.quiet();
}

#[test]
fn a_batch_goes_on_without_one_who_leaves() {
    let mut world = world(|_| {});
    let callers = [world.item(0), world.item(0)];
    let batch = world.sends(0).batch;
    world.leave(callers[0]);
    world.answers(batch);
    assert!(matches!(world.ask(callers[1]), Heard::Has(Told::Answer(_))));
    assert_eq!(world.board.books.cancelled, 1);
    world.quiet();
}

#[test]
fn it_is_known_whether_anybody_still_waits_for_a_batch() {
    let mut board = Board::<world::Toy>::new(rules());
    let now = clock::now();
    let tickets = [0, 1].map(|key| world::put_as(&mut board, key, now));
    let seats = tickets.map(|ticket| Sent {
        ticket,
        position: 0,
        at: now,
    });
    assert!(board.is_any_there(&seats));
    board.leave(tickets[0], false, &mut Debris::default());
    assert!(board.is_any_there(&seats));
    board.leave(tickets[1], false, &mut Debris::default());
    assert!(!board.is_any_there(&seats));
}

#[test]
fn one_that_comes_too_late_is_accepted_and_expired() {
    let mut board = Board::<world::Toy>::new(rules());
    board.expire_at_once();
    let tally = board.tally();
    assert_eq!((tally.books.accepted, tally.books.expired), (1, 1));
    assert_eq!((tally.waiting, tally.shards), (0, 0));
}

#[test]
fn a_place_that_is_taken_again_has_no_answer_of_one_who_left() {
    let mut world = world(|_| {});
    let gone = world.item(0);
    let batch = world.sends(0).batch;
    world.leave(gone);
    let newcomer = world.item(0);
    world.answers(batch);
    assert!(!world.caller_runs(newcomer));
    world.quiet();
}

#[test]
fn when_all_leave_nothing_stays() {
    let mut world = world(|_| {});
    let batch = world.busy(0);
    let callers: Vec<_> = (0..300).map(|n| world.item(n % 2)).collect();
    world.sends(1);
    for caller in callers {
        world.leave(caller);
    }
    assert_eq!(world.board.waiting, 0);
    world.answers(batch);
    assert_eq!(world.board.shards.len(), 1);
    world.quiet();
}

// ===== Collectors that are dropped =====

#[test]
fn what_waits_for_a_collector_that_never_ran_is_given_up() {
    let mut world = world(|rules| rules.max_in_flight = 1);
    let callers = [world.item(0), world.twin(0, 0), world.twin(0, 0)];
    world.item(1);
    assert!(matches!(world.state(1), State::Due(_)));
    world.abandon(world.collector(0), true);
    for caller in callers {
        assert_eq!(world.ask(caller), Heard::Has(Told::Abandoned));
    }
    world.sends(1);
    world.quiet();
}

#[test]
fn a_drain_is_woken_when_what_was_not_due_yet_is_given_up() {
    let mut world = world(|rules| rules.max_delay = FAR);
    let caller = world.item(0);
    world.drain();
    world.abandon(world.collector(0), true);
    assert!(world.drain_runs());
    assert_eq!(world.ask(caller), Heard::Has(Told::Abandoned));
    world.quiet();
}

#[test]
fn what_waits_for_a_collector_that_ran_is_collected_by_whoever_asks_first() {
    let mut world = world(|rules| rules.max_in_flight = 1);
    let callers = [world.twin(0, 0), world.item(0), world.twin(0, 0)];
    world.item(1);
    world.polls(0);
    world.abandon(world.collector(0), true);
    // The slot is not kept for it.
    assert_eq!(world.state(1), State::Granted(Flush::Idle));
    for caller in callers {
        assert!(world.caller_runs(caller));
    }
    assert!(matches!(world.ask(callers[2]), Heard::Begins(_)));
    assert_eq!(world.ask(callers[0]), Heard::Waits);
    let batch = world.sends(1).batch;
    world.answers(batch);
    world.sends_these(0, &callers[..2]);
    world.quiet();
}

#[test]
fn whoever_comes_collects_what_a_collector_left() {
    let mut world = world(|_| {});
    let first = world.item(0);
    world.polls(0);
    world.abandon(world.collector(0), true);
    let (second, collector) = world.push(0, 1, None, None).expect("accepted");
    assert!(collector.is_some());
    assert_eq!(world.ask(first), Heard::Waits);
    world.sends_these(0, &[first, second]);
    world.quiet();
}

#[test]
fn what_a_collector_left_goes_with_the_last_who_leaves() {
    let mut world = world(|_| {});
    let callers = [world.twin(0, 0), world.twin(0, 0)];
    world.polls(0);
    world.abandon(world.collector(0), true);
    world.close();
    world.drain();
    for caller in callers {
        world.leave(caller);
    }
    assert!(world.drain_runs());
    assert_eq!(world.board.shards.len(), 0);
    world.quiet();
}

#[test]
fn a_claim_that_is_no_more_gives_nothing_up() {
    let mut world = world(|_| {});
    let batch = world.busy(0);
    let stale = Claim {
        shard: 0,
        collector: 1,
    };
    world.item(0);
    let mut debris = Debris::default();
    world.board.abandon(stale, false, None, &mut debris);
    world.board.abandon(stale, true, None, &mut debris);
    world.answers(batch);
    world.sends(0);
    world.quiet();
}

// ===== The gate =====

#[test]
fn the_gate_is_shut_when_as_many_wait_as_may_and_holds_twice_as_many() {
    let mut world = world(|rules| rules.queue_items = 2);
    world.busy(0);
    for n in 0..4 {
        let visitor = world.visit();
        assert_eq!(world.enter(visitor), n < 2);
        world.item(0);
    }
    let refused = world.push(0, 1, None, None);
    let (waiting, weight) = (4, 4);
    assert_eq!(refused, Err(Refused::Full { waiting, weight }));
    world.quiet();
}

#[test]
fn the_gate_is_shut_when_what_waits_is_as_heavy_as_may_be() {
    let mut world = world(|rules| rules.queue_weight = Some(10));
    world.busy(0);
    let light = world.comes(0, 9, None);
    let visitor = world.visit();
    assert!(world.enter(visitor));
    world.comes(0, 11, None);
    let visitor = world.queues();
    assert!(matches!(
        world.push(0, 1, None, None),
        Err(Refused::Full { .. })
    ));
    world.leave(light);
    assert!(!world.visitor_runs(visitor));
    world.quiet();
}

#[test]
fn those_in_line_come_in_one_for_each_who_leaves_in_their_order() {
    let mut world = world(|rules| {
        rules.queue_items = 3;
        rules.max_items = 2;
    });
    let batch = world.busy(0);
    let callers = [0; 3].map(|key| world.item(key));
    let visitors = [(); 4].map(|()| world.queues());
    let runs = |world: &World| visitors.map(|visitor| world.visitor_runs(visitor));
    world.leave(callers[0]);
    assert_eq!(runs(&world), [true, false, false, false]);
    world.answers(batch);
    world.sends(0);
    assert_eq!(runs(&world), [true, true, true, false]);
    world.quiet();
}

#[test]
fn whoever_is_woken_in_vain_is_first_again() {
    let mut world = world(|rules| rules.queue_items = 1);
    world.busy(0);
    let caller = world.item(0);
    let visitors = [world.queues(), world.queues()];
    world.leave(caller);
    let caller = world.item(0);
    assert!(!world.enter(visitors[0]));
    world.leave(caller);
    assert!(world.visitor_runs(visitors[0]));
    assert!(!world.visitor_runs(visitors[1]));
    world.quiet();
}

#[test]
fn those_who_are_woken_in_vain_keep_their_order() {
    let mut world = world(|rules| rules.queue_items = 1);
    world.item(0);
    let visitors = [(); 4].map(|()| world.queues());
    let batch = world.sends(0).batch;
    // Nothing is under way: all are woken, and there is room for one.
    world.answers(batch);
    assert!(world.enter(visitors[0]));
    world.busy(1);
    let mut caller = world.item(0);
    for late in [2, 1, 3] {
        assert!(!world.enter(visitors[late]));
    }
    for visitor in &visitors[1..] {
        world.leave(caller);
        assert!(world.enter(*visitor));
        caller = world.item(0);
    }
    world.quiet();
}

#[test]
fn whoever_goes_away_wakes_the_next_if_there_is_room() {
    let mut world = world(|rules| rules.queue_items = 1);
    world.busy(0);
    let caller = world.item(0);
    let visitors = [world.queues(), world.queues(), world.queues()];
    world.leave(caller);
    world.leave_line(visitors[0]);
    assert!(world.visitor_runs(visitors[1]));
    world.item(0);
    world.leave_line(visitors[1]);
    assert!(!world.visitor_runs(visitors[2]));
    world.quiet();
}

#[test]
fn one_place_lets_one_in_and_two_places_two() {
    let mut world = world(|rules| rules.queue_items = 2);
    world.busy(0);
    let callers = [world.item(0), world.item(0)];
    let visitors = [world.queues(), world.queues(), world.queues()];
    world.leave(callers[0]);
    assert!(world.enter(visitors[0]));
    assert!(!world.visitor_runs(visitors[1]), "there is no room for it");
    world.leave(callers[1]);
    assert!(world.enter(visitors[1]));
    assert!(
        world.visitor_runs(visitors[2]),
        "nobody has taken the first"
    );
    world.quiet();
}

#[test]
fn whoever_comes_while_others_are_in_line_is_behind_them() {
    let mut world = world(|rules| rules.queue_items = 1);
    world.busy(0);
    let caller = world.item(0);
    let first = world.queues();
    world.queues();
    world.leave(caller);
    let late = world.visit();
    assert!(!world.enter(late));
    assert!(world.enter(first));
    world.quiet();
}

#[test]
fn whoever_is_woken_and_never_comes_holds_up_nobody_for_good() {
    let mut world = world(|rules| rules.queue_items = 1);
    let batch = world.busy(0);
    let caller = world.item(0);
    let visitors = [world.queues(), world.queues(), world.queues()];
    world.leave(caller);
    assert!(world.visitor_runs(visitors[0]) && !world.visitor_runs(visitors[1]));
    world.answers(batch);
    assert!(visitors.iter().all(|visitor| world.visitor_runs(*visitor)));
    world.quiet();
}

#[test]
fn a_gate_that_closes_lets_all_in_to_hear_of_it() {
    let mut world = world(|rules| rules.queue_items = 1);
    world.busy(0);
    world.item(0);
    let visitors = [world.queues(), world.queues(), world.queues()];
    world.close();
    for visitor in visitors {
        assert!(world.visitor_runs(visitor));
        assert!(world.enter(visitor));
    }
    world.quiet();
}

#[test]
fn those_who_are_woken_to_drive_keep_their_places_in_line() {
    let mut world = world(|rules| rules.queue_items = 1);
    world.busy(0);
    let caller = world.item(0);
    let visitors = [world.queues(), world.queues(), world.queues()];
    world.wake_all();
    for visitor in visitors {
        assert!(!world.enter(visitor));
    }
    world.leave(caller);
    assert!(world.visitor_runs(visitors[0]));
    assert!(!world.visitor_runs(visitors[2]));
    world.quiet();
}

// ===== Room =====

#[test]
fn places_are_given_back_when_many_have_left() {
    let mut board = Board::<world::Toy>::new(Rules {
        max_delay: FAR,
        queue_items: usize::MAX,
        ..rules()
    });
    let now = clock::now();
    let mut tickets = Vec::new();
    for key in 0..5_000 {
        tickets.push(world::put_as(&mut board, key, now));
    }
    let waker = Waker::noop();
    let mut seats: Vec<_> = tickets.iter().map(|_| None).collect();
    board.rules.queue_items = 1;
    for seat in &mut seats {
        assert!(!board.enter(seat, waker, &mut Debris::default()));
    }
    assert_eq!(board.tally().shards, 5_000);
    for ticket in tickets {
        board.leave(ticket, false, &mut Debris::default());
    }
    for seat in seats.into_iter().flatten() {
        board.leave_line(seat, &mut Debris::default());
    }
    let Shards { places, free } = &board.shards;
    assert_eq!((places.capacity(), free.capacity()), (0, 0));
    assert_eq!((board.keys.capacity(), board.sames.capacity()), (0, 0));
    assert_eq!(board.items.room(), 0);
    assert!(board.line.is_empty());
}
