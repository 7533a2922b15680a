//! What a layer's own code costs, without what is inside it.
//!
//! # How it works
//!
//! A layer keeps a [`Cost`]. Each of its calls asks it for a [`Toll`], which is empty but for one call in 64, and
//! for all of them until somebody asks for the first time. Within a call that pays every layer's call pays, so the layers
//! further inside are looked at more often. A call that pays is measured: its own code runs in [`Toll::run`], and calls
//! and polls of the inner service in [`Toll::inner`], which takes their time out again.
//!
//! Who calls whom is seen on the way: a call that begins within the stretch of another layer's call is inside it.
//!
//! # Invariants
//!
//! - Code of one thread nests, so a few cells of the thread are enough: the layer inside which code runs, whether that
//!   code is a layer's own, the time that is not, and how many pieces it came in. Whoever sets them puts back what they
//!   were, also in an unwinding.
//! - A reading of the clock costs as much as much of what is measured here. Each piece between two readings has the
//!   cost of one in it, so pieces are counted and that much is taken off when somebody reads.
//!
//! ```
//! use tower_flow::inspect::Cost;
//!
//! let cost = Cost::new();
//! // A layer of your own does this for each call, and shows its cost by `Inspect::cost`.
//! let toll = cost.call();
//! let answer = toll.run(|| toll.inner(|| 41) + 1);
//! assert_eq!(answer, 42);
//! ```

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::clock::{self, Instant, nanos};
use super::stats::{Exponential, once_in};

/// One call in so many is measured.
const EVERY: u32 = 64;

/// No layer; also what a layer is inside until it is seen inside another one.
const NONE: u32 = 0;

thread_local! {
    static INSIDE: Cell<u32> = const { Cell::new(NONE) };
    static OWN: Cell<bool> = const { Cell::new(false) };
    static NOT_OWN: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static PIECES: Cell<u64> = const { Cell::new(0) };
}

/// What the calls of one layer cost. Clones are the same; see [`Flow::overhead`](crate::Flow::overhead).
#[derive(Debug, Clone)]
pub struct Cost(Arc<Books>);

#[derive(Debug)]
struct Books {
    id: u32,
    /// Whether anybody wants to know.
    wanted: AtomicBool,
    inside: AtomicU32,
    /// Calls that were measured since they were inside one that was.
    nested: AtomicU64,
    calls: Exponential,
}

/// What one call carries: nothing, unless it is measured.
#[derive(Debug, Default)]
#[must_use = "a call carries it to its end"]
pub struct Toll(Option<Arc<Paid>>);

/// What a call has cost so far; noted when the last who has it is done.
#[derive(Debug)]
struct Paid {
    cost: Cost,
    pieces: AtomicU64,
    nanos: AtomicU64,
}

/// While it lives the layer's own code runs. It is dropped where it was made, the last one first.
#[derive(Debug)]
#[must_use = "dropped at once it measures nothing"]
pub(crate) struct Own {
    _stretch: Option<Stretch>,
    /// It is its thread's alone.
    _here: PhantomData<*const ()>,
}

#[derive(Debug)]
struct Stretch {
    paid: Arc<Paid>,
    start: Instant,
    outer: Cells,
}

/// The cells of the thread as they were.
#[derive(Debug)]
struct Cells {
    inside: u32,
    own: bool,
    not_own: Duration,
    pieces: u64,
}

/// What a call of a layer costs, and the layer it was seen inside.
///
/// It is the median: a thread that has to give up its core within a stretch may come back ten thousand times as late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Typical {
    pub(crate) sampled: u64,
    pub(crate) nested: u64,
    pub(crate) per_call: Duration,
    pub(crate) id: u32,
    pub(crate) inside: Option<u32>,
}

/// Follows a request through layers that do not enclose each other: what is called within it is inside whatever ran
/// last. Nothing unless a call that is measured began before.
#[derive(Debug)]
pub(crate) struct Chain(u32);

impl Chain {
    #[inline]
    pub(crate) fn begin() -> Self {
        Self(INSIDE.get())
    }
}

