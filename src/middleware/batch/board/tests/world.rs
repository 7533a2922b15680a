//! A world around a board: it plays callers, collectors and batches, tells a model the same, and compares them after every
//! step.
//!
//! Locks are given back between a step and what follows from it, so here everything else may happen in between.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Wake, Waker};
use std::time::Duration;

use super::super::*;
use super::model::{Fate, Model, Person, Told};
use crate::base::clock;
use crate::middleware::batch::gate::Seat;
use crate::middleware::batch::shard::State;

// ===== What the board carries =====

thread_local! {
    /// All things that are somewhere.
    static THINGS: RefCell<BTreeSet<u64>> = const { RefCell::new(BTreeSet::new()) };
    static LAST: Cell<u64> = const { Cell::new(0) };
    /// Whether the board is at work.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Something foreign: the board may neither make nor drop one.
#[derive(Debug)]
pub(super) struct Thing(pub(super) u64);

/// A key, and its name.
#[derive(Debug)]
pub(super) struct Name {
    number: u64,
    _thing: Thing,
}

#[derive(Debug)]
pub(super) struct Toy;

impl Cargo for Toy {
    type Key = Name;
    type Item = Thing;
    type Same = Name;
    type Answer = Thing;
    type Service = Thing;
}

impl Thing {
    fn new() -> Self {
        let number = LAST.get() + 1;
        LAST.set(number);
        THINGS.with_borrow_mut(|things| things.insert(number));
        Self(number)
    }
}

impl Drop for Thing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert!(!INSIDE.get(), "something foreign was dropped inside");
        let known = THINGS.with_borrow_mut(|things| things.remove(&self.0));
        assert!(known, "a thing is dropped once");
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Name {}

fn name(number: u64) -> Name {
    Name {
        number,
        _thing: Thing::new(),
    }
}

/// What a waker leads to. Wakers and what they hold are foreign too.
#[derive(Debug)]
struct Flag {
    wakes: Arc<AtomicUsize>,
    _thing: Thing,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        assert!(!INSIDE.get(), "somebody was woken inside");
        self.wakes.fetch_add(1, SeqCst);
    }
}

/// A task, as those see it whom it asks.
#[derive(Debug)]
struct Task {
    waker: Waker,
    wakes: Arc<AtomicUsize>,
    /// How many wakes it has heeded.
    heeded: usize,
    /// It asked since it was last woken, and nothing but a wake makes it ask again. If not it is about to.
    waits: bool,
}

impl Task {
    fn new() -> Self {
        let wakes = Arc::new(AtomicUsize::new(0));
        Self {
            waker: Arc::new(Flag {
                wakes: wakes.clone(),
                _thing: Thing::new(),
            })
            .into(),
            wakes,
            heeded: 0,
            waits: false,
        }
    }

    /// How often it was woken since it asked.
    fn wakes(&self) -> usize {
        self.wakes.load(SeqCst) - self.heeded
    }

    /// It is about to ask.
    fn runs(&self) -> bool {
        !self.waits || self.wakes() > 0
    }

    /// It asks.
    fn asks(&mut self) -> Waker {
        self.heeded = self.wakes.load(SeqCst);
        self.waits = true;
        self.waker.clone()
    }

    /// From now on it is another; nobody wakes the old one for nothing.
    fn moves(&mut self) {
        *self = Self::new();
    }
}

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Rules that forbid nothing and send at once, for who sets those of interest.
pub(super) fn rules() -> Rules {
    Rules {
        max_items: 100,
        max_weight: None,
        max_delay: Duration::ZERO,
        min_items: 1,
        max_in_flight: 100,
        max_in_flight_per_shard: 1,
        queue_items: 1_000,
        queue_weight: None,
        margin: Duration::ZERO,
        alone: false,
    }
}

/// Names share hashes: names that have nothing in common meet in one place of a table.
fn hash(name: u64) -> u64 {
    name % 3
}

// ===== What happens =====

/// One thing that happens. The numbers pick among what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Push(u16, u16),
    /// A caller is polled, whether woken or not; now and then by another task.
    Ask(u16, u16),
    /// A caller that was woken is polled.
    Run(u16),
    Leave(u16),
    /// A caller looks whether its shard is due.
    Look(u16),
    /// A collector is polled, whether woken or not; one whose claim is no more, too.
    Poll(u16, u16),
    /// A collector that was woken, or whose time has come, is polled.
    Turn(u16),
    Take(u16),
    /// Some of the items of a batch are answered.
    Deliver(u16, u16),
    /// The rest of a batch is answered, and it is over.
    Settle(u16, u16),
    Abandon(u16, u16),
    Enter(u16, u16),
    LeaveLine(u16),
    Flush,
    Close(u16),
    SetRules(u16, u16),
    Drain(u16),
    WakeAll(u16),
    Time(u16),
}

impl Step {
    /// The step that chance chose: `roll` within 0 and 1,000 says what, `a` and `b` which.
    pub(super) fn of(roll: u16, a: u16, b: u16) -> Self {
        match roll {
            0..270 => Self::Push(a, b),
            270..310 => Self::Ask(a, b),
            310..400 => Self::Run(a),
            400..470 => Self::Leave(a),
            470..480 => Self::Look(a),
            480..530 => Self::Poll(a, b),
            530..650 => Self::Turn(a),
            650..740 => Self::Take(a),
            740..770 => Self::Deliver(a, b),
            770..850 => Self::Settle(a, b),
            850..870 => Self::Abandon(a, b),
            870..915 => Self::Enter(a, b),
            915..930 => Self::LeaveLine(a),
            930..935 => Self::Flush,
            935..937 => Self::Close(a),
            937..947 => Self::SetRules(a, b),
            947..957 => Self::Drain(a),
            957..960 => Self::WakeAll(a),
            _ => Self::Time(a),
        }
    }
}

