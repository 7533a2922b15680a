use std::task::{Poll, Waker};

use super::permit::{Holds, Permit, UNTIMED};
use super::queue::{Entry, Refused, Ticket};
use super::refusal::Refusal;
use super::sampler::at;
use super::state::State;
use crate::base::clock;
use crate::base::error::Reason;
use crate::base::stats::Lease;

/// A request that waits for a slot.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) state: Lease<State>,
    pub(super) ticket: Option<Ticket>,
    pub(super) entry: Entry,
    pub(super) bodiless: bool,
}

// ===== impl Waiting =====

impl Waiting {
    /// What became of it.
    pub(super) fn poll(&mut self, waker: &Waker) -> Poll<Result<Permit, Refusal>> {
        let Some(ticket) = &self.ticket else {
            unreachable!("polled after it was settled")
        };
        let settled = match self.state.gate.poll(ticket, waker) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(settled) => settled,
        };
        self.ticket = None;
        Poll::Ready(match settled {
            Ok(()) => Ok(self.permit()),
            Err(refused) => self.refuse(refused),
        })
    }

    /// Refuses; or lets it through, when a dry run has begun while it waited.
    fn refuse(&self, refused: Refused) -> Result<Permit, Refusal> {
        if self.state.is_dry() {
            let state = self.state.clone();
            return Ok(Permit::aside(state, Holds::Nothing, self.bodiless));
        }
        Err(self.refusal(refused))
    }

    fn permit(&self) -> Permit {
        let state = &*self.state;
        let cells = state.sampler.cells.local();
        cells.add(at::ADMITTED + self.entry.priority as usize, 1);
        Permit {
            state: self.state.clone(),
            start: match state.sampler.is_timed() {
                true => state.start(clock::now()),
                false => UNTIMED,
            },
            deadline: state.bound(self.entry.deadline),
            ticket: Ticket::NONE,
            partition: self.entry.partition,
            holds: Holds::Slot,
            bodiless: self.bodiless,
        }
    }

    fn refusal(&self, mut refused: Refused) -> Refusal {
        let state = &*self.state;
        let full = refused.reason == Reason::QueueFull;
        if full && !state.partitions.is_empty() && !state.gate.under(self.entry.partition) {
            refused.reason = Reason::Quota;
        }
        state.refusal(refused, &state.gate)
    }

    fn give_up(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let state = &*self.state;
            state
                .gate
                .give_up(&ticket, self.entry.partition, clock::now, state);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.give_up();
    }
}
