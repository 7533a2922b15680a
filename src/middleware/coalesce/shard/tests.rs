mod world;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Wake;

use proptest::prelude::*;

use self::world::{End, Found, Heard, Share, Step, World, ms, rules};
use super::*;

fn run(dice: [u16; 6], steps: impl IntoIterator<Item = Step>) -> World {
    let mut world = World::thrown(dice);
    for step in steps {
        world.step(step);
    }
    world
}

proptest! {
    #[test]
    fn a_shard_keeps_its_promises_whatever_happens(
        dice in any::<[u16; 6]>(),
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

#[test]
fn a_hundred_thousand_random_steps_lose_no_work_and_no_waiter() {
    let steps = std::env::var("TOWER_FLOW_SCHEDULES").ok();
    let steps: u64 = steps.map_or(100_000, |text| text.parse().expect("a number"));
    for seed in 0..steps.div_ceil(250) {
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
        assert!(outcome.is_ok(), "TOWER_FLOW seed {seed}");
    }
}

const DEFAULT: Priority = Priority::Default;

fn world(change: impl FnOnce(&mut Rules)) -> World {
    let mut rules = rules();
    change(&mut rules);
    World::new(rules)
}

impl World {
    /// A caller that leads, and drives.
    fn leads(&mut self, name: u64) -> usize {
        match self.join(name, DEFAULT) {
            Found::Leads(caller) => caller,
            other => panic!("it found {other:?}"),
        }
    }

    /// A caller that follows, and did not ask yet.
    fn follows(&mut self, name: u64) -> usize {
        match self.join(name, DEFAULT) {
            Found::Follows(caller) => caller,
            other => panic!("it found {other:?}"),
        }
    }

    /// What the caller drives has to wait.
    fn parks(&mut self, caller: usize) {
        let id = self.flight(caller);
        assert_eq!(self.end(id, End::Pending(None)), None);
        self.wake();
    }

    /// What the caller drives is done, and everybody's.
    fn lands(&mut self, caller: usize) {
        let id = self.flight(caller);
        let landing = self.end(id, End::Ready).expect("it is done");
        assert!(!landing.alone);
        self.publish(id, Share::All);
        self.wake();
    }

    /// A flight that waits, with a leader who asked last.
    fn waiting(&mut self, name: u64) -> usize {
        let leader = self.leads(name);
        self.parks(leader);
        leader
    }

    /// A caller that follows, drove once, and waits.
    fn waits_too(&mut self, name: u64) -> usize {
        let caller = self.follows(name);
        assert_eq!(self.ask(caller), Heard::Drives(false));
        self.parks(caller);
        caller
    }
}

// ===== Driving =====

#[test]
fn a_call_nobody_joins_is_its_leaders_alone() {
    let mut world = world(|_| {});
    let leader = world.waiting(0);
    assert_eq!(world.ask(leader), Heard::Drives(true));
    let id = world.flight(leader);
    assert!(world.end(id, End::Ready).expect("it is done").alone);
    assert_eq!((world.shard.live(), world.shard.waiters()), (0, 0));
}

#[test]
fn whoever_comes_drives_work_that_reaches_only_its_leader() {
    let mut world = world(|_| {});
    let leader = world.waiting(0);
    let follower = world.waits_too(0);
    assert!(!world.runs(leader) && !world.runs(follower));
    world.ring(world.flight(leader));
    world.wake();
    assert!(world.runs(leader) && world.runs(follower));
    // The leader is polled by nobody; the follower sees it through.
    assert_eq!(world.ask(follower), Heard::Drives(false));
    world.lands(follower);
    let Heard::Takes(shared) = world.ask(follower) else {
        panic!("it shares");
    };
    assert_eq!(world.ask(leader), Heard::Takes(shared));
}

#[test]
fn whoever_comes_while_the_leader_drives_makes_it_drive_once_more() {
    let mut world = world(|_| {});
    let leader = world.leads(0);
    let follower = world.follows(0);
    assert_eq!(world.ask(follower), Heard::Waits);
    world.parks(leader);
    assert!(world.runs(leader) && world.runs(follower));
    assert_eq!(world.ask(follower), Heard::Drives(false));
    assert_eq!(world.ask(leader), Heard::Waits);
    world.parks(follower);
    assert!(!world.runs(leader) && !world.runs(follower));
}

#[test]
fn work_that_rings_while_it_is_driven_is_driven_again() {
    let mut world = world(|_| {});
    let leader = world.waiting(0);
    let follower = world.follows(0);
    assert_eq!(world.ask(follower), Heard::Drives(false));
    world.ring(world.flight(follower));
    world.parks(follower);
    assert!(world.runs(leader) && world.runs(follower));
    assert_eq!(world.ask(leader), Heard::Drives(false));
}

#[test]
fn who_is_left_alone_drives_with_its_own_waker_again() {
    let mut world = world(|_| {});
    let leader = world.waiting(0);
    let follower = world.waits_too(0);
    assert_eq!(world.leave(follower), Left::Others);
    world.ring(world.flight(leader));
    world.wake();
    assert_eq!(world.ask(leader), Heard::Drives(true));
}

#[test]
fn more_waiters_than_are_woken_at_a_time_are_all_woken() {
    let mut world = world(|_| {});
    let leader = world.waiting(0);
    let crowd: Vec<_> = (0..70)
        .map(|n| match n {
            0 => world.waits_too(0),
            _ => {
                let caller = world.follows(0);
                assert_eq!(world.ask(caller), Heard::Waits);
                caller
            }
        })
        .collect();
    assert!(crowd.iter().all(|caller| !world.runs(*caller)));
    world.ring(world.flight(leader));
    world.wake();
    assert!(crowd.iter().all(|caller| world.runs(*caller)));
    world.quiet();
}

#[test]
fn seats_are_taken_again_by_those_who_come() {
    let mut world = world(|_| {});
    let leader = world.waiting(0);
    for _ in 0..100 {
        let callers = [world.waits_too(0), world.follows(0)];
        for caller in callers {
            world.leave(caller);
        }
        world.ring(world.flight(leader));
        world.wake();
        assert_eq!(world.ask(leader), Heard::Drives(true));
        world.parks(leader);
    }
    assert_eq!(
        world.shard.flights[0].places(),
        3,
        "as many as sat there at a time"
    );
}

/// A waker that panics.
struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
        std::panic::resume_unwind(Box::new("an alarm"));
    }
}

