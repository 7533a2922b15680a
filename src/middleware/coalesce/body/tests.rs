//! Many readers, on one thread and on several.

#![allow(clippy::unwrap_used)] // A test that fails here has failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::HeaderMap;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};

use super::*;
use crate::base::clock;
use crate::base::error;

const KIB: usize = 1024;
const LIMITS: Limits = Limits {
    max_buffer: 256 * KIB,
    stall: Duration::from_secs(5),
};

/// A body of `left` bytes in chunks of 16 KiB, always ready, that knows how many of them are held anywhere.
struct Source {
    left: usize,
    held: Arc<Held>,
}

#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

struct Chunk(Vec<u8>, Arc<Held>);

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.1.now.fetch_sub(self.0.len(), SeqCst);
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let len = self.left.min(16 * KIB);
        if len == 0 {
            return Poll::Ready(None);
        }
        let chunk = Chunk(vec![self.left as u8; len], self.held.clone());
        self.left -= len;
        let now = self.held.now.fetch_add(len, SeqCst) + len;
        self.held.most.fetch_max(now, SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(chunk)))))
    }
}

fn source(len: usize) -> (Origin<Source>, Arc<Held>, Arc<AtomicU64>) {
    let held = Arc::new(Held::default());
    let evicted = Arc::new(AtomicU64::new(0));
    let body = Source {
        left: len,
        held: held.clone(),
    };
    let origin = FanOut::open(body, LIMITS, Some(len as u64), evicted.clone());
    (origin, held, evicted)
}

async fn length(mut body: SharedBody<Source>) -> usize {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().into_data().unwrap().len();
    }
    read
}

#[tokio::test(start_paused = true)]
async fn one_of_a_hundred_that_stands_still_is_left_behind() {
    let len = 4 * KIB * KIB;
    let (origin, held, evicted) = source(len);
    let mut stalled = origin.reader().unwrap();
    let mut others = JoinSet::new();
    for _ in 0..99 {
        others.spawn(length(origin.reader().unwrap()));
    }
    drop(origin);
    stalled.frame().await.unwrap().unwrap();
    let start = clock::now();
    while let Some(read) = others.join_next().await {
        assert_eq!(read.unwrap(), len);
    }
    let took = clock::now() - start;
    assert!(took >= LIMITS.stall && took < LIMITS.stall * 2, "{took:?}");
    assert_eq!(evicted.load(SeqCst), 1);
    assert!(held.most.load(SeqCst) <= LIMITS.max_buffer + 16 * KIB);
    assert_eq!(held.now.load(SeqCst), 0, "an evicted reader holds nothing");
    let error = stalled.frame().await.unwrap().unwrap_err();
    assert_eq!(
        Rejection::find(error.as_ref()).unwrap().reason(),
        Reason::Timeout
    );
    assert!(stalled.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_body_larger_than_the_buffer_goes_through_a_hundred_readers() {
    let len = 64 * KIB * KIB;
    let (origin, held, evicted) = source(len);
    let mut readers = JoinSet::new();
    for _ in 0..100 {
        readers.spawn(length(origin.reader().unwrap()));
    }
    drop(origin);
    while let Some(read) = readers.join_next().await {
        assert_eq!(read.unwrap(), len);
    }
    assert!(held.most.load(SeqCst) <= LIMITS.max_buffer + 16 * KIB);
    assert_eq!((held.now.load(SeqCst), evicted.load(SeqCst)), (0, 0));
}

/// Whatever a seed says.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    async fn pause(&mut self) {
        for _ in 0..self.below(4) {
            yield_now().await;
        }
    }
}

/// A body whose frames come from another task, and that asks for pauses.
struct Channel {
    frames: mpsc::Receiver<Result<Frame<Bytes>, BoxError>>,
    dice: Dice,
}

impl Body for Channel {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.dice.below(4) == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.frames.poll_recv(cx)
    }
}

/// What a reader may see: the bytes and how they end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ends {
    Clean,
    Trailers,
    Error,
    /// It gave up.
    Left,
    /// It was given up.
    Evicted,
}

