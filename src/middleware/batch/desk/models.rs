//! Every interleaving of callers that come, ask, leave and stand in line, with collectors and batches.
//!
//! Threads do one thing each; after that everybody is polled who was woken, and nobody else: whoever then has nothing has
//! lost a wake.

use std::sync::atomic::AtomicUsize as Count;
use std::sync::{Arc, Mutex as Plain};
use std::task::{Wake, Waker};
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, Ordering::SeqCst};
use loom::thread;

use super::super::board::{Claim, Found, Kind, Next, Parcel, Sent};
use super::super::gate::Seat;
use super::super::items::{Outcome, Ticket};
use super::*;
use crate::base::clock::{self, Instant};

struct Toy;

impl Cargo for Toy {
    type Key = u8;
    type Item = Thing;
    type Same = u8;
    type Answer = Thing;
    type Service = Thing;
}

/// Something foreign; all of them are counted.
struct Thing {
    count: Arc<Count>,
    name: u8,
}

impl Drop for Thing {
    fn drop(&mut self) {
        self.count.fetch_sub(1, SeqCst);
    }
}

/// All there is in a model. What is behind plain locks is no part of it.
struct Site {
    desk: Desk<Toy>,
    now: Instant,
    things: Arc<Count>,
    /// Collectors that have begun, and batches in flight.
    collectors: Plain<Vec<Collector>>,
    batches: Plain<Vec<Batch>>,
    /// What was sent, in that order.
    sent: Plain<Vec<u8>>,
    /// How many are in flight at most, and were.
    slots: usize,
}

