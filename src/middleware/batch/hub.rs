use std::hash::{BuildHasher, Hash, RandomState};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tower_service::Service;

use super::board::{Cargo, Claim, Found, Parcel, Refused, Tally};
use super::crew::{Crew, Rouse};
use super::dedup::Dedup;
use super::desk::Desk;
use super::flight::caught;
use super::gate::Seat;
use super::items::{Outcome, Ticket};
use super::plan::Plan;
use super::request::Batch;
use super::results::IntoResults;
use super::shard::Rules;
use super::state::{Drive, Hubs, Settings, State, Stats};
use super::task::{self, Collector};
use crate::base::clock::{self, Instant};
use crate::base::error::{BoxError, Reason, Rejection};

/// The types of a layer and of a service it wraps.
pub(super) trait Kit: 'static {
    type Req: Send + 'static;
    type Service: Batching<Self::Req>;
    type Shard: Hash + Eq + Send + 'static;
    type Dedup: Dedup<Self::Req, Answer<Self>>;
}

/// The kit of those types.
pub(super) struct Types<S, Req, K, D>(PhantomData<(S, Req, K, D)>);

pub(super) type Response<L> = <<L as Kit>::Service as Service<Batch<<L as Kit>::Req>>>::Response;

/// What one item is answered with.
pub(super) type Answer<L> = <Response<L> as IntoResults>::Response;

/// A service that answers batches, and whose calls may go from task to task.
pub(super) trait Batching<Req>:
    Service<
        Batch<Req>,
        Response: IntoResults<Response: Send + 'static>,
        Error: Into<BoxError>,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<S, Req> Batching<Req> for S
where
    S: Service<Batch<Req>> + Clone + Send + 'static,
    S::Response: IntoResults<Response: Send + 'static>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
}

/// The shards of one type of service.
pub(super) struct Hub<L: Kit> {
    pub(super) desk: Desk<L>,
    pub(super) plan: Arc<Plan<L::Req, L::Shard, L::Dedup>>,
    pub(super) settings: Settings,
    pub(super) stats: Arc<Stats>,
    hasher: RandomState,
    this: Weak<Self>,
    crew: Option<Arc<Crew>>,
    /// A collector has met a runtime without timers, or none: since then whoever polls looks at the time.
    pub(super) untimed: AtomicBool,
}

/// What a future asks of the shards of its service, without knowing their type.
pub(super) struct Verbs<T> {
    pub(super) poll: fn(&State, Ticket, &mut Context<'_>) -> Poll<Result<T, BoxError>>,
    /// Leaves; because the deadline has passed if `true`.
    pub(super) leave: fn(&State, Ticket, bool) -> Option<Result<T, BoxError>>,
}

/// A key, and the service it is of; 0 when those of all are the same.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Scoped<K> {
    scope: u64,
    key: K,
}

impl<S, Req, K, D> Kit for Types<S, Req, K, D>
where
    S: Batching<Req>,
    Req: Send + 'static,
    K: Hash + Eq + Send + 'static,
    D: Dedup<Req, <S::Response as IntoResults>::Response>,
{
    type Req = Req;
    type Service = S;
    type Shard = K;
    type Dedup = D;
}

impl<L: Kit> Cargo for L {
    type Key = Scoped<L::Shard>;
    type Item = L::Req;
    type Same = <L::Dedup as Dedup<L::Req, Answer<L>>>::Key;
    type Answer = Result<Answer<L>, BoxError>;
    type Service = L::Service;
}

// ===== impl Hub =====

impl<L: Kit> Hub<L> {
    #[inline]
    pub(super) fn of(state: &State) -> &Self {
        state.hub(|rules| Self::new(state, rules))
    }

