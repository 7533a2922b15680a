use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConnection;

/// The IO of a connection, encrypted or not.
pub struct TlsIo<IO>(Inner<IO>);

/// rustls knows tokio's traits, the connections at both ends know hyper's.
type Encrypted<IO> = TokioIo<TlsStream<TokioIo<IO>>>;

enum Inner<IO> {
    Plain(IO),
    /// In a box, as it is a kilobyte that plain connections have no use for.
    Tls(Box<Encrypted<IO>>),
}

impl<IO> TlsIo<IO> {
    pub(super) fn plain(io: IO) -> Self {
        Self(Inner::Plain(io))
    }

    pub(super) fn tls(stream: TlsStream<TokioIo<IO>>) -> Self {
        Self(Inner::Tls(Box::new(TokioIo::new(stream))))
    }

    /// The TLS session: its version, protocol, certificates, whether it was resumed. `None` for plain `http`.
    pub fn session(&self) -> Option<&ClientConnection> {
        match &self.0 {
            Inner::Plain(_) => None,
            Inner::Tls(io) => Some(io.inner().get_ref().1),
        }
    }

    /// The wrapped IO.
    pub fn get_ref(&self) -> &IO {
        match &self.0 {
            Inner::Plain(io) => io,
            Inner::Tls(io) => io.inner().get_ref().0.inner(),
        }
    }

    pub(super) fn is_h2(&self) -> bool {
        self.session()
            .is_some_and(|session| session.alpn_protocol() == Some(b"h2"))
    }
}

/// What the inner IO says, and whether HTTP/2 was agreed upon.
impl<IO: Connection> Connection for TlsIo<IO> {
    fn connected(&self) -> Connected {
        let connected = self.get_ref().connected();
        if self.is_h2() {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl<IO: Read + Write + Unpin> Read for TlsIo<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Inner::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Inner::Tls(io) => Pin::new(&mut **io).poll_read(cx, buf),
        }
    }
}

impl<IO: Read + Write + Unpin> Write for TlsIo<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Inner::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Inner::Tls(io) => Pin::new(&mut **io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Inner::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Inner::Tls(io) => Pin::new(&mut **io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Inner::Plain(io) => io.is_write_vectored(),
            Inner::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Inner::Plain(io) => Pin::new(io).poll_flush(cx),
            Inner::Tls(io) => Pin::new(&mut **io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Inner::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Inner::Tls(io) => Pin::new(&mut **io).poll_shutdown(cx),
        }
    }
}

impl<IO: fmt::Debug> fmt::Debug for TlsIo<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIo")
            .field("inner", self.get_ref())
            .field("encrypted", &self.session().is_some())
            .finish()
    }
}
