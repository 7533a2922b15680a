//! The answers to many, gathered for one who waits for all.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use async_nats::Message;

use super::error::Error;

/// # Invariants
///
/// `left` is how many places are empty. Whoever fills the last takes the waker and wakes it; a place is filled once,
/// and what comes later for it is left out.
#[derive(Debug)]
pub(super) struct Gather(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    places: Vec<Option<Result<Message, Error>>>,
    left: usize,
    waker: Option<Waker>,
}

impl Gather {
    pub(super) fn new(count: usize) -> Self {
        Self(Mutex::new(Inner {
            places: std::iter::repeat_with(|| None).take(count).collect(),
            left: count,
            waker: None,
        }))
    }

    pub(super) fn put(&self, place: usize, answer: Result<Message, Error>) {
        let mut inner = self.lock();
        match inner.places.get_mut(place) {
            Some(empty @ None) => *empty = Some(answer),
            _ => return,
        }
        inner.left -= 1;
        let waker = (inner.left == 0).then(|| inner.waker.take()).flatten();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready when every place is filled.
    pub(super) fn poll_full(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.left == 0 {
            return Poll::Ready(());
        }
        match &mut inner.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// What is there; `None` at places that are empty still. What comes later is left out.
    pub(super) fn take(&self) -> Vec<Option<Result<Message, Error>>> {
        let mut inner = self.lock();
        inner.left = 0;
        std::mem::take(&mut inner.places)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;

    #[tokio::test]
    async fn it_is_full_when_every_place_was_filled_once() {
        let gather = Gather::new(2);
        let mut full = tokio_test::task::spawn(std::future::poll_fn(|cx| gather.poll_full(cx)));
        assert!(full.poll().is_pending());
        gather.put(1, Err(Error::closed()));
        gather.put(1, Err(Error::no_stream("a")));
        assert!(!full.is_woken() && full.poll().is_pending());
        gather.put(0, Err(Error::no_stream("b")));
        assert!(full.is_woken() && full.poll().is_ready());
        drop(full);
        let kinds: Vec<_> = gather
            .take()
            .into_iter()
            .map(|place| place.unwrap().unwrap_err().kind())
            .collect();
        assert_eq!(kinds, [ErrorKind::NoStream, ErrorKind::Closed]);
        gather.put(0, Err(Error::closed()));
        assert!(gather.take().is_empty(), "too late");
    }
}
