//! A world around the core: it plays the shell, keeps books of its own from what it did and what it was told to do,
//! and compares them with the core's after every step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};
use std::time::Duration;

use super::super::conn::Conn;
use super::super::conn::Stage;
use super::super::waiter::Waiter;
use super::super::*;
use crate::base::clock;

/// A connection as the core lists it.
type Listed = (ConnId, Stage, HostId, bool, Version, Instant);

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A pool without bounds, for who sets those of interest.
pub(super) fn limits() -> Limits {
    Limits {
        connections: 100,
        per_host: 100,
        draining_allowance: 0,
        idle: 100,
        idle_per_host: 100,
        min_idle: 0,
        idle_timeout: ms(1_000),
        lifetime: None,
        requests: u64::MAX,
        connecting: 100,
        pending: 100,
        acquire: ms(10_000),
        backoff: (ms(100), ms(1_000)),
        streams: usize::MAX,
        scale_at: 0.8,
        version: None,
        hosts: 100,
    }
}

/// One thing that happens. The numbers pick among what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Acquire(u16),
    /// A request lost its connection before it was sent, and comes again.
    Again(u16),
    Cancel(u16),
    Poll(u16),
    Connected(u16, u16),
    Failed(u16, bool),
    Gone(u16, u16),
    /// The socket of one that closes is gone.
    Buried(u16),
    Free(u16, bool),
    Leave(u16),
    Limited(u16, u16),
    /// Time passes and every alarm is heard when it rings.
    Time(u16),
    /// Time passes, and the alarm is heard late.
    Late(u16),
    CloseIdle,
    Refresh(u16),
    Warm(u16, u16),
    Limit(u16, u16),
    Retire,
    Shut,
}

impl Step {
    /// The step that chance chose: `roll` within 0 and 1,000 says what, `a` and `b` which.
    pub(super) fn of(roll: u16, a: u16, b: u16) -> Self {
        match roll {
            0..220 => Self::Acquire(a),
            220..240 => Self::Again(a),
            240..280 => Self::Cancel(a),
            280..400 => Self::Poll(a),
            400..540 => Self::Connected(a, b),
            540..575 => Self::Failed(a, b % 2 == 1),
            575..600 => Self::Gone(a, b),
            600..700 => Self::Buried(a),
            700..850 => Self::Free(a, !b.is_multiple_of(8)),
            850..870 => Self::Leave(a),
            870..890 => Self::Limited(a, b),
            890..940 => Self::Time(a),
            940..955 => Self::Late(a),
            955..960 => Self::CloseIdle,
            960..970 => Self::Refresh(a),
            970..985 => Self::Warm(a, b),
            985..998 => Self::Limit(a, b),
            998 => Self::Retire,
            _ => Self::Shut,
        }
    }
}

/// What a host is in the books.
#[derive(Debug)]
struct Book {
    id: HostId,
    version: Option<Version>,
    streams: Option<usize>,
    failures: u32,
    line: VecDeque<usize>,
    warming: Vec<usize>,
}

/// What a connection is in the books.
#[derive(Debug)]
struct Known {
    book: usize,
    stage: At,
    version: Version,
    room: usize,
    /// As many requests as it was given and that were not given back.
    requests: u64,
    /// Why it may be leaving.
    told: BTreeSet<&'static str>,
    leaving: bool,
    since: Instant,
    idle_since: Instant,
    expires: Option<Instant>,
    /// The reason the core has for closing it.
    closing: Option<CloseReason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Dialling,
    Up,
    Closing,
}

#[derive(Debug)]
struct Lease {
    conn: ConnId,
    /// Granted to one who did not come for it yet.
    ticket: Option<usize>,
}

#[derive(Debug)]
struct Enrolled {
    id: WaiterId,
    book: usize,
    since: Instant,
    warm: Option<usize>,
    answered: bool,
    waker: Waker,
}

/// How many waiters ended in which way.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) enrolled: usize,
    pub(super) granted: usize,
    pub(super) opened: usize,
    pub(super) failed: usize,
    pub(super) timed_out: usize,
    pub(super) closed: usize,
    pub(super) cancelled: usize,
}

struct Bell {
    ticket: usize,
    rung: Arc<Mutex<Vec<usize>>>,
    times: AtomicUsize,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.times.fetch_add(1, SeqCst);
        self.rung.lock().expect("no panic within").push(self.ticket);
    }
}

pub(super) struct World {
    pub(super) core: Core,
    pub(super) now: Instant,
    pub(super) ends: Ends,
    limits: Limits,
    names: usize,
    books: Vec<Option<Book>>,
    conns: BTreeMap<ConnId, Known>,
    leases: Vec<Lease>,
    waiters: BTreeMap<usize, Enrolled>,
    rung: Arc<Mutex<Vec<usize>>>,
    tickets: usize,
    late: bool,
    retired: bool,
    shut: bool,
    /// What the last step did.
    dialled: Vec<usize>,
    evicted: bool,
    surplus: Vec<usize>,
    /// Every host that was dialled, in order.
    pub(super) dials: Vec<usize>,
    /// Every connection that was closed by the core, in order.
    pub(super) closes: Vec<ConnId>,
}

impl World {
    /// A world of so many hosts, with limits made of `dice`.
    pub(super) fn thrown(dice: [u16; 16]) -> Self {
        let die = |n: usize, sides: u16| usize::from(dice[n] % sides);
        let mut of = limits();
        of.connections = 1 + die(0, 4);
        of.per_host = 1 + die(1, 4);
        of.draining_allowance = die(2, 3);
        of.idle = die(3, 5);
        of.idle_per_host = die(4, 4);
        of.min_idle = die(5, 8).saturating_sub(5);
        of.idle_timeout = ms([100, 30, 10, 1_000][die(6, 4)]);
        of.lifetime = [None, Some((ms(80), 0.5)), Some((ms(200), 0.0))][die(7, 3)];
        of.requests = [u64::MAX, 1, 2, 3][die(8, 4)];
        of.connecting = [8, 1, 2][die(9, 3)];
        of.pending = [3, 2, 1, 0, 100][die(10, 5)];
        of.acquire = ms([10_000, 60, 20][die(11, 3)]);
        of.backoff = [(ms(10), ms(40)), (ms(0), ms(0))][die(12, 2)];
        of.scale_at = [0.8, 0.5, 1.0, 0.0][die(13, 4)];
        of.streams = [usize::MAX, 1, 2][die(14, 3)];
        of.hosts = 1 + die(15, 3);
        of.version = [None, None, Some(Version::Http1)][usize::from(dice[15] / 16 % 3)];
        let names = 1 + usize::from(dice[0] / 16 % 4);
        Self::new(of, names)
    }