#[test]
fn a_waker_that_panics_keeps_no_other_asleep() {
    let alarm = Arc::new(Alarm(AtomicUsize::new(0)));
    let waker = alarm.clone().into();
    let mut flight = Flight::<world::Toy>::vacant();
    let mut benches = Benches::default();
    flight.begin(1, 0, DEFAULT);
    for seat in 1..4 {
        assert_eq!(flight.join(DEFAULT, &mut benches), seat);
        assert!(matches!(
            flight.ask(seat, &waker),
            Asked::Wait { stale: None }
        ));
    }
    let mut wakers = Wakers::new();
    assert_eq!(flight.wakers(0, &mut wakers), None);
    let panic = wakers.wake().expect_err("they panic");
    assert_eq!(panic.downcast_ref(), Some(&"an alarm"));
    assert_eq!(alarm.0.load(SeqCst), 3);
    assert!(wakers.wake().is_ok(), "once");
}

// ===== Ends =====

#[test]
fn a_panic_is_the_leaders_and_wakes_the_others() {
    let mut world = world(|_| {});
    let leader = world.waiting(0);
    let followers = [world.waits_too(0), world.follows(0)];
    assert_eq!(world.ask(followers[1]), Heard::Waits);
    world.ring(world.flight(leader));
    world.wake();
    assert_eq!(world.ask(followers[0]), Heard::Drives(false));
    let id = world.flight(leader);
    world.end(id, End::Failed(Failure::Panicked, true));
    world.wake();
    assert!(world.runs(leader) && world.runs(followers[1]));
    for follower in followers {
        assert_eq!(world.ask(follower), Heard::Failed(Failure::Panicked));
    }
    assert!(matches!(world.ask(leader), Heard::Own(_)));
    world.leads(0);
}

#[test]
fn what_is_for_the_leader_only_goes_to_nobody_when_it_left() {
    for stays in [false, true] {
        let mut world = world(|_| {});
        let leader = world.waiting(0);
        let follower = world.waits_too(0);
        world.ring(world.flight(leader));
        assert_eq!(world.ask(follower), Heard::Drives(false));
        let id = world.flight(leader);
        world.end(id, End::Ready);
        if !stays {
            assert_eq!(world.leave(leader), Left::HandedOver);
        }
        world.publish(id, Share::LeaderOnly);
        assert_eq!(world.ask(follower), Heard::Released);
        if stays {
            assert!(matches!(world.ask(leader), Heard::Own(_)));
        }
        assert_eq!(world.shard.live(), 0);
    }
}

#[test]
fn when_the_last_one_leaves_the_key_is_free_and_the_work_is_out() {
    let mut world = world(|_| {});
    let leader = world.waiting(0);
    assert_eq!(world.leave(leader), Left::Nobody);
    let newcomer = world.leads(0);
    assert_eq!(world.flight(newcomer), 2);
}

