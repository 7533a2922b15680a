use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::base::error::BoxError;
use crate::middleware::batch::request::Batch;

pin_project! {
    /// The response future of [`Destinations`](super::Destinations): waits until the destination is ready, then for its
    /// answer.
    #[must_use = "futures do nothing unless polled"]
    pub struct DestinationFuture<S, Req>
    where
        S: Service<Batch<Req>>,
    {
        #[pin]
        state: State<S, Req>,
    }
}

pin_project! {
    #[project = StateProjected]
    enum State<S, Req>
    where
        S: Service<Batch<Req>>,
    {
        Failed { error: Option<BoxError> },
        Waiting { service: S, batch: Option<Batch<Req>> },
        Called { #[pin] future: S::Future },
    }
}

// ===== impl DestinationFuture =====

impl<S, Req> DestinationFuture<S, Req>
where
    S: Service<Batch<Req>>,
{
    pub(super) fn new(service: S, batch: Batch<Req>) -> Self {
        let batch = Some(batch);
        Self {
            state: State::Waiting { service, batch },
        }
    }

    pub(super) fn failed(error: BoxError) -> Self {
        let error = Some(error);
        Self {
            state: State::Failed { error },
        }
    }
}

impl<S, Req> Future for DestinationFuture<S, Req>
where
    S: Service<Batch<Req>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ONCE: &str = "a future is not polled after it is done";
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProjected::Failed { error } => {
                    return Poll::Ready(Err(error.take().expect(ONCE)));
                }
                StateProjected::Waiting { service, batch } => {
                    ready!(service.poll_ready(cx)).map_err(Into::into)?;
                    let future = service.call(batch.take().expect(ONCE));
                    state.set(State::Called { future });
                }
                StateProjected::Called { future } => return future.poll(cx).map_err(Into::into),
            }
        }
    }
}

impl<S, Req> fmt::Debug for DestinationFuture<S, Req>
where
    S: Service<Batch<Req>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DestinationFuture").finish_non_exhaustive()
    }
}
