use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tower_layer::Layer;

use super::dedup::{DedupBy, Distinct};
use super::handle::BatchHandle;
use super::plan::Plan;
use super::service::Batched;
use super::shard::Rules;
use super::state::{Drive, OnError, Oversize, Settings, State};
use crate::base::deadline::Deadline;
use crate::base::executor::{Executor, TokioExecutor};
use crate::base::flow::Flow;
use crate::base::stats::Lease;

/// Sends requests in batches; see [the module](crate::batch).
///
/// All services it makes of one type, and all their clones, share its limits; services of another type have as much again.
/// A batch holds requests of one service and its clones.
pub struct BatchLayer<Req, K = (), D = Distinct> {
    plan: Plan<Req, K, D>,
    settings: Settings,
    /// As many as wait before callers are held up, if that was said.
    queue: Option<usize>,
    state: Arc<OnceLock<Arc<State>>>,
}

/// More would not fit the numbers of places.
const MOST: usize = 1 << 24;

impl<Req> BatchLayer<Req> {
    /// A layer that sends what has come when nothing is in flight, at most 64 at once.
    pub fn new() -> Self {
        Self {
            plan: Plan::new(Arc::new(|_| ()), Distinct),
            settings: Settings {
                name: "batch".into(),
                rules: Rules {
                    max_items: 64,
                    max_weight: None,
                    max_delay: Duration::ZERO,
                    min_items: 1,
                    max_in_flight: 5,
                    max_in_flight_per_shard: 1,
                    queue_items: 0,
                    queue_weight: None,
                    margin: Duration::ZERO,
                    alone: false,
                },
                drive: Drive::Tasks(Arc::new(TokioExecutor)),
                across_services: false,
            },
            queue: None,
            state: Arc::default(),
        }
    }
}

impl<Req, K, D> BatchLayer<Req, K, D> {
    /// `batch` (default) is its name in metrics and snapshots.
    #[must_use]
    pub fn name(self, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        self.set(|this| this.settings.name = name)
    }

    /// A batch has at most 64 items (default).
    ///
    /// # Panics
    ///
    /// When `max` is 0 or beyond 2^24.
    #[must_use]
    pub fn max_items(self, max: usize) -> Self {
        check("max_items", max);
        self.set(|this| this.settings.rules.max_items = max)
    }

    /// Items have no weight (default), or that which `weigh` says, bytes for instance, and a batch at most `max` in all.
    ///
    /// An item may weigh nothing; it counts as an item all the same. What is heavier than `max` is [`oversize`](Self::oversize).
    ///
    /// # Panics
    ///
    /// When `max` is 0.
    #[must_use]
    pub fn max_weight(
        self,
        weigh: impl Fn(&Req) -> usize + Send + Sync + 'static,
        max: usize,
    ) -> Self {
        assert!(max > 0, "max_weight of 0 lets nothing through");
        self.set(|this| {
            this.plan.weigh = Some(Arc::new(weigh));
            this.settings.rules.max_weight = Some(max);
        })
    }

    /// A batch waits for nothing but those in flight (default, 0): it is sent as soon as none of its shard is, and grows
    /// meanwhile. Or it waits until it is full or its oldest item has waited so long.
    #[must_use]
    pub fn max_delay(self, delay: Duration) -> Self {
        self.set(|this| this.settings.rules.max_delay = delay)
    }

    /// While others of its shard are in flight a batch is sent with as few as 1 item (default), or waits for so many. Of
    /// use where [`max_in_flight`](Self::max_in_flight) lets several of a shard be in flight, and without
    /// [`max_delay`](Self::max_delay).
    ///
    /// # Panics
    ///
    /// When `min` is 0 or beyond 2^24.
    #[must_use]
    pub fn min_items_hint(self, min: usize) -> Self {
        check("min_items_hint", min);
        self.set(|this| this.settings.rules.min_items = min)
    }

