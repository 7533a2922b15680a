//! One connection, from the dial to the moment its socket is gone.

use std::time::Duration;

use super::host::Host;
use super::slab::{Id, Link, Through};
use crate::base::clock::Instant;

pub(in crate::middleware::pool) type ConnId = Id<Conn>;

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::middleware::pool) enum Version {
    Http1,
    Http2,
}

/// ```text
/// Dialling ──► Idle ◄──► Busy ──► Closing ──► gone
///     │          └───────────────────▲
///     └──────────────────────────────┘
/// ```
///
/// Whatever the stage, a connection holds its slot until it is gone. A busy one that is `leaving` drains: it takes
/// nothing new and closes when its last request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Dialling,
    Idle,
    Busy,
    Closing,
}

#[derive(Debug)]
pub(in crate::middleware::pool) struct Conn {
    pub(super) host: Id<Host>,
    pub(super) stage: Stage,
    pub(super) version: Version,
    /// Requests on it now.
    pub(super) streams: usize,
    /// How many it takes: 1 for HTTP/1.
    pub(super) room: usize,
    /// From how many on its host wants one more.
    pub(super) scale_at: usize,
    /// Requests it was ever given.
    pub(super) requests: u64,
    /// When its dial began; once it is established, when it was.
    pub(super) since: Instant,
    pub(super) idle_since: Instant,
    pub(super) expires: Option<Instant>,
    pub(super) leaving: Option<CloseReason>,
    pub(super) among_idle_of_host: Link<Conn>,
    pub(super) among_idle: Link<Conn>,
}

/// Why a connection was closed.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Nobody used it for the idle timeout.
    IdleTimeout,
    /// It reached its lifetime.
    MaxLifetime,
    /// It carried as many requests as one may.
    MaxRequests,
    /// Another host needed its slot.
    Evicted,
    /// More were idle than may be.
    Surplus,
    /// The peer closed it.
    Peer,
    /// The peer said that it goes away (HTTP/2 GOAWAY).
    GoAway,
    /// It failed.
    Error,
    /// Its request was given up, which HTTP/1 can only do by closing.
    Cancelled,
    /// Its dial failed or took too long.
    Dial,
    /// The owner of the pool asked for it: `close_idle` or `refresh`.
    Asked,
    /// The pool shut down, or nobody holds it any more.
    Shutdown,
}

// ===== impl Conn =====

impl Conn {
    pub(super) fn dialling(host: Id<Host>, now: Instant) -> Self {
        Self {
            host,
            stage: Stage::Dialling,
            version: Version::Http1,
            streams: 0,
            room: 0,
            scale_at: usize::MAX,
            requests: 0,
            since: now,
            idle_since: now,
            expires: None,
            leaving: None,
            among_idle_of_host: Link::default(),
            among_idle: Link::default(),
        }
    }

    /// Established, and takes requests as far as there is room.
    pub(super) fn live(&self) -> bool {
        matches!(self.stage, Stage::Idle | Stage::Busy) && self.leaving.is_none()
    }

    pub(super) fn draining(&self) -> bool {
        self.stage == Stage::Busy && self.leaving.is_some()
    }

    /// Why it should be used no more, if it should not.
    #[inline]
    pub(super) fn stale(&self, now: Instant, idle_timeout: Duration) -> Option<CloseReason> {
        if self.expires.is_some_and(|at| at <= now) {
            return Some(CloseReason::MaxLifetime);
        }
        let idle = self.stage == Stage::Idle && now.duration_since(self.idle_since) >= idle_timeout;
        idle.then_some(CloseReason::IdleTimeout)
    }
}

// ===== impl CloseReason =====

impl CloseReason {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 12] = [
        Self::IdleTimeout,
        Self::MaxLifetime,
        Self::MaxRequests,
        Self::Evicted,
        Self::Surplus,
        Self::Peer,
        Self::GoAway,
        Self::Error,
        Self::Cancelled,
        Self::Dial,
        Self::Asked,
        Self::Shutdown,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IdleTimeout => "idle_timeout",
            Self::MaxLifetime => "max_lifetime",
            Self::MaxRequests => "max_requests",
            Self::Evicted => "evicted",
            Self::Surplus => "surplus",
            Self::Peer => "peer",
            Self::GoAway => "goaway",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
            Self::Dial => "dial",
            Self::Asked => "asked",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The idle connections of one host, the one used longest ago first.
#[derive(Debug)]
pub(super) struct AmongIdleOfHost;

impl Through<Conn> for AmongIdleOfHost {
    fn link(conn: &mut Conn) -> &mut Link<Conn> {
        &mut conn.among_idle_of_host
    }
}

/// The idle connections of all hosts, the one used longest ago first.
#[derive(Debug)]
pub(super) struct AmongIdle;

impl Through<Conn> for AmongIdle {
    fn link(conn: &mut Conn) -> &mut Link<Conn> {
        &mut conn.among_idle
    }
}
