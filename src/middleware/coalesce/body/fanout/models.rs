//! Every interleaving of readers that drive, a body that is woken, and readers that leave.

use std::sync::Arc as StdArc;
use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use loom::thread;

use super::*;

/// A body of one chunk that is there as soon as `ready` says so. Whoever sets that wakes the waker of the last poll.
struct Source {
    wire: Arc<Wire>,
    sent: bool,
}

struct Wire {
    ready: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// Whether somebody polls.
    polled: AtomicBool,
    dropped: AtomicUsize,
}

impl Wire {
    fn new(ready: bool) -> Arc<Self> {
        Arc::new(Self {
            ready: AtomicBool::new(ready),
            waker: Mutex::new(None),
            polled: AtomicBool::new(false),
            dropped: AtomicUsize::new(0),
        })
    }

    fn brings(&self) {
        self.ready.store(true, SeqCst);
        let waker = self.waker.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        assert!(!self.wire.polled.swap(true, SeqCst), "two poll at a time");
        let polled = if self.sent {
            Poll::Ready(None)
        } else {
            *self.wire.waker.lock().unwrap() = Some(cx.waker().clone());
            if self.wire.ready.load(SeqCst) {
                self.sent = true;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"ab")))))
            } else {
                Poll::Pending
            }
        };
        self.wire.polled.store(false, SeqCst);
        polled
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.wire.dropped.fetch_add(1, SeqCst);
    }
}

fn open(wire: &Arc<Wire>, max_buffer: usize) -> Origin<Source> {
    let body = Source {
        wire: wire.clone(),
        sent: false,
    };
    let limits = Limits {
        max_buffer,
        stall: Duration::MAX,
    };
    FanOut::open(body, limits, None, StdArc::default())
}

/// Reads to the end as a task would: polls, and polls again only when it was woken.
fn reads(body: SharedBody<Source>) -> Vec<u8> {
    let mut body = std::pin::pin!(body);
    let mut read = Vec::new();
    loop {
        let polled =
            loom::future::block_on(std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)));
        match polled {
            Some(frame) => read.extend_from_slice(&frame.unwrap().into_data().unwrap()),
            None => return read,
        }
    }
}

#[test]
fn two_readers_read_all_whoever_drives() {
    loom::model(|| {
        let wire = Wire::new(false);
        let origin = open(&wire, 100);
        let [a, b] = [origin.reader().unwrap(), origin.reader().unwrap()];
        drop(origin);
        let brings = thread::spawn({
            let wire = wire.clone();
            move || wire.brings()
        });
        let other = thread::spawn(move || reads(b));
        assert_eq!(reads(a), b"ab");
        assert_eq!(other.join().unwrap(), b"ab");
        brings.join().unwrap();
        assert_eq!(wire.dropped.load(SeqCst), 1);
    });
}

/// The one that drives may be the one that goes, with the wake that was meant for it.
#[test]
fn a_reader_that_leaves_takes_no_wake_with_it() {
    loom::model(|| {
        let wire = Wire::new(false);
        let origin = open(&wire, 100);
        let [a, mut b] = [origin.reader().unwrap(), origin.reader().unwrap()];
        drop(origin);
        let brings = thread::spawn({
            let wire = wire.clone();
            move || wire.brings()
        });
        let other = thread::spawn(move || {
            let _ = Pin::new(&mut b).poll_frame(&mut Context::from_waker(Waker::noop()));
            drop(b);
        });
        assert_eq!(reads(a), b"ab");
        other.join().unwrap();
        brings.join().unwrap();
        assert_eq!(wire.dropped.load(SeqCst), 1);
    });
}

#[test]
fn one_that_waits_for_room_hears_of_it() {
    loom::model(|| {
        let wire = Wire::new(true);
        let origin = open(&wire, 1);
        let [a, b] = [origin.reader().unwrap(), origin.reader().unwrap()];
        let other = thread::spawn(move || reads(b));
        let closes = thread::spawn(move || drop(origin));
        assert_eq!(reads(a), b"ab");
        assert_eq!(other.join().unwrap(), b"ab");
        closes.join().unwrap();
        assert_eq!(wire.dropped.load(SeqCst), 1);
    });
}

#[test]
fn the_last_to_leave_takes_the_body_with_it() {
    loom::model(|| {
        let wire = Wire::new(false);
        let origin = open(&wire, 100);
        let mut a = origin.reader().unwrap();
        let _ = Pin::new(&mut a).poll_frame(&mut Context::from_waker(Waker::noop()));
        let brings = thread::spawn({
            let wire = wire.clone();
            move || wire.brings()
        });
        let leaves = thread::spawn(move || drop(a));
        drop(origin);
        leaves.join().unwrap();
        assert_eq!(wire.dropped.load(SeqCst), 1);
        brings.join().unwrap();
    });
}
