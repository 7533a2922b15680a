use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::call::Call;
use super::stage::Stage;
use super::state::State;
use crate::base::cost::{self, Toll};
use crate::base::route::{OneRoute, Route};
use crate::base::stats::Lease;

/// A service whose polls are measured; see [the module](crate::profile).
#[derive(Debug)]
pub struct Profiled<S, R = OneRoute> {
    inner: S,
    route: R,
    state: Lease<State>,
}

pin_project! {
    /// The response future of [`Profiled`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        call: Call,
        toll: Toll,
    }
}

impl<S, R> Profiled<S, R> {
    pub(super) fn new(inner: S, route: R, state: Lease<State>) -> Self {
        Self {
            inner,
            route,
            state,
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

impl<S, R, Req> Service<Req> for Profiled<S, R>
where
    S: Service<Req>,
    R: Route<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let toll = self.state.cost.call();
        let _own = toll.own();
        let call = Call::start(&self.state, || self.route.of(&req));
        let inner = call.run(Stage::Call, || cost::inner(|| self.inner.call(req)));
        ResponseFuture { inner, call, toll }
    }
}

/// A clone shares the numbers and holds nothing.
impl<S: Clone, R: Clone> Clone for Profiled<S, R> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.route.clone(), self.state.clone())
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService, R> tonic::server::NamedService for Profiled<S, R> {
    const NAME: &'static str = S::NAME;
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _own = this.toll.own();
        let inner = |cx: &mut Context<'_>| cost::inner(|| this.inner.poll(cx));
        let result = ready!(this.call.poll(cx, inner));
        if result.is_ok() {
            this.call.served();
        }
        Poll::Ready(result)
    }
}
