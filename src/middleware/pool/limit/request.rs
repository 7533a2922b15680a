use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response, Uri};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::acquire::Acquire;
use super::handle::LimitHandle;
use super::permit::Permit;
use super::state::{Options, State, What};
use crate::base::body::{End, Observe, ObservedBody};
use crate::base::clock::Moment;
use crate::base::cost::{self, Toll};
use crate::base::error::BoxError;
use crate::base::flow::Flow;
use crate::base::stats::Lease;

/// Limits the requests of an HTTP client, each until its response's body ends; see [the module](crate::pool::limit).
///
/// It is a layer, and [`acquire`](Self::acquire) is for clients no layer fits. All of these share one limit.
#[derive(Debug, Clone)]
pub struct RequestLimit(Options);

/// An HTTP client whose requests are limited; see [the module](crate::pool::limit).
#[derive(Debug)]
pub struct LimitedRequests<S> {
    inner: S,
    state: Lease<State>,
}

/// A request's place within a [`RequestLimit`]. Dropped, it is free for the next.
#[derive(Debug)]
pub struct RequestPermit {
    _permit: Permit,
}

pin_project! {
    /// The response future of [`LimitedRequests`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        stage: Stage<S, Request<B>, S::Future>,
        permit: Option<RequestPermit>,
        toll: Toll,
    }
}

pin_project! {
    #[project = StageProject]
    enum Stage<S, Req, F> {
        Waits { acquire: Acquire, parked: Option<(S, Req)> },
        /// It has a permit and waits until the inner service is ready.
        Granted { parked: Option<(S, Req)> },
        Runs { #[pin] inner: F },
        Over,
    }
}

// ===== impl RequestLimit =====

impl RequestLimit {
    /// At most `max` requests in all, 64 of them to one host.
    ///
    /// # Panics
    ///
    /// When `max` is 0, which would let nothing through.
    pub fn new(max: usize) -> Self {
        Self::default().max_requests(max)
    }

    /// `default` (default), or `name`: what it is called in snapshots and metrics.
    #[must_use]
    pub fn name(self, name: impl Into<Arc<str>>) -> Self {
        Self(self.0.set(|settings| settings.name = name.into()))
    }

    /// 512 requests in all (default), or `max`.
    ///
    /// # Panics
    ///
    /// When `max` is 0, which would let nothing through.
    #[must_use]
    pub fn max_requests(self, max: usize) -> Self {
        Self(
            self.0
                .set_least("max_requests", max, |limits, max| limits.total = max),
        )
    }

    /// 64 requests to one host (default), or `max`. A host is a scheme, a name and a port.
    ///
    /// # Panics
    ///
    /// When `max` is 0, which would let nothing through.
    #[must_use]
    pub fn max_requests_per_host(self, max: usize) -> Self {
        let set = self
            .0
            .set_least("max_requests_per_host", max, |limits, max| {
                limits.per_host = max;
            });
        Self(set)
    }

    /// Five seconds (default), or `timeout`, at most a year: how long a request waits for its turn.
    #[must_use]
    pub fn acquire_timeout(self, timeout: Duration) -> Self {
        Self(self.0.set_timeout(timeout))
    }

    /// 1024 (default), or `max`: how many requests to one host may wait. With 0 none waits.
    #[must_use]
    pub fn max_pending_per_host(self, max: usize) -> Self {
        Self(
            self.0
                .set(|settings| settings.limits.pending_per_host = max),
        )
    }

    /// Shows it in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.handle());
        self
    }

    /// The handle that reads and tunes it. Set options first.
    pub fn handle(&self) -> LimitHandle {
        LimitHandle::new(self.0.state())
    }

    /// Waits for a place for a request to `uri`. Dropping the future gives everything back.
    ///
    /// # Errors
    ///
    /// A [`Rejection`](crate::Rejection), when too many wait, it waited too long, or the limit is closed.
    pub async fn acquire(&self, uri: &Uri) -> Result<RequestPermit, BoxError> {
        let mut acquire = State::enter(&self.0.state(), uri);
        let permit = std::future::poll_fn(|cx| acquire.poll(cx, uri)).await?;
        Ok(RequestPermit { _permit: permit })
    }
}

impl Default for RequestLimit {
    fn default() -> Self {
        Self(Options::new(What::Requests, "default".into()))
    }
}

