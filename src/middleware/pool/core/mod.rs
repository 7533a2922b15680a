//! The pool as arithmetic: who may dial, who gets which connection, who waits. Events in, actions out; no IO, no clock.
//!
//! # Invariants
//!
//! At rest, which is between any two calls:
//!
//! 1. Slots: `open`, the connections of any stage, is at most `limits.connections`; a host's at most its own limit, and
//!    the allowance for draining ones beyond it. A slot is taken when a dial begins and free when [`Core::gone`] says
//!    that the socket is no more.
//! 2. A connection is held by as many as it has streams: HTTP/1 by at most one, HTTP/2 by at most `room`, unless the
//!    peer lowered it under those it had.
//! 3. Nobody waits while there is something to give: a host with waiters has no idle connection and no stream left;
//!    it dials as far as its and the pool's limits let it, or stands among the starved.
//! 4. Idle connections of a pool that is full belong to no one for long: while a host is starved, as many connections
//!    are closing as would feed it, or nothing is idle.
//! 5. Every waiter gets one answer: a grant, a failure, or none because it left. A grant nobody came for goes to the
//!    next.
//! 6. Dials belong to the pool. One that fails is answered for only to those whom nothing else can serve; one whose
//!    waiter left goes on, and its connection is anybody's.

mod conn;
mod expiry;
mod host;
mod slab;
mod stats;
mod supply;
mod waiter;

use std::fmt;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use http::Uri;

pub use conn::CloseReason;
pub(super) use conn::{ConnId, Version};
pub(super) use host::{HostId, HostKey};
pub(super) use stats::HostView;
pub(super) use waiter::{Answer, Grant, Reused, WaiterId};

use self::conn::{AmongIdle, Conn, Stage};
use self::expiry::{Alarms, Expiring};
use self::host::{AmongForgotten, AmongStarved, Host, Names};
use self::slab::{List, Slab};
use self::stats::Counts;
use self::waiter::{ByDeadline, Waiter, Wants};
use crate::base::clock::Instant;
use crate::base::error::BoxError;
use crate::base::phases::Phase;

/// What the pool may do.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) per_host: usize,
    pub(super) draining_allowance: usize,
    pub(super) idle: usize,
    pub(super) idle_per_host: usize,
    pub(super) min_idle: usize,
    pub(super) idle_timeout: Duration,
    /// And the part of it that chance may take away.
    pub(super) lifetime: Option<(Duration, f64)>,
    pub(super) requests: u64,
    pub(super) connecting: usize,
    pub(super) pending: usize,
    pub(super) acquire: Duration,
    /// The first and the longest pause after a failed dial.
    pub(super) backoff: (Duration, Duration),
    pub(super) streams: usize,
    pub(super) scale_at: f64,
    /// What every host speaks, if that is known beforehand.
    pub(super) version: Option<Version>,
    pub(super) hosts: usize,
}

/// No connection ends earlier: one that did would be closed before anybody had it, and dialled again.
const SHORTEST: Duration = Duration::from_millis(1);

/// Why a dial came to nothing.
#[derive(Debug)]
pub(super) struct Cause {
    /// Where it was.
    pub(super) phase: Phase,
    pub(super) timed_out: bool,
    pub(super) error: BoxError,
}

/// What the shell has to do now, outside the lock.
#[derive(Debug)]
pub(super) enum Action {
    /// Dial, and report with [`Core::connected`] or [`Core::failed`].
    Dial(ConnId),
    /// Drop the connection, then report with [`Core::gone`].
    Close(ConnId),
    /// A waiter has its answer.
    Wake(Waker),
    /// [`Core::expire`] wants to be called at [`Core::alarm`].
    Alarm,
}

/// What became of a request for a connection.
#[derive(Debug)]
pub(super) enum Acquired {
    Granted(Grant),
    Queued(WaiterId),
    Refused(Refusal),
}

/// What a connection came to.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) reason: CloseReason,
    pub(super) requests: u64,
    pub(super) established: bool,
    pub(super) since: Instant,
}

/// Why somebody may not even wait.
#[derive(Debug)]
pub(super) enum Refusal {
    Full { pending: usize },
    BackingOff { until: Instant, cause: Arc<Cause> },
    Closed,
}

