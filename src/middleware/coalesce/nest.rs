//! Which flights the calling thread is polling right now, one inside the other: whoever would wait for one of them waits
//! for itself.
//!
//! A thread that ends polls what its other thread-locals hold, when the outer ones may be gone: then only the innermost is
//! seen.

use std::cell::{Cell, RefCell};

/// A shard's address, which is never 0, and the flight's id.
type Place = (usize, u64);

const NOWHERE: Place = (0, 0);

thread_local! {
    static INNERMOST: Cell<Place> = const { Cell::new(NOWHERE) };
    /// Those around it; most often there are none.
    static AROUND: RefCell<Vec<Place>> = const { RefCell::new(Vec::new()) };
}

/// The flight stays in the nest until this is dropped.
pub(super) struct Inside {
    nested: bool,
}

/// Enters flight `id` of the shard that lives at `shard`.
#[inline]
pub(super) fn enter(shard: usize, id: u64) -> Inside {
    let outer = INNERMOST.replace((shard, id));
    let nested = outer != NOWHERE;
    if nested {
        let _ = AROUND.try_with(|around| around.borrow_mut().push(outer));
    }
    Inside { nested }
}

/// Whether the thread is inside of none.
#[inline]
pub(super) fn is_empty() -> bool {
    INNERMOST.get() == NOWHERE
}

/// Whether the thread is inside of that flight.
pub(super) fn holds(shard: usize, id: u64) -> bool {
    let place = (shard, id);
    INNERMOST.get() == place
        || AROUND
            .try_with(|around| around.borrow().contains(&place))
            .unwrap_or(false)
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        let outer = match self.nested {
            true => AROUND
                .try_with(|around| around.borrow_mut().pop())
                .ok()
                .flatten(),
            false => None,
        };
        INNERMOST.set(outer.unwrap_or(NOWHERE));
    }
}
