//! Counters with a stripe for every thread.
//!
//! # Invariants
//!
//! - The process hands every thread that counts a slot number of its own, and takes it back when the thread ends.
//!   Slots below [`exclusive`] belong to one live thread each; all threads beyond that share the last slot.
//! - A cell in an exclusive stripe is written by its owner only: a plain load and store, no read-modify-write. A cell
//!   in the shared stripe is written with `fetch_add`.
//! - A slot passes from a thread that ends to one that begins through the lock of the free list, so the new owner sees
//!   every store of the old one.
//! - Each write is a `Release`; [`Striped::sum`] reads with `Acquire`. Whoever reads the end of a request therefore
//!   sees its start too: read "handled" before "started", and the difference is never negative.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

#[cfg(tower_flow_loom)]
use loom::sync::{Mutex, atomic::AtomicU64, atomic::Ordering};
#[cfg(not(tower_flow_loom))]
use std::sync::{Mutex, atomic::AtomicU64, atomic::Ordering};

/// A fixed number of counters, striped by thread.
///
/// Adding costs a load and a store in a cache line nobody else writes; reading sums the stripes. A stripe is allocated
/// when its thread first counts.
pub struct Striped {
    width: usize,
    stripes: Box<[OnceLock<Box<[Line]>>]>,
}

/// The calling thread's stripe of a [`Striped`]; no other thread can have it.
///
/// ```compile_fail
/// let striped = tower_flow::stats::Striped::new(1);
/// let stripe = striped.local();
/// std::thread::scope(|scope| _ = scope.spawn(|| stripe.add(0, 1)));
/// ```
#[derive(Debug)]
pub struct Stripe<'a> {
    lines: &'a [Line],
    shared: bool,
    /// It is its thread's alone.
    here: PhantomData<*const ()>,
}

/// Two cache lines, since neighbouring lines are fetched in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Line([AtomicU64; Line::CELLS]);

// ===== impl Striped =====

impl Striped {
    /// `width` counters, all zero.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            stripes: (0..=exclusive()).map(|_| OnceLock::new()).collect(),
        }
    }

    /// How many counters there are.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The calling thread's stripe. Use it at once; it is not meant to be kept.
    #[inline]
    pub fn local(&self) -> Stripe<'_> {
        self.stripe(slot())
    }

    /// The value of counter `index`.
    ///
    /// # Panics
    ///
    /// When `index` is not below [`width`](Self::width).
    pub fn sum(&self, index: usize) -> u64 {
        assert!(index < self.width, "counter {index} of {}", self.width);
        self.live().fold(0, |sum, lines| {
            sum.wrapping_add(cell(lines, index).load(Ordering::Acquire))
        })
    }

    /// Adds the values of the counters from `first` on to `into`, one by one.
    pub fn sum_into(&self, first: usize, into: &mut [u64]) {
        for lines in self.live() {
            for (offset, sum) in into.iter_mut().enumerate() {
                *sum = sum.wrapping_add(cell(lines, first + offset).load(Ordering::Acquire));
            }
        }
    }

    /// The greatest value any thread has [`raise`](Stripe::raise)d counter `index` to.
    pub fn greatest(&self, index: usize) -> u64 {
        assert!(index < self.width, "counter {index} of {}", self.width);
        self.live()
            .map(|lines| cell(lines, index).load(Ordering::Acquire))
            .fold(0, u64::max)
    }

    #[inline]
    fn stripe(&self, slot: usize) -> Stripe<'_> {
        // The last is shared by all who have none of their own.
        let last = self.stripes.len() - 1;
        let shared = slot >= last;
        let stripe = &self.stripes[if shared { last } else { slot }];
        let lines = match stripe.get() {
            Some(lines) => lines,
            None => self.fill(stripe),
        };
        Stripe {
            lines,
            shared,
            here: PhantomData,
        }
    }

    #[cold]
    fn fill<'a>(&self, stripe: &'a OnceLock<Box<[Line]>>) -> &'a [Line] {
        stripe.get_or_init(|| {
            let lines = self.width.div_ceil(Line::CELLS);
            (0..lines).map(|_| Line::zero()).collect()
        })
    }

    fn live(&self) -> impl Iterator<Item = &[Line]> {
        self.stripes
            .iter()
            .filter_map(|stripe| stripe.get().map(|lines| &lines[..]))
    }
}

