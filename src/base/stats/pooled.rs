//! What a request carries from its call to its end, in a box that is used again.
//!
//! A record of a hundred bytes that rides in a future, then in a body, is copied at every step of that way: as much
//! time as all the counting it is for. A [`Pooled`] box is eight bytes to move, and the box itself, with the shared
//! state it points to, is put aside in the thread when its request ends and taken up by the next one. In the steady
//! state nothing is allocated, and no reference is counted.
//!
//! # Invariants
//!
//! - A pooled box holds its record until it is dropped; the `Option` is empty only inside `drop`.
//! - A record put aside has ended: whoever takes it up again writes every field but the shared state.
//! - What a dropped record takes with it may run foreign code, so it goes outside the borrow of the spares.
//!
//! A thread keeps at most [`SPARES`] records of a kind; shared state may outlive its last service until the threads
//! that used it end or their spares are needed for something else.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// How many spare records of a kind a thread keeps.
const SPARES: usize = 64;

/// The records of one kind a thread has put aside.
pub(crate) type Records<T> = RefCell<Vec<Box<T>>>;

/// A record in a box that is used again.
#[derive(Debug)]
pub(crate) struct Pooled<T: Pool>(Option<Box<T>>);

/// A record with a place in every thread for its spares. See [`pooled!`].
pub(crate) trait Pool: Sized + 'static {
    /// The thread's spares.
    fn spares() -> &'static LocalKey<Records<Self>>;
}

/// Implements [`Pool`] for a type.
macro_rules! pooled {
    ($type:ty) => {
        impl $crate::base::stats::Pool for $type {
            #[inline]
            fn spares() -> &'static ::std::thread::LocalKey<$crate::base::stats::Records<Self>> {
                ::std::thread_local! {
                    static SPARES: $crate::base::stats::Records<$type> =
                        const { ::std::cell::RefCell::new(::std::vec::Vec::new()) };
                }
                &SPARES
            }
        }
    };
}

pub(crate) use pooled;

impl<T: Pool> Pooled<T> {
    /// A spare that `fits`, to be written anew, or a fresh record.
    #[inline]
    pub(crate) fn take(fits: impl Fn(&T) -> bool, fresh: impl FnOnce() -> T) -> Self {
        // An error while the thread ends; then there are no spares.
        let spare = T::spares().try_with(|spares| {
            let mut spares = spares.borrow_mut();
            // The last one put aside is most often one that fits.
            match spares.last() {
                Some(last) if fits(last) => spares.pop(),
                _ => search(&mut spares, fits),
            }
        });
        let spare = spare.ok().flatten();
        Self(Some(spare.unwrap_or_else(|| Box::new(fresh()))))
    }
}

#[cold]
fn search<T>(spares: &mut Vec<Box<T>>, fits: impl Fn(&T) -> bool) -> Option<Box<T>> {
    let place = spares.iter().rposition(|spare| fits(spare))?;
    Some(spares.swap_remove(place))
}

impl<T: Pool> Drop for Pooled<T> {
    #[inline]
    fn drop(&mut self) {
        let mut record = self.0.take();
        let _ = T::spares().try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if spares.len() < SPARES {
                spares.extend(record.take());
            } else if let Some(record) = &mut record {
                // Full, most likely of records nobody asks for any more: the oldest goes.
                std::mem::swap(&mut spares[0], record);
                spares.swap(0, SPARES - 1);
            }
        });
        // Dropped outside the borrow, and here too while the thread ends.
        drop(record);
    }
}

impl<T: Pool> Deref for Pooled<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0
            .as_ref()
            .expect("a pooled box holds its record until it is dropped")
    }
}

impl<T: Pool> DerefMut for Pooled<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.0
            .as_mut()
            .expect("a pooled box holds its record until it is dropped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    struct Record {
        kind: u32,
        shared: Arc<u32>,
    }

    pooled!(Record);

    fn take(shared: &Arc<u32>) -> Pooled<Record> {
        Pooled::take(
            |spare: &Record| Arc::ptr_eq(&spare.shared, shared),
            || Record {
                kind: 0,
                shared: shared.clone(),
            },
        )
    }

    #[test]
    fn a_record_is_used_again_by_those_it_fits() {
        std::thread::spawn(|| {
            let (one, two) = (Arc::new(1), Arc::new(2));
            take(&one).kind = 11;
            take(&two).kind = 22;
            assert_eq!((take(&one).kind, take(&two).kind), (11, 22), "each its own");
            let held = take(&one);
            assert_eq!(take(&one).kind, 0, "a second one at the same time is fresh");
            assert_eq!(*held.shared, 1);
            let before = Arc::strong_count(&one);
            drop(held);
            for _ in 0..1_000 {
                assert_eq!(*take(&one).shared, 1);
            }
            assert_eq!(
                Arc::strong_count(&one),
                before,
                "the steady state counts nothing"
            );
        })
        .join()
        .unwrap();
    }

    #[test]
    fn spares_are_bounded_and_go_with_their_thread() {
        let shared = Arc::new(7);
        let inner = shared.clone();
        std::thread::spawn(move || {
            let many: Vec<_> = (0..1_000).map(|_| take(&inner)).collect();
            drop(many);
            assert_eq!(Record::spares().with_borrow(Vec::len), SPARES);
            let others: Vec<_> = (0..1_000).map(|n| take(&Arc::new(n))).collect();
            drop(others);
            assert_eq!(Record::spares().with_borrow(Vec::len), SPARES);
        })
        .join()
        .unwrap();
        assert_eq!(Arc::strong_count(&shared), 1);
    }
}
