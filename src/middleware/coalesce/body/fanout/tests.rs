//! One thread, and a body that does what a script says.

#![allow(clippy::unwrap_used)] // A test that fails here has failed.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full};
use tokio_test::task::{Spawn, spawn};
use tokio_test::{assert_pending, assert_ready};

use super::super::super::share::Gone;
use super::super::SharedBody;
use super::*;
use crate::base::error::{self, Reason, Rejection};

const STALL: Duration = Duration::from_secs(5);

enum Step {
    Data(&'static str),
    /// Pending, until the script is woken.
    Stop,
    /// Pending, and woken in the same poll.
    Yield,
    Trailers,
    Fail,
    Panic,
}

use Step::{Data, Fail, Panic, Stop, Trailers, Yield};

#[derive(Default)]
struct Seen {
    polls: AtomicUsize,
    drops: AtomicUsize,
    waker: Mutex<Option<Waker>>,
    /// The fan-out the script is polled by: its lock is free whenever code of a user runs.
    shared: Mutex<Weak<FanOut<Script>>>,
}

impl Seen {
    fn polls(&self) -> usize {
        self.polls.load(SeqCst)
    }

    fn wake(&self) {
        let waker = self.waker.lock().unwrap().take();
        waker.expect("somebody waits").wake();
    }

    fn unlocked(&self) {
        if let Some(shared) = self.shared.lock().unwrap().upgrade() {
            assert!(shared.state.try_lock().is_ok(), "user code under the lock");
        }
    }
}

struct Script {
    steps: VecDeque<Step>,
    seen: Arc<Seen>,
}

impl Body for Script {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        self.seen.unlocked();
        self.seen.polls.fetch_add(1, SeqCst);
        Poll::Ready(Some(match self.steps.pop_front() {
            None => return Poll::Ready(None),
            Some(Data(bytes)) => {
                let owner = Owner(bytes, self.seen.clone());
                Ok(Frame::data(Bytes::from_owner(owner)))
            }
            Some(Stop) => {
                *self.seen.waker.lock().unwrap() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Some(Yield) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Trailers) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", 0.into());
                Ok(Frame::trailers(trailers))
            }
            Some(Fail) => Err(Failure(self.seen.clone())),
            Some(Panic) => panic!("as the script says"),
        }))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.seen.unlocked();
        self.seen.drops.fetch_add(1, SeqCst);
    }
}

struct Owner(&'static str, Arc<Seen>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.1.unlocked();
    }
}

struct Failure(Arc<Seen>);

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failure")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connection reset")
    }
}

impl std::error::Error for Failure {}

impl Drop for Failure {
    fn drop(&mut self) {
        self.0.unlocked();
    }
}

type Origins<B> = (Origin<B>, Arc<AtomicU64>);

fn open<B>(body: B, max_buffer: usize, promised: Option<u64>) -> Origins<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let limits = Limits {
        max_buffer,
        stall: STALL,
    };
    let evicted = Arc::new(AtomicU64::new(0));
    (
        FanOut::open(body, limits, promised, evicted.clone()),
        evicted,
    )
}

fn script(max_buffer: usize, steps: impl IntoIterator<Item = Step>) -> (Origin<Script>, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let body = Script {
        steps: steps.into_iter().collect(),
        seen: seen.clone(),
    };
    let (origin, _) = open(body, max_buffer, None);
    *seen.shared.lock().unwrap() = Arc::downgrade(&origin.shared);
    (origin, seen)
}

fn readers<B, const N: usize>(origin: &Origin<B>) -> [Spawn<SharedBody<B>>; N] {
    std::array::from_fn(|_| spawn(origin.reader().unwrap()))
}

/// What one poll brings: data as it is, `.` for pending, `$` for a clean end, `T` for trailers, `!` for an error.
fn poll<B>(body: &mut Spawn<SharedBody<B>>) -> String
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    match body.enter(|cx, body| body.poll_frame(cx)) {
        Poll::Pending => ".".into(),
        Poll::Ready(None) => "$".into(),
        Poll::Ready(Some(Err(_))) => "!".into(),
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
            Err(_) => "T".into(),
        },
    }
}

fn fails<B>(body: &mut Spawn<SharedBody<B>>) -> BoxError
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    assert_ready!(body.enter(|cx, body| body.poll_frame(cx)))
        .expect("no clean end")
        .unwrap_err()
}

