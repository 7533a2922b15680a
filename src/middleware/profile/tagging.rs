//! Tells a sampling profiler which route is being polled. Without the feature `perf` nobody asks.

#[derive(Debug, Clone, Copy)]
pub(super) struct Tag;

impl Tag {
    pub(super) fn new(_: &str, _: &str) -> Self {
        Self
    }
}

#[inline]
pub(super) fn on() -> bool {
    false
}

#[inline]
pub(super) fn enter(_: Tag, _: crate::base::clock::Instant) -> Tag {
    Tag
}

#[inline]
pub(super) fn leave(_: Tag, _: crate::base::clock::Instant) {}