/// The waker of one.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// Who is polled when it was woken, and at first.
struct Task(Arc<Flag>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Got {
    Answer(u8),
    Abandoned,
    Refused,
}

struct Caller {
    site: Arc<Site>,
    task: Task,
    ticket: Option<Ticket>,
    got: Option<Got>,
}

struct Collector {
    task: Task,
    claim: Claim,
    service: Option<Thing>,
    ran: bool,
}

struct Batch {
    shard: u32,
    items: Vec<Thing>,
    seats: Vec<Sent>,
}

/// Who wants to come in.
struct Visitor {
    site: Arc<Site>,
    task: Task,
    seat: Option<Seat>,
    entered: bool,
}

/// Who waits until nothing is under way.
struct Drainer {
    task: Task,
    done: bool,
}

// ===== impl Task =====

impl Task {
    fn new() -> Self {
        Self(Arc::new(Flag(AtomicBool::new(true))))
    }

    fn runs(&self) -> bool {
        self.0.0.load(SeqCst)
    }

    fn asks(&self) -> Waker {
        self.0.0.store(false, SeqCst);
        self.0.clone().into()
    }
}

// ===== impl Site =====

impl Site {
    fn new(change: impl FnOnce(&mut Rules)) -> Arc<Self> {
        let mut rules = Rules {
            max_items: 10,
            max_weight: None,
            max_delay: Duration::ZERO,
            min_items: 1,
            max_in_flight: 10,
            max_in_flight_per_shard: 1,
            queue_items: 10,
            queue_weight: None,
            margin: Duration::ZERO,
            alone: false,
        };
        change(&mut rules);
        Arc::new(Self {
            slots: rules.max_in_flight,
            desk: Desk::new(rules),
            now: clock::now(),
            things: Arc::default(),
            collectors: Plain::default(),
            batches: Plain::default(),
            sent: Plain::default(),
        })
    }

    fn thing(&self, name: u8) -> Thing {
        self.things.fetch_add(1, SeqCst);
        let count = self.things.clone();
        Thing { count, name }
    }

    /// A caller comes with an item of that name, and does not ask yet.
    fn push(self: &Arc<Self>, key: u8, name: u8, same: Option<u8>) -> Caller {
        let parcel = Parcel {
            item: self.thing(name),
            weight: 1,
            deadline: None,
            same: same.map(|same| (0, same)),
        };
        let mut key = Some(key);
        let pushed = self
            .desk
            .with(|board, debris| board.push(0, &mut key, parcel, self.now, debris));
        let (ticket, got) = match pushed {
            Ok((ticket, claim)) => {
                if let Some(claim) = claim {
                    self.begin(claim, self.thing(0));
                }
                (Some(ticket), None)
            }
            Err(_) => (None, Some(Got::Refused)),
        };
        Caller {
            site: self.clone(),
            task: Task::new(),
            ticket,
            got,
        }
    }

    /// A caller that asked once, and has to wait.
    fn comes(self: &Arc<Self>, key: u8, name: u8) -> Caller {
        let mut caller = self.push(key, name, None);
        assert_eq!(caller.poll(), None);
        caller
    }

    fn begin(&self, claim: Claim, service: Thing) {
        let collector = Collector {
            task: Task::new(),
            claim,
            service: Some(service),
            ran: false,
        };
        self.collectors.lock().unwrap().push(collector);
    }

    /// The collector that began last, to be polled by whoever asks for it.
    fn collector(&self) -> Collector {
        self.collectors.lock().unwrap().pop().unwrap()
    }

    /// One that was polled, and waits.
    fn waiting(&self) -> Collector {
        let mut collector = self.collector();
        assert!(collector.poll(self) && !collector.task.runs());
        collector
    }

    fn keep(&self, collector: Collector) {
        self.collectors.lock().unwrap().push(collector);
    }

    /// Ends a batch, if one is in flight. Whether one was.
    fn settle(&self) -> bool {
        let Some(batch) = self.batches.lock().unwrap().pop() else {
            return false;
        };
        let names: Vec<_> = batch.items.iter().map(|item| item.name).collect();
        let given = batch.seats.iter().map(|seat| {
            let answer = self.thing(names[seat.position]);
            (seat.ticket, Kind::Ok, Outcome::Answer(answer))
        });
        let given: Vec<_> = given.collect();
        drop(batch.items);
        self.desk.with(|board, debris| board.deliver(given, debris));
        self.desk
            .with(|board, debris| board.settle(batch.shard, self.now, debris));
        true
    }

    /// Polls all collectors that were woken, and ends all batches, until nothing more comes of it.
    fn works(&self) {
        loop {
            let mut collectors = self.collectors.lock().unwrap();
            let woken = collectors.iter().position(|other| other.task.runs());
            let woken = woken.map(|place| collectors.remove(place));
            drop(collectors);
            match woken {
                Some(mut collector) => {
                    if collector.poll(self) {
                        self.keep(collector);
                    }
                }
                None if self.settle() => {}
                None => return,
            }
        }
    }

    fn waiting_items(&self) -> usize {
        self.desk.with(|board, _| board.tally().waiting)
    }

    /// Nothing is left of anybody.
    fn is_empty(&self) {
        assert!(self.collectors.lock().unwrap().is_empty());
        let tally = self.desk.with(|board, _| board.tally());
        assert_eq!((tally.waiting, tally.in_flight, tally.shards), (0, 0, 0));
        assert_eq!(self.things.load(SeqCst), 0);
    }
}

// ===== impl Caller =====

impl Caller {
    fn poll(&mut self) -> Option<Got> {
        let Some(ticket) = self.ticket else {
            return self.got;
        };
        let waker = self.task.asks();
        let now = self.site.now;
        loop {
            let found = self
                .site
                .desk
                .with(|board, debris| board.ask(ticket, &waker, || now, debris));
            self.got = match found {
                Found::Done(Outcome::Answer(answer)) => Some(Got::Answer(answer.name)),
                Found::Done(Outcome::Abandoned) => Some(Got::Abandoned),
                Found::Done(Outcome::Expired) => unreachable!("nobody is in a hurry"),
                Found::Waiting => return None,
                Found::Orphan(claim, service) => {
                    self.site.begin(claim, service);
                    continue;
                }
            };
            self.ticket = None;
            return self.got;
        }
    }

    fn leave(mut self) {
        if let Some(ticket) = self.ticket.take() {
            let outcome = self
                .site
                .desk
                .with(|board, debris| board.leave(ticket, false, debris));
            drop(outcome);
        }
    }
}

// ===== impl Collector =====

impl Collector {
    /// Whether it still waits. If not it has taken what there was, or left.
    fn poll(&mut self, site: &Site) -> bool {
        self.ran = true;
        let waker = self.task.asks();
        let next = site
            .desk
            .with(|board, debris| board.next(self.claim, &waker, site.now, debris));
        match next {
            Next::Wait(_) => return true,
            Next::Leave => {}
            Next::Take(_) => self.take(site),
        }
        self.end(site);
        false
    }

    fn take(&mut self, site: &Site) {
        let taken = site.desk.with(|board, debris| {
            let taken = board.take(self.claim, site.now, debris);
            assert!(board.tally().in_flight <= site.slots);
            let names = taken.iter().flat_map(|taken| &taken.items);
            site.sent
                .lock()
                .unwrap()
                .extend(names.map(|item| item.name));
            taken
        });
        let Some(taken) = taken else {
            return;
        };
        if let Some((next, service)) = taken.next.zip(self.service.take()) {
            site.begin(next, service);
        }
        site.batches.lock().unwrap().push(Batch {
            shard: self.claim.shard,
            items: taken.items,
            seats: taken.seats,
        });
    }

    /// It is dropped.
    fn end(&mut self, site: &Site) {
        let (claim, ran, service) = (self.claim, self.ran, self.service.take());
        site.desk
            .with(|board, debris| board.abandon(claim, ran, service, debris));
    }
}

// ===== impl Visitor, Drainer =====

impl Visitor {
    fn new(site: &Arc<Site>) -> Self {
        Self {
            site: site.clone(),
            task: Task::new(),
            seat: None,
            entered: false,
        }
    }

    fn poll(&mut self) -> bool {
        let desk = &self.site.desk;
        let waker = self.task.asks();
        self.entered = self.seat.is_none() && desk.looks_open()
            || desk.with(|board, debris| board.enter(&mut self.seat, &waker, debris));
        self.entered
    }

    fn leave(self) {
        if let Some(seat) = self.seat {
            self.site
                .desk
                .with(|board, debris| board.leave_line(seat, debris));
        }
    }
}

impl Drainer {
    fn new() -> Self {
        Self {
            task: Task::new(),
            done: false,
        }
    }

    fn poll(&mut self, site: &Site) {
        let waker = self.task.asks();
        self.done = site
            .desk
            .with(|board, debris| board.drained(0, &waker, debris));
    }
}

/// Polls whoever was woken, until nobody is and nothing is under way.
fn settle<const N: usize>(site: &Site, mut callers: [Caller; N]) -> [Option<Got>; N] {
    loop {
        site.works();
        let woken = callers
            .iter_mut()
            .find(|caller| caller.ticket.is_some() && caller.task.runs());
        match woken {
            Some(woken) => woken.poll(),
            None => break,
        };
    }
    callers.map(|caller| caller.got)
}

fn sent(site: &Site) -> Vec<u8> {
    std::mem::take(&mut site.sent.lock().unwrap())
}

fn spawn<R: 'static>(work: impl FnOnce() -> R + 'static) -> thread::JoinHandle<R> {
    thread::spawn(work)
}