// ===== The world =====

#[derive(Debug)]
struct Caller {
    ticket: Ticket,
    task: Task,
}

#[derive(Debug)]
struct Collector {
    claim: Claim,
    key: u64,
    task: Task,
    service: Option<Thing>,
    ran: bool,
    timer: Option<Instant>,
    /// It was told to take.
    takes: bool,
}

#[derive(Debug)]
struct Batch {
    shard: u32,
    key: u64,
    /// Who waits for which item.
    seats: VecDeque<(usize, Sent)>,
}

#[derive(Debug)]
struct Visitor {
    seat: Option<Seat>,
    task: Task,
    /// When it first came to stand in line.
    since: u64,
}

/// What a caller heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Waits,
    /// Nobody collected: the collector of that number has begun.
    Begins(usize),
    Has(Told),
}

/// A batch that was taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Went {
    pub(super) batch: usize,
    pub(super) requests: Vec<u64>,
    pub(super) flush: Flush,
    /// The collector of what is left.
    pub(super) next: Option<usize>,
}

pub(super) struct World {
    pub(super) board: Board<Toy>,
    pub(super) model: Model,
    callers: BTreeMap<usize, Caller>,
    pub(super) requests: BTreeMap<usize, u64>,
    collectors: BTreeMap<usize, Collector>,
    batches: BTreeMap<usize, Batch>,
    visitors: BTreeMap<usize, Visitor>,
    /// Visitors in line, who were not woken; in the order in which they are to be.
    line: VecDeque<usize>,
    drainers: BTreeMap<u64, Task>,
    count: usize,
    steps: u64,
    /// In which step a shard came to be due.
    due: BTreeMap<u64, u64>,
    granted: BTreeSet<u64>,
    /// How many waited after the last step.
    waited: usize,
}

impl World {
    pub(super) fn new(rules: Rules) -> Self {
        THINGS.with_borrow_mut(BTreeSet::clear);
        INSIDE.set(false);
        // What is earlier is needed too.
        let now = clock::now() + ms(1_000_000);
        Self {
            board: Board::new(rules.clone()),
            model: Model::new(rules, now),
            callers: BTreeMap::new(),
            requests: BTreeMap::new(),
            collectors: BTreeMap::new(),
            batches: BTreeMap::new(),
            visitors: BTreeMap::new(),
            line: VecDeque::new(),
            drainers: BTreeMap::new(),
            count: 0,
            steps: 0,
            due: BTreeMap::new(),
            granted: BTreeSet::new(),
            waited: 0,
        }
    }

