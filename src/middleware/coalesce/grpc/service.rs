use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::body::GrpcBody;
use super::collect::Collect;
use super::gather::Gather;
use super::key::GrpcKey;
use super::options::Options;
use super::share::GrpcShare;
use crate::base::clock;
use crate::base::deadline::{Deadline, GRPC_TIMEOUT};
use crate::base::error::BoxError;
use crate::middleware::coalesce::future::ResponseFuture;
use crate::middleware::coalesce::service::Coalesce;

type Inner<S> = Coalesce<Gather<S>, GrpcKey, GrpcShare>;

/// A gRPC service whose equal unary calls become one; see [`GrpcCoalesceLayer`](super::GrpcCoalesceLayer).
pub struct GrpcCoalesce<S> {
    inner: Inner<S>,
    options: Arc<Options>,
}

pin_project! {
    /// The response future of [`GrpcCoalesce`].
    ///
    /// It reads the request, then joins a flight. When it is dropped while it reads, nothing was sent.
    #[must_use = "futures do nothing unless polled"]
    pub struct GrpcResponseFuture<S, B, R>
    where
        S: Service<Request<GrpcBody<B>>, Response = Response<R>>,
        B: Body,
        R: Body,
    {
        #[pin]
        state: State<S, B, R>,
    }
}

pin_project! {
    #[project = StateProjected]
    enum State<S, B, R>
    where
        S: Service<Request<GrpcBody<B>>, Response = Response<R>>,
        B: Body,
        R: Body,
    {
        Reading { call: Option<(Inner<S>, Parts)>, collect: Collect<B>, waited: bool },
        Called { #[pin] future: ResponseFuture<Gather<S>, GrpcKey, GrpcShare, Request<GrpcBody<B>>> },
    }
}

// ===== impl GrpcCoalesce =====

impl<S> GrpcCoalesce<S> {
    pub(super) fn new(inner: Inner<S>, options: Arc<Options>) -> Self {
        Self { inner, options }
    }

    /// The wrapped service.
    pub fn get_ref(&self) -> &S {
        self.inner.get_ref().get_ref()
    }

    /// The wrapped service.
    pub fn into_inner(self) -> S {
        self.inner.into_inner().into_inner()
    }
}

impl<S, B, R> Service<Request<B>> for GrpcCoalesce<S>
where
    S: Service<Request<GrpcBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    B: Body + Send + 'static,
    B::Error: Send,
    R: Body + Send + 'static,
    R::Error: Send,
{
    type Response = Response<GrpcBody<R>>;
    type Error = BoxError;
    type Future = GrpcResponseFuture<S, B, R>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::<Request<GrpcBody<B>>>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, req: Request<B>) -> Self::Future {
        // What was reserved goes with the call: kept here, it might be what the call waits for.
        let next = self.inner.clone();
        let service = mem::replace(&mut self.inner, next);
        let state = match self.options.look(&req) {
            None => State::Called {
                future: service.start(req.map(GrpcBody::passed)),
            },
            Some(_) => {
                let (head, body) = req.into_parts();
                State::Reading {
                    call: Some((service, head)),
                    collect: Collect::new(body, self.options.max_key_bytes),
                    waited: false,
                }
            }
        };
        GrpcResponseFuture { state }
    }
}

/// A clone shares the flights, and starts with nothing reserved.
impl<S: Clone> Clone for GrpcCoalesce<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            options: self.options.clone(),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for GrpcCoalesce<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcCoalesce")
            .field("inner", self.get_ref())
            .finish_non_exhaustive()
    }
}

// ===== impl GrpcResponseFuture =====

impl<S, B, R> Future for GrpcResponseFuture<S, B, R>
where
    S: Service<Request<GrpcBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    B: Body + Send + 'static,
    B::Error: Send,
    R: Body + Send + 'static,
    R::Error: Send,
{
    type Output = Result<Response<GrpcBody<R>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProjected::Reading {
                    call,
                    collect,
                    waited,
                } => {
                    let body = match Pin::new(collect).poll(cx) {
                        Poll::Ready(body) => body,
                        Poll::Pending => {
                            if let (false, Some((_, head))) = (mem::replace(waited, true), call) {
                                keep_deadline(head);
                            }
                            return Poll::Pending;
                        }
                    };
                    let (service, head) = call.take().expect("a request is read once");
                    let future = service.start(Request::from_parts(head, body));
                    state.set(State::Called { future });
                }
                StateProjected::Called { future } => return future.poll(cx),
            }
        }
    }
}

/// A timeout runs from when its call came, not from when the request was read.
fn keep_deadline(head: &mut Parts) {
    let Some(asked) = head.headers.get(GRPC_TIMEOUT) else {
        return;
    };
    if let Some(deadline) = Deadline::asked(&head.extensions, Some(asked), clock::now(), None) {
        head.extensions.insert(deadline);
    }
}

impl<S, B, R> fmt::Debug for GrpcResponseFuture<S, B, R>
where
    S: Service<Request<GrpcBody<B>>, Response = Response<R>>,
    B: Body,
    R: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcResponseFuture").finish_non_exhaustive()
    }
}
