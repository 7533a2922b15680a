//! A service whose requests are watched: what an HTTP layer is when it changes nothing.
//!
//! A [`Watch`] makes an [`Observe`]r for each request; [`Watched`] drives it. Two watches make one, so layers that sit
//! next to each other can share a wrapper, and with it every reading of the clock: see
//! [`GrpcLayer::along`](crate::grpc::GrpcLayer::along).

use std::fmt::Display;
use std::task::{Context, Poll};

use http_body::Body;
use tower_service::Service;

use super::body::{Observe, ObservedBody, ObservedFuture};
use super::clock::Moment;

/// Watches the requests of one service. A clone belongs to a clone of the service: it has seen nothing yet.
pub trait Watch<B>: Clone {
    /// What watches one request.
    type Observer: Observe;

    /// The service was asked whether it is ready, and was or was not.
    fn polled(&mut self, ready: bool) {
        let _ = ready;
    }

    /// A request is about to be sent.
    fn start(&mut self, req: &mut http::Request<B>, at: &Moment) -> Self::Observer;
}

/// A layer that makes watches.
pub trait MakeWatch {
    /// What it makes.
    type Watch;

    /// Makes one.
    fn watch(&self) -> Self::Watch;
}

/// A service whose requests are watched.
#[derive(Debug, Clone)]
pub struct Watched<S, W> {
    inner: S,
    watch: W,
}

impl<S, W> Watched<S, W> {
    /// Watches the requests of `inner`.
    pub fn new(inner: S, watch: W) -> Self {
        Self { inner, watch }
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

impl<S, W, B, ResBody> Service<http::Request<B>> for Watched<S, W>
where
    S: Service<http::Request<B>, Response = http::Response<ResBody>>,
    S::Error: Display + 'static,
    W: Watch<B>,
    ResBody: Body,
{
    type Response = http::Response<ObservedBody<ResBody, W::Observer>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future, W::Observer>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let polled = self.inner.poll_ready(cx);
        self.watch.polled(polled.is_ready());
        polled
    }

    #[inline]
    fn call(&mut self, mut req: http::Request<B>) -> Self::Future {
        #[cfg(feature = "metrics")]
        let _chain = super::cost::Chain::begin();
        let observer = self.watch.start(&mut req, &Moment::new());
        // The observer is in a guard, and so ends, before any foreign code runs.
        ObservedFuture::start(observer, || self.inner.call(req))
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService, W> tonic::server::NamedService for Watched<S, W> {
    const NAME: &'static str = S::NAME;
}

/// Watches nothing.
impl<B> Watch<B> for () {
    type Observer = ();

    fn start(&mut self, _: &mut http::Request<B>, _: &Moment) {}
}

impl MakeWatch for () {
    type Watch = ();

    fn watch(&self) {}
}
