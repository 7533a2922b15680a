use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::response::Parts;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::body::GrpcBody;
use super::collect::Collect;

/// Collects the responses of calls whose requests were collected, up to `max` bytes: inside the flight, which so is over
/// when the trailers have said how.
#[derive(Debug, Clone)]
pub(super) struct Gather<S> {
    inner: S,
    max: usize,
}

pin_project! {
    /// The future of [`Gather`].
    pub(super) struct GatherFuture<F, B>
    where
        B: Body,
    {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProjected]
    enum State<F, B>
    where
        B: Body,
    {
        Calling { #[pin] future: F, max: Option<usize> },
        Reading { head: Option<Parts>, collect: Collect<B> },
    }
}

// ===== impl Gather =====

impl<S> Gather<S> {
    pub(super) fn new(inner: S, max: usize) -> Self {
        Self { inner, max }
    }

    pub(super) fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(super) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B, R> Service<Request<GrpcBody<B>>> for Gather<S>
where
    S: Service<Request<GrpcBody<B>>, Response = Response<R>>,
    B: Body,
    R: Body,
{
    type Response = Response<GrpcBody<R>>;
    type Error = S::Error;
    type Future = GatherFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, req: Request<GrpcBody<B>>) -> Self::Future {
        // Others may stream, and are not looked at.
        let max = req.body().as_whole().map(|_| self.max);
        let future = self.inner.call(req);
        GatherFuture {
            state: State::Calling { future, max },
        }
    }
}

// ===== impl GatherFuture =====

impl<F, B, E> Future for GatherFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<GrpcBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProjected::Calling { future, max } => {
                    let response = ready!(future.poll(cx))?;
                    let Some(max) = *max else {
                        return Poll::Ready(Ok(response.map(GrpcBody::passed)));
                    };
                    let (head, body) = response.into_parts();
                    state.set(State::Reading {
                        head: Some(head),
                        collect: Collect::new(body, max),
                    });
                }
                StateProjected::Reading { head, collect } => {
                    let body = ready!(Pin::new(collect).poll(cx));
                    let head = head
                        .take()
                        .expect("a future is not polled after it is done");
                    return Poll::Ready(Ok(Response::from_parts(head, body)));
                }
            }
        }
    }
}
