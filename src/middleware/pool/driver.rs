//! What keeps a connection going, in the one task it has.

use std::any::Any;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::stream::{FuturesUnordered, Stream};
use hyper::rt::Executor;

use super::core::CloseReason;
use super::link::Turn;
use super::shared::Connection;
use crate::base::clock;

/// The executor of an HTTP/2 connection: what hyper would spawn runs inside the connection's own task. Dropping that task
/// drops all of it, the socket included; and hyper's dispatcher, which sleeps until the next request when a GOAWAY
/// comes, is polled whenever something arrives.
#[derive(Debug, Clone, Default)]
pub struct Crew(Arc<Mutex<Hired>>);

#[derive(Default)]
struct Hired {
    new: Vec<Job>,
    /// What is done: the next future of its type takes its memory, as one comes with every request.
    spare: Vec<Box<dyn Work>>,
}

/// A future that runs in the task of its connection, and gives back its memory at its end.
struct Job(Option<Box<dyn Work>>);

trait Work: Any + Send {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Memory for an `F`; one that can be moved, whether `F` can or not.
struct Place<F>(Pin<Box<Option<F>>>);

/// More than this many at a time leave nothing behind.
const SPARE: usize = 128;

/// Drives an HTTP/1 connection to its end.
pub(super) struct Http1<B, C> {
    pub(super) connection: Arc<Connection<B>>,
    pub(super) conn: C,
}

/// An HTTP/2 connection with its crew.
pub(super) struct Http2<C> {
    /// Gone when it takes no more requests; streams may go on.
    conn: Option<C>,
    crew: Crew,
    work: FuturesUnordered<Job>,
    /// Empty between polls.
    hired: Vec<Job>,
}

// ===== impl Crew =====

impl<F> Executor<F> for Crew
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut hired = self.lock();
        let work = match hired.spare.pop() {
            Some(spare) => Place::reuse(spare, future).unwrap_or_else(Place::new),
            None => Place::new(future),
        };
        hired.new.push(Job(Some(work)));
    }
}

impl Crew {
    fn lock(&self) -> std::sync::MutexGuard<'_, Hired> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, work: Box<dyn Work>) {
        let mut hired = self.lock();
        if hired.spare.len() < SPARE {
            hired.spare.push(work);
        }
    }
}

impl std::fmt::Debug for Hired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} hired", self.new.len())
    }
}

// ===== impl Job =====

impl<F: Future<Output = ()> + Send + 'static> Place<F> {
    fn new(future: F) -> Box<dyn Work> {
        Box::new(Self(Box::pin(Some(future))))
    }

    fn reuse(mut spare: Box<dyn Work>, future: F) -> Result<Box<dyn Work>, F> {
        let any: &mut dyn Any = &mut *spare;
        let Some(place) = any.downcast_mut::<Self>() else {
            return Err(future);
        };
        place.0.as_mut().set(Some(future));
        Ok(spare)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Work for Place<F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(future) = self.0.as_mut().as_pin_mut() {
            ready!(future.poll(cx));
            self.0.as_mut().set(None);
        }
        Poll::Ready(())
    }
}

impl Future for Job {
    type Output = Box<dyn Work>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Box<dyn Work>> {
        if let Some(work) = &mut self.0 {
            ready!(work.poll(cx));
        }
        match self.0.take() {
            Some(work) => Poll::Ready(work),
            None => unreachable!("a job that is done is polled no more"),
        }
    }
}

// ===== impl Http1 =====

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
        match self.connection.link.turn(cx) {
            Turn::Wait => {}
            Turn::Freed => {
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
            hired: Vec::new(),
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
            mem::swap(&mut self.crew.lock().new, &mut self.hired);
            if self.hired.is_empty() {
                break;
            }
            self.work.extend(self.hired.drain(..));
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
        match connection.link.turn(cx) {
            Turn::Stop => Poll::Ready(()),
            Turn::Wait | Turn::Freed => Poll::Pending,
        }
    }
}

/// Nothing is left in a queue that holds what holds the queue.
impl<C> Drop for Http2<C> {
    fn drop(&mut self) {
        let hired = mem::take(&mut *self.crew.lock());
        drop(hired);
    }
}

/// `future`, unless the connection is told to stop first.
pub(super) async fn unless_stopped<B: Send + 'static, T>(
    connection: &Connection<B>,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if connection.link.turn(cx) == Turn::Stop {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(ready!(future.as_mut().poll(cx))))
    })
    .await
}
