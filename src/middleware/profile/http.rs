use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::call::Call;
use super::layer::ProfileLayer;
use super::stage::Stage;
use super::state::State;
use crate::base::cost::{self, Toll};
use crate::base::outcome::GRPC_STATUS;
use crate::base::route::{OneRoute, Route};
use crate::base::stats::Lease;

/// Measures how long polls of an HTTP service and its response bodies take; see [the module](crate::profile).
#[derive(Debug, Clone)]
pub struct HttpProfileLayer<R = OneRoute>(ProfileLayer<R>);

/// An HTTP service whose polls are measured; see [the module](crate::profile).
#[derive(Debug)]
pub struct HttpProfiled<S, R = OneRoute> {
    inner: S,
    route: R,
    state: Lease<State>,
}

pin_project! {
    /// The response future of [`HttpProfiled`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct HttpResponseFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
        toll: Toll,
    }
}

pin_project! {
    /// A response body whose polls are measured; otherwise it is the inner one.
    #[derive(Debug)]
    pub struct ProfiledBody<B> {
        #[pin]
        inner: B,
        call: Call,
        toll: Toll,
    }
}

// ===== impl HttpProfileLayer =====

impl<R> HttpProfileLayer<R> {
    pub(super) fn new(layer: ProfileLayer<R>) -> Self {
        Self(layer)
    }
}

impl<S, R: Clone> Layer<S> for HttpProfileLayer<R> {
    type Service = HttpProfiled<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        HttpProfiled {
            inner,
            route: self.0.route().clone(),
            state: Lease::new(self.0.state().clone()),
        }
    }
}

// ===== impl HttpProfiled =====

impl<S, R> HttpProfiled<S, R> {
    /// The wrapped service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, R, B, ResBody> Service<http::Request<B>> for HttpProfiled<S, R>
where
    S: Service<http::Request<B>, Response = http::Response<ResBody>>,
    R: Route<http::Request<B>>,
{
    type Response = http::Response<ProfiledBody<ResBody>>;
    type Error = S::Error;
    type Future = HttpResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: http::Request<B>) -> Self::Future {
        let toll = self.state.cost.call();
        let _own = toll.own();
        let call = Call::start(&self.state, || self.route.of(&req));
        let inner = call.run(Stage::Call, || cost::inner(|| self.inner.call(req)));
        HttpResponseFuture {
            inner,
            call: Some(call),
            toll,
        }
    }
}

/// A clone shares the numbers and holds nothing.
impl<S: Clone, R: Clone> Clone for HttpProfiled<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            route: self.route.clone(),
            state: self.state.clone(),
        }
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService, R> tonic::server::NamedService for HttpProfiled<S, R> {
    const NAME: &'static str = S::NAME;
}

impl<F, B, E> Future for HttpResponseFuture<F>
where
    F: Future<Output = Result<http::Response<B>, E>>,
{
    type Output = Result<http::Response<ProfiledBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _own = this.toll.own();
        let call = this
            .call
            .as_mut()
            .expect("a future is not polled after its end");
        let inner = |cx: &mut Context<'_>| cost::inner(|| this.inner.poll(cx));
        let result = ready!(call.poll(cx, inner));
        let mut call = this.call.take().expect("it was there for the poll");
        Poll::Ready(result.map(|response| {
            if is_served(&response) {
                call.served();
            }
            let toll = std::mem::take(this.toll);
            response.map(|inner| ProfiledBody { inner, call, toll })
        }))
    }
}

/// Whether somebody serves this path: a scanner's requests end in 404, or in a gRPC status without a message.
fn is_served<B>(response: &http::Response<B>) -> bool {
    let status = response.headers().get(GRPC_STATUS);
    (response.status().is_success() || response.status().is_redirection())
        && status.is_none_or(|status| status == "0")
}

// ===== impl ProfiledBody =====

impl<B> ProfiledBody<B> {
    /// The wrapped body.
    pub fn get_ref(&self) -> &B {
        &self.inner
    }
}

impl<B: Body> Body for ProfiledBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let _own = this.toll.own();
        let inner = || cost::inner(|| this.inner.poll_frame(cx));
        this.call.run(Stage::Body, inner)
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Default> Default for ProfiledBody<B> {
    fn default() -> Self {
        Self {
            inner: B::default(),
            call: Call::default(),
            toll: Toll::default(),
        }
    }
}