impl<S> Layer<S> for RequestLimit {
    type Service = LimitedRequests<S>;

    fn layer(&self, inner: S) -> LimitedRequests<S> {
        LimitedRequests {
            inner,
            state: self.0.state(),
        }
    }
}

// ===== impl LimitedRequests =====

impl<S> LimitedRequests<S> {
    /// The wrapped service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B, ResBody> Service<Request<B>> for LimitedRequests<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    ResBody: Body,
{
    type Response = Response<ObservedBody<ResBody, RequestPermit>>;
    type Error = BoxError;
    type Future = ResponseFuture<S, B>;

    /// Always ready: whether a request may go is decided in [`call`](Self::call), where its host is known. The inner
    /// service's readiness is awaited in the future, on a clone.
    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, req: Request<B>) -> Self::Future {
        let toll = self.state.cost.call();
        let _own = toll.own();
        ResponseFuture {
            toll,
            stage: Stage::Waits {
                acquire: State::enter(&self.state, req.uri()),
                parked: Some((cost::inner(|| self.inner.clone()), req)),
            },
            permit: None,
        }
    }
}

/// A clone holds nothing: permits belong to requests, and the count of them to the limit.
impl<S: Clone> Clone for LimitedRequests<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            state: self.state.clone(),
        }
    }
}

// ===== impl RequestPermit =====

impl RequestPermit {
    /// Holds the permit until the body of `response` ends, fails, or is dropped.
    pub fn hold<B: Body>(self, response: Response<B>) -> Response<ObservedBody<B, Self>> {
        if response.body().is_end_stream() {
            return response.map(ObservedBody::passed);
        }
        response.map(|body| ObservedBody::observed(body, self))
    }
}

/// Ends with what it observes.
impl Observe for RequestPermit {
    fn end<E: Display + 'static>(self, _: End<'_, E>, _: &Moment) {}
}

// ===== impl ResponseFuture =====

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    S::Error: Into<BoxError>,
    ResBody: Body,
{
    type Output = Result<Response<ObservedBody<ResBody, RequestPermit>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let _own = this.toll.own();
        loop {
            let next = match this.stage.as_mut().project() {
                StageProject::Waits { acquire, parked } => {
                    let (_, req) = parked.as_ref().expect("a request is parked while it waits");
                    match ready!(acquire.poll(cx, req.uri())) {
                        Ok(permit) => *this.permit = Some(RequestPermit { _permit: permit }),
                        Err(rejection) => {
                            this.stage.set(Stage::Over);
                            return Poll::Ready(Err(rejection.into()));
                        }
                    }
                    let parked = parked.take();
                    Stage::Granted { parked }
                }
                StageProject::Granted { parked } => {
                    let (inner, _) = parked.as_mut().expect("a request is parked until it runs");
                    // Out of the future while foreign code runs: should that panic, it ends in the unwinding.
                    let permit = this.permit.take();
                    let started = cost::inner(|| inner.poll_ready(cx)).map_ok(|()| {
                        let (mut inner, req) = parked.take().expect("it was there");
                        cost::inner(|| inner.call(req))
                    });
                    match started {
                        Poll::Pending => {
                            *this.permit = permit;
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(inner)) => {
                            *this.permit = permit;
                            Stage::Runs { inner }
                        }
                        Poll::Ready(Err(error)) => {
                            this.stage.set(Stage::Over);
                            return Poll::Ready(Err(error.into()));
                        }
                    }
                }
                StageProject::Runs { inner } => {
                    let permit = this.permit.take();
                    let Poll::Ready(result) = cost::inner(|| inner.poll(cx)) else {
                        *this.permit = permit;
                        return Poll::Pending;
                    };
                    this.stage.set(Stage::Over);
                    let permit = permit.expect("a request that runs has a permit");
                    return Poll::Ready(match result {
                        Ok(response) => Ok(permit.hold(response)),
                        Err(error) => Err(error.into()),
                    });
                }
                StageProject::Over => panic!("pool: the future was polled after it was done"),
            };
            this.stage.set(next);
        }
    }
}

impl<S: Service<Request<B>>, B> std::fmt::Debug for ResponseFuture<S, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stage = match &self.stage {
            Stage::Waits { .. } => "waits",
            Stage::Granted { .. } => "granted",
            Stage::Runs { .. } => "runs",
            Stage::Over => "over",
        };
        f.debug_struct("ResponseFuture")
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}
