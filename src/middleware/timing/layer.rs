use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tower_layer::Layer;

use super::handle::TimingHandle;
use super::http::HttpTimingLayer;
use super::route::State;
use super::service::Timing;
use crate::base::flow::Flow;
use crate::base::route::OneRoute;
use crate::base::stats::{Bounds, Lease, Window};

/// Times any service; see [the module](crate::timing).
///
/// All services it makes, and all its clones, share their numbers.
#[derive(Debug, Clone)]
pub struct TimingLayer<R = OneRoute> {
    route: R,
    options: Options,
    state: Arc<OnceLock<Arc<State>>>,
}

#[derive(Debug, Clone)]
struct Options {
    name: Arc<str>,
    bounds: Bounds,
    window: Window,
    max_routes: usize,
    routed: bool,
    expected: Option<Duration>,
}

impl TimingLayer {
    /// A layer whose calls all take one route, called `name`.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            route: OneRoute,
            options: Options {
                name: name.into(),
                bounds: Bounds::client_golang(),
                window: Window::default(),
                max_routes: 128,
                routed: false,
                expected: None,
            },
            state: Arc::default(),
        }
    }

    /// One route (default), or the route `route` names for each request.
    ///
    /// The function sees whatever a peer sends: let it name patterns, not paths.
    pub fn route_by<Req, F>(self, route: F) -> TimingLayer<F>
    where
        F: Fn(&Req) -> &str,
    {
        self.route_with(route)
    }

    /// One route (default), or the route a [`Route`](crate::route::Route) of your own names for each request.
    pub fn route_with<T>(mut self, route: T) -> TimingLayer<T> {
        self = self.set(|options| options.routed = true);
        TimingLayer {
            route,
            options: self.options,
            state: Arc::default(),
        }
    }
}

impl<R> TimingLayer<R> {
    /// At most 128 routes (default) are told apart; further ones are `other`.
    ///
    /// # Panics
    ///
    /// When `max` is beyond 65,536.
    #[must_use]
    pub fn max_routes(self, max: usize) -> Self {
        assert!(
            max <= 65_536,
            "max_routes of {max} is beyond 65,536: each is series to scrape"
        );
        self.set(|options| options.max_routes = max)
    }

    /// A minute in six slices (default) is what quantiles look back on.
    #[must_use]
    pub fn window(self, window: Window) -> Self {
        self.set(|options| options.window = window)
    }

    /// 5 ms to 10 s (default, [`Bounds::client_golang`]) bound the buckets of the classic histograms.
    #[must_use]
    pub fn buckets(self, bounds: Bounds) -> Self {
        self.set(|options| options.bounds = bounds)
    }

    /// No schedule (default), or the interval at which callers send: snapshots then also hold the quantiles corrected
    /// for coordinated omission. Prometheus series are never corrected.
    #[must_use]
    pub fn expected_interval(self, interval: Duration) -> Self {
        self.set(|options| options.expected = Some(interval))
    }

    /// Shows the layer in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.handle());
        self
    }

    /// The handle that reads it. Set options first.
    pub fn handle(&self) -> TimingHandle {
        TimingHandle::new(self.state().clone())
    }

    /// The form for HTTP services, which follows responses to the end of their bodies.
    pub fn http(self) -> HttpTimingLayer<R> {
        HttpTimingLayer::new(self)
    }

    fn set(mut self, set: impl FnOnce(&mut Options)) -> Self {
        assert!(
            self.state.get().is_none(),
            "timing {:?}: set options before its handle, attach or layer is used",
            self.options.name
        );
        set(&mut self.options);
        self.state = Arc::default();
        self
    }

    pub(super) fn state(&self) -> &Arc<State> {
        self.state.get_or_init(|| {
            let options = self.options.clone();
            Arc::new(State::new(
                options.name,
                options.bounds,
                options.window,
                options.max_routes,
                options.routed,
                options.expected,
            ))
        })
    }

    /// What names its routes, for a layer that shall have the same.
    pub(crate) fn route(&self) -> &R {
        &self.route
    }
}

impl<S, R: Clone> Layer<S> for TimingLayer<R> {
    type Service = Timing<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        Timing::new(inner, self.route.clone(), Lease::new(self.state().clone()))
    }
}
