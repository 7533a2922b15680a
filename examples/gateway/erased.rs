//! Any number of layers round the upstreams as one type.

use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tower_flow::BoxError;

use crate::upload::Upload;

/// The bodies of all answers.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

pub(crate) type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

/// What sends a request on. It takes nothing before it has one, so it needs no readiness.
pub(crate) trait Forward: Send + Sync {
    fn forward(&self, req: Request<Upload>) -> Answering;
}

/// Clones are the same: no layer has anything that is one clone's.
#[derive(Clone)]
pub(crate) struct Stack(Arc<dyn Forward>);

/// A service with whatever a layer makes of bodies and errors.
struct Layered<S>(S);

pin_project! {
    /// The answer of a layer, as that of the stack.
    struct Answer<F> {
        #[pin]
        inner: F,
    }
}

impl Stack {
    pub(crate) fn of(sends: impl Forward + 'static) -> Self {
        Self(Arc::new(sends))
    }

    pub(crate) fn new<S, B>(service: S) -> Self
    where
        S: Service<Request<Upload>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self::of(Layered(service))
    }

    /// This in `layer`.
    pub(crate) fn within<L, B>(self, layer: L) -> Self
    where
        L: Layer<Self>,
        L::Service: Service<Request<Upload>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self::new(layer.layer(self))
    }

    pub(crate) fn send(&self, req: Request<Upload>) -> Answering {
        self.0.forward(req)
    }
}

impl Service<Request<Upload>> for Stack {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<Upload>) -> Answering {
        self.0.forward(req)
    }
}

impl<S, B> Forward for Layered<S>
where
    S: Service<Request<Upload>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    fn forward(&self, req: Request<Upload>) -> Answering {
        let mut service = self.0.clone();
        // As a rule they are ready at once, and the request need not be kept until then.
        let mut cx = Context::from_waker(Waker::noop());
        match service.poll_ready(&mut cx) {
            Poll::Ready(Ok(())) => Box::pin(Answer {
                inner: service.call(req),
            }),
            Poll::Ready(Err(error)) => Box::pin(ready(Err(error.into()))),
            Poll::Pending => Box::pin(async move {
                poll_fn(|cx| service.poll_ready(cx))
                    .await
                    .map_err(Into::into)?;
                let inner = service.call(req);
                Answer { inner }.await
            }),
        }
    }
}

impl<F, B, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    E: Into<BoxError>,
{
    type Output = Result<Response<Body>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answered = task::ready!(self.project().inner.poll(cx));
        let whole =
            |response: Response<B>| response.map(|body| body.map_err(Into::into).boxed_unsync());
        Poll::Ready(answered.map(whole).map_err(Into::into))
    }
}
