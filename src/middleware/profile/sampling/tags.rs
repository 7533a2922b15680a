//! Which route a thread polls, and since when: the tags of a profile's samples.
//!
//! A thread that enters or leaves a route writes a line into a journal of its own: the time, and the tag from then on.
//! The profiler reads the journals after the samples, and a sample carries the tag of its thread's last line at or before
//! the sample's time. The kernel stamps samples with the same clock the lines are written with, so this is exact.
//!
//! # Invariants
//!
//! - Nothing is written unless a profiler runs: [`on`] is one load of a flag nobody else writes to.
//! - A journal has one writer, its thread. The lock of the list is taken when a thread first writes and when it ends.
//! - A journal stays in the list until its thread has ended *and* no profiler runs that may still want to read it: a
//!   profiler takes ended ones out, and a thread that ends while none runs takes its own out. Both decide under the lock
//!   of the list, with the flag set before the lock is taken, so one of the two does it.

mod journal;

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::time::{ClockId, clock_gettime};

use crate::base::clock::{self, Instant};

pub(crate) use journal::{Event, Journal};

/// How many tags a process has at most, with the two below.
const TAGS: usize = 4096;
/// How many threads have a journal at most; samples of others have no tag.
const JOURNALS: usize = 1024;
/// The events a journal holds: 64 KiB.
const EVENTS: usize = 8192;
/// Names are cut to this many bytes.
const NAME: usize = 256;

/// What a thread works for: a name for the samples of a [`Profile`](super::Profile).
///
/// [`ProfileLayer`](crate::profile) tags every poll with its route. Work elsewhere, on threads of its own for example,
/// can be tagged by hand:
///
/// ```
/// use tower_flow::profile::Tag;
///
/// let reindex = Tag::new("jobs", "reindex"); // once, and kept
/// let sum = reindex.within(|| (0..1_000u64).sum::<u64>());
/// assert_eq!(sum, 499_500);
/// ```
///
/// A process has room for 4,094 tags; further ones are called `other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(u16);

/// Where the tags' names are.
#[derive(Default)]
struct Table {
    names: Vec<Name>,
    tags: HashMap<Name, Tag>,
}

/// The layer's name and the route's.
pub(crate) type Name = (Arc<str>, Arc<str>);

/// The same moment, read from the clock of this process and from the kernel's.
#[derive(Debug, Clone, Copy)]
struct Base {
    instant: Instant,
    nanos: u64,
}

/// What a thread has of its own.
struct Here {
    tag: Cell<Tag>,
    /// None inside when there are too many.
    journal: OnceCell<Option<Arc<Journal>>>,
}

/// Leaves when dropped, in a panic too.
struct Entered(Option<Tag>);

static ON: AtomicBool = AtomicBool::new(false);
static BASE: OnceLock<Base> = OnceLock::new();
static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);
static JOURNALED: Mutex<Vec<Arc<Journal>>> = Mutex::new(Vec::new());

thread_local! {
    static HERE: Here = const {
        Here {
            tag: Cell::new(Tag::NONE),
            journal: OnceCell::new(),
        }
    };
}

/// Whether a profiler runs, so that it is worth while to [`enter`].
#[inline]
pub(crate) fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// From `at` on this thread works for `tag`. Returns what it worked for before, for [`leave`].
///
/// Allocates when a thread does it first, and takes a lock then; never again. Each `enter` is followed by its `leave`, on
/// the same thread, whether a profiler still runs then or not.
#[inline]
pub(crate) fn enter(tag: Tag, at: Instant) -> Tag {
    // A thread that is ending has no tag any more.
    HERE.try_with(|here| {
        here.note(tag, at);
        here.tag.replace(tag)
    })
    .unwrap_or(Tag::NONE)
}

/// From `at` on this thread works for `previous` again.
#[inline]
pub(crate) fn leave(previous: Tag, at: Instant) {
    enter(previous, at);
}

/// Lets [`on`] say so.
pub(super) fn begin() {
    BASE.get_or_init(Base::read);
    ON.store(true, Ordering::Release);
}

