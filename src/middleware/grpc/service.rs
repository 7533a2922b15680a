use std::fmt::Display;
use std::task::{Context, Poll};

use http_body::Body;
use tower_service::Service;

use super::call::{Call, Messages};
use super::state::State;
use crate::base::body::{ObservedBody, ObservedFuture};
use crate::base::stats::Lease;

/// The request body the inner service gets: its messages are counted as they pass.
pub type RequestBody<B> = ObservedBody<B, Messages>;
/// The response body the caller gets: the call ends where it ends.
pub type ResponseBody<B> = ObservedBody<B, Call>;
/// The response future of [`Grpc`].
pub type ResponseFuture<F> = ObservedFuture<F, Call>;

/// A gRPC service or client whose calls are counted; see [the module](crate::grpc).
#[derive(Debug)]
pub struct Grpc<S> {
    inner: S,
    state: Lease<State>,
}

impl<S> Grpc<S> {
    pub(super) fn new(inner: S, state: Lease<State>) -> Self {
        Self { inner, state }
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

impl<S, B, ResBody> Service<http::Request<B>> for Grpc<S>
where
    S: Service<http::Request<RequestBody<B>>, Response = http::Response<ResBody>>,
    S::Error: Display + 'static,
    B: Body,
    ResBody: Body,
{
    type Response = http::Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: http::Request<B>) -> Self::Future {
        match Call::start(&self.state, &req) {
            Some((call, messages)) => {
                let req = req.map(|body| RequestBody::observed(body, messages));
                // The call is in a future, and so ends, before any foreign code runs.
                ResponseFuture::start(call, || self.inner.call(req))
            }
            None => {
                self.state.foreign();
                ResponseFuture::passed(self.inner.call(req.map(RequestBody::passed)))
            }
        }
    }
}

/// Nothing is reserved, so a clone has nothing to start with.
impl<S: Clone> Clone for Grpc<S> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.state.clone())
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for Grpc<S> {
    const NAME: &'static str = S::NAME;
}
