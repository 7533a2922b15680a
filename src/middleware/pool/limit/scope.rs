//! Whether somebody waits for what is polled: how a dial finds out that its request has gone elsewhere.
//!
//! hyper-util's client polls a dial inside its request's future for as long as the request waits for it. Once the
//! request has got another connection, the dial becomes a task of its own. So a dial that was begun inside a request
//! and is polled outside of any has become a ghost, and nothing else has.
//!
//! # Invariants
//!
//! - A thread's list names the limiters whose requests are being polled on it right now, the outermost first.
//! - Who enters leaves in the same poll, in a panic too, so the list is empty whenever no request is being polled.

use std::cell::RefCell;

use super::state::State;

thread_local! {
    static POLLED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// A request of a limiter is being polled until this is dropped.
#[derive(Debug)]
pub(super) struct Scope(());

impl Scope {
    #[inline]
    pub(super) fn enter(state: &State) -> Self {
        POLLED.with_borrow_mut(|polled| polled.push(address(state)));
        Self(())
    }
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        POLLED.with_borrow_mut(Vec::pop);
    }
}

/// Whether this is called from within a request of the limiter.
pub(super) fn is_entered(state: &State) -> bool {
    POLLED.with_borrow(|polled| polled.contains(&address(state)))
}

fn address(state: &State) -> usize {
    std::ptr::from_ref(state).addr()
}