pub(super) struct Core {
    pub(super) limits: Limits,
    names: Names,
    hosts: Slab<Host>,
    conns: Slab<Conn>,
    waiters: Slab<Waiter>,
    /// Slots closing: they will be free soon.
    closing: usize,
    dialling: usize,
    idle: List<Conn, AmongIdle>,
    by_deadline: List<Waiter, ByDeadline>,
    starved: List<Host, AmongStarved>,
    forgotten: List<Host, AmongForgotten>,
    expiring: Expiring,
    alarms: Alarms,
    /// Waiters are being served.
    settling: bool,
    /// Nothing new: the pool shuts down.
    closed: bool,
    /// Nobody holds the pool; only who waits already is served.
    retired: bool,
    random: u64,
    counts: Counts,
    actions: Vec<Action>,
}

// ===== impl Core =====

/// Asking.
impl Core {
    pub(super) fn new(mut limits: Limits, seed: u64) -> Self {
        // Who waited for a connection gets it before it is too old.
        limits.idle_timeout = limits.idle_timeout.max(SHORTEST);
        Self {
            limits,
            names: Names::default(),
            hosts: Slab::new(),
            conns: Slab::new(),
            waiters: Slab::new(),
            closing: 0,
            dialling: 0,
            idle: List::new(),
            by_deadline: List::new(),
            starved: List::new(),
            forgotten: List::new(),
            expiring: Expiring::default(),
            alarms: Alarms::default(),
            settling: false,
            closed: false,
            retired: false,
            random: seed,
            counts: Counts::default(),
            actions: Vec::new(),
        }
    }

    /// What there is to do since this was last asked. Empty on the way of a request that finds a connection idle.
    #[inline]
    pub(super) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The host of `key`, known from now on. `uri` is made when it is new.
    #[inline]
    pub(super) fn host(
        &mut self,
        hash: u64,
        key: &HostKey<'_>,
        uri: impl FnOnce() -> Uri,
    ) -> HostId {
        match self.names.find(&self.hosts, hash, key) {
            Some(host) => host,
            None => self.meet(Host::new(uri(), key.port, hash, self.limits.version)),
        }
    }

    #[cold]
    fn meet(&mut self, host: Host) -> HostId {
        let id = self.hosts.insert(host);
        self.names.insert(&mut self.hosts, id);
        self.forget(id);
        id
    }

    pub(super) fn find(&self, hash: u64, key: &HostKey<'_>) -> Option<HostId> {
        self.names.find(&self.hosts, hash, key)
    }

    /// Whether `host` is one that is still known.
    pub(super) fn knows(&self, host: HostId) -> bool {
        self.hosts.get(host).is_some()
    }

    /// Asks for a place on a connection to `host`. Who was `before` and lost its connection before it could use it
    /// stands in front of all others.
    #[inline]
    pub(super) fn acquire(
        &mut self,
        now: Instant,
        host: HostId,
        before: bool,
        waker: impl FnOnce() -> Waker,
    ) -> Acquired {
        if self.closed {
            self.counts.rejected_closed += 1;
            return Acquired::Refused(Refusal::Closed);
        }
        match self.available(now, host) {
            Some(conn) => Acquired::Granted(self.take(now, conn)),
            None => self.queue(now, host, before, waker()),
        }
    }

    fn queue(&mut self, now: Instant, host: HostId, before: bool, waker: Waker) -> Acquired {
        if let Some(refusal) = self.refusal(now, host, before) {
            match refusal {
                Refusal::Full { .. } => self.counts.rejected_queue_full += 1,
                Refusal::BackingOff { .. } => self.counts.rejected_backing_off += 1,
                Refusal::Closed => self.counts.rejected_closed += 1,
            }
            self.forget(host);
            return Acquired::Refused(refusal);
        }
        let waiter = self.enlist(now, host, Wants::Connection, waker);
        let line = &mut self.hosts[host].waiting;
        match before {
            true => line.push_front(&mut self.waiters, waiter),
            false => line.push_back(&mut self.waiters, waiter),
        }
        self.want(now, host);
        Acquired::Queued(waiter)
    }

    fn refusal(&self, now: Instant, id: HostId, before: bool) -> Option<Refusal> {
        let host = &self.hosts[id];
        let hopeless = host.live == 0 && host.dialling == 0;
        if hopeless
            && let Some(until) = host.retry_at.filter(|at| *at > now)
            && let Some(cause) = host.last_error.clone()
        {
            return Some(Refusal::BackingOff { until, cause });
        }
        // Whom a dial under way will serve is not pending (Envoy#11326), nor whom one will that begins for it.
        let covered = host.dialling.saturating_mul(host.per_dial());
        let pending = host.waiting.len().saturating_sub(covered);
        let full = pending >= self.limits.pending && !before && !self.dials_for_another(now, id);
        full.then_some(Refusal::Full { pending })
    }

