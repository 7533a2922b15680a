use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{NEVER, Phase, known};
use crate::base::clock::{self, Instant, nanos};

/// The record of one dial. Clones are the same dial.
///
/// It is meant to be written by whoever polls the dial and read by anybody.
#[derive(Clone)]
pub struct Dial(pub(super) Arc<Inner>);

// All of it is Relaxed: a dial is written by the task that polls it, and whoever needs all of it got it from that task.
// A reader in between may see a phase under way that has just ended, and nothing worse.
pub(super) struct Inner {
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

    pub(super) fn spent(&self, phase: Phase) -> u64 {
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
