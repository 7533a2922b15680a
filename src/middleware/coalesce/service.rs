use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tower_service::Service;

use super::future::{Caller, ResponseFuture};
use super::hub::Hub;
use super::key::{KeyBy, Scoped};
use super::share::{ArcError, Share};
use super::state::{Readiness, State};
use crate::base::cost;
use crate::base::error::BoxError;
use crate::base::stats::Lease;

/// A service whose equal requests become one; see [the module](crate::coalesce).
pub struct Coalesce<S, Y, P = ArcError> {
    inner: S,
    state: Lease<State>,
    /// Unlike that of any other service of the layer that is no clone of it.
    scope: u64,
    policy: PhantomData<fn() -> (Y, P)>,
}

impl<S, Y, P> Coalesce<S, Y, P> {
    pub(super) fn new(inner: S, state: Lease<State>, scope: u64) -> Self {
        Self {
            inner,
            state,
            scope,
            policy: PhantomData,
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

    /// The call of one who has no other to make.
    pub(super) fn start<Req>(self, req: Req) -> ResponseFuture<S, Y, P, Req>
    where
        S: Service<Req> + Send + 'static,
        S::Future: Send + 'static,
        S::Response: Send + 'static,
        S::Error: Send + 'static,
        Req: Send + 'static,
        Y: KeyBy<Req> + Send + Sync + 'static,
        P: Share<S::Response, S::Error> + Send + Sync + 'static,
    {
        start(self.inner, self.state, self.scope, false, req)
    }
}

impl<S, Y, P, Req> Service<Req> for Coalesce<S, Y, P>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    type Response = P::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, Y, P, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.state.settings.readiness {
            Readiness::Late => Poll::Ready(Ok(())),
            Readiness::Eager => self.inner.poll_ready(cx).map_err(Into::into),
        }
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let toll = self.state.cost.call();
        let _own = toll.own();
        let mut service = cost::inner(|| self.inner.clone());
        let ready = self.state.settings.readiness == Readiness::Eager;
        if ready {
            // The very service that was found ready takes the call, and its clone the next.
            mem::swap(&mut self.inner, &mut service);
        }
        start(service, self.state.clone(), self.scope, ready, req).paying(toll)
    }
}

fn start<S, Y, P, Req>(
    service: S,
    state: Lease<State>,
    scope: u64,
    ready: bool,
    req: Req,
) -> ResponseFuture<S, Y, P, Req>
where
    S: Service<Req> + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
    Req: Send + 'static,
    Y: KeyBy<Req> + Send + Sync + 'static,
    P: Share<S::Response, S::Error> + Send + Sync + 'static,
{
    let hub = Hub::<S, Y, P, Req>::of(&state);
    let key = match state.paused.load(Ordering::Relaxed) {
        false => hub.policy.key.key(&req),
        true => None,
    };
    let terms = match &key {
        Some(_) => hub.policy.key.terms(&req),
        None => Default::default(),
    };
    let key = key.map(|key| {
        let own = state.settings.per_service || hub.policy.key.is_local(&req);
        let scope = if own { scope } else { 0 };
        let key = Scoped { scope, key };
        (hub.map.hash(&key), key)
    });
    let caller = Caller {
        service,
        req,
        key,
        ready,
    };
    ResponseFuture::new(caller, terms, state)
}

/// A clone shares the flights, and has reserved nothing.
impl<S: Clone, Y, P> Clone for Coalesce<S, Y, P> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.state.clone(), self.scope)
    }
}

impl<S: fmt::Debug, Y, P> fmt::Debug for Coalesce<S, Y, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalesce")
            .field("inner", &self.inner)
            .field("state", &*self.state)
            .finish()
    }
}
