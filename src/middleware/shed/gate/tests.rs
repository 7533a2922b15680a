use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Wake;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::base::clock;
use crate::base::error::Reason;
use crate::base::priority::Priority;

fn entry(priority: Priority) -> Entry {
    Entry {
        priority,
        partition: 0,
        deadline: None,
        until: clock::now() + std::time::Duration::from_secs(3_600),
        ghost: false,
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_limit_lowered_below_what_runs_takes_nothing_away_and_admits_nobody() {
    let gate = Gate::new(100, &Queue::fifo().max(1_000), &[]);
    let now = clock::now();
    for _ in 0..100 {
        gate.try_admit(0).unwrap();
    }
    gate.set_limit(10, now, &());
    let occupancy = gate.occupancy();
    assert_eq!((occupancy.in_flight, occupancy.limit), (100, 10));
    for _ in 0..90 {
        assert!(gate.try_admit(0).is_err());
        assert!(!gate.release(0));
    }
    assert!(gate.try_admit(0).is_err(), "ten of ten");
    assert!(!gate.release(0));
    assert_eq!(gate.try_admit(0), Ok(10));
}

#[test]
fn a_limit_raised_wakes_as_many_as_it_frees() {
    let gate = Gate::new(1, &Queue::fifo().max(100), &[]);
    let now = clock::now();
    gate.try_admit(0).unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let tickets: Vec<_> = (0..50)
        .map(|_| {
            let ticket = gate.enqueue(now, entry(Priority::Default), &()).unwrap();
            assert!(gate.poll(&ticket, &waker).is_pending());
            ticket
        })
        .collect();
    gate.set_limit(21, now, &());
    assert_eq!(woken.0.load(SeqCst), 20);
    let ready = tickets
        .iter()
        .take(20)
        .all(|ticket| gate.poll(ticket, &waker).is_ready());
    assert!(ready, "the first twenty");
    assert!(gate.poll(&tickets[20], &waker).is_pending());
    assert_eq!(gate.occupancy().in_flight, 21);
}

#[test]
fn a_full_queue_turns_out_the_lowest_priority_first() {
    let gate = Gate::new(1, &Queue::fifo().max(2), &[]);
    let now = clock::now();
    gate.try_admit(0).unwrap();
    let sheddable = gate.enqueue(now, entry(Priority::Sheddable), &()).unwrap();
    let ordinary = gate.enqueue(now, entry(Priority::Default), &()).unwrap();
    let critical = gate.enqueue(now, entry(Priority::Critical), &()).unwrap();
    let Poll::Ready(Err(refused)) = gate.poll(&sheddable, Waker::noop()) else {
        panic!("it was turned out")
    };
    assert_eq!(refused.reason, Reason::QueueFull);
    let full = gate.enqueue(now, entry(Priority::Sheddable), &());
    assert_eq!(full.unwrap_err().reason, Reason::QueueFull);
    assert!(gate.release(0));
    gate.settle(now, &());
    assert!(gate.poll(&critical, Waker::noop()).is_ready());
    assert!(gate.poll(&ordinary, Waker::noop()).is_pending());
}

#[test]
fn a_partition_below_its_share_goes_first() {
    let gate = Gate::new(10, &Queue::fifo().max(100), &[0.2, 0.0]);
    let now = clock::now();
    for _ in 0..10 {
        gate.try_admit(1).unwrap();
    }
    let of = |partition, priority| Entry {
        priority,
        partition,
        deadline: None,
        until: clock::now() + std::time::Duration::from_secs(3_600),
        ghost: false,
    };
    let loud = gate.enqueue(now, of(1, Priority::Critical), &()).unwrap();
    let quiet = gate.enqueue(now, of(0, Priority::BestEffort), &()).unwrap();
    assert!(gate.release(1));
    gate.settle(now, &());
    assert!(gate.poll(&quiet, Waker::noop()).is_ready());
    assert!(gate.poll(&loud, Waker::noop()).is_pending());
    assert_eq!((gate.partition(0), gate.partition(1)), (1, 9));
}

/// One thing that happens to a gate.
#[derive(Debug, Clone, Copy)]
enum Event {
    Ask(u8),
    Release,
    GiveUp(usize),
    Take(usize),
    Limit(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0u8..4).prop_map(Event::Ask),
        3 => Just(Event::Release),
        1 => any::<prop::sample::Index>().prop_map(|n| Event::GiveUp(n.index(1 << 20))),
        2 => any::<prop::sample::Index>().prop_map(|n| Event::Take(n.index(1 << 20))),
        1 => (1usize..12).prop_map(Event::Limit),
    ];
    prop::collection::vec(event, 1..200)
}

/// What a gate should do, with lists.
struct Model {
    limit: usize,
    places: usize,
    lifo: bool,
    held: usize,
    /// Ticket number and priority, in the order they came.
    waiting: VecDeque<(usize, u8)>,
    granted: Vec<usize>,
    refused: Vec<usize>,
}

impl Model {
    fn in_flight(&self) -> usize {
        self.held + self.granted.len()
    }

    fn settle(&mut self) {
        while self.in_flight() < self.limit {
            let best = self.waiting.iter().map(|(_, priority)| *priority).max();
            let Some(best) = best else { return };
            let mut places = self.waiting.iter();
            let found = match self.lifo {
                true => places.rposition(|(_, priority)| *priority == best),
                false => places.position(|(_, priority)| *priority == best),
            };
            let (ticket, _) = self
                .waiting
                .remove(found.expect("best is one of them"))
                .expect("it was found");
            self.granted.push(ticket);
        }
    }

    /// Whether `ticket` gets a place.
    fn wait(&mut self, ticket: usize, priority: u8) -> bool {
        if self.waiting.len() >= self.places {
            let lowest = self.waiting.iter().map(|(_, priority)| *priority).min();
            match lowest {
                Some(lowest) if lowest < priority || (self.lifo && lowest == priority) => {
                    let mut places = self.waiting.iter();
                    let oldest = places.position(|(_, priority)| *priority == lowest);
                    let (victim, _) = self
                        .waiting
                        .remove(oldest.expect("lowest is one of them"))
                        .expect("it was found");
                    self.refused.push(victim);
                }
                _ => return false,
            }
        }
        self.waiting.push_back((ticket, priority));
        true
    }
}

proptest! {
    #[test]
    fn a_gate_does_what_lists_do(
        events in events(),
        places in 0usize..6,
        lifo in any::<bool>(),
    ) {
        let queue = if lifo { Queue::lifo() } else { Queue::fifo() };
        let gate = Gate::new(3, &queue.max(places), &[]);
        let mut model = Model {
            limit: 3,
            places,
            lifo,
            held: 0,
            waiting: VecDeque::new(),
            granted: Vec::new(),
            refused: Vec::new(),
        };
        let start = clock::now();
        let mut tickets: Vec<(usize, Ticket)> = Vec::new();
        for (n, event) in events.into_iter().enumerate() {
            let now = start + ms(n as u64);
            match event {
                Event::Ask(level) => {
                    let room = model.in_flight() < model.limit && model.waiting.is_empty();
                    match gate.try_admit(0) {
                        Ok(in_flight) => {
                            prop_assert!(room);
                            model.held += 1;
                            // Never beyond the limit at the moment of admission.
                            prop_assert!(in_flight as usize <= model.limit);
                            prop_assert_eq!(in_flight as usize, model.in_flight());
                        }
                        Err(_) => {
                            prop_assert!(!room);
                            let entry = entry(Priority::ALL[usize::from(level)]);
                            let queued = gate.enqueue(now, entry, &());
                            prop_assert_eq!(queued.is_ok(), model.wait(n, level));
                            tickets.extend(queued.ok().map(|ticket| (n, ticket)));
                        }
                    }
                }
                Event::Release if model.held > 0 => {
                    model.held -= 1;
                    let waits = gate.release(0);
                    prop_assert_eq!(waits, !model.waiting.is_empty());
                    if waits {
                        gate.settle(now, &());
                    }
                }
                Event::GiveUp(at) if !tickets.is_empty() => {
                    let (number, ticket) = tickets.swap_remove(at % tickets.len());
                    gate.give_up(&ticket, 0, || now, &());
                    model.waiting.retain(|(known, _)| *known != number);
                    model.granted.retain(|known| *known != number);
                    model.refused.retain(|known| *known != number);
                }
                Event::Take(at) if !tickets.is_empty() => {
                    let at = at % tickets.len();
                    let number = tickets[at].0;
                    let granted = model.granted.contains(&number);
                    let refused = model.refused.contains(&number);
                    match gate.poll(&tickets[at].1, Waker::noop()) {
                        Poll::Pending => prop_assert!(!granted && !refused),
                        Poll::Ready(settled) => {
                            prop_assert_eq!(settled.is_ok(), granted);
                            prop_assert_eq!(settled.is_err(), refused);
                            model.held += usize::from(granted);
                            model.granted.retain(|known| *known != number);
                            model.refused.retain(|known| *known != number);
                            tickets.swap_remove(at);
                        }
                    }
                }
                Event::Limit(limit) => {
                    gate.set_limit(limit, now, &());
                    model.limit = limit;
                }
                _ => {}
            }
            model.settle();
            let occupancy = gate.occupancy();
            prop_assert_eq!(occupancy.in_flight, model.in_flight());
            prop_assert_eq!(occupancy.limit, model.limit);
            prop_assert_eq!(gate.with_queue(|queue| queue.waiting()), model.waiting.len());
        }
        // Everybody goes: nothing is left.
        for (_, ticket) in tickets {
            gate.give_up(&ticket, 0, clock::now, &());
        }
        for _ in 0..model.held {
            let _ = gate.release(0);
        }
        prop_assert_eq!(gate.occupancy().in_flight, 0);
    }
}
