//! What one request of a client spent where: waiting, DNS, connect, TLS, handshake, first byte, end.
//!
//! # How it works
//!
//! A pool opens a [`Dial`] for each connection it makes and polls the connector inside [`Dial::scope`]. Connectors find
//! it with [`Dial::current`], on the thread that polls them, and say which [`Phase`] begins and ends; a connector that
//! says nothing still works. When a response comes, the pool puts [`Timings`] into its extensions: whoever reads the
//! response can ask, and `timing` makes histograms of it.
//!
//! ```text
//! call       dial            connection granted       headers      end of the body
//!  ├── queue ──┤├ dns ┤├ connect ┤├ tls ┤├ handshake ┤
//!  ├────────────────── wait ─────────────────────────┤
//!  ├──────────────────────── first byte ─────────────────┤
//!  ├──────────────────────────── end ────────────────────────────────┤
//! ```
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use tower_flow::clock;
//! use tower_flow::phases::{Dial, Phase, Timings};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), std::io::Error> {
//! // A connector knows nothing of who asked for it.
//! async fn connect() -> Result<&'static str, std::io::Error> {
//!     Phase::Dns.mark(async {
//!         tokio::time::sleep(Duration::from_millis(20)).await;
//!         Ok("a socket")
//!     }).await
//! }
//!
//! let start = clock::now();
//! let dial = Dial::new(start);
//! let io = dial.scope(connect()).await?;
//! assert_eq!(dial.durations().dns, Some(Duration::from_millis(20)));
//!
//! let granted = clock::now();
//! let timings = Timings::new(start, granted, granted, None, Some(&dial));
//! assert!(!timings.reused());
//! assert_eq!(timings.wait(), Duration::from_millis(20));
//! assert!(timings.to_value().to_string().contains(r#""time_namelookup":0.02"#));
//! # let _ = io; Ok(()) }
//! ```
//!
//! # Cancellation
//!
//! A phase that is marked and dropped before its end has failed; [`Dial::phase`] remembers which it was, so that whoever
//! gives up on a dial can say where it stood.
//!
//! # Cost
//!
//! A dial is one allocation, [`Timings`] another, and a few relaxed atomics each. [`Dial::scope`] moves a pointer in and
//! out of a thread-local on each poll and counts no reference.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::clock::{self, Instant, nanos};
use super::inspect::Value;

/// A part of the way from a call to its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// For a connection: in the queue, and while one is made.
    Wait,
    /// Looking up the host's addresses.
    Dns,
    /// Until the socket is connected.
    Connect,
    /// The TLS handshake.
    Tls,
    /// HTTP/2's preface, until the peer's SETTINGS.
    Handshake,
}

/// The record of one dial. Clones are the same dial.
///
/// It is meant to be written by whoever polls the dial and read by anybody.
#[derive(Clone)]
pub struct Dial(Arc<Inner>);

// All of it is Relaxed: a dial is written by the task that polls it, and whoever needs all of it got it from that task.
// A reader in between may see a phase under way that has just ended, and nothing worse.
struct Inner {
    started: Instant,
    /// The phases under way, the innermost lowest: a stack of nibbles, [`nibble`] each.
    running: AtomicU64,
    /// The nibble of the phase that failed last, 0 once another begins.
    failed: AtomicU64,
    marks: [Mark; Phase::ALL.len()],
    observer: Option<Arc<dyn DialObserver>>,
}

/// One phase of a dial, in nanoseconds.
struct Mark {
    /// Since the dial's start; of use while it runs.
    entered: AtomicU64,
    /// Since the dial's start; [`NEVER`] before its first end.
    left: AtomicU64,
    /// All of its runs.
    spent: AtomicU64,
}

/// No time at all; as a time it would be 584 years.
const NEVER: u64 = u64::MAX;

/// Is told of the phases of a dial as they begin and end, on the thread that polls it: be quick, and do not panic.
pub trait DialObserver: Send + Sync {
    /// `phase` has begun.
    fn started(&self, phase: Phase);

    /// `phase` is over; `failed` when by an error or because nobody waits for it any more.
    fn ended(&self, phase: Phase, failed: bool);
}

/// How long each phase took; `None` where it has not come to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Durations {
    /// Looking up the host's addresses.
    pub dns: Option<Duration>,
    /// Until the socket was connected.
    pub connect: Option<Duration>,
    /// The TLS handshake.
    pub tls: Option<Duration>,
    /// HTTP/2's preface, until the peer's SETTINGS.
    pub handshake: Option<Duration>,
}

/// A phase under way. Dropped before [`done`](Self::done), it has failed.
#[derive(Debug)]
#[must_use = "a span that is dropped at once is a phase that failed"]
pub struct Span {
    dial: Option<Dial>,
    phase: Phase,
}

