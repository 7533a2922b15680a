use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tower_layer::Layer;

use super::ask::{AllEqual, Triage};
use super::classify::{ByGrpcStatus, Classify};
use super::handle::ShedHandle;
use super::http::{Hold, Http};
use super::limit::{Aimd, Bdp, Fixed, Limit};
use super::protocol::Plain;
use super::queue::Queue;
use super::reject::{AsGrpc, Reject};
use super::service::Shed;
use super::state::State;
use super::triage::HttpTriage;
use crate::base::flow::Flow;
use crate::base::signal::{Pressure, Pressures};
use crate::base::stats::Lease;

/// Sheds load in front of any service; see [the module](crate::shed).
///
/// All services it makes, and all their clones, share one gate. [`per_service`](Self::per_service) opts out.
#[derive(Debug, Clone)]
pub struct ShedLayer<T = AllEqual, P = Plain> {
    pub(super) triage: T,
    pub(super) protocol: P,
    options: Options,
    per_service: bool,
    state: Arc<OnceLock<Arc<State>>>,
}

/// The form for HTTP services: [`ShedLayer::http`].
pub type HttpShedLayer = ShedLayer<HttpTriage, Http>;

/// The form for gRPC services: [`ShedLayer::grpc`].
pub type GrpcShedLayer = ShedLayer<HttpTriage, Http<ByGrpcStatus, AsGrpc>>;

/// What the state is made of.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) name: Arc<str>,
    pub(super) limit: Arc<dyn MakeLimit>,
    pub(super) queue: Queue,
    pub(super) partitions: Vec<(Arc<str>, f64)>,
    pub(super) streams: usize,
    pub(super) pressures: Vec<Pressure>,
    pub(super) max_cut: f64,
    pub(super) min_limit: usize,
    pub(super) dry_run: bool,
}

/// A limit algorithm to start from.
pub(super) trait MakeLimit: std::fmt::Debug + Send + Sync {
    fn make(&self) -> Box<dyn Limit>;
}

impl<L: Limit + Clone + Sync> MakeLimit for L {
    fn make(&self) -> Box<dyn Limit> {
        Box::new(self.clone())
    }
}

// ===== impl ShedLayer =====

impl ShedLayer {
    /// Finds the limit by itself: [`Bdp`].
    pub fn adaptive() -> Self {
        Self::new(Bdp::default())
    }

    /// At most `limit` at once.
    ///
    /// # Panics
    ///
    /// When `limit` is 0, which would refuse everything.
    pub fn fixed(limit: usize) -> Self {
        Self::new(Fixed::new(limit))
    }

    /// For a client: the limit adapts as [`Aimd`], and requests wait for a slot, up to ten seconds, rather than be
    /// refused.
    pub fn client() -> Self {
        let queue = Queue::fifo().max(1024).timeout(Duration::from_secs(10));
        Self::new(Aimd::default()).queue(queue)
    }

    /// With a limit algorithm of your choice.
    pub fn new(limit: impl Limit + Clone + Sync) -> Self {
        Self {
            triage: AllEqual,
            protocol: Plain::default(),
            options: Options {
                name: "shed".into(),
                limit: Arc::new(limit),
                queue: Queue::default(),
                partitions: Vec::new(),
                streams: 1024,
                pressures: Vec::new(),
                max_cut: 0.9,
                min_limit: 1,
                dry_run: false,
            },
            per_service: false,
            state: Arc::default(),
        }
    }
}

impl<T> ShedLayer<T> {
    /// The form for HTTP services: requests say how urgent they are, slots are held to the end of the bodies, refusals
    /// are responses. `/healthz`, `/livez` and `/readyz` pass by: who sheds probes is restarted for being busy.
    pub fn http(self) -> HttpShedLayer {
        let layer = self.map(|_, _| (HttpTriage::default(), Http::default()));
        layer.bypass(["/healthz", "/livez", "/readyz"])
    }

    /// The form for gRPC services: as [`http`](Self::http), judged by `grpc-status` and refused with one. The health
    /// service passes by.
    pub fn grpc(self) -> GrpcShedLayer {
        let protocol = Http {
            classify: ByGrpcStatus::default(),
            reject: Reject::grpc(),
            hold: Hold::Body,
        };
        let layer = self.map(|_, _| (HttpTriage::default(), protocol));
        layer.bypass(["/grpc.health.v1.Health/"])
    }

    /// An error is judged by its causes (default), or results by `classify`.
    pub fn classify<C>(self, classify: C) -> ShedLayer<T, Plain<C>> {
        self.map(|triage, _| (triage, Plain { classify }))
    }

    /// An error is judged by its causes (default), or results by a function of yours.
    pub fn classify_by<Res, E, F>(self, classify: F) -> ShedLayer<T, Plain<F>>
    where
        F: Fn(Result<&Res, &E>) -> super::Verdict,
        F: Classify<Res, E>,
    {
        self.classify(classify)
    }
}

impl<P> ShedLayer<AllEqual, P> {
    /// All requests are equal (default), or `triage` tells what to know of each.
    pub fn triage<T>(self, triage: T) -> ShedLayer<T, P> {
        self.map(|_, protocol| (triage, protocol))
    }

    /// All requests are equal (default), or a function of yours tells what to know of each.
    pub fn triage_by<Req, F>(self, triage: F) -> ShedLayer<F, P>
    where
        F: for<'a> Fn(&'a Req) -> super::Ask<'a>,
        F: Triage<Req>,
    {
        self.triage(triage)
    }
}