#[test]
fn one_polls_and_all_take_what_came() {
    let (origin, seen) = script(100, [Data("ab"), Data("cd")]);
    let [mut a, mut b] = readers(&origin);
    assert_eq!([poll(&mut a), poll(&mut b)], ["ab", "ab"]);
    assert_eq!(seen.polls(), 1);
    assert_eq!([poll(&mut b), poll(&mut b)], ["cd", "$"]);
    assert_eq!(seen.drops.load(SeqCst), 1, "it is over");
    assert_eq!([poll(&mut a), poll(&mut a), poll(&mut a)], ["cd", "$", "$"]);
    assert_eq!(seen.polls(), 3);
}

#[test]
fn a_body_that_waits_is_polled_again_only_when_it_was_woken() {
    let (origin, seen) = script(100, [Stop, Data("ab")]);
    let [mut a, mut b, mut c] = readers(&origin);
    for _ in 0..2 {
        assert_eq!([poll(&mut a), poll(&mut b), poll(&mut c)], [".", ".", "."]);
    }
    assert_eq!(seen.polls(), 1);
    seen.wake();
    assert!(a.is_woken() && b.is_woken() && c.is_woken());
    assert_eq!(
        [poll(&mut c), poll(&mut a), poll(&mut b)],
        ["ab", "ab", "ab"]
    );
    assert_eq!(seen.polls(), 2);
    assert!(!a.is_woken() && !b.is_woken() && !c.is_woken());
}

#[test]
fn a_body_that_asks_for_a_pause_gets_one() {
    let (origin, seen) = script(100, [Stop, Yield, Data("ab")]);
    let [mut a, mut b] = readers(&origin);
    assert_eq!([poll(&mut a), poll(&mut b)], [".", "."]);
    seen.wake();
    assert_eq!(poll(&mut a), ".");
    assert_eq!(seen.polls(), 2);
    assert!(a.is_woken(), "to poll again");
    assert!(b.is_woken(), "or this one, if the other does not");
    assert_eq!([poll(&mut b), poll(&mut a)], ["ab", "ab"]);
}

#[test]
fn whoever_is_left_polls_on() {
    let (origin, seen) = script(100, [Stop, Data("ab")]);
    let [mut a, mut b] = readers(&origin);
    assert_eq!([poll(&mut a), poll(&mut b)], [".", "."]);
    drop(a);
    seen.wake();
    assert!(b.is_woken());
    assert_eq!([poll(&mut b), poll(&mut b)], ["ab", "$"]);
}

#[test]
fn a_reader_given_up_at_any_point_takes_nothing_from_the_others() {
    let steps = || {
        [
            Data("ab"),
            Stop,
            Data("cd"),
            Yield,
            Data("ef"),
            Stop,
            Data("gh"),
            Trailers,
        ]
    };
    for max_buffer in [0, 3, 100] {
        for stop in 0..40 {
            let (origin, seen) = script(max_buffer, steps());
            let [a, b, c] = readers(&origin);
            let mut readers = [Some(a), Some(b), Some(c)];
            drop(origin);
            let mut got = [const { String::new() }; 3];
            for turn in 0..60 {
                let n = turn % 3;
                if turn == stop {
                    readers[n] = None;
                }
                if let Some(reader) = &mut readers[n] {
                    got[n] += &poll(reader).replace(['.', '$'], "");
                }
                if turn % 4 == 0
                    && let Some(waker) = seen.waker.lock().unwrap().take()
                {
                    waker.wake();
                }
            }
            for (n, got) in got.iter().enumerate() {
                assert!("abcdefghT".starts_with(got), "{got}");
                assert!(n == stop % 3 || got == "abcdefghT", "{n} of {stop}: {got}");
            }
            assert_eq!(seen.drops.load(SeqCst), 1);
        }
    }
}

#[test]
fn the_last_claim_takes_the_body_with_it() {
    let (origin, seen) = script(100, [Data("ab"), Stop]);
    let [mut a, b] = readers(&origin);
    assert_eq!([poll(&mut a), poll(&mut a)], ["ab", "."]);
    drop(origin);
    drop(a);
    assert_eq!(seen.drops.load(SeqCst), 0);
    drop(b);
    assert_eq!(seen.drops.load(SeqCst), 1);
    // The body's waker is still about.
    seen.wake();
    assert!(seen.shared.lock().unwrap().upgrade().is_none());
}

