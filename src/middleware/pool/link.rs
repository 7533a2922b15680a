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
//!
//! An HTTP/1 answer may be read to its end while its request is still being written, to a peer that may have stopped
//! reading. Such a connection lingers a while and is dropped. `answers` tells whose body ended: by then the connection may
//! serve another.
//!
//! An HTTP/2 connection is `working` while hyper has more to do for it than to read and write frames: an answer awaited,
//! an upload, a tunnel. When its last stream ends meanwhile, it is not idle but `trailing`, till the work is done.

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
    /// Answers that came so far.
    answers: u64,
    /// The last of them was read to its end.
    ended: bool,
    working: bool,
    trailing: bool,
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
    /// The request is written on though its answer was read to the end: not for long.
    Linger,
    /// Drop the connection.
    Stop,
}

impl<S: Ready> Link<S> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            sender: None,
            owed: false,
            answers: 0,
            ended: false,
            working: false,
            trailing: false,
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

    /// The answer to the last request is here, or nobody wants it any more: `None` when the connection is free with that,
    /// else the number of the answer. The sender may `keep` what is left of the request.
    #[inline]
    pub(super) fn answered(&self, keep: impl FnOnce(&mut S)) -> Option<u64> {
        let mut state = self.lock();
        if let Some(sender) = &mut state.sender {
            keep(sender);
        }
        let free = state.sender.as_ref().is_some_and(S::ready) && !state.stop;
        state.owed = !free;
        state.ended = false;
        state.answers += 1;
        (!free).then_some(state.answers)
    }

    /// The body of an HTTP/1 answer was read to its end, or dropped.
    pub(super) fn ended(&self, answer: u64) {
        let driver = {
            let mut state = self.lock();
            if state.answers != answer || !state.owed {
                return;
            }
            state.ended = true;
            state.driver.clone()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Whether hyper has more to do for an HTTP/2 connection than to read and write frames.
    #[inline]
    pub(super) fn working(&self) -> bool {
        self.lock().working
    }

    /// The last stream ended while there was work. Whether there is none by now.
    pub(super) fn trails(&self) -> bool {
        let mut state = self.lock();
        state.trailing = state.working;
        !state.working
    }

    /// After each poll of the connection, which is `working` or not.
    #[inline]
    pub(super) fn turn(&self, cx: &mut Context<'_>, working: bool) -> Turn {
        let mut state = self.lock();
        state.working = working;
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
        if state.trailing && !working {
            state.trailing = false;
            return Turn::Freed;
        }
        if state.owed && state.ended {
            return Turn::Linger;
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
