use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Facts, Limit, Next, Step, Window};

/// Another algorithm's limit, kept within bounds.
///
/// ```
/// use tower_flow::shed::limit::{Bdp, Bounded};
///
/// // Never fewer than the 8 workers there are, never more than the 200 connections of the database.
/// let limit = Bounded::new(Bdp::default(), 8..=200);
/// # let _ = limit;
/// ```
#[derive(Debug, Clone)]
pub struct Bounded<L> {
    inner: L,
    bounds: RangeInclusive<usize>,
}

impl<L> Bounded<L> {
    /// Keeps `inner` within `bounds`.
    ///
    /// # Panics
    ///
    /// When `bounds` is empty or begins at 0.
    pub fn new(inner: L, bounds: RangeInclusive<usize>) -> Self {
        assert!(
            *bounds.start() > 0 && !bounds.is_empty(),
            "the bounds of a limit must begin at 1 or more and hold something, not {bounds:?}"
        );
        Self { inner, bounds }
    }

    fn within(&self, limit: usize) -> usize {
        limit.clamp(*self.bounds.start(), *self.bounds.end())
    }
}

impl<L: Limit> Limit for Bounded<L> {
    fn start(&self) -> usize {
        self.within(self.inner.start())
    }

    fn first_look(&self) -> Duration {
        self.inner.first_look()
    }

    fn look(&mut self, window: &Window) -> Step {
        match self.inner.look(window) {
            Step::Close(next) => Step::Close(Next {
                limit: self.within(next.limit),
                ..next
            }),
            wait => wait,
        }
    }

    fn facts(&self) -> Facts {
        self.inner.facts()
    }

    fn samples(&self) -> bool {
        self.inner.samples()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Fixed;
    use super::*;

    #[test]
    fn what_lies_outside_is_moved_to_the_edge() {
        let of = |limit| Bounded::new(Fixed::new(limit), 8..=200).start();
        assert_eq!([of(1), of(64), of(1_000)], [8, 64, 200]);
        let mut limit = Bounded::new(Fixed::new(1_000), 8..=200);
        let Step::Close(next) = limit.look(&Window::default()) else {
            panic!("it closes every window")
        };
        assert_eq!(next.limit, 200);
    }

    #[test]
    #[should_panic(expected = "not 0..=9")]
    fn bounds_from_nothing_are_refused() {
        Bounded::new(Fixed::new(1), 0..=9);
    }
}
