use std::fmt::Display;
use std::task::{Context, Poll};

use http_body::Body;
use tower_service::Service;

use super::call::{Call, Messages};
use super::state::State;
use crate::base::body::{Guard, ObservedBody, ObservedFuture};
use crate::base::clock::Moment;
use crate::base::cost::Chain;
use crate::base::stats::Lease;
use crate::base::watch::Watch;

/// The request body the inner service gets: its messages are counted as they pass.
pub type RequestBody<B> = ObservedBody<B, Messages>;
/// The response body the caller gets: the call ends where it ends.
pub type ResponseBody<B, O = ()> = ObservedBody<B, (Call, O)>;
/// The response future of [`Grpc`].
pub type ResponseFuture<F, O = ()> = ObservedFuture<F, (Call, O)>;

/// A gRPC service or client whose calls are counted; see [the module](crate::grpc).
///
/// `W` is what [rides along](super::GrpcLayer::along).
#[derive(Debug)]
pub struct Grpc<S, W = ()> {
    inner: S,
    state: Lease<State>,
    along: W,
}

impl<S, W> Grpc<S, W> {
    pub(super) fn new(inner: S, state: Lease<State>, along: W) -> Self {
        Self {
            inner,
            state,
            along,
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

impl<S, W, B, ResBody> Service<http::Request<B>> for Grpc<S, W>
where
    S: Service<http::Request<RequestBody<B>>, Response = http::Response<ResBody>>,
    S::Error: Display + 'static,
    W: Watch<B>,
    B: Body,
    ResBody: Body,
{
    type Response = http::Response<ResponseBody<ResBody, W::Observer>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, W::Observer>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let polled = self.inner.poll_ready(cx);
        self.along.polled(polled.is_ready());
        polled
    }

    #[inline]
    fn call(&mut self, mut req: http::Request<B>) -> Self::Future {
        let _chain = Chain::begin();
        let at = Moment::new();
        let Some((call, messages)) = Call::start(&self.state, &req, &at) else {
            return ResponseFuture::passed(self.inner.call(req.map(RequestBody::passed)));
        };
        // Whatever panics from here on, in the watch that rides along or in the service, ends the call.
        let call = Guard::new(call);
        let along = self.along.start(&mut req, &at);
        let req = req.map(|body| RequestBody::observed(body, messages));
        match call.disarm() {
            Some(call) => ResponseFuture::start((call, along), || self.inner.call(req)),
            None => ResponseFuture::passed(self.inner.call(req)),
        }
    }
}

/// Nothing is reserved, so a clone has nothing to start with.
impl<S: Clone, W: Clone> Clone for Grpc<S, W> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.state.clone(), self.along.clone())
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService, W> tonic::server::NamedService for Grpc<S, W> {
    const NAME: &'static str = S::NAME;
}
