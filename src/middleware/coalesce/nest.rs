//! Which flights the calling thread is polling right now, one inside the other: whoever would wait for one of them waits
//! for itself.

use std::cell::RefCell;

thread_local! {
    static NEST: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) };
}

/// The flight stays in the nest until this is dropped.
pub(super) struct Inside(());

/// Enters flight `id` of the shard that lives at `shard`.
pub(super) fn enter(shard: usize, id: u64) -> Inside {
    NEST.with_borrow_mut(|nest| nest.push((shard, id)));
    Inside(())
}

/// Whether the thread is inside of that flight.
pub(super) fn holds(shard: usize, id: u64) -> bool {
    NEST.with_borrow(|nest| nest.contains(&(shard, id)))
}

impl Drop for Inside {
    fn drop(&mut self) {
        NEST.with_borrow_mut(|nest| nest.pop());
    }
}
