use std::mem;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use crate::base::clock::Instant;

/// The streams of one destination that no batch uses. The one that was used last is used next, so that those that are
/// not needed grow old.
pub(super) struct Lines<L> {
    state: Mutex<State<L>>,
    opened: AtomicU64,
}

/// While it is locked no stream is dropped, and no waker is cloned, woken or dropped.
struct State<L> {
    /// Oldest first.
    idle: Vec<Idle<L>>,
    /// Those who want to hear of a stream that becomes idle.
    watching: Vec<(u64, Waker)>,
    watchers: u64,
}

struct Idle<L> {
    line: L,
    since: Instant,
    /// When the stream was opened.
    opened: Instant,
}

/// Somebody who is woken when a stream becomes idle, each time after being polled.
pub(super) struct Watch<'a, L> {
    lines: &'a Lines<L>,
    id: u64,
}

/// Which streams are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) max_idle: usize,
    pub(super) idle_timeout: Duration,
    pub(super) max_age: Option<Duration>,
}

/// A stream in use, and when it was opened.
pub(super) struct Used<L> {
    pub(super) line: L,
    pub(super) opened: Instant,
}

// ===== impl Lines =====

impl<L> Lines<L> {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                idle: Vec::new(),
                watching: Vec::new(),
                watchers: 0,
            }),
            opened: AtomicU64::new(0),
        }
    }

    pub(super) fn idle(&self) -> usize {
        self.lock().idle.len()
    }

    /// How many were opened so far.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    pub(super) fn begin(&self, line: L, now: Instant) -> Used<L> {
        self.opened.fetch_add(1, Relaxed);
        Used { line, opened: now }
    }

    /// The stream that was used last, if one is left that is not too old.
    pub(super) fn take(&self, now: Instant, terms: &Terms) -> Option<Used<L>> {
        let (_old, last) = {
            let mut state = self.lock();
            let old = expired(&mut state.idle, now, terms);
            (old, state.idle.pop())
        };
        let Idle { line, opened, .. } = last?;
        Some(Used { line, opened })
    }

    /// Keeps a stream for the next batch, or for one that waits to open another.
    pub(super) fn keep(&self, used: Used<L>, now: Instant, terms: &Terms) {
        let Used { line, opened } = used;
        let idle = Idle {
            line,
            since: now,
            opened,
        };
        let (_old, _over, watching) = {
            let mut state = self.lock();
            state.idle.push(idle);
            let old = expired(&mut state.idle, now, terms);
            // One that is watched for need not be kept long.
            let max = terms.max_idle.max(state.watching.len().min(1));
            let over = state.idle.len().saturating_sub(max);
            let over: Vec<_> = state.idle.drain(..over).collect();
            (old, over, mem::take(&mut state.watching))
        };
        for (_, waker) in watching {
            waker.wake();
        }
    }

    pub(super) fn watch(&self) -> Watch<'_, L> {
        let id = {
            let mut state = self.lock();
            state.watchers += 1;
            state.watchers
        };
        Watch { lines: self, id }
    }

    fn lock(&self) -> MutexGuard<'_, State<L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes out those that are too old.
fn expired<L>(idle: &mut Vec<Idle<L>>, now: Instant, terms: &Terms) -> Vec<Idle<L>> {
    idle.extract_if(.., |idle| idle.is_old(now, terms))
        .collect()
}

// ===== impl Idle =====

impl<L> Idle<L> {
    fn is_old(&self, now: Instant, terms: &Terms) -> bool {
        let unused = now.saturating_duration_since(self.since);
        let age = now.saturating_duration_since(self.opened);
        unused >= terms.idle_timeout || terms.max_age.is_some_and(|max| age >= max)
    }
}

// ===== impl Watch =====

impl<L> Watch<'_, L> {
    /// Wakes `cx` when a stream becomes idle from now on.
    pub(super) fn poll(&self, cx: &Context<'_>) {
        let waker = cx.waker().clone();
        let _former = {
            let mut state = self.lines.lock();
            let former = state.forget(self.id);
            state.watching.push((self.id, waker));
            former
        };
    }
}

impl<L> Drop for Watch<'_, L> {
    fn drop(&mut self) {
        let _waker = self.lines.lock().forget(self.id);
    }
}

impl<L> State<L> {
    fn forget(&mut self, id: u64) -> Option<Waker> {
        let place = self.watching.iter().position(|(own, _)| *own == id)?;
        Some(self.watching.swap_remove(place).1)
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::task;

    use super::*;
    use crate::base::clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn terms() -> Terms {
        Terms {
            max_idle: 2,
            idle_timeout: 10 * SECOND,
            max_age: Some(60 * SECOND),
        }
    }

    fn line(lines: &Lines<u32>, now: Instant) -> Option<u32> {
        lines.take(now, &terms()).map(|used| used.line)
    }

    #[test]
    fn the_line_used_last_is_used_next() {
        let (lines, now) = (Lines::new(), clock::now());
        for line in [1, 2] {
            lines.keep(lines.begin(line, now), now, &terms());
        }
        assert_eq!((lines.idle(), lines.opened()), (2, 2));
        assert_eq!(line(&lines, now), Some(2));
        assert_eq!(line(&lines, now), Some(1));
        assert_eq!(line(&lines, now), None);
    }

    #[test]
    fn of_too_many_the_oldest_goes() {
        let (lines, now) = (Lines::new(), clock::now());
        for line in [1, 2, 3] {
            lines.keep(lines.begin(line, now), now, &terms());
        }
        assert_eq!(lines.idle(), 2);
        assert_eq!(line(&lines, now), Some(3));
        assert_eq!(line(&lines, now), Some(2));
    }

    #[test]
    fn an_unused_line_goes_after_a_while() {
        let (lines, now) = (Lines::new(), clock::now());
        lines.keep(lines.begin(1, now), now, &terms());
        lines.keep(lines.begin(2, now), now + 5 * SECOND, &terms());
        assert_eq!(line(&lines, now + 12 * SECOND), Some(2));
        assert_eq!(lines.idle(), 0);
    }

    #[test]
    fn a_line_goes_at_its_age_however_busy_it_is() {
        let (lines, now) = (Lines::new(), clock::now());
        let mut used = lines.begin(1, now);
        for second in (0..59).step_by(2) {
            let now = now + second * SECOND;
            lines.keep(used, now, &terms());
            used = lines.take(now, &terms()).unwrap();
        }
        lines.keep(used, now + 60 * SECOND, &terms());
        assert_eq!(lines.idle(), 0);
    }

    #[test]
    fn who_watches_is_woken_once_for_each_time_it_looks() {
        let (lines, now) = (Lines::new(), clock::now());
        let none = Terms {
            max_idle: 0,
            ..terms()
        };
        let watch = lines.watch();
        let mut looks = task::spawn(());
        looks.enter(|cx, _| watch.poll(cx));
        looks.enter(|cx, _| watch.poll(cx));
        lines.keep(lines.begin(1, now), now, &none);
        assert!(looks.is_woken());
        assert_eq!(line(&lines, now), Some(1), "kept for the one who watches");
        // Nobody looks, nobody is woken, and nothing is kept.
        looks.enter(|_, _| ());
        lines.keep(lines.begin(2, now), now, &none);
        assert!(!looks.is_woken());
        assert_eq!(lines.idle(), 0);
        looks.enter(|cx, _| watch.poll(cx));
        drop(watch);
        assert!(lines.lock().watching.is_empty());
    }
}