// ===== Callers and collectors =====

#[test]
fn an_item_joins_a_batch_that_is_taken_or_goes_with_the_next() {
    loom::model(|| {
        let site = Site::new(|_| {});
        let first = site.comes(0, 1);
        let mut collector = site.collector();
        let others = [2, 3].map(|name| {
            let site = site.clone();
            spawn(move || site.push(0, name, None))
        });
        assert!(!collector.poll(&site));
        let [second, third] = others.map(|other| other.join().unwrap());
        let got = settle(&site, [first, second, third]);
        assert_eq!(got, [1, 2, 3].map(|name| Some(Got::Answer(name))));
        let sent = sent(&site);
        assert!(sent == [1, 2, 3] || sent == [1, 3, 2], "{sent:?}");
        site.is_empty();
    });
}

#[test]
fn an_item_that_leaves_is_taken_or_is_not() {
    loom::model(|| {
        let site = Site::new(|_| {});
        let leaver = site.comes(0, 1);
        let stayer = site.comes(0, 2);
        let mut collector = site.collector();
        let leaver = spawn(move || leaver.leave());
        assert!(!collector.poll(&site));
        leaver.join().unwrap();
        assert_eq!(settle(&site, [stayer]), [Some(Got::Answer(2))]);
        let sent = sent(&site);
        assert!(sent == [1, 2] || sent == [2], "{sent:?}");
        site.is_empty();
    });
}

#[test]
fn a_collector_leaves_with_the_last_item_and_another_comes_with_the_next() {
    loom::model(|| {
        let site = Site::new(|rules| rules.max_in_flight = 1);
        let leaver = site.comes(0, 1);
        let mut collector = site.collector();
        let leaver = spawn(move || leaver.leave());
        let other = site.clone();
        let newcomer = spawn(move || other.push(0, 2, None));
        if collector.poll(&site) {
            site.keep(collector);
        }
        leaver.join().unwrap();
        let newcomer = newcomer.join().unwrap();
        assert_eq!(settle(&site, [newcomer]), [Some(Got::Answer(2))]);
        site.is_empty();
    });
}