async fn produce(
    frames: mpsc::Sender<Result<Frame<Bytes>, BoxError>>,
    mut dice: Dice,
    ends: Ends,
) -> Vec<u8> {
    let mut sent = Vec::new();
    for _ in 0..dice.below(60) {
        let chunk: Vec<u8> = (0..dice.below(40)).map(|_| dice.below(256) as u8).collect();
        if frames
            .send(Ok(Frame::data(chunk.clone().into())))
            .await
            .is_err()
        {
            break;
        }
        sent.extend(chunk);
        dice.pause().await;
    }
    // Nobody may be left to see it.
    let _ = match ends {
        Ends::Trailers => frames.send(Ok(Frame::trailers(HeaderMap::new()))).await,
        Ends::Error => frames.send(Err("reset".into())).await,
        _ => Ok(()),
    };
    sent
}

async fn consume(mut body: SharedBody<Channel>, mut dice: Dice, leaves: bool) -> (Vec<u8>, Ends) {
    let mut read = Vec::new();
    loop {
        dice.pause().await;
        if leaves && dice.below(30) == 0 {
            return (read, Ends::Left);
        }
        // At times it gives a poll up, and has another.
        let patient = dice.below(3) > 0;
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = yield_now(), if !patient => continue,
        };
        match frame {
            None => return (read, Ends::Clean),
            Some(Err(error)) => {
                let evicted = error::find::<Rejection>(error.as_ref()).is_some();
                return (read, if evicted { Ends::Evicted } else { Ends::Error });
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => read.extend(data),
                Err(_) => return (read, Ends::Trailers),
            },
        }
    }
}

/// How many readers were evicted.
async fn schedule(seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let ends = [Ends::Clean, Ends::Trailers, Ends::Error][dice.below(3) as usize];
    let (sender, frames) = mpsc::channel(1 + dice.below(3) as usize);
    let mut next = || Dice(dice.below(u64::MAX));
    let body = Channel {
        frames,
        dice: next(),
    };
    let producer = tokio::spawn(produce(sender, next(), ends));
    let limits = Limits {
        max_buffer: next().below(100) as usize,
        // At times as short as a reader's pauses.
        stall: [Duration::MAX, Duration::from_micros(50)][next().below(2) as usize],
    };
    let evicted = Arc::new(AtomicU64::new(0));
    let origin = FanOut::open(body, limits, None, evicted.clone());
    let mut readers = JoinSet::new();
    for n in 0..1 + next().below(8) {
        // The first may be far ahead by now.
        let Ok(body) = origin.reader() else { break };
        readers.spawn(consume(body, next(), n > 0));
    }
    let mut closes = next();
    closes.pause().await;
    drop(origin);
    let read = readers.join_all().await;
    let sent = producer.await.unwrap();
    let told = read.iter().filter(|(_, how)| *how == Ends::Evicted).count() as u64;
    assert!(told <= evicted.load(SeqCst) && (told == 0 || limits.stall < Duration::MAX));
    assert!(
        told > 0 || read.iter().any(|(_, how)| *how == ends),
        "who stays sees the end"
    );
    for (read, how) in read {
        match how {
            Ends::Left | Ends::Evicted => assert!(sent.starts_with(&read)),
            _ => assert!(read == sent && how == ends, "{how:?} for {ends:?}"),
        }
    }
    told
}

#[test]
fn no_schedule_of_many_threads_loses_a_byte_or_a_wake() {
    let start = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_nanos() as u64;
    println!("the first seed is {start}");
    for workers in [2, 4] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut told = 0;
            for seed in (0..1_000).map(|n| start.wrapping_add(n)) {
                let run = tokio::spawn(schedule(seed));
                let ended = tokio::time::timeout(Duration::from_secs(60), run).await;
                told += ended
                    .unwrap_or_else(|_| panic!("seed {seed}: somebody sleeps for ever"))
                    .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
            assert!(told > 0, "some were evicted");
        });
    }
}