    /// A world whose rules chance chose.
    pub(super) fn thrown(dice: [u16; 10]) -> Self {
        let pick = |n: usize, among: &[u64]| among[usize::from(dice[n]) % among.len()];
        let maybe = |n, among: &[u64]| Some(pick(n, among) as usize).filter(|n| *n > 0);
        let delay = |n, among: &[u64]| match pick(n, among) {
            u64::MAX => Duration::MAX,
            n => ms(n),
        };
        let most = u64::MAX;
        let global = pick(4, &[1, 1, 2, 3, 5]) as usize;
        Self::new(Rules {
            max_items: pick(0, &[1, 2, 3, 5, 64, most]) as usize,
            max_weight: maybe(1, &[0, 0, 1, 5, 10, most]),
            max_delay: delay(2, &[0, 0, 0, 1, 3, 10, most]),
            min_items: pick(3, &[1, 1, 2, 3, 10]) as usize,
            max_in_flight: global,
            max_in_flight_per_shard: (pick(5, &[1, 1, 2, 3]) as usize).min(global),
            queue_items: pick(6, &[1, 2, 3, 6, 20, 1_000, most]) as usize,
            queue_weight: maybe(7, &[0, 0, 1, 4, 20, most]),
            margin: delay(8, &[0, 0, 1, 3, most]),
            alone: dice[9].is_multiple_of(2),
        })
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Push(a, b) => {
                // Few names, and among them a favourite.
                let key = u64::from(a % 7).saturating_sub(2);
                let same = Some(u64::from(a / 7 % 6)).filter(|same| *same < 2);
                let weights = [0, 1, 1, 1, 2, 3, 5, 11, usize::MAX];
                let weight = weights[usize::from(b) % weights.len()];
                let deadline = self.deadline(b / 16);
                self.push(key, weight, deadline, same).ok();
            }
            Step::Ask(a, b) => {
                if let Some(caller) = pick(a, self.callers.keys()) {
                    if b.is_multiple_of(4) {
                        let caller = self.callers.get_mut(&caller);
                        caller.unwrap().task.moves();
                    }
                    self.ask(caller);
                }
            }
            Step::Run(a) => {
                let runs = self.callers.iter().filter(|(_, caller)| caller.task.runs());
                if let Some(caller) = pick(a, runs.map(|(caller, _)| caller)) {
                    self.ask(caller);
                }
            }
            Step::Leave(a) => {
                if let Some(caller) = pick(a, self.callers.keys()) {
                    self.leave(caller);
                }
            }
            Step::Look(a) => {
                if let Some(caller) = pick(a, self.callers.keys()) {
                    self.look(caller);
                }
            }
            Step::Poll(a, b) => {
                if let Some(collector) = pick(a, self.collectors.keys()) {
                    if b.is_multiple_of(4) {
                        self.collectors.get_mut(&collector).unwrap().task.moves();
                    }
                    self.poll(collector);
                }
            }
            Step::Turn(a) => {
                let turns = self
                    .collectors
                    .iter()
                    .filter(|(_, other)| self.turns(other));
                if let Some(collector) = pick(a, turns.map(|(collector, _)| collector)) {
                    self.poll(collector);
                }
            }
            Step::Take(a) => {
                let takes = self.collectors.iter().filter(|(_, other)| other.takes);
                if let Some(collector) = pick(a, takes.map(|(collector, _)| collector)) {
                    match a % 4 {
                        0 => self.hold(collector),
                        _ => drop(self.take(collector)),
                    }
                }
            }
            Step::Deliver(a, b) => {
                if let Some(batch) = pick(a, self.batches.keys()) {
                    let left = self.batches[&batch].seats.len();
                    self.deliver(batch, usize::from(b) % (left + 1), b / 16);
                }
            }
            Step::Settle(a, b) => {
                if let Some(batch) = pick(a, self.batches.keys()) {
                    if b.is_multiple_of(2) {
                        self.deliver(batch, usize::MAX, b / 16);
                    }
                    self.settle(batch);
                }
            }
            Step::Abandon(a, b) => {
                if let Some(collector) = pick(a, self.collectors.keys()) {
                    self.abandon(collector, !b.is_multiple_of(8));
                }
            }
            Step::Enter(a, b) => {
                let visitor = pick(a, self.visitors.keys()).filter(|_| !b.is_multiple_of(3));
                let visitor = visitor.unwrap_or_else(|| self.visit());
                if b.is_multiple_of(8) {
                    self.visitors.get_mut(&visitor).unwrap().task.moves();
                }
                self.enter(visitor);
            }
            Step::LeaveLine(a) => {
                if let Some(visitor) = pick(a, self.visitors.keys()) {
                    self.leave_line(visitor);
                }
            }
            Step::Flush => self.flush(),
            Step::Close(a) => {
                // For good, hence rarely.
                if a.is_multiple_of(4) {
                    self.close();
                }
            }
            Step::SetRules(a, b) => {
                let items = [1, 2, 4, 50][usize::from(a) % 4];
                let delay = [ms(0), ms(1), ms(4), Duration::MAX][usize::from(b) % 4];
                let queue = [1, 3, 30][usize::from(b / 4) % 3];
                self.set_rules(|rules| match a / 4 % 3 {
                    0 => rules.max_items = items,
                    1 => rules.max_delay = delay,
                    _ => rules.queue_items = queue,
                });
            }
            Step::Drain(a) => {
                let drains = self.drainers.len();
                let drain = self.drainers.keys().nth(usize::from(a) % drains.max(1));
                match (a / 16 % 4, drain.copied()) {
                    (1, Some(drain)) => self.drains(drain),
                    (2, Some(drain)) => {
                        self.drainers.get_mut(&drain).unwrap().moves();
                        self.drains(drain);
                    }
                    (3, Some(drain)) => self.forget_drain(drain),
                    _ => self.drain(),
                }
            }
            Step::WakeAll(_) => self.wake_all(),
            Step::Time(a) => self.pass(ms([0, 1, 1, 1, 2, 5][usize::from(a) % 6])),
        }
    }

    fn deadline(&self, roll: u16) -> Option<Instant> {
        let now = self.model.now;
        match roll % 12 {
            0 => Some(now - ms(1)),
            1 => Some(now),
            2 => Some(now + ms(1)),
            3 => Some(now + ms(3)),
            4 => Some(now + ms(10)),
            5 => Some(now + ms(100_000)),
            _ => None,
        }
    }

    // ----- the board -----

    /// Asks the board. What falls out is dropped, and who is woken is woken, when that is done.
    fn with<T>(&mut self, ask: impl FnOnce(&mut Board<Toy>, &mut Debris<Toy>) -> T) -> (T, Fallen) {
        let mut debris = Debris::default();
        INSIDE.set(true);
        let answer = ask(&mut self.board, &mut debris);
        INSIDE.set(false);
        for waker in mem::take(&mut debris.wakers) {
            waker.wake();
        }
        let items = debris.items.iter().chain(&debris.item);
        let fallen = Fallen {
            items: items.map(|item| item.0).collect(),
            service: debris.service.as_ref().map(|service| service.0),
        };
        (answer, fallen)
    }

    fn number(&mut self) -> usize {
        self.count += 1;
        self.count
    }

    // ----- callers -----

    pub(super) fn push(
        &mut self,
        key: u64,
        weight: usize,
        deadline: Option<Instant>,
        same: Option<u64>,
    ) -> Result<(usize, Option<usize>), Refused> {
        let item = Thing::new();
        let request = item.0;
        let parcel = Parcel {
            item,
            weight,
            deadline,
            same: same.map(|same| (hash(same), name(same))),
        };
        let refused = self.model.refuses(weight);
        let orphan = self.model.lines.contains_key(&key) && self.model.is_orphan(key);
        let now = self.model.now;
        let mut wanted = Some(name(key));
        let (pushed, fallen) =
            self.with(|board, debris| board.push(hash(key), &mut wanted, parcel, now, debris));
        let (ticket, claim) = match pushed {
            Ok(pushed) => pushed,
            Err((why, parcel)) => {
                assert_eq!((Some(why), parcel.item.0), (refused, request));
                self.model.books.refused += 1;
                self.check();
                return Err(why);
            }
        };
        assert_eq!(refused, None);
        let caller = self.number();
        let told = (caller, key, request);
        let needed = self.model.push(told, weight, deadline, same);
        assert_eq!(fallen.items, if needed { vec![] } else { vec![request] });
        assert_eq!(fallen.service.is_some(), orphan, "it has a service already");
        let task = Task::new();
        self.callers.insert(caller, Caller { ticket, task });
        self.requests.insert(caller, request);
        let begins = self.model.lines[&key].collector.is_none();
        assert_eq!(claim.is_some(), begins);
        let collector = claim.map(|claim| self.begin(key, claim, Thing::new()));
        self.check();
        Ok((caller, collector))
    }

    pub(super) fn ask(&mut self, caller: usize) -> Heard {
        let Caller { ticket, task } = self.callers.get_mut(&caller).unwrap();
        let (ticket, waker) = (*ticket, task.asks());
        let now = self.model.now;
        let (found, fallen) = self.with(|board, debris| board.ask(ticket, &waker, || now, debris));
        assert!(fallen.is_empty());
        drop(waker);
        let heard = match (found, self.model.people[&caller].fate) {
            (Found::Done(outcome), Fate::Has(told)) => {
                check_outcome(outcome, told);
                self.callers.remove(&caller);
                self.model.people.remove(&caller);
                Heard::Has(told)
            }
            (Found::Waiting, Fate::Sent(_)) => Heard::Waits,
            (Found::Waiting, Fate::Waits(key)) => {
                assert!(!self.model.is_orphan(key), "nobody collects");
                Heard::Waits
            }
            (Found::Orphan(claim, service), Fate::Waits(key)) => {
                assert!(self.model.is_orphan(key), "it has a collector");
                Heard::Begins(self.begin(key, claim, service))
            }
            (found, fate) => panic!("{} with {fate:?}", found.name()),
        };
        self.check();
        let late = matches!(heard, Heard::Waits) && self.model.is_late(caller);
        if late {
            self.leaves(caller, true);
        }
        heard
    }

    /// A caller looks whether its shard is due, as where no timer does.
    pub(super) fn look(&mut self, caller: usize) {
        let (ticket, now) = (self.callers[&caller].ticket, self.model.now);
        let ((), fallen) = self.with(|board, debris| board.look(ticket, now, debris));
        assert!(fallen.is_empty());
        self.check();
        if let Fate::Waits(key) = self.model.people[&caller].fate
            && self.state(key) == State::Open
        {
            let mut times = self.model.times(key).into_iter();
            assert!(times.all(|(_, at)| at > now), "it is time");
        }
    }

    pub(super) fn leave(&mut self, caller: usize) {
        self.leaves(caller, false);
    }

    fn leaves(&mut self, caller: usize, late: bool) {
        // Of its waker nothing is left but what the board has.
        let ticket = self.callers.remove(&caller).unwrap().ticket;
        let (outcome, fallen) = self.with(|board, debris| board.leave(ticket, late, debris));
        if let Fate::Has(told) = self.model.people[&caller].fate {
            check_outcome_there(outcome, told);
            self.model.people.remove(&caller);
        } else {
            assert!(outcome.is_none());
            let gone = self.model.leave(caller, late);
            assert_eq!(fallen.items, Vec::from_iter(gone));
        }
        self.check();
    }

    // ----- collectors -----

    fn begin(&mut self, key: u64, claim: Claim, service: Thing) -> usize {
        let collector = self.number();
        self.model.begin(key, claim.collector);
        let begun = Collector {
            claim,
            key,
            task: Task::new(),
            service: Some(service),
            ran: false,
            timer: None,
            takes: false,
        };
        self.collectors.insert(collector, begun);
        collector
    }

    /// Whether it is about to be polled.
    fn turns(&self, collector: &Collector) -> bool {
        let now = self.model.now;
        collector.task.runs() || collector.timer.is_some_and(|timer| timer <= now)
    }

    /// Whether it is the one of its shard.
    fn is_current(&self, collector: &Collector) -> bool {
        let line = self.model.lines.get(&collector.key);
        line.is_some_and(|line| line.collector == Some(collector.claim.collector))
    }

    pub(super) fn poll(&mut self, collector: usize) -> Next {
        let polled = self.collectors.get_mut(&collector).unwrap();
        polled.ran = true;
        let (claim, key, waker) = (polled.claim, polled.key, polled.task.asks());
        let now = self.model.now;
        let (next, fallen) = self.with(|board, debris| board.next(claim, &waker, now, debris));
        assert!(fallen.is_empty());
        drop(waker);
        let current = self.is_current(&self.collectors[&collector]);
        let polled = self.collectors.get_mut(&collector).unwrap();
        polled.timer = None;
        polled.takes = false;
        match next {
            Next::Leave => {
                assert!(!current, "something waits for it");
                self.drop_collector(collector);
            }
            Next::Wait(until) => {
                assert!(current);
                assert!(until.is_none_or(|until| until > now), "it would not wait");
                polled.timer = until;
            }
            Next::Take(flush) => {
                assert!(current);
                assert!(self.model.lines[&key].seen.contains(flush.as_str()));
                polled.takes = true;
            }
        }
        self.check();
        next
    }

    /// Its service is not ready; it asks again some time.
    pub(super) fn hold(&mut self, collector: usize) {
        let holds = self.collectors.get_mut(&collector).unwrap();
        (holds.takes, holds.task.waits) = (false, false);
        let claim = holds.claim;
        let ((), fallen) = self.with(|board, debris| board.hold(claim, debris));
        assert!(fallen.is_empty());
        self.check();
    }

    /// Takes the batch, if the claim is good and its turn has come.
    pub(super) fn take(&mut self, collector: usize) -> Option<Went> {
        let Collector { claim, key, .. } = self.collectors[&collector];
        let current = self.is_current(&self.collectors[&collector]);
        let granted = match self.board.shards.claimed(claim).map(|shard| shard.state) {
            Some(State::Granted(flush)) => Some(flush),
            _ => None,
        };
        assert!(current || granted.is_none());
        let now = self.model.now;
        let (taken, fallen) = self.with(|board, debris| board.take(claim, now, debris));
        let Some(flush) = granted else {
            assert!(taken.is_none() && fallen.is_empty());
            self.collectors.get_mut(&collector).unwrap().takes = false;
            if !current {
                self.drop_collector(collector);
            }
            self.check();
            return None;
        };
        let batch = self.number();
        let seen = mem::take(&mut self.model.lines.get_mut(&key).unwrap().seen);
        let load = self.model.take(key, batch);
        let Some(taken) = taken else {
            assert!(load.requests.is_empty(), "something was to be sent");
            self.drop_collector(collector);
            self.check();
            return None;
        };
        let requests: Vec<_> = taken.items.iter().map(|item| item.0).collect();
        assert_eq!(requests, load.requests);
        assert_eq!(taken.weight as u128, load.weight.min(usize::MAX as u128));
        assert_eq!(taken.deadline, load.deadline);
        let seats: Vec<_> = load.seats.iter().zip(&taken.seats).collect();
        assert_eq!(
            (load.seats.len(), taken.seats.len()),
            (seats.len(), seats.len())
        );
        for ((caller, position), sent) in seats {
            assert_eq!(self.callers[caller].ticket, sent.ticket);
            assert_eq!(*position, sent.position);
            assert_eq!(self.model.people[caller].at, sent.at);
        }
        let expected = if load.full { Flush::Full } else { flush };
        assert_eq!(taken.flush, expected);
        assert!(load.full || seen.contains(flush.as_str()));
        self.model.books.flushes[expected as usize] += 1;
        let people = load.seats.iter().map(|(caller, _)| *caller);
        let flight = Batch {
            shard: claim.shard,
            key,
            seats: people.zip(taken.seats).collect(),
        };
        self.batches.insert(batch, flight);
        let left = !self.model.lines[&key].queue.is_empty();
        assert_eq!(taken.next.is_some(), left);
        let next = taken.next.map(|claim| {
            let taker = self.collectors.get_mut(&collector).unwrap();
            let service = taker.service.take().unwrap();
            self.begin(key, claim, service)
        });
        self.drop_collector(collector);
        self.check();
        Some(Went {
            batch,
            requests,
            flush: expected,
            next,
        })
    }

    /// A collector that has nothing to do any more is dropped, and with it what it holds.
    fn drop_collector(&mut self, collector: usize) {
        let Collector {
            claim,
            service,
            ran,
            ..
        } = self.collectors.remove(&collector).unwrap();
        let held = service.as_ref().map(|service| service.0);
        let ((), fallen) = self.with(|board, debris| board.abandon(claim, ran, service, debris));
        assert_eq!((fallen.items, fallen.service), (vec![], held));
    }

    /// A collector is dropped; as one that never ran, and made no service, if it is not `kept`.
    pub(super) fn abandon(&mut self, collector: usize, kept: bool) {
        if !self.is_current(&self.collectors[&collector]) {
            self.drop_collector(collector);
            return self.check();
        }
        let Collector {
            claim,
            key,
            service,
            ran,
            ..
        } = self.collectors.remove(&collector).unwrap();
        let service = service.filter(|_| kept || ran);
        let number = service.as_ref().map(|service| service.0);
        let ((), fallen) = self.with(|board, debris| board.abandon(claim, ran, service, debris));
        if ran {
            assert!(fallen.is_empty());
            self.model.lines.get_mut(&key).unwrap().collector = None;
        } else {
            let queue = &self.model.lines[&key].queue;
            let items: Vec<_> = queue.iter().map(|entry| entry.request).collect();
            assert_eq!((fallen.items, fallen.service), (items, number));
            self.model.give_up(key);
        }
        self.check();
    }

    /// The collector of a shard.
    pub(super) fn collector(&self, key: u64) -> usize {
        let current = |other: &&usize| {
            let other = &self.collectors[*other];
            other.key == key && self.is_current(other)
        };
        *self.collectors.keys().find(current).expect("one is there")
    }

    // ----- who is about to be polled -----

    pub(super) fn caller_runs(&self, caller: usize) -> bool {
        self.callers[&caller].task.runs()
    }

    /// Whether it was woken; not only because its time has come.
    pub(super) fn collector_runs(&self, collector: usize) -> bool {
        self.collectors[&collector].task.runs()
    }

    /// How often it was woken since it asked.
    pub(super) fn wakes(&self, collector: usize) -> usize {
        self.collectors[&collector].task.wakes()
    }

    pub(super) fn visitor_runs(&self, visitor: usize) -> bool {
        self.visitors[&visitor].task.runs()
    }

    pub(super) fn drain_runs(&self) -> bool {
        self.drainers.values().any(Task::runs)
    }

    // ----- batches -----

    /// The first `count` of those who wait for a batch have their outcomes.
    pub(super) fn deliver(&mut self, batch: usize, count: usize, roll: u16) {
        let seats = &mut self.batches.get_mut(&batch).unwrap().seats;
        let seats: Vec<_> = seats.drain(..count.min(seats.len())).collect();
        let kinds = [
            Kind::Ok,
            Kind::Ok,
            Kind::Error,
            Kind::Missing,
            Kind::Panic,
            Kind::Abandoned,
        ];
        let kind = kinds[usize::from(roll) % kinds.len()];
        let mut given = Vec::new();
        for (caller, sent) in seats {
            let (outcome, told) = match kind {
                Kind::Abandoned => (Outcome::Abandoned, Told::Abandoned),
                _ => {
                    let answer = Thing::new();
                    let told = Told::Answer(answer.0);
                    (Outcome::Answer(answer), told)
                }
            };
            given.push((sent.ticket, kind, outcome));
            // Whoever has left gets nothing.
            let Some(person) = self.model.people.get_mut(&caller) else {
                continue;
            };
            assert_eq!(person.fate, Fate::Sent(batch));
            person.fate = Fate::Has(told);
            let books = &mut self.model.books;
            *match kind {
                Kind::Ok => &mut books.ok,
                Kind::Error => &mut books.error,
                Kind::Missing => &mut books.missing,
                Kind::Panic => &mut books.panic,
                Kind::Abandoned => &mut books.abandoned,
            } += 1;
        }
        let ((), fallen) = self.with(|board, debris| board.deliver(given, debris));
        assert!(fallen.is_empty());
        self.check();
    }

    /// A batch is over; whoever has no answer gets none.
    pub(super) fn settle(&mut self, batch: usize) {
        self.deliver(batch, usize::MAX, 5);
        let Batch { shard, key, .. } = self.batches.remove(&batch).unwrap();
        let now = self.model.now;
        let ((), fallen) = self.with(|board, debris| board.settle(shard, now, debris));
        assert!(fallen.is_empty());
        self.model.settle(key);
        self.check();
    }

    // ----- the gate -----

    /// A visitor comes, and did not ask yet.
    pub(super) fn visit(&mut self) -> usize {
        let visitor = self.number();
        let came = Visitor {
            seat: None,
            task: Task::new(),
            since: u64::MAX,
        };
        self.visitors.insert(visitor, came);
        visitor
    }

    /// Whether a visitor may come in; it does so if it may.
    pub(super) fn enter(&mut self, visitor: usize) -> bool {
        let Visitor {
            mut seat,
            mut task,
            since,
        } = self.visitors.remove(&visitor).unwrap();
        let behind = seat.is_none() && !self.line.is_empty();
        let open = self.model.is_open() && !behind;
        let waker = task.asks();
        if open {
            // It wakes the next for itself.
            self.line.retain(|other| *other != visitor);
        }
        let (entered, fallen) = self.with(|board, debris| board.enter(&mut seat, &waker, debris));
        drop(waker);
        assert!(fallen.is_empty());
        assert_eq!((entered, seat.is_none()), (open, open));
        if !open {
            let since = since.min(self.steps);
            self.visitors.insert(visitor, Visitor { seat, task, since });
            if !self.line.contains(&visitor) {
                self.line.push_back(visitor);
            }
            let visitors = &self.visitors;
            let line = self.line.make_contiguous();
            line.sort_by_key(|visitor| visitors[visitor].since);
        }
        self.check();
        entered
    }

    pub(super) fn leave_line(&mut self, visitor: usize) {
        self.line.retain(|other| *other != visitor);
        // Of its waker nothing is left but what the board has.
        let seat = self.visitors.remove(&visitor).unwrap().seat;
        if let Some(seat) = seat {
            let ((), fallen) = self.with(|board, debris| board.leave_line(seat, debris));
            assert!(fallen.is_empty());
        }
        self.check();
    }

    // ----- the handle -----

    pub(super) fn flush(&mut self) {
        let now = self.model.now;
        self.model.flush();
        let ((), fallen) = self.with(|board, debris| board.flush(now, debris));
        assert!(fallen.is_empty());
        self.check();
    }

    pub(super) fn close(&mut self) {
        let now = self.model.now;
        self.model.closed = true;
        let ((), fallen) = self.with(|board, debris| board.close(now, debris));
        assert!(fallen.is_empty());
        self.check();
    }

    pub(super) fn set_rules(&mut self, set: impl Fn(&mut Rules)) {
        let now = self.model.now;
        set(&mut self.model.rules);
        let ((), fallen) = self.with(|board, debris| board.set_rules(set, now, debris));
        assert!(fallen.is_empty());
        self.check();
    }

    /// Somebody waits until nothing is under way.
    pub(super) fn drain(&mut self) {
        let drain = self.number() as u64;
        self.drainers.insert(drain, Task::new());
        self.drains(drain);
    }

    fn drains(&mut self, drain: u64) {
        let waker = self.drainers.get_mut(&drain).unwrap().asks();
        let (done, fallen) = self.with(|board, debris| board.drained(drain, &waker, debris));
        drop(waker);
        assert!(fallen.is_empty());
        assert_eq!(done, self.is_drained());
        if done {
            self.drainers.remove(&drain);
        }
        self.check();
    }

    /// Somebody waits no more.
    fn forget_drain(&mut self, drain: u64) {
        // Of its waker nothing is left but what the board has.
        self.drainers.remove(&drain);
        let ((), fallen) = self.with(|board, debris| board.forget_drain(drain, debris));
        assert!(fallen.is_empty());
        self.check();
    }

    fn is_drained(&self) -> bool {
        self.model.waiting() == 0 && self.model.in_flight() == 0
    }

    pub(super) fn wake_all(&mut self) {
        let ((), fallen) = self.with(|board, debris| board.wake_all(debris));
        assert!(fallen.is_empty());
        let waits = |caller: &usize| !matches!(self.model.people[caller].fate, Fate::Has(_));
        for (caller, Caller { task, .. }) in &self.callers {
            assert!(task.runs() || !waits(caller), "all who wait are woken");
        }
        let visitors = self.visitors.values().map(|visitor| &visitor.task);
        for task in visitors.chain(self.drainers.values()) {
            assert!(task.runs(), "all who wait are woken");
        }
        // Those in line keep their places, and need not ask again.
        for visitor in &self.line {
            self.visitors.get_mut(visitor).unwrap().task.asks();
        }
        self.check();
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.model.now += time;
        self.check();
    }

    // ----- what must be so -----

    fn place(&self, key: u64) -> u32 {
        let shards = &self.board.shards;
        let found = self
            .board
            .keys
            .find(hash(key), |place| shards.peek(*place).key.number == key);
        *found.expect("it is there")
    }

    pub(super) fn state(&self, key: u64) -> State {
        self.board.shards.peek(self.place(key)).state
    }

    fn check(&mut self) {
        self.steps += 1;
        self.model.look();
        self.check_books();
        self.check_shards();
        self.check_turns();
        self.check_wakes();
        self.check_line();
    }

    fn check_books(&self) {
        let (board, model) = (&self.board, &self.model);
        let tally = Tally {
            waiting: model.waiting(),
            in_flight: model.in_flight(),
            shards: model.lines.len(),
            books: model.books,
        };
        assert_eq!(board.tally(), tally);
        assert_eq!(board.is_open(), model.is_open());
        assert_eq!(board.looks_open(), model.is_open() && board.line.is_empty());
        assert_eq!(board.urge.pressed, model.is_full());
        assert_eq!(board.waiting_weight, model.weight());
        let entries = model.lines.values().flat_map(|line| &line.queue);
        let sames = entries.filter(|entry| entry.same.is_some()).count();
        assert_eq!((board.sames.len(), board.keys.len()), (sames, tally.shards));
        let Books {
            accepted,
            ok,
            error,
            missing,
            panic,
            abandoned,
            cancelled,
            expired,
            ..
        } = board.books;
        let over = ok + error + missing + panic + abandoned + cancelled + expired;
        let there = |person: &&Person| !matches!(person.fate, Fate::Has(_));
        let there = model.people.values().filter(there).count();
        assert_eq!(
            accepted,
            over + there as u64,
            "nothing is lost, nothing twice"
        );
    }

    fn check_shards(&self) {
        let (board, model) = (&self.board, &self.model);
        let (mut granted, mut due, mut open) = (0, 0, 0);
        for (key, line) in &model.lines {
            let shard = board.shards.peek(self.place(*key));
            assert_eq!(shard.queue.len(), line.queue.len());
            assert_eq!(shard.in_flight, line.in_flight);
            assert!(shard.in_flight <= model.rules.max_in_flight_per_shard);
            let weight: u128 = line.queue.iter().map(|entry| entry.weight as u128).sum();
            assert_eq!(shard.weight, weight);
            assert_eq!(shard.is_orphan(), model.is_orphan(*key));
            assert_eq!(shard.is_orphan(), shard.service.is_some());
            assert_eq!(shard.state == State::Empty, line.collector.is_none());
            match shard.state {
                State::Empty => {}
                State::Blocked => assert!(!model.may_send(*key), "nothing is in its way"),
                State::Open => {
                    open += 1;
                    assert!(model.may_send(*key));
                    assert_eq!(model.reasons(*key), [], "it is due");
                    self.check_timer(*key);
                }
                State::Due(_) => due += 1,
                State::Granted(_) => granted += 1,
                State::Held(_) => {}
            }
        }
        assert_eq!((board.open.len(), board.due.len()), (open, due));
        assert_eq!(board.taken, granted + model.in_flight());
        assert!(board.taken <= model.rules.max_in_flight);
        let full = board.taken == model.rules.max_in_flight;
        assert!(due == 0 || full, "a slot is free");
    }

    /// The collector of an open shard comes when the shard is due.
    fn check_timer(&self, key: u64) {
        let times = self.model.times(key).into_iter();
        let Some(due) = times.map(|(_, at)| at).min() else {
            return;
        };
        let current = |other: &&Collector| other.key == key && self.is_current(other);
        let collector = self.collectors.values().find(current).unwrap();
        let timed = collector.timer.is_some_and(|timer| timer <= due);
        assert!(
            timed || collector.task.runs(),
            "nobody comes when it is due"
        );
    }

    /// Slots go to those who have been due for longest.
    fn check_turns(&mut self) {
        let keys: Vec<_> = self.model.lines.keys().copied().collect();
        self.due.retain(|key, _| keys.contains(key));
        self.granted.retain(|key| keys.contains(key));
        let mut new = Vec::new();
        for key in keys {
            match self.state(key) {
                State::Due(_) => {
                    self.granted.remove(&key);
                    self.due.entry(key).or_insert(self.steps);
                }
                State::Granted(_) => {
                    if self.granted.insert(key) {
                        new.push(self.due.get(&key).copied().unwrap_or(self.steps));
                    }
                    self.due.remove(&key);
                }
                State::Empty | State::Blocked | State::Open | State::Held(_) => {
                    self.granted.remove(&key);
                    self.due.remove(&key);
                }
            }
        }
        if let Some((latest, longest)) = new.iter().max().zip(self.due.values().min()) {
            assert!(latest <= longest, "another was due before");
        }
    }

    fn check_wakes(&self) {
        for (number, caller) in &self.callers {
            let fate = self.model.people[number].fate;
            let reason = match fate {
                Fate::Has(_) => true,
                Fate::Waits(key) => self.model.is_orphan(key),
                Fate::Sent(_) => false,
            };
            assert!(
                !reason || caller.task.runs(),
                "{number} is not woken, {fate:?}"
            );
        }
        for collector in self.collectors.values() {
            let reason = if !self.is_current(collector) {
                true
            } else {
                !collector.takes && matches!(self.state(collector.key), State::Granted(_))
            };
            assert!(!reason || collector.task.runs(), "a collector sleeps");
            // It does not take what is not granted.
            let granted = || matches!(self.state(collector.key), State::Granted(_));
            assert!(!collector.takes || !self.is_current(collector) || granted());
        }
        if self.is_drained() {
            let sleeps = |task: &Task| !task.runs();
            assert!(!self.drainers.values().any(sleeps), "a drain sleeps");
        }
    }

    /// Those in line are woken in their turn, and as many as there is room for.
    fn check_line(&mut self) {
        let runs = |visitor: &usize| self.visitors[visitor].task.runs();
        let woken = self.line.iter().filter(|visitor| runs(visitor)).count();
        let first: Vec<_> = self.line.drain(..woken).collect();
        assert!(first.iter().all(runs), "it is not their turn");
        let waiting = self.model.waiting();
        let left = self.waited.saturating_sub(waiting);
        self.waited = waiting;
        if !self.model.is_open() {
            return;
        }
        let room = self.model.rules.queue_items.saturating_sub(waiting);
        let awake = woken >= left.min(room) && !self.model.closed;
        assert!(self.line.is_empty() || awake, "there is room for more");
        // Something will be answered, and then they are asked in.
        let idle = waiting == 0 && self.board.taken == 0;
        assert!(self.line.is_empty() || !idle, "nobody comes in");
    }

    // ----- the end -----

    /// Polls whoever was woken and whose time has come, and nobody else, until all is answered.
    pub(super) fn quiet(mut self) {
        while self.progress() {}
        self.is_clean();
    }

    fn progress(&mut self) -> bool {
        let turns = |other: &Collector| self.turns(other);
        let find = |collectors: &BTreeMap<usize, Collector>, what: &dyn Fn(&Collector) -> bool| {
            let found = collectors.iter().find(|(_, other)| what(other));
            found.map(|(collector, _)| *collector)
        };
        if let Some(collector) = find(&self.collectors, &turns) {
            self.poll(collector);
        } else if let Some(collector) = find(&self.collectors, &|other| other.takes) {
            self.take(collector);
        } else if let Some(caller) = self
            .callers
            .iter()
            .find_map(|(caller, Caller { task, .. })| task.runs().then_some(*caller))
        {
            self.ask(caller);
        } else if let Some(visitor) = self
            .visitors
            .iter()
            .find_map(|(visitor, Visitor { task, .. })| task.runs().then_some(*visitor))
        {
            self.enter(visitor);
        } else if let Some(batch) = self.batches.keys().next() {
            let batch = *batch;
            self.deliver(batch, usize::MAX, 0);
            self.settle(batch);
        } else if let Some(drain) = self
            .drainers
            .iter()
            .find_map(|(drain, task)| task.runs().then_some(*drain))
        {
            self.drains(drain);
        } else {
            return self.wait();
        }
        true
    }

    /// Nobody runs. Time goes on to the next timer; or somebody asks for what nothing makes due.
    fn wait(&mut self) -> bool {
        let timers = self.collectors.values().filter_map(|other| other.timer);
        let people = self.model.people.values();
        let deadlines = people.filter_map(|person| person.deadline);
        let next = timers.chain(deadlines).min();
        if let Some(next) = next {
            let now = self.model.now;
            self.pass(next.saturating_duration_since(now));
            let late: Vec<_> = self.callers.keys().copied().collect();
            for caller in late {
                if self.callers.contains_key(&caller) && self.model.is_late(caller) {
                    self.ask(caller);
                }
            }
            return true;
        }
        if self.model.lines.is_empty() {
            return false;
        }
        for key in self.model.lines.keys() {
            assert_eq!(self.state(*key), State::Open, "nobody comes for it");
        }
        self.flush();
        true
    }

    fn is_clean(&self) {
        assert!(self.callers.is_empty() && self.collectors.is_empty());
        assert!(self.visitors.is_empty() && self.drainers.is_empty());
        assert!(self.line.is_empty());
        assert_eq!(self.board.items.len(), 0);
        THINGS.with_borrow(|things| assert_eq!(things.len(), 0, "something stays"));
    }
}

