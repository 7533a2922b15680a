//! A batch in flight: its calls, and who gets what of their answers.

use std::any::Any;
use std::future::poll_fn;
use std::iter::{self, Peekable};
use std::mem;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::slice;
use std::sync::Weak;
use std::task::Poll;

use super::board::{Kind, Sent, Taken};
use super::dedup::Dedup;
use super::hub::{Answer, Batching, Hub, Kit, Response};
use super::items::{Outcome, Ticket};
use super::request::{Batch, Facts};
use super::results::IntoResults;
use super::state::{Cell, Measure};
use crate::base::clock;
use crate::base::deadline::Deadline;
use crate::base::error::{BoxError, Reason, Rejection, SharedError};

/// A batch in flight, and who waits for it. Dropped before all have their answers, it tells them.
pub(super) struct Flight<L: Kit> {
    hub: Weak<Hub<L>>,
    shard: u32,
    sent: clock::Instant,
    /// In the order of the batch.
    seats: Vec<Sent>,
}

/// A part of a batch, and where in it that begins.
struct Part<Req> {
    first: usize,
    items: Vec<Req>,
}

/// Why a call came to nothing.
pub(super) enum Failure {
    Error(BoxError),
    Panic(String),
}

type Given<T> = (Ticket, Kind, Outcome<Result<T, BoxError>>);

// ===== impl Flight =====

impl<L: Kit> Flight<L> {
    /// `seats` are in the order of the batch, which is sent now.
    pub(super) fn new(
        hub: Weak<Hub<L>>,
        shard: u32,
        sent: clock::Instant,
        seats: Vec<Sent>,
    ) -> Self {
        Self {
            hub,
            shard,
            sent,
            seats,
        }
    }

    /// Sends the batch, and parts of it again as long as that is wanted and may help.
    pub(super) async fn send(mut self, mut service: L::Service, taken: Taken<L>) {
        let (flush, deadline) = (taken.flush, taken.deadline.map(Deadline::at));
        let mut weight = Some(taken.weight);
        let mut calls = 0;
        let most = 4 * taken.items.len().next_power_of_two().ilog2() as usize + 1;
        let mut parts = vec![Part {
            first: 0,
            items: taken.items,
        }];
        while let Some(Part { first, items }) = parts.pop() {
            let Some(hub) = self.hub.upgrade() else {
                return;
            };
            let plan = hub.plan.clone();
            if calls > 0 {
                hub.stats.count(Cell::Splits, 1);
            }
            drop(hub);
            let range = first..first + items.len();
            calls += 1;
            // Both halves are calls that are still to be made.
            let may_split = items.len() > 1 && calls + parts.len() + 2 <= most;
            let called = catch_unwind(AssertUnwindSafe(|| {
                let copies = plan.copy.filter(|_| may_split).map(|copy| {
                    let copies = items.iter().map(copy);
                    copies.collect::<Vec<_>>()
                });
                let weight = weight.take().unwrap_or_else(|| {
                    let weights = items.iter().map(|item| plan.weight(item));
                    weights.fold(0, usize::saturating_add)
                });
                let facts = Facts {
                    weight,
                    flush,
                    deadline,
                };
                (copies, Batch::of(items, facts))
            }));
            let (copies, batch) = match called {
                Ok(called) => called,
                Err(payload) => {
                    self.fail(range, Failure::panic(&*payload));
                    continue;
                }
            };
            match call(&mut service, batch, calls > 1).await {
                Ok(response) => self.answer(range, response),
                Err(Failure::Error(error)) => {
                    let worth = || copies.filter(|_| (plan.worth_splitting)(&*error));
                    let split = catch_unwind(AssertUnwindSafe(worth)).unwrap_or(None);
                    let Some(mut left) = split else {
                        self.fail(range, Failure::Error(error));
                        continue;
                    };
                    let half = left.len() / 2;
                    let right = left.split_off(half);
                    parts.push(Part {
                        first: first + half,
                        items: right,
                    });
                    parts.push(Part { first, items: left });
                }
                Err(failure) => self.fail(range, failure),
            }
        }
    }

    /// Hands out what the service answered to the items of `range`.
    fn answer(&mut self, range: Range<usize>, response: Response<L>) {
        let Some(hub) = self.hub.upgrade() else {
            return;
        };
        let (first, items) = (range.start, range.len());
        let seats = self.take_seats(range);
        let given = catch_unwind(AssertUnwindSafe(|| {
            let mut unknown = 0;
            let mut answers: Vec<_> = (0..items).map(|_| None).collect();
            for (position, answer) in response.into_results(items) {
                match answers.get_mut(position) {
                    Some(place @ None) => *place = Some(answer.map_err(Into::into)),
                    _ => unknown += 1,
                }
            }
            if unknown > 0 {
                hub.stats.count(Cell::Unknown, unknown);
            }
            let mut given = Vec::with_capacity(seats.len());
            let mut left = seats.iter().peekable();
            while let Some(seat) = left.next() {
                let answer = answers[seat.position - first].take();
                hand_out(&hub, seat, &mut left, answer, &mut given);
            }
            given
        }));
        let given = given.unwrap_or_else(|payload| failed(&seats, Failure::panic(&*payload)));
        hub.desk.with(|board, debris| board.deliver(given, debris));
    }

