//! Who waits for a connection.

use std::sync::Arc;
use std::task::Waker;

use super::Cause;
use super::conn::ConnId;
use super::host::HostId;
use super::slab::{Id, Link, Through};
use crate::base::clock::Instant;

pub(in crate::middleware::pool) type WaiterId = Id<Waiter>;

#[derive(Debug)]
pub(in crate::middleware::pool) struct Waiter {
    pub(super) host: HostId,
    pub(super) wants: Wants,
    pub(super) deadline: Option<Instant>,
    /// `None` while it waits. Then its answer, until it comes to take it.
    pub(super) answer: Option<Answer>,
    pub(super) waker: Waker,
    pub(super) in_line: Link<Waiter>,
    pub(super) by_deadline: Link<Waiter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// Room for one request.
    Connection,
    /// So many connections to be there.
    Open(usize),
}

/// How waiting ended.
#[derive(Debug)]
pub(in crate::middleware::pool) enum Answer {
    /// A place on a connection; it is the waiter's now.
    Granted(Grant),
    /// So many connections are open.
    Open(usize),
    /// The dial failed that would have served it.
    Failed(Arc<Cause>),
    /// It waited as long as one may.
    TimedOut {
        /// The dial it hoped for, if there was one.
        dial: Option<ConnId>,
        /// How many slots its host had.
        open: usize,
        /// How many there were in all.
        total: usize,
    },
    /// The pool shut down.
    Closed,
}

/// A place on a connection: the whole of an HTTP/1 one, a stream of an HTTP/2 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::middleware::pool) struct Grant {
    pub(in crate::middleware::pool) conn: ConnId,
    /// When the connection fell idle, if it carried requests before.
    pub(in crate::middleware::pool) reused: Option<Reused>,
}

/// What a connection did before it was granted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::middleware::pool) enum Reused {
    /// Nothing since then.
    IdleSince(Instant),
    /// Other requests, at the same time or just before.
    Busy,
}

/// Those of one host, in the order they came.
#[derive(Debug)]
pub(super) struct InLine;

impl Through<Waiter> for InLine {
    fn link(waiter: &mut Waiter) -> &mut Link<Waiter> {
        &mut waiter.in_line
    }
}

/// Those of all hosts, in the order of their deadlines.
#[derive(Debug)]
pub(super) struct ByDeadline;

impl Through<Waiter> for ByDeadline {
    fn link(waiter: &mut Waiter) -> &mut Link<Waiter> {
        &mut waiter.by_deadline
    }
}