#[test]
fn an_origin_alone_keeps_the_body_for_those_to_come() {
    let (origin, seen) = script(100, [Data("ab")]);
    let [mut a] = readers(&origin);
    assert_eq!(poll(&mut a), "ab");
    drop(a);
    let [mut b] = readers(&origin);
    assert_eq!([poll(&mut b), poll(&mut b)], ["ab", "$"]);
    drop(origin);
    assert_eq!(seen.drops.load(SeqCst), 1);
}

#[test]
fn an_error_reaches_every_reader_and_leads_to_its_source() {
    let (origin, _seen) = script(100, [Data("ab"), Fail]);
    let [mut a, mut b] = readers(&origin);
    for reader in [&mut a, &mut b] {
        assert_eq!(poll(reader), "ab");
        assert!(!reader.is_end_stream());
        let error = fails(reader);
        assert!(error::find::<Failure>(error.as_ref()).is_some());
        assert_eq!(poll(reader), "$", "once");
    }
    let [mut late] = readers(&origin);
    assert_eq!([poll(&mut late), poll(&mut late)], ["ab", "!"]);
}

#[test]
fn trailers_reach_every_reader() {
    let (origin, _seen) = script(100, [Data("ab"), Trailers]);
    let [a, b, c] = readers(&origin);
    for mut reader in [a, b, c] {
        assert_eq!(poll(&mut reader), "ab");
        assert!(!reader.is_end_stream());
        assert_eq!([poll(&mut reader), poll(&mut reader)], ["T", "$"]);
        assert!(reader.is_end_stream());
    }
}

#[test]
fn a_panic_is_whoever_polled_and_an_error_for_all() {
    let (origin, seen) = script(100, [Data("ab"), Stop, Panic]);
    let [mut a, mut b] = readers(&origin);
    assert_eq!(
        [poll(&mut a), poll(&mut a), poll(&mut b), poll(&mut b)],
        ["ab", ".", "ab", "."]
    );
    seen.wake();
    let payload = catch_unwind(AssertUnwindSafe(|| poll(&mut a))).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"as the script says"));
    assert_eq!(seen.drops.load(SeqCst), 1);
    assert!(b.is_woken());
    let error = fails(&mut b);
    let rejection = Rejection::find(error.as_ref()).unwrap();
    assert_eq!(
        (rejection.layer(), rejection.reason()),
        ("coalesce", Reason::Panicked)
    );
    assert_eq!(poll(&mut a), "!", "no clean end for the one that caught it");
}

#[test]
fn a_length_that_was_promised_is_kept_or_missed() {
    for (promised, ends) in [(None, "$"), (Some(5), "$"), (Some(10), "!")] {
        let (origin, _) = open(Full::from("fives"), 100, promised);
        let [mut a, mut b] = readers(&origin);
        for reader in [&mut a, &mut b] {
            assert_eq!([poll(reader), poll(reader)], ["fives", ends]);
        }
    }
    let (origin, _) = open(Full::from("fives"), 100, Some(10));
    let [mut a] = readers(&origin);
    poll(&mut a);
    assert_eq!(a.size_hint().exact(), None, "or it would look whole");
    let error = fails(&mut a);
    let cause = error::find::<io::Error>(error.as_ref()).unwrap();
    assert_eq!(cause.kind(), io::ErrorKind::UnexpectedEof);
    assert!(
        error
            .to_string()
            .starts_with("body ended after 5 of 10 bytes"),
        "{error}"
    );
}

#[test]
fn an_empty_body_is_over_from_the_start() {
    let (origin, _) = open(Empty::<Bytes>::new(), 100, None);
    let [mut a] = readers(&origin);
    assert!(a.is_end_stream());
    assert_eq!(a.size_hint().exact(), Some(0));
    assert_eq!(poll(&mut a), "$");
}