    /// Asks for `target` open connections to `host`, or as many as the limits allow.
    pub(super) fn warm(
        &mut self,
        now: Instant,
        host: HostId,
        target: usize,
        waker: Waker,
    ) -> Acquired {
        if self.closed {
            return Acquired::Refused(Refusal::Closed);
        }
        let limits = &self.limits;
        let most = limits.per_host.min(limits.connections);
        let most = most.min(limits.idle_per_host).min(limits.idle);
        if let Some(refusal @ Refusal::BackingOff { .. }) = self.refusal(now, host, true) {
            return Acquired::Refused(refusal);
        }
        let waiter = self.enlist(now, host, Wants::Open(target.min(most)), waker);
        self.hosts[host].warming.push(waiter);
        self.want(now, host);
        self.warmed(host);
        Acquired::Queued(waiter)
    }

    fn enlist(&mut self, now: Instant, host: HostId, wants: Wants, waker: Waker) -> WaiterId {
        self.forgotten.remove(&mut self.hosts, host);
        let deadline = now.checked_add(self.limits.acquire);
        let waiter = self.waiters.insert(Waiter {
            host,
            wants,
            deadline,
            answer: None,
            waker,
            in_line: Default::default(),
            by_deadline: Default::default(),
        });
        self.by_deadline.push_back(&mut self.waiters, waiter);
        if let Some(deadline) = deadline {
            self.alarm_at(deadline);
        }
        waiter
    }

    /// A waiter asks for its answer; once it has it, it is a waiter no more.
    pub(super) fn poll(&mut self, waiter: WaiterId, waker: &Waker) -> Poll<Answer> {
        let Some(entry) = self.waiters.get_mut(waiter) else {
            return Poll::Ready(Answer::Closed);
        };
        match entry.answer.take() {
            Some(answer) => {
                self.waiters.remove(waiter);
                Poll::Ready(answer)
            }
            None => {
                entry.waker.clone_from(waker);
                Poll::Pending
            }
        }
    }

    /// A waiter leaves. What it was granted and did not take goes to the next.
    pub(super) fn cancel(&mut self, now: Instant, waiter: WaiterId) {
        let Some(entry) = self.waiters.get(waiter) else {
            return;
        };
        // One with its answer is in no list, and its host may be forgotten.
        if entry.answer.is_none() {
            self.unlist(waiter);
        }
        let Some(entry) = self.waiters.remove(waiter) else {
            return;
        };
        match entry.answer {
            Some(Answer::Granted(grant)) => self.free(now, grant.conn, false),
            _ => self.forget(entry.host),
        }
    }

    /// Takes a waiter out of every list.
    fn unlist(&mut self, waiter: WaiterId) {
        self.by_deadline.remove(&mut self.waiters, waiter);
        let entry = &self.waiters[waiter];
        let host = &mut self.hosts[entry.host];
        match entry.wants {
            Wants::Connection => host.waiting.remove(&mut self.waiters, waiter),
            Wants::Open(_) => host.warming.retain(|id| *id != waiter),
        }
    }

    fn answer(&mut self, waiter: WaiterId, answer: Answer) {
        self.unlist(waiter);
        let entry = &mut self.waiters[waiter];
        entry.answer = Some(answer);
        let waker = std::mem::replace(&mut entry.waker, Waker::noop().clone());
        self.actions.push(Action::Wake(waker));
    }
}

/// Giving.
impl Core {
    /// The best connection to `host` that has room: the HTTP/2 one with the least streams, else the HTTP/1 one used
    /// last. Those whose time is over are closed on the way.
    #[inline]
    fn available(&mut self, now: Instant, host: HostId) -> Option<ConnId> {
        if !self.hosts[host].multiplexed.is_empty()
            && let Some(conn) = self.least_loaded(now, host)
        {
            return Some(conn);
        }
        loop {
            let conn = self.hosts[host].idle.last()?;
            let entry = &self.conns[conn];
            match entry.stale(now, self.limits.idle_timeout) {
                None if entry.room > 0 => return Some(conn),
                None => return self.behind(now, host),
                Some(reason) => self.close(conn, reason),
            }
        }
    }