impl std::fmt::Debug for Striped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Striped")
            .field("width", &self.width)
            .field("stripes", &self.live().count())
            .finish()
    }
}

// ===== impl Stripe =====

impl Stripe<'_> {
    /// Adds `n` to counter `index`, wrapping. Returns what this stripe held of it before.
    #[inline]
    pub fn add(&self, index: usize, n: u64) -> u64 {
        let cell = cell(self.lines, index);
        // Release pairs with the Acquire in `sum`.
        if self.shared {
            cell.fetch_add(n, Ordering::Release)
        } else {
            let before = cell.load(Ordering::Relaxed);
            cell.store(before.wrapping_add(n), Ordering::Release);
            before
        }
    }

    /// What this stripe holds of counter `index`.
    #[inline]
    pub fn get(&self, index: usize) -> u64 {
        cell(self.lines, index).load(Ordering::Relaxed)
    }

    /// Raises counter `index` to `value` if it is lower. Such a counter is read with [`Striped::greatest`].
    #[inline]
    pub fn raise(&self, index: usize, value: u64) {
        let cell = cell(self.lines, index);
        if cell.load(Ordering::Relaxed) < value {
            if self.shared {
                cell.fetch_max(value, Ordering::Release);
            } else {
                cell.store(value, Ordering::Release);
            }
        }
    }
}

// ===== impl Line =====

impl Line {
    const CELLS: usize = 16;

    fn zero() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

#[inline]
fn cell(lines: &[Line], index: usize) -> &AtomicU64 {
    &lines[index / Line::CELLS].0[index % Line::CELLS]
}

// ===== slots =====

/// How many threads get a stripe of their own: twice the cores, at least 16, at most 256.
fn exclusive() -> usize {
    static EXCLUSIVE: OnceLock<usize> = OnceLock::new();
    *EXCLUSIVE.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (2 * cores).clamp(16, 256)
    })
}

/// Slot numbers in use: the lowest free one goes out first, so that threads that come and go reuse stripes.
struct Slots(Mutex<Vec<bool>>);

impl Slots {
    fn claim(&self) -> usize {
        let mut taken = self.lock();
        let slot = taken.iter().position(|taken| !taken).unwrap_or(taken.len());
        if slot == taken.len() {
            taken.push(true);
        } else {
            taken[slot] = true;
        }
        slot
    }

    fn release(&self, slot: usize) {
        self.lock()[slot] = false;
    }

    #[cfg(not(tower_flow_loom))]
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<bool>> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[cfg(tower_flow_loom)]
    fn lock(&self) -> loom::sync::MutexGuard<'_, Vec<bool>> {
        self.0
            .lock()
            .expect("no thread panics while it holds this lock")
    }
}

const UNCLAIMED: usize = usize::MAX;
/// Beyond every exclusive slot: a thread whose own slot is gone already counts in the shared stripe.
const ENDED: usize = usize::MAX - 1;

thread_local! {
    // Without a destructor, so it can be read while the thread ends.
    static SLOT: Cell<usize> = const { Cell::new(UNCLAIMED) };
}

#[inline]
fn slot() -> usize {
    let slot = SLOT.get();
    if slot == UNCLAIMED { claim() } else { slot }
}

#[cfg(not(tower_flow_loom))]
#[cold]
fn claim() -> usize {
    static SLOTS: Slots = Slots(Mutex::new(Vec::new()));

    struct Claim(usize);
    impl Drop for Claim {
        fn drop(&mut self) {
            SLOT.set(ENDED);
            SLOTS.release(self.0);
        }
    }
    thread_local! {
        static CLAIM: Claim = Claim(SLOTS.claim());
    }

    let slot = CLAIM.try_with(|claim| claim.0).unwrap_or(ENDED);
    SLOT.set(slot);
    slot
}

