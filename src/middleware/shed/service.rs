use std::task::{Context, Poll};

use tower_service::Service;

use super::ask::Triage;
use super::future::ResponseFuture;
use super::protocol::Protocol;
use super::state::State;
use crate::base::cost;
use crate::base::stats::Lease;

/// A service in front of which load is shed; see [the module](crate::shed).
#[derive(Debug)]
pub struct Shed<S, T, P> {
    inner: S,
    triage: T,
    protocol: P,
    state: Lease<State>,
}

impl<S, T, P> Shed<S, T, P> {
    pub(super) fn new(inner: S, triage: T, protocol: P, state: Lease<State>) -> Self {
        Self {
            inner,
            triage,
            protocol,
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

impl<S, T, P, Req> Service<Req> for Shed<S, T, P>
where
    S: Service<Req> + Clone,
    T: Triage<Req>,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Response = P::Response;
    type Error = P::Error;
    type Future = ResponseFuture<S, Req, P>;

    /// Always ready: whether a request is let in is decided in [`call`](Self::call), where it is known. The inner
    /// service's readiness is awaited in the future, on a clone.
    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let toll = self.state.cost.call();
        let _own = toll.own();
        let ask = self.triage.guarded(&req);
        let admission = State::receive(&self.state, ask);
        let inner = || cost::inner(|| self.inner.clone());
        ResponseFuture::new(admission, inner, req, self.protocol.clone(), toll)
    }
}

/// A clone holds nothing: slots belong to requests, and the count of them to the layer.
impl<S: Clone, T: Clone, P: Clone> Clone for Shed<S, T, P> {
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.triage.clone(),
            self.protocol.clone(),
            self.state.clone(),
        )
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService, T, P> tonic::server::NamedService for Shed<S, T, P> {
    const NAME: &'static str = S::NAME;
}
