//! Every interleaving of readers that drive, a body that is woken, and readers that leave.

use std::pin::Pin;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll};
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use loom::sync::{Arc, Condvar};
use loom::thread;

use http_body::Frame;

use super::super::SharedBody;
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

/// A task on a thread of its own: sleeps until it is woken, and for ever if it never is, which the model reports.
#[derive(Default)]
struct Task {
    woken: Mutex<bool>,
    wakes: Condvar,
}

impl Wake for Task {
    fn wake(self: StdArc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.wakes.notify_one();
    }
}

impl Task {
    fn sleep(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !std::mem::take(&mut *woken) {
            woken = self.wakes.wait(woken).unwrap();
        }
    }
}

/// Reads to the end as a task would: polls again only when it was woken.
fn reads(mut body: SharedBody<Source>) -> Vec<u8> {
    let task = StdArc::new(Task::default());
    let waker = Waker::from(task.clone());
    let mut read = Vec::new();
    loop {
        match Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Pending => task.sleep(),
            Poll::Ready(Some(frame)) => read.extend(frame.unwrap().into_data().unwrap()),
            Poll::Ready(None) => return read,
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

/// The one that drives may be the one that goes, or that is kept and not polled again, with the wake that was meant for it.
fn one_polls_no_more(keeps: bool) {
    loom::model(move || {
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
            keeps.then_some(b)
        });
        assert_eq!(reads(a), b"ab");
        drop(other.join().unwrap());
        brings.join().unwrap();
        assert_eq!(wire.dropped.load(SeqCst), 1);
    });
}

#[test]
fn a_reader_that_leaves_takes_no_wake_with_it() {
    one_polls_no_more(false);
}

#[test]
fn a_reader_that_is_kept_and_not_polled_holds_up_nobody() {
    one_polls_no_more(true);
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
