//! Starting, stopping and watching the profiler's thread.
//!
//! # Invariants
//!
//! - `RUNNING` is true exactly while a [`Slot`] exists. The thread owns it and drops it before it says that it is done, so
//!   whoever has a profile can start the next one.
//! - The wish goes from `Run` to `Stop` or `Discard` and never back; the thread looks at it in every round.
//! - `done` is set once, by the thread, as the last thing it does. It is set even if the thread panics.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::error::ProfilerError;
use super::report::Profile;
use super::{LONGEST, RATES, sampler};

/// Samples where the CPU time of this process goes, function by function and route by route, until it is stopped.
///
/// Dropped, it stops and forgets what it saw.
///
/// # How it works
///
/// ```text
///  threads ──── run ────▶ kernel: after every 1/hz s of CPU time ──▶ ring of the thread ─┐
///     │                   a call chain and the time of the clock                        ├─▶ stacks ─▶ names ─▶ profile
///     └── enter, leave ─▶ a line in the thread's journal: time, route ──────────────────┘
///                                                                      20 times a second        at the end
/// ```
///
/// - Every thread gets an event of `perf_event_open`: a software clock that counts its CPU time and, whenever it has run for
///   another `1/hz` s, lets the kernel write the call chain to a ring. No signal is sent and nothing is unwound in the
///   process, so there is nothing that could meet a panic, a backtrace or a lock at the wrong moment.
/// - A thread named `tower-flow-profile` empties the rings, finds threads that are new, and leaves itself out.
/// - Who polls a route writes its [`Tag`] and the time into a journal of the thread. A sample belongs to the last line at or
///   before it. Both times are of one clock, so that is exact, at any depth of calls and without frame pointers.
/// - Samples are added up as they come. Names are looked for when the sampling is over.
///
/// # Example
///
/// ```
/// use tower_flow::profile::{Profiler, ProfilerError, Tag};
///
/// # fn main() -> Result<(), ProfilerError> {
/// let reindex = Tag::new("jobs", "reindex");
/// let profiler = match Profiler::start(99) {
///     Ok(profiler) => profiler,
///     // In a container whose seccomp profile forbids it, and where there is no Linux. It says what to do.
///     Err(error @ (ProfilerError::Denied { .. } | ProfilerError::Unsupported)) => return Ok(println!("{error}")),
///     Err(error) => return Err(error),
/// };
/// let sum = reindex.within(|| (0..30_000_000u64).fold(0, |sum, n| sum ^ n.rotate_left(7)));
/// let profile = profiler.stop()?;
///
/// println!("{sum}: {:?}", profile.routes());
/// let _for_flame_graphs = profile.folded(); // "jobs reindex;main;…;fold 29"
/// let _for_browsers = profile.svg();
/// let _for_go_tool_pprof = profile.pprof();
/// # Ok(()) }
/// ```
///
/// In async code: [`Profile::take`]`(Duration::from_secs(5), 99).await`, which blocks nobody and stops when it is dropped.
///
/// # Frame pointers
///
/// The kernel follows frame pointers. The standard library and the C library of most systems have them; your own code has
/// them when built with
///
/// ```text
/// RUSTFLAGS="-C force-frame-pointers=yes" cargo build --release
/// ```
///
/// which takes a register from the compiler. Without it a sample shows the function it was in, with all that was inlined there, then
/// whatever of its callers has frame pointers; those between are missing. Routes and shares of functions are right either
/// way. For names, keep at least `debug = "line-tables-only"` in the profile of the build.
///
/// # Bounds
///
/// - One profiler to a process, 1 to 999 Hz, 60 s; then it stops by itself. Names are looked for 10 s at most.
/// - 512 threads, and no more than a quarter of the files the process may open: one for each thread.
/// - Each ring has room for 50 ms of the deepest chains, 8 KiB at 99 Hz and 64 KiB at 999. Without privileges the kernel
///   lets a user lock `perf_event_mlock_kb` for each core, 516 KiB by default, and `ulimit -l`; beyond that rings are a page.
/// - 8,192 stacks of 127 frames at most, 4 MiB altogether; further ones are shown as `(stack dropped)` of their route.
/// - 4,096 tags, and journals of 64 KiB for up to 1,024 threads that enter a route while a profiler runs. A thread keeps
///   its journal for the next time.
///
/// What there was no room for is counted: see [`Counts`].
///
/// # What is not seen
///
/// - The kernel's own work: time in system calls is in [`Counts::cpu`], not in the samples. Nor is time spent waiting.
/// - The first up to 50 ms of a thread, and so all of one that lives no longer than that: [`Counts::cpu`] against the
///   samples tells whether there is much of it.
/// - The route of a poll that was under way when the profiler started, and of calls that began before it in a layer that
///   was off.
///
/// # Errors
///
/// [`ProfilerError`] says why there is none and what to do: another one runs, a rate or a length out of range, or the kernel
/// denies it, then with the value of `perf_event_paranoid`. Up to 2, the kernel's default, no privilege is needed.
///
/// # Cost
///
/// Measured on a shared virtual machine of two cores; `benches/README.md` says how, and how much of it is noise:
///
/// | | |
/// |---|---|
/// | no profiler | one relaxed load for each poll |
/// | a tag while one runs, in and out | 21 ns and no allocation, beside the two readings of the clock a recorded poll makes anyway |
/// | its own thread | 0.5 % of the CPU time of one busy thread; more in the first second, and the more often tags change; [`Counts::cost`] says |
/// | a sample | an interrupt of a timer, and a walk along the frames: 0.1 to 0.3 ms there, so 1 % to 3 % at 99 Hz, ten times that at 999 |
/// | to start | 0.4 ms with a handful of threads |
/// | to stop and find names | milliseconds to 0.1 s in a release build, seconds in a debug build of hundreds of megabytes |
///
/// # Design
///
/// - *Signals* (`setitimer` or per-thread timers, and an unwinder in the handler) need no kernel support. But an unwinder
///   takes locks of the loader and reads tables while the thread may be anywhere, in those same places for one; such
///   profilers crash or hang once in a long while. What the kernel does cannot.
/// - *Copies of the stack*, unwound later by debug information, would need no frame pointers. They cost some 8 KiB for each
///   sample, and an unwinder. Frame pointers cost less, and routes need neither.
/// - *A marker function* on the stack for each route would be found in the chain. It would need frame pointers all the way,
///   and a function for each route.
/// - *Looking at a thread's tag* when its samples are read would be cheaper than a journal, and wrong: a ring is read 20 times
///   a second, and a poll takes microseconds.
/// - *One event for all threads*, inherited by those born later, would miss none. The kernel gives such an event a ring only
///   for each core, that is an open file for each thread *and* core.
///
/// [`Counts`]: super::Counts
/// [`Counts::cost`]: super::Counts::cost
/// [`Counts::cpu`]: super::Counts::cpu
/// [`Tag`]: super::Tag
pub struct Profiler {
    session: Session,
}