    /// The last is an idle HTTP/2 connection whose peer takes no streams at the moment: the HTTP/1 one used last, of a
    /// host that spoke that before.
    #[cold]
    fn behind(&mut self, now: Instant, host: HostId) -> Option<ConnId> {
        let idle = self.hosts[host].idle.iter(&mut self.conns);
        let idle: Vec<_> = idle.collect();
        idle.into_iter().rev().find(|conn| {
            let conn = &self.conns[*conn];
            conn.room > 0 && conn.stale(now, self.limits.idle_timeout).is_none()
        })
    }

    fn least_loaded(&mut self, now: Instant, host: HostId) -> Option<ConnId> {
        loop {
            let conns = &self.conns;
            let with_room = self.hosts[host]
                .multiplexed
                .iter()
                .filter(|conn| conns[**conn].streams < conns[**conn].room);
            let conn = *with_room.min_by_key(|conn| conns[**conn].streams)?;
            match self.conns[conn].stale(now, self.limits.idle_timeout) {
                None => return Some(conn),
                Some(reason) => self.leave(now, conn, reason),
            }
        }
    }

    /// Takes a place on `conn`, which has one.
    #[inline]
    fn take(&mut self, now: Instant, conn: ConnId) -> Grant {
        let entry = &mut self.conns[conn];
        let reused = (entry.requests > 0).then_some(match entry.stage {
            Stage::Idle => Reused::IdleSince(entry.idle_since),
            _ => Reused::Busy,
        });
        let host = &mut self.hosts[entry.host];
        let was_idle = entry.stage == Stage::Idle;
        entry.stage = Stage::Busy;
        entry.streams += 1;
        entry.requests += 1;
        host.requests += 1;
        self.counts.requests += 1;
        if reused.is_some() {
            host.reused += 1;
            self.counts.reused += 1;
        }
        let (id, scale) = (entry.host, entry.streams == entry.scale_at);
        let last = entry.requests >= self.limits.requests;
        if was_idle {
            host.idle.remove(&mut self.conns, conn);
            self.idle.remove(&mut self.conns, conn);
        }
        let few = was_idle && host.idle.len() < self.limits.min_idle;
        if last {
            self.leave(now, conn, CloseReason::MaxRequests);
        } else if scale || few {
            self.want(now, id);
        }
        Grant { conn, reused }
    }

    /// A request on `conn` is over: HTTP/1 is ready for the next, or a stream of HTTP/2 ended. When it was not `used`
    /// nothing of it was ever sent.
    #[inline]
    pub(super) fn free(&mut self, now: Instant, conn: ConnId, used: bool) {
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        if entry.stage != Stage::Busy || entry.streams == 0 {
            return;
        }
        entry.streams -= 1;
        if !used {
            entry.requests -= 1;
            self.counts.requests -= 1;
            self.hosts[entry.host].requests -= 1;
        }
        let (host, leaving) = (entry.host, entry.leaving);
        match (entry.streams, leaving) {
            (0, Some(reason)) => self.close(conn, reason),
            (0, None) => self.rest(now, conn),
            (_, Some(_)) => {}
            (_, None) if self.hosts[host].waiting.len() > 0 => self.settle(now, host),
            (_, None) => {}
        }
    }

    /// Whether `conn` has nothing to do.
    pub(super) fn idles(&self, conn: ConnId) -> bool {
        let conn = self.conns.get(conn);
        conn.is_some_and(|conn| conn.stage == Stage::Idle)
    }

    /// `conn` has nothing to do: somebody who waits gets it, or it idles, or it is one too many.
    #[inline]
    fn rest(&mut self, now: Instant, conn: ConnId) {
        let entry = &mut self.conns[conn];
        entry.stage = Stage::Idle;
        entry.idle_since = now;
        if entry.expires.is_some_and(|at| at <= now) {
            self.close(conn, CloseReason::MaxLifetime);
            return;
        }
        let id = entry.host;
        let host = &mut self.hosts[id];
        if self.conns.len() - self.closing > self.limits.connections
            || host.live + host.dialling > self.limits.per_host
        {
            // The limits were lowered.
            self.close(conn, CloseReason::Surplus);
            return;
        }
        host.idle.push_back(&mut self.conns, conn);
        self.idle.push_back(&mut self.conns, conn);
        if host.waiting.len() > 0 {
            self.settle(now, id);
        }
        if self.retired && self.conns[conn].stage == Stage::Idle {
            self.close(conn, CloseReason::Shutdown);
        }
        // As many as came idle, this one: at most one is too many of the host, and one of all.
        let host = &self.hosts[id];
        if host.idle.len() > self.limits.idle_per_host
            && let Some(oldest) = host.idle.first()
        {
            self.close(oldest, CloseReason::Surplus);
        }
        if self.idle.len() > self.limits.idle
            && let Some(oldest) = self.idle.first()
        {
            self.close(oldest, CloseReason::Surplus);
        }
        if self.starved.len() > 0 {
            self.feed(now);
        }
        // An older one has set the alarm already, unless who heard it is gone.
        let at = match self.alarm() {
            None => self.next(),
            Some(_) if self.idle.first() == Some(conn) => now.checked_add(self.limits.idle_timeout),
            Some(_) => None,
        };
        if let Some(at) = at {
            self.alarm_at(at);
        }
    }

