//! Tags in a build without a profiler: nothing.

use crate::base::clock::Instant;

/// What a thread works for. There is no profiler in this build that would ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(());

impl Tag {
    /// The tag of `route` in `layer`.
    pub fn new(_layer: &str, _route: &str) -> Self {
        Self(())
    }

    /// Runs `work`.
    pub fn within<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }
}

/// Whether a profiler runs: never.
#[inline]
pub(crate) fn on() -> bool {
    false
}

/// Does nothing.
#[inline]
pub(crate) fn enter(tag: Tag, _at: Instant) -> Tag {
    tag
}

/// Does nothing.
#[inline]
pub(crate) fn leave(_previous: Tag, _at: Instant) {}
