use std::task::{Context, Poll};

use tower_service::Service;

use super::call::{Call, ReadyWait};
use super::future::ResponseFuture;
use super::route::State;
use crate::base::clock;
use crate::base::cost;
use crate::base::route::{OneRoute, Route};
use crate::base::stats::Lease;

/// A service that is timed; see [the module](crate::timing).
#[derive(Debug)]
pub struct Timing<S, R = OneRoute> {
    inner: S,
    route: R,
    state: Lease<State>,
    wait: ReadyWait,
}

impl<S, R> Timing<S, R> {
    pub(super) fn new(inner: S, route: R, state: Lease<State>) -> Self {
        Self {
            inner,
            route,
            state,
            wait: ReadyWait::default(),
        }
    }

    /// The wrapped service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, R, Req> Service<Req> for Timing<S, R>
where
    S: Service<Req>,
    S::Error: 'static,
    R: Route<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let polled = self.inner.poll_ready(cx);
        self.wait.polled(polled.is_ready());
        polled
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let toll = self.state.cost.call();
        let _own = toll.own();
        let ready = self.wait.take();
        let call = Call::start(&self.state, self.route.of(&req), ready, None, clock::now());
        // The call is in a future, and so ends, before any foreign code runs.
        ResponseFuture::start(call, toll, || cost::inner(|| self.inner.call(req)))
    }
}

/// A clone has waited for nothing yet.
impl<S: Clone, R: Clone> Clone for Timing<S, R> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.route.clone(), self.state.clone())
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService, R> tonic::server::NamedService for Timing<S, R> {
    const NAME: &'static str = S::NAME;
}
