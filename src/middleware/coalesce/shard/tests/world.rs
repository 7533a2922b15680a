//! A world around a shard: it plays callers, tasks and those who wake, keeps books of its own from what it did, and
//! compares them with the shard after every step.
//!
//! Locks are given back between a step and what follows from it, so here everything else may happen in between: between a
//! join and the first question, a result and its publication, a change and the wakes that tell of it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Wake, Waker};
use std::time::Duration;

use super::super::*;
use crate::base::clock;
use crate::middleware::coalesce::flight::Verdict;

// ===== What flights carry =====

thread_local! {
    /// All things that are somewhere.
    static THINGS: RefCell<BTreeSet<u64>> = const { RefCell::new(BTreeSet::new()) };
    static LAST: Cell<u64> = const { Cell::new(0) };
    /// Whether the shard is at work.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Something foreign: the shard may neither make nor drop one.
#[derive(Debug)]
pub(super) struct Thing(u64);

/// A key, and its name.
#[derive(Debug)]
pub(super) struct Name(Thing, u64);

#[derive(Debug)]
pub(super) struct Toy;

impl Cargo for Toy {
    type Key = Name;
    type Work = Thing;
    type Shared = Thing;
    type Own = Thing;
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
        self.1 == other.1
    }
}

impl Eq for Name {}

/// Where a waiter is woken.
#[derive(Debug, Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Rules that forbid nothing, for who sets those of interest.
pub(super) fn rules() -> Rules {
    Rules {
        max_keys: 1_000,
        max_waiters: 1_000,
        leader_age: ms(1_000_000),
        grace: Duration::ZERO,
        orphan: None,
        remember: (ms(5), 1_000),
    }
}

/// Names share hashes: names that have nothing in common meet in one place of the table.
fn hash(name: u64) -> u64 {
    name % 3
}

// ===== What happens =====

/// One thing that happens. The numbers pick among what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Join(u16, u16),
    /// A waiter is polled, whether woken or not; now and then by another task.
    Ask(u16, u16),
    /// A waiter that was woken is polled.
    Run(u16),
    /// Whoever drives is done with it for now, or for good.
    Driven(u16, u16),
    Publish(u16, u16),
    /// The work is woken by what it waits for.
    Ring(u16),
    /// A bell of any flight there ever was.
    Late(u16, u16),
    Leave(u16),
    /// One who has left with its result leaves once more.
    LeaveAgain(u16),
    /// Some of the wakes that are due are done.
    Wake(u16),
    Time(u16),
    Tidy,
    Remember(u16),
}

impl Step {
    /// The step that chance chose: `roll` within 0 and 1,000 says what, `a` and `b` which.
    pub(super) fn of(roll: u16, a: u16, b: u16) -> Self {
        match roll {
            0..260 => Self::Join(a, b),
            260..380 => Self::Ask(a, b),
            380..500 => Self::Run(a),
            500..680 => Self::Driven(a, b),
            680..720 => Self::Publish(a, b),
            720..780 => Self::Ring(a),
            780..800 => Self::Late(a, b),
            800..870 => Self::Leave(a),
            870..875 => Self::LeaveAgain(a),
            875..955 => Self::Wake(a),
            955..975 => Self::Time(a),
            975..985 => Self::Tidy,
            _ => Self::Remember(a),
        }
    }
}

// ===== The books =====

/// Who drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Caller(usize),
    Task,
}

#[derive(Debug)]
enum Stage {
    Parked(u64),
    /// The work is in somebody's hands.
    Driven(By),
    /// The work is done, and its result not published.
    Done(By, Landing),
    Over {
        own: Option<u64>,
        others: Told,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Take(u64),
    Released,
    Anew,
    Failed(Failure),
}

/// Whom the waker reaches that the work was last polled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lent {
    To(usize),
    ToAll,
    ToTask,
}

/// What a flight is in the books.
#[derive(Debug)]
struct Book {
    slot: u32,
    name: u64,
    listed: bool,
    stage: Stage,
    leader: Option<usize>,
    members: BTreeSet<usize>,
    task: Option<Ticket>,
    /// Its leader has left, and it ends when it is next parked.
    doomed: Option<Orphan>,
    asked: Priority,
    sent: Option<Priority>,
    since: Option<Instant>,
    lent: Lent,
    /// Somebody rang since it was last begun to be driven.
    rung: bool,
}

/// What an entry leads to, and its key.
#[derive(Debug)]
struct Listed {
    key: u64,
    at: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Flight(u64),
    Kept { id: u64, shared: u64 },
}

/// A caller that waits.
#[derive(Debug)]
struct Caller {
    ticket: Ticket,
    /// It is about to be polled without being woken: it did not ask yet, or its poll goes on.
    fresh: bool,
    flag: Arc<Flag>,
    waker: Waker,
    /// Wakers it had in tasks it was in before.
    before: Vec<Arc<Flag>>,
}

/// Wakes that are due.
#[derive(Debug)]
struct Due {
    slot: u32,
    id: u64,
    from: usize,
}

/// What came of a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// As leader of a flight; the caller's number.
    Leads(usize),
    /// In a flight; the caller's number.
    Follows(usize),
    /// A result.
    Kept(u64),
    Alone(Bypass),
}

/// What a waiter was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// To drive; with its own waker?
    Drives(bool),
    Waits,
    Own(u64),
    Takes(u64),
    Released,
    Anew,
    Failed(Failure),
}

/// How driving ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It waits, and its request was sent with this priority, if it was sent.
    Pending(Option<Priority>),
    Ready,
    /// Without a result; with a panic for its leader?
    Failed(Failure, bool),
}

