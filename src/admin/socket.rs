//! A connection's socket, watched: whether its client takes what it is sent, and whether it is still there.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::link::Link;
use crate::base::clock;

/// What HTTP is spoken over. It tells the link how its client takes what is written.
#[derive(Debug)]
pub(super) struct Socket {
    half: OwnedWriteHalf,
    link: Arc<Link>,
}

/// The other end of it, for one who waits.
#[derive(Debug)]
pub(super) struct Peer(OwnedReadHalf);

pub(super) fn watched(stream: TcpStream, link: Arc<Link>) -> (Socket, Peer) {
    let (read, half) = stream.into_split();
    (Socket { half, link }, Peer(read))
}

impl Peer {
    /// Until it has sent its last. What it sends until then is left where it is, and nobody is told of it any more: this
    /// is for when all that matters was read. HTTP's own side sees no end behind what it did not expect.
    pub(super) async fn gone(&self) {
        while let Ok(ready) = self.0.ready(Interest::READABLE).await
            && !ready.is_read_closed()
        {
            // Says that there is nothing to read, so that only what comes next wakes this.
            let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.0.as_ref().try_io(Interest::READABLE, nothing);
        }
    }
}

impl Socket {
    fn note(&self, written: &Poll<io::Result<usize>>) {
        self.link.wrote(written.is_ready(), clock::now());
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The half that reads is the watcher's.
        let stream = self.half.as_ref();
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    buf.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.half).poll_write(cx, buf);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.half).poll_write_vectored(cx, bufs);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.half.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(cx)
    }
}
