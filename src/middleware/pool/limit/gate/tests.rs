use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

const NOBODY: [u64; 0] = [];

fn limits(total: usize, per_host: usize) -> Limits {
    Limits {
        total,
        per_host,
        reserve: 0,
        pending_per_host: 100,
    }
}

/// What wakes is the number of the one that is woken.
fn gate(limits: Limits) -> Gate<u8, u64> {
    Gate::new(limits)
}

fn queued(arrival: Arrival) -> Ticket {
    match arrival {
        Arrival::Queued(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

fn woken(woken: Woken<u64>) -> Vec<u64> {
    woken.into_iter().collect()
}

#[test]
fn a_grant_not_taken_goes_to_the_next() {
    let mut gate = gate(limits(1, 1));
    assert_eq!(gate.arrive(&7, || 0), Arrival::Granted(0));
    let first = queued(gate.arrive(&7, || 1));
    let second = queued(gate.arrive(&7, || 2));
    assert_eq!(woken(gate.release(0, false)), [1]);
    assert_eq!(gate.leave(&first), None, "granted: the place is its own");
    assert_eq!(gate.poll(&second, &mut 2), Fate::Waits);
    assert_eq!(woken(gate.release(0, false)), [2]);
    assert_eq!(gate.poll(&second, &mut 2), Fate::Granted(0));
}

#[test]
fn one_that_leaves_gives_nothing_away() {
    let mut gate = gate(limits(1, 1));
    assert_eq!(gate.arrive(&7, || 0), Arrival::Granted(0));
    let first = queued(gate.arrive(&7, || 1));
    let _second = queued(gate.arrive(&7, || 2));
    assert_eq!(gate.leave(&first), Some(1));
    assert_eq!((gate.held(), gate.waiting()), (1, 1));
    assert_eq!(woken(gate.release(0, false)), [2]);
}

#[test]
fn hosts_that_wait_for_the_total_take_turns() {
    let mut gate = gate(limits(2, 2));
    for _ in 0..2 {
        assert_eq!(gate.arrive(&1, || 0), Arrival::Granted(0));
    }
    // The first host has all of its own, so it waits behind those that wait for the total only.
    let _: Vec<_> = (10..14).map(|n| queued(gate.arrive(&1, || n))).collect();
    let _: Vec<_> = (20..24).map(|n| queued(gate.arrive(&2, || n))).collect();
    let _: Vec<_> = (30..34).map(|n| queued(gate.arrive(&3, || n))).collect();
    let mut order = Vec::new();
    let mut holders: VecDeque<usize> = [0, 0].into();
    while let Some(host) = holders.pop_front() {
        for granted in woken(gate.release(host, false)) {
            order.push(granted);
            holders.push_back(granted as usize / 10 - 1);
        }
    }
    assert_eq!(order, [20, 30, 10, 21, 31, 11, 22, 32, 12, 23, 33, 13]);
    assert_eq!((gate.held(), gate.waiting()), (0, 0));
}

#[test]
fn what_is_reserved_is_had_beyond_the_total() {
    let mut gate = gate(Limits {
        reserve: 1,
        ..limits(2, 2)
    });
    for _ in 0..2 {
        assert_eq!(gate.arrive(&1, || 0), Arrival::Granted(0));
    }
    assert_eq!(gate.arrive(&2, || 0), Arrival::Granted(1));
    let _second = queued(gate.arrive(&2, || 20));
    assert_eq!(gate.held(), 3);
    // One place less is still the whole total.
    assert_eq!(woken(gate.release(0, false)), NOBODY);
    assert_eq!(woken(gate.release(0, false)), [20]);
}

#[test]
fn limits_that_rise_let_in_who_waits() {
    let mut gate = gate(limits(1, 1));
    assert_eq!(gate.arrive(&1, || 0), Arrival::Granted(0));
    let _: Vec<_> = (10..13).map(|n| queued(gate.arrive(&1, || n))).collect();
    let _: Vec<_> = (20..23).map(|n| queued(gate.arrive(&2, || n))).collect();
    assert_eq!(woken(gate.set_limits(limits(1, 3))), NOBODY);
    assert_eq!(woken(gate.set_limits(limits(4, 3))), [20, 10, 21]);
    assert_eq!(woken(gate.set_limits(limits(1, 1))), NOBODY);
    assert_eq!(gate.held(), 4, "nobody loses a place");
    assert_eq!(woken(gate.release(0, false)), NOBODY);
}

#[test]
fn a_closed_gate_sends_all_away() {
    let mut gate = gate(limits(1, 1));
    assert_eq!(gate.arrive(&1, || 0), Arrival::Granted(0));
    let waits = queued(gate.arrive(&1, || 1));
    assert_eq!(woken(gate.close(|wake| *wake)), [1]);
    assert_eq!(gate.poll(&waits, &mut 1), Fate::Closed);
    assert_eq!(woken(gate.release(0, false)), NOBODY);
    assert_eq!(gate.poll(&waits, &mut 1), Fate::Closed);
    assert_eq!(gate.leave(&waits), Some(1));
    assert_eq!(gate.arrive(&1, || 0), Arrival::Closed);
}

#[test]
fn hosts_nobody_uses_are_forgotten() {
    let mut gate: Gate<u32, u64> = Gate::new(limits(10, 10));
    for host in 0..1_000 {
        let Arrival::Granted(at) = gate.arrive(&host, || 0) else {
            panic!("there is room")
        };
        assert_eq!(woken(gate.release(at, false)), NOBODY);
    }
    assert_eq!(gate.hosts.len(), SPARES);
    assert!(gate.slots.len() <= SPARES + 1);
    assert!(gate.hosts.contains_key(&999) && !gate.hosts.contains_key(&0));
}

// ===== against a naive model =====

#[derive(Debug, Clone)]
enum Event {
    Arrive(u8),
    /// The n-th of those that hold or wait polls, gives up, or ends.
    Poll(usize),
    End(usize),
    Limit(usize, usize, usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0u8..4).prop_map(Event::Arrive),
        2 => any::<usize>().prop_map(Event::Poll),
        4 => any::<usize>().prop_map(Event::End),
        1 => (0usize..6, 0usize..4, 0usize..3).prop_map(|(a, b, c)| Event::Limit(a, b, c)),
    ];
    proptest::collection::vec(event, 0..200)
}

/// The same by looking at everybody each time: lists of who holds and who waits, and the order in which hosts wait.
#[derive(Debug, Default)]
struct Model {
    held: BTreeMap<u8, usize>,
    waiting: BTreeMap<u8, VecDeque<u64>>,
    turns: Vec<u8>,
}

impl Model {
    fn held(&self, host: u8) -> usize {
        self.held.get(&host).copied().unwrap_or_default()
    }

    fn total(&self) -> usize {
        self.held.values().sum()
    }

    fn queue(&mut self, host: u8) -> &mut VecDeque<u64> {
        self.waiting.entry(host).or_default()
    }

    fn fits(&self, host: u8, limits: &Limits) -> bool {
        let held = self.held(host);
        held < limits.per_host && (self.total() < limits.total || held < limits.reserve)
    }

    fn line_up(&mut self, limits: &Limits) {
        for host in 0..4 {
            let waits = !self.queue(host).is_empty() && self.held(host) < limits.per_host;
            match self.turns.iter().position(|turn| *turn == host) {
                None if waits => self.turns.push(host),
                Some(place) if !waits => drop(self.turns.remove(place)),
                _ => {}
            }
        }
    }

    fn settle(&mut self, limits: &Limits) -> Vec<u64> {
        let mut granted = Vec::new();
        self.line_up(limits);
        while self.total() < limits.total && !self.turns.is_empty() {
            let host = self.turns.remove(0);
            granted.extend(self.queue(host).pop_front());
            *self.held.entry(host).or_default() += 1;
            self.line_up(limits);
        }
        for host in 0..4 {
            while self.fits(host, limits) && !self.queue(host).is_empty() {
                granted.extend(self.queue(host).pop_front());
                *self.held.entry(host).or_default() += 1;
                self.line_up(limits);
            }
        }
        granted
    }
}

/// Somebody who came and is not gone.
#[derive(Debug)]
struct Guest {
    number: u64,
    host: u8,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Waits(Ticket),
    Holds(usize),
}

proptest! {
    #[test]
    fn it_does_what_a_naive_one_does(events in events(), first in (1usize..6, 1usize..4, 0usize..3, 0usize..5)) {
        let mut limits = Limits {
            total: first.0,
            per_host: first.1,
            reserve: first.2,
            pending_per_host: first.3,
        };
        let mut gate = gate(limits);
        // In this order, which is the order in which a change of limits gives them turns.
        for host in 0..4 {
            gate.add(host);
        }
        let mut model = Model::default();
        let mut guests: Vec<Guest> = Vec::new();
        for (number, event) in events.into_iter().enumerate() {
            let number = number as u64;
            match event {
                Event::Arrive(host) => {
                    let arrival = gate.arrive(&host, || number);
                    let room = model.queue(host).len() < limits.pending_per_host;
                    let fits = model.queue(host).is_empty() && model.fits(host, &limits);
                    let stage = match arrival {
                        Arrival::Granted(at) => {
                            prop_assert!(fits);
                            *model.held.entry(host).or_default() += 1;
                            Some(Stage::Holds(at))
                        }
                        Arrival::Queued(ticket) => {
                            prop_assert!(!fits && room);
                            model.queue(host).push_back(number);
                            Some(Stage::Waits(ticket))
                        }
                        Arrival::Full(facts) => {
                            prop_assert!(!fits && !room);
                            prop_assert_eq!(facts.waiting_of_host, limits.pending_per_host.max(facts.waiting_of_host));
                            None
                        }
                        Arrival::Closed => unreachable!("nobody closed it"),
                    };
                    guests.extend(stage.map(|stage| Guest { number, host, stage }));
                    prop_assert_eq!(model.settle(&limits), NOBODY);
                }
                Event::Poll(which) if !guests.is_empty() => {
                    let which = which % guests.len();
                    let guest = &mut guests[which];
                    if let Stage::Waits(ticket) = &guest.stage {
                        let waits = model.queue(guest.host).contains(&guest.number);
                        match gate.poll(ticket, &mut guest.number) {
                            Fate::Waits => prop_assert!(waits),
                            Fate::Granted(at) => {
                                prop_assert!(!waits);
                                guest.stage = Stage::Holds(at);
                            }
                            Fate::Closed => unreachable!("nobody closed it"),
                        }
                    }
                }
                Event::End(which) if !guests.is_empty() => {
                    let guest = guests.swap_remove(which % guests.len());
                    let at = match guest.stage {
                        Stage::Holds(at) => Some(at),
                        Stage::Waits(ticket) => match gate.leave(&ticket) {
                            Some(wake) => {
                                prop_assert_eq!(wake, guest.number);
                                model.queue(guest.host).retain(|number| *number != guest.number);
                                None
                            }
                            None => Some(ticket.host),
                        },
                    };
                    let mut granted = Vec::new();
                    if let Some(at) = at {
                        granted = woken(gate.release(at, false));
                        *model.held.entry(guest.host).or_default() -= 1;
                    }
                    prop_assert_eq!(granted, model.settle(&limits));
                }
                Event::Limit(total, per_host, reserve) => {
                    limits = Limits { total, per_host, reserve, ..limits };
                    prop_assert_eq!(woken(gate.set_limits(limits)), model.settle(&limits));
                }
                Event::Poll(_) | Event::End(_) => {}
            }
            prop_assert_eq!(gate.held(), model.total());
            prop_assert_eq!(gate.waiting(), model.waiting.values().map(VecDeque::len).sum::<usize>());
            for seen in gate.hosts() {
                prop_assert_eq!(seen.held, model.held(*seen.key));
                prop_assert_eq!(seen.waiting, model.queue(*seen.key).len());
                let could = seen.waiting > 0 && gate.fits(gate.hosts[seen.key]);
                prop_assert!(!could, "{} waits and could be granted", seen.key);
            }
        }
        for guest in guests {
            match guest.stage {
                Stage::Holds(at) => drop(gate.release(at, false)),
                Stage::Waits(ticket) => {
                    if gate.leave(&ticket).is_none() {
                        drop(gate.release(ticket.host, false));
                    }
                }
            }
        }
        prop_assert_eq!((gate.held(), gate.waiting(), gate.turns.len()), (0, 0, 0));
    }
}