#[test]
fn an_answer_to_head_ends_cleanly_however_late_it_says_so() {
    let (origin, _) = open(Empty::<Bytes>::new(), 100, Some(3));
    let [mut a] = readers(&origin);
    assert!(a.is_end_stream());
    assert_eq!(poll(&mut a), "$");
    for (steps, ends) in [([Stop, Data("")], "$"), ([Stop, Fail], "!")] {
        let seen = Arc::new(Seen::default());
        let body = Script {
            steps: steps.into(),
            seen: seen.clone(),
        };
        let (origin, _) = open(body, 100, Some(3));
        let [mut a, mut b] = readers(&origin);
        assert!(!a.is_end_stream(), "it may be a GET");
        assert_eq!([poll(&mut a), poll(&mut b)], [".", "."]);
        seen.wake();
        for reader in [&mut a, &mut b] {
            let got = poll(reader) + &poll(reader);
            assert!(got.starts_with(ends), "{got}");
        }
    }
}

#[test]
fn every_reader_knows_what_is_left_to_it() {
    let (origin, _) = open(Full::from("fives"), 100, None);
    let [mut a, b] = readers(&origin);
    assert_eq!(a.size_hint().exact(), Some(5));
    assert_eq!(poll(&mut a), "fives");
    assert_eq!((a.size_hint().exact(), a.is_end_stream()), (Some(0), true));
    assert_eq!((b.size_hint().exact(), b.is_end_stream()), (Some(5), false));

    let (origin, _seen) = script(100, [Data("ab"), Data("cd"), Trailers]);
    let [mut a, b] = readers(&origin);
    assert_eq!((a.size_hint().lower(), a.size_hint().upper()), (0, None));
    poll(&mut a);
    assert_eq!((b.size_hint().lower(), b.size_hint().upper()), (2, None));
    assert_eq!([poll(&mut a), poll(&mut a)], ["cd", "T"]);
    assert_eq!((b.size_hint().lower(), b.size_hint().upper()), (4, None));
    assert_eq!(a.size_hint().exact(), Some(0));
}

#[test]
fn a_body_alone_passes_through() {
    let mut full = spawn(SharedBody::alone(Full::from("ab")));
    assert_eq!(full.size_hint().exact(), Some(2));
    assert_eq!([poll(&mut full), poll(&mut full)], ["ab", "$"]);
    assert!(SharedBody::<Empty<Bytes>>::default().is_end_stream());
    let seen = Arc::new(Seen::default());
    let steps = [Fail].into();
    let mut script = spawn(SharedBody::alone(Script { steps, seen }));
    assert!(fails(&mut script).is::<Failure>(), "the error itself");
}

