use std::time::Duration;

use super::{Limit, Next, Step, Window};

/// A limit that never changes: for a resource whose size is known, such as a pool of so many connections.
///
/// Only one request in 64 is timed, so that refusals can tell when to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed(usize);

impl Fixed {
    /// The limit `limit`.
    ///
    /// # Panics
    ///
    /// When `limit` is 0, which would refuse everything.
    pub fn new(limit: usize) -> Self {
        assert!(limit > 0, "limit must be at least 1, not {limit}");
        Self(limit)
    }
}

impl Limit for Fixed {
    fn start(&self) -> usize {
        self.0
    }

    fn look(&mut self, _: &Window) -> Step {
        Step::Close(Next::of(self.0, Duration::from_secs(1)))
    }

    fn samples(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays() {
        let mut limit = Fixed::new(7);
        assert_eq!(limit.start(), 7);
        let Step::Close(next) = limit.look(&Window::default()) else {
            panic!("it closes every window")
        };
        assert_eq!(next.limit, 7);
        assert!(!limit.samples());
    }

    #[test]
    #[should_panic(expected = "limit must be at least 1, not 0")]
    fn nothing_at_all_is_refused() {
        Fixed::new(0);
    }
}
