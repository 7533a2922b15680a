use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tower_layer::Layer;

use super::handle::CoalesceHandle;
use super::hub::Policy;
use super::service::Coalesce;
use super::share::{ArcError, Keep};
use super::state::{OnLeaderDrop, Readiness, Settings, State};
use crate::base::executor::{Executor, TokioExecutor};
use crate::base::flow::Flow;
use crate::base::stats::Lease;

/// Makes one call of equal requests in flight; see [the module](crate::coalesce).
///
/// All services it makes, all its clones, and all theirs share their flights.
pub struct CoalesceLayer<Y, P = ArcError> {
    key: Arc<Y>,
    share: Arc<P>,
    settings: Settings,
    state: Arc<OnceLock<Arc<State>>>,
}

/// Longer than anything here lives, and still a moment from now.
const FOREVER: Duration = Duration::from_secs(86_400 * 365);

/// Its name unless it has another.
const NAME: &str = "coalesce";

impl<Y> CoalesceLayer<Y> {
    /// A layer to which requests are equal when `key` says so: a closure `Fn(&Req) -> Option<K>`, or a
    /// [`KeyBy`](super::KeyBy). Requests without a key go alone.
    pub fn new(key: Y) -> Self {
        Self::with(key, ArcError)
    }
}

impl<Y, P> CoalesceLayer<Y, P> {
    pub(super) fn with(key: Y, share: P) -> Self {
        Self {
            key: Arc::new(key),
            share: Arc::new(share),
            settings: Settings {
                name: NAME.into(),
                on_leader_drop: OnLeaderDrop::HandOver,
                readiness: Readiness::Late,
                per_service: false,
                flight_timeout: Some(Duration::from_secs(30)),
                leader_age: Duration::from_secs(5),
                grace: Duration::ZERO,
                max_keys: 65_536,
                max_waiters: 1_024,
                remember: (Duration::from_secs(120), 16_384),
                executor: Arc::new(TokioExecutor),
                evicted: Arc::new(AtomicU64::new(0)),
            },
            state: Arc::default(),
        }
    }

    /// `coalesce` (default) is its name in metrics and snapshots.
    #[must_use]
    pub fn name(self, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        self.set(|settings| settings.name = name)
    }

    /// Responses are cloned and errors shared (default, [`ArcError`]), or what `policy` says. A [`grace`](Self::grace) is for
    /// the new policy to be set anew.
    #[must_use]
    pub fn share<Q>(self, policy: Q) -> CoalesceLayer<Y, Q> {
        let this = self.set(|settings| settings.grace = Duration::ZERO);
        CoalesceLayer {
            key: this.key,
            share: Arc::new(policy),
            settings: this.settings,
            state: Arc::default(),
        }
    }

    /// A flight whose leader goes away is handed over to those who follow (default), or ends as `policy` says.
    #[must_use]
    pub fn on_leader_drop(self, policy: OnLeaderDrop) -> Self {
        self.set(|settings| settings.on_leader_drop = policy)
    }

