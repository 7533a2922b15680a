//! A client's connection, as hyper sees it: without what could be read in two ways, and with interim answers in between.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;

use crate::interim::Interim;
use crate::scan::Scanner;

pin_project! {
    pub(crate) struct Wire<IO>
    where
        IO: Abort,
    {
        #[pin]
        io: IO,
        scanner: Scanner,
        interim: Interim,
        // Whether an interim answer is written in part.
        within: bool,
        // Whether nothing was read yet.
        fresh: bool,
        patience: Patience,
        // Ends when a head has taken too long.
        late: Option<Pin<Box<Sleep>>>,
        // Ends when the client has not read for too long.
        stalled: Option<Pin<Box<Sleep>>>,
        line: Line,
    }

    impl<IO: Abort> PinnedDrop for Wire<IO> {
        fn drop(this: Pin<&mut Self>) {
            if this.line.0.cut.load(Relaxed) {
                this.io.abort();
            }
        }
    }
}

/// The end of a head, however it was spoilt.
const END: &[u8] = b"\r\n\r\n";

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// To send its first octet.
    pub(crate) first: Duration,
    /// To send a head that has begun.
    pub(crate) head: Duration,
    /// To read some of an answer.
    pub(crate) unread: Duration,
}

/// What the edge and the wire of a connection tell each other; both are polled in its task. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    cut: AtomicBool,
    refused: AtomicBool,
    early: AtomicBool,
}

impl Line {
    /// The connection is to end in a way nobody takes for the end of an answer.
    pub(crate) fn cut(&self) {
        self.0.cut.store(true, Relaxed);
    }

    /// A request to switch was not granted: what follows is another request. `false` when some of that is read already, and
    /// was not looked at.
    pub(crate) fn stay(&self) -> bool {
        self.0.refused.store(true, Relaxed);
        !self.0.early.load(Relaxed)
    }
}

/// A connection that can be broken off.
pub(crate) trait Abort {
    /// Makes its end a reset.
    fn abort(&self);
}

impl Abort for TcpStream {
    fn abort(&self) {
        let _ = self.set_zero_linger();
    }
}

impl Abort for TlsStream<TcpStream> {
    /// Nor does it say goodbye.
    fn abort(&self) {
        self.get_ref().0.abort();
    }
}

impl<IO: Abort> Wire<IO> {
    pub(crate) fn new(io: IO, interim: Interim, line: Line, patience: Patience) -> Self {
        Self {
            io,
            scanner: Scanner::default(),
            interim,
            within: false,
            fresh: true,
            patience,
            late: None,
            stalled: None,
            line,
        }
    }
}

impl<IO: AsyncWrite + Abort> Wire<IO> {
    /// Writes the interim answers.
    fn poll_interim(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        while !this.interim.is_empty() {
            let io = this.io.as_mut();
            *this.within = true;
            let written = this.interim.write(|octets| io.poll_write(cx, octets));
            if ready!(unless_stalled(written, this.stalled, this.patience, cx))? == 0 {
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

/// `done`, or an error once that has been pending for too long: a client that does not read holds what others wait for.
fn unless_stalled<T>(
    done: Poll<io::Result<T>>,
    stalled: &mut Option<Pin<Box<Sleep>>>,
    patience: &Patience,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    if done.is_ready() {
        *stalled = None;
        return done;
    }
    let since = stalled.get_or_insert_with(|| Box::pin(sleep(patience.unread)));
    ready!(since.as_mut().poll(cx));
    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
}

impl<IO: AsyncRead + Abort> AsyncRead for Wire<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        if this.scanner.take_spoilt() && buf.remaining() >= END.len() {
            buf.put_slice(END);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if this.io.poll_read(cx, buf)?.is_pending() {
            if *this.fresh || this.scanner.within_head() {
                let Patience { first, head, .. } = *this.patience;
                let begun = || Box::pin(sleep(if *this.fresh { first } else { head }));
                ready!(this.late.get_or_insert_with(begun).as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            return Poll::Pending;
        }
        if std::mem::take(this.fresh) {
            *this.late = None;
        }
        if this.line.0.refused.swap(false, Relaxed) {
            this.scanner.stay();
        }
        let scanned = this.scanner.scan(&mut buf.filled_mut()[before..]);
        if this.scanner.early() {
            this.line.0.early.store(true, Relaxed);
        }
        if !this.scanner.within_head() {
            *this.late = None;
        }
        Poll::Ready(scanned)
    }
}

impl<IO: AsyncWrite + Abort> AsyncWrite for Wire<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.within {
            ready!(self.as_mut().poll_interim(cx))?;
        }
        let this = self.project();
        let written = this.io.poll_write(cx, buf);
        unless_stalled(written, this.stalled, this.patience, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.within {
            ready!(self.as_mut().poll_interim(cx))?;
        }
        let this = self.project();
        let written = this.io.poll_write_vectored(cx, bufs);
        unless_stalled(written, this.stalled, this.patience, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes when it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.interim.flushed_by(cx.waker());
        ready!(self.as_mut().poll_interim(cx))?;
        let this = self.project();
        let flushed = this.io.poll_flush(cx);
        unless_stalled(flushed, this.stalled, this.patience, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }
}
