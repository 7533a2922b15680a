use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tower_service::Service;

use super::flight::{Cargo, Failure, Others};
use super::key::{Facts, KeyBy, Scoped};
use super::map::{Claim, Hashed, Map, Tally};
use super::nest;
use super::shard::{Debris, Left};
use super::share::{Admit, Share};
use super::state::{Cell, Hubs, OnLeaderDrop, Settings, State, Stats, Time};
use super::work::{Cabin, Portable, Ring};
use crate::base::clock::{self, Instant};
use crate::base::priority::Priority;

/// The flights of one type of service.
pub(super) struct Hub<S, Y, P, Req>
where
    S: Service<Req>,
    Y: KeyBy<Req>,
    P: Share<S::Response, S::Error>,
{
    pub(super) map: Map<Load<S, Y, P, Req>>,
    pub(super) policy: Arc<Policy<Y, P>>,
    pub(super) settings: Settings,
    pub(super) stats: Arc<Stats>,
    pub(super) this: Weak<Self>,
}

/// The layer's functions.
pub(super) struct Policy<Y, P> {
    pub(super) key: Arc<Y>,
    pub(super) share: Arc<P>,
}

/// What the flights of one type of service carry.
pub(super) struct Load<S, Y, P, Req>(PhantomData<(S, Y, P, Req)>);

/// What only the leader may have.
pub(super) enum Own<Res, Err> {
    /// An answer that is not for others.
    Result(Result<Res, Err>),
    /// A panic, to go on where its request came from.
    Panic(Box<dyn Any + Send>),
}

/// What came of polling a flight once.
pub(super) enum Polled<Res, Err> {
    /// It waits, and so does whoever polled it.
    Parked,
    /// It is over; whoever polled it asks for its verdict.
    Over,
    /// It was nobody else's, who has left with it.
    Done(Result<Res, Err>),
}

/// Work that can be handed round.
pub(super) type Boxed<S, Req> = Pin<Box<Cabin<S, Req>>>;

impl<S, Y, P, Req> Cargo for Load<S, Y, P, Req>
where
    S: Service<Req>,
    Y: KeyBy<Req>,
    P: Share<S::Response, S::Error>,
{
    type Key = Scoped<Y::Key>;
    type Work = Boxed<S, Req>;
    type Shared = P::Shared;
    type Own = Own<S::Response, S::Error>;
}

// ===== impl Hub =====

