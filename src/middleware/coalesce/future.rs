use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::courier;
use super::flight::{Asked, Failure, Landed, Verdict};
use super::hub::{Boxed, Hub, Load, Own, Polled};
use super::key::{KeyBy, Scoped, Terms};
use super::map::{Claim, Hashed};
use super::nest;
use super::shard::{Bypass, Debris, Joined};
use super::share::{Admit, Gone, Share};
use super::state::{Cell, OnLeaderDrop, Readiness, State, Time};
use super::work::{Cabin, Stage};
use crate::base::clock::{self, Instant, Moment};
use crate::base::cost::Toll;
use crate::base::error::{BoxError, Reason, Rejection};
use crate::base::priority::Priority;
use crate::base::stats::Lease;
use crate::base::timer::Timer;

pin_project! {
    /// The response future of [`Coalesce`](super::Coalesce).
    ///
    /// It joins a flight when it is first polled, and leaves it when it is dropped.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Y, P, Req>
    where
        S: Service<Req>,
        Y: KeyBy<Req>,
    {
        waiter: Option<Waiter>,
        // The call of one who goes alone.
        #[pin]
        alone: Stage<S, Req>,
        // What a caller needs to send its own request; gone once it is sent.
        caller: Option<Caller<S, Y::Key, Req>>,
        // The key of one who goes alone, for it is known for answers that are not to be shared.
        known: Option<Hashed>,
        // Ends this caller's wait.
        patience: Timer,
        terms: Terms,
        toll: Toll,
        state: Lease<State>,
        policy: PhantomData<fn() -> P>,
    }

    impl<S, Y, P, Req> PinnedDrop for ResponseFuture<S, Y, P, Req>
    where
        S: Service<Req>,
        Y: KeyBy<Req>,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(waiter) = this.waiter.take() {
                (waiter.leave)(this.state, waiter.claim);
            }
        }
    }
}

/// A caller's place in a flight.
#[derive(Debug)]
struct Waiter {
    claim: Claim,
    hash: Hashed,
    /// When it joined, if it follows.
    since: Option<Instant>,
    /// Gives the place up; knows the types.
    leave: fn(&State, Claim),
}

/// Who has not sent a request yet.
pub(super) struct Caller<S, K, Req> {
    pub(super) service: S,
    pub(super) req: Req,
    /// `None` for one that goes alone from the start, and for one whose key lies in the table.
    pub(super) key: Option<(Hashed, Scoped<K>)>,
    /// Whether the service was found ready.
    pub(super) ready: bool,
}

// ===== impl ResponseFuture =====

impl<S, Y, P, Req> ResponseFuture<S, Y, P, Req>
where
    S: Service<Req>,
    Y: KeyBy<Req>,
{
    pub(super) fn new(caller: Caller<S, Y::Key, Req>, terms: Terms, state: Lease<State>) -> Self {
        Self {
            waiter: None,
            alone: Stage::Empty,
            caller: Some(caller),
            known: None,
            patience: Timer::default(),
            terms,
            toll: Toll::default(),
            state,
            policy: PhantomData,
        }
    }

    /// Carries the toll of its call.
    pub(super) fn paying(mut self, toll: Toll) -> Self {
        self.toll = toll;
        self
    }
}

impl<S, Y, P, Req> Future for ResponseFuture<S, Y, P, Req>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    type Output = Result<P::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let _own = self.toll.own();
        loop {
            let step = match self.waiter {
                Some(_) => ready!(self.as_mut().wait(cx)),
                None if matches!(self.alone, Stage::Empty) => ready!(self.as_mut().join(cx)),
                None => ready!(self.as_mut().run_alone(cx)),
            };
            match step {
                Step::Done(result) => {
                    // Of one who followed: nobody asks for it any more.
                    drop(self.project().caller.take());
                    return Poll::Ready(result);
                }
                Step::Again => {}
                Step::Alone => self.as_mut().go_alone(),
            }
        }
    }
}

/// What to do next.
enum Step<Res> {
    Done(Result<Res, BoxError>),
    Again,
    Alone,
}