// Loom's statics live in a model only; its tests claim slots by hand.
#[cfg(tower_flow_loom)]
fn claim() -> usize {
    ENDED
}

#[cfg(all(test, not(tower_flow_loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn threads_that_come_and_go_lose_nothing() {
        let counters = Arc::new(Striped::new(40));
        for _ in 0..10 {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let counters = counters.clone();
                    std::thread::spawn(move || {
                        for index in 0..10_000 {
                            counters.local().add(index % 40, 1);
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
        }
        let mut all = [0; 40];
        counters.sum_into(0, &mut all);
        assert_eq!(all, [20_000; 40]);
        assert_eq!(counters.sum(39), 20_000);
    }

    #[test]
    fn more_threads_than_stripes_share_the_last() {
        let counters = Arc::new(Striped::new(1));
        let crowd = exclusive() + 8;
        let barrier = Arc::new(std::sync::Barrier::new(crowd));
        let threads: Vec<_> = (0..crowd)
            .map(|_| {
                let (counters, barrier) = (counters.clone(), barrier.clone());
                std::thread::spawn(move || {
                    counters.local().add(0, 0);
                    barrier.wait();
                    for _ in 0..1_000 {
                        counters.local().add(0, 1);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(counters.sum(0), crowd as u64 * 1_000);
    }

    #[test]
    fn counting_while_a_thread_ends_is_counted() {
        struct Late(Arc<Striped>);
        impl Drop for Late {
            fn drop(&mut self) {
                self.0.local().add(0, 1);
            }
        }
        thread_local!(static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) });
        let counters = Arc::new(Striped::new(1));
        let late = Late(counters.clone());
        std::thread::spawn(move || {
            LATE.set(Some(late));
            LATE.with_borrow(|late| late.as_ref().unwrap().0.local().add(0, 1));
        })
        .join()
        .unwrap();
        assert_eq!(counters.sum(0), 2);
    }

    #[test]
    #[should_panic(expected = "counter 3 of 3")]
    fn a_counter_beyond_the_width_is_refused() {
        Striped::new(3).sum(3);
    }
}

#[cfg(all(test, tower_flow_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// A slot handed from one thread to the next carries every count with it.
    #[test]
    fn a_slot_passes_on_with_its_counts() {
        loom::model(|| {
            let counters = Arc::new(Striped::new(1));
            let slots = Arc::new(Slots(Mutex::new(Vec::new())));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (counters, slots) = (counters.clone(), slots.clone());
                    loom::thread::spawn(move || {
                        let slot = slots.claim();
                        counters.stripe(slot).add(0, 1);
                        slots.release(slot);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(counters.sum(0), 2);
        });
    }

    /// Who sees a request handled sees it started, though other threads did both.
    #[test]
    fn handled_is_never_seen_before_started() {
        loom::model(|| {
            let counters = Arc::new(Striped::new(2));
            counters.stripe(0);
            counters.stripe(1);
            let reader = counters.clone();
            let task = loom::thread::spawn(move || {
                counters.stripe(0).add(0, 1);
                let ended = counters.clone();
                loom::thread::spawn(move || ended.stripe(1).add(1, 1))
                    .join()
                    .unwrap();
            });
            let handled = reader.sum(1);
            let started = reader.sum(0);
            assert!(started >= handled, "{started} started, {handled} handled");
            task.join().unwrap();
        });
    }

    /// The shared stripe loses no count however its writers interleave.
    #[test]
    fn the_shared_stripe_adds_up() {
        loom::model(|| {
            let counters = Arc::new(Striped::new(1));
            counters.stripe(ENDED);
            let other = counters.clone();
            let thread = loom::thread::spawn(move || other.stripe(ENDED).add(0, 1));
            counters.stripe(ENDED).add(0, 1);
            thread.join().unwrap();
            assert_eq!(counters.sum(0), 2);
        });
    }
}