impl<S, Y, P, Req> Hub<S, Y, P, Req>
where
    S: Portable<Req>,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    #[inline]
    pub(super) fn of(state: &State) -> &Self {
        state.hub(|| Self::new(state))
    }

    fn new(state: &State) -> Arc<Self> {
        let threads = std::thread::available_parallelism().map_or(4, usize::from);
        let policy = state.policy.clone().downcast();
        Arc::new_cyclic(|this| Self {
            map: Map::new(state.settings.rules(), threads),
            policy: policy.expect("a layer makes its policy of its own types"),
            settings: state.settings.clone(),
            stats: state.stats.clone(),
            this: this.clone(),
        })
    }

    /// Polls the work of a flight, for a waiter that holds it or for its task.
    pub(super) fn drive(
        &self,
        claim: Claim,
        hash: Hashed,
        mut cabin: Boxed<S, Req>,
        direct: bool,
        asked: Priority,
        cx: &mut Context<'_>,
    ) -> Polled<S::Response, S::Error> {
        let polled = {
            let _inside = nest::enter(self.map.address(claim.shard), claim.ticket.id);
            let cabin = cabin.as_mut();
            catch_unwind(AssertUnwindSafe(|| {
                if direct {
                    self.poll(cabin, asked, false, cx)
                } else {
                    self.poll_shared(cabin, claim, asked)
                }
            }))
        };
        let done = match polled {
            Ok(Poll::Pending) => {
                let sent = cabin.sent;
                let mut debris = Debris::default();
                self.map
                    .park(claim, cabin, sent, cx.waker(), clock::now, &mut debris);
                let Some(orphan) = debris.work() else {
                    return Polled::Parked;
                };
                self.reuse(claim.shard, orphan);
                return Polled::Over;
            }
            Ok(Poll::Ready(done)) => Ok(done),
            Err(payload) => Err(payload),
        };
        self.settle(claim, hash, cabin, done)
    }

    /// Polls the work of a flight that has a task of its own. Whether it is over.
    pub(super) fn drive_task(
        &self,
        claim: Claim,
        hash: Hashed,
        cabin: &mut Option<Boxed<S, Req>>,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(work) = cabin.as_mut() else {
            return true;
        };
        let unsent = work.sent.is_none();
        let asked = match unsent {
            true => self.map.asked(claim),
            false => Priority::default(),
        };
        let polled = {
            let _inside = nest::enter(self.map.address(claim.shard), claim.ticket.id);
            let work = work.as_mut();
            catch_unwind(AssertUnwindSafe(|| self.poll(work, asked, true, cx)))
        };
        let done = match polled {
            Ok(Poll::Pending) => {
                if let Some(sent) = work.sent.filter(|_| unsent) {
                    self.map.sent(claim, sent);
                }
                return false;
            }
            Ok(Poll::Ready(done)) => Ok(done),
            Err(payload) => Err(payload),
        };
        if let Some(work) = cabin.take() {
            drop(self.settle(claim, hash, work, done));
        }
        true
    }

    /// The work will not be polled again: it has a result, or none in time, or panicked.
    fn settle(
        &self,
        claim: Claim,
        hash: Hashed,
        cabin: Boxed<S, Req>,
        done: std::thread::Result<Option<Result<S::Response, S::Error>>>,
    ) -> Polled<S::Response, S::Error> {
        match done {
            Ok(Some(result)) => {
                let mut debris = Debris::default();
                let polled = self.land(claim, hash, cabin, result, &mut debris);
                drop(debris);
                return polled;
            }
            Ok(None) => {
                self.stats.count(Cell::Timeout);
                self.fail(claim, None, Failure::TimedOut);
            }
            Err(payload) => self.crash(claim, payload),
        }
        self.reuse(claim.shard, cabin);
        Polled::Over
    }

    /// Polls the work with the waker of all who wait for it.
    fn poll_shared(
        &self,
        mut cabin: Pin<&mut Cabin<S, Req>>,
        claim: Claim,
        asked: Priority,
    ) -> Poll<Option<Result<S::Response, S::Error>>> {
        let waker = cabin
            .as_mut()
            .waker(|| self.this.clone() as Weak<dyn Ring>, claim);
        self.poll(cabin, asked, true, &mut Context::from_waker(&waker))
    }

    /// Polls the work; `None` when its time is up. What is done with is dropped.
    fn poll(
        &self,
        mut cabin: Pin<&mut Cabin<S, Req>>,
        asked: Priority,
        timed: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<S::Response, S::Error>>> {
        let this = cabin.as_mut().project();
        let sent = this.sent;
        let polled = this.stage.poll(cx, |req| {
            let timeout = self.settings.flight_timeout;
            let facts = Facts {
                priority: asked,
                timeout,
            };
            self.policy.key.prepare(req, facts);
            *sent = Some(asked);
        });
        if let Poll::Ready(result) = polled {
            cabin.clear();
            return Poll::Ready(Some(result));
        }
        match self.settings.flight_timeout {
            Some(timeout) if timed => match cabin.late(timeout, cx) {
                true => Poll::Ready(None),
                false => Poll::Pending,
            },
            Some(_) => {
                cabin.untimed();
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }

    /// The result of a flight is there, and its work is dropped.
    fn land(
        &self,
        claim: Claim,
        hash: Hashed,
        cabin: Boxed<S, Req>,
        result: Result<S::Response, S::Error>,
        debris: &mut Debris<Load<S, Y, P, Req>>,
    ) -> Polled<S::Response, S::Error> {
        let landing = self.map.finish(claim, cabin, debris);
        let at = landing.since.map(|since| {
            let now = clock::now();
            let took = now.saturating_duration_since(since);
            self.stats.record(Time::Flight, took);
            now
        });
        let share = &self.policy.share;
        if landing.alone {
            return Polled::Done(result);
        }
        // A failure may be over by then.
        let grace = !self.settings.grace.is_zero() && result.is_ok();
        let keep = grace.then(clock::now);
        // Nobody else waits, though a task drove it or a result might have been kept. Who joined since is released.
        let lone = landing.leader && landing.waiters == 1 && !grace;
        if lone {
            self.stats.count(Cell::Alone);
            let own = Some(Own::Result(result));
            self.map
                .publish(claim, own, Others::Released, None, None, debris);
            return Polled::Over;
        }
        let split = catch_unwind(AssertUnwindSafe(|| match share.admit(&result) {
            Admit::Share if landing.waiters > 0 || grace => {
                let shared = Arc::new(share.split(result));
                (Cell::Shared, None, Others::Take(shared))
            }
            // Whoever asked has left.
            Admit::Share => (Cell::Detached, Some(result), Others::Released),
            Admit::LeaderOnly => (Cell::Unshareable, Some(result), Others::Released),
            Admit::Retry => (Cell::Retry, Some(result), Others::Released),
        }));
        match split {
            Ok((how, own, others)) => {
                self.stats.count(how);
                if let Cell::Unshareable = how {
                    self.map.remember(hash, clock::now());
                }
                let (own, nobodys) = match landing.leader {
                    true => (own.map(Own::Result), None),
                    false => (None, own),
                };
                self.map.publish(claim, own, others, keep, at, debris);
                // Its destructor may panic too: those who wait have been told.
                drop(nobodys);
            }
            Err(payload) => self.crash(claim, payload),
        }
        Polled::Over
    }

    /// Foreign code panicked: it goes on in the leader, when that asks; the others are told.
    fn crash(&self, claim: Claim, payload: Box<dyn Any + Send>) {
        self.stats.count(Cell::Panic);
        self.fail(claim, Some(Own::Panic(payload)), Failure::Panicked);
    }

    /// The flight is over without a result.
    pub(super) fn fail(&self, claim: Claim, own: Option<Own<S::Response, S::Error>>, why: Failure) {
        let mut debris = Debris::default();
        let others = Others::Failed(why);
        self.map
            .publish(claim, own, others, None, None, &mut debris);
    }

    /// A waiter goes away without a verdict.
    pub(super) fn leave(&self, claim: Claim) {
        let mut debris = Debris::default();
        let left = self.map.leave(claim, &mut debris);
        let reissue = self.settings.on_leader_drop == OnLeaderDrop::Reissue;
        match left {
            Left::Others => {}
            Left::HandedOver => self.stats.count(Cell::HandOver),
            Left::Orphans if reissue => self.stats.count(Cell::Reissue),
            Left::Orphans | Left::Nobody => self.stats.count(Cell::Abandoned),
        }
        if let Some(work) = debris.work() {
            self.reuse(claim.shard, work);
        }
    }

    /// Empties work that nobody wants any more, and puts it aside for another flight.
    pub(super) fn reuse(&self, shard: u32, mut cabin: Boxed<S, Req>) {
        cabin.as_mut().clear();
        self.map.recycle(shard, cabin);
    }
}

impl<S, Y, P, Req> Ring for Hub<S, Y, P, Req>
where
    S: Portable<Req>,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    fn ring(&self, claim: Claim) {
        self.map.ring(claim);
    }
}

impl<S, Y, P, Req> Hubs for Hub<S, Y, P, Req>
where
    S: Portable<Req>,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    fn tally(&self, now: Instant) -> Tally {
        self.map.tally(now)
    }
}
