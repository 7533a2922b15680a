//! The lock round the board, held for a few stores.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

#[cfg(tower_flow_loom)]
use loom::sync::{Mutex, atomic::AtomicBool};
#[cfg(not(tower_flow_loom))]
use std::sync::{Mutex, atomic::AtomicBool};

use super::board::{Board, Cargo, Debris};
use super::shard::Rules;

pub(super) struct Desk<C: Cargo> {
    board: Mutex<Board<C>>,
    /// What the board says of its gate, for those who need not know exactly: whoever finds it shut asks the board.
    open: AtomicBool,
}

impl<C: Cargo> Desk<C> {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            board: Mutex::new(Board::new(rules)),
            open: AtomicBool::new(true),
        }
    }

    /// Whether there is room, as far as can be seen from outside.
    #[inline]
    pub(super) fn looks_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Asks the board. Wakers are woken, and what falls out is dropped, when the lock has been given back.
    ///
    /// A waker or destructor that panics then is foreign, and may be anybody's: what was asked for is done all the same.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&mut Board<C>, &mut Debris<C>) -> T) -> T {
        let mut debris = Debris::default();
        let answer = {
            let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = ask(&mut board, &mut debris);
            let open = board.looks_open();
            if self.open.load(Ordering::Relaxed) != open {
                self.open.store(open, Ordering::Relaxed);
            }
            answer
        };
        if debris.is_untouched() {
            // Most often: to drop it would look at all of it once more.
            mem::forget(debris);
        } else {
            debris.clear();
        }
        answer
    }
}

impl<C: Cargo> Debris<C> {
    /// Nothing was ever put in it, so that there is nothing to drop and no memory to give back.
    #[inline]
    fn is_untouched(&self) -> bool {
        self.wakers.capacity() == 0
            && self.stale.is_empty()
            && self.item.is_none()
            && self.items.is_empty()
            && self.same.is_none()
            && self.sames.is_empty()
            && self.keys.is_empty()
            && self.service.is_none()
            && self.outcomes.is_empty()
    }

    #[cold]
    fn clear(self) {
        for waker in self.wakers {
            let _panicked = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        discard(self.stale);
        discard(self.item);
        discard(self.items);
        discard(self.same);
        discard(self.sames);
        discard(self.keys);
        discard(self.service);
        discard(self.outcomes);
    }
}

/// Drops what is foreign one by one: of two destructors that panic in one go the second would end the process.
fn discard<T>(foreign: impl IntoIterator<Item = T>) {
    for one in foreign {
        let _panicked = catch_unwind(AssertUnwindSafe(|| drop(one)));
    }
}

#[cfg(all(test, tower_flow_loom))]
mod models;