    /// The items of `range` came to nothing.
    pub(super) fn fail(&mut self, range: Range<usize>, failure: Failure) {
        let seats = self.take_seats(range);
        if let Some(hub) = self.hub.upgrade() {
            let given = failed(&seats, failure);
            hub.desk.with(|board, debris| board.deliver(given, debris));
        }
    }

    /// Those who wait for the items of `range`: parts are answered from the front.
    fn take_seats(&mut self, range: Range<usize>) -> Vec<Sent> {
        let end = self.seats.partition_point(|seat| seat.position < range.end);
        let later = self.seats.split_off(end);
        mem::replace(&mut self.seats, later)
    }
}

impl<L: Kit> Drop for Flight<L> {
    fn drop(&mut self) {
        let Some(hub) = self.hub.upgrade() else {
            return;
        };
        let seats = mem::take(&mut self.seats);
        let given = seats
            .iter()
            .map(|seat| (seat.ticket, Kind::Abandoned, Outcome::Abandoned));
        let now = clock::now();
        let took = now.saturating_duration_since(self.sent);
        hub.stats.record_times(Measure::Batch, iter::once(took));
        hub.desk.with(|board, debris| {
            board.deliver(given, debris);
            board.settle(self.shard, now, debris);
        });
    }
}

/// Gives the answer of an item to the one of `seat`, and copies to those after it who wait for the same.
fn hand_out<L: Kit>(
    hub: &Hub<L>,
    seat: &Sent,
    left: &mut Peekable<slice::Iter<'_, Sent>>,
    answer: Option<Result<Answer<L>, BoxError>>,
    given: &mut Vec<Given<Answer<L>>>,
) {
    let kind = match &answer {
        Some(Ok(_)) => Kind::Ok,
        Some(Err(_)) => Kind::Error,
        None => Kind::Missing,
    };
    let mut answer = answer.unwrap_or_else(|| Err(missing().into()));
    let mut give = |seat: &Sent, answer| {
        given.push((seat.ticket, kind, Outcome::Answer(answer)));
    };
    while let Some(twin) = left.next_if(|twin| twin.position == seat.position) {
        let copy = match answer {
            Ok(ref answer) => Ok(hub.plan.dedup.copy(answer)),
            Err(error) => {
                let shared = SharedError::new(error);
                answer = Err(shared.clone().into());
                Err(shared.into())
            }
        };
        give(twin, copy);
    }
    give(seat, answer);
}

/// Outcomes of those whose call came to nothing. An error of one alone stays as it is.
fn failed<T>(seats: &[Sent], failure: Failure) -> Vec<Given<T>> {
    let give = |seat: &Sent, kind, error| (seat.ticket, kind, Outcome::Answer(Err(error)));
    match (failure, seats) {
        (Failure::Error(error), [seat]) => vec![give(seat, Kind::Error, error)],
        (Failure::Error(error), seats) => {
            let error = SharedError::new(error);
            let error = || error.clone().into();
            let given = seats.iter().map(|seat| give(seat, Kind::Error, error()));
            given.collect()
        }
        (Failure::Panic(message), seats) => {
            let error = || Rejection::new("batch", Reason::Panicked, message.clone()).into();
            let given = seats.iter().map(|seat| give(seat, Kind::Panic, error()));
            given.collect()
        }
    }
}

/// Calls `service`, which is ready unless it is to be `awaited`.
async fn call<S: Batching<Req>, Req>(
    service: &mut S,
    batch: Batch<Req>,
    awaited: bool,
) -> Result<S::Response, Failure> {
    if awaited {
        caught(poll_fn(|cx| service.poll_ready(cx))).await?;
    }
    let called = catch_unwind(AssertUnwindSafe(|| service.call(batch)));
    match called {
        Ok(future) => caught(future).await,
        Err(payload) => Err(Failure::panic(&*payload)),
    }
}

/// A panic of `future` is its result.
async fn caught<T, E: Into<BoxError>>(
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let poll = AssertUnwindSafe(|| future.as_mut().poll(cx));
        match catch_unwind(poll) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(done))) => Poll::Ready(Ok(done)),
            Ok(Poll::Ready(Err(error))) => Poll::Ready(Err(Failure::Error(error.into()))),
            Err(payload) => Poll::Ready(Err(Failure::panic(&*payload))),
        }
    })
    .await
}

fn missing() -> Rejection {
    Rejection::new(
        "batch",
        Reason::Missing,
        "the answer to its batch held nothing for this item; it may or may not have been done",
    )
}

// ===== impl Failure =====

impl Failure {
    pub(super) fn panic(payload: &(dyn Any + Send)) -> Self {
        let said = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::Panic(match said {
            Some(said) => format!("the call of its batch panicked: {said}"),
            None => "the call of its batch panicked".to_owned(),
        })
    }
}
