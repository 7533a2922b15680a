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

mod asking;
mod conn;
mod expiry;
mod giving;
mod host;
mod life;
mod owner;
mod slab;
mod stats;
mod supply;
#[cfg(all(test, not(tower_flow_loom)))]
mod tests;
mod waiter;

use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use http::Uri;

pub use conn::CloseReason;
pub(super) use conn::{ConnId, Version};
pub(super) use host::{HostId, HostKey};
pub(super) use stats::HostView;
pub(super) use waiter::{Answer, Grant, Reused, WaiterId};

use self::conn::{AmongIdle, Conn};
use self::expiry::{Alarms, Expiring};
use self::host::{AmongForgotten, AmongStarved, Host, Names, Spellings};
use self::slab::{List, Slab};
use self::stats::Counts;
use self::waiter::{ByDeadline, Waiter};
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
    /// Drop it: foreign code, which must not run under the lock.
    Discard(Arc<Cause>),
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
    spellings: Spellings,
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

impl Core {
    pub(super) fn new(mut limits: Limits, seed: u64) -> Self {
        // Who waited for a connection gets it before it is too old.
        limits.idle_timeout = limits.idle_timeout.max(SHORTEST);
        Self {
            limits,
            names: Names::default(),
            spellings: Spellings::default(),
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

    /// Whether there is nothing to do since this was last asked: so it is on the way of a request that finds a connection
    /// idle.
    #[inline]
    pub(super) fn rests(&self) -> bool {
        self.actions.is_empty()
    }

    /// What there is to do since this was last asked.
    pub(super) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The host whose origin is written as that of `uri`, of which `spelling` is a hash. There may be one though none is
    /// found.
    #[inline]
    pub(super) fn spelled(&self, spelling: u64, uri: &Uri) -> Option<HostId> {
        self.spellings.find(&self.hosts, spelling, uri)
    }

    /// `host` is asked for under that `spelling`.
    pub(super) fn learn(&mut self, spelling: u64, host: HostId) {
        self.spellings.learn(&self.hosts, spelling, host);
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
            let host = self.hosts.remove(oldest);
            let cause = host.and_then(|host| host.last_error);
            self.actions.extend(cause.map(Action::Discard));
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

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("limits", &self.limits)
            .field("gauges", &self.gauges())
            .finish_non_exhaustive()
    }
}
