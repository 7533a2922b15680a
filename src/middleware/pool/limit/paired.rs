use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::scope::Scope;
use super::state::State;
use crate::base::stats::Lease;

/// Lets the dials of a limit know which requests they are for; made by
/// [`ConnLimit::request_layer`](super::ConnLimit::request_layer).
#[derive(Debug, Clone)]
pub struct RequestLayer(Lease<State>);

/// A client whose queued dials end with the wait they are for; see [the module](crate::pool::limit).
#[derive(Debug, Clone)]
pub struct Paired<S> {
    inner: S,
    state: Lease<State>,
}

pin_project! {
    /// The response future of [`Paired`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct PairedFuture<F> {
        #[pin]
        inner: F,
        state: Lease<State>,
    }
}

impl RequestLayer {
    pub(super) fn new(state: Lease<State>) -> Self {
        Self(state)
    }
}

impl<S> Layer<S> for RequestLayer {
    type Service = Paired<S>;

    fn layer(&self, inner: S) -> Paired<S> {
        Paired {
            inner,
            state: self.0.clone(),
        }
    }
}

impl<S> Paired<S> {
    /// The wrapped client.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped client.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Service<Req>, Req> Service<Req> for Paired<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = PairedFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let _scope = Scope::enter(&self.state);
        PairedFuture {
            inner: self.inner.call(req),
            state: self.state.clone(),
        }
    }
}

impl<F: Future> Future for PairedFuture<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _scope = Scope::enter(this.state);
        this.inner.poll(cx)
    }
}