/// What is done with a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    All,
    LeaderOnly,
    Failed,
}

pub(super) struct World {
    pub(super) shard: Shard<Toy>,
    rules: Rules,
    pub(super) now: Instant,
    /// Whether flights have tasks of their own.
    pub(super) tasks: bool,
    books: BTreeMap<u64, Book>,
    entries: BTreeMap<u64, Listed>,
    /// When kept results fall due.
    kept: Vec<(Instant, u64, u64)>,
    /// Hashes that are remembered.
    remembered: BTreeMap<u64, Instant>,
    spares: Vec<u64>,
    callers: BTreeMap<usize, Caller>,
    count: usize,
    /// The work of flights that are driven.
    hands: BTreeMap<u64, Thing>,
    /// Work that fell out, before it is put aside.
    fell: Option<u64>,
    due: Vec<Due>,
    /// Numbers of flights there were.
    bells: Vec<(u32, u64)>,
    /// Who left with its result.
    left: Vec<Ticket>,
    last: u64,
}

// ===== impl World =====

impl World {
    pub(super) fn new(rules: Rules) -> Self {
        THINGS.with_borrow_mut(BTreeSet::clear);
        INSIDE.set(false);
        Self {
            shard: Shard::new(rules.clone()),
            rules,
            now: clock::now(),
            tasks: false,
            books: BTreeMap::new(),
            entries: BTreeMap::new(),
            kept: Vec::new(),
            remembered: BTreeMap::new(),
            spares: Vec::new(),
            callers: BTreeMap::new(),
            count: 0,
            hands: BTreeMap::new(),
            fell: None,
            due: Vec::new(),
            bells: Vec::new(),
            left: Vec::new(),
            last: 0,
        }
    }