#[test]
fn twins_leave_and_come_while_their_request_is_taken() {
    loom::model(|| {
        let site = Site::new(|_| {});
        let leaver = site.push(0, 1, Some(0));
        let mut twin = site.push(0, 2, Some(0));
        assert_eq!(twin.poll(), None);
        let mut collector = site.collector();
        let leaver = spawn(move || leaver.leave());
        let other = site.clone();
        let newcomer = spawn(move || other.push(0, 3, Some(0)));
        assert!(!collector.poll(&site));
        leaver.join().unwrap();
        let newcomer = newcomer.join().unwrap();
        let [first, second] = settle(&site, [twin, newcomer]);
        assert_eq!(first, Some(Got::Answer(1)));
        // It joined the one or is another.
        let sent = sent(&site);
        match second {
            Some(Got::Answer(1)) => assert_eq!(sent, [1]),
            Some(Got::Answer(3)) => assert_eq!(sent, [1, 3]),
            other => panic!("{other:?}"),
        }
        site.is_empty();
    });
}

#[test]
fn an_answer_meets_one_who_asks_and_one_who_leaves() {
    loom::model(|| {
        let site = Site::new(|_| {});
        let mut asker = site.push(0, 1, None);
        let leaver = site.comes(0, 2);
        assert!(!site.collector().poll(&site));
        let other = site.clone();
        let courier = spawn(move || assert!(other.settle()));
        let leaver = spawn(move || leaver.leave());
        asker.poll();
        courier.join().unwrap();
        leaver.join().unwrap();
        assert_eq!(settle(&site, [asker]), [Some(Got::Answer(1))]);
        site.is_empty();
    });
}

#[test]
fn all_come_and_go_while_one_works() {
    loom::model(|| {
        let site = Site::new(|rules| {
            rules.max_items = 1;
            rules.max_in_flight = 1;
            rules.queue_items = 1;
        });
        let first = site.push(0, 1, None);
        let other = site.clone();
        let works = spawn(move || other.works());
        let other = site.clone();
        let comes = spawn(move || {
            let mut caller = other.push(0, 2, None);
            caller.poll();
            caller
        });
        let mut visitor = Visitor::new(&site);
        let mut drain = Drainer::new();
        visitor.poll();
        drain.poll(&site);
        first.leave();
        works.join().unwrap();
        let caller = comes.join().unwrap();
        assert_eq!(settle(&site, [caller]), [Some(Got::Answer(2))]);
        visits([visitor]);
        assert!(drain.done || drain.task.runs());
        site.is_empty();
    });
}

// ===== Slots =====

#[test]
fn the_slot_of_a_batch_that_ends_goes_to_one_who_is_due_or_comes() {
    loom::model(|| {
        let site = Site::new(|rules| rules.max_in_flight = 1);
        let first = site.comes(0, 1);
        assert!(!site.collector().poll(&site));
        let second = site.comes(1, 2);
        let waits = site.waiting();
        site.keep(waits);
        let others = site.clone();
        let ends = spawn(move || assert!(others.settle()));
        let others = site.clone();
        let comes = spawn(move || others.push(2, 3, None));
        // The shard that ends has more, too.
        let more = site.push(0, 4, None);
        ends.join().unwrap();
        let third = comes.join().unwrap();
        let got = settle(&site, [first, second, third, more]);
        assert_eq!(got, [1, 2, 3, 4].map(|name| Some(Got::Answer(name))));
        assert_eq!(sent(&site)[..2], [1, 2], "who is due for longest is first");
        site.is_empty();
    });
}

