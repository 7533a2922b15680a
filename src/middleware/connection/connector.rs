use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Uri;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::io::Tracked;
use super::list::Shared;

/// Counts the connections a connector makes; made by [`Connections::connector`](super::Connections::connector).
#[derive(Debug, Clone)]
pub struct ConnectorLayer(Arc<Shared>);

/// A connector whose connections are counted.
#[derive(Debug, Clone)]
pub struct Connector<C> {
    inner: C,
    shared: Arc<Shared>,
}

pin_project! {
    /// The future of a [`Connector`]: a dial.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ConnectorFuture<F> {
        #[pin]
        inner: F,
        dial: Dial,
    }
}

/// A dial under way. It has failed unless it was taken for a success.
#[derive(Debug)]
struct Dial {
    shared: Arc<Shared>,
    peer: Option<String>,
}

impl ConnectorLayer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl<C> Layer<C> for ConnectorLayer {
    type Service = Connector<C>;

    fn layer(&self, inner: C) -> Connector<C> {
        Connector {
            inner,
            shared: self.0.clone(),
        }
    }
}

impl<C: Service<Uri>> Service<Uri> for Connector<C> {
    type Response = Tracked<C::Response>;
    type Error = C::Error;
    type Future = ConnectorFuture<C::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let peer = to.authority().map(ToString::to_string).unwrap_or_default();
        let dial = Dial {
            shared: self.shared.clone(),
            peer: Some(peer),
        };
        ConnectorFuture {
            inner: self.inner.call(to),
            dial,
        }
    }
}

impl<F, IO, E> Future for ConnectorFuture<F>
where
    F: Future<Output = Result<IO, E>>,
{
    type Output = Result<Tracked<IO>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        Poll::Ready(match result {
            Ok(io) => {
                let peer = this.dial.peer.take().unwrap_or_default();
                Ok(Tracked::new(io, this.dial.shared.open(peer)))
            }
            Err(error) => {
                this.dial.fail();
                Err(error)
            }
        })
    }
}

impl Dial {
    fn fail(&mut self) {
        if self.peer.take().is_some() {
            self.shared.failed();
        }
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        self.fail();
    }
}
