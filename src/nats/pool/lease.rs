//! What is held of a pool, and given back by being dropped: a place on a line, in the queue, among those who wait until
//! it is ready.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::super::error::Error;
use super::super::line::Line;
use super::shared::{Shared, State};

/// A place for one request on a line; given back when it is dropped.
pub(super) struct Lease {
    shared: Arc<Shared>,
    id: u64,
    pub(super) line: Arc<Line>,
}

/// A place in the queue; left when it is dropped.
pub(super) struct Place<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) ticket: u64,
    pub(super) granted: oneshot::Receiver<Result<Lease, Error>>,
}

/// The place of one who waits until the pool is ready.
pub(super) struct Seat {
    shared: Arc<Shared>,
    id: Option<u64>,
}

// ===== impl Lease =====

impl Lease {
    /// # Panics
    ///
    /// Never: lines that are granted are there, since both are under one lock.
    pub(super) fn new(shared: &Arc<Shared>, id: u64, state: &State) -> Self {
        let line = state
            .lines
            .get(&id)
            .expect("a line that was granted is there");
        Self {
            shared: shared.clone(),
            id,
            line: line.clone(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.core.release(self.id);
        let closing = state.core.is_closed();
        let waited_for = state.core.waiting() > 0 || state.core.has_too_many();
        if waited_for {
            // Nobody is to be granted a line that is gone.
            state.refresh();
        }
        drop(state);
        if closing {
            self.shared.changed.notify_waiters();
        } else if waited_for {
            self.shared.pump();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.core.leave(self.ticket);
        let sender = state.waiting.remove(&self.ticket);
        drop(state);
        drop(sender);
    }
}

// ===== impl Seat =====

impl Seat {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, id: None }
    }
}

impl Seat {
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut state = self.shared.lock();
        state.refresh();
        if let Some(id) = self.id {
            state.seats.remove(&id);
        }
        if state.core.is_closed() {
            return Poll::Ready(Err(Error::closed()));
        }
        if !state.core.is_down() {
            return Poll::Ready(Ok(()));
        }
        let id = self.id.unwrap_or(state.next_seat);
        state.next_seat = state.next_seat.max(id + 1);
        self.id = Some(id);
        state.seats.insert(id, cx.waker().clone());
        drop(state);
        // Sees to it that somebody looks.
        self.shared.pump();
        Poll::Pending
    }
}

impl Clone for Seat {
    /// Waits for nothing yet.
    fn clone(&self) -> Self {
        self.shared.seat()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let seat = self.shared.lock().seats.remove(&id);
            drop(seat);
        }
    }
}
