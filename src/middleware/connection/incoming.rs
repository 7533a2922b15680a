use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::io::Tracked;
use super::list::Connections;

pin_project! {
    /// A stream of accepted connections that are counted; made by [`Connections::incoming`].
    #[derive(Debug)]
    pub struct Incoming<S> {
        #[pin]
        inner: S,
        connections: Connections,
    }
}

impl<S> Incoming<S> {
    pub(super) fn new(inner: S, connections: Connections) -> Self {
        Self { inner, connections }
    }
}

impl<S, IO, E> Stream for Incoming<S>
where
    S: Stream<Item = Result<IO, E>>,
    IO: Peer,
{
    type Item = Result<Tracked<IO>, E>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let accepted = ready!(this.inner.poll_next(cx));
        Poll::Ready(accepted.map(|accepted| match accepted {
            Ok(io) => {
                let peer = io.peer();
                Ok(this.connections.accept_from(io, peer))
            }
            Err(error) => {
                this.connections.accept_failed();
                Err(error)
            }
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

/// Knows who is at the other end.
pub trait Peer {
    /// The other end's address; empty when there is none.
    fn peer(&self) -> String;
}

#[cfg(feature = "tonic")]
impl<IO: tonic::transport::server::Connected> Peer for IO {
    fn peer(&self) -> String {
        use std::any::Any;
        use tonic::transport::server::TcpConnectInfo;
        let info = self.connect_info();
        let tcp = (&info as &dyn Any).downcast_ref::<TcpConnectInfo>();
        tcp.and_then(TcpConnectInfo::remote_addr)
            .map(|peer| peer.to_string())
            .unwrap_or_default()
    }
}

#[cfg(not(feature = "tonic"))]
impl<IO> Peer for IO {
    fn peer(&self) -> String {
        String::new()
    }
}