#[test]
fn a_flight_goes_on_without_its_leader_or_ends_with_it() {
    for (orphan, heard) in [
        (None, Heard::Drives(true)),
        (Some(Orphan::Anew), Heard::Anew),
        (Some(Orphan::Fail), Heard::Failed(Failure::Abandoned)),
    ] {
        let mut world = world(|rules| rules.orphan = orphan);
        let leader = world.waiting(0);
        let follower = world.waits_too(0);
        world.leave(leader);
        world.ring(world.flight(follower));
        world.wake();
        assert!(world.runs(follower));
        assert_eq!(world.ask(follower), heard);
    }
}

#[test]
fn nobody_joins_a_flight_that_ends_for_its_leader_left() {
    for orphan in [Orphan::Anew, Orphan::Fail] {
        let mut world = world(|rules| rules.orphan = Some(orphan));
        let leader = world.waiting(0);
        let follower = world.follows(0);
        assert_eq!(world.ask(follower), Heard::Drives(false));
        assert_eq!(world.leave(leader), Left::Orphans);
        let newcomer = world.leads(0);
        assert_ne!(world.flight(newcomer), world.flight(follower));
        world.parks(follower);
        assert!(matches!(
            world.ask(follower),
            Heard::Anew | Heard::Failed(Failure::Abandoned)
        ));
        world.parks(newcomer);
    }
}

#[test]
fn a_flight_with_a_task_goes_on_without_anybody() {
    let mut world = world(|_| {});
    world.tasks = true;
    let leader = world.leads(0);
    let id = world.flight(leader);
    world.end(id, End::Pending(None));
    assert_eq!(world.leave(leader), Left::Others);
    let late = world.follows(0);
    assert_eq!(world.ask(late), Heard::Waits);
    world.end(id, End::Ready);
    world.publish(id, Share::All);
    world.wake();
    assert!(matches!(world.ask(late), Heard::Takes(_)));
}

#[test]
fn a_bell_that_rings_late_wakes_nobody() {
    let mut world = world(|_| {});
    let leader = world.waiting(0);
    world.leave(leader);
    let stranger = world.waiting(0);
    assert_ne!(world.flight(stranger), 1);
    assert!(!world.shard.ring(0, 1), "it is somebody else's place now");
    assert!(!world.shard.ring(7, 1), "there is no such place");
    assert!(!world.runs(stranger));
}

// ===== Rules =====

#[test]
fn a_flight_that_waited_too_long_is_joined_by_nobody() {
    let mut world = world(|rules| rules.leader_age = ms(5));
    let old = world.leads(0);
    world.now += ms(100);
    let follower = world.follows(0);
    assert_eq!(world.ask(follower), Heard::Waits, "it never waited");
    world.parks(old);
    world.now += ms(5) - std::time::Duration::from_nanos(1);
    world.follows(0);
    world.now += std::time::Duration::from_nanos(1);
    let new = world.leads(0);
    let newer = world.follows(0);
    assert_eq!(world.flight(new), world.flight(newer));
    // The old one goes on for those who wait for it, and takes no entry away.
    assert_eq!(world.ask(follower), Heard::Drives(false));
    world.lands(follower);
    let newest = world.follows(0);
    assert_eq!(world.flight(newest), world.flight(new));
    world.quiet();
}

#[test]
fn who_matters_more_than_a_request_that_was_sent_sends_its_own() {
    for sent in Priority::ALL {
        for mine in Priority::ALL {
            let mut world = world(|_| {});
            let Found::Leads(leader) = world.join(0, sent) else {
                panic!("it is the first");
            };
            let id = world.flight(leader);
            world.end(id, End::Pending(Some(sent)));
            let found = world.join(0, mine);
            assert_eq!(matches!(found, Found::Leads(_)), mine > sent);
        }
    }
}

#[test]
fn a_request_that_was_not_sent_matters_as_much_as_the_greatest_of_those_who_wait() {
    let mut world = world(|_| {});
    let Found::Leads(leader) = world.join(0, Priority::BestEffort) else {
        panic!("it is the first");
    };
    world.parks(leader);
    let Found::Follows(follower) = world.join(0, Priority::Critical) else {
        panic!("it was not sent");
    };
    // That it is asked to send it as critical is checked by the books.
    assert_eq!(world.ask(follower), Heard::Drives(false));
    let id = world.flight(leader);
    world.end(id, End::Pending(Some(Priority::Critical)));
    let Found::Follows(_) = world.join(0, Priority::Critical) else {
        panic!("it was sent as that");
    };
}