    /// Serves whoever waits for `host` in order, as far as there is something to give, and dials for the rest.
    fn settle(&mut self, now: Instant, host: HostId) {
        // What is missing is known when all is given.
        self.settling = true;
        while let Some(waiter) = self.hosts[host].waiting.first() {
            let Some(conn) = self.available(now, host) else {
                break;
            };
            let grant = self.take(now, conn);
            self.answer(waiter, Answer::Granted(grant));
        }
        self.settling = false;
        self.want(now, host);
    }
}

/// What happens to connections.
impl Core {
    /// A dial succeeded, with `room` for so many streams at a time.
    pub(super) fn connected(&mut self, now: Instant, conn: ConnId, version: Version, room: usize) {
        let chance = self.chance();
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        if entry.stage != Stage::Dialling {
            return;
        }
        self.counts.connected += 1;
        let id = entry.host;
        let host = &mut self.hosts[id];
        host.dialling -= 1;
        self.dialling -= 1;
        host.latest_dial.take_if(|latest| *latest == conn);
        host.live += 1;
        host.failures = 0;
        host.retry_at = None;
        host.version = Some(version);
        entry.version = version;
        entry.since = now;
        entry.room = 1;
        if version == Version::Http2 {
            entry.room = room.min(self.limits.streams);
            entry.scale_at = scale(entry.room, self.limits.scale_at);
            host.streams = Some(entry.room);
            host.multiplexed.push(conn);
        }
        let lifetime = self.limits.lifetime;
        let life = lifetime.map(|(life, jitter)| life.mul_f64(1.0 - jitter * chance));
        let life = life.map(|life| life.max(SHORTEST));
        if let Some(at) = life.and_then(|life| now.checked_add(life)) {
            entry.expires = Some(at);
            self.expiring.insert(at, conn);
            self.alarm_at(at);
        }
        self.rest(now, conn);
        self.settle(now, id);
        self.warmed(id);
    }

    /// The peer takes `room` streams at a time from now on.
    pub(super) fn limited(&mut self, now: Instant, conn: ConnId, room: usize) {
        let most = self.limits.streams;
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        if entry.version != Version::Http2 {
            return;
        }
        entry.room = room.min(most);
        entry.scale_at = scale(entry.room, self.limits.scale_at);
        let host = entry.host;
        self.hosts[host].streams = Some(entry.room);
        if self.hosts[host].waiting.len() > 0 {
            self.settle(now, host);
        }
    }

    /// A dial failed. [`Core::gone`] follows.
    pub(super) fn failed(&mut self, now: Instant, conn: ConnId, cause: Arc<Cause>) {
        let chance = self.chance();
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        if entry.stage != Stage::Dialling {
            return;
        }
        match cause.timed_out {
            true => self.counts.connects_timed_out += 1,
            false => self.counts.connects_failed += 1,
        }
        entry.stage = Stage::Closing;
        entry.leaving = Some(CloseReason::Dial);
        self.closing += 1;
        let id = entry.host;
        let host = &mut self.hosts[id];
        host.dialling -= 1;
        self.dialling -= 1;
        host.latest_dial.take_if(|latest| *latest == conn);
        host.last_error = Some(cause.clone());
        // Dials that failed together are one failure.
        if host.retry_at.is_none_or(|at| at <= now) {
            let (least, most) = self.limits.backoff;
            let pause = least.saturating_mul(1 << host.failures.min(20)).min(most);
            host.failures = host.failures.saturating_add(1);
            if !pause.is_zero()
                && let Some(at) = now.checked_add(pause.mul_f64(1.0 - 0.2 * chance))
            {
                host.retry_at = Some(at);
                self.alarms.retry(at, id);
                self.alarm_at(at);
            }
        }
        let host = &self.hosts[id];
        if host.dialling == 0 {
            let warming = host.warming.clone();
            let hopeless = host.live == 0;
            for waiter in warming {
                self.answer(waiter, Answer::Failed(cause.clone()));
            }
            while let Some(waiter) = self.hosts[id].waiting.first().filter(|_| hopeless) {
                self.answer(waiter, Answer::Failed(cause.clone()));
            }
        }
        self.want(now, id);
    }