    /// 5 batches are in flight at once, 1 of each shard (default). With 1 of a shard its items are answered in the order they
    /// came.
    ///
    /// # Panics
    ///
    /// When either is 0 or beyond 2^24, or more are allowed for a shard than for all.
    #[must_use]
    pub fn max_in_flight(self, global: usize, per_shard: usize) -> Self {
        check("max_in_flight", global);
        check("max_in_flight of a shard", per_shard);
        assert!(
            per_shard <= global,
            "max_in_flight of a shard is {per_shard}, more than the {global} of all"
        );
        self.set(|this| {
            this.settings.rules.max_in_flight = global;
            this.settings.rules.max_in_flight_per_shard = per_shard;
        })
    }

    /// All items are of one shard (default), or each of that which `shard` says: those of a batch are of one, in the order
    /// they came. Shards take turns.
    #[must_use]
    pub fn shard_by<L: Hash + Eq + Send + 'static>(
        self,
        shard: impl Fn(&Req) -> L + Send + Sync + 'static,
    ) -> BatchLayer<Req, L, D> {
        let this = self.set(|_| {});
        BatchLayer {
            plan: this.plan.shard_by(Arc::new(shard)),
            settings: this.settings,
            queue: this.queue,
            state: this.state,
        }
    }

    /// All items are sent (default), or of those that wait in a shard and of which `same` says the same, the first, for
    /// all. Its answer, which has to be `Clone`, is everybody's.
    #[must_use]
    pub fn dedup_by<Q, F>(self, same: F) -> BatchLayer<Req, K, DedupBy<F>>
    where
        F: Fn(&Req) -> Q + Send + Sync + 'static,
        Q: Hash + Eq + Send + 'static,
    {
        let this = self.set(|_| {});
        BatchLayer {
            plan: this.plan.dedup_by(DedupBy(same)),
            settings: this.settings,
            queue: this.queue,
            state: this.state,
        }
    }

    /// Items wait as long as it takes (default), or until the deadline that `of` finds: their batch is due `margin` before
    /// the earliest, and whoever has no answer when its own passes gets [`Reason::Deadline`](crate::error::Reason). One that
    /// still waits then is never sent.
    #[must_use]
    pub fn deadline(
        self,
        of: impl Fn(&Req) -> Option<Deadline> + Send + Sync + 'static,
        margin: Duration,
    ) -> Self {
        self.set(|this| {
            this.plan.deadline = Some(Arc::new(of));
            this.settings.rules.margin = margin;
        })
    }

    /// Callers are held up in `poll_ready` while so many `items`, or so much `weight`, wait to be sent; what goes beyond twice
    /// that is refused in `call`, but for a single item heavier than that, which is accepted when nothing else waits.
    /// Default: two batches of items for each that may be in flight, and any weight. Items weigh what
    /// [`max_weight`](Self::max_weight) says, or 1.
    ///
    /// # Panics
    ///
    /// When `items` is 0 or beyond 2^24, or `weight` is 0.
    #[must_use]
    pub fn queue(self, items: usize, weight: impl Into<Option<usize>>) -> Self {
        let weight = weight.into();
        check("a queue's items", items);
        assert!(
            weight != Some(0),
            "a queue for a weight of 0 lets nothing through"
        );
        self.set(|this| {
            this.queue = Some(items);
            this.settings.rules.queue_weight = weight;
        })
    }

    /// An item that is heavier than a batch may be is refused (default), or what `policy` says.
    #[must_use]
    pub fn oversize(self, policy: Oversize) -> Self {
        self.set(|this| this.settings.rules.alone = policy == Oversize::Alone)
    }

    /// A batch that failed as a whole has failed for all its items (default), or is sent again in parts as `policy` says.
    ///
    /// To bisect sends items again that may have been done: take it for what may be done twice. It makes at most
    /// 4·log2(n) + 1 calls for a batch of n, one after the other; what has not been told apart by then fails. One poison
    /// among 64 takes 13. Neither panics nor a service that fails to be ready is bisected.
    #[must_use]
    pub fn on_error(self, policy: OnError) -> Self
    where
        Req: Clone,
    {
        self.set(|this| {
            this.plan.copy = match policy {
                OnError::FailAll => None,
                OnError::Bisect => Some(Req::clone),
            }
        })
    }

    /// Every error is worth bisecting (default), or those of which `worth` says so: a poison, not an outage.
    #[must_use]
    pub fn bisect_when(
        self,
        worth: impl Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.set(|this| this.plan.worth_splitting = Arc::new(worth))
    }

    /// Each batch has a task on the tokio runtime that is current (default), or one that `executor` runs. The executor
    /// returns at once: one that runs a task to its end first waits for a batch whose turn comes after it has returned.
    #[must_use]
    pub fn executor(self, executor: impl Executor) -> Self {
        let executor = Arc::new(executor);
        self.set(|this| this.settings.drive = Drive::Tasks(executor))
    }

    /// Batches have no tasks: whoever waits, in `poll_ready`, for an answer, or for a drain, drives them, and what wakes one
    /// wakes all who wait, as a shard's first item does: both cost as much as there are who wait. For runtimes without
    /// `spawn`. A batch that nobody waits for stands still until somebody comes.
    #[must_use]
    pub fn caller_driven(self) -> Self {
        self.set(|this| this.settings.drive = Drive::Callers)
    }

    /// A batch holds items of one service and its clones (default), or of all that the layer makes of a type: for those
    /// that do the same, such as the services a server makes for its connections. It is sent by any of them: the one whose
    /// item came when nothing waited sends until nothing does.
    #[must_use]
    pub fn across_services(self) -> Self {
        self.set(|this| this.settings.across_services = true)
    }

    /// Shows the layer in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self
    where
        Req: 'static,
        K: 'static,
        D: Send + Sync + 'static,
    {
        flow.attach(self.handle());
        self
    }

    /// The handle that reads and steers it. Set options first.
    pub fn handle(&self) -> BatchHandle
    where
        Req: 'static,
        K: 'static,
        D: Send + Sync + 'static,
    {
        BatchHandle::new(self.state().clone())
    }

    fn set(mut self, set: impl FnOnce(&mut Self)) -> Self {
        assert!(
            self.state.get().is_none(),
            "batch {:?}: set options before its handle, attach or layer is used",
            self.settings.name
        );
        set(&mut self);
        self.state = Arc::default();
        self
    }

    fn state(&self) -> &Arc<State>
    where
        Req: 'static,
        K: 'static,
        D: Send + Sync + 'static,
    {
        self.state.get_or_init(|| {
            let mut settings = self.settings.clone();
            let rules = &mut settings.rules;
            let two_each = 2 * rules
                .max_items
                .saturating_mul(rules.max_in_flight)
                .min(MOST / 2);
            rules.queue_items = self.queue.unwrap_or(two_each);
            Arc::new(State::new(settings, Arc::new(self.plan.clone())))
        })
    }
}

fn check(what: &str, value: usize) {
    assert!(
        (1..=MOST).contains(&value),
        "{what} of {value} is not within 1 and {MOST}"
    );
}

impl<S, Req, K, D> Layer<S> for BatchLayer<Req, K, D>
where
    Req: 'static,
    K: 'static,
    D: Send + Sync + 'static,
{
    type Service = Batched<S, Plan<Req, K, D>>;

    fn layer(&self, inner: S) -> Self::Service {
        static SCOPES: AtomicU64 = AtomicU64::new(1);
        let scope = match self.settings.across_services {
            true => 0,
            false => SCOPES.fetch_add(1, Ordering::Relaxed),
        };
        Batched::new(inner, scope, Lease::new(self.state().clone()))
    }
}

impl<Req> Default for BatchLayer<Req> {
    fn default() -> Self {
        Self::new()
    }
}

impl<Req, K, D> Clone for BatchLayer<Req, K, D> {
    fn clone(&self) -> Self {
        Self {
            plan: self.plan.clone(),
            settings: self.settings.clone(),
            queue: self.queue,
            state: self.state.clone(),
        }
    }
}

impl<Req, K, D> fmt::Debug for BatchLayer<Req, K, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchLayer")
            .field("plan", &self.plan)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
