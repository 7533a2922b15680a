//! Between whoever sends a request on a connection and the task that drives it.
//!
//! # Invariants
//!
//! One lock, held for a few instructions. The driver polls hyper's connection outside it, then takes a
//! [`turn`](Link::turn) under it; a requester [`send`](Link::with)s under it and reports under it that its answer came.
//!
//! An HTTP/1 connection is free again when both have happened: hyper is ready for another request, and the answer to the
//! last was taken or given up. Readiness alone is not enough: hyper may say it is ready between a request's being
//! sent and its being read from the channel. Whoever of the two comes second sees both under the lock, and that one frees it,
//! once: `owed` is set by the first requester and cleared by who frees.

use std::task::{Context, Waker};

#[cfg(not(tower_flow_loom))]
use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(tower_flow_loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(tower_flow_loom)]
use std::sync::PoisonError;

/// What requests are sent through.
pub(super) trait Ready {
    /// Whether the last request is over and another can be sent.
    fn ready(&self) -> bool;
}

#[derive(Debug)]
pub(super) struct Link<S>(Mutex<State<S>>);

#[derive(Debug)]
struct State<S> {
    sender: Option<S>,
    /// The answer to the last request came, or nobody wants it; the connection is not yet free.
    owed: bool,
    stop: bool,
    driver: Option<Waker>,
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Wait for what comes.
    Wait,
    /// The connection is free again: say so.
    Freed,
    /// Drop the connection.
    Stop,
}

impl<S: Ready> Link<S> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            sender: None,
            owed: false,
            stop: false,
            driver: None,
        }))
    }

    /// The connection is there.
    pub(super) fn open(&self, sender: S) {
        self.lock().sender = Some(sender);
    }

    /// Sends `what` through the sender, or gives it back when the connection is not there or may not be used.
    #[inline]
    pub(super) fn with<W, T>(&self, what: W, send: impl FnOnce(&mut S, W) -> T) -> Result<T, W> {
        let state = &mut *self.lock();
        match &mut state.sender {
            Some(sender) if !state.stop => Ok(send(sender, what)),
            _ => Err(what),
        }
    }

    /// The answer to the last request is here, or nobody wants it any more. Whether the connection is free with that;
    /// the sender may `keep` what is left of the request.
    #[inline]
    pub(super) fn answered(&self, keep: impl FnOnce(&mut S)) -> bool {
        let mut state = self.lock();
        if let Some(sender) = &mut state.sender {
            keep(sender);
        }
        let free = state.sender.as_ref().is_some_and(S::ready) && !state.stop;
        state.owed = !free;
        free
    }

    /// After each poll of the connection.
    #[inline]
    pub(super) fn turn(&self, cx: &mut Context<'_>) -> Turn {
        let mut state = self.lock();
        if state.stop {
            return Turn::Stop;
        }
        match &mut state.driver {
            Some(driver) => driver.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if state.owed && state.sender.as_ref().is_some_and(S::ready) {
            state.owed = false;
            return Turn::Freed;
        }
        Turn::Wait
    }

    /// Tells the driver to drop the connection.
    pub(super) fn stop(&self) {
        let (driver, sender) = {
            let mut state = self.lock();
            state.stop = true;
            (state.driver.take(), state.sender.take())
        };
        drop(sender);
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// The connection is no more: nothing can be sent.
    pub(super) fn end(&self) {
        let sender = self.lock().sender.take();
        drop(sender);
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, tower_flow_loom))]
mod models;
