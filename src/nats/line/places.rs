//! What is held of a line, and given back by being dropped.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::OwnedSemaphorePermit;

use super::super::error::Error;
use super::super::gather::Gather;
use super::{Line, To, wake};

/// The place of one who waits for the connection. Empty until needed, and given back on drop.
pub(in crate::nats) struct Seat {
    pub(super) line: Arc<Line>,
    pub(super) id: Option<u64>,
}

/// Takes entries out again when it is dropped.
pub(in crate::nats) struct Tickets {
    pub(super) line: Arc<Line>,
    pub(super) first: u64,
    pub(super) count: u64,
}

// ===== impl Seat =====

impl Seat {
    /// Ready while the line is connected and can be answered; fails when it is closed for good.
    pub(in crate::nats) fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll(cx, true)
    }

    /// Ready once the line can be answered, connected or not.
    pub(in crate::nats) async fn opened(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll(cx, false)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, up: bool) -> Poll<Result<(), Error>> {
        let desk = &self.line.desk;
        let mut table = desk.table();
        if table.closed {
            return Poll::Ready(Err(Error::closed()));
        }
        if table.open && (!up || desk.is_up()) {
            if let Some(id) = self.id.take() {
                table.seats.remove(&id);
            }
            return Poll::Ready(Ok(()));
        }
        let id = *self.id.get_or_insert_with(|| {
            table.next += 1;
            table.next - 1
        });
        table.seats.insert(id, cx.waker().clone());
        let asleep = table.asleep.take();
        drop(table);
        wake(asleep);
        Poll::Pending
    }
}

impl Clone for Seat {
    /// Waits for nothing yet.
    fn clone(&self) -> Self {
        self.line.seat()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let seat = self.line.desk.table().seats.remove(&id);
            drop(seat);
        }
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line.fmt(f)
    }
}

// ===== impl Tickets =====

impl Tickets {
    pub(in crate::nats) fn id(&self, place: usize) -> u64 {
        self.first + place as u64
    }

    /// Has an entry for the answer at `place` of `gather`.
    pub(in crate::nats) fn expect(
        &self,
        gather: &Arc<Gather>,
        place: usize,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Error> {
        let to = To::Many(gather.clone(), place, permit);
        self.line.desk.insert(self.id(place), to)
    }

    /// Gives up the one at `place`.
    pub(in crate::nats) fn withdraw(&self, place: usize) {
        let entry = self.line.desk.table().waiting.remove(&self.id(place));
        drop(entry);
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        let mut table = self.line.desk.table();
        // What was answered is out already: of a batch that was answered in full nothing is looked for.
        let entries: Vec<_> = match table.waiting.is_empty() {
            true => Vec::new(),
            false => (self.first..self.first + self.count)
                .filter_map(|id| table.waiting.remove(&id))
                .collect(),
        };
        drop(table);
        drop(entries);
    }
}
