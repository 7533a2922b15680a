use std::time::Duration;

use proptest::prelude::*;

use super::core::{Consumer, Core, LagState, Rules, Stream, Trouble};
use crate::base::clock::{self, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn rules() -> Rules {
    Rules {
        every: 5 * SECOND,
        slowest: 15 * SECOND,
        max_age: 30 * SECOND,
    }
}

fn consumer(pending: u64, deliveries: u64) -> Consumer {
    Consumer {
        pending,
        waiting: 1,
        max_ack_pending: Some(100),
        ack_wait: 30 * SECOND,
        deliveries,
        delivered: deliveries,
        takes_all: true,
        ..Consumer::default()
    }
}

fn stream(first: u64, last: u64) -> Stream {
    Stream {
        messages: (last + 1).saturating_sub(first),
        first,
        last,
    }
}

struct World {
    now: Instant,
    core: Core,
}

impl World {
    fn new() -> Self {
        Self {
            now: clock::now(),
            core: Core::new(rules()),
        }
    }

    /// Waits until a poll is due, and answers it.
    fn poll(&mut self, facts: Consumer, stream: Option<Stream>) -> Duration {
        let due = self.core.due().unwrap_or(self.now);
        let waited = due.saturating_duration_since(self.now);
        self.now += waited;
        assert!(self.core.ask(self.now, 1.0));
        self.core.polled(self.now, facts, stream);
        waited
    }

    fn state(&self) -> LagState {
        self.core.state(self.now)
    }
}

#[test]
fn it_asks_at_once_and_then_ever_less_while_nothing_changes() {
    let mut world = World::new();
    let waits: Vec<_> = (0..5)
        .map(|_| world.poll(consumer(0, 0), None).as_secs())
        .collect();
    assert_eq!(waits, [0, 5, 10, 15, 15]);
    assert_eq!(world.state(), LagState::Idle);
    // Something happened: it looks closely again.
    assert_eq!(world.poll(consumer(9, 0), None).as_secs(), 15);
    assert_eq!(world.poll(consumer(9, 3), None).as_secs(), 5);
}

#[test]
fn messages_spare_it_the_question() {
    let mut world = World::new();
    world.poll(consumer(50, 0), None);
    let began = world.now;
    for n in 0..14 {
        world.now += SECOND;
        world.core.pushed(world.now, 50 - n, n + 1);
        assert!(!world.core.ask(world.now, 1.0), "a message came just now");
        assert_eq!(world.core.value(world.now), Some((50 - n + 1) as f64));
        assert_eq!(world.core.age(world.now), Some(Duration::ZERO));
    }
    // What is unacknowledged is asked for all the same.
    assert_eq!(world.core.due(), Some(began + 15 * SECOND));
    world.now += SECOND;
    assert!(world.core.ask(world.now, 1.0));
    assert!(!world.core.ask(world.now, 1.0), "one is under way");
}

#[test]
fn a_value_is_cached_with_its_age_and_then_no_more() {
    let mut world = World::new();
    let mut facts = consumer(7, 0);
    facts.ack_pending = 3;
    world.poll(facts, None);
    let learnt = world.now;
    for _ in 0..3 {
        world.now = world.core.due().unwrap();
        assert!(world.core.ask(world.now, 1.0));
        world.core.failed(world.now, Trouble::Away);
        assert_eq!(world.state(), LagState::Away);
        assert_eq!(world.core.age(world.now), Some(world.now - learnt));
        assert_eq!(world.core.value(world.now), Some(10.0));
    }
    assert_eq!(world.now, learnt + 30 * SECOND);
    assert_eq!(world.core.value(world.now + Duration::from_nanos(1)), None);
    world.core.back();
    assert_eq!(world.poll(consumer(8, 0), None), Duration::ZERO);
    assert_eq!(world.core.value(world.now), Some(8.0));
}

#[test]
fn a_consumer_that_is_gone_is_told_and_heals() {
    let mut world = World::new();
    world.poll(consumer(7, 5), None);
    for (trouble, state) in [
        (Trouble::ConsumerMissing, LagState::ConsumerMissing),
        (Trouble::StreamMissing, LagState::StreamMissing),
    ] {
        world.now = world.core.due().unwrap();
        assert!(world.core.ask(world.now, 1.0));
        world.core.failed(world.now, trouble);
        assert_eq!(world.state(), state);
    }
    world.poll(consumer(2, 0), None);
    assert_eq!(world.state(), LagState::Flowing);
}

#[test]
fn starving_saturated_and_stuck_are_told_apart() {
    let mut world = World::new();
    let mut starving = consumer(10, 5);
    starving.waiting = 0;
    for _ in 0..4 {
        world.poll(starving, None);
        assert_eq!(world.state(), LagState::Starving);
    }
    let mut full = starving;
    full.ack_pending = 100;
    world.poll(full, None);
    assert_eq!(world.state(), LagState::Saturated);
    assert_eq!(world.core.facts().unwrap().max_ack_pending, Some(100));
    // They hold all they may and finish none, for longer than one may take.
    let since = world.now;
    while world.now < since + 50 * SECOND {
        world.poll(full, None);
        let stuck = world.now - since >= 30 * SECOND;
        let expected = [LagState::Saturated, LagState::Stuck][usize::from(stuck)];
        assert_eq!(world.state(), expected, "after {:?}", world.now - since);
    }
    let mut going = full;
    going.ack_floor += 1;
    world.poll(going, None);
    assert_eq!(world.state(), LagState::Saturated);
    // Workers ask, messages wait, and none is handed out.
    world.poll(consumer(10, 6), None);
    assert_eq!(world.state(), LagState::Flowing);
    world.poll(consumer(11, 6), None);
    assert_eq!(world.state(), LagState::Stuck);
    world.poll(consumer(10, 7), None);
    assert_eq!(world.state(), LagState::Flowing);
}

#[test]
fn what_is_handed_out_again_is_no_progress_and_one_that_is_slow_is_not_all() {
    let mut world = World::new();
    let mut full = consumer(10, 5);
    full.ack_pending = 100;
    world.poll(full, None);
    let since = world.now;
    // What nobody acknowledges in time is handed out again, and observed.
    while world.now < since + 50 * SECOND {
        full.deliveries += 100;
        world.core.pushed(world.now, 10, full.delivered);
        world.poll(full, None);
        let stuck = world.now - since >= 30 * SECOND;
        let expected = [LagState::Saturated, LagState::Stuck][usize::from(stuck)];
        assert_eq!(world.state(), expected, "after {:?}", world.now - since);
    }
    // The first is never finished, and the others are.
    let since = world.now;
    while world.now < since + 50 * SECOND {
        full.deliveries += 7;
        full.delivered += 7;
        world.poll(full, None);
        assert_eq!(world.state(), LagState::Saturated);
    }
}

#[test]
fn a_backlog_that_cannot_be_is_not_believed() {
    let mut world = World::new();
    let phantom = consumer(67_000, 50);
    world.poll(phantom, None);
    assert!(world.core.doubts(&phantom));
    world.poll(phantom, Some(stream(1, 50)));
    assert_eq!(world.core.known(), Some((0, 0)));
    assert_eq!(
        (world.state(), world.core.counts.corrected),
        (LagState::Idle, 1)
    );

    let nothing = consumer(0, 50);
    world.poll(nothing, Some(stream(1, 80)));
    assert_eq!(world.core.known().unwrap().0, 0, "it may have come since");
    world.poll(nothing, Some(stream(1, 80)));
    assert_eq!(world.core.known().unwrap().0, 30, "both looks say so");
    assert!(!world.core.doubts(&consumer(0, 51)));
    // After a purge the sequence goes on, and there is nothing.
    let purged = Stream {
        messages: 0,
        first: 81,
        last: 80,
    };
    world.poll(nothing, Some(purged));
    assert_eq!(world.core.known().unwrap().0, 0);
    // A filter may leave all of it out.
    let mut filtered = nothing;
    filtered.takes_all = false;
    world.poll(filtered, Some(stream(1, 80)));
    world.poll(filtered, Some(stream(1, 80)));
    assert_eq!(world.core.known().unwrap().0, 0);
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Push(u64, u64),
    Ask(f64),
    Answer(u64, u64, u64, u64),
    Fail(u8),
    Forget,
    Back,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..20_000u64).prop_map(Step::Wait),
        (0..500u64, 0..900u64).prop_map(|(pending, at)| Step::Push(pending, at)),
        (0.0..9.0f64).prop_map(Step::Ask),
        (0..500u64, 0..120u64, 0..3u64, 0..900u64)
            .prop_map(|(a, b, c, d)| Step::Answer(a, b, c, d)),
        (0..3u8).prop_map(Step::Fail),
        Just(Step::Forget),
        Just(Step::Back),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_it_is_asked_neither_twice_nor_too_seldom_nor_too_often(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut now = clock::now();
        let mut core = Core::new(rules());
        let (mut asking, mut learnt): (bool, Option<(Instant, u64, u64)>) = (false, None);
        for step in steps {
            match step {
                Step::Wait(millis) => now += Duration::from_millis(millis),
                Step::Push(pending, at) => {
                    let unacked = learnt.map_or(1, |(.., unacked)| unacked.max(1));
                    core.pushed(now, pending, at);
                    learnt = Some((now, pending, unacked));
                }
                Step::Ask(jitter) => {
                    let due = core.due();
                    let asked = core.ask(now, jitter);
                    prop_assert_eq!(asked, !asking && due.is_none_or(|due| due <= now));
                    asking |= asked;
                }
                Step::Answer(pending, ack_pending, waiting, deliveries) if asking => {
                    let facts = Consumer { ack_pending, waiting, ..consumer(pending, deliveries) };
                    core.polled(now, facts, None);
                    (asking, learnt) = (false, Some((now, pending, ack_pending)));
                }
                Step::Fail(which) if asking => {
                    let all = [Trouble::Away, Trouble::ConsumerMissing, Trouble::StreamMissing];
                    core.failed(now, all[which as usize]);
                    asking = false;
                }
                Step::Forget => { core.forget(); asking = false; }
                Step::Back => core.back(),
                Step::Answer(..) | Step::Fail(_) => {}
            }
            // The value is what was learnt last, for as long as it counts.
            let fresh = learnt.filter(|(at, ..)| now - *at <= 30 * SECOND);
            let value = fresh.map(|(_, pending, unacked)| (pending + unacked) as f64);
            prop_assert_eq!(core.value(now), value);
            prop_assert_eq!(core.age(now), learnt.map(|(at, ..)| now - at));
            // The next poll is never further off than the slowest pace, at its most jittered.
            if let Some(due) = core.due() {
                prop_assert!(due <= now + (15 * SECOND).mul_f64(1.5));
            }
            let _ = core.state(now);
        }
    }
}