    pub(super) fn new(limits: Limits, names: usize) -> Self {
        Self {
            core: Core::new(limits.clone(), 7),
            now: clock::now(),
            ends: Ends::default(),
            limits,
            names,
            books: (0..names).map(|_| None).collect(),
            conns: BTreeMap::new(),
            leases: Vec::new(),
            waiters: BTreeMap::new(),
            rung: Arc::default(),
            tickets: 0,
            late: false,
            retired: false,
            shut: false,
            dialled: Vec::new(),
            evicted: false,
            surplus: Vec::new(),
            dials: Vec::new(),
            closes: Vec::new(),
        }
    }

    /// One step, and a look at everything.
    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Acquire(host) if !self.retired || self.shut => {
                let _ = self.acquire(usize::from(host) % self.names, false);
            }
            Step::Acquire(_) => {}
            Step::Again(which) => self.again(which),
            Step::Cancel(which) => {
                if let Some(ticket) = pick(self.waiters.keys().copied(), which) {
                    self.cancel(ticket);
                }
            }
            Step::Poll(which) => {
                if let Some(ticket) = pick(self.waiters.keys().copied(), which) {
                    self.poll(ticket);
                }
            }
            Step::Connected(which, how) => {
                if let Some(conn) = self.pick_conn(which, |known| known.stage == At::Dialling) {
                    let version = match how % 8 {
                        // Most hosts speak one protocol.
                        0 => Version::Http2,
                        1 => Version::Http1,
                        _ if self.conns[&conn].book.is_multiple_of(2) => Version::Http1,
                        _ => Version::Http2,
                    };
                    self.connected(conn, version, 1 + usize::from(how / 8 % 4));
                }
            }
            Step::Failed(which, timed_out) => {
                if let Some(conn) = self.pick_conn(which, |known| known.stage == At::Dialling) {
                    self.failed(conn, timed_out);
                }
            }
            Step::Gone(which, why) => {
                if let Some(conn) = self.pick_conn(which, |_| true) {
                    self.gone(conn, CloseReason::ALL[usize::from(why) % 12]);
                }
            }
            Step::Buried(which) => {
                if let Some(conn) = self.pick_conn(which, |known| known.stage == At::Closing) {
                    self.gone(conn, CloseReason::Peer);
                }
            }
            Step::Free(which, used) => {
                let taken = |(at, lease): (usize, &Lease)| lease.ticket.is_none().then_some(at);
                let taken: Vec<_> = self.leases.iter().enumerate().filter_map(taken).collect();
                if let Some(at) = pick(taken, which) {
                    self.free(at, used);
                }
            }
            Step::Leave(which) => {
                if let Some(conn) = self.pick_conn(which, |known| known.stage != At::Closing) {
                    self.leave(conn);
                }
            }
            Step::Limited(which, room) => {
                if let Some(conn) = self.pick_conn(which, |_| true) {
                    self.limited(conn, usize::from(room % 5));
                }
            }
            Step::Time(n) => self.pass(ms(u64::from(n % 64))),
            Step::Late(n) => {
                self.now += ms(u64::from(n % 64));
                self.late = true;
            }
            Step::CloseIdle => {
                let idle = self.idle().count();
                assert_eq!(self.core.close_idle(), idle);
                self.carry_out();
            }
            Step::Refresh(host) => self.refresh(usize::from(host) % self.names),
            Step::Warm(host, n) if !self.retired => {
                self.warm(usize::from(host) % self.names, usize::from(n % 4));
            }
            Step::Warm(..) => {}
            Step::Limit(which, to) => {
                let to = usize::from(to % 5);
                self.limit(|limits| match which % 4 {
                    0 => limits.connections = to.max(1),
                    1 => limits.per_host = to.max(1),
                    2 => limits.idle = to,
                    _ => limits.idle_per_host = to,
                });
            }
            Step::Retire => self.retire(),
            Step::Shut => self.shut(),
        }
        self.look();
    }

    fn pick_conn(&self, which: u16, is: impl Fn(&Known) -> bool) -> Option<ConnId> {
        let those: Vec<_> = self.conns.iter().filter(|(_, known)| is(known)).collect();
        pick(those.into_iter().map(|(id, _)| *id), which)
    }

    // What the shell does.

    pub(super) fn host(&mut self, name: usize) -> HostId {
        let host = format!("h{name}");
        let key = HostKey {
            scheme: "http",
            name: &host,
            port: 80,
        };
        // Every second name has the hash of the one before it.
        let hash = name as u64 / 2;
        let uri = format!("http://{host}/");
        let id = self
            .core
            .host(hash, &key, || uri.parse().expect("a valid uri"));
        if self.books[name].as_ref().is_none_or(|book| book.id != id) {
            if let Some(old) = &self.books[name] {
                assert!(old.line.is_empty() && old.warming.is_empty());
                assert!(self.conns.values().all(|known| known.book != name));
            }
            self.books[name] = Some(Book {
                id,
                version: self.limits.version,
                streams: None,
                failures: 0,
                line: VecDeque::new(),
                warming: Vec::new(),
            });
        }
        id
    }

    fn waker(&mut self) -> (usize, Waker) {
        self.tickets += 1;
        let ticket = self.tickets;
        let rung = self.rung.clone();
        let times = AtomicUsize::new(0);
        (
            ticket,
            Waker::from(Arc::new(Bell {
                ticket,
                rung,
                times,
            })),
        )
    }

    fn enrol(
        &mut self,
        ticket: usize,
        id: WaiterId,
        name: usize,
        warm: Option<usize>,
        waker: Waker,
    ) {
        self.ends.enrolled += 1;
        let enrolled = Enrolled {
            id,
            book: name,
            since: self.now,
            warm,
            answered: false,
            waker,
        };
        self.waiters.insert(ticket, enrolled);
    }

    /// Whether it was granted a connection at once, or its ticket when it waits.
    pub(super) fn acquire(&mut self, name: usize, before: bool) -> Result<ConnId, Option<usize>> {
        let host = self.host(name);
        let (ticket, waker) = self.waker();
        let with = waker.clone();
        match self.core.acquire(self.now, host, before, move || with) {
            Acquired::Granted(grant) => {
                let line = &self.book(name).line;
                assert!(line.is_empty(), "a newcomer barged past {line:?}");
                self.carry_out();
                self.grant(name, grant.conn, None);
                Ok(grant.conn)
            }
            Acquired::Queued(id) => {
                self.enrol(ticket, id, name, None, waker);
                let line = &mut self.book_mut(name).line;
                match before {
                    true => line.push_front(ticket),
                    false => line.push_back(ticket),
                }
                self.carry_out();
                Err(Some(ticket))
            }
            Acquired::Refused(refusal) => {
                self.carry_out();
                let wanted = self.wanted(name, 1);
                let book = self.book(name);
                match refusal {
                    Refusal::Closed => assert!(self.shut),
                    Refusal::Full { pending } => {
                        assert!(!before && pending >= self.limits.pending);
                        let room = self.conns.len() < self.limits.connections;
                        assert!(
                            !(wanted > 0 && room),
                            "refused though a dial could begin for it"
                        );
                    }
                    Refusal::BackingOff { until, .. } => {
                        assert!(
                            until > self.now && self.live(name) == 0 && self.dialling(name) == 0
                        );
                        assert!(book.failures > 0);
                    }
                }
                Err(None)
            }
        }
    }

    fn again(&mut self, which: u16) {
        let taken = |(at, lease): (usize, &Lease)| lease.ticket.is_none().then_some(at);
        let taken: Vec<_> = self.leases.iter().enumerate().filter_map(taken).collect();
        let Some(at) = pick(taken, which) else {
            return;
        };
        let conn = self.leases[at].conn;
        let name = match self.conns.get(&conn) {
            Some(known) => known.book,
            None => usize::from(which) % self.names,
        };
        self.leave(conn);
        self.look();
        self.free(at, true);
        self.look();
        let _ = self.acquire(name, true);
    }

    pub(super) fn warm(&mut self, name: usize, target: usize) -> Option<usize> {
        let host = self.host(name);
        let (ticket, waker) = self.waker();
        match self.core.warm(self.now, host, target, waker.clone()) {
            Acquired::Queued(id) => {
                self.enrol(ticket, id, name, Some(target), waker);
                self.book_mut(name).warming.push(ticket);
                self.carry_out();
                Some(ticket)
            }
            Acquired::Refused(_) => {
                self.carry_out();
                None
            }
            Acquired::Granted(_) => panic!("who warms wants no connection"),
        }
    }

    pub(super) fn poll(&mut self, ticket: usize) -> Option<Answer> {
        let enrolled = &self.waiters[&ticket];
        let waker = enrolled.waker.clone();
        match self.core.poll(enrolled.id, &mut waker.clone()) {
            Poll::Pending => {
                assert!(!enrolled.answered, "answered, and no answer is there");
                None
            }
            Poll::Ready(answer) => {
                assert!(enrolled.answered, "answered and not woken");
                self.waiters.remove(&ticket);
                match &answer {
                    Answer::Granted(grant) => {
                        self.ends.granted += 1;
                        let mut leases = self.leases.iter_mut();
                        let lease = leases
                            .find(|lease| lease.ticket == Some(ticket))
                            .expect("its grant is in the books");
                        assert_eq!(lease.conn, grant.conn);
                        lease.ticket = None;
                    }
                    Answer::Open(_) => self.ends.opened += 1,
                    Answer::Failed(_) => self.ends.failed += 1,
                    Answer::TimedOut { .. } => self.ends.timed_out += 1,
                    Answer::Closed => self.ends.closed += 1,
                }
                Some(answer)
            }
        }
    }

    pub(super) fn cancel(&mut self, ticket: usize) {
        let Some(enrolled) = self.waiters.remove(&ticket) else {
            return;
        };
        self.ends.cancelled += 1;
        if let Some(book) = &mut self.books[enrolled.book] {
            book.line.retain(|other| *other != ticket);
            book.warming.retain(|other| *other != ticket);
        }
        if let Some(at) = self
            .leases
            .iter()
            .position(|lease| lease.ticket == Some(ticket))
        {
            let conn = self.leases.remove(at).conn;
            self.given_back(conn, false);
        }
        drop(self.core.cancel(self.now, enrolled.id));
        self.carry_out();
    }

    pub(super) fn connected(&mut self, conn: ConnId, version: Version, room: usize) {
        let now = self.now;
        let room = match version {
            Version::Http1 => 1,
            Version::Http2 => room.min(self.limits.streams),
        };
        let Some(known) = self.conns.get_mut(&conn) else {
            panic!("nobody dials {conn:?}");
        };
        if known.stage == At::Dialling {
            known.stage = At::Up;
            known.version = version;
            known.room = room;
            known.since = now;
            known.idle_since = now;
            let name = known.book;
            let book = self.book_mut(name);
            book.version = Some(version);
            book.failures = 0;
            if version == Version::Http2 {
                book.streams = Some(room);
            }
        }
        self.core.connected(now, conn, version, room);
        let expires = self.core.conns[conn].expires;
        if let Some(known) = self.conns.get_mut(&conn)
            && known.stage == At::Up
        {
            known.expires = expires;
            let within = self.limits.lifetime.map(|(life, jitter)| {
                let age = expires.expect("it has a lifetime") - now;
                age <= life && age >= life.mul_f64(1.0 - jitter)
            });
            assert!(within.unwrap_or(expires.is_none()));
        }
        self.carry_out();
    }

    pub(super) fn failed(&mut self, conn: ConnId, timed_out: bool) {
        let now = self.now;
        let known = self.conns.get_mut(&conn).expect("it is dialled");
        let name = known.book;
        if known.stage == At::Dialling {
            known.stage = At::Closing;
            known.closing = Some(CloseReason::Dial);
            let id = self.book(name).id;
            if self.core.hosts[id].retry_at.is_none_or(|at| at <= now) {
                self.book_mut(name).failures += 1;
            }
        }
        let cause = Cause {
            phase: Phase::Connect,
            timed_out,
            error: "refused".into(),
        };
        self.core.failed(now, conn, Arc::new(cause));
        self.carry_out();
    }

    pub(super) fn gone(&mut self, conn: ConnId, reason: CloseReason) {
        let now = self.now;
        let gone = self.conns.remove(&conn).expect("it is open");
        let name = gone.book;
        let id = self.book(name).id;
        if gone.stage == At::Dialling && self.core.hosts[id].retry_at.is_none_or(|at| at <= now) {
            self.book_mut(name).failures += 1;
        }
        let told = self.core.gone(now, conn, reason).expect("it was open");
        match (gone.stage, gone.closing) {
            (At::Dialling, _) => assert_eq!(told.reason, CloseReason::Dial),
            (_, Some(known)) => assert_eq!(told.reason, known),
            (_, None) if !gone.leaving => assert_eq!(told.reason, reason),
            (_, None) => {}
        }
        assert_eq!(told.requests, gone.requests);
        self.carry_out();
    }

    /// A request is over: its lease is the one at `at`.
    pub(super) fn free(&mut self, at: usize, used: bool) {
        let lease = self.leases.remove(at);
        self.given_back(lease.conn, used);
        self.core.free(self.now, lease.conn, used);
        self.carry_out();
    }

    fn given_back(&mut self, conn: ConnId, used: bool) {
        let last = self.leases_on(conn) == 0;
        if let Some(known) = self.conns.get_mut(&conn) {
            known.requests -= u64::from(!used);
            if last {
                known.idle_since = self.now;
            }
        }
    }

    /// The request on `conn` is over.
    pub(super) fn done(&mut self, conn: ConnId) {
        let at = self
            .leases
            .iter()
            .position(|lease| lease.conn == conn && lease.ticket.is_none());
        self.free(at.expect("something runs on it"), true);
        self.look();
    }

    pub(super) fn leave(&mut self, conn: ConnId) {
        if let Some(known) = self.conns.get_mut(&conn)
            && known.stage == At::Up
        {
            known.told.insert("goaway");
        }
        self.core.leave(self.now, conn, CloseReason::GoAway);
        self.carry_out();
    }

    pub(super) fn limited(&mut self, conn: ConnId, room: usize) {
        let room = room.min(self.limits.streams);
        if let Some(known) = self.conns.get_mut(&conn)
            && known.version == Version::Http2
        {
            known.room = room;
            let name = known.book;
            self.book_mut(name).streams = Some(room);
        }
        self.core.limited(self.now, conn, room);
        self.carry_out();
    }

    /// Time passes; nobody looks at it but when the alarm rings.
    pub(super) fn pass(&mut self, by: Duration) {
        let until = self.now + by;
        if self.late {
            self.expire();
            self.look();
        }
        for _ in 0..10_000 {
            match self.core.alarm().filter(|at| *at <= until) {
                None => {
                    self.now = until;
                    return;
                }
                Some(at) => {
                    self.now = self.now.max(at);
                    self.expire();
                    self.look();
                }
            }
        }
        panic!("the alarm rings for ever");
    }

    fn expire(&mut self) {
        self.late = false;
        self.core.expire(self.now);
        self.carry_out();
    }

    pub(super) fn refresh(&mut self, name: usize) {
        let host = self.host(name);
        let of_host = |known: &&mut Known| known.book == name && known.stage == At::Up;
        for known in self.conns.values_mut().filter(of_host) {
            known.told.insert("asked");
        }
        let live = self.live(name);
        self.book_mut(name).failures = 0;
        assert_eq!(self.core.refresh(self.now, host), live);
        self.carry_out();
    }

    pub(super) fn limit(&mut self, change: impl Fn(&mut Limits)) {
        change(&mut self.limits);
        self.core.limit(self.now, change);
        self.carry_out();
    }

    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.core.retire();
        self.carry_out();
    }

    pub(super) fn shut(&mut self) {
        self.retired = true;
        self.shut = true;
        for known in self.conns.values_mut() {
            known.told.insert("shutdown");
        }
        self.core.shut(self.now);
        self.carry_out();
    }

    /// Does what the core decided, in its order.
    fn carry_out(&mut self) {
        for action in self.core.actions() {
            match action {
                Action::Dial(conn) => self.dial(conn),
                Action::Close(conn) => self.close(conn),
                Action::Wake(waker) => {
                    waker.wake();
                    let rung = std::mem::take(&mut *self.rung.lock().expect("no panic within"));
                    for ticket in rung {
                        self.answered(ticket);
                    }
                }
                Action::Discard(_) | Action::Alarm => {}
            }
        }
    }

    fn dial(&mut self, conn: ConnId) {
        let host = self.core.conns[conn].host;
        let of = |book: &Option<Book>| book.as_ref().is_some_and(|book| book.id == host);
        let name = self.books.iter().position(of).expect("a host it knows");
        assert!(!self.shut, "a dial after the pool shut down");
        let known = Known {
            book: name,
            stage: At::Dialling,
            version: Version::Http1,
            room: 0,
            requests: 0,
            told: BTreeSet::new(),
            leaving: false,
            since: self.now,
            idle_since: self.now,
            expires: None,
            closing: None,
        };
        assert!(self.conns.insert(conn, known).is_none(), "dialled twice");
        self.dialled.push(name);
        self.dials.push(name);
    }

    fn close(&mut self, conn: ConnId) {
        assert_eq!(
            self.leases_on(conn),
            0,
            "{conn:?} is closed under a request"
        );
        let why = self.core.conns[conn].leaving.expect("it is closing");
        let known = self.conns.get_mut(&conn).expect("it is open");
        assert_ne!(known.stage, At::Closing, "closed twice");
        self.closes.push(conn);
        let idled = self.now - known.idle_since;
        let right = match why {
            CloseReason::IdleTimeout => idled >= self.limits.idle_timeout && known.stage == At::Up,
            CloseReason::MaxLifetime => known.expires.is_some_and(|at| at <= self.now),
            CloseReason::MaxRequests => known.told.contains("requests"),
            CloseReason::GoAway => known.told.contains("goaway"),
            CloseReason::Asked | CloseReason::Evicted | CloseReason::Surplus => {
                known.stage == At::Up
            }
            CloseReason::Shutdown => self.retired,
            _ => false,
        };
        assert!(right, "{conn:?} was closed: {why:?}; {known:?}");
        known.stage = At::Closing;
        known.closing = Some(why);
        let name = known.book;
        match why {
            CloseReason::Evicted => self.evicted = true,
            CloseReason::Surplus => self.surplus.push(name),
            _ => {}
        }
    }

    fn answered(&mut self, ticket: usize) {
        let enrolled = self.waiters.get_mut(&ticket).expect("it waits");
        assert!(!enrolled.answered, "answered twice");
        enrolled.answered = true;
        let (name, id, since) = (enrolled.book, enrolled.id, enrolled.since);
        let warm = enrolled.warm.is_some();
        let waiter = &self.core.waiters[id];
        let conn = match waiter.answer.as_ref().expect("woken for its answer") {
            Answer::Granted(grant) => {
                assert!(!warm);
                Some(grant.conn)
            }
            Answer::Open(_) => {
                assert!(warm);
                None
            }
            Answer::Failed(_) => {
                assert_eq!(self.dialling(name), 0, "a dial under way would serve it");
                assert!(warm || self.live(name) == 0, "a connection would serve it");
                None
            }
            Answer::TimedOut { .. } => {
                assert!(!warm && since + self.limits.acquire <= self.now);
                None
            }
            Answer::Closed => {
                assert!(self.shut || (self.retired && warm));
                None
            }
        };
        let book = self.book_mut(name);
        match conn {
            Some(conn) => {
                assert_eq!(book.line.pop_front(), Some(ticket), "out of turn");
                self.grant(name, conn, Some(ticket));
            }
            None => {
                book.line.retain(|other| *other != ticket);
                book.warming.retain(|other| *other != ticket);
            }
        }
    }

    fn grant(&mut self, name: usize, conn: ConnId, ticket: Option<usize>) {
        let there = self.leases_on(conn);
        let (now, limits) = (self.now, &self.limits);
        let known = self.conns.get_mut(&conn).expect("it is open");
        assert_eq!((known.book, known.stage), (name, At::Up));
        assert!(there < known.room, "{conn:?} has no room");
        assert!(!known.leaving, "{conn:?} takes no more");
        assert!(
            known.expires.is_none_or(|at| at > now),
            "{conn:?} lived long enough"
        );
        let idled = now - known.idle_since;
        let core = self.core.conns[conn].idle_since;
        assert!(there > 0 || idled < limits.idle_timeout || core > known.idle_since);
        known.requests += 1;
        assert!(known.requests <= limits.requests);
        if known.requests == limits.requests {
            known.told.insert("requests");
        }
        self.leases.push(Lease { conn, ticket });
    }

    // The books.

    fn book(&self, name: usize) -> &Book {
        self.books[name].as_ref().expect("a host it knows")
    }

    fn book_mut(&mut self, name: usize) -> &mut Book {
        self.books[name].as_mut().expect("a host it knows")
    }

    fn leases_on(&self, conn: ConnId) -> usize {
        self.leases
            .iter()
            .filter(|lease| lease.conn == conn)
            .count()
    }

    fn of(&self, name: usize) -> impl Iterator<Item = (ConnId, &Known)> {
        let of = self
            .conns
            .iter()
            .filter(move |(_, known)| known.book == name);
        of.map(|(id, known)| (*id, known))
    }

    fn dialling(&self, name: usize) -> usize {
        self.of(name)
            .filter(|(_, known)| known.stage == At::Dialling)
            .count()
    }

    fn live(&self, name: usize) -> usize {
        let live = |known: &Known| known.stage == At::Up && !known.leaving;
        self.of(name).filter(|(_, known)| live(known)).count()
    }

    fn closing(&self) -> usize {
        self.conns
            .values()
            .filter(|known| known.stage == At::Closing)
            .count()
    }

    fn idle(&self) -> impl Iterator<Item = (ConnId, &Known)> {
        let idle = |id: ConnId, known: &Known| known.stage == At::Up && self.leases_on(id) == 0;
        let conns = self.conns.iter().map(|(id, known)| (*id, known));
        conns.filter(move |(id, known)| idle(*id, known))
    }

    fn backs_off(&self, name: usize) -> bool {
        let book = self.book(name);
        let host = self.core.hosts.get(book.id);
        let until = host.and_then(|host| host.retry_at);
        until.is_some_and(|at| at > self.now)
    }

    /// How many more dials `name` should have for its waiters and `more` of them, as far as its own limits go.
    fn wanted(&self, name: usize, more: usize) -> usize {
        let book = self.book(name);
        if self.shut || self.backs_off(name) {
            return 0;
        }
        let per = match book.version {
            Some(Version::Http2) => book.streams.unwrap_or(1).max(1),
            _ => 1,
        };
        let dialling = self.dialling(name);
        let careful = book.version.is_none() || book.failures > 0;
        let abreast = if careful { 1 } else { self.limits.connecting };
        let draining = |known: &Known| known.stage == At::Up && known.leaving;
        let draining = self.of(name).filter(|(_, known)| draining(known)).count();
        let most = self.limits.per_host + draining.min(self.limits.draining_allowance);
        let room = most.saturating_sub(self.of(name).count());
        let room = room.min(abreast.saturating_sub(dialling));
        let need = (book.line.len() + more).div_ceil(per);
        need.saturating_sub(dialling).min(room)
    }

    /// How many dials beyond those for waiters `name` may have at the most.
    fn spare(&self, name: usize) -> usize {
        let book = self.book(name);
        let target = |ticket: &usize| self.waiters[ticket].warm.unwrap_or(0);
        let warm = book.warming.iter().map(target).max().unwrap_or(0);
        let crowded = |(id, known): (ConnId, &Known)| {
            known.version != Version::Http2
                || self.leases_on(id) >= super::super::life::scale(known.room, self.limits.scale_at)
        };
        let live = |known: &Known| known.stage == At::Up && !known.leaving;
        let scaled = self.of(name).filter(|(_, known)| live(known)).all(crowded);
        warm.max(self.limits.min_idle).max(usize::from(scaled))
    }

    /// Looks at everything, at rest.
    pub(super) fn look(&mut self) {
        self.look_at_leaving();
        self.look_at_lists();
        self.look_at_slots();
        self.look_at_waiters();
        self.look_at_alarms();
        self.dialled.clear();
        self.surplus.clear();
        self.evicted = false;
    }

    fn look_at_leaving(&mut self) {
        for (id, known) in &mut self.conns {
            let conn = &self.core.conns[*id];
            if known.stage != At::Up {
                continue;
            }
            known.leaving = conn.leaving.is_some();
            let right = match conn.leaving {
                None => {
                    !known.told.contains("requests")
                        && !known.told.contains("goaway")
                        && !known.told.contains("shutdown")
                        && !known.told.contains("asked")
                }
                Some(CloseReason::MaxLifetime) => known.expires.is_some_and(|at| at <= self.now),
                Some(CloseReason::MaxRequests) => known.told.contains("requests"),
                Some(CloseReason::GoAway) => known.told.contains("goaway"),
                Some(CloseReason::Asked) => known.told.contains("asked"),
                Some(CloseReason::Shutdown) => known.told.contains("shutdown"),
                Some(_) => false,
            };
            assert!(right, "{id:?} leaves: {:?}; {known:?}", conn.leaving);
        }
    }

    /// Every counter and every list of the core says what its entries say, and its entries what the books say.
    fn look_at_lists(&mut self) {
        let core = &mut self.core;
        assert_eq!(core.conns.len(), self.conns.len());
        for (id, known) in &self.conns {
            let conn = &core.conns[*id];
            let streams = self.leases.iter().filter(|lease| lease.conn == *id).count();
            assert_eq!(conn.streams, streams, "{id:?}");
            assert_eq!(conn.requests, known.requests, "{id:?}");
            let stage = match (known.stage, streams) {
                (At::Dialling, _) => Stage::Dialling,
                (At::Up, 0) => Stage::Idle,
                (At::Up, _) => Stage::Busy,
                (At::Closing, _) => Stage::Closing,
            };
            assert_eq!(conn.stage, stage, "{id:?}");
            if known.stage == At::Up {
                assert_eq!((conn.version, conn.room), (known.version, known.room));
                assert_eq!(conn.since, known.since);
            }
        }
        let conns: Vec<Listed> = core
            .conns
            .iter()
            .map(|(id, conn)| {
                let leaving = conn.leaving.is_some();
                (
                    id,
                    conn.stage,
                    conn.host,
                    leaving,
                    conn.version,
                    conn.idle_since,
                )
            })
            .collect();
        let count = |is: &dyn Fn(&Listed) -> bool| conns.iter().filter(|conn| is(conn)).count();
        assert!(!core.settling);
        assert_eq!(core.dialling, count(&|conn| conn.1 == Stage::Dialling));
        assert_eq!(core.closing, count(&|conn| conn.1 == Stage::Closing));
        let idle: Vec<_> = core.idle.iter(&mut core.conns).collect();
        assert_eq!(idle.len(), core.idle.len());
        let all: BTreeSet<_> = conns
            .iter()
            .filter(|conn| conn.1 == Stage::Idle)
            .map(|conn| conn.0)
            .collect();
        assert_eq!(idle.iter().copied().collect::<BTreeSet<_>>(), all);
        let since = |id: &ConnId, conns: &Slab<Conn>| conns[*id].idle_since;
        assert!(
            idle.is_sorted_by_key(|id| since(id, &core.conns)),
            "the one idle longest is first"
        );
        for host in core.hosts.ids() {
            let of = |stage| count(&|conn| conn.2 == host && conn.1 == stage);
            let entry = &core.hosts[host];
            assert_eq!(entry.open, count(&|conn| conn.2 == host));
            assert_eq!(entry.dialling, of(Stage::Dialling));
            let live = |conn: &Listed| {
                conn.2 == host && matches!(conn.1, Stage::Idle | Stage::Busy) && !conn.3
            };
            assert_eq!(entry.live, count(&live));
            assert_eq!(
                entry.draining,
                count(&|conn| conn.2 == host && conn.1 == Stage::Busy && conn.3)
            );
            let streaming: BTreeSet<_> = conns
                .iter()
                .filter(|conn| live(conn) && conn.4 == Version::Http2)
                .map(|conn| conn.0)
                .collect();
            assert_eq!(entry.multiplexed.len(), streaming.len());
            assert_eq!(
                entry.multiplexed.iter().copied().collect::<BTreeSet<_>>(),
                streaming
            );
            let idle: Vec<_> = entry.idle.iter(&mut core.conns).collect();
            assert_eq!(idle.len(), entry.idle.len());
            let expected: BTreeSet<_> = conns
                .iter()
                .filter(|conn| conn.2 == host && conn.1 == Stage::Idle)
                .map(|conn| conn.0)
                .collect();
            assert_eq!(idle.iter().copied().collect::<BTreeSet<_>>(), expected);
            assert!(idle.is_sorted_by_key(|id| since(id, &core.conns)));
            let latest = entry.latest_dial.and_then(|dial| core.conns.get(dial));
            assert!(latest.is_none_or(|dial| dial.host == host));
        }
        // Hosts without anything are remembered, as many as may be, and nobody else is in that list.
        let forgotten: BTreeSet<_> = core.forgotten.iter(&mut core.hosts).collect();
        assert_eq!(forgotten.len(), core.forgotten.len());
        let empty: BTreeSet<_> = core
            .hosts
            .iter()
            .filter(|(_, host)| host.empty())
            .map(|(id, _)| id)
            .collect();
        assert_eq!(forgotten, empty);
        assert!(forgotten.len() <= core.limits.hosts);
        let starved: BTreeSet<_> = core.starved.iter(&mut core.hosts).collect();
        assert_eq!(starved.len(), core.starved.len());
        // Lifetimes.
        let now = self.now;
        for (id, conn) in core.conns.iter() {
            let Some(at) = conn
                .expires
                .filter(|at| *at > now && conn.stage != Stage::Closing)
            else {
                continue;
            };
            assert!(core.expiring.holds(at, id), "{id:?} has no end");
        }
    }

    /// Slots: nothing beyond the limits, nothing idle beyond its limits, nothing dialled that nobody needs.
    fn look_at_slots(&mut self) {
        let limits = &self.limits;
        for name in self.dialled.iter().copied() {
            assert!(
                self.conns.len() <= limits.connections,
                "dialled beyond the limit"
            );
            let used = self.live(name) + self.dialling(name);
            assert!(used <= limits.per_host, "dialled beyond the host's limit");
            let open = self.of(name).count();
            assert!(open <= limits.per_host + limits.draining_allowance);
            assert!(!self.backs_off(name), "dialled while it backs off");
            let book = self.book(name);
            if book.version.is_none() || book.failures > 0 {
                assert_eq!(self.dialling(name), 1, "one dial goes ahead");
            }
            assert!(self.dialling(name) <= limits.connecting);
            let per = match book.version {
                Some(Version::Http2) => book.streams.unwrap_or(1).max(1),
                _ => 1,
            };
            let spare = if self.retired { 0 } else { self.spare(name) };
            let needed = book.line.len().div_ceil(per) + spare;
            assert!(
                self.dialling(name) <= needed,
                "a dial of {name} nobody needs"
            );
        }
        assert!(self.idle().count() <= limits.idle);
        for name in 0..self.names {
            let idle = self.idle().filter(|(_, known)| known.book == name).count();
            assert!(idle <= limits.idle_per_host);
            assert!(
                idle == 0 || !self.retired,
                "idle, and nobody holds the pool"
            );
        }
        for name in self.surplus.iter().copied() {
            let idle = self.idle().filter(|(_, known)| known.book == name).count();
            let right = self.evicted
                || idle >= limits.idle_per_host
                || self.idle().count() >= limits.idle
                || self.live(name) + self.dialling(name) >= limits.per_host
                || self.conns.len() - self.closing() >= limits.connections;
            assert!(right, "closed as one too many and was not");
        }
        if self.evicted {
            let wanting = (0..self.names).filter(|name| self.books[*name].is_some());
            let wanted: usize = wanting.map(|name| self.wanted(name, 0)).sum();
            assert!(wanted > 0, "evicted for nobody");
        }
    }

    /// Nobody waits while there is something to give, and whoever waits waits for something.
    fn look_at_waiters(&mut self) {
        let mut lacking = 0;
        let starved: BTreeSet<_> = self.core.starved.iter(&mut self.core.hosts).collect();
        for name in 0..self.names {
            let Some(book) = &self.books[name] else {
                continue;
            };
            let Some(host) = self.core.hosts.get(book.id) else {
                assert!(book.line.is_empty() && book.warming.is_empty());
                continue;
            };
            assert_eq!(host.failures, book.failures, "host {name}");
            assert_eq!(host.waiting.len(), book.line.len());
            assert_eq!(host.warming.len(), book.warming.len());
            assert!(
                book.warming.is_empty() || self.dialling(name) > 0,
                "who warms waits for nothing"
            );
            if book.line.is_empty() {
                continue;
            }
            for (id, known) in self.of(name) {
                let free =
                    known.stage == At::Up && !known.leaving && self.leases_on(id) < known.room;
                assert!(!free, "{id:?} has room and {:?} wait", book.line);
            }
            // A pause that is over counts when the alarm was heard.
            let wanted = if self.late && host.retry_at.is_some() {
                0
            } else {
                self.wanted(name, 0)
            };
            lacking += wanted;
            let full = self.conns.len() >= self.limits.connections;
            assert!(
                wanted == 0 || full,
                "host {name} wants {wanted} dials and could have one"
            );
            assert!(
                wanted == 0 || starved.contains(&book.id),
                "host {name} is not among the starved"
            );
            // Somebody moves: a dial, a request, a socket; or time.
            let moves = self.of(name).count() > 0 || full || self.backs_off(name) || self.late;
            assert!(moves, "nothing will wake those who wait for host {name}");
        }
        assert!(
            lacking <= self.closing() || self.idle().count() == 0,
            "{lacking} slots are lacking, {} closing, and others are idle",
            self.closing()
        );
        let in_line: usize = self
            .books
            .iter()
            .flatten()
            .map(|book| book.line.len())
            .sum();
        let warming: usize = self
            .books
            .iter()
            .flatten()
            .map(|book| book.warming.len())
            .sum();
        let waiting = self
            .waiters
            .values()
            .filter(|waiter| !waiter.answered)
            .count();
        assert_eq!(in_line + warming, waiting);
        assert_eq!(self.core.waiters.len(), self.waiters.len());
        let core = &mut self.core;
        let by_deadline: Vec<_> = core.by_deadline.iter(&mut core.waiters).collect();
        assert_eq!(by_deadline.len(), waiting);
        let deadline = |id: &WaiterId, waiters: &Slab<Waiter>| waiters[*id].deadline;
        assert!(by_deadline.is_sorted_by_key(|id| deadline(id, &core.waiters)));
        let ends = &self.ends;
        let ended = ends.granted
            + ends.opened
            + ends.failed
            + ends.timed_out
            + ends.closed
            + ends.cancelled;
        assert_eq!(ends.enrolled, ended + self.waiters.len());
    }

    /// The alarm rings early enough for whatever comes first, and nothing is overdue.
    fn look_at_alarms(&self) {
        let waiting = self.waiters.values().filter(|waiter| !waiter.answered);
        let waiting = waiting.map(|waiter| ("a waiter", waiter.since + self.limits.acquire));
        // A connection to keep begins anew: the core knows when.
        let idle = self.idle().map(|(id, _)| {
            (
                "one idle",
                self.core.conns[id].idle_since + self.limits.idle_timeout,
            )
        });
        let lives = self
            .conns
            .values()
            .filter(|known| known.stage == At::Up && !known.leaving);
        let lives = lives.filter_map(|known| Some(("a lifetime", known.expires?)));
        let pauses = self
            .books
            .iter()
            .flatten()
            .filter(|book| !book.line.is_empty());
        let pauses = pauses.filter_map(|book| {
            self.core.hosts[book.id]
                .retry_at
                .filter(|at| *at > self.now)
        });
        let pauses = pauses.map(|at| ("a pause", at));
        for (what, due) in waiting.chain(idle).chain(lives).chain(pauses) {
            let alarm = self.core.alarm();
            assert!(
                alarm.is_some_and(|at| at <= due),
                "no alarm for {what}: {alarm:?}, due {due:?}"
            );
            assert!(self.late || due >= self.now, "{what} is overdue");
        }
    }

    /// All goes well from now on, and ends: whoever waits gets an answer, and there is rest.
    pub(super) fn quiet(&mut self, seed: usize) {
        for turn in 0..5_000 {
            let at = seed.wrapping_add(turn * 7) as u16;
            if self.late {
                self.expire();
            } else if !self.one_goes_well(at, turn) {
                let waits = self.waiters.values().any(|waiter| !waiter.answered);
                if !waits {
                    break;
                }
                let pausing = (0..self.names).any(|name| {
                    let book = self.books[name].as_ref();
                    book.is_some_and(|book| !book.line.is_empty() && self.backs_off(name))
                });
                assert!(pausing, "they wait for ever");
                let alarm = self.core.alarm().expect("an alarm for the pause");
                self.now = self.now.max(alarm);
                self.expire();
            }
            self.look();
            assert!(turn < 4_999, "it never comes to rest");
        }
        assert!(self.waiters.is_empty());
        // And then nobody holds the pool.
        self.retire();
        while let Some(conn) = self.pick_conn(0, |known| known.stage == At::Closing) {
            self.gone(conn, CloseReason::Peer);
            self.look();
        }
        assert!(self.core.over() && self.core.ended(), "something is left");
        self.expire();
        assert_eq!(self.core.starved.len(), 0);
    }

    fn one_goes_well(&mut self, at: u16, turn: usize) -> bool {
        for kind in 0..5 {
            match (turn + kind) % 5 {
                0 => {
                    if let Some(conn) = self.pick_conn(at, |known| known.stage == At::Closing) {
                        self.gone(conn, CloseReason::Peer);
                        return true;
                    }
                }
                1 => {
                    if let Some(conn) = self.pick_conn(at, |known| known.stage == At::Dialling) {
                        let version = match self.conns[&conn].book % 2 {
                            0 => Version::Http1,
                            _ => Version::Http2,
                        };
                        self.connected(conn, version, 2);
                        return true;
                    }
                }
                2 => {
                    let answered = self.waiters.iter().filter(|(_, waiter)| waiter.answered);
                    let answered: Vec<_> = answered.map(|(ticket, _)| *ticket).collect();
                    if let Some(ticket) = pick(answered, at) {
                        self.poll(ticket);
                        return true;
                    }
                }
                3 => {
                    let taken = self.leases.iter().position(|lease| lease.ticket.is_none());
                    if let Some(at) = taken {
                        self.free(at, true);
                        return true;
                    }
                }
                _ => {
                    let shy = |known: &Known| known.stage == At::Up && known.room == 0;
                    if let Some(conn) = self.pick_conn(at, shy) {
                        self.limited(conn, 1);
                        return true;
                    }
                }
            }
        }
        false
    }

    // For examples.

    /// The dials under way to `name`, the oldest first.
    pub(super) fn dials_of(&self, name: usize) -> Vec<ConnId> {
        let dialling = self
            .of(name)
            .filter(|(_, known)| known.stage == At::Dialling);
        dialling.map(|(id, _)| id).collect()
    }

    /// A connection of HTTP/1 to `name` that idles.
    pub(super) fn idle_one(&mut self, name: usize) -> ConnId {
        let conn = self.busy_one(name);
        self.done(conn);
        conn
    }

    /// A connection of HTTP/1 to `name` that carries a request.
    pub(super) fn busy_one(&mut self, name: usize) -> ConnId {
        let ticket = match self.acquire(name, false) {
            Ok(conn) => return conn,
            Err(ticket) => ticket.expect("it may wait"),
        };
        let conn = *self.dials_of(name).last().expect("it is dialled for");
        self.connected(conn, Version::Http1, 1);
        assert_eq!(self.granted(ticket), Some(conn));
        self.look();
        conn
    }

    /// An HTTP/2 connection to `name` with so much room, that carries a request.
    pub(super) fn streaming(&mut self, name: usize, room: usize) -> ConnId {
        let ticket = self.waits(name);
        let conn = self.dials_of(name)[0];
        self.connected(conn, Version::Http2, room);
        assert_eq!(self.granted(ticket), Some(conn));
        self.look();
        conn
    }

    /// Whoever has an answer comes for it.
    pub(super) fn take_all(&mut self) {
        let answered = self.waiters.iter().filter(|(_, waiter)| waiter.answered);
        let answered: Vec<_> = answered.map(|(ticket, _)| *ticket).collect();
        for ticket in answered {
            self.poll(ticket);
        }
    }

    /// Waits for host `name`.
    pub(super) fn waits(&mut self, name: usize) -> usize {
        let ticket = self.acquire(name, false).expect_err("nothing is free");
        self.look();
        ticket.expect("it may wait")
    }

    /// The connection that `ticket` was granted, if it was.
    pub(super) fn granted(&mut self, ticket: usize) -> Option<ConnId> {
        match self.poll(ticket)? {
            Answer::Granted(grant) => Some(grant.conn),
            other => panic!("it got {other:?}"),
        }
    }

    pub(super) fn reason(&self, conn: ConnId) -> Option<CloseReason> {
        self.conns[&conn].closing
    }

    pub(super) fn open(&self, name: usize) -> usize {
        self.of(name).count()
    }
}

fn pick<T: Copy>(those: impl IntoIterator<Item = T>, which: u16) -> Option<T> {
    let those: Vec<T> = those.into_iter().collect();
    let at = usize::from(which).checked_rem(those.len())?;
    Some(those[at])
}