    /// `conn` takes no more requests and closes with its last.
    pub(super) fn leave(&mut self, now: Instant, conn: ConnId, reason: CloseReason) {
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        match entry.stage {
            Stage::Idle => self.close(conn, reason),
            Stage::Busy if entry.leaving.is_none() => {
                entry.leaving = Some(reason);
                let id = entry.host;
                let host = &mut self.hosts[id];
                host.live -= 1;
                host.draining += 1;
                host.multiplexed.retain(|other| *other != conn);
                self.want(now, id);
            }
            Stage::Dialling | Stage::Busy | Stage::Closing => {}
        }
    }

    /// Closes `conn`, on which nothing runs.
    fn close(&mut self, conn: ConnId, reason: CloseReason) {
        let entry = &mut self.conns[conn];
        let host = &mut self.hosts[entry.host];
        match entry.stage {
            Stage::Dialling => {
                host.dialling -= 1;
                self.dialling -= 1;
            }
            Stage::Busy if entry.leaving.is_some() => host.draining -= 1,
            Stage::Idle | Stage::Busy => host.live -= 1,
            Stage::Closing => return,
        }
        entry.stage = Stage::Closing;
        entry.leaving = Some(reason);
        host.multiplexed.retain(|other| *other != conn);
        host.idle.remove(&mut self.conns, conn);
        self.idle.remove(&mut self.conns, conn);
        self.closing += 1;
        self.actions.push(Action::Close(conn));
    }

    /// The socket of `conn` is no more. `reason` is why, unless the core knows better. What there is to tell of it.
    pub(super) fn gone(&mut self, now: Instant, conn: ConnId, reason: CloseReason) -> Option<Gone> {
        let entry = self.conns.get(conn)?;
        if entry.stage == Stage::Dialling {
            let cause = Cause {
                phase: Phase::Connect,
                timed_out: false,
                error: "the dial was dropped: its connector panicked, or its runtime shut down"
                    .into(),
            };
            self.failed(now, conn, Arc::new(cause));
        }
        let entry = &self.conns[conn];
        let (id, expires) = (entry.host, entry.expires);
        let host = &mut self.hosts[id];
        match entry.stage {
            Stage::Closing => self.closing -= 1,
            Stage::Busy if entry.leaving.is_some() => host.draining -= 1,
            Stage::Idle | Stage::Busy | Stage::Dialling => host.live -= 1,
        }
        host.open -= 1;
        host.multiplexed.retain(|other| *other != conn);
        host.idle.remove(&mut self.conns, conn);
        self.idle.remove(&mut self.conns, conn);
        if let Some(at) = expires {
            self.expiring.remove(at, conn);
        }
        let entry = self.conns.remove(conn)?;
        let gone = Gone {
            reason: entry.leaving.unwrap_or(reason),
            requests: entry.requests,
            established: entry.room > 0 || entry.version == Version::Http2,
            since: entry.since,
        };
        self.counts.closed[gone.reason as usize] += 1;
        self.settle(now, id);
        self.warmed(id);
        self.feed(now);
        self.forget(id);
        Some(gone)
    }
}

/// What the owner asks for.
impl Core {
    /// Closes what is idle. How many that were.
    pub(super) fn close_idle(&mut self) -> usize {
        let mut closed = 0;
        while let Some(conn) = self.idle.first() {
            self.close(conn, CloseReason::Asked);
            closed += 1;
        }
        closed
    }