    /// A world whose rules chance chose.
    pub(super) fn thrown(dice: [u16; 6]) -> Self {
        let pick = |n: usize, among: &[u64]| among[usize::from(dice[n]) % among.len()];
        let orphan = [None, None, Some(Orphan::Anew), Some(Orphan::Fail)];
        let orphan = orphan[usize::from(dice[0]) % 4];
        let mut world = Self::new(Rules {
            max_keys: pick(1, &[1, 2, 3, 5, 100]) as usize,
            max_waiters: pick(2, &[1, 2, 3, 5, 100]) as u32,
            leader_age: ms(pick(3, &[0, 2, 20, 1_000_000])),
            grace: ms(pick(4, &[0, 0, 1, 4])),
            orphan,
            remember: (ms(3), pick(5, &[0, 1_000]) as usize),
        });
        world.tasks = orphan.is_none() && (dice[0] / 4).is_multiple_of(3);
        world
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Join(a, b) => {
                let priority = match b % 8 {
                    0 => Priority::Critical,
                    1 => Priority::BestEffort,
                    _ => Priority::Default,
                };
                // Few names, and among them a favourite.
                let name = u64::from(a % 9).saturating_sub(3);
                self.join(name, priority);
            }
            Step::Ask(a, b) => {
                if let Some(caller) = self.pick(a, |world, caller| world.waits(caller)) {
                    if b.is_multiple_of(8) {
                        self.moves(caller);
                    }
                    self.ask(caller);
                }
            }
            Step::Run(a) => {
                if let Some(caller) =
                    self.pick(a, |world, caller| world.waits(caller) && world.runs(caller))
                {
                    self.ask(caller);
                }
            }
            Step::Driven(a, b) => {
                let driven = |book: &Book| matches!(book.stage, Stage::Driven(_));
                if let Some(id) = self.choose(a, driven) {
                    self.random_end(id, b);
                }
            }
            Step::Publish(a, b) => {
                let done = |book: &Book| matches!(book.stage, Stage::Done(..));
                if let Some(id) = self.choose(a, done) {
                    self.publish(
                        id,
                        match b % 4 {
                            0 => Share::LeaderOnly,
                            1 => Share::Failed,
                            _ => Share::All,
                        },
                    );
                }
            }
            Step::Ring(a) => {
                if let Some(id) = self.choose(a, |_| true) {
                    self.ring(id);
                }
            }
            Step::Late(a, b) => {
                if !self.bells.is_empty() {
                    let (slot, id) = self.bells[usize::from(a) % self.bells.len()];
                    // Two stores of one bell, of which somebody saw the one and not the other.
                    let mixed = self.bells[usize::from(b) % self.bells.len()].0;
                    self.bell(if b.is_multiple_of(3) { mixed } else { slot }, id);
                }
            }
            Step::Leave(a) => {
                if let Some(caller) = self.pick(a, |world, caller| world.waits(caller)) {
                    self.leave(caller);
                }
            }
            Step::LeaveAgain(a) => self.leave_again(a),
            Step::Wake(a) => {
                if !self.due.is_empty() {
                    self.wake_some(usize::from(a) % self.due.len());
                }
            }
            Step::Time(a) => self.now += ms(u64::from(a % 4)),
            Step::Tidy => self.tidy(),
            Step::Remember(a) => self.remember(u64::from(a % 6)),
        }
        self.check();
    }

    // ===== What callers do =====

    /// A caller comes, and finds what the books say.
    pub(super) fn join(&mut self, name: u64, priority: Priority) -> Found {
        let mut key = Some(Name(Thing::new(), name));
        let number = key.as_ref().expect("it is there").0.0;
        let expected = self.expect(name, priority);
        let (now, rules) = (self.now, self.rules.clone());
        let looked = Cell::new(false);
        let mut swept = None;
        let joined = self.inside(|shard, _| {
            let clock = || {
                looked.set(true);
                now
            };
            shard.sweep(now, &mut swept);
            shard.join(hash(name), &mut key, priority, clock, None)
        });
        drop(swept);
        let found = match joined {
            Joined::Lead(ticket, spare) => {
                let Expected::Lead { replaces } = expected else {
                    panic!("it leads, and not {expected:?}");
                };
                assert_eq!(spare.as_ref().map(|spare| spare.0), self.spares.pop());
                assert_eq!(key.is_some(), replaces, "a key is kept once");
                self.begins(ticket, name, priority, number, replaces);
                let work = spare.unwrap_or_else(Thing::new);
                self.hands.insert(ticket.id, work);
                Found::Leads(self.count)
            }
            Joined::Follow(ticket, asked) => {
                assert!(asked.is_none(), "it did not ask");
                let Expected::Follow(id) = expected else {
                    panic!("it follows, and not {expected:?}");
                };
                assert_eq!(ticket.id, id, "as its key leads it");
                assert!(!ticket.leader && key.is_some());
                let crowd = self.books[&id].members.len();
                assert!(crowd < rules.max_waiters as usize);
                self.comes(ticket, priority);
                Found::Follows(self.count)
            }
            Joined::Kept(shared) => {
                let Expected::Kept(expected) = expected else {
                    panic!("a kept result, and not {expected:?}");
                };
                assert_eq!(shared.0, expected);
                assert!(key.is_some());
                Found::Kept(expected)
            }
            Joined::Alone(why) => {
                assert_eq!(expected, Expected::Alone(why));
                assert!(key.is_some());
                Found::Alone(why)
            }
        };
        drop(key);
        self.check();
        found
    }

    fn begins(&mut self, ticket: Ticket, name: u64, priority: Priority, key: u64, replaces: bool) {
        assert!(ticket.id > self.last, "ids are never used twice");
        assert!(ticket.leader);
        self.last = ticket.id;
        let at = Place::Flight(ticket.id);
        if replaces {
            let entry = self.entries.get_mut(&name).expect("it replaces one");
            let Place::Flight(old) = std::mem::replace(&mut entry.at, at) else {
                unreachable!("kept results are not replaced");
            };
            self.book(old).listed = false;
        } else {
            self.entries.insert(name, Listed { key, at });
        }
        let by = self.count + 1;
        let taken = self.books.values().any(|book| book.slot == ticket.slot);
        assert!(!taken, "a place for each");
        self.books.insert(
            ticket.id,
            Book {
                slot: ticket.slot,
                name,
                listed: true,
                stage: Stage::Driven(By::Caller(by)),
                leader: Some(by),
                members: BTreeSet::new(),
                task: None,
                doomed: None,
                asked: priority,
                sent: None,
                since: None,
                lent: Lent::To(by),
                rung: false,
            },
        );
        self.bells.push((ticket.slot, ticket.id));
        self.comes(ticket, priority);
    }

    fn comes(&mut self, ticket: Ticket, priority: Priority) {
        self.count += 1;
        let (count, callers) = (self.count, &self.callers);
        let book = self.books.get_mut(&ticket.id).expect("it is in the books");
        for member in &book.members {
            assert_ne!(callers[member].ticket.seat, ticket.seat, "a seat for each");
        }
        book.members.insert(count);
        book.asked = book.asked.max(priority);
        let flag = Arc::new(Flag::default());
        let caller = Caller {
            ticket,
            fresh: true,
            waker: flag.clone().into(),
            flag,
            before: Vec::new(),
        };
        self.callers.insert(count, caller);
    }

    /// What a caller should find.
    fn expect(&mut self, name: u64, priority: Priority) -> Expected {
        if !self.kept.is_empty() {
            self.sweep();
        }
        let hash = hash(name);
        if self
            .remembered
            .get(&hash)
            .is_some_and(|until| *until > self.now)
        {
            return Expected::Alone(Bypass::Unshareable);
        }
        let full = self.books.len() + self.kept.len() >= self.rules.max_keys;
        let full = full.then_some(Expected::Alone(Bypass::MaxKeys));
        let Some(entry) = self.entries.get(&name) else {
            return full.unwrap_or(Expected::Lead { replaces: false });
        };
        let id = match entry.at {
            Place::Kept { shared, .. } => return Expected::Kept(shared),
            Place::Flight(id) => id,
        };
        let book = &self.books[&id];
        let old = book.since.map(|since| self.now - since);
        let crowded = book.members.len() >= self.rules.max_waiters as usize;
        if crowded && full.is_some() {
            return Expected::Alone(Bypass::MaxWaiters);
        }
        if crowded
            || old.is_some_and(|old| old >= self.rules.leader_age)
            || book.sent.is_some_and(|sent| sent < priority)
        {
            return full.unwrap_or(Expected::Lead { replaces: true });
        }
        assert!(
            book.doomed.is_none(),
            "a newcomer joins nothing that is dying"
        );
        match book.stage {
            Stage::Parked(_) | Stage::Driven(_) => {}
            Stage::Done(..) => assert!(!self.rules.grace.is_zero(), "a newcomer begins anew"),
            Stage::Over { .. } => panic!("a newcomer joins nothing that is over"),
        }
        Expected::Follow(id)
    }

    /// Another task polls the caller from now on.
    fn moves(&mut self, caller: usize) {
        let caller = self.caller(caller);
        let flag = Arc::new(Flag::default());
        caller.waker = flag.clone().into();
        let before = std::mem::replace(&mut caller.flag, flag);
        caller.before.push(before);
    }

    /// The caller is polled.
    pub(super) fn ask(&mut self, number: usize) -> Heard {
        assert!(self.waits(number));
        let caller = self.caller(number);
        caller.fresh = false;
        caller.flag.0.store(false, SeqCst);
        let (ticket, waker) = (caller.ticket, caller.waker.clone());
        let book = self.book(ticket.id);
        let wakes = book.rung || book.lent != Lent::ToAll;
        let (crowd, top) = (book.members.len(), book.asked);
        let asked = self.inside(|shard, debris| shard.ask(ticket, &waker, debris));
        drop(waker);
        let heard = match asked {
            Asked::Drive {
                work,
                direct,
                asked,
            } => {
                let book = self.book(ticket.id);
                let by = Stage::Driven(By::Caller(number));
                let Stage::Parked(expected) = std::mem::replace(&mut book.stage, by) else {
                    panic!("who drives takes the work from where it is");
                };
                assert_eq!(work.0, expected);
                assert!(wakes, "there is something to poll it for");
                assert_eq!(
                    direct,
                    crowd == 1,
                    "alone, and only then, with its own waker"
                );
                assert_eq!(asked, top);
                book.lent = if direct {
                    Lent::To(number)
                } else {
                    Lent::ToAll
                };
                book.rung = false;
                self.hands.insert(ticket.id, work);
                Heard::Drives(direct)
            }
            Asked::Wait { stale } => {
                drop(stale);
                let book = self.book(ticket.id);
                assert!(!matches!(book.stage, Stage::Over { .. }), "it is over");
                let parked = matches!(book.stage, Stage::Parked(_));
                assert!(!parked || !wakes, "somebody waits over work that rings");
                self.is_seated(number, true);
                Heard::Waits
            }
            Asked::Over(landed) => self.takes(number, landed.verdict),
        };
        self.check();
        heard
    }

    /// The caller has left with this.
    fn takes(&mut self, number: usize, verdict: Verdict<Toy>) -> Heard {
        let ticket = self.callers[&number].ticket;
        let book = self.book(ticket.id);
        let last = book.members.len() == 1;
        let Stage::Over { own, others } = &mut book.stage else {
            panic!("it is over");
        };
        let told = *others;
        let own = own.take_if(|_| book.leader == Some(number));
        let kept = self.entries.values().any(|entry| match (entry.at, told) {
            (Place::Kept { shared, .. }, Told::Take(taken)) => shared == taken,
            _ => false,
        });
        let heard = match verdict {
            Verdict::Own(mine) => {
                assert_eq!(Some(mine.0), own, "what is the leader's, is the leader's");
                Heard::Own(mine.0)
            }
            other => {
                assert_eq!(own, None, "the leader has its own");
                match (other, told) {
                    (Verdict::Take(shared), Told::Take(expected)) => {
                        assert_eq!(shared.0, expected);
                        let alone = Arc::strong_count(&shared) == 1;
                        assert_eq!(alone, last && !kept, "the last has it for itself");
                        Heard::Takes(expected)
                    }
                    (Verdict::Released, Told::Released) => Heard::Released,
                    (Verdict::Anew, Told::Anew) => Heard::Anew,
                    (Verdict::Failed(why), Told::Failed(expected)) => {
                        assert_eq!(why, expected);
                        Heard::Failed(why)
                    }
                    (_, told) => panic!("it was told something other than {told:?}"),
                }
            }
        };
        self.goes(number);
        self.check();
        heard
    }

    /// The caller gives up.
    pub(super) fn leave(&mut self, number: usize) -> Left {
        let ticket = self.callers[&number].ticket;
        let orphan = self.rules.orphan;
        let tasked = self.books[&ticket.id].task.is_some();
        let was_leader = self.books[&ticket.id].leader == Some(number);
        let last = self.books[&ticket.id].members.len() == 1;
        let parked = match self.books[&ticket.id].stage {
            Stage::Parked(_) => Some(true),
            Stage::Driven(_) | Stage::Done(..) => Some(false),
            Stage::Over { .. } => None,
        };
        let expected = match (parked, orphan) {
            (None, _) => Left::Others,
            (Some(true), _) if last => Left::Nobody,
            _ if !was_leader || tasked => Left::Others,
            (Some(_), None) => Left::HandedOver,
            (Some(_), Some(_)) => Left::Orphans,
        };
        let mut fell = None;
        let left = self.inside(|shard, debris| {
            let left = shard.leave(ticket, debris);
            fell = debris.work();
            left
        });
        let piece = fell.as_ref().map(|work| work.0);
        self.fell = piece;
        assert_eq!(left, expected);
        let book = self.book(ticket.id);
        match (left, &mut book.stage) {
            (Left::Nobody, Stage::Parked(work)) => assert_eq!(piece, Some(*work)),
            (Left::Orphans, Stage::Parked(work)) => {
                assert_eq!(piece, Some(*work), "work nobody wants");
                let others = told(orphan.expect("or nothing ends"));
                book.stage = Stage::Over { own: None, others };
                self.unlist(ticket.id);
                self.rouse(ticket.id);
            }
            (Left::Orphans, _) => {
                book.doomed = orphan;
                self.unlist(ticket.id);
                self.rouse(ticket.id);
            }
            (_, Stage::Over { own, .. }) if was_leader => {
                assert!(piece.is_none());
                own.take();
            }
            _ => assert!(piece.is_none(), "work somebody wants"),
        }
        self.goes(number);
        self.check();
        if let Some(work) = fell {
            self.reuse(work);
        }
        left
    }

    fn leave_again(&mut self, a: u16) {
        if self.left.is_empty() {
            return;
        }
        let ticket = self.left[usize::from(a) % self.left.len()];
        let left = self.inside(|shard, debris| shard.leave(ticket, debris));
        assert_eq!(left, Left::Others);
    }

    /// The caller is out. The last puts out the light.
    fn goes(&mut self, number: usize) {
        let caller = self.callers.remove(&number).expect("it was in");
        let count = Arc::strong_count(&caller.flag);
        assert_eq!(count, 2, "the waker of one who left is kept");
        for before in &caller.before {
            assert_eq!(Arc::strong_count(before), 1, "an old waker is kept");
        }
        let id = caller.ticket.id;
        let book = self.book(id);
        book.members.remove(&number);
        if book.leader == Some(number) {
            book.leader = None;
        }
        let parked = matches!(book.stage, Stage::Parked(_) | Stage::Over { .. });
        if book.members.is_empty() && parked {
            self.unlist(id);
            self.books.remove(&id);
        }
    }

    // ===== What drivers do =====

    fn random_end(&mut self, id: u64, b: u16) {
        let book = &self.books[&id];
        let unsent = book.sent.is_none();
        let sent = book.sent.or(b.is_multiple_of(3).then_some(book.asked));
        let dropped = book.task.is_some() && b % 64 == 13;
        let end = match b % 16 {
            _ if dropped => End::Failed(Failure::Abandoned, false),
            0..10 => End::Pending(if unsent { sent } else { book.sent }),
            10..14 => End::Ready,
            14 => End::Failed(Failure::Panicked, true),
            _ => End::Failed(Failure::TimedOut, false),
        };
        self.end(id, end);
    }

    /// Whoever drives the flight is done with polling it. What fell out when it is the end for all.
    pub(super) fn end(&mut self, id: u64, end: End) -> Option<Landing> {
        let Stage::Driven(by) = self.books[&id].stage else {
            panic!("somebody drives it");
        };
        let work = self.hands.remove(&id).expect("whoever drives holds it");
        let landed = match (end, by) {
            (End::Pending(sent), By::Caller(number)) => {
                if self.tasks && self.books[&id].leader == Some(number) {
                    self.detach(id, number, work);
                } else {
                    self.park(id, number, work, sent);
                }
                None
            }
            (End::Pending(sent), By::Task) => {
                if let Some(priority) = sent {
                    let ticket = self.ticket(id, by);
                    self.inside(|shard, _| shard.sent(ticket, priority));
                    self.book(id).sent = sent;
                }
                self.hands.insert(id, work);
                None
            }
            (End::Ready, _) => Some(self.finish(id, by, work)),
            (End::Failed(why, panic), _) => {
                let own = panic.then(Thing::new);
                self.tell(id, by, own, Others::Failed(why));
                self.reuse(work);
                None
            }
        };
        self.check();
        landed
    }

    fn park(&mut self, id: u64, number: usize, work: Thing, sent: Option<Priority>) {
        let now = self.now;
        let caller = &self.callers[&number];
        let (ticket, waker) = (caller.ticket, caller.waker.clone());
        let (piece, looked) = (work.0, Cell::new(false));
        let mut fell = None;
        let wake = self.inside(|shard, debris| {
            let clock = || {
                looked.set(true);
                now
            };
            let wake = shard.park(ticket, work, sent, &waker, clock, debris);
            fell = debris.work();
            wake
        });
        drop(waker);
        self.fell = fell.as_ref().map(|work| work.0);
        let book = self.book(id);
        assert_eq!(looked.get(), book.since.is_none(), "one look at the clock");
        book.since.get_or_insert(now);
        book.sent = sent;
        match book.doomed {
            Some(orphan) => {
                assert_eq!(fell.as_ref().map(|work| work.0), Some(piece));
                let others = told(orphan);
                book.stage = Stage::Over { own: None, others };
                self.unlist(id);
                self.caller(number).fresh = true;
            }
            None => {
                assert!(fell.is_none());
                book.stage = Stage::Parked(piece);
                // Its poll is over.
                self.caller(number).fresh = false;
                self.is_seated(number, true);
            }
        }
        if wake {
            self.rouse(id);
        }
        self.check();
        if let Some(work) = fell {
            self.reuse(work);
        }
    }

    /// The leader hands its flight to a task.
    fn detach(&mut self, id: u64, number: usize, work: Thing) {
        let now = self.now;
        let caller = &self.callers[&number];
        let (ticket, waker) = (caller.ticket, caller.waker.clone());
        self.inside(|shard, _| shard.detach(ticket, &waker, now));
        drop(waker);
        self.is_seated(number, true);
        let book = self.book(id);
        book.since = Some(now);
        book.stage = Stage::Driven(By::Task);
        book.lent = Lent::ToTask;
        book.task = Some(Ticket {
            seat: u32::MAX,
            leader: false,
            ..ticket
        });
        self.hands.insert(id, work);
    }

    fn finish(&mut self, id: u64, by: By, work: Thing) -> Landing {
        let ticket = self.ticket(id, by);
        let keep = !self.rules.grace.is_zero();
        let book = &self.books[&id];
        let (leader, waiters) = (book.leader.is_some(), book.members.len() as u32);
        let expected = Landing {
            alone: leader && by != By::Task && waiters == 1 && !keep,
            leader,
            waiters,
            since: book.since,
        };
        if self.spares.len() < CABINS {
            self.spares.push(work.0);
        }
        let landing = self.inside(|shard, debris| shard.finish(ticket, work, debris));
        assert_eq!(landing, expected);
        if !keep {
            self.unlist(id);
        }
        self.book(id).stage = Stage::Done(by, landing);
        if let (true, By::Caller(number)) = (landing.alone, by) {
            self.left.push(ticket);
            self.book(id).stage = Stage::Over {
                own: None,
                others: Told::Released,
            };
            self.goes(number);
        }
        landing
    }

    /// A result that was looked at is published.
    pub(super) fn publish(&mut self, id: u64, share: Share) {
        let Stage::Done(by, landing) = self.books[&id].stage else {
            panic!("it has a result");
        };
        let shared = landing.waiters > 0 || !self.rules.grace.is_zero();
        let own = || landing.leader.then(Thing::new);
        match share {
            Share::All if shared => {
                let shared = Arc::new(Thing::new());
                self.tell(id, by, None, Others::Take(shared));
            }
            Share::All | Share::LeaderOnly => self.tell(id, by, own(), Others::Released),
            Share::Failed => self.tell(id, by, own(), Others::Failed(Failure::Panicked)),
        }
        self.check();
    }

    fn tell(&mut self, id: u64, by: By, own: Option<Thing>, others: Others<Toy>) {
        let ticket = self.ticket(id, by);
        let (now, grace) = (self.now, self.rules.grace);
        let keep = (!grace.is_zero()).then_some(now);
        let stage = Stage::Over {
            own: own.as_ref().map(|own| own.0),
            others: match &others {
                Others::Take(shared) => Told::Take(shared.0),
                Others::Released => Told::Released,
                Others::Anew => Told::Anew,
                Others::Failed(why) => Told::Failed(*why),
            },
        };
        self.inside(|shard, debris| shard.publish(ticket, own, others, keep, None, debris));
        let book = self.book(id);
        let name = book.name;
        match stage {
            Stage::Over {
                others: Told::Take(shared),
                ..
            } if book.listed && keep.is_some() => {
                book.listed = false;
                let entry = self.entries.get_mut(&name).expect("it is listed");
                entry.at = Place::Kept { id, shared };
                self.kept.push((now + grace, name, id));
            }
            _ => self.unlist(id),
        }
        self.book(id).stage = stage;
        self.rouse(id);
        if self.books[&id].members.is_empty() {
            self.books.remove(&id);
        }
        if let By::Caller(number) = by {
            // It goes on to ask for its verdict.
            self.caller(number).fresh = true;
        }
    }

    /// Work that is empty is put aside.
    fn reuse(&mut self, work: Thing) {
        self.fell = None;
        let room = self.spares.len() < CABINS;
        if room {
            self.spares.push(work.0);
        }
        let left_over = self.inside(|shard, _| shard.recycle(work));
        assert_eq!(left_over.is_some(), !room);
    }

    // ===== What else happens =====

    /// What the flight waits for is there.
    pub(super) fn ring(&mut self, id: u64) {
        let book = &self.books[&id];
        match book.lent {
            Lent::To(number) => {
                // Its own waker; if it is gone, nobody hears it.
                if let Some(caller) = self.callers.get(&number) {
                    caller.waker.wake_by_ref();
                }
            }
            Lent::ToAll => self.bell(book.slot, id),
            Lent::ToTask => {}
        }
    }

    fn bell(&mut self, slot: u32, id: u64) {
        let wake = self.inside(|shard, _| shard.ring(slot, id));
        let mut parked = false;
        if let Some(book) = self.books.get_mut(&id)
            && book.slot == slot
        {
            book.rung = true;
            parked = matches!(book.stage, Stage::Parked(_));
        }
        assert_eq!(wake, parked, "who sleeps is woken");
        if wake {
            self.due.push(Due { slot, id, from: 0 });
        }
    }

    pub(super) fn tidy(&mut self) {
        let now = self.now;
        self.sweep();
        self.remembered.retain(|_, until| *until > now);
        let mut swept = None;
        self.inside(|shard, _| shard.tidy(now, &mut swept));
        drop(swept);
        assert_eq!(self.shard.remembered(), self.remembered.len());
        self.check();
    }

    pub(super) fn remember(&mut self, name: u64) {
        let (ttl, cap) = self.rules.remember;
        let now = self.now;
        if cap > 0 {
            self.remembered.retain(|_, until| *until > now);
            self.remembered.insert(hash(name), now + ttl);
        }
        self.inside(|shard, _| shard.remember(hash(name), now));
        assert_eq!(self.shard.remembered(), self.remembered.len());
    }

    /// All wakes that are due.
    pub(super) fn wake(&mut self) {
        while !self.due.is_empty() {
            self.wake_some(0);
        }
    }

    /// As many as are taken at a time.
    fn wake_some(&mut self, place: usize) {
        let Due { slot, id, from } = self.due.swap_remove(place);
        let mut wakers = Wakers::new();
        let next = self.inside(|shard, _| shard.wakers(slot, id, from, &mut wakers));
        if let Some(from) = next {
            self.due.push(Due { slot, id, from });
        }
        wakers.wake().expect("flags do not panic");
    }

    fn rouse(&mut self, id: u64) {
        let slot = self.books[&id].slot;
        self.due.push(Due { slot, id, from: 0 });
    }

    fn sweep(&mut self) {
        let now = self.now;
        let due: Vec<_> = self
            .kept
            .extract_if(.., |(until, ..)| *until <= now)
            .collect();
        for (_, name, id) in due {
            let entry = self.entries.remove(&name).expect("what is kept is listed");
            let Place::Kept { id: kept, .. } = entry.at else {
                panic!("it is kept");
            };
            assert_eq!(kept, id);
        }
    }

    fn unlist(&mut self, id: u64) {
        let book = self.books.get_mut(&id).expect("it is in the books");
        if std::mem::replace(&mut book.listed, false) {
            self.entries.remove(&book.name);
        }
    }

    // ===== Looking =====

    /// Runs `work` inside of the shard; what falls out falls outside.
    fn inside<R>(&mut self, work: impl FnOnce(&mut Shard<Toy>, &mut Debris<Toy>) -> R) -> R {
        let wakers = |world: &Self| {
            let flags = world.callers.values();
            flags
                .flat_map(|caller| caller.before.iter().chain([&caller.flag]))
                .map(|flag| Arc::strong_count(flag) as isize)
                .sum::<isize>()
        };
        let mut debris = Debris::default();
        let before = wakers(self);
        INSIDE.set(true);
        let result = work(&mut self.shard, &mut debris);
        INSIDE.set(false);
        assert!(wakers(self) >= before, "a waker was dropped inside");
        drop(debris);
        result
    }

    fn ticket(&self, id: u64, by: By) -> Ticket {
        match by {
            By::Caller(number) => self.callers[&number].ticket,
            By::Task => self.books[&id].task.expect("it has a task"),
        }
    }

    fn book(&mut self, id: u64) -> &mut Book {
        self.books.get_mut(&id).expect("it is in the books")
    }

    fn caller(&mut self, number: usize) -> &mut Caller {
        self.callers.get_mut(&number).expect("it waits")
    }

    /// The flight the caller waits for.
    pub(super) fn flight(&self, number: usize) -> u64 {
        self.callers[&number].ticket.id
    }

    /// Whether the caller waits, and does not drive.
    fn waits(&self, number: usize) -> bool {
        let by = By::Caller(number);
        match &self.books[&self.flight(number)].stage {
            Stage::Driven(driver) | Stage::Done(driver, _) => *driver != by,
            _ => true,
        }
    }

    /// Whether the caller was woken, or will be polled all the same.
    pub(super) fn runs(&self, number: usize) -> bool {
        let caller = &self.callers[&number];
        caller.fresh || caller.flag.0.load(SeqCst)
    }

    /// Whether the caller was woken, or is about to be.
    fn stirs(&self, number: usize) -> bool {
        let ticket = self.callers[&number].ticket;
        let due = |due: &Due| {
            (due.slot, due.id) == (ticket.slot, ticket.id) && due.from <= ticket.seat as usize
        };
        self.runs(number) || self.due.iter().any(due)
    }

    /// Checks whether the shard holds the waker of the caller's task, and none it had before.
    fn is_seated(&self, number: usize, seated: bool) {
        let caller = &self.callers[&number];
        // Those of the caller itself, and of whoever looks.
        let held = Arc::strong_count(&caller.flag) - 2;
        assert!(held >= usize::from(seated), "its waker is in its seat");
        for before in &caller.before {
            assert_eq!(Arc::strong_count(before), 1, "an old waker is kept");
        }
    }

    fn pick(&self, a: u16, fits: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        let fit: Vec<_> = self.callers.keys().filter(|n| fits(self, **n)).collect();
        (!fit.is_empty()).then(|| *fit[usize::from(a) % fit.len()])
    }

    fn choose(&self, a: u16, fits: impl Fn(&Book) -> bool) -> Option<u64> {
        let fit: Vec<_> = self.books.iter().filter(|(_, book)| fits(book)).collect();
        (!fit.is_empty()).then(|| *fit[usize::from(a) % fit.len()].0)
    }

    // ===== Comparing =====

    /// Compares the shard with the books.
    pub(super) fn check(&self) {
        assert_eq!(self.shard.live(), self.books.len());
        assert_eq!(self.shard.waiters(), self.callers.len());
        assert_eq!(self.shard.kept(), self.kept.len());
        // A flight whose result is kept may have waiters that did not come for it yet.
        let kept = self.kept.iter().map(|(.., id)| id);
        let places: BTreeSet<_> = self.books.keys().chain(kept).collect();
        assert!(places.len() <= self.rules.max_keys);
        self.check_entries();
        self.check_flights();
        self.check_things();
        for (id, book) in &self.books {
            self.check_sleep(*id, book);
        }
    }

    fn check_entries(&self) {
        let mut names = BTreeSet::new();
        for entry in &self.shard.table {
            assert!(names.insert(entry.key.1), "one entry a key");
            let Some(listed) = self.entries.get(&entry.key.1) else {
                panic!("key {} is not listed", entry.key.1);
            };
            assert_eq!((entry.hash, entry.key.0.0), (hash(entry.key.1), listed.key));
            match (&entry.at, listed.at) {
                (At::Flight(slot), Place::Flight(id)) => {
                    let book = &self.books[&id];
                    assert_eq!(*slot, book.slot);
                    assert!(book.listed);
                }
                (
                    At::Kept(shared, id),
                    Place::Kept {
                        id: kept,
                        shared: expected,
                    },
                ) => {
                    assert_eq!((shared.0, *id), (expected, kept));
                }
                _ => panic!("key {} leads somewhere else", entry.key.1),
            }
        }
        assert_eq!(names.len(), self.entries.len());
    }

    fn check_flights(&self) {
        let there = self.shard.flights.iter().filter(|flight| flight.id != 0);
        let there = there.count();
        assert_eq!(there, self.books.len());
        let vacant: BTreeSet<_> = self.shard.vacant.iter().collect();
        assert_eq!(vacant.len(), self.shard.vacant.len(), "vacant once");
        assert_eq!(vacant.len() + there, self.shard.flights.len());
        for (id, book) in &self.books {
            let flight = &self.shard.flights[book.slot as usize];
            assert_eq!((flight.id, flight.hash), (*id, hash(book.name)));
            assert_eq!(flight.listed, book.listed);
            assert_eq!(flight.crowd() as usize, book.members.len());
            assert_eq!(flight.leader, book.leader.is_some());
            assert_eq!((flight.sent, flight.since), (book.sent, book.since));
            assert_eq!(flight.detached, book.task.is_some());
            match (&flight.state, &book.stage) {
                (State::Parked(work), Stage::Parked(expected)) => assert_eq!(work.0, *expected),
                (State::Driven, Stage::Driven(_) | Stage::Done(..)) => {}
                (
                    State::Over { own, others, .. },
                    Stage::Over {
                        own: expected,
                        others: told,
                    },
                ) => {
                    assert_eq!(own.as_ref().map(|own| own.0), *expected);
                    match (others, told) {
                        (Others::Take(shared), Told::Take(expected)) => {
                            assert_eq!(shared.0, *expected);
                        }
                        (Others::Released, Told::Released) | (Others::Anew, Told::Anew) => {}
                        (Others::Failed(why), Told::Failed(told)) => assert_eq!(why, told),
                        _ => panic!("the others are told something else"),
                    }
                }
                (_, stage) => panic!("it is not {stage:?}"),
            }
        }
    }

    /// Everything foreign is where the books say, and nothing else is anywhere.
    fn check_things(&self) {
        let mut expected = BTreeSet::new();
        let mut add = |thing: u64| assert!(expected.insert(thing), "in one place");
        self.spares.iter().copied().for_each(&mut add);
        self.fell.into_iter().for_each(&mut add);
        self.hands.values().map(|work| work.0).for_each(&mut add);
        for listed in self.entries.values() {
            add(listed.key);
        }
        let mut shared = BTreeSet::new();
        for entry in self.entries.values() {
            if let Place::Kept { shared: kept, .. } = entry.at {
                shared.insert(kept);
            }
        }
        for book in self.books.values() {
            match &book.stage {
                Stage::Parked(work) => add(*work),
                Stage::Over { own, others } => {
                    own.iter().copied().for_each(&mut add);
                    if let Told::Take(taken) = others {
                        shared.insert(*taken);
                    }
                }
                _ => {}
            }
        }
        shared.into_iter().for_each(&mut add);
        // Keys of callers are dropped when they have joined, or looked at then.
        THINGS.with_borrow(|things| assert_eq!(*things, expected));
        let spares: Vec<_> = self.shard.spares.iter().map(|spare| spare.0).collect();
        assert_eq!(spares, self.spares);
    }

    /// Nobody sleeps over something.
    fn check_sleep(&self, id: u64, book: &Book) {
        let awake = |except: Option<usize>, why: &str| {
            for member in &book.members {
                let stirs = Some(*member) == except || self.stirs(*member);
                assert!(stirs, "a waiter of flight {id} sleeps over {why}");
            }
        };
        match (&book.stage, book.lent) {
            (Stage::Over { .. }, _) => awake(None, "its end"),
            (Stage::Parked(_), _) if book.rung => awake(None, "work that rings"),
            (Stage::Parked(_), Lent::To(owner)) => {
                awake(Some(owner), "work that reaches somebody else");
            }
            _ => {}
        }
        if let Stage::Driven(By::Task) = book.stage {
            assert!(book.task.is_some());
        } else {
            assert!(!book.members.is_empty() || book.task.is_some());
        }
    }

    /// Everything that is awaited comes, and nobody is polled who was not woken: all get something, and nothing stays.
    pub(super) fn quiet(mut self) {
        self.wake();
        let mut turns = 0;
        while !self.books.is_empty() {
            turns += 1;
            assert!(turns < 10_000, "somebody waits for ever: {:?}", self.books);
            let ids: Vec<_> = self.books.keys().copied().collect();
            for id in ids {
                match self.books.get(&id).map(|book| &book.stage) {
                    Some(Stage::Driven(_)) => _ = self.end(id, End::Ready),
                    Some(Stage::Done(..)) => self.publish(id, Share::All),
                    Some(Stage::Parked(_)) if turns % 2 == 0 => self.ring(id),
                    _ => {}
                }
            }
            self.wake();
            let awake: Vec<_> = self.callers.keys().copied().collect();
            for number in awake {
                if self.callers.contains_key(&number) && self.waits(number) && self.runs(number) {
                    self.ask(number);
                }
            }
        }
        assert!(self.callers.is_empty() && self.hands.is_empty());
        self.now += ms(1_000_000);
        self.tidy();
        assert_eq!((self.shard.live(), self.shard.waiters()), (0, 0));
        assert_eq!((self.shard.kept(), self.shard.remembered()), (0, 0));
        assert!(self.shard.table.is_empty());
        assert!(self.shard.flights.len() <= SPARES && self.shard.spares.len() <= CABINS);
        let spares = self.spares.len();
        THINGS.with_borrow(|things| assert_eq!(things.len(), spares));
    }
}

/// What the books say a caller finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Lead { replaces: bool },
    Follow(u64),
    Kept(u64),
    Alone(Bypass),
}

fn told(orphan: Orphan) -> Told {
    match orphan {
        Orphan::Anew => Told::Anew,
        Orphan::Fail => Told::Failed(Failure::Abandoned),
    }
}
