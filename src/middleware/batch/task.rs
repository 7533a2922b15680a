//! The task of a batch: it waits until the batch is due and may be sent, takes it, and sends it.

use std::cell::Cell;
use std::future::poll_fn;
use std::mem;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tower_service::Service as _;

use super::board::{Claim, Next, Taken};
use super::flight::{Failure, Flight, caught};
use super::hub::{Hub, Kit};
use super::request::Flush;
use super::state::Measure;
use crate::base::clock;
use crate::base::timer::Timer;

/// Who waits until a batch may be taken. Dropped before, it tells those who wait.
pub(super) struct Collector<L: Kit> {
    hub: Weak<Hub<L>>,
    claim: Claim,
    /// Never called itself: what is called is a clone.
    pub(super) service: Option<L::Service>,
    ran: bool,
    /// Its shard has lost a collector before.
    anew: bool,
}

thread_local! {
    /// The collector that is given to an executor just now.
    static BEGINNING: Cell<Option<(usize, Claim)>> = const { Cell::new(None) };
}

/// As long as that is there a collector begins; what began before, after that.
pub(super) struct Beginning(Option<(usize, Claim)>);

pub(super) async fn run<L: Kit>(mut collector: Collector<L>) {
    let Some(ready) = collector.turn().await else {
        return;
    };
    let Some((mut flight, taken)) = collector.take() else {
        return;
    };
    drop(collector);
    match ready {
        Ok(service) => flight.send(service, taken).await,
        Err(failure) => flight.fail(0..taken.items.len(), failure),
    }
}

// ===== impl Collector =====

impl<L: Kit> Collector<L> {
    pub(super) fn new(hub: Weak<Hub<L>>, claim: Claim, anew: bool) -> Self {
        Self {
            hub,
            claim,
            service: None,
            ran: false,
            anew,
        }
    }

    /// It is given to an executor now.
    pub(super) fn begins(&self) -> Beginning {
        Beginning(BEGINNING.replace(Some(self.number())))
    }

    fn number(&self) -> (usize, Claim) {
        (self.hub.as_ptr().addr(), self.claim)
    }

    /// Waits until a batch may be taken and a service is ready for it, or failed to be. Nothing when there is none to take.
    async fn turn(&mut self) -> Option<Result<L::Service, Failure>> {
        let mut timer = Timer::default();
        let mut called = None;
        let mut yielded = false;
        let ready = poll_fn(|cx| {
            self.ran = true;
            loop {
                let Some(hub) = self.hub.upgrade() else {
                    return Poll::Ready(None);
                };
                let (claim, now) = (self.claim, clock::now());
                let next = hub
                    .desk
                    .with(|board, debris| board.next(claim, cx.waker(), now, debris));
                match next {
                    Next::Leave => return Poll::Ready(None),
                    Next::Wait(until) if timer.poll(cx, until) => {}
                    Next::Wait(until) => {
                        if until.is_some() && !timer.is_set() {
                            hub.untimed.store(true, Ordering::Relaxed);
                        }
                        return Poll::Pending;
                    }
                    // Who is about to run may send more: a task that is woken or begun may run before all of them. Where
                    // callers drive, nobody else is.
                    Next::Take(Flush::Idle)
                        if hub.has_tasks() && !mem::replace(&mut yielded, true) =>
                    {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Next::Take(_) => {
                        let polled = self.poll_service(&mut called, cx);
                        if polled.is_pending() {
                            hub.desk.with(|board, debris| board.hold(claim, debris));
                        }
                        return polled.map(Some);
                    }
                }
            }
        });
        let ready = ready.await?;
        Some(ready.map(|()| called.expect("a service that is ready is there")))
    }

    /// Polls a clone of the service for readiness. Items still join.
    fn poll_service(
        &self,
        called: &mut Option<L::Service>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        let polled = caught(|| {
            let Some(service) = &self.service else {
                unreachable!("a collector that runs has a service");
            };
            called.get_or_insert_with(|| service.clone()).poll_ready(cx)
        });
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(ready)) => {
                Poll::Ready(ready.map_err(|error| Failure::Unready(error.into())))
            }
            Err(failure) => Poll::Ready(Err(failure)),
        }
    }

    /// Takes the batch. What does not fit is for the next collector.
    fn take(&mut self) -> Option<(Flight<L>, Taken<L>)> {
        let hub = self.hub.upgrade()?;
        let now = clock::now();
        let mut taken = hub
            .desk
            .with(|board, debris| board.take(self.claim, now, debris))?;
        let seats = mem::take(&mut taken.seats);
        let waits = seats
            .iter()
            .map(|seat| now.saturating_duration_since(seat.at));
        hub.stats.record_times(Measure::Wait, waits);
        let flight = Flight::new(self.hub.clone(), self.claim.shard, now, seats);
        hub.stats.record(Measure::Size, taken.items.len() as u64);
        hub.stats.record(Measure::Weight, taken.weight as u64);
        if let Some((next, service)) = taken.next.zip(self.service.take()) {
            // Should that fail, those who wait there are told, and this batch is not theirs.
            let _failed = caught(|| hub.begin(next, false, || service));
        }
        Some((flight, taken))
    }
}

impl<L: Kit> Drop for Collector<L> {
    /// A claim that is no more is not heeded, so that one who has taken or left may be dropped too.
    fn drop(&mut self) {
        let Some(hub) = self.hub.upgrade() else {
            return;
        };
        // Where an executor drops what it is given there is nothing to run tasks. One that drops what it has may be at its
        // end, and another is to be tried, once.
        let refused = BEGINNING.get() == Some(self.number());
        let again = !refused && (self.ran || !self.anew);
        let (claim, service) = (self.claim, self.service.take());
        hub.desk
            .with(|board, debris| board.abandon(claim, again, service, debris));
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        BEGINNING.set(self.0);
    }
}