    /// Other limits from now on: what is idle beyond them closes, what is busy beyond them closes when it is done.
    pub(super) fn limit(&mut self, now: Instant, change: impl FnOnce(&mut Limits)) {
        change(&mut self.limits);
        while self.conns.len() - self.closing > self.limits.connections
            || self.idle.len() > self.limits.idle
        {
            let Some(conn) = self.idle.first() else {
                break;
            };
            self.close(conn, CloseReason::Surplus);
        }
        for host in self.hosts.ids() {
            while self.hosts[host].idle.len() > self.limits.idle_per_host
                || self.hosts[host].live + self.hosts[host].dialling > self.limits.per_host
            {
                let Some(conn) = self.hosts[host].idle.first() else {
                    break;
                };
                self.close(conn, CloseReason::Surplus);
            }
            self.want(now, host);
        }
    }

    /// Replaces the connections of `host`: idle ones close, busy ones drain. How many that were.
    pub(super) fn refresh(&mut self, now: Instant, host: HostId) -> usize {
        let of_host =
            |(id, conn): (ConnId, &Conn)| (conn.host == host && conn.live()).then_some(id);
        let conns: Vec<_> = self.conns.iter().filter_map(of_host).collect();
        if let Some(host) = self.hosts.get_mut(host) {
            host.failures = 0;
            host.retry_at = None;
        }
        for conn in &conns {
            self.leave(now, *conn, CloseReason::Asked);
        }
        if self.hosts.get(host).is_some() {
            self.want(now, host);
        }
        conns.len()
    }

    /// Nobody holds the pool any more. Who waits is still served, and what is not needed for that closes.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        while let Some(conn) = self.idle.first() {
            self.close(conn, CloseReason::Shutdown);
        }
        for host in self.hosts.ids() {
            for waiter in std::mem::take(&mut self.hosts[host].warming) {
                self.answer(waiter, Answer::Closed);
            }
        }
        for conn in self.conns.ids() {
            let entry = &self.conns[conn];
            if entry.stage == Stage::Dialling && self.hosts[entry.host].waiting.len() == 0 {
                self.close(conn, CloseReason::Shutdown);
            }
        }
    }

    /// Shuts down: who waits is told so, idle connections and dials close, busy ones drain.
    pub(super) fn shut(&mut self, now: Instant) {
        self.closed = true;
        self.retire();
        for waiter in self.waiters.ids() {
            if self.waiters[waiter].answer.is_none() {
                self.answer(waiter, Answer::Closed);
                self.forget(self.waiters[waiter].host);
            }
        }
        for conn in self.conns.ids() {
            match self.conns[conn].stage {
                Stage::Dialling => self.close(conn, CloseReason::Shutdown),
                _ => self.leave(now, conn, CloseReason::Shutdown),
            }
        }
    }

    /// All there are, for who cuts them off.
    pub(super) fn all(&self) -> Vec<ConnId> {
        self.conns.ids()
    }

    /// Whether nothing is open.
    pub(super) fn over(&self) -> bool {
        self.conns.len() == 0
    }

    /// No alarm is set: whoever rings it is gone.
    pub(super) fn disarm(&mut self) {
        self.alarms.disarm();
    }

    /// Whether nothing will ever happen again.
    pub(super) fn ended(&self) -> bool {
        (self.retired || self.closed) && self.over() && self.by_deadline.len() == 0
    }

    /// The URI to dial for `conn`.
    pub(super) fn target(&self, conn: ConnId) -> Option<Uri> {
        let host = self.conns.get(conn)?.host;
        Some(self.hosts[host].uri.clone())
    }

    /// Remembers a host that nobody uses, and forgets the one least lately used when they are too many.
    fn forget(&mut self, host: HostId) {
        if self.hosts.get(host).is_none_or(|host| !host.empty()) {
            return;
        }
        self.forgotten.remove(&mut self.hosts, host);
        self.forgotten.push_back(&mut self.hosts, host);
        if self.forgotten.len() > self.limits.hosts
            && let Some(oldest) = self.forgotten.first()
        {
            self.forgotten.remove(&mut self.hosts, oldest);
            self.starved.remove(&mut self.hosts, oldest);
            self.names.remove(&mut self.hosts, oldest);
            self.hosts.remove(oldest);
        }
    }

    /// An even number within 0 and 1: splitmix64.
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// From how many streams of `room` on another connection is wanted.
fn scale(room: usize, at: f64) -> usize {
    match room {
        // Nobody counts that far.
        room if room > u32::MAX as usize => usize::MAX,
        room => ((room as f64 * at).ceil() as usize).max(1),
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("limits", &self.limits)
            .field("gauges", &self.gauges())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(tower_flow_loom)))]
mod tests;
