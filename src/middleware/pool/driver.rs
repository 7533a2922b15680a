//! What keeps a connection going, in the one task it has.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, Stream};
use tokio::time::{Sleep, sleep};

use super::connection::Connection;
use super::core::CloseReason;
use super::crew::{Crew, Job};
use super::link::Turn;
use crate::base::clock;

/// Drives an HTTP/1 connection to its end.
pub(super) struct Http1<B, C> {
    connection: Arc<Connection<B>>,
    conn: C,
    linger: Option<Pin<Box<Sleep>>>,
}

/// How long a request may be written on whose answer was read to its end. A peer that answers early may have stopped
/// reading, and nothing else would ever end it.
const LINGER: Duration = Duration::from_secs(1);

/// An HTTP/2 connection with its crew.
pub(super) struct Http2<C> {
    /// Gone when it takes no more requests; streams may go on.
    conn: Option<C>,
    crew: Crew,
    work: FuturesUnordered<Job>,
}

// ===== impl Http1 =====

impl<B, C> Http1<B, C> {
    pub(super) fn new(connection: Arc<Connection<B>>, conn: C) -> Self {
        Self {
            connection,
            conn,
            linger: None,
        }
    }
}

impl<B, C> Future for Http1<B, C>
where
    B: Send + 'static,
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ended = Pin::new(&mut self.conn).poll(cx);
        if let Poll::Ready(result) = ended {
            if result.is_err() {
                self.connection.ends(CloseReason::Error);
            }
            return Poll::Ready(());
        }
        match self.connection.link.turn(cx, false) {
            Turn::Wait => {}
            Turn::Linger => {
                let linger = self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
                if linger.as_mut().poll(cx).is_ready() {
                    self.connection.ends(CloseReason::Cancelled);
                    return Poll::Ready(());
                }
            }
            Turn::Freed => {
                self.linger = None;
                self.connection.ends(CloseReason::Peer);
                self.connection.free(true);
            }
            Turn::Stop => return Poll::Ready(()),
        }
        Poll::Pending
    }
}

// ===== impl Http2 =====

impl<C: Future<Output = hyper::Result<()>> + Unpin> Http2<C> {
    pub(super) fn new(conn: C, crew: Crew) -> Self {
        Self {
            conn: Some(conn),
            crew,
            work: FuturesUnordered::new(),
        }
    }

    /// Lets everything run that can. Ready when nothing is left of the connection, and with the error it ended by if
    /// that was now.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> (Option<hyper::Result<()>>, bool) {
        let mut ended = None;
        loop {
            // Frames are read by the crew: only then does the connection know of a GOAWAY.
            while let Poll::Ready(Some(done)) = Pin::new(&mut self.work).poll_next(cx) {
                self.crew.keep(done);
            }
            if let Some(conn) = &mut self.conn
                && let Poll::Ready(result) = Pin::new(conn).poll(cx)
            {
                self.conn = None;
                ended = Some(result);
            }
            if !self.crew.join(&mut self.work) {
                break;
            }
        }
        (ended, self.conn.is_none() && self.work.is_empty())
    }

    /// Until `room` says that the peer's SETTINGS came.
    ///
    /// gRPC's own implementations wait for them too before they call a connection ready: a peer that speaks something
    /// else is found out here and not by the first request, and no stream is opened that the peer would refuse.
    pub(super) fn poll_settings(
        &mut self,
        cx: &mut Context<'_>,
        room: impl Fn(&C) -> usize,
    ) -> Poll<hyper::Result<usize>> {
        let (ended, _) = self.poll_work(cx);
        match (&self.conn, ended) {
            (Some(conn), _) => match room(conn) {
                0 => Poll::Pending,
                room => Poll::Ready(Ok(room)),
            },
            (None, Some(Err(error))) => Poll::Ready(Err(error)),
            (None, _) => Poll::Ready(Ok(0)),
        }
    }

    /// One poll of a connection in use, which has `last` room as far as the pool knows.
    pub(super) fn poll_drive<B: Send + 'static>(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Arc<Connection<B>>,
        last: &mut usize,
        room: impl Fn(&C) -> usize,
    ) -> Poll<()> {
        let (ended, over) = self.poll_work(cx);
        if let Some(result) = ended {
            let reason = match result {
                Ok(()) => CloseReason::GoAway,
                Err(_) => CloseReason::Error,
            };
            connection.ends(reason);
            connection.link.end();
            connection
                .shared
                .event(|core| core.leave(clock::now(), connection.id, reason));
        }
        if over {
            return Poll::Ready(());
        }
        if let Some(conn) = &self.conn {
            let now = room(conn);
            if mem::replace(last, now) != now {
                let id = connection.id;
                let changed = clock::now();
                connection
                    .shared
                    .event(|core| core.limited(changed, id, now));
            }
        }
        // All but the one that reads and writes frames.
        let working = self.work.len() > 1;
        match connection.link.turn(cx, working) {
            Turn::Stop => Poll::Ready(()),
            Turn::Freed => {
                connection.trailed();
                Poll::Pending
            }
            Turn::Wait | Turn::Linger => Poll::Pending,
        }
    }
}

/// Nothing is left in a queue that holds what holds the queue.
impl<C> Drop for Http2<C> {
    fn drop(&mut self) {
        self.crew.dismiss();
    }
}

/// `future`, unless the connection is told to stop first.
pub(super) async fn unless_stopped<B: Send + 'static, T>(
    connection: &Connection<B>,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if connection.link.turn(cx, false) == Turn::Stop {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(ready!(future.as_mut().poll(cx))))
    })
    .await
}