/// What a [`Profiler`] does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProfilerState {
    /// What it is at.
    pub phase: Phase,
    /// Samples a second of CPU time.
    pub hz: u32,
    /// How long it has been sampling.
    pub elapsed: Duration,
    /// Samples so far.
    pub samples: u64,
    /// Samples the kernel had no room for.
    pub lost: u64,
    /// Threads it has sampled.
    pub threads: u64,
}

/// What a profiler is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// It has not sampled yet.
    Starting,
    /// It samples.
    Sampling,
    /// It looks for the names of functions.
    Resolving,
    /// It has stopped by itself, and waits to be asked for the profile.
    Done,
}

/// A profiler's thread and the wish to have its result. Dropped, it lets the thread end by itself.
struct Session {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a profiler's thread and its owner share.
pub(super) struct Shared {
    pub(super) hz: u32,
    pub(super) length: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    wish: Wish,
    phase: Phase,
    progress: Progress,
    done: Option<Result<Profile, ProfilerError>>,
    waker: Option<Waker>,
}

/// What the owner wants of the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Run,
    Stop,
    Discard,
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    pub(super) samples: u64,
    pub(super) lost: u64,
    pub(super) threads: u64,
    pub(super) elapsed: Duration,
}

/// The right to profile this process.
struct Slot(());

/// Waits for the end of a session. Dropped, the profiler stops.
struct Taking(Session);

static RUNNING: AtomicBool = AtomicBool::new(false);

// ===== impl Profiler =====

impl Profiler {
    /// Begins to take `hz` samples a second of CPU time, for 60 s at most; then it stops by itself.
    ///
    /// Returns when the threads of this process are being sampled, which takes some milliseconds.
    ///
    /// # Errors
    ///
    /// When one runs already, when `hz` is not in `1..=999`, when the kernel denies it, or when there is no Linux.
    pub fn start(hz: u32) -> Result<Self, ProfilerError> {
        let session = Session::begin(hz, LONGEST)?;
        session.shared.started()?;
        Ok(Self { session })
    }

    /// Whether one runs in this process, whoever started it.
    pub fn is_running() -> bool {
        RUNNING.load(Ordering::Acquire)
    }

    /// What it does at the moment.
    pub fn state(&self) -> ProfilerState {
        let state = self.session.shared.lock();
        let Progress {
            samples,
            lost,
            threads,
            elapsed,
        } = state.progress;
        ProfilerState {
            phase: state.phase,
            hz: self.session.shared.hz,
            elapsed,
            samples,
            lost,
            threads,
        }
    }