impl<S, Y, P, Req> ResponseFuture<S, Y, P, Req>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    /// Before anything else: finds the flight of its key, or begins one.
    fn join(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<P::Response>> {
        let this = self.as_mut().project();
        let hub = Hub::<S, Y, P, Req>::of(this.state);
        let caller = this
            .caller
            .as_mut()
            .expect("a response future is not polled after it is done");
        let Some((hash, key)) = caller.key.take() else {
            let paused = this.state.paused.load(Ordering::Relaxed);
            hub.stats
                .count(if paused { Cell::Paused } else { Cell::NoKey });
            return Poll::Ready(Step::Alone);
        };
        let mut key = Some(key);
        if let Some(deadline) = this.terms.deadline
            && deadline.passed(clock::now())
        {
            hub.stats.count(Cell::Deadline);
            return Poll::Ready(Step::Done(hub.policy.share.fail(expired())));
        }
        // One reading of the clock, for the age of the flight and for the wait.
        let now = Moment::new();
        // In one go, unless there is something to do before it asks: inside of a flight that may be this very one it must
        // not drive, and what it reserved is given back by foreign code, which may panic.
        let late = hub.settings.readiness == Readiness::Late;
        let waker = (late && nest::is_empty()).then_some(cx.waker());
        let priority = this.terms.priority;
        let (shard, joined) = hub.map.join(hash, &mut key, priority, || now.now(), waker);
        caller.key = key.map(|key| (hash, key));
        match joined {
            Joined::Lead(ticket, spare) => {
                let claim = Claim { shard, ticket };
                *this.waiter = Some(Self::waiter(claim, hash, None));
                let mut cabin = spare.unwrap_or_else(Cabin::new);
                // The key of one that takes the place of another is left over. Its destructor may panic: it goes when the
                // work is where others find it.
                let mut left_over = None;
                if let Some(caller) = this.caller.take() {
                    left_over = caller.key;
                    cabin
                        .as_mut()
                        .board(caller.service, caller.req, caller.ready);
                }
                if hub.settings.on_leader_drop == OnLeaderDrop::Detach {
                    courier::send(hub, claim, hash, cabin, cx.waker());
                    return Poll::Ready(Step::Again);
                }
                let asked = this.terms.priority;
                let step = match Self::drive(hub, this.waiter, cabin, true, asked, cx) {
                    Poll::Pending => self.expire(cx),
                    done => done,
                };
                drop(left_over);
                step
            }
            Joined::Follow(ticket, asked) => {
                let claim = Claim { shard, ticket };
                if asked.is_none() && nest::holds(hub.map.address(shard), ticket.id) {
                    hub.leave(claim);
                    return Poll::Ready(Step::Done(hub.policy.share.fail(recursion())));
                }
                *this.waiter = Some(Self::waiter(claim, hash, Some(now.now())));
                if hub.settings.readiness == Readiness::Eager {
                    // What was reserved for a call of its own is given back.
                    caller.service = caller.service.clone();
                    caller.ready = false;
                }
                let Some(asked) = asked else {
                    return Poll::Ready(Step::Again);
                };
                match Self::told(hub, this.waiter, asked, cx) {
                    Poll::Pending => self.expire(cx),
                    done => done,
                }
            }
            Joined::Kept(shared) => {
                let result = hub.policy.share.join(&shared);
                Poll::Ready(Self::shared(hub, result, false))
            }
            Joined::Alone(why) => {
                *this.known = (why == Bypass::Unshareable).then_some(hash);
                Poll::Ready(Step::Alone)
            }
        }
    }

    /// In a flight: polls it when it is this caller's turn, and takes what comes of it.
    fn wait(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<P::Response>> {
        let this = self.as_mut().project();
        let hub = Hub::<S, Y, P, Req>::of(this.state);
        let waiter = this.waiter.as_ref().expect("asked only of those who wait");
        // It goes when what was told is done.
        let mut debris = Debris::default();
        let asked = hub.map.ask(waiter.claim, cx.waker(), &mut debris);
        let told = Self::told(hub, this.waiter, asked, cx);
        drop(debris);
        match told {
            Poll::Pending => self.expire(cx),
            done => done,
        }
    }

    /// Does what it was told to.
    fn told(
        hub: &Hub<S, Y, P, Req>,
        waiter: &mut Option<Waiter>,
        asked: Asked<Load<S, Y, P, Req>>,
        cx: &mut Context<'_>,
    ) -> Poll<Step<P::Response>> {
        match asked {
            Asked::Drive {
                work,
                direct,
                asked,
            } => Self::drive(hub, waiter, work, direct, asked, cx),
            Asked::Wait { stale } => {
                drop(stale);
                Poll::Pending
            }
            Asked::Over(landed) => Poll::Ready(Self::land(hub, waiter, landed)),
        }
    }

    /// Sends its own request, and waits for it.
    fn run_alone(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<P::Response>> {
        let this = self.as_mut().project();
        match this.alone.poll(cx, |_| {}) {
            Poll::Ready(result) => {
                let hub = Hub::<S, Y, P, Req>::of(this.state);
                if let Some(hash) = *this.known
                    && hub.policy.share.admit(&result) == Admit::Share
                {
                    hub.map.unlearn(hash);
                }
                Poll::Ready(Step::Done(hub.policy.share.alone(result)))
            }
            Poll::Pending => self.expire(cx),
        }
    }

    /// Leaves the flight, or its own call, when this caller's deadline has passed.
    fn expire(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<P::Response>> {
        let mut this = self.project();
        // Whoever has no deadline has no timer.
        let Some(deadline) = this.terms.deadline else {
            return Poll::Pending;
        };
        let hub = Hub::<S, Y, P, Req>::of(this.state);
        if !this.patience.poll(cx, Some(deadline.moment())) {
            return Poll::Pending;
        }
        hub.stats.count(Cell::Deadline);
        match this.waiter.take() {
            Some(waiter) => hub.leave(waiter.claim),
            None => this.alone.set(Stage::Empty),
        }
        Poll::Ready(Step::Done(hub.policy.share.fail(expired())))
    }

    fn waiter(claim: Claim, hash: Hashed, since: Option<Instant>) -> Waiter {
        Waiter {
            claim,
            hash,
            since,
            leave: |state, claim| Hub::<S, Y, P, Req>::of(state).leave(claim),
        }
    }

    /// Polls the work that is this caller's to poll.
    fn drive(
        hub: &Hub<S, Y, P, Req>,
        waiter: &mut Option<Waiter>,
        work: Boxed<S, Req>,
        direct: bool,
        asked: Priority,
        cx: &mut Context<'_>,
    ) -> Poll<Step<P::Response>> {
        let here = waiter.as_ref().expect("asked only of those who wait");
        match hub.drive(here.claim, here.hash, work, direct, asked, cx) {
            Polled::Parked => Poll::Pending,
            Polled::Over => {
                let mut debris = Debris::default();
                let landed = hub.map.verdict(here.claim, &mut debris);
                let step = Self::land(hub, waiter, landed);
                drop(debris);
                Poll::Ready(step)
            }
            Polled::Done(result) => {
                *waiter = None;
                Poll::Ready(Step::Done(hub.policy.share.alone(result)))
            }
        }
    }

    /// The flight is over.
    fn land(
        hub: &Hub<S, Y, P, Req>,
        waiter: &mut Option<Waiter>,
        landed: Landed<Load<S, Y, P, Req>>,
    ) -> Step<P::Response> {
        let here = waiter.take().expect("asked only of those who wait");
        let leader = here.claim.ticket.leader;
        if let Some(since) = here.since {
            // The answer was there for all at once.
            let at = landed.at.unwrap_or_else(clock::now);
            let took = at.saturating_duration_since(since);
            hub.stats.record(Time::Wait, took);
        }
        let share = &hub.policy.share;
        Step::Done(match landed.verdict {
            Verdict::Own(Own::Result(result)) => share.alone(result),
            Verdict::Own(Own::Panic(payload)) => resume_unwind(payload),
            Verdict::Take(shared) => {
                let result = match Arc::try_unwrap(shared) {
                    Ok(shared) => share.last(shared),
                    Err(shared) => share.join(&shared),
                };
                return Self::shared(hub, result, leader);
            }
            Verdict::Released => {
                hub.stats.count(Cell::Released);
                return Step::Alone;
            }
            Verdict::Anew => return Step::Again,
            Verdict::Failed(why) => share.fail(hub.failure(why)),
        })
    }

    /// What one of many gets.
    fn shared(
        hub: &Hub<S, Y, P, Req>,
        result: Result<P::Response, BoxError>,
        leader: bool,
    ) -> Step<P::Response> {
        match result {
            Err(error) if error.is::<Gone>() && leader => {
                let message = error.to_string();
                let rejection = Rejection::new("coalesce", Reason::Timeout, message);
                Step::Done(hub.policy.share.fail(rejection))
            }
            Err(error) if error.is::<Gone>() => {
                hub.stats.count(Cell::Released);
                Step::Alone
            }
            result => {
                if !leader {
                    hub.stats.count(Cell::Saved);
                }
                Step::Done(result)
            }
        }
    }

    /// Sends its own request.
    fn go_alone(self: Pin<&mut Self>) {
        let mut this = self.project();
        let caller = this.caller.take();
        let caller = caller.expect("only the leader's request is sent, and nobody releases it");
        this.alone.set(Stage::Ready {
            service: caller.service,
            req: Some(caller.req),
            ready: caller.ready,
        });
    }
}

impl<S, Y, P, Req> fmt::Debug for ResponseFuture<S, Y, P, Req>
where
    S: Service<Req>,
    Y: KeyBy<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("waiter", &self.waiter)
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

impl<S, Y, P, Req> Hub<S, Y, P, Req>
where
    S: Service<Req>,
    Y: KeyBy<Req>,
    P: Share<S::Response, S::Error>,
{
    /// What those are told whose flight ended without a result.
    fn failure(&self, why: Failure) -> Rejection {
        let (reason, message): (_, Cow<'static, str>) = match why {
            Failure::TimedOut => (
                Reason::Timeout,
                format!(
                    "an equal request was not answered within {:?}; retry, or raise flight_timeout",
                    self.settings.flight_timeout.unwrap_or_default()
                )
                .into(),
            ),
            Failure::Abandoned => (
                Reason::Abandoned,
                "an equal request was given up by its caller; retry, or let on_leader_drop hand over".into(),
            ),
            Failure::Panicked => (
                Reason::Panicked,
                "an equal request panicked; see where it was sent from".into(),
            ),
        };
        Rejection::new("coalesce", reason, message)
    }
}

fn expired() -> Rejection {
    Rejection::new(
        "coalesce",
        Reason::Deadline,
        "the deadline passed before the answer came; ask with a later deadline",
    )
}

fn recursion() -> Rejection {
    Rejection::new(
        "coalesce",
        Reason::Recursion,
        "the answer to this request would wait for itself; send it to the inner service, or give it another key",
    )
}
