use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

/// The messages that are to go out on a stream.
///
/// [`Outbox`] is where they are put, and [`Outgoing`] the stream tonic makes the request's body of: it ends when the outbox
/// is dropped, and what nobody has taken by then is never sent.
pub(super) struct Outbox<M>(Arc<Mutex<Queue<M>>>);

/// The messages of an [`Outbox`], as they are taken.
pub(super) struct Outgoing<M>(Arc<Mutex<Queue<M>>>);

/// Nothing foreign runs while it is locked: wakers are cloned, woken and dropped, and messages dropped, outside.
struct Queue<M> {
    messages: VecDeque<M>,
    /// Whether any message was ever taken.
    begun: bool,
    /// Whoever wants the next message.
    taker: Option<Waker>,
    closed: bool,
}

pub(super) fn new<M>(messages: VecDeque<M>) -> (Outbox<M>, Outgoing<M>) {
    let queue = Arc::new(Mutex::new(Queue {
        messages,
        begun: false,
        taker: None,
        closed: false,
    }));
    (Outbox(queue.clone()), Outgoing(queue))
}

// ===== impl Outbox =====

impl<M> Outbox<M> {
    pub(super) fn send(&self, mut messages: VecDeque<M>) {
        let taker = {
            let mut queue = lock(&self.0);
            queue.messages.append(&mut messages);
            queue.taker.take()
        };
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    /// Whether any message was ever taken.
    pub(super) fn has_begun(&self) -> bool {
        lock(&self.0).begun
    }

    /// All messages, if none was ever taken.
    pub(super) fn take_back(&self) -> Option<VecDeque<M>> {
        let mut queue = lock(&self.0);
        (!queue.begun).then(|| mem::take(&mut queue.messages))
    }
}

impl<M> Drop for Outbox<M> {
    fn drop(&mut self) {
        let (_unsent, taker) = {
            let mut queue = lock(&self.0);
            queue.closed = true;
            (mem::take(&mut queue.messages), queue.taker.take())
        };
        if let Some(taker) = taker {
            taker.wake();
        }
    }
}

// ===== impl Outgoing =====

impl<M> Outgoing<M> {
    /// The next message, or the end; else leaves `taker` to be woken, and takes the one that was there.
    fn next(&self, taker: &mut Option<Waker>) -> Poll<Option<M>> {
        let mut queue = lock(&self.0);
        match queue.messages.pop_front() {
            Some(message) => {
                queue.begun = true;
                Poll::Ready(Some(message))
            }
            None if queue.closed => Poll::Ready(None),
            None => {
                if taker.is_some() {
                    mem::swap(&mut queue.taker, taker);
                }
                Poll::Pending
            }
        }
    }
}

impl<M> Stream for Outgoing<M> {
    type Item = M;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<M>> {
        let next = self.next(&mut None);
        if next.is_ready() {
            return next;
        }
        self.next(&mut Some(cx.waker().clone()))
    }
}

fn lock<M>(queue: &Mutex<Queue<M>>) -> MutexGuard<'_, Queue<M>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready_eq, task};

    use super::*;

    #[test]
    fn messages_go_out_in_order_and_the_taker_is_woken() {
        let (outbox, outgoing) = new(VecDeque::from([1, 2]));
        let mut outgoing = task::spawn(outgoing);
        assert_ready_eq!(outgoing.poll_next(), Some(1));
        outbox.send(VecDeque::from([3]));
        assert_ready_eq!(outgoing.poll_next(), Some(2));
        assert_ready_eq!(outgoing.poll_next(), Some(3));
        assert_pending!(outgoing.poll_next());
        assert!(!outgoing.is_woken());
        outbox.send(VecDeque::from([4]));
        assert!(outgoing.is_woken());
        assert_ready_eq!(outgoing.poll_next(), Some(4));
    }

    #[test]
    fn nothing_goes_out_after_the_outbox_is_dropped() {
        let (outbox, outgoing) = new(VecDeque::from([1, 2]));
        let mut outgoing = task::spawn(outgoing);
        assert_ready_eq!(outgoing.poll_next(), Some(1));
        drop(outbox);
        assert_ready_eq!(outgoing.poll_next(), None);
    }

    #[test]
    fn messages_are_taken_back_until_one_was_taken() {
        let (outbox, outgoing) = new(VecDeque::from([1, 2]));
        let mut outgoing = task::spawn(outgoing);
        assert_eq!(outbox.take_back(), Some(VecDeque::from([1, 2])));
        assert_pending!(outgoing.poll_next());
        outbox.send(VecDeque::from([3, 4]));
        assert!(!outbox.has_begun());
        assert_ready_eq!(outgoing.poll_next(), Some(3));
        assert!(outbox.has_begun());
        assert_eq!(outbox.take_back(), None);
        assert_ready_eq!(outgoing.poll_next(), Some(4));
    }

    #[test]
    fn a_taker_that_waits_sees_the_end() {
        let (outbox, outgoing) = new(VecDeque::<u32>::new());
        let mut outgoing = task::spawn(outgoing);
        assert_pending!(outgoing.poll_next());
        drop(outbox);
        assert!(outgoing.is_woken());
        assert_ready_eq!(outgoing.poll_next(), None);
    }
}
