//! A client's connection, as hyper sees it: without what could be read in two ways, and with interim answers in between.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::interim::Interim;
use crate::scan::Scanner;

pin_project! {
    pub(crate) struct Wire<IO> {
        #[pin]
        io: IO,
        scanner: Scanner,
        interim: Interim,
        // Whether an interim answer is written in part.
        within: bool,
    }
}

impl<IO> Wire<IO> {
    pub(crate) fn new(io: IO, interim: Interim) -> Self {
        Self {
            io,
            scanner: Scanner::default(),
            interim,
            within: false,
        }
    }
}

impl<IO: AsyncWrite> Wire<IO> {
    /// Writes the interim answers.
    fn poll_interim(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        while !this.interim.is_empty() {
            let io = this.io.as_mut();
            *this.within = true;
            let written = this.interim.write(|octets| io.poll_write(cx, octets));
            if ready!(written)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        if std::mem::take(this.within) {
            // The edge waits for this with its answer.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead> AsyncRead for Wire<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        ready!(this.io.poll_read(cx, buf))?;
        this.scanner.scan(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite> AsyncWrite for Wire<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.within {
            ready!(self.as_mut().poll_interim(cx))?;
        }
        self.project().io.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.within {
            ready!(self.as_mut().poll_interim(cx))?;
        }
        self.project().io.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes when it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.interim.flushed_by(cx.waker());
        ready!(self.as_mut().poll_interim(cx))?;
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }
}