impl Drop for Chain {
    #[inline]
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

// ===== impl Cost =====

impl Cost {
    /// The books of a layer, empty.
    pub fn new() -> Self {
        static LAST: AtomicU32 = AtomicU32::new(NONE);
        Self(Arc::new(Books {
            id: LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
            wanted: AtomicBool::new(false),
            inside: NONE.into(),
            nested: AtomicU64::new(0),
            calls: Exponential::new(),
        }))
    }

    /// A call begins. Inside one that is measured it is measured too.
    #[inline]
    pub fn call(&self) -> Toll {
        if !self.0.wanted.load(Ordering::Relaxed) {
            return Toll(None);
        }
        self.ask()
    }

    fn ask(&self) -> Toll {
        let outer = INSIDE.get();
        if outer == NONE && !once_in(EVERY) {
            return Toll(None);
        }
        let books = &*self.0;
        // A service that calls itself through the same layer is not inside itself.
        if outer != NONE && outer != books.id {
            books.inside.store(outer, Ordering::Relaxed);
            books.nested.fetch_add(1, Ordering::Relaxed);
        }
        Toll::measured(self)
    }

    /// Begins to measure.
    pub(crate) fn want(&self) {
        self.0.wanted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn typical(&self) -> Typical {
        let books = &*self.0;
        let counts = books.calls.counts();
        let inside = books.inside.load(Ordering::Relaxed);
        Typical {
            sampled: counts.count(),
            nested: books.nested.load(Ordering::Relaxed),
            per_call: counts.quantiles().p50,
            id: books.id,
            inside: (inside != NONE).then_some(inside),
        }
    }
}

impl Default for Cost {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs what is not the own code of the layer that runs: a call or poll of its inner service.
#[inline]
pub(crate) fn inner<T>(run: impl FnOnce() -> T) -> T {
    if OWN.get() { outside(run) } else { run() }
}

#[cold]
fn outside<T>(run: impl FnOnce() -> T) -> T {
    struct Back(Instant, u32);
    impl Drop for Back {
        fn drop(&mut self) {
            let spent = clock::now().saturating_duration_since(self.0);
            NOT_OWN.set(NOT_OWN.get() + spent);
            PIECES.set(PIECES.get() + 1);
            INSIDE.set(self.1);
            OWN.set(true);
        }
    }
    OWN.set(false);
    let _back = Back(clock::now(), INSIDE.get());
    run()
}

// ===== impl Toll =====

impl Toll {
    #[cold]
    fn measured(cost: &Cost) -> Self {
        Self(Some(Arc::new(Paid {
            cost: cost.clone(),
            pieces: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        })))
    }

    /// Runs the layer's own code.
    #[inline]
    pub fn run<T>(&self, run: impl FnOnce() -> T) -> T {
        let _own = self.own();
        run()
    }

    /// The layer's own code runs from now on, until the answer is dropped.
    #[inline]
    pub(crate) fn own(&self) -> Own {
        let paid = self.0.as_ref();
        Own {
            _stretch: paid.map(|paid| Stretch::open(paid.clone())),
            _here: PhantomData,
        }
    }

    /// Runs what is not the layer's own: the inner service, within [`run`](Self::run).
    #[inline]
    pub fn inner<T>(&self, run: impl FnOnce() -> T) -> T {
        inner(run)
    }

