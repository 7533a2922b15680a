use super::classify::Verdict;
use super::queue::Ticket;
use super::sampler::at;
use super::state::State;
use crate::base::clock::{self, Instant};
use crate::base::priority::Priority;
use crate::base::stats::Lease;

/// A request that was let in. Dropped, it was cancelled.
///
/// Four words: it rides in a future and then in a body, and every copy of it is time.
#[derive(Debug)]
pub(super) struct Permit {
    pub(super) state: Lease<State>,
    /// When it was let in, in the sampler's nanoseconds, with [`UNSAMPLED`] if only its caller's patience is measured;
    /// [`UNTIMED`] if nothing is.
    pub(super) start: u64,
    /// Its deadline, in the sampler's nanoseconds; [`BOUNDLESS`] if it has none.
    pub(super) deadline: u64,
    pub(super) ticket: Ticket,
    pub(super) partition: u16,
    pub(super) holds: Holds,
    pub(super) bodiless: bool,
}

pub(super) const UNTIMED: u64 = u64::MAX;
pub(super) const UNSAMPLED: u64 = 1 << 63;
pub(super) const BOUNDLESS: u64 = u64::MAX;

/// What a permit gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Slot,
    Stream,
    /// In a dry run: its ticket's place, or the slot that was granted to it. Whether it would have been let in is
    /// known at its end.
    Ghost(Priority),
    /// It was let through without a slot.
    Nothing,
    Over,
}

// ===== impl Permit =====

impl Permit {
    /// One that holds none of the gate's slots.
    pub(super) fn aside(state: Lease<State>, holds: Holds, bodiless: bool) -> Self {
        Self {
            state,
            start: UNTIMED,
            deadline: BOUNDLESS,
            ticket: Ticket::NONE,
            partition: 0,
            holds,
            bodiless,
        }
    }

    #[inline]
    pub(super) fn is_timed(&self) -> bool {
        self.start & UNSAMPLED == 0
    }

    /// Whether a response whose headers came at `head` and that went on until `now` is a stream: it took longer to
    /// send than to make.
    pub(super) fn is_stream(&self, head: Instant, now: Instant) -> bool {
        let sampler = &self.state.sampler;
        let (head, now) = (sampler.at(head), sampler.at(now));
        self.is_timed() && now.saturating_sub(head) > head.saturating_sub(self.start)
    }

    /// Counts a hook that panicked, which says nothing.
    #[cold]
    pub(super) fn hook_panicked(&self) -> Verdict {
        self.state.sampler.cells.local().add(at::PANICS, 1);
        Verdict::Ignore
    }

    /// Ends it: `verdict` on the whole, `head` when the response came, `now` the end, for those who ask.
    #[inline]
    pub(super) fn end(
        &mut self,
        verdict: Verdict,
        head: Option<Instant>,
        now: impl FnOnce() -> Instant,
    ) {
        let holds = std::mem::replace(&mut self.holds, Holds::Over);
        match holds {
            Holds::Slot => {
                // Whatever panics on the way, a hook or somebody who is woken, the slot comes free.
                let _released = Released(self);
                self.note(verdict, head, now);
            }
            Holds::Stream => _ = self.state.streams.release(0),
            Holds::Ghost(priority) => {
                let state = &*self.state;
                let gate = &state.gate;
                let refused = gate.give_up(&self.ticket, self.partition, clock::now, state);
                if !refused {
                    let cells = state.sampler.cells.local();
                    cells.add(at::ADMITTED + priority as usize, 1);
                    self.note(verdict, head, now);
                }
            }
            // Those who pass by say nothing about the load of others; neither do those a dry run would have refused.
            Holds::Nothing | Holds::Over => {}
        }
    }

    /// Counts the end, and times it if it is timed.
    #[inline]
    fn note(&self, verdict: Verdict, head: Option<Instant>, now: impl FnOnce() -> Instant) {
        let state = &*self.state;
        let cells = state.sampler.cells.local();
        if self.start == UNTIMED && self.deadline == BOUNDLESS {
            cells.add(at::ENDED + verdict as usize, 1);
            return;
        }
        let now = now();
        let end = state.sampler.at(now);
        let late = verdict == Verdict::Success && end >= self.deadline;
        let verdict = if late { Verdict::Overload } else { verdict };
        cells.add(at::ENDED + verdict as usize, 1);
        if self.is_timed() {
            if verdict == Verdict::Success {
                let head = head.map_or(end, |head| state.sampler.at(head));
                let trip = head.saturating_sub(self.start);
                state.sampler.timed(&cells, trip, end.saturating_sub(head));
            }
            state.tick(now, end);
        }
    }

    /// What going away means: overload when it was near the deadline, or took far longer than others do.
    #[cold]
    fn gone(&self, now: u64) -> Verdict {
        if now >= self.deadline {
            return Verdict::Overload;
        }
        if self.start == UNTIMED {
            return Verdict::Cancelled;
        }
        let start = self.start & !UNSAMPLED;
        let passed = now.saturating_sub(start);
        let granted = self.deadline.saturating_sub(start);
        let near = self.deadline != BOUNDLESS && passed >= granted / 5 * 4;
        let p90 = self.state.sampler.p90();
        match near || (p90 > 0 && passed > 2 * p90) {
            true => Verdict::Overload,
            false => Verdict::Cancelled,
        }
    }

    #[cold]
    fn cancel(&mut self) {
        if std::thread::panicking() {
            return self.end(Verdict::Ignore, None, clock::now);
        }
        let now = clock::now();
        let verdict = self.gone(self.state.sampler.at(now));
        self.end(verdict, None, || now);
    }
}

/// Gives a slot back and passes it on.
struct Released<'a>(&'a Permit);

impl Drop for Released<'_> {
    #[inline]
    fn drop(&mut self) {
        let state = &*self.0.state;
        if state.gate.release(self.0.partition) {
            state.gate.settle(clock::now(), state);
        }
    }
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        if self.holds != Holds::Over {
            self.cancel();
        }
    }
}
