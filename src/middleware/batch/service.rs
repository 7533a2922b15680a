use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::task::{Context, Poll, ready};

use tower_service::Service;

use super::dedup::Dedup;
use super::future::ResponseFuture;
use super::gate::Seat;
use super::hub::{Hub, Types};
use super::plan::Plan;
use super::request::Batch;
use super::results::IntoResults;
use super::state::State;
use crate::base::cost;
use crate::base::error::BoxError;
use crate::base::stats::Lease;

/// A service whose requests are sent in batches; see [the module](crate::batch).
pub struct Batched<S, P> {
    inner: S,
    /// Unlike that of any other service of the layer that is no clone of it; 0 when all are alike.
    scope: u64,
    turn: Turn,
    plan: PhantomData<fn() -> P>,
}

/// A place in the line of those who wait for room, and how to give it back.
struct Turn {
    state: Lease<State>,
    seat: Option<Seat>,
    leave: fn(&State, Seat),
    /// It was found ready, and stays so until it is called: room is not kept for it, but it is not told otherwise either.
    ready: bool,
}

impl<S, P> Batched<S, P> {
    pub(super) fn new(inner: S, scope: u64, state: Lease<State>) -> Self {
        let turn = Turn {
            state,
            seat: None,
            leave: |_, _| {},
            ready: false,
        };
        Self {
            inner,
            scope,
            turn,
            plan: PhantomData,
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

impl<S, Req, K, D> Service<Req> for Batched<S, Plan<Req, K, D>>
where
    S: Service<Batch<Req>> + Clone + Send + 'static,
    S::Response: IntoResults<Response: Send + 'static>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    Req: Send + 'static,
    K: Hash + Eq + Send + 'static,
    D: Dedup<Req, <S::Response as IntoResults>::Response>,
{
    type Response = <S::Response as IntoResults>::Response;
    type Error = BoxError;
    type Future = ResponseFuture<Self::Response>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if !self.turn.ready {
            let hub = Hub::<Types<S, Req, K, D>>::of(&self.turn.state);
            self.turn.leave = Hub::<Types<S, Req, K, D>>::leave_line;
            ready!(hub.poll_room(&mut self.turn.seat, cx));
            self.turn.ready = true;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Req) -> Self::Future {
        let toll = self.turn.state.cost.call();
        let _own = toll.own();
        self.turn.ready = false;
        let state = self.turn.state.clone();
        let hub = Hub::<Types<S, Req, K, D>>::of(&self.turn.state);
        match hub.accept(&self.turn.state, self.scope, req) {
            Ok((ticket, deadline, claim)) => {
                let verbs = Hub::<Types<S, Req, K, D>>::VERBS;
                let future = ResponseFuture::waiting(state, verbs, ticket, deadline, toll);
                if let Some(claim) = claim {
                    hub.begin(claim, false, || cost::inner(|| self.inner.clone()));
                }
                future
            }
            Err(error) => ResponseFuture::refused(state, error),
        }
    }
}

/// A clone shares the shards, and does not wait in line.
impl<S: Clone, P> Clone for Batched<S, P> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.scope, self.turn.state.clone())
    }
}

impl<S: fmt::Debug, P> fmt::Debug for Batched<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batched")
            .field("inner", &self.inner)
            .field("state", &*self.turn.state)
            .finish()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            (self.leave)(&self.state, seat);
        }
    }
}