pin_project! {
    /// A future during which a dial is the current one; made by [`Dial::scope`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Scope<F> {
        #[pin]
        inner: F,
        dial: Option<Dial>,
    }
}

pin_project! {
    /// A future that is a phase of the current dial; made by [`Phase::mark`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Marked<F> {
        #[pin]
        inner: F,
        phase: Phase,
        polled: bool,
        span: Option<Span>,
    }
}

/// What one request spent where: an extension of its response.
///
/// It can be read while the body still runs; [`end`](Self::end) is known afterwards. Clones are the same request.
///
/// ```
/// # use tower_flow::phases::Timings;
/// fn tell<B>(response: &http::Response<B>) {
///     if let Some(timings) = response.extensions().get::<Timings>() {
///         println!("{}", timings.to_value());
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Timings(Arc<Request>);

/// Durations are in nanoseconds since the call, [`NEVER`] where there is none.
struct Request {
    start: Instant,
    queue: u64,
    wait: u64,
    first_byte: u64,
    idle: u64,
    reused: bool,
    /// How long each phase of the dial took.
    spent: [u64; Phase::ALL.len()],
    /// When each was over.
    done: [u64; Phase::ALL.len()],
    /// Written once.
    end: AtomicU64,
}

thread_local! {
    /// The dial whose future is being polled on this thread.
    static CURRENT: RefCell<Option<Dial>> = const { RefCell::new(None) };
}

// ===== impl Phase =====

impl Phase {
    /// All of them, in the order they come.
    pub const ALL: [Self; 5] = [
        Self::Wait,
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Handshake,
    ];

    /// Its name, as in metrics: `wait`, `dns`, `connect`, `tls`, `handshake`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Handshake => "handshake",
        }
    }

    /// Makes `future` this phase of the dial that is current when it is first polled. Without one it only passes on.
    pub fn mark<F>(self, future: F) -> Marked<F> {
        Marked {
            inner: future,
            phase: self,
            polled: false,
            span: None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

// ===== impl Dial =====

impl Dial {
    /// A dial that begins `now`.
    pub fn new(now: Instant) -> Self {
        Self::with(now, None)
    }

    /// A dial that begins `now` and tells `observer` of its phases.
    pub fn observed(now: Instant, observer: Arc<dyn DialObserver>) -> Self {
        Self::with(now, Some(observer))
    }

    fn with(started: Instant, observer: Option<Arc<dyn DialObserver>>) -> Self {
        Self(Arc::new(Inner {
            started,
            running: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            marks: Phase::ALL.map(|_| Mark {
                entered: AtomicU64::new(0),
                left: AtomicU64::new(NEVER),
                spent: AtomicU64::new(0),
            }),
            observer,
        }))
    }

    /// The dial whose future is being polled on this thread.
    pub fn current() -> Option<Self> {
        CURRENT
            .try_with(|current| current.borrow().clone())
            .ok()
            .flatten()
    }

    /// Makes this the [`current`](Self::current) dial whenever `future` is polled.
    pub fn scope<F>(&self, future: F) -> Scope<F> {
        Scope {
            inner: future,
            dial: Some(self.clone()),
        }
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.0.started
    }

    /// `phase` begins `now`. Nothing happens when it is under way already.
    ///
    /// Phases should follow each other. Should they nest, each is as long as it is, with what is inside it.
    pub fn enter(&self, phase: Phase, now: Instant) {
        self.begin(phase, now);
    }

    /// `phase` ends `now`, as it should. Nothing happens when it is not under way.
    pub fn leave(&self, phase: Phase, now: Instant) {
        self.over(phase, now, false);
    }

    /// `phase` fails `now`. Nothing happens when it is not under way.
    pub fn fail(&self, phase: Phase, now: Instant) {
        self.over(phase, now, true);
    }

    /// `phase` begins; the span ends it, unless it was under way already: then whoever began it does.
    pub fn span(&self, phase: Phase) -> Span {
        self.span_since(phase, clock::now())
    }

    /// The same for a phase that began `at` a moment that has passed.
    pub fn span_since(&self, phase: Phase, at: Instant) -> Span {
        let dial = self.begin(phase, at).then(|| self.clone());
        Span { dial, phase }
    }

    /// The phase it is in, the innermost one; after a failure the phase that failed. `None` between phases, and as long
    /// as nobody marks one.
    pub fn phase(&self) -> Option<Phase> {
        named(self.0.running.load(Ordering::Relaxed))
            .or_else(|| named(self.0.failed.load(Ordering::Relaxed)))
    }

    /// When `phase` last ended.
    pub fn ended(&self, phase: Phase) -> Option<Instant> {
        Some(self.0.started + known(self.left(phase))?)
    }

    /// How long `phase` took in all; `None` before its first end.
    pub fn duration(&self, phase: Phase) -> Option<Duration> {
        known(self.spent(phase))
    }

    /// How long each phase took.
    pub fn durations(&self) -> Durations {
        Durations {
            dns: self.duration(Phase::Dns),
            connect: self.duration(Phase::Connect),
            tls: self.duration(Phase::Tls),
            handshake: self.duration(Phase::Handshake),
        }
    }

    /// Whether it was not under way already.
    fn begin(&self, phase: Phase, now: Instant) -> bool {
        if has(self.0.running.load(Ordering::Relaxed), phase) {
            return false;
        }
        let mark = &self.0.marks[phase as usize];
        mark.entered.store(self.since(now), Ordering::Relaxed);
        self.0.failed.store(0, Ordering::Relaxed);
        self.change(|running| running << 4 | nibble(phase));
        if let Some(observer) = &self.0.observer {
            observer.started(phase);
        }
        true
    }

    fn over(&self, phase: Phase, now: Instant, failed: bool) {
        if !has(self.0.running.load(Ordering::Relaxed), phase) {
            return;
        }
        let mark = &self.0.marks[phase as usize];
        let left = self.since(now);
        let spent = left.saturating_sub(mark.entered.load(Ordering::Relaxed));
        mark.spent.fetch_add(spent, Ordering::Relaxed);
        mark.left.store(left, Ordering::Relaxed);
        if failed && self.0.failed.load(Ordering::Relaxed) == 0 {
            // The innermost fails first, and that is the one to tell of.
            self.0.failed.store(nibble(phase), Ordering::Relaxed);
        }
        self.change(|running| without(running, phase));
        if let Some(observer) = &self.0.observer {
            observer.ended(phase, failed);
        }
    }

    fn change(&self, to: impl Fn(u64) -> u64) {
        let changed =
            self.0
                .running
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |running| {
                    Some(to(running))
                });
        debug_assert!(changed.is_ok());
    }

    fn left(&self, phase: Phase) -> u64 {
        self.0.marks[phase as usize].left.load(Ordering::Relaxed)
    }

    fn spent(&self, phase: Phase) -> u64 {
        match self.left(phase) {
            NEVER => NEVER,
            _ => self.0.marks[phase as usize].spent.load(Ordering::Relaxed),
        }
    }

    fn since(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.0.started))
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial")
            .field("phase", &self.phase())
            .field("durations", &self.durations())
            .finish_non_exhaustive()
    }
}