/// The opposite of [`begin`]. Journals of threads that live on are kept for the next time.
pub(super) fn finish() {
    ON.store(false, Ordering::Release);
    journals().retain(|journal| !journal.ended());
}

/// All journals. Ended ones may be taken out by the profiler that has read them.
pub(super) fn journals() -> MutexGuard<'static, Vec<Arc<Journal>>> {
    JOURNALED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel's clock, which stamps samples and which an [`Instant`] is read from.
pub(super) fn nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

// ===== impl Tag =====

impl Tag {
    /// Nothing that is known.
    pub(crate) const NONE: Self = Self(0);
    /// Whatever came after the table was full.
    const OTHER: Self = Self(1);

    /// The tag of `route` in `layer`; the same names give the same tag. Looks into a table, so keep it.
    pub fn new(layer: &str, route: &str) -> Self {
        let name = (Arc::from(cut(layer)), Arc::from(cut(route)));
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tag) = table.tags.get(&name) {
            return *tag;
        }
        let id = table.names.len() + 2;
        if id >= TAGS {
            return Self::OTHER;
        }
        let tag = Self(id as u16);
        table.names.push(name.clone());
        table.tags.insert(name, tag);
        tag
    }

    /// Runs `work` under this tag. Costs a load when no profiler runs.
    pub fn within<R>(self, work: impl FnOnce() -> R) -> R {
        let _entered = Entered(on().then(|| enter(self, clock::now())));
        work()
    }

    pub(super) fn from_id(id: u16) -> Self {
        Self(id)
    }

    pub(super) fn id(self) -> u16 {
        self.0
    }

    /// What it is called.
    pub(super) fn name(self) -> Name {
        let other = || (Arc::from(""), Arc::from("other"));
        let Some(index) = usize::from(self.0).checked_sub(2) else {
            return other();
        };
        let table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        table.names.get(index).cloned().unwrap_or_else(other)
    }
}

fn cut(name: &str) -> &str {
    let fits = |end: &usize| name.is_char_boundary(*end);
    let end = (0..=name.len().min(NAME)).rev().find(fits);
    &name[..end.unwrap_or(0)]
}

// ===== impl Here =====

impl Here {
    #[inline]
    fn note(&self, tag: Tag, at: Instant) {
        let journal = match self.journal.get() {
            Some(journal) => journal,
            None => self.register(),
        };
        if let (Some(journal), Some(base)) = (journal, BASE.get()) {
            journal.append(Event::new(base.nanos(at), tag.0));
        }
    }

    #[cold]
    fn register(&self) -> &Option<Arc<Journal>> {
        self.journal.get_or_init(|| {
            let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
            let journal = Arc::new(Journal::new(thread, EVENTS));
            let mut journals = journals();
            (journals.len() < JOURNALS).then(|| {
                journals.push(journal.clone());
                journal
            })
        })
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let Some(Some(journal)) = self.journal.take() else {
            return;
        };
        let mut journals = journals();
        journal.append(Event::new(nanos(), Tag::NONE.0));
        journal.end();
        if !on() {
            journals.retain(|other| !Arc::ptr_eq(other, &journal));
        }
    }
}

// ===== impl Entered =====

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(previous) = self.0 {
            leave(previous, clock::now());
        }
    }
}

// ===== impl Base =====

impl Base {
    /// Reads both, and of some tries takes the one that was quickest: its two readings lie closest together.
    fn read() -> Self {
        let reading = |_| {
            let instant = clock::now();
            let nanos = nanos();
            (instant.elapsed(), Self { instant, nanos })
        };
        let quickest = (0..8).map(reading).min_by_key(|(took, _)| *took);
        quickest.map_or_else(|| reading(0).1, |(_, base)| base)
    }

    #[inline]
    fn nanos(self, at: Instant) -> u64 {
        // A moment before the base is one read just before the profiler started.
        match at.checked_duration_since(self.instant) {
            Some(since) => self.nanos.wrapping_add(clock::nanos(since)),
            None => self
                .nanos
                .wrapping_sub(clock::nanos(self.instant.duration_since(at))),
        }
    }
}

#[cfg(all(test, not(tower_flow_loom)))]
mod tests;
