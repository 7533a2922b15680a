use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tower_layer::Layer;

use super::handle::ProfileHandle;
use super::http::HttpProfileLayer;
use super::service::Profiled;
use super::state::State;
use crate::base::flow::Flow;
use crate::base::route::OneRoute;
use crate::base::stats::Lease;

/// Measures how long polls take; see [the module](crate::profile).
///
/// All services it makes, and all its clones, share their numbers.
#[derive(Debug, Clone)]
pub struct ProfileLayer<R = OneRoute> {
    route: R,
    options: Options,
    state: Arc<OnceLock<Arc<State>>>,
}

#[derive(Debug, Clone)]
struct Options {
    name: Arc<str>,
    routed: bool,
    max_routes: usize,
    slow: Duration,
    every: u32,
    delay_every: u32,
}

impl ProfileLayer {
    /// A layer called `name`, after its place in the stack; all its calls take one route of that name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            route: OneRoute,
            options: Options {
                name: name.into(),
                routed: false,
                max_routes: 128,
                slow: Duration::from_millis(1),
                every: 1,
                delay_every: 16,
            },
            state: Arc::default(),
        }
    }

    /// One route (default), or the route `route` names for each request.
    ///
    /// The function sees whatever a peer sends. A name becomes a route after a call that was served.
    pub fn route_by<Req, F>(self, route: F) -> ProfileLayer<F>
    where
        F: Fn(&Req) -> &str,
    {
        self.route_with(route)
    }

    /// One route (default), or the route a [`Route`](crate::route::Route) of your own names for each request.
    pub fn route_with<T>(mut self, route: T) -> ProfileLayer<T> {
        self = self.set(|options| options.routed = true);
        ProfileLayer {
            route,
            options: self.options,
            state: Arc::default(),
        }
    }
}

impl<R> ProfileLayer<R> {
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

    /// Polls longer than 1 ms (default) are slow: they keep a worker from everybody else.
    #[must_use]
    pub fn slow(self, threshold: Duration) -> Self {
        self.set(|options| options.slow = threshold)
    }

    /// Every call (default, 1) is looked at, or one in so many at random, which then counts for as many; 0 is off.
    ///
    /// Inside another profiled layer it is that one which decides. [`ProfileHandle::set_every`] changes it later.
    #[must_use]
    pub fn every(self, every: u32) -> Self {
        self.set(|options| options.every = every)
    }

    /// The wait between wake-up and poll is taken of one in 16 (default) of the calls that are looked at; 0 is never.
    #[must_use]
    pub fn delay_every(self, every: u32) -> Self {
        self.set(|options| options.delay_every = every)
    }

    /// Shows the layer in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.handle());
        self
    }

    /// The handle that reads it. Set options first.
    pub fn handle(&self) -> ProfileHandle {
        ProfileHandle::new(self.state().clone())
    }

    /// The form for HTTP services, which measures polls of response bodies too.
    pub fn http(self) -> HttpProfileLayer<R> {
        HttpProfileLayer::new(self)
    }

    fn set(mut self, set: impl FnOnce(&mut Options)) -> Self {
        assert!(
            self.state.get().is_none(),
            "profile {:?}: set options before its handle, attach or layer is used",
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
                options.routed,
                options.max_routes,
                options.slow,
                options.every,
                options.delay_every,
            ))
        })
    }

    pub(super) fn route(&self) -> &R {
        &self.route
    }
}

impl<S, R: Clone> Layer<S> for ProfileLayer<R> {
    type Service = Profiled<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        Profiled::new(inner, self.route.clone(), Lease::new(self.state().clone()))
    }
}
