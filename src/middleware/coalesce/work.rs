use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::runtime::{Handle, Id};
use tokio::time::Sleep;
use tower_service::Service;

use super::map::Claim;
use super::shard::Ticket;
use crate::base::clock;
use crate::base::cost;
use crate::base::timer;

pin_project! {
    /// A call in the making: a service that is asked for readiness, then the future it makes.
    #[project = StageProj]
    pub(super) enum Stage<S, Req>
    where
        S: Service<Req>,
    {
        Empty,
        Ready { service: S, req: Option<Req>, ready: bool },
        Calling { #[pin] future: S::Future },
    }
}

pin_project! {
    /// The work of a flight, in a box that one flight after the other uses.
    pub(super) struct Cabin<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        pub(super) stage: Stage<S, Req>,
        // When the flight has taken too long; there once somebody else waits.
        #[pin]
        timer: Option<Sleep>,
        // Whose timer it is.
        runtime: Option<Id>,
        // The priority its request was sent with.
        pub(super) sent: Option<crate::base::priority::Priority>,
        bell: Option<(Arc<Bell>, Waker)>,
    }
}

/// A service whose calls may go from task to task. Every service is that whose parts can be sent.
pub(super) trait Portable<Req>:
    Service<Req, Future: Send + 'static, Response: Send + 'static, Error: Send + 'static>
    + Send
    + 'static
{
}

impl<S, Req> Portable<Req> for S
where
    S: Service<Req> + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
{
}

/// What a bell rings.
pub(super) trait Ring: Send + Sync {
    fn ring(&self, claim: Claim);
}

/// The shared waker of a flight. One cabin keeps it from flight to flight: who rings late, rings for a stranger, whose
/// waiters are then woken once for nothing, or for nobody.
pub(super) struct Bell {
    hub: Weak<dyn Ring>,
    shard: u32,
    slot: AtomicU64,
    id: AtomicU64,
}

// ===== impl Stage =====

impl<S, Req> Stage<S, Req>
where
    S: Service<Req>,
{
    /// Drives the call. `prepare` sees the request before it is sent.
    pub(super) fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        prepare: impl FnOnce(&mut Req),
    ) -> Poll<Result<S::Response, S::Error>> {
        if let StageProj::Ready {
            service,
            req,
            ready,
        } = self.as_mut().project()
        {
            if !*ready {
                ready!(cost::inner(|| service.poll_ready(cx)))?;
                *ready = true;
            }
            let mut req = req.take().expect("a request is sent once");
            prepare(&mut req);
            let future = cost::inner(|| service.call(req));
            self.set(Stage::Calling { future });
        }
        match self.project() {
            StageProj::Calling { future } => cost::inner(|| future.poll(cx)),
            _ => unreachable!("only a call in the making is polled"),
        }
    }
}

// ===== impl Cabin =====

impl<S, Req> Cabin<S, Req>
where
    S: Service<Req>,
{
    pub(super) fn new() -> Pin<Box<Self>> {
        Box::pin(Self {
            stage: Stage::Empty,
            timer: None,
            runtime: None,
            sent: None,
            bell: None,
        })
    }

    pub(super) fn board(self: Pin<&mut Self>, service: S, req: Req, ready: bool) {
        let req = Some(req);
        self.set_stage(Stage::Ready {
            service,
            req,
            ready,
        });
    }

    /// Drops what is inside, which is foreign.
    pub(super) fn clear(mut self: Pin<&mut Self>) {
        self.as_mut().untimed();
        *self.as_mut().project().sent = None;
        self.set_stage(Stage::Empty);
    }

    /// Whether the flight takes longer than `timeout`, counted from the first time this is asked. If not, `cx` is woken
    /// when it does.
    pub(super) fn late(self: Pin<&mut Self>, timeout: Duration, cx: &mut Context<'_>) -> bool {
        let mut this = self.project();
        let until = this
            .timer
            .as_ref()
            .as_pin_ref()
            .map(|timer| timer.deadline());
        let Ok(here) = Handle::try_current() else {
            // Nobody to ring: it is looked at when somebody polls.
            return until.is_some_and(|until| until <= clock::now());
        };
        // Who drives next may be in another runtime, and outlive the one the timer is of.
        if *this.runtime != Some(here.id()) {
            let until = until.or_else(|| clock::now().checked_add(timeout));
            this.timer.set(until.and_then(timer::sleep));
            *this.runtime = Some(here.id());
        }
        this.timer
            .as_pin_mut()
            .is_some_and(|timer| timer.poll(cx).is_ready())
    }

    /// The flight has all the time there is.
    pub(super) fn untimed(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.timer.set(None);
        *this.runtime = None;
    }

    /// The waker that reaches all who wait for the flight. Made once a cabin.
    pub(super) fn waker(
        self: Pin<&mut Self>,
        hub: impl FnOnce() -> Weak<dyn Ring>,
        at: Claim,
    ) -> Waker {
        let (bell, waker) = self.project().bell.get_or_insert_with(|| {
            let bell = Arc::new(Bell {
                hub: hub(),
                shard: at.shard,
                slot: AtomicU64::new(0),
                id: AtomicU64::new(0),
            });
            (bell.clone(), bell.into())
        });
        bell.slot.store(at.ticket.slot.into(), Ordering::Relaxed);
        bell.id.store(at.ticket.id, Ordering::Relaxed);
        waker.clone()
    }

    fn set_stage(self: Pin<&mut Self>, stage: Stage<S, Req>) {
        self.project().stage.set(stage);
    }
}

// ===== impl Bell =====

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Some(hub) = self.hub.upgrade() else {
            return;
        };
        // Whoever got the waker from the flight it is for sees that flight's numbers; others ring for whom they may.
        let ticket = Ticket {
            slot: self.slot.load(Ordering::Relaxed) as u32,
            id: self.id.load(Ordering::Relaxed),
            seat: 0,
            leader: false,
        };
        hub.ring(Claim {
            shard: self.shard,
            ticket,
        });
    }
}