#[test]
fn readers_and_origins_go_where_they_are_wanted() {
    fn sent<T: Send + Sync>(_: &T) {}
    let (origin, _seen) = script(100, []);
    sent(&origin);
    sent(&origin.reader().unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_one_that_stands_still_is_told_why_and_what_to_do() {
    let (origin, evicted) = open(
        Full::from("fives").with_trailers(std::future::ready(None)),
        2,
        None,
    );
    let [mut a, mut slow] = readers(&origin);
    drop(origin);
    assert_eq!(poll(&mut a), "fives");
    assert_eq!(poll(&mut a), ".");
    tokio::time::sleep(STALL - Duration::from_millis(1)).await;
    assert!(!a.is_woken());
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(a.is_woken());
    assert_eq!(poll(&mut a), "$");
    assert_eq!(evicted.load(SeqCst), 1);
    assert!(!slow.is_end_stream());
    let error = fails(&mut slow);
    let rejection = Rejection::find(error.as_ref()).unwrap();
    assert_eq!(
        (rejection.layer(), rejection.reason()),
        ("coalesce", Reason::Timeout)
    );
    assert_eq!(
        rejection.to_string(),
        "coalesce: this reader took 0 bytes while 1 other waited for 5s, less than the 2 bytes of max_buffer; read \
         faster, or raise stall, or max_buffer up to the length of the body"
    );
    assert_eq!(poll(&mut slow), "$");
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_is_kept_for_too_long_has_no_more_readers_to_give() {
    let (origin, evicted) = open(
        Full::from("fives").with_trailers(std::future::ready(None)),
        2,
        None,
    );
    let [mut a] = readers(&origin);
    assert_eq!([poll(&mut a), poll(&mut a)], ["fives", "."]);
    tokio::time::sleep(Duration::from_millis(90)).await;
    assert!(!a.is_woken());
    assert!(origin.reader().is_ok(), "whoever was woken comes by then");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(a.is_woken());
    assert_eq!(poll(&mut a), "$");
    let error = origin.reader().unwrap_err();
    assert!(error.is::<Gone>(), "{error}");
    assert_eq!(evicted.load(SeqCst), 0, "no reader was");
}

#[tokio::test(start_paused = true)]
async fn one_that_reads_on_in_time_keeps_its_place() {
    let (origin, seen) = script(1, [Data("ab"), Data("cd"), Data("ef")]);
    let [mut a, mut slow] = readers(&origin);
    drop(origin);
    for data in ["ab", "cd", "ef"] {
        assert_eq!([poll(&mut a), poll(&mut a)], [data, "."]);
        tokio::time::sleep(STALL - Duration::from_millis(10)).await;
        assert_eq!(poll(&mut slow), data);
        assert!(a.is_woken(), "there is room");
    }
    assert_eq!([poll(&mut a), poll(&mut slow)], ["$", "$"]);
    assert_eq!(seen.polls(), 4);
}

#[tokio::test(start_paused = true)]
async fn one_that_trickles_is_left_behind_after_the_stall() {
    let (origin, _seen) = script(20, [const { Data("ab") }; 50]);
    let [mut a, mut slow] = readers(&origin);
    drop(origin);
    let start = clock::now();
    let mut got = String::new();
    while !got.ends_with('$') {
        match poll(&mut a).as_str() {
            "." => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                poll(&mut slow);
                assert!(a.is_woken());
            }
            other => got += other,
        }
    }
    assert_eq!((got.len(), clock::now() - start), (101, STALL));
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_the_next_to_last_hears_when_that_leaves() {
    let (origin, seen) = script(4, [Data("a"), Data("bcdefg"), Data("h")]);
    let [mut a, mut mid, mut slow] = readers(&origin);
    drop(origin);
    assert_eq!([poll(&mut a), poll(&mut a)], ["a", "bcdefg"]);
    assert_eq!([poll(&mut mid), poll(&mut a)], ["a", "."]);
    tokio::time::sleep(STALL).await;
    assert_eq!(poll(&mut a), ".", "the next holds as much");
    assert_eq!(poll(&mut slow), "!");
    drop(mid);
    assert!(a.is_woken());
    assert_eq!([poll(&mut a), poll(&mut a)], ["h", "$"]);
    assert_eq!(seen.polls(), 4);
}

#[test]
fn without_a_runtime_the_others_wait_for_the_slowest() {
    let (origin, _seen) = script(1, [Data("ab"), Data("cd")]);
    let [mut a, mut slow] = readers(&origin);
    drop(origin);
    assert_eq!([poll(&mut a), poll(&mut a)], ["ab", "."]);
    assert_eq!(poll(&mut slow), "ab");
    assert!(a.is_woken());
    assert_eq!([poll(&mut a), poll(&mut slow)], ["cd", "cd"]);
}

#[test]
fn a_timer_of_a_runtime_that_is_gone_is_not_asked() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
    };
    let (origin, _seen) = script(1, [Data("ab"), Data("cd")]);
    let [mut a, slow] = readers(&origin);
    drop(origin);
    let first = runtime();
    first.block_on(async { assert_eq!([poll(&mut a), poll(&mut a)], ["ab", "."]) });
    drop(first);
    assert_eq!(poll(&mut a), ".");
    runtime().block_on(async { assert_eq!(poll(&mut a), ".") });
    drop(slow);
    assert!(a.is_woken());
    assert_eq!(poll(&mut a), "cd");
}

struct Cloned(AtomicUsize);

impl Wake for Cloned {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_waker_is_cloned_once_for_all_polls_that_wait() {
    let (origin, seen) = script(100, [Stop, Yield, Stop, Data("ab")]);
    let [a] = readers(&origin);
    let mut a = Box::pin(a.into_inner());
    let counted = Arc::new(Cloned(AtomicUsize::new(0)));
    let waker = Waker::from(counted.clone());
    let mut cx = Context::from_waker(&waker);
    for _ in 0..5 {
        assert_pending!(a.as_mut().poll_frame(&mut cx));
    }
    assert_eq!(
        Arc::strong_count(&counted),
        3,
        "ours, its waker, and the one that is parked"
    );
    seen.wake();
    assert_eq!(counted.0.load(SeqCst), 1);
    assert_eq!(Arc::strong_count(&counted), 2);
}