    /// Stops and looks for names, which takes milliseconds to seconds and blocks. In async code use [`Profile::take`].
    ///
    /// # Errors
    ///
    /// [`ProfilerError::Panicked`] if it did.
    pub fn stop(mut self) -> Result<Profile, ProfilerError> {
        self.session.end(Wish::Stop);
        self.session
            .shared
            .lock()
            .done
            .take()
            .unwrap_or(Err(ProfilerError::Panicked))
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        self.session.end(Wish::Discard);
    }
}

impl fmt::Debug for Profiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Profiler").field(&self.state()).finish()
    }
}

// ===== impl Profile =====

impl Profile {
    /// Profiles this process for as long as `length`, on a thread of its own.
    ///
    /// Dropping the future stops the profiler; the next one can start some milliseconds later.
    ///
    /// # Errors
    ///
    /// As [`Profiler::start`], and when `length` is zero or above 60 s.
    pub async fn take(length: Duration, hz: u32) -> Result<Self, ProfilerError> {
        Taking(Session::begin(hz, length)?).await
    }
}

// ===== impl Session =====

impl Session {
    fn begin(hz: u32, length: Duration) -> Result<Self, ProfilerError> {
        if !RATES.contains(&hz) {
            return Err(ProfilerError::Rate(hz));
        }
        if length.is_zero() || length > LONGEST {
            return Err(ProfilerError::Length(length));
        }
        let slot = Slot::take().ok_or(ProfilerError::Busy)?;
        let shared = Arc::new(Shared::new(hz, length));
        let theirs = shared.clone();
        let thread = thread::Builder::new()
            .name("tower-flow-profile".to_owned())
            .spawn(move || {
                let work = AssertUnwindSafe(|| sampler::run(&theirs));
                let result = catch_unwind(work).unwrap_or(Err(ProfilerError::Panicked));
                drop(slot);
                theirs.finish(result);
            })
            .map_err(|error| ProfilerError::Io {
                what: "starting the profiler's thread",
                error,
            })?;
        let thread = Some(thread);
        Ok(Self { shared, thread })
    }

    /// Waits for the thread to end.
    fn end(&mut self, wish: Wish) {
        self.shared.want(wish);
        if let Some(thread) = self.thread.take() {
            // It catches what panics.
            _ = thread.join();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.want(Wish::Discard);
    }
}

// ===== impl Taking =====

impl Future for Taking {
    type Output = Result<Profile, ProfilerError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.shared.lock();
        match state.done.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

// ===== impl Shared =====

impl Shared {
    fn new(hz: u32, length: Duration) -> Self {
        let state = State {
            wish: Wish::Run,
            phase: Phase::Starting,
            progress: Progress::default(),
            done: None,
            waker: None,
        };
        Self {
            hz,
            length,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, wish: Wish) {
        self.lock().wish = wish;
        self.changed.notify_all();
    }

    /// Waits until it samples, or has failed to.
    fn started(&self) -> Result<(), ProfilerError> {
        let starting = |state: &mut State| state.phase == Phase::Starting;
        let state = self.lock();
        let mut state = self
            .changed
            .wait_while(state, starting)
            .unwrap_or_else(PoisonError::into_inner);
        match state.done.take_if(|done| done.is_err()) {
            Some(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn finish(&self, result: Result<Profile, ProfilerError>) {
        let waker = {
            let mut state = self.lock();
            state.phase = Phase::Done;
            state.done = Some(result);
            state.waker.take()
        };
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

// What the thread asks and tells.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
impl Shared {
    /// Waits for as long as `pause`, or until the owner wants something else than that it runs.
    pub(super) fn wait(&self, pause: Duration) -> Wish {
        let running = |state: &mut State| state.wish == Wish::Run;
        let waited = self.changed.wait_timeout_while(self.lock(), pause, running);
        waited.unwrap_or_else(PoisonError::into_inner).0.wish
    }

    pub(super) fn is_discarded(&self) -> bool {
        self.lock().wish == Wish::Discard
    }

    pub(super) fn progress(&self, progress: Progress) {
        {
            let mut state = self.lock();
            state.phase = Phase::Sampling;
            state.progress = progress;
        }
        self.changed.notify_all();
    }

    pub(super) fn resolving(&self) {
        self.lock().phase = Phase::Resolving;
    }
}

// ===== impl Slot =====

impl Slot {
    fn take() -> Option<Self> {
        // Acquire pairs with the Release below: the one before has given everything back.
        let free = RUNNING.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        free.is_ok().then_some(Self(()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        RUNNING.store(false, Ordering::Release);
    }
}