/// How a phase is written into a stack; never 0.
fn nibble(phase: Phase) -> u64 {
    phase as u64 + 1
}

/// The phase on top.
fn named(stack: u64) -> Option<Phase> {
    Phase::ALL
        .into_iter()
        .find(|phase| nibble(*phase) == stack & 0xf)
}

fn has(stack: u64, phase: Phase) -> bool {
    without(stack, phase) != stack
}

/// The stack with `phase` taken out, wherever it is. No phase is in it twice.
fn without(stack: u64, phase: Phase) -> u64 {
    (0..Phase::ALL.len())
        .map(|depth| 4 * depth)
        .find(|shift| stack >> shift & 0xf == nibble(phase))
        .map_or(stack, |shift| {
            let above = stack & ((1 << shift) - 1);
            stack >> (shift + 4) << shift | above
        })
}

fn known(nanos: u64) -> Option<Duration> {
    (nanos != NEVER).then(|| Duration::from_nanos(nanos))
}

// ===== impl Span =====

impl Span {
    /// The phase is over.
    pub fn done(mut self) {
        if let Some(dial) = self.dial.take() {
            dial.leave(self.phase, clock::now());
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(dial) = self.dial.take() {
            dial.fail(self.phase, clock::now());
        }
    }
}

// ===== impl Scope =====

/// Exchanges what is current with what a scope holds, and back when dropped, in a panic too.
struct Entered<'a>(&'a mut Option<Dial>);

impl<'a> Entered<'a> {
    fn new(dial: &'a mut Option<Dial>) -> Self {
        swap(dial);
        Self(dial)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        swap(self.0);
    }
}

fn swap(dial: &mut Option<Dial>) {
    // An error while the thread ends; then nothing is current, in either direction.
    let _ = CURRENT.try_with(|current| std::mem::swap(&mut *current.borrow_mut(), dial));
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = Entered::new(this.dial);
        this.inner.poll(cx)
    }
}

// ===== impl Marked =====

impl<F, T, E> Future for Marked<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if !*this.polled {
            *this.polled = true;
            *this.span = Dial::current().map(|dial| dial.span(*this.phase));
        }
        let result = ready!(this.inner.poll(cx));
        if let Some(span) = this.span.take()
            && result.is_ok()
        {
            span.done();
        }
        Poll::Ready(result)
    }
}

// ===== impl Timings =====

