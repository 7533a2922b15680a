//! A flight that has a task of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::flight::Failure;
use super::hub::{Boxed, Hub};
use super::key::KeyBy;
use super::map::{Claim, Hashed};
use super::shard::Ticket;
use super::share::Share;
use super::state::Cell;
use super::work::Portable;
use crate::base::clock;

/// The task. Dropped before the flight is over, it tells those who wait.
struct Courier<S, Y, P, Req>
where
    S: Portable<Req>,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    hub: Arc<Hub<S, Y, P, Req>>,
    claim: Claim,
    hash: Hashed,
    cabin: Option<Boxed<S, Req>>,
}

/// Sends the work of a flight, whose leader drives it, to a task of its own.
pub(super) fn send<S, Y, P, Req>(
    hub: &Hub<S, Y, P, Req>,
    claim: Claim,
    hash: Hashed,
    cabin: Boxed<S, Req>,
    waker: &Waker,
) where
    S: Portable<Req>,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    let Some(shared) = hub.this.upgrade() else {
        unreachable!("the state that holds the hub is borrowed");
    };
    let courier = Courier {
        hub: shared,
        claim: Claim {
            ticket: Ticket {
                seat: u32::MAX,
                leader: false,
                ..claim.ticket
            },
            ..claim
        },
        hash,
        cabin: Some(cabin),
    };
    // From here on, whatever happens, the courier ends the flight.
    hub.map.detach(claim, waker, clock::now());
    hub.settings.executor.execute(Box::pin(courier));
}

impl<S, Y, P, Req> Future for Courier<S, Y, P, Req>
where
    S: Portable<Req>,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this
            .hub
            .drive_task(this.claim, this.hash, &mut this.cabin, cx)
        {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

// Nothing in it is pinned: the cabin has its own place.
impl<S, Y, P, Req> Unpin for Courier<S, Y, P, Req>
where
    S: Portable<Req>,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
}

impl<S, Y, P, Req> Drop for Courier<S, Y, P, Req>
where
    S: Portable<Req>,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    fn drop(&mut self) {
        if let Some(cabin) = self.cabin.take() {
            self.hub.stats.count(Cell::Abandoned);
            self.hub.fail(self.claim, None, Failure::Abandoned);
            self.hub.reuse(self.claim.shard, cabin);
        }
    }
}