    /// What is called from now on is inside this layer, though it does not enclose it: until the [`Chain`] ends.
    #[cfg(any(feature = "grpc", feature = "throttle", feature = "timing"))]
    #[inline]
    pub(crate) fn linger(&self) {
        if let Some(paid) = &self.0 {
            INSIDE.set(paid.cost.0.id);
        }
    }
}

impl Stretch {
    #[cold]
    fn open(paid: Arc<Paid>) -> Self {
        Self {
            outer: Cells {
                inside: INSIDE.replace(paid.cost.0.id),
                own: OWN.replace(true),
                not_own: NOT_OWN.replace(Duration::ZERO),
                pieces: PIECES.replace(1),
            },
            paid,
            start: clock::now(),
        }
    }
}

impl Drop for Stretch {
    fn drop(&mut self) {
        let spent = clock::now().saturating_duration_since(self.start);
        let own = spent.saturating_sub(NOT_OWN.replace(self.outer.not_own));
        self.paid.nanos.fetch_add(nanos(own), Ordering::Relaxed);
        let pieces = PIECES.replace(self.outer.pieces);
        self.paid.pieces.fetch_add(pieces, Ordering::Relaxed);
        INSIDE.set(self.outer.inside);
        OWN.set(self.outer.own);
    }
}

impl Drop for Paid {
    fn drop(&mut self) {
        let readings = nanos(reading()).saturating_mul(*self.pieces.get_mut());
        let own = self.nanos.get_mut().saturating_sub(readings);
        self.cost.0.calls.record(Duration::from_nanos(own));
    }
}

/// What a reading of the clock costs: the least of many, once.
fn reading() -> Duration {
    static READING: OnceLock<Duration> = OnceLock::new();
    const TIMES: u32 = 64;
    *READING.get_or_init(|| {
        let rounds = (0..32).map(|_| {
            let start = clock::now();
            for _ in 0..TIMES {
                std::hint::black_box(clock::now());
            }
            clock::now().saturating_duration_since(start) / (TIMES + 1)
        });
        rounds.min().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use futures_util::FutureExt;

    use super::*;

    fn spend(ms: u64) {
        // Time moves at once; the tasks it wakes are of no interest.
        let _moved = tokio::time::advance(Duration::from_millis(ms)).now_or_never();
    }

    fn wanted() -> Cost {
        let cost = Cost::new();
        cost.want();
        cost
    }

    /// A call that is measured.
    fn toll(cost: &Cost) -> Toll {
        Toll::measured(cost)
    }

    /// Whether a call that is over cost so many milliseconds, as exactly as they are kept.
    fn spent(cost: &Cost, ms: f64) -> bool {
        let spent = cost.typical().per_call.as_secs_f64() * 1e3;
        (spent / ms - 1.0).abs() < 0.1
    }

    fn is_clean() -> bool {
        INSIDE.get() == NONE && !OWN.get() && NOT_OWN.get().is_zero()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_inside_is_not_its_own() {
        let (outer, other) = (wanted(), wanted());
        let call = toll(&outer);
        let own = call.own();
        spend(1);
        call.inner(|| {
            spend(2);
            // Inside a call that is measured every call is.
            let call = other.call();
            let _own = call.own();
            spend(4);
            call.inner(|| spend(8));
            spend(16);
        });
        spend(32);
        call.inner(|| spend(64));
        drop(own);
        assert!(is_clean());
        // Later, in a poll of the same call.
        drop(call.own());
        drop(call);
        assert!(spent(&outer, 33.0) && spent(&other, 20.0));
        let (outer, other) = (outer.typical(), other.typical());
        assert_eq!((outer.sampled, other.sampled), (1, 1));
        assert_eq!((outer.inside, other.inside), (None, Some(outer.id)));
    }

    #[cfg(any(feature = "grpc", feature = "throttle", feature = "timing"))]
    #[tokio::test(start_paused = true)]
    async fn a_layer_that_encloses_nothing_is_seen_round_what_follows() {
        let (first, second) = (wanted(), wanted());
        let chain = Chain::begin();
        let call = toll(&first);
        drop(call.own());
        call.linger();
        let _inner = second.call();
        drop(chain);
        assert!(is_clean());
        assert_eq!(second.typical().inside, Some(first.typical().id));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_puts_everything_back() {
        let cost = Cost::new();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let call = toll(&cost);
            let _own = call.own();
            spend(1);
            call.inner(|| {
                spend(2);
                panic!("told to");
            })
        }));
        assert!(caught.is_err() && is_clean());
        assert!(spent(&cost, 1.0));
    }

    #[test]
    fn nothing_costs_about_nothing() {
        let cost = Cost::new();
        for _ in 0..10_000 {
            let call = toll(&cost);
            let _own = call.own();
            call.inner(|| ());
        }
        let mean = cost.typical();
        // A debug build on a busy machine; the bench `overhead` says what it is in a release build.
        assert!(mean.per_call < Duration::from_micros(50), "{mean:?}");
    }

    #[test]
    fn one_call_in_so_many_is_measured() {
        let cost = wanted();
        for _ in 0..100 * EVERY {
            let _toll = cost.call();
        }
        let sampled = cost.typical().sampled;
        assert!((40..160).contains(&sampled), "{sampled} of {}", 100 * EVERY);
    }
}
