//! The task of a batch: it waits until the batch is due and may be sent, takes it, and sends it.

use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Weak;
use std::task::{Context, Poll};

use tower_service::Service as _;

use super::board::{Claim, Next, Taken};
use super::flight::{Failure, Flight};
use super::hub::{Hub, Kit};
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
}

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
    pub(super) fn new(hub: Weak<Hub<L>>, claim: Claim) -> Self {
        Self {
            hub,
            claim,
            service: None,
            ran: false,
        }
    }

    /// Waits until a batch may be taken and a service is ready for it, or failed to be. Nothing when there is none to take.
    async fn turn(&mut self) -> Option<Result<L::Service, Failure>> {
        let mut timer = Timer::default();
        let mut called = None;
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
                    Next::Wait(_) => return Poll::Pending,
                    Next::Take(_) => return self.poll_service(&mut called, cx).map(Some),
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
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let Some(service) = &self.service else {
                unreachable!("a collector that runs has a service");
            };
            called.get_or_insert_with(|| service.clone()).poll_ready(cx)
        }));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            Ok(Poll::Ready(Err(error))) => Poll::Ready(Err(Failure::Error(error.into()))),
            Err(payload) => Poll::Ready(Err(Failure::panic(&*payload))),
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
            hub.begin(next, || service);
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
        let (claim, ran, service) = (self.claim, self.ran, self.service.take());
        hub.desk
            .with(|board, debris| board.abandon(claim, ran, service, debris));
    }
}