    /// 30 seconds (default) after somebody else began to wait for it a flight ends with an error for all; `None` is
    /// never. A call nobody else waits for is not timed, unless it has a task ([`OnLeaderDrop::Detach`]).
    #[must_use]
    pub fn flight_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        self.set(|settings| settings.flight_timeout = timeout)
    }

    /// A caller joins no flight that has waited for 5 seconds (default): it begins another.
    #[must_use]
    pub fn leader_age(self, age: Duration) -> Self {
        let age = age.min(FOREVER);
        self.set(|settings| settings.leader_age = age)
    }

    /// A result is forgotten when all who waited have it (default), or kept for others during `grace`.
    ///
    /// Errors are not kept. That makes a small cache: it holds at most as many results as there may be keys. What fell due is dropped when
    /// the next caller comes to its shard, or the handle is read.
    ///
    /// # Panics
    ///
    /// When `grace` is longer than a minute: take a cache.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self
    where
        P: Keep,
    {
        assert!(
            grace <= Duration::from_secs(60),
            "a grace of {grace:?} is longer than a minute; take a cache"
        );
        self.set(|settings| settings.grace = grace)
    }

    /// At most 65,536 keys (default) are in flight or kept; requests beyond that go alone.
    ///
    /// The keys are in shards, each with its share; fewer than 1,024 are in one.
    ///
    /// # Panics
    ///
    /// When `max` is 0 or beyond 2^24.
    #[must_use]
    pub fn max_keys(self, max: usize) -> Self {
        assert!(
            (1..=1 << 24).contains(&max),
            "max_keys of {max} is not within 1 and 16,777,216; without the layer nothing coalesces"
        );
        self.set(|settings| settings.max_keys = max)
    }

    /// At most 1,024 callers (default) wait for one flight, its leader included; the next leads another of the same key.
    ///
    /// # Panics
    ///
    /// When `max` is 0 or beyond 2^24.
    #[must_use]
    pub fn max_waiters(self, max: usize) -> Self {
        assert!(
            (1..=1 << 24).contains(&max),
            "max_waiters of {max} is not within 1 and 16,777,216"
        );
        self.set(|settings| settings.max_waiters = max)
    }

    /// A key whose answer was for its leader only is remembered for 2 minutes (default, as Varnish does), of at most
    /// 16,384 such keys (default); meanwhile its requests go alone from the start, until one of
    /// them has an answer that may be shared. A `cap` of 0 remembers none.
    #[must_use]
    pub fn remember_unshareable(self, ttl: Duration, cap: usize) -> Self {
        let ttl = ttl.min(FOREVER);
        self.set(|settings| settings.remember = (ttl, cap))
    }

    /// Tasks run on the tokio runtime that is current (default), or by `executor`. Only [`OnLeaderDrop::Detach`] has any.
    #[must_use]
    pub fn executor(self, executor: impl Executor) -> Self {
        let executor = Arc::new(executor);
        self.set(|settings| settings.executor = executor)
    }

    /// The inner service is asked whether it is ready inside the flight (default), or in `poll_ready`.
    #[must_use]
    pub fn readiness(self, readiness: Readiness) -> Self {
        self.set(|settings| settings.readiness = readiness)
    }

    /// All services of the layer share their flights (default), as a server wants it that makes one for each connection;
    /// or each that it makes, with its clones, has its own.
    ///
    /// Services round backends that answer the same request differently need this, unless the key tells them apart: two
    /// routers under different prefixes, of which each sees paths without its own; two clients of different servers.
    #[must_use]
    pub fn per_service(self) -> Self {
        self.set(|settings| settings.per_service = true)
    }

    /// Shows the layer in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self
    where
        Y: Send + Sync + 'static,
        P: Send + Sync + 'static,
    {
        flow.attach(self.handle());
        self
    }

    /// The handle that reads it. Set options first.
    pub fn handle(&self) -> CoalesceHandle
    where
        Y: Send + Sync + 'static,
        P: Send + Sync + 'static,
    {
        CoalesceHandle::new(self.state().clone())
    }

    /// The same settings for another key and policy.
    pub(super) fn map_rules(self, map: impl FnOnce(&Y, &P) -> (Y, P)) -> Self {
        let (key, share) = map(&self.key, &self.share);
        let mut this = self.set(|_| {});
        (this.key, this.share) = (Arc::new(key), Arc::new(share));
        this
    }

    pub(super) fn key(&self) -> &Y {
        &self.key
    }

    #[cfg(all(feature = "grpc", feature = "shed", feature = "timing"))]
    pub(super) fn policy(&self) -> &P {
        &self.share
    }

    /// Called `name`, if nobody has called it anything, and nobody has its handle yet.
    #[cfg(all(feature = "grpc", feature = "timing"))]
    pub(crate) fn name_or(self, name: &str) -> Self {
        match &*self.settings.name {
            NAME if self.state.get().is_none() => self.name(name),
            _ => self,
        }
    }

    /// Where evicted readers of bodies are counted.
    pub(super) fn evicted(&self) -> &Arc<AtomicU64> {
        &self.settings.evicted
    }

    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        assert!(
            self.state.get().is_none(),
            "coalesce {:?}: set options before its handle, attach or layer is used",
            self.settings.name
        );
        set(&mut self.settings);
        self.state = Arc::default();
        self
    }

    fn state(&self) -> &Arc<State>
    where
        Y: Send + Sync + 'static,
        P: Send + Sync + 'static,
    {
        self.state.get_or_init(|| {
            let policy = Policy {
                key: self.key.clone(),
                share: self.share.clone(),
            };
            Arc::new(State::new(self.settings.clone(), Arc::new(policy)))
        })
    }
}

impl<S, Y, P> Layer<S> for CoalesceLayer<Y, P>
where
    Y: Send + Sync + 'static,
    P: Send + Sync + 'static,
{
    type Service = Coalesce<S, Y, P>;

    fn layer(&self, inner: S) -> Self::Service {
        static SCOPES: AtomicU64 = AtomicU64::new(1);
        let scope = SCOPES.fetch_add(1, Ordering::Relaxed);
        Coalesce::new(inner, Lease::new(self.state().clone()), scope)
    }
}

impl<Y, P> Clone for CoalesceLayer<Y, P> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            share: self.share.clone(),
            settings: self.settings.clone(),
            state: self.state.clone(),
        }
    }
}

impl<Y, P> fmt::Debug for CoalesceLayer<Y, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoalesceLayer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