/// What fell out of the board.
#[derive(Debug)]
struct Fallen {
    items: Vec<u64>,
    service: Option<u64>,
}

impl Fallen {
    fn is_empty(&self) -> bool {
        self.items.is_empty() && self.service.is_none()
    }
}

impl Found<Toy> {
    fn name(&self) -> &'static str {
        match self {
            Self::Done(_) => "it is done",
            Self::Waiting => "it waits",
            Self::Orphan(..) => "it is an orphan",
        }
    }
}

fn check_outcome(outcome: Outcome<Thing>, told: Told) {
    let heard = match outcome {
        Outcome::Answer(answer) => Told::Answer(answer.0),
        Outcome::Expired => Told::Expired,
        Outcome::Abandoned => Told::Abandoned,
    };
    assert_eq!(heard, told);
}

fn check_outcome_there(outcome: Option<Outcome<Thing>>, told: Told) {
    check_outcome(outcome.expect("an outcome is there"), told);
}

/// One of `among`, if there is any.
fn pick<'a>(roll: u16, among: impl Iterator<Item = &'a usize>) -> Option<usize> {
    let among: Vec<_> = among.collect();
    match among.len() {
        0 => None,
        count => Some(*among[usize::from(roll) % count]),
    }
}

/// Puts an item into the shard of name 0, accepted then.
pub(super) fn put(board: &mut Board<Toy>, weight: usize, then: Instant, deadline: Instant) {
    let parcel = Parcel {
        item: Thing::new(),
        weight,
        deadline: Some(deadline),
        same: None,
    };
    let mut debris = Debris::default();
    let pushed = board.push(0, &mut Some(name(0)), parcel, then, &mut debris);
    assert!(pushed.is_ok());
}

/// Puts an item like no other into a shard of its own.
pub(super) fn put_as(board: &mut Board<Toy>, key: u64, now: Instant) -> Ticket {
    let parcel = Parcel {
        item: Thing::new(),
        weight: 1,
        deadline: None,
        same: Some((key, name(key))),
    };
    let mut debris = Debris::default();
    match board.push(key, &mut Some(name(key)), parcel, now, &mut debris) {
        Ok((ticket, _)) => ticket,
        Err((why, _)) => panic!("{why:?}"),
    }
}
