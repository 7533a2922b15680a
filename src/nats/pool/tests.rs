//! The state machine against a model: any events in any order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::core::{Asked, Core, Limits, LineState};
use crate::base::clock::{self, Instant};

fn limits() -> Limits {
    Limits {
        connections: 3,
        in_flight: 4,
        scale_at: 2,
        waiting: 5,
        backoff: (Duration::from_millis(100), Duration::from_secs(1)),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ask,
    Release(usize),
    Leave(usize),
    Dialled(usize),
    DialFails(usize),
    See(usize, bool),
    Gone(usize),
    Warm(usize),
    Wait(u64),
    Limit(usize),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let nth = 0..16usize;
    prop_oneof![
        8 => Just(Step::Ask),
        5 => nth.clone().prop_map(Step::Release),
        1 => nth.clone().prop_map(Step::Leave),
        3 => nth.clone().prop_map(Step::Dialled),
        1 => nth.clone().prop_map(Step::DialFails),
        2 => (nth.clone(), any::<bool>()).prop_map(|(line, up)| Step::See(line, up)),
        1 => nth.clone().prop_map(Step::Gone),
        1 => (0..5usize).prop_map(Step::Warm),
        2 => (0..2_000u64).prop_map(Step::Wait),
        1 => (1..5usize).prop_map(Step::Limit),
        1 => Just(Step::Close),
    ]
}

/// What must be true, told in the simplest way.
struct Model {
    limit: usize,
    /// Lines that are one too many.
    retiring: BTreeSet<u64>,
    lines: BTreeMap<u64, (LineStateModel, usize)>,
    held: Vec<u64>,
    queue: VecDeque<u64>,
    closed: bool,
    /// Until when no dial begins, and how many failed in a row.
    failed: Option<(Instant, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum LineStateModel {
    Dialling,
    Up,
    Down,
}

use LineStateModel::{Dialling, Down, Up};

impl Model {
    fn new() -> Self {
        Self {
            limit: 3,
            retiring: BTreeSet::new(),
            lines: BTreeMap::new(),
            held: Vec::new(),
            queue: VecDeque::new(),
            closed: false,
            failed: None,
        }
    }

    fn least(&self) -> Option<usize> {
        let stay = self
            .lines
            .iter()
            .filter(|(id, _)| !self.retiring.contains(id));
        let up = stay.filter(|(_, (state, _))| *state == Up);
        up.map(|(_, (_, load))| *load)
            .filter(|load| *load < 4)
            .min()
    }

    fn take(&mut self, id: u64) {
        let least = self.least().expect("one has room");
        let (state, load) = self.lines.get_mut(&id).expect("it is there");
        assert_eq!((*state, *load), (Up, least), "the least loaded that is up");
        assert!(!self.retiring.contains(&id), "and stays");
        *load += 1;
        self.held.push(id);
    }

    fn nth(&self, n: usize, state: impl Fn(LineStateModel) -> bool) -> Option<u64> {
        let fit = self.lines.iter().filter(|(_, (is, _))| state(*is));
        let fit: Vec<_> = fit.map(|(id, _)| *id).collect();
        fit.get(n % fit.len().max(1)).copied()
    }

    /// What the shell does after each event.
    fn settle(&mut self, core: &mut Core, now: Instant) {
        let retiring = |core: &Core| {
            let lines = core.lines().filter(|line| line.retires);
            lines.map(|line| line.id).collect::<BTreeSet<_>>()
        };
        self.retiring = retiring(core);
        while let Some(id) = core.retired() {
            let line = self.lines.remove(&id);
            assert!(matches!(line, Some((Up | Down, 0))), "{line:?}");
            assert!(self.retiring.contains(&id) && self.lines.len() >= self.limit);
        }
        self.retiring = retiring(core);
        let beyond = self.lines.len().saturating_sub(self.limit);
        assert_eq!(self.retiring.len(), beyond, "as many as are too many");
        for (id, (state, load)) in &self.lines {
            let busy = *load > 0 || *state == Dialling;
            assert!(busy || !self.retiring.contains(id), "what is idle is gone");
        }
        while let Some((ticket, id)) = core.grant() {
            assert_eq!(
                self.queue.pop_front(),
                Some(ticket),
                "first come, first served"
            );
            self.take(id);
        }
        while let Some(id) = core.dial(now) {
            assert!(!self.closed && !self.stopped(now) && self.lines.len() < self.limit);
            self.lines.insert(id, (Dialling, 0));
        }
        assert!(
            self.queue.is_empty() || self.least().is_none(),
            "nobody waits for nothing"
        );
        let hope = !self.lines.is_empty() || self.stopped(now);
        assert!(
            self.queue.is_empty() || hope,
            "something is done for those who wait"
        );
        let loads: usize = self.held.len();
        assert_eq!(
            (core.in_flight(), core.waiting()),
            (loads, self.queue.len())
        );
        let seen = core.lines().map(|line| {
            let state = match line.state {
                LineState::Dialling => Dialling,
                LineState::Up => Up,
                LineState::Down => Down,
            };
            (line.id, (state, line.in_flight))
        });
        assert_eq!(seen.collect::<BTreeMap<_, _>>(), self.lines);
        let mut stay = self
            .lines
            .iter()
            .filter(|(id, _)| !self.retiring.contains(id));
        let down = !self.lines.is_empty() && stay.all(|(_, (state, _))| *state == Down);
        assert_eq!(core.is_down(), down);
    }

    fn step(&mut self, core: &mut Core, now: &mut Instant, step: Step) {
        match step {
            Step::Ask => match core.ask(*now) {
                Asked::Granted(id) => self.take(id),
                Asked::Queued(ticket) => {
                    assert!(self.least().is_none() && self.queue.len() < 5);
                    self.queue.push_back(ticket);
                }
                Asked::Full(waiting) => assert_eq!((waiting, self.queue.len()), (5, 5)),
                Asked::BackingOff(pause) => {
                    assert_eq!(self.failed.map(|(until, _)| until - *now), Some(pause));
                    assert!(self.lines.is_empty() && !pause.is_zero());
                }
                Asked::Closed => assert!(self.closed),
            },
            Step::Release(n) if !self.held.is_empty() => {
                let id = self.held.swap_remove(n % self.held.len());
                core.release(id);
                if let Some((_, load)) = self.lines.get_mut(&id) {
                    *load -= 1;
                }
            }
            Step::Leave(n) if !self.queue.is_empty() => {
                let ticket = self
                    .queue
                    .remove(n % self.queue.len())
                    .expect("it is there");
                core.leave(ticket);
            }
            Step::Dialled(n) => {
                if let Some(id) = self.nth(n, |state| state == Dialling) {
                    assert!(core.dialled(id));
                    self.lines.insert(id, (Up, 0));
                    self.failed = None;
                }
            }
            Step::DialFails(n) => {
                if let Some(id) = self.nth(n, |state| state == Dialling) {
                    let told = core.dial_failed(*now, id);
                    self.lines.remove(&id);
                    let all: Vec<_> = match self.lines.is_empty() {
                        true => self.queue.drain(..).collect(),
                        false => Vec::new(),
                    };
                    assert_eq!(told, all);
                    let streak = self.failed.map_or(0, |(_, streak)| streak);
                    let pause =
                        Duration::from_millis(100 << streak.min(5)).min(Duration::from_secs(1));
                    self.failed = Some((*now + pause, streak + 1));
                }
            }
            Step::See(n, up) => {
                if let Some(id) = self.nth(n, |state| state != Dialling) {
                    let line = self.lines.get_mut(&id).expect("it is there");
                    let state = if up { Up } else { Down };
                    assert_eq!(core.see(id, up), line.0 != state);
                    line.0 = state;
                }
            }
            Step::Gone(n) => {
                if let Some(id) = self.nth(n, |state| state != Dialling) {
                    core.gone(id);
                    self.lines.remove(&id);
                }
            }
            Step::Warm(lines) => {
                core.warm(lines);
                self.failed = None;
            }
            Step::Limit(lines) => {
                core.limit(|limits| limits.connections = lines);
                self.limit = lines;
            }
            Step::Wait(millis) => *now += Duration::from_millis(millis),
            Step::Close => {
                assert_eq!(core.close(), self.queue.drain(..).collect::<Vec<_>>());
                self.closed = true;
            }
            Step::Release(_) | Step::Leave(_) => {}
        }
    }

    fn stopped(&self, now: Instant) -> bool {
        self.failed.is_some_and(|(until, _)| until > now)
    }
}

proptest! {
    #[test]
    fn no_limit_is_passed_nobody_is_forgotten_and_the_least_loaded_is_picked(
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let (mut core, mut model, mut now) = (Core::new(limits()), Model::new(), clock::now());
        for step in steps {
            model.step(&mut core, &mut now, step);
            model.settle(&mut core, now);
        }
    }
}

#[test]
fn equals_take_turns() {
    let mut core = Core::new(limits());
    core.warm(3);
    let ids: Vec<_> = std::iter::from_fn(|| core.dial(clock::now())).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| core.dialled(*id)));
    let mut picked = Vec::new();
    for _ in 0..6 {
        let Asked::Granted(id) = core.ask(clock::now()) else {
            panic!("there is room");
        };
        core.release(id);
        picked.push(id);
    }
    assert_eq!(picked, [ids.clone(), ids].concat());
}

#[test]
fn another_is_made_when_all_carry_enough_and_only_then() {
    let (mut core, now) = (Core::new(limits()), clock::now());
    let Asked::Queued(_) = core.ask(now) else {
        panic!("there is no connection yet");
    };
    let first = core.dial(now).unwrap();
    assert_eq!(core.dial(now), None, "one dial for one request");
    core.dialled(first);
    assert_eq!(core.dial(now), None, "it has room for the one who waits");
    assert_eq!(core.grant().map(|(_, id)| id), Some(first));
    assert_eq!((core.grant(), core.dial(now)), (None, None));
    assert_eq!(core.ask(now), Asked::Granted(first));
    let second = core.dial(now).expect("two are in flight on the one");
    assert_eq!(core.ask(now), Asked::Granted(first), "while it is dialled");
    core.dialled(second);
    assert_eq!(core.ask(now), Asked::Granted(second));
    // One that is down is passed over, and replaced only when it is gone.
    core.see(second, false);
    assert_eq!(core.ask(now), Asked::Granted(first));
    core.gone(second);
    assert_eq!(core.counts.gone, 1);
    assert!(core.dial(now).is_some());
}

#[test]
fn failed_dials_are_spaced_ever_further() {
    let (mut core, mut now) = (Core::new(limits()), clock::now());
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let Asked::Queued(ticket) = core.ask(now) else {
            panic!("it may try");
        };
        let id = core.dial(now).unwrap();
        assert_eq!(core.dial_failed(now, id), [ticket]);
        let Asked::BackingOff(pause) = core.ask(now) else {
            panic!("it has just failed");
        };
        pauses.push(pause.as_millis());
        now += pause;
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
}

#[test]
fn a_lowered_limit_retires_whoever_has_least_to_do_and_a_raised_one_keeps_them() {
    let (mut core, now) = (Core::new(limits()), clock::now());
    core.warm(3);
    let ids: Vec<_> = std::iter::from_fn(|| core.dial(now)).collect();
    for id in &ids {
        core.dialled(*id);
    }
    // One each; the first has another.
    for id in [ids[0], ids[1], ids[2], ids[0]] {
        assert_eq!(core.ask(now), Asked::Granted(id));
    }
    core.limit(|limits| limits.connections = 1);
    assert_eq!(core.retired(), None, "each carries something");
    assert_eq!(core.ask(now), Asked::Granted(ids[0]));
    core.release(ids[2]);
    assert_eq!((core.retired(), core.retired()), (Some(ids[2]), None));
    assert_eq!(core.counts.gone, 1);
    core.limit(|limits| limits.connections = 2);
    core.release(ids[1]);
    assert_eq!(core.retired(), None, "it stays after all");
    assert_eq!(core.ask(now), Asked::Granted(ids[1]));
    // One that stays is gone: the one that retires takes its place.
    core.limit(|limits| limits.connections = 1);
    core.gone(ids[0]);
    assert_eq!(
        (core.retired(), core.ask(now)),
        (None, Asked::Granted(ids[1]))
    );
}

#[test]
fn a_failed_dial_does_not_make_it_forget_how_many_are_wanted() {
    let (mut core, mut now) = (Core::new(limits()), clock::now());
    core.warm(2);
    let (first, second) = (core.dial(now).unwrap(), core.dial(now).unwrap());
    core.dialled(first);
    core.dial_failed(now, second);
    assert_eq!(core.dial(now), None, "not so soon");
    now += Duration::from_millis(100);
    assert!(core.dial(now).is_some());
}