impl<T, P> ShedLayer<T, P> {
    /// `shed` (default), or its name in metrics and snapshots.
    #[must_use]
    pub fn name(self, name: impl Into<Arc<str>>) -> Self {
        self.set(|options| options.name = name.into())
    }

    /// [`Queue::codel`] (default), or another place to wait.
    #[must_use]
    pub fn queue(self, queue: Queue) -> Self {
        self.set(|options| options.queue = queue)
    }

    /// Everybody shares all slots (default), or the partition `name` is guaranteed `part` of them. It lends what it
    /// does not use, and is served first while it uses less: of those who wait, so a share needs a [`queue`](Self::queue).
    ///
    /// # Panics
    ///
    /// When `part` does not lie within 0 and 1, all parts together exceed 1, the name is taken, or there are 1,024
    /// partitions already.
    #[must_use]
    pub fn partition(self, name: impl Into<Arc<str>>, part: f64) -> Self {
        let name = name.into();
        assert!(
            (0.0..=1.0).contains(&part),
            "the part {part} of partition {name:?} does not lie within 0 and 1"
        );
        self.set(|options| {
            let taken = options.partitions.iter().any(|(known, _)| *known == name);
            assert!(!taken, "there is a partition {name:?} already");
            let count = options.partitions.len();
            assert!(count < 1024, "there are {count} partitions already");
            options.partitions.push((name, part));
            let all: f64 = options.partitions.iter().map(|(_, part)| part).sum();
            assert!(
                all <= 1.0 + 1e-9,
                "all parts together are {all}, more than 1"
            );
        })
    }

    /// 1,024 streams (default) at once, or so many.
    ///
    /// # Panics
    ///
    /// When `limit` is 0, which would refuse every stream.
    #[must_use]
    pub fn streams(self, limit: usize) -> Self {
        assert!(
            limit > 0,
            "the limit of streams must be at least 1, not {limit}"
        );
        self.set(|options| options.streams = limit)
    }

    /// No signal (default), or also this one: under pressure the limit is lowered and what can be done later is shed.
    ///
    /// # Panics
    ///
    /// When a level of `pressure` is missing or they are the wrong way round, or its name is taken.
    #[must_use]
    pub fn pressure(self, pressure: Pressure) -> Self {
        self.set(|options| {
            options.pressures.push(pressure);
            // Refused here, where it is written, rather than at the first use.
            drop(Pressures::new(options.pressures.clone()));
        })
    }

    /// 0.9 (default) of the limit is what full pressure takes away, or `part`.
    ///
    /// # Panics
    ///
    /// When `part` does not lie within 0 and 1.
    #[must_use]
    pub fn max_cut(self, part: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&part),
            "the greatest cut {part} does not lie within 0 and 1"
        );
        self.set(|options| options.max_cut = part)
    }

    /// One (default) slot is what pressure leaves at least, or `limit`.
    ///
    /// # Panics
    ///
    /// When `limit` is 0: pressure would refuse everything.
    #[must_use]
    pub fn min_limit(self, limit: usize) -> Self {
        assert!(limit > 0, "the least limit must be at least 1, not {limit}");
        self.set(|options| options.min_limit = limit)
    }

    /// Refuses (default), or only counts what it would refuse and lets everything through. The handle changes it while
    /// it runs.
    #[must_use]
    pub fn dry_run(self, dry_run: bool) -> Self {
        self.set(|options| options.dry_run = dry_run)
    }

    /// One gate for all services it makes (default), or one for each. A layer with a gate for each has no handle and
    /// cannot be attached: it would not know which to show.
    #[must_use]
    pub fn per_service(self) -> Self {
        let mut layer = self.set(|_| ());
        layer.per_service = true;
        layer
    }

    /// Shows the layer in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.handle());
        self
    }

    /// The handle that reads and tunes it. Set options first.
    ///
    /// # Panics
    ///
    /// When it is [`per_service`](Self::per_service).
    pub fn handle(&self) -> ShedHandle {
        assert!(
            !self.per_service,
            "shed {:?}: a layer with a gate for each service has no handle",
            self.options.name
        );
        ShedHandle::new(self.state().clone())
    }

    /// The same with another triage and protocol.
    pub(super) fn map<U, Q>(self, map: impl FnOnce(T, P) -> (U, Q)) -> ShedLayer<U, Q> {
        let (triage, protocol) = map(self.triage, self.protocol);
        ShedLayer {
            triage,
            protocol,
            options: self.options,
            per_service: self.per_service,
            state: self.state,
        }
    }

    fn set(mut self, set: impl FnOnce(&mut Options)) -> Self {
        assert!(
            self.state.get().is_none(),
            "shed {:?}: set options before its handle, attach or layer is used",
            self.options.name
        );
        set(&mut self.options);
        self.state = Arc::default();
        self
    }

    fn state(&self) -> &Arc<State> {
        self.state.get_or_init(|| self.make())
    }

    fn make(&self) -> Arc<State> {
        Arc::new(State::new(&self.options))
    }
}

impl<S, T: Clone, P: Clone> Layer<S> for ShedLayer<T, P> {
    type Service = Shed<S, T, P>;

    fn layer(&self, inner: S) -> Self::Service {
        let state = match self.per_service {
            true => self.make(),
            false => self.state().clone(),
        };
        Shed::new(
            inner,
            self.triage.clone(),
            self.protocol.clone(),
            Lease::new(state),
        )
    }
}
