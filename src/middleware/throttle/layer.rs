use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tower_layer::Layer;

use super::backend::{Codes, OneBackend, Settings, State};
use super::budget::Size;
use super::handle::ThrottleHandle;
use super::http::{HttpThrottleLayer, Protocol};
use super::rate::{Formula, STEPS};
use super::service::Throttle;
use crate::base::clock;
use crate::base::flow::Flow;
use crate::base::outcome::Code;
use crate::base::stats::Lease;

/// Spares backends what they would refuse; see [the module](crate::throttle).
///
/// All services it makes, and all its clones, share what they know of the backends.
#[derive(Debug, Clone)]
pub struct ThrottleLayer<R = OneBackend> {
    backend: R,
    settings: Settings,
    state: Arc<OnceLock<Arc<State>>>,
}

impl ThrottleLayer {
    /// A layer whose requests all go to one backend, called `name`; in its HTTP forms to as many as there are
    /// authorities.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            backend: OneBackend,
            settings: Settings {
                name: name.into(),
                formula: Formula {
                    k: 2.0,
                    max_probability: 0.9,
                    min_requests: 10,
                },
                window: Duration::from_secs(120),
                max_backends: 128,
                refusals: Codes::new([
                    Code::Unavailable,
                    Code::ResourceExhausted,
                    Code::DeadlineExceeded,
                ]),
                honour_pushback: false,
                max_pushback: Duration::from_secs(30),
                tokens: Size::new(10, 0.1),
                named: false,
            },
            state: Arc::default(),
        }
    }

    /// One backend (default; in the HTTP forms one for each authority), or the one `backend` names for each request.
    ///
    /// Let it name whatever refuses as one: a service, not its instances behind a balancer.
    pub fn backend_by<Req, F>(self, backend: F) -> ThrottleLayer<F>
    where
        F: Fn(&Req) -> &str,
    {
        self.backend_with(backend)
    }

    /// One backend (default), or the one a [`Backend`](super::Backend) of your own names for each request.
    pub fn backend_with<T>(mut self, backend: T) -> ThrottleLayer<T> {
        self = self.set(|settings| settings.named = true);
        ThrottleLayer {
            backend,
            settings: self.settings,
            state: Arc::default(),
        }
    }
}

impl<R> ThrottleLayer<R> {
    /// 2 (default) is how many requests are sent for each that a backend accepts. Less spares the backend more and
    /// notices its recovery later.
    ///
    /// # Panics
    ///
    /// When `k` is not finite or below 1, which would refuse requests of a backend that refuses none.
    #[must_use]
    pub fn k(self, k: f64) -> Self {
        assert!(
            k.is_finite() && k >= 1.0,
            "k of {k} is not a finite number of 1 or more"
        );
        self.set(|settings| settings.formula.k = k)
    }

    /// Two minutes (default) is what the formula looks back on, moving on in 24 steps.
    ///
    /// # Panics
    ///
    /// When `span` is shorter than 24 milliseconds or longer than a day.
    #[must_use]
    pub fn window(self, span: Duration) -> Self {
        const LEAST: Duration = Duration::from_millis(STEPS as u64);
        const MOST: Duration = Duration::from_secs(86_400);
        assert!(
            (LEAST..=MOST).contains(&span),
            "a window of {span:?} is not within {LEAST:?} and {MOST:?}"
        );
        self.set(|settings| settings.window = span)
    }

    /// 0.9 (default) of a backend's requests are refused at most: the rest are the probes that notice its recovery.
    ///
    /// With the default the formula rules alone until a backend is offered twenty times what it accepts. 0 only watches.
    ///
    /// # Panics
    ///
    /// When `max` is not within 0 and 0.999.
    #[must_use]
    pub fn max_probability(self, max: f64) -> Self {
        assert!(
            (0.0..=0.999).contains(&max),
            "max_probability of {max} is not within 0 and 0.999"
        );
        self.set(|settings| settings.formula.max_probability = max)
    }

    /// 10 requests (default) within the window are too few to refuse any.
    #[must_use]
    pub fn min_requests(self, min: u64) -> Self {
        self.set(|settings| settings.formula.min_requests = min)
    }

    /// UNAVAILABLE, RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED (default) are a backend's refusals.
    ///
    /// Of HTTP's statuses 502 and 503 count as the first, 429 as the second, 504 as the third, every other 5xx as
    /// [`Code::Unknown`]. CANCELLED is never a refusal.
    #[must_use]
    pub fn refusals(self, codes: impl IntoIterator<Item = Code>) -> Self {
        let codes = codes.into_iter().filter(|code| *code != Code::Cancelled);
        let codes = Codes::new(codes);
        self.set(|settings| settings.refusals = codes)
    }

    /// At most 128 backends (default) are told apart; further ones are `other`, which is never throttled.
    ///
    /// # Panics
    ///
    /// When `max` is beyond 65,536.
    #[must_use]
    pub fn max_backends(self, max: usize) -> Self {
        assert!(
            max <= 65_536,
            "max_backends of {max} is beyond 65,536: each is series to scrape"
        );
        self.set(|settings| settings.max_backends = max)
    }

    /// A push-back is a fact for retries only (default), or holds back every request to its backend.
    ///
    /// Off, since one instance of many, or whoever can write a `retry-after`, could else silence a client.
    #[must_use]
    pub fn honour_pushback(self, honour: bool) -> Self {
        self.set(|settings| settings.honour_pushback = honour)
    }

    /// 30 seconds (default) is how long a push-back is believed, whatever it says.
    #[must_use]
    pub fn max_pushback(self, max: Duration) -> Self {
        self.set(|settings| settings.max_pushback = max)
    }

    /// 10 tokens and 0.1 back for a success (default, the example of gRPC's proposal A6) make a
    /// [`RetryBudget`](super::RetryBudget).
    ///
    /// # Panics
    ///
    /// When `max` is not within 1 and 1,000, or `refund` not within 0.001 and `max`.
    #[must_use]
    pub fn retry_tokens(self, max: u32, refund: f64) -> Self {
        let size = Size::new(max, refund);
        self.set(|settings| settings.tokens = size)
    }

    /// Shows the layer in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.handle());
        self
    }

    /// The handle that reads it. Set options first.
    pub fn handle(&self) -> ThrottleHandle {
        ThrottleHandle::new(self.state().clone())
    }

    /// The form for HTTP clients: reads statuses and `retry-after`.
    pub fn http(self) -> HttpThrottleLayer<R> {
        HttpThrottleLayer::new(self, Protocol::Http)
    }

    /// The form for gRPC clients: reads `grpc-status` and `grpc-retry-pushback-ms`, in headers or trailers.
    pub fn grpc(self) -> HttpThrottleLayer<R> {
        HttpThrottleLayer::new(self, Protocol::Grpc)
    }

    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        assert!(
            self.state.get().is_none(),
            "throttle {:?}: set options before its handle, attach or layer is used",
            self.settings.name
        );
        set(&mut self.settings);
        self.state = Arc::default();
        self
    }

    pub(super) fn state(&self) -> &Arc<State> {
        self.state
            .get_or_init(|| Arc::new(State::new(self.settings.clone(), clock::now())))
    }

    pub(super) fn backend(&self) -> &R {
        &self.backend
    }
}

impl<S, R: Clone> Layer<S> for ThrottleLayer<R> {
    type Service = Throttle<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        let state = Lease::new(self.state().clone());
        Throttle::new(inner, self.backend.clone(), state)
    }
}
