//! Interim answers (1xx) on their way back to an HTTP/1.1 client, which hyper's server has no way to send.
//!
//! Invariants: what is queued here is written by the connection's own task, only in a flush, when hyper has nothing of its
//! own left to write; and the edge answers only once the queue is empty. So an interim answer stands before the final one of
//! its request and inside none. A connection has one request under way at a time, so it is never another's.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use http::{HeaderMap, StatusCode, header};

use crate::fields;

/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interim(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Whether something waits, so that a flush need not lock.
    waits: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    octets: BytesMut,
    /// The connection's task.
    task: Option<Waker>,
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

    pub(crate) fn push(&self, status: StatusCode, headers: &HeaderMap) {
        let mut headers = headers.clone();
        fields::end_to_end(&mut headers);
        headers.remove(header::CONTENT_LENGTH);
        let mut queue = self.queue();
        if queue.octets.len() > LARGEST {
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
