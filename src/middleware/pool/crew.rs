//! What hyper would spawn for an HTTP/2 connection, run inside the connection's own task.

use std::any::Any;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;

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
pub(super) struct Job(Option<Box<dyn Work>>);

pub(super) trait Work: Any + Send {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Memory for an `F`; one that can be moved, whether `F` can or not.
struct Place<F>(Pin<Box<Option<F>>>);

/// More than this many at a time leave nothing behind.
const SPARE: usize = 128;

// ===== impl Crew =====

impl<F> Executor<F> for Crew
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut hired = self.lock();
        let work = match hired.spare.pop() {
            Some(spare) => Place::reuse(spare, future).unwrap_or_else(Place::boxed),
            None => Place::boxed(future),
        };
        hired.new.push(Job(Some(work)));
    }
}

impl Crew {
    /// Puts those that came since the last time among `jobs`. Whether there were any.
    pub(super) fn join(&self, jobs: &mut FuturesUnordered<Job>) -> bool {
        // That polls nothing: nobody asks for the lock meanwhile.
        let mut hired = self.lock();
        let any = !hired.new.is_empty();
        jobs.extend(hired.new.drain(..));
        any
    }

    /// Keeps the memory of a job that is done.
    pub(super) fn keep(&self, work: Box<dyn Work>) {
        let mut hired = self.lock();
        if hired.spare.len() < SPARE {
            hired.spare.push(work);
        }
    }

    /// Drops all there is: jobs hold the crew, which holds them.
    pub(super) fn dismiss(&self) {
        let hired = mem::take(&mut *self.lock());
        drop(hired);
    }

    fn lock(&self) -> MutexGuard<'_, Hired> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Hired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} hired", self.new.len())
    }
}

// ===== impl Job =====

impl<F: Future<Output = ()> + Send + 'static> Place<F> {
    fn boxed(future: F) -> Box<dyn Work> {
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
