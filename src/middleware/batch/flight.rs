//! A batch in flight: its calls, and who gets what of their answers.

use std::any::Any;
use std::future::poll_fn;
use std::iter;
use std::mem;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Weak;
use std::task::Poll;

use tower_service::Service as _;

use super::board::{Kind, Sent, Taken};
use super::dedup::Dedup;
use super::hub::{Batching, Hub, Kit, Response};
use super::items::{Outcome, Ticket};
use super::request::{Batch, Facts};
use super::results::IntoResults;
use super::state::{Cell, Measure};
use crate::base::clock;
use crate::base::cost;
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
    /// The service failed to be ready, and was not called.
    Unready(BoxError),
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

    /// Sends the batch with a service that is ready, and parts of it again as long as that is wanted and may help.
    pub(super) async fn send(mut self, service: L::Service, taken: Taken<L>) {
        let Some(plan) = self.hub.upgrade().map(|hub| hub.plan.clone()) else {
            return;
        };
        let all = taken.items.len();
        let most = 4 * all.next_power_of_two().ilog2() as usize + 1;
        // For the parts: a service that failed once is not asked again.
        let spare = caught(|| plan.copy.map(|_| service.clone()));
        let spare = match spare {
            Ok(spare) => spare,
            Err(failure) => return self.fail(0..all, failure),
        };
        let mut ready = Some((service, taken.weight));
        let mut calls = 0;
        let mut parts = vec![Part {
            first: 0,
            items: taken.items,
        }];
        while let Some(Part { first, items }) = parts.pop() {
            let range = first..first + items.len();
            let (mut service, weight) = match ready.take() {
                Some(ready) => ready,
                None if !self.is_wanted(range.end) => {
                    self.take_seats(range.end);
                    continue;
                }
                None => {
                    let made = caught(|| {
                        let service = spare.clone().expect("what is bisected has a spare");
                        let weights = items.iter().map(|item| plan.weight(item));
                        (service, weights.fold(0, usize::saturating_add))
                    });
                    let ready = match made {
                        Ok((service, weight)) => ready_again(service).await.map(|it| (it, weight)),
                        Err(failure) => Err(failure),
                    };
                    match ready {
                        Ok(ready) => ready,
                        Err(failure) => return self.fail(first..all, failure),
                    }
                }
            };
            calls += 1;
            if let Some(hub) = self.hub.upgrade().filter(|_| calls > 1) {
                hub.stats.count(Cell::Splits, 1);
            }
            // Both halves are calls that are still to be made.
            let copy = plan
                .copy
                .filter(|_| items.len() > 1 && calls + parts.len() + 2 <= most);
            let facts = Facts {
                weight,
                flush: taken.flush,
                deadline: taken.deadline.map(Deadline::at),
            };
            let made = caught(|| {
                let copies = copy.map(|copy| items.iter().map(copy).collect::<Vec<_>>());
                (
                    copies,
                    cost::inner(|| service.call(Batch::of(items, facts))),
                )
            });
            let (copies, called) = match made {
                Ok((copies, future)) => (copies, result(future).await),
                Err(failure) => (None, Err(failure)),
            };
            match called {
                Ok(response) => self.answer(range, response),
                Err(Failure::Error(error)) => {
                    let split = caught(|| copies.filter(|_| (plan.worth_splitting)(&*error)));
                    let Some(mut left) = split.unwrap_or(None) else {
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
        let seats = self.take_seats(range.end);
        let Some(hub) = self.hub.upgrade() else {
            return;
        };
        let mut answers: Vec<_> = range.clone().map(|_| None).collect();
        let mut unknown = 0;
        // Who had an answer by then, has it.
        let read = caught(|| {
            for (position, answer) in response.into_results(answers.len()) {
                match answers.get_mut(position) {
                    Some(place @ None) => *place = Some(answer.map_err(Into::into)),
                    _ => unknown += 1,
                }
            }
        });
        if unknown > 0 {
            hub.stats.count(Cell::Unknown, unknown);
        }
        let mut given = Vec::with_capacity(seats.len());
        let mut seats = seats.iter().peekable();
        while let Some(seat) = seats.next() {
            let (kind, answer) = match (answers[seat.position - range.start].take(), &read) {
                (Some(Ok(answer)), _) => (Kind::Ok, Ok(answer)),
                (Some(Err(error)), _) => (Kind::Error, Err(error)),
                (None, Ok(())) => (Kind::Missing, Err(missing().into())),
                (None, Err(failure)) => (Kind::Panic, Err(failure.again())),
            };
            let mut twins = iter::from_fn(|| seats.next_if(|twin| twin.position == seat.position));
            match answer {
                Ok(answer) => {
                    for twin in twins {
                        given.push(match caught(|| hub.plan.dedup.copy(&answer)) {
                            Ok(copy) => (twin.ticket, kind, Outcome::Answer(Ok(copy))),
                            Err(failure) => failed(twin, Kind::Panic, failure.again()),
                        });
                    }
                    given.push((seat.ticket, kind, Outcome::Answer(Ok(answer))));
                }
                Err(error) => match twins.next() {
                    None => given.push(failed(seat, kind, error)),
                    Some(twin) => {
                        let error = SharedError::new(error);
                        for seat in [seat, twin].into_iter().chain(twins) {
                            given.push(failed(seat, kind, error.clone().into()));
                        }
                    }
                },
            }
        }
        hub.desk.with(|board, debris| board.deliver(given, debris));
    }

    /// The items of `range` came to nothing.
    pub(super) fn fail(&mut self, range: Range<usize>, failure: Failure) {
        let seats = self.take_seats(range.end);
        let Some(hub) = self.hub.upgrade() else {
            return;
        };
        let kind = match failure {
            Failure::Panic(_) => Kind::Panic,
            Failure::Error(_) | Failure::Unready(_) => Kind::Error,
        };
        let given = match (failure, &*seats) {
            // The error of one alone stays as it is.
            (Failure::Error(error) | Failure::Unready(error), [seat]) => {
                vec![failed(seat, kind, error)]
            }
            (Failure::Error(error) | Failure::Unready(error), seats) => {
                let error = SharedError::new(error);
                let given = seats.iter();
                let given = given.map(|seat| failed(seat, kind, error.clone().into()));
                given.collect()
            }
            (failure @ Failure::Panic(_), seats) => {
                let given = seats.iter();
                let given = given.map(|seat| failed(seat, kind, failure.again()));
                given.collect()
            }
        };
        hub.desk.with(|board, debris| board.deliver(given, debris));
    }

    /// Whether anybody still waits for the items up to `end`.
    fn is_wanted(&self, end: usize) -> bool {
        let seats = &self.seats[..self.seats_before(end)];
        let hub = self.hub.upgrade();
        hub.is_some_and(|hub| hub.desk.with(|board, _| board.is_any_there(seats)))
    }

    /// Those who wait for the items up to `end`: parts are answered from the front.
    fn take_seats(&mut self, end: usize) -> Vec<Sent> {
        let later = self.seats.split_off(self.seats_before(end));
        mem::replace(&mut self.seats, later)
    }

    fn seats_before(&self, end: usize) -> usize {
        self.seats.partition_point(|seat| seat.position < end)
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

/// The service once it is ready.
async fn ready_again<S: Batching<Req>, Req>(mut service: S) -> Result<S, Failure> {
    let ready = poll_fn(
        |cx| match caught(|| cost::inner(|| service.poll_ready(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(ready)) => {
                Poll::Ready(ready.map_err(|error| Failure::Unready(error.into())))
            }
            Err(failure) => Poll::Ready(Err(failure)),
        },
    );
    ready.await.map(|()| service)
}

/// What a call comes to. A panic is a result too, even that of a future that is dropped, unless there is an answer by then.
async fn result<T, E: Into<BoxError>>(
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let mut future = pin!(Some(future));
    let result = poll_fn(|cx| {
        let Some(future) = future.as_mut().as_pin_mut() else {
            unreachable!("a future is there until it is ready");
        };
        match caught(|| cost::inner(|| future.poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => {
                Poll::Ready(done.map_err(|error| Failure::Error(error.into())))
            }
            Err(failure) => Poll::Ready(Err(failure)),
        }
    })
    .await;
    let _panicked = caught(|| future.set(None));
    result
}

/// What foreign code comes to.
pub(super) fn caught<T>(foreign: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(foreign)).map_err(|payload| Failure::panic(&*payload))
}

fn failed<T>(seat: &Sent, kind: Kind, error: BoxError) -> Given<T> {
    (seat.ticket, kind, Outcome::Answer(Err(error)))
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
    fn panic(payload: &(dyn Any + Send)) -> Self {
        let said = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::Panic(match said {
            Some(said) => format!("the call of its batch panicked: {said}"),
            None => "the call of its batch panicked".to_owned(),
        })
    }

    /// The error of a panic, for one of several.
    fn again(&self) -> BoxError {
        let message = match self {
            Self::Panic(message) => message.clone(),
            Self::Error(error) | Self::Unready(error) => error.to_string(),
        };
        Rejection::new("batch", Reason::Panicked, message).into()
    }
}