#[test]
fn two_collectors_want_one_slot() {
    loom::model(|| {
        let site = Site::new(|rules| rules.max_in_flight = 1);
        let callers = [site.comes(0, 1), site.comes(1, 2)];
        let threads = [(); 2].map(|()| {
            let (site, mut collector) = (site.clone(), site.collector());
            spawn(move || {
                if collector.poll(&site) {
                    site.keep(collector);
                }
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        let got = settle(&site, callers);
        assert_eq!(got, [1, 2].map(|name| Some(Got::Answer(name))));
        site.is_empty();
    });
}

#[test]
fn a_slot_that_is_not_needed_goes_to_the_next() {
    loom::model(|| {
        let site = Site::new(|rules| rules.max_in_flight = 1);
        let leaver = site.comes(0, 1);
        let other = site.comes(1, 2);
        let waits = site.waiting();
        let mut granted = site.collector();
        site.keep(waits);
        let leaver = spawn(move || leaver.leave());
        if granted.poll(&site) {
            site.keep(granted);
        }
        leaver.join().unwrap();
        assert_eq!(settle(&site, [other]), [Some(Got::Answer(2))]);
        site.is_empty();
    });
}

#[test]
fn a_batch_ends_while_the_next_of_its_shard_begins_to_wait() {
    loom::model(|| {
        let site = Site::new(|rules| rules.max_items = 1);
        let callers = [site.comes(0, 1), site.comes(0, 2)];
        assert!(!site.collector().poll(&site));
        let other = site.clone();
        let ends = spawn(move || assert!(other.settle()));
        let mut blocked = site.collector();
        if blocked.poll(&site) {
            site.keep(blocked);
        }
        ends.join().unwrap();
        let got = settle(&site, callers);
        assert_eq!(got, [1, 2].map(|name| Some(Got::Answer(name))));
        assert_eq!(sent(&site), [1, 2]);
        site.is_empty();
    });
}

// ===== Collectors that are dropped =====

#[test]
fn whoever_asks_collects_what_a_dropped_collector_left() {
    loom::model(|| {
        let site = Site::new(|rules| rules.max_in_flight = 1);
        let blocker = site.comes(1, 9);
        assert!(!site.collector().poll(&site));
        let callers = [site.comes(0, 1), site.comes(0, 2)];
        let mut dropped = site.waiting();
        let other = site.clone();
        let drops = spawn(move || dropped.end(&other));
        let askers = callers.map(|mut caller| {
            spawn(move || {
                caller.poll();
                caller
            })
        });
        drops.join().unwrap();
        let [first, second] = askers.map(|asker| asker.join().unwrap());
        let got = settle(&site, [blocker, first, second]);
        assert_eq!(got, [9, 1, 2].map(|name| Some(Got::Answer(name))));
        site.is_empty();
    });
}

#[test]
fn whoever_comes_or_leaves_meets_a_collector_that_is_dropped() {
    loom::model(|| {
        let site = Site::new(|rules| rules.max_in_flight = 1);
        let blocker = site.comes(1, 9);
        assert!(!site.collector().poll(&site));
        let leaver = site.comes(0, 1);
        let mut dropped = site.waiting();
        let other = site.clone();
        let drops = spawn(move || dropped.end(&other));
        let other = site.clone();
        let comes = spawn(move || other.push(0, 2, None));
        leaver.leave();
        drops.join().unwrap();
        let newcomer = comes.join().unwrap();
        let got = settle(&site, [blocker, newcomer]);
        assert_eq!(got, [9, 2].map(|name| Some(Got::Answer(name))));
        site.is_empty();
    });
}

#[test]
fn a_collector_that_never_ran_gives_up_what_is_there_and_no_more() {
    loom::model(|| {
        let site = Site::new(|_| {});
        let first = site.comes(0, 1);
        let mut dropped = site.collector();
        let other = site.clone();
        let drops = spawn(move || dropped.end(&other));
        let second = site.push(0, 2, None);
        drops.join().unwrap();
        let [first, second] = settle(&site, [first, second]);
        assert_eq!(first, Some(Got::Abandoned));
        assert!(matches!(second, Some(Got::Abandoned | Got::Answer(2))));
        site.is_empty();
    });
}

// ===== The gate =====

/// Polls visitors who were woken until nobody is; each goes its way when it is in.
fn visits<const N: usize>(mut visitors: [Visitor; N]) {
    while let Some(woken) = visitors
        .iter_mut()
        .find(|visitor| !visitor.entered && visitor.task.runs())
    {
        woken.poll();
    }
    for visitor in visitors {
        assert!(visitor.entered, "it stands before an open gate");
    }
}

#[test]
fn nobody_stands_before_a_gate_that_opens() {
    loom::model(|| {
        let site = Site::new(|rules| rules.queue_items = 1);
        let leaver = site.comes(0, 1);
        let visitors = [Visitor::new(&site), Visitor::new(&site)];
        let visitors = visitors.map(|mut visitor| {
            spawn(move || {
                visitor.poll();
                visitor
            })
        });
        leaver.leave();
        visits(visitors.map(|visitor| visitor.join().unwrap()));
        site.works();
        site.is_empty();
    });
}

#[test]
fn a_wake_is_not_lost_with_one_who_goes_away() {
    loom::model(|| {
        let site = Site::new(|rules| rules.queue_items = 1);
        let leaver = site.comes(0, 1);
        let [mut goer, mut stayer] = [Visitor::new(&site), Visitor::new(&site)];
        assert!(!goer.poll());
        let leaver = spawn(move || leaver.leave());
        let goer = spawn(move || goer.leave());
        stayer.poll();
        leaver.join().unwrap();
        goer.join().unwrap();
        visits([stayer]);
        site.works();
        site.is_empty();
    });
}

#[test]
fn one_who_comes_late_takes_no_wake_from_those_in_line() {
    loom::model(|| {
        let site = Site::new(|rules| rules.queue_items = 1);
        let leaver = site.comes(0, 1);
        let mut visitor = Visitor::new(&site);
        assert!(!visitor.poll());
        let other = site.clone();
        let rival = spawn(move || {
            let mut rival = Visitor::new(&other);
            match rival.poll() {
                // It may have looked open to both.
                true => (None, Some(other.push(0, 2, None))),
                false => (Some(rival), None),
            }
        });
        let leaves = spawn(move || leaver.leave());
        visitor.poll();
        leaves.join().unwrap();
        let (rival, caller) = rival.join().unwrap();
        if let Some(caller) = caller {
            assert_eq!(settle(&site, [caller]), [Some(Got::Answer(2))]);
        }
        match rival {
            Some(rival) => visits([visitor, rival]),
            None => visits([visitor]),
        }
        site.works();
        site.is_empty();
    });
}

#[test]
fn no_more_are_in_than_twice_the_room() {
    loom::model(|| {
        let site = Site::new(|rules| rules.queue_items = 1);
        let pushes = [1, 2].map(|name| {
            let site = site.clone();
            spawn(move || site.push(0, name, None))
        });
        let third = site.push(0, 3, None);
        let [first, second] = pushes.map(|push| push.join().unwrap());
        assert_eq!(site.waiting_items(), 2);
        let got = settle(&site, [first, second, third]);
        let refused = got.iter().filter(|got| **got == Some(Got::Refused));
        assert_eq!(refused.count(), 1);
        site.is_empty();
    });
}

// ===== The handle =====

#[test]
fn a_drain_is_woken_by_the_last_that_ends_or_leaves() {
    loom::model(|| {
        let site = Site::new(|_| {});
        let caller = site.comes(0, 1);
        assert!(!site.collector().poll(&site));
        let leaver = site.comes(1, 2);
        let mut unused = site.collector();
        let other = site.clone();
        let ends = spawn(move || assert!(other.settle()));
        let leaves = spawn(move || leaver.leave());
        let mut drain = Drainer::new();
        drain.poll(&site);
        ends.join().unwrap();
        leaves.join().unwrap();
        if drain.task.runs() {
            drain.poll(&site);
        }
        assert!(drain.done, "it waits for nothing");
        assert!(!unused.poll(&site));
        assert_eq!(settle(&site, [caller]), [Some(Got::Answer(1))]);
        site.is_empty();
    });
}

#[test]
fn whoever_comes_when_the_layer_closes_is_refused_or_answered() {
    loom::model(|| {
        let site = Site::new(|rules| {
            rules.max_delay = Duration::MAX;
            rules.queue_items = 1;
        });
        let first = site.comes(0, 1);
        // In memory of whom the shard is not due by itself.
        let other = site.clone();
        let comes = spawn(move || other.push(1, 2, None));
        let mut visitor = Visitor::new(&site);
        let stands = spawn(move || {
            visitor.poll();
            visitor
        });
        site.desk
            .with(|board, debris| board.close(site.now, debris));
        let second = comes.join().unwrap();
        let visitor = stands.join().unwrap();
        let [first, second] = settle(&site, [first, second]);
        assert_eq!(first, Some(Got::Answer(1)));
        assert!(matches!(second, Some(Got::Refused | Got::Answer(2))));
        visits([visitor]);
        site.is_empty();
    });
}

#[test]
fn a_flush_meets_one_who_comes() {
    loom::model(|| {
        let site = Site::new(|rules| rules.max_delay = Duration::MAX);
        let first = site.comes(0, 1);
        let waits = site.waiting();
        site.keep(waits);
        let other = site.clone();
        let flushes = spawn(move || {
            let now = other.now;
            other.desk.with(|board, debris| board.flush(now, debris));
        });
        let second = site.push(0, 2, None);
        flushes.join().unwrap();
        site.works();
        site.desk
            .with(|board, debris| board.flush(site.now, debris));
        let got = settle(&site, [first, second]);
        assert_eq!(got, [1, 2].map(|name| Some(Got::Answer(name))));
        site.is_empty();
    });
}
