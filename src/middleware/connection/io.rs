use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::facts::Connection;
use super::list::Open;

pin_project! {
    /// The IO of a connection that is on a list; it leaves the list when this is dropped.
    ///
    /// It reads and writes as tokio's traits ask, and with feature `hyper` as hyper's do, whichever the inner IO knows.
    #[derive(Debug)]
    pub struct Tracked<IO> {
        #[pin]
        inner: IO,
        open: Open,
    }
}

impl<IO> Tracked<IO> {
    pub(super) fn new(inner: IO, open: Open) -> Self {
        Self { inner, open }
    }

    /// The connection this is the IO of.
    pub fn connection(&self) -> &Connection {
        &self.open.connection
    }

    /// The wrapped IO.
    pub fn get_ref(&self) -> &IO {
        &self.inner
    }
}

fn count(polled: &Poll<io::Result<usize>>, note: impl FnOnce(u64)) {
    if let Poll::Ready(Ok(bytes @ 1..)) = polled {
        note(*bytes as u64);
    }
}

impl<IO: AsyncRead> AsyncRead for Tracked<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        let polled = this.inner.poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before);
        if read > 0 {
            this.open.connection.read(read as u64);
        }
        polled
    }
}

impl<IO: AsyncWrite> AsyncWrite for Tracked<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let polled = this.inner.poll_write(cx, buf);
        count(&polled, |bytes| this.open.connection.written(bytes));
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let polled = this.inner.poll_write_vectored(cx, bufs);
        count(&polled, |bytes| this.open.connection.written(bytes));
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(cx)
    }
}

#[cfg(feature = "hyper")]
mod hyper_io {
    use std::mem::MaybeUninit;

    use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
    use hyper_util::client::legacy::connect::{Connected, Connection as Connects};

    use super::*;

    impl<IO: Read> Read for Tracked<IO> {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            mut buf: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            let this = self.project();
            // Only unsafe code can tell how far somebody else moved a cursor, so the bytes are read beside it and
            // copied. They are copied again and again on their way; this once costs nothing next to the system call.
            let mut bytes = [MaybeUninit::uninit(); 16 * 1024];
            let room = buf.remaining().min(bytes.len());
            let mut through = ReadBuf::uninit(&mut bytes[..room]);
            let polled = this.inner.poll_read(cx, through.unfilled());
            let read = through.filled().len();
            if read > 0 {
                buf.put_slice(through.filled());
                this.open.connection.read(read as u64);
            }
            polled
        }
    }

    impl<IO: Write> Write for Tracked<IO> {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.project();
            let polled = this.inner.poll_write(cx, buf);
            count(&polled, |bytes| this.open.connection.written(bytes));
            polled
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let this = self.project();
            let polled = this.inner.poll_write_vectored(cx, bufs);
            count(&polled, |bytes| this.open.connection.written(bytes));
            polled
        }

        fn is_write_vectored(&self) -> bool {
            self.inner.is_write_vectored()
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.project().inner.poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.project().inner.poll_shutdown(cx)
        }
    }

    /// Responses carry the [`Connection`] in their extensions.
    impl<IO: Connects> Connects for Tracked<IO> {
        fn connected(&self) -> Connected {
            self.inner.connected().extra(self.connection().clone())
        }
    }
}

#[cfg(feature = "tonic")]
mod tonic_io {
    use std::fmt;
    use std::sync::Arc;

    use http::Extensions;
    use tonic::transport::server::Connected;

    use super::*;

    /// What tonic puts into the extensions of every request on a tracked connection.
    #[derive(Clone)]
    pub struct ConnectInfo {
        pub(in super::super) connection: Connection,
        /// Puts in what the inner IO would have put there.
        pub(in super::super) restore: Arc<dyn Fn(&mut Extensions) + Send + Sync>,
    }

    impl<IO: Connected> Connected for Tracked<IO> {
        type ConnectInfo = ConnectInfo;

        fn connect_info(&self) -> ConnectInfo {
            let inner = self.inner.connect_info();
            ConnectInfo {
                connection: self.connection().clone(),
                restore: Arc::new(move |extensions| {
                    extensions.insert(inner.clone());
                }),
            }
        }
    }

    impl ConnectInfo {
        /// The connection the request came on.
        pub fn connection(&self) -> &Connection {
            &self.connection
        }
    }

    impl fmt::Debug for ConnectInfo {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("ConnectInfo")
                .field("connection", &self.connection)
                .finish_non_exhaustive()
        }
    }
}

#[cfg(feature = "tonic")]
pub use tonic_io::ConnectInfo;
