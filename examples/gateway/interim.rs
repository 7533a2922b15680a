//! Interim answers (1xx) on their way back to an HTTP/1.1 client, which hyper's server has no way to send.
//!
//! Invariants: what is queued here is written by the connection's own task, only in a flush, when hyper has nothing of its
//! own left to write; and the edge answers only once the queue is empty, and takes no more for that request from then on. So
//! an interim answer stands before the final one of its request, inside none, and is never another request's.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use http::{HeaderMap, StatusCode, header};
use tokio::time::Instant;

use crate::fields;

/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interim(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Whether something waits: changed under the lock, and read without it so that a write need not lock.
    waits: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    octets: BytesMut,
    /// The connection's task.
    task: Option<Waker>,
    /// Which request is under way; one that is answered has another number.
    request: u64,
    /// When there last was an interim answer.
    heard: Option<Instant>,
}

/// More than this is not kept for a client that does not read.
const LARGEST: usize = 64 * 1024;

impl Interim {
    /// The task that flushes.
    pub(crate) fn flushed_by(&self, task: &Waker) {
        let mut queue = self.queue();
        if !queue.task.as_ref().is_some_and(|old| old.will_wake(task)) {
            queue.task = Some(task.clone());
        }
    }

    /// A request comes: what [`push`](Self::push) is to be told.
    pub(crate) fn begin(&self) -> u64 {
        let mut queue = self.queue();
        queue.request += 1;
        queue.heard = None;
        queue.request
    }

    /// Ends once all is written. From then on nothing is taken for this request any more.
    ///
    /// It is polled in the connection's own task, which polls it again after the flush that wrote the last.
    pub(crate) async fn end(&self) {
        poll_fn(|_| {
            let mut queue = self.queue();
            if !queue.octets.is_empty() {
                return Poll::Pending;
            }
            queue.request += 1;
            Poll::Ready(())
        })
        .await;
    }

    /// Something came from the upstream.
    pub(crate) fn heard(&self) {
        self.queue().heard = Some(Instant::now());
    }

    /// When something last came for the request under way.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.queue().heard
    }

    pub(crate) fn push(&self, request: u64, status: StatusCode, headers: &HeaderMap) {
        let mut headers = headers.clone();
        fields::end_to_end(&mut headers);
        headers.remove(header::CONTENT_LENGTH);
        let mut queue = self.queue();
        if queue.request != request || queue.octets.len() > LARGEST {
            return;
        }
        let octets = &mut queue.octets;
        let reason = status.canonical_reason().unwrap_or_default();
        octets.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
        for (name, value) in &headers {
            octets.extend_from_slice(name.as_str().as_bytes());
            octets.extend_from_slice(b": ");
            octets.extend_from_slice(value.as_bytes());
            octets.extend_from_slice(b"\r\n");
        }
        octets.extend_from_slice(b"\r\n");
        self.0.waits.store(true, SeqCst);
        if let Some(task) = queue.task.take() {
            task.wake();
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        !self.0.waits.load(SeqCst)
    }

    /// Hands what waits to `write`, which says how much it took.
    pub(crate) fn write(
        &self,
        write: impl FnOnce(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let mut queue = self.queue();
        let written = ready!(write(&queue.octets))?;
        queue.octets.advance(written);
        if queue.octets.is_empty() {
            self.0.waits.store(false, SeqCst);
        }
        Poll::Ready(Ok(written))
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