#[test]
fn keys_beyond_the_bound_go_alone_and_those_in_flight_are_joined() {
    let mut world = world(|rules| {
        rules.max_keys = 3;
        rules.leader_age = ms(5);
    });
    let callers: Vec<_> = (0..3).map(|name| world.waiting(name)).collect();
    assert_eq!(world.join(3, DEFAULT), Found::Alone(Bypass::MaxKeys));
    world.follows(0);
    world.now += ms(5);
    assert_eq!(
        world.join(0, DEFAULT),
        Found::Alone(Bypass::MaxKeys),
        "a flight that takes the place of another is one more"
    );
    world.leave(callers[2]);
    world.leads(3);
}

#[test]
fn results_that_are_kept_count_as_keys() {
    let mut world = world(|rules| {
        rules.max_keys = 1;
        rules.grace = ms(5);
    });
    let leader = world.waiting(0);
    world.ask(leader);
    world.lands(leader);
    world.ask(leader);
    assert_eq!(world.join(1, DEFAULT), Found::Alone(Bypass::MaxKeys));
    world.now += ms(5);
    world.leads(1);
}

#[test]
fn waiters_beyond_the_bound_lead_another_while_there_is_room_for_a_key() {
    let mut world = world(|rules| {
        rules.max_waiters = 2;
        rules.max_keys = 2;
    });
    world.waiting(0);
    world.waits_too(0);
    let second = world.waiting(0);
    world.waits_too(0);
    assert_eq!(world.join(0, DEFAULT), Found::Alone(Bypass::MaxWaiters));
    world.leave(second);
    world.follows(0);
}

#[test]
fn a_key_that_is_remembered_goes_alone_for_a_while() {
    let mut world = world(|_| {});
    world.remember(0);
    assert_eq!(world.join(0, DEFAULT), Found::Alone(Bypass::Unshareable));
    world.now += ms(5);
    world.leads(0);
}

#[test]
fn a_result_is_kept_for_the_time_of_grace() {
    let mut world = world(|rules| rules.grace = ms(5));
    let leader = world.waiting(0);
    world.ask(leader);
    let id = world.flight(leader);
    world.end(id, End::Ready);
    // While its result is looked at it is joined still.
    let follower = world.follows(0);
    world.publish(id, Share::All);
    let Heard::Takes(shared) = world.ask(leader) else {
        panic!("it is everybody's");
    };
    assert_eq!(world.ask(follower), Heard::Takes(shared));
    world.now += ms(4);
    assert_eq!(world.join(0, DEFAULT), Found::Kept(shared));
    world.now += ms(1);
    // Another key's caller sweeps it out.
    assert_eq!(world.shard.kept(), 1);
    world.leads(1);
    assert_eq!(world.shard.kept(), 0);
    world.leads(0);
}

#[test]
fn results_for_one_and_failures_are_not_kept() {
    for share in [Share::LeaderOnly, Share::Failed] {
        let mut world = world(|rules| rules.grace = ms(5));
        let leader = world.waiting(0);
        world.ask(leader);
        let id = world.flight(leader);
        world.end(id, End::Ready);
        world.publish(id, share);
        assert_eq!(world.shard.kept(), 0);
        world.ask(leader);
        world.leads(0);
    }
}

#[test]
fn the_result_of_a_flight_that_was_replaced_is_not_kept() {
    let mut world = world(|rules| {
        rules.grace = ms(5);
        rules.leader_age = ms(5);
    });
    let old = world.waiting(0);
    world.now += ms(5);
    let new = world.leads(0);
    world.ask(old);
    world.lands(old);
    assert_eq!(world.shard.kept(), 0);
    world.ask(old);
    world.lands(new);
    assert_eq!(world.shard.kept(), 1);
}

#[test]
fn the_memory_of_a_wave_goes_with_it() {
    for grace in [0, 5] {
        let mut world = world(|rules| rules.grace = ms(grace));
        let callers: Vec<_> = (0..150).map(|name| world.waiting(name)).collect();
        for caller in callers {
            world.ask(caller);
            let id = world.flight(caller);
            if !world.end(id, End::Ready).expect("it is done").alone {
                world.publish(id, Share::All);
                world.ask(caller);
            }
        }
        world.now += ms(5);
        world.tidy();
        let shard = &world.shard;
        assert!(shard.table.capacity() < 100, "{}", shard.table.capacity());
        assert!(shard.flights.capacity() < 100);
        assert!(shard.kept.capacity() < 100, "{}", shard.kept.capacity());
    }
}
