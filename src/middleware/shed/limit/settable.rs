use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::{Limit, Next, Step, Window};

/// How often it asks what it was set to.
const EVERY: Duration = Duration::from_millis(100);

/// A limit that is whatever it was last set to; clones share it.
///
/// For a program that decides by itself. To overrule another algorithm from the outside there is
/// [`ShedHandle::set_limit`](crate::shed::ShedHandle::set_limit), which holds at once.
///
/// ```
/// use tower_flow::shed::{ShedLayer, limit::Settable};
///
/// let limit = Settable::new(64);
/// let layer = ShedLayer::new(limit.clone());
/// limit.set(32);
/// # let _ = layer;
/// ```
#[derive(Debug, Clone)]
pub struct Settable(Arc<AtomicUsize>);

impl Settable {
    /// `limit`, until it is set to another.
    ///
    /// # Panics
    ///
    /// When `limit` is 0, which would refuse everything.
    pub fn new(limit: usize) -> Self {
        assert!(limit > 0, "limit must be at least 1, not {limit}");
        Self(Arc::new(AtomicUsize::new(limit)))
    }

    /// The limit from the next look on, within 100 ms of traffic.
    ///
    /// # Panics
    ///
    /// When `limit` is 0, which would refuse everything.
    pub fn set(&self, limit: usize) {
        assert!(limit > 0, "limit must be at least 1, not {limit}");
        self.0.store(limit, Relaxed);
    }

    /// What it is set to.
    pub fn get(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Limit for Settable {
    fn start(&self) -> usize {
        self.get()
    }

    fn look(&mut self, _: &Window) -> Step {
        Step::Close(Next::of(self.get(), EVERY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_it_was_set_to() {
        let setter = Settable::new(4);
        let mut limit = setter.clone();
        setter.set(9);
        assert_eq!(
            limit.look(&Window::default()),
            Step::Close(Next::of(9, EVERY))
        );
    }

    #[test]
    #[should_panic(expected = "not 0")]
    fn nothing_at_all_is_refused() {
        Settable::new(4).set(0);
    }
}
