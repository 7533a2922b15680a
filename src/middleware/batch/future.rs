use std::fmt;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::hub::{Verbs, late};
use super::items::Ticket;
use super::state::State;
use crate::base::clock::Instant;
use crate::base::cost::Toll;
use crate::base::error::BoxError;
use crate::base::stats::Lease;
use crate::base::timer::Timer;

/// Waits for the answer to one item. Dropped before, it takes the item back, or leaves its place if it was sent.
pub struct ResponseFuture<T: 'static> {
    stage: Stage<T>,
    state: Lease<State>,
    toll: Toll,
}

enum Stage<T: 'static> {
    Refused(BoxError),
    Waiting {
        verbs: &'static Verbs<T>,
        ticket: Ticket,
        deadline: Option<Instant>,
        timer: Timer,
    },
    Done,
}

impl<T> ResponseFuture<T> {
    pub(super) fn refused(state: Lease<State>, error: BoxError) -> Self {
        Self {
            stage: Stage::Refused(error),
            state,
            toll: Toll::default(),
        }
    }

    pub(super) fn waiting(
        state: Lease<State>,
        verbs: &'static Verbs<T>,
        ticket: Ticket,
        deadline: Option<Instant>,
        toll: Toll,
    ) -> Self {
        Self {
            stage: Stage::Waiting {
                verbs,
                ticket,
                deadline,
                timer: Timer::default(),
            },
            state,
            toll,
        }
    }
}

impl<T> Future for ResponseFuture<T> {
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let _own = this.toll.own();
        let Stage::Waiting {
            verbs,
            ticket,
            deadline,
            timer,
        } = &mut this.stage
        else {
            return match mem::replace(&mut this.stage, Stage::Done) {
                Stage::Refused(error) => Poll::Ready(Err(error)),
                _ => panic!("a response future is not polled after it was ready"),
            };
        };
        let answer = match (verbs.poll)(&this.state, *ticket, cx) {
            Poll::Ready(answer) => answer,
            Poll::Pending if deadline.is_some() && timer.poll(cx, *deadline) => {
                let answer = (verbs.leave)(&this.state, *ticket, true);
                answer.unwrap_or_else(|| Err(late().into()))
            }
            Poll::Pending => return Poll::Pending,
        };
        this.stage = Stage::Done;
        Poll::Ready(answer)
    }
}

// What waits has a place of its own; nothing in here is pinned.
impl<T> Unpin for ResponseFuture<T> {}

impl<T> Drop for ResponseFuture<T> {
    fn drop(&mut self) {
        if let Stage::Waiting { verbs, ticket, .. } = self.stage {
            // An answer that is there is dropped with what this returns.
            drop((verbs.leave)(&self.state, ticket, false));
        }
    }
}

impl<T> fmt::Debug for ResponseFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Refused(_) => "refused",
            Stage::Waiting { .. } => "waiting",
            Stage::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}
