//! TCP and TLS, and who speaks HTTP/2 without having negotiated it.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::Authority;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use pin_project_lite::pin_project;
use tower::Service;
use tower_flow::BoxError;
use tower_flow::pool::connect::Https;

/// Connections to the hosts it is told of count as such that negotiated HTTP/2.
#[derive(Clone)]
pub(crate) struct Connector {
    inner: Https,
    h2c: Arc<HashSet<Authority>>,
}

pin_project! {
    pub(crate) struct Socket<IO> {
        #[pin]
        io: IO,
        h2c: bool,
    }
}

impl Connector {
    pub(crate) fn new(inner: Https, h2c: HashSet<Authority>) -> Self {
        Self {
            inner,
            h2c: Arc::new(h2c),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = Socket<<Https as Service<Uri>>::Response>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let known = |authority| self.h2c.contains(authority);
        let h2c = uri.authority().is_some_and(known);
        let connecting = self.inner.call(uri);
        Box::pin(async move {
            Ok(Socket {
                io: connecting.await?,
                h2c,
            })
        })
    }
}

impl<IO: Connection> Connection for Socket<IO> {
    fn connected(&self) -> Connected {
        let connected = self.io.connected();
        match self.h2c {
            true => connected.negotiated_h2(),
            false => connected,
        }
    }
}

impl<IO: Read> Read for Socket<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buf)
    }
}

impl<IO: Write> Write for Socket<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }
}