    fn new(state: &State, rules: Rules) -> Arc<Self> {
        let plan = state.plan.clone().downcast();
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            desk: Desk::new(rules),
            plan: plan.expect("a layer makes its plan of its own types"),
            settings: state.settings.clone(),
            stats: state.stats.clone(),
            hasher: RandomState::new(),
            this: this.clone(),
            crew: match state.settings.drive {
                Drive::Tasks(_) => None,
                Drive::Callers => Some(Crew::new(this.clone())),
            },
            untimed: AtomicBool::new(false),
        })
    }

    /// What a future asks for whose type does not tell the hub's.
    pub(super) const VERBS: &'static Verbs<Answer<L>> = &Verbs {
        poll: |state, ticket, cx| Self::of(state).poll(ticket, cx),
        leave: |state, ticket, late| Self::of(state).leave(ticket, late),
    };

    pub(super) fn leave_line(state: &State, seat: Seat) {
        let desk = &Self::of(state).desk;
        desk.with(|board, debris| board.leave_line(seat, debris));
    }

    /// Accepts `req`, or says why not. A claim is for a collector that is to [begin](Self::begin).
    pub(super) fn accept(
        &self,
        state: &State,
        scope: u64,
        req: L::Req,
    ) -> Result<(Ticket, Option<Instant>, Option<Claim>), BoxError> {
        if state.is_closed() {
            self.desk.with(|board, _| board.refuse());
            return Err(self.rejection(Refused::Closed).into());
        }
        let key = Scoped {
            scope,
            key: (self.plan.shard)(&req),
        };
        let hash = self.hash(&key);
        let weight = self.plan.weight(&req);
        let deadline = self.plan.deadline.as_ref().and_then(|of| of(&req));
        let deadline = deadline.map(|deadline| deadline.moment());
        let same = self.plan.dedup.key(&req).map(|same| {
            let hash = self.hasher.hash_one((&key, &same));
            (hash, same)
        });
        let parcel = Parcel {
            item: req,
            weight,
            deadline,
            same,
        };
        let now = clock::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.desk.with(|board, _| board.expire_at_once());
            return Err(late().into());
        }
        // Keys and parcels that are not taken are foreign, and dropped where no lock is held.
        let mut key = Some(key);
        let pushed = self
            .desk
            .with(|board, debris| board.push(hash, &mut key, parcel, now, debris));
        // Nobody has the ticket yet, should it panic.
        let _panicked = caught(|| drop(key));
        match pushed {
            Ok((ticket, claim)) => Ok((ticket, deadline, claim)),
            Err((refused, _parcel)) => Err(self.rejection(refused).into()),
        }
    }

    /// Where all items are of one shard, there is nothing to hash.
    fn hash(&self, key: &Scoped<L::Shard>) -> u64 {
        match size_of::<L::Shard>() {
            0 => key.scope,
            _ => self.hasher.hash_one(key),
        }
    }

    /// A collector begins, with the service that `service` makes; `anew` if another was lost.
    pub(super) fn begin(&self, claim: Claim, anew: bool, service: impl FnOnce() -> L::Service) {
        // From here on, whatever happens, the claim is not forgotten.
        let mut collector = Collector::new(self.this.clone(), claim, anew);
        collector.service = Some(service());
        let _scope = collector.begins();
        let task = Box::pin(task::run(collector));
        match (&self.settings.drive, &self.crew) {
            (Drive::Tasks(executor), _) => executor.execute(task),
            (Drive::Callers, Some(crew)) => crew.add(task),
            (Drive::Callers, None) => unreachable!("callers that drive are a crew"),
        }
    }

    /// Looks what became of an item.
    fn poll(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<Answer<L>, BoxError>> {
        let (mut driven, mut begun) = (false, false);
        loop {
            let waker = cx.waker();
            let found = self
                .desk
                .with(|board, debris| board.ask(ticket, waker, clock::now, debris));
            match found {
                Found::Done(outcome) => return Poll::Ready(self.result(outcome)),
                Found::Orphan(claim, service) if begun => {
                    // Its executor drops what it is given.
                    self.desk
                        .with(|board, debris| board.abandon(claim, false, Some(service), debris));
                }
                Found::Orphan(claim, service) => {
                    begun = true;
                    self.begin(claim, true, || service);
                }
                Found::Waiting if !driven && self.drive() => driven = true,
                Found::Waiting => {
                    if self.untimed.load(Ordering::Relaxed) {
                        let now = clock::now();
                        self.desk
                            .with(|board, debris| board.look(ticket, now, debris));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// A caller leaves; with its outcome, if that is there.
    fn leave(&self, ticket: Ticket, late: bool) -> Option<Result<Answer<L>, BoxError>> {
        let outcome = self
            .desk
            .with(|board, debris| board.leave(ticket, late, debris));
        outcome.map(|outcome| self.result(outcome))
    }

    /// Whether there is room for another; if not, `seat` is a place in the line for it.
    pub(super) fn poll_room(&self, seat: &mut Option<Seat>, cx: &mut Context<'_>) -> Poll<()> {
        if seat.is_none() && self.desk.looks_open() {
            return Poll::Ready(());
        }
        let mut enter = |cx: &mut Context<'_>| {
            self.desk
                .with(|board, debris| board.enter(seat, cx.waker(), debris))
        };
        match enter(cx) || (self.drive() && enter(cx)) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Whether batches have tasks of their own.
    pub(super) fn has_tasks(&self) -> bool {
        self.crew.is_none()
    }

    /// Where callers drive: whether there was anything to do. If there is more, all who wait are woken.
    fn drive(&self) -> bool {
        self.crew.as_ref().is_some_and(Crew::drive)
    }

    fn result(&self, outcome: Outcome<Result<Answer<L>, BoxError>>) -> Result<Answer<L>, BoxError> {
        match outcome {
            Outcome::Answer(answer) => answer,
            Outcome::Expired => Err(late().into()),
            Outcome::Abandoned => Err(abandoned().into()),
        }
    }

    fn rejection(&self, refused: Refused) -> Rejection {
        match refused {
            Refused::Closed => Rejection::new(
                "batch",
                Reason::Closed,
                "the layer is draining; send to another instance",
            ),
            Refused::TooHeavy { weight, max } => Rejection::new(
                "batch",
                Reason::TooLarge,
                format!(
                    "an item of weight {weight} is heavier than a batch may be, {max}; split it, raise max_weight, or let \
                     it go alone with Oversize::Alone"
                ),
            ),
            Refused::Full { waiting, weight } => Rejection::new(
                "batch",
                Reason::QueueFull,
                format!(
                    "{waiting} items of weight {weight} wait, twice what the queue is for; wait for poll_ready, or raise \
                     queue"
                ),
            ),
        }
    }
}

pub(super) fn late() -> Rejection {
    Rejection::new(
        "batch",
        Reason::Deadline,
        "the deadline passed before the answer was there; allow more time",
    )
}

pub(super) fn abandoned() -> Rejection {
    Rejection::new(
        "batch",
        Reason::Abandoned,
        "the task of the batch was dropped, as a runtime does that shuts down, or there is none; it may or may not have \
         been sent",
    )
}

impl<L: Kit> Hubs for Hub<L> {
    fn tally(&self) -> Tally {
        self.desk.with(|board, _| board.tally())
    }

    fn flush(&self) {
        let now = clock::now();
        self.desk.with(|board, debris| board.flush(now, debris));
    }

    fn close(&self) {
        let now = clock::now();
        self.desk.with(|board, debris| board.close(now, debris));
    }

    fn is_drained(&self, drain: u64, cx: &mut Context<'_>) -> bool {
        let drained = |cx: &mut Context<'_>| {
            self.desk
                .with(|board, debris| board.drained(drain, cx.waker(), debris))
        };
        drained(cx) || (self.drive() && drained(cx))
    }

    fn forget_drain(&self, drain: u64) {
        self.desk
            .with(|board, debris| board.forget_drain(drain, debris));
    }

    fn set_rules(&self, rules: &dyn Fn() -> Rules) {
        let now = clock::now();
        self.desk
            .with(|board, debris| board.set_rules(|old| *old = rules(), now, debris));
    }
}

impl<L: Kit> Rouse for Hub<L> {
    fn rouse(&self) {
        self.desk.with(|board, debris| board.wake_all(debris));
    }
}