impl Timings {
    /// Of a request made at `start` that was `granted` a connection and then had its `first_byte`.
    ///
    /// `dial` is that of a connection nobody used before; without it the connection was reused. `reused_idle` is how
    /// long the connection lay idle before the request took it, if it did.
    pub fn new(
        start: Instant,
        granted: Instant,
        first_byte: Instant,
        reused_idle: Option<Duration>,
        dial: Option<&Dial>,
    ) -> Self {
        let since = |at: Instant| nanos(at.saturating_duration_since(start));
        let wait = since(granted);
        // A connection may have been dialled for somebody else, before this request began: what was over by then took
        // none of its time, though it is the phase's duration all the same.
        let within = |at: Instant| since(at).min(wait);
        Self(Arc::new(Request {
            start,
            queue: dial.map_or(wait, |dial| within(dial.started())),
            wait,
            first_byte: since(first_byte),
            idle: reused_idle.map_or(NEVER, nanos),
            reused: dial.is_none(),
            spent: Phase::ALL.map(|phase| dial.map_or(NEVER, |dial| dial.spent(phase))),
            done: Phase::ALL.map(|phase| {
                let ended = dial.and_then(|dial| dial.ended(phase));
                ended.map_or(NEVER, within)
            }),
            end: AtomicU64::new(NEVER),
        }))
    }

    /// Notes the end of the response's body; the first end counts.
    pub fn finish(&self, at: Instant) {
        let end = nanos(at.saturating_duration_since(self.0.start));
        let _ = self
            .0
            .end
            .compare_exchange(NEVER, end, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// From the call until it had a connection: in the queue, and while the connection was made.
    pub fn wait(&self) -> Duration {
        Duration::from_nanos(self.0.wait)
    }

    /// Whether an earlier request had used the connection, or others were using it.
    pub fn reused(&self) -> bool {
        self.0.reused
    }

    /// How long the connection had been idle, if it had.
    pub fn idle(&self) -> Option<Duration> {
        known(self.0.idle)
    }

    /// How long looking up the host took, on a new connection.
    pub fn dns(&self) -> Option<Duration> {
        self.spent(Phase::Dns)
    }

    /// How long connecting took, on a new connection.
    pub fn connect(&self) -> Option<Duration> {
        self.spent(Phase::Connect)
    }

    /// How long the TLS handshake took, on a new connection.
    pub fn tls(&self) -> Option<Duration> {
        self.spent(Phase::Tls)
    }

    /// How long HTTP/2's preface took until the peer's SETTINGS, on a new connection.
    pub fn handshake(&self) -> Option<Duration> {
        self.spent(Phase::Handshake)
    }

    /// From the call to the response's headers.
    pub fn first_byte(&self) -> Duration {
        Duration::from_nanos(self.0.first_byte)
    }

    /// From the call to the end of the response's body; `None` until then.
    pub fn end(&self) -> Option<Duration> {
        known(self.0.end.load(Ordering::Relaxed))
    }

    /// How long `phase` took; `None` when it did not happen.
    pub fn phase(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Wait => Some(self.wait()),
            phase => self.spent(phase),
        }
    }

    /// The moments since the call, in seconds, by the names curl gives them: `time_queue`, `time_namelookup`,
    /// `time_connect`, `time_appconnect`, `time_pretransfer`, `time_starttransfer`, `time_total`. As text it is JSON.
    ///
    /// As with curl each contains those before it. What did not happen or is not known yet is null, where curl would
    /// write zero; so are the steps of making a connection on one that was reused. `time_queue` is the time before
    /// the connection's dial began, or before a used connection came free; `time_pretransfer` is when the request
    /// could be written.
    pub fn to_value(&self) -> Value {
        let seconds = |nanos| known(nanos).map_or(Value::Null, Value::from);
        let done = |phase| seconds(self.0.done[phase as usize]);
        Value::map([
            ("time_queue", seconds(self.0.queue)),
            ("time_namelookup", done(Phase::Dns)),
            ("time_connect", done(Phase::Connect)),
            ("time_appconnect", done(Phase::Tls)),
            ("time_pretransfer", seconds(self.0.wait)),
            ("time_starttransfer", seconds(self.0.first_byte)),
            ("time_total", self.end().map_or(Value::Null, Value::from)),
        ])
    }

    fn spent(&self, phase: Phase) -> Option<Duration> {
        known(self.0.spent[phase as usize])
    }
}

impl fmt::Debug for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timings")
            .field("wait", &self.wait())
            .field("reused", &self.reused())
            .field("idle", &self.idle())
            .field("dns", &self.dns())
            .field("connect", &self.connect())
            .field("tls", &self.tls())
            .field("handshake", &self.handshake())
            .field("first_byte", &self.first_byte())
            .field("end", &self.end())
            .finish()
    }
}

#[cfg(test)]
mod tests;
