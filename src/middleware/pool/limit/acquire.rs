use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Uri;
use tokio::time::Sleep;

use super::gate::{Fate, Ticket};
use super::permit::Permit;
use super::state::State;
use crate::base::clock::{self, Instant};
use crate::base::error::Rejection;
use crate::base::stats::Lease;

/// What became of the wish for a place.
#[derive(Debug)]
pub(super) enum Acquire {
    Granted(Permit),
    Waiting(Waiting),
    Refused(Rejection),
    Over,
}

/// Somebody who waits for a place. Dropped, it waits no longer.
#[derive(Debug)]
pub(super) struct Waiting {
    state: Lease<State>,
    ticket: Option<Ticket>,
    since: Instant,
    /// Made when it has to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
    ghost: bool,
}

// ===== impl Acquire =====

impl Acquire {
    /// Waits for a place of the host of `uri`, which is the one it was entered with.
    #[inline]
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        uri: &Uri,
    ) -> Poll<Result<Permit, Rejection>> {
        let settled = match self {
            Self::Waiting(waiting) => ready!(waiting.poll(cx, uri)),
            _ => match std::mem::replace(self, Self::Over) {
                Self::Granted(permit) => Ok(permit),
                Self::Refused(rejection) => Err(rejection),
                _ => panic!("pool: a future was polled after it was done"),
            },
        };
        *self = Self::Over;
        Poll::Ready(settled)
    }

    /// Ends it because nobody is left whom it is for.
    pub(super) fn end_ghost(&mut self) {
        if let Self::Waiting(waiting) = self {
            waiting.ghost = true;
        }
        *self = Self::Over;
    }
}

// ===== impl Waiting =====

impl Waiting {
    pub(super) fn new(state: Lease<State>, ticket: Ticket) -> Self {
        Self {
            state,
            ticket: Some(ticket),
            since: clock::now(),
            timer: None,
            ghost: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, uri: &Uri) -> Poll<Result<Permit, Rejection>> {
        let Some(ticket) = &self.ticket else {
            unreachable!("polled after it was settled")
        };
        let state = &*self.state;
        // Cloned before the lock is taken, and what it replaces dropped after: a waker is foreign code.
        let mut wake = cx.waker().clone();
        let fate = state.lock().gate.poll(ticket, &mut wake);
        drop(wake);
        match fate {
            Fate::Granted(host) => return Poll::Ready(Ok(self.granted(host))),
            Fate::Closed => {
                let mut inner = state.lock();
                inner.counts.closed += 1;
                let left = inner.gate.leave(ticket);
                drop(inner);
                drop(left);
                self.ticket = None;
                return Poll::Ready(Err(self.state.closed()));
            }
            Fate::Waits => {}
        }
        let until = self.since + state.settings.timeout;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(timer.as_mut().poll(cx));
        let mut inner = state.lock();
        let Some(left) = inner.gate.leave(ticket) else {
            // It was granted between the look and the time.
            let host = ticket.host();
            drop(inner);
            return Poll::Ready(Ok(self.granted(host)));
        };
        inner.counts.timeouts += 1;
        let facts = inner.gate.facts_of(ticket);
        drop(inner);
        drop(left);
        let rejection = state.timed_out(&facts, uri, self.since);
        self.ticket = None;
        Poll::Ready(Err(rejection))
    }

    fn granted(&mut self, host: usize) -> Permit {
        self.ticket = None;
        let waited = clock::now().saturating_duration_since(self.since);
        let bucket = self.state.bounds.of(waited);
        let counts = &mut self.state.lock().counts;
        counts.granted += 1;
        counts.waits[bucket] += 1;
        counts.waited += waited;
        Permit::new(self.state.clone(), host)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let mut inner = self.state.lock();
        inner.counts.abandoned += u64::from(!self.ghost);
        let left = inner.gate.leave(&ticket);
        // It was granted and not taken: the place goes to the next.
        let woken = left
            .is_none()
            .then(|| inner.gate.release(ticket.host(), false));
        drop(inner);
        drop(left);
        if let Some(woken) = woken {
            woken.wake();
        }
    }
}
