use std::task::{Context, Poll};

use tower_service::Service;

use super::backend::{Backend, OneBackend, State};
use super::call::Call;
use super::future::{Answered, ResponseFuture};
use crate::base::cost;
use crate::base::error::BoxError;
use crate::base::stats::Lease;

/// A service whose backend is spared what it would refuse; see [the module](crate::throttle).
#[derive(Debug)]
pub struct Throttle<S, R = OneBackend> {
    inner: S,
    backend: R,
    state: Lease<State>,
}

impl<S, R> Throttle<S, R> {
    pub(super) fn new(inner: S, backend: R, state: Lease<State>) -> Self {
        Self {
            inner,
            backend,
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

impl<S, R, Req> Service<Req> for Throttle<S, R>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    R: Backend<Req>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<Answered<S::Future>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let toll = self.state.cost.call();
        let _own = toll.own();
        match Call::start(&self.state, self.backend.of(&req), || false) {
            // The call is in a future, and so ends, before any foreign code runs.
            Ok(call) => ResponseFuture::passed(Answered::start(call, toll, || {
                cost::inner(|| self.inner.call(req))
            })),
            Err(rejection) => ResponseFuture::refused(rejection),
        }
    }
}

/// A clone shares what is known of the backends.
impl<S: Clone, R: Clone> Clone for Throttle<S, R> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.backend.clone(), self.state.clone())
    }
}
