use std::task::{Poll, Waker};

use super::permit::{Holds, Permit, UNSAMPLED, UNTIMED};
use super::queue::{Entry, Refused, Ticket};
use super::refusal::Refusal;
use super::sampler::at;
use super::state::State;
use crate::base::clock;
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
        Err(self.state.refusal(refused, &self.state.gate))
    }

    fn permit(&self) -> Permit {
        let state = &*self.state;
        let cells = state.sampler.cells.local();
        let before = cells.add(at::ADMITTED + self.entry.priority as usize, 1);
        let timed = state.sampler.times(before);
        let start = match timed || self.entry.deadline.is_some() {
            true => state.sampler.at(clock::now()),
            false => UNTIMED,
        };
        Permit {
            state: self.state.clone(),
            start: if timed { start } else { start | UNSAMPLED },
            deadline: state.bound(self.entry.deadline),
            ticket: Ticket::NONE,
            partition: self.entry.partition,
            holds: Holds::Slot,
            bodiless: self.bodiless,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let state = &*self.state;
        let gate = &state.gate;
        let refused = gate.give_up(&ticket, self.entry.partition, clock::now, state);
        if !refused {
            state.sampler.cells.local().add(at::ABANDONED, 1);
        }
    }
}
