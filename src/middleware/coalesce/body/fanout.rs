//! One body, polled by whichever of its readers has nothing to take.
//!
//! # Invariants
//!
//! One lock, held for a few instructions and never while user code runs.
//!
//! - `Upstream::Idle` holds the body. Who wants to poll takes it out and leaves `Driven`; after the poll it puts the body back,
//!   or leaves `Gone` when that has ended. So one polls at a time, and outside the lock. It has a claim meanwhile, so that
//!   the last claim never leaves while the body is out: who leaves last finds it here and drops it.
//! - `notified` says that a poll may bring something: there was none yet, the last brought a frame, or the body's waker was
//!   woken since the last began. A poll clears it *before* it begins; a wake during it is seen when the body is put back.
//! - Whenever the lock is let go: if the body is idle, notified, and there is room for more, no reader is parked. Each
//!   that was has been taken out to be woken, and each can drive, so that no wake is lost, whichever of the readers is
//!   dropped or not polled again. [`State::settle`] sees to that where the body becomes idle or notified; where room comes,
//!   the log does, for whoever parks while it is full waits for room.
//! - A body that wakes its waker and returns `Pending` in one poll asks for a pause: it is not polled again in the same poll
//!   of its reader, which wakes itself.
//! - The waker holds the fan-out, which may hold the body, which may hold the waker. The last claim breaks the circle.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Wake, Waker};

#[cfg(not(tower_flow_loom))]
use std::sync::{Mutex, MutexGuard};

#[cfg(tower_flow_loom)]
use loom::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use http_body::{Body, SizeHint};

use super::end::{End, Evicted};
use super::log::{After, Key, Limits, Log, Next, Stalled};
use super::origin::Origin;
use crate::base::clock::{self, Instant};
use crate::base::error::BoxError;

mod drive;

/// A body that several read.
pub(crate) struct FanOut<B> {
    state: Mutex<State<B>>,
    /// How many readers were evicted, of all bodies of a layer.
    evicted: Arc<AtomicU64>,
}

struct State<B> {
    log: Log,
    upstream: Upstream<B>,
    notified: bool,
    /// What the body said of its rest when it was polled last.
    hint: SizeHint,
}

enum Upstream<B> {
    Idle(Pin<Box<B>>),
    Driven,
    Gone,
}

/// What a reader is to do.
pub(super) enum Turn<B> {
    Take(Bytes),
    Over(End),
    /// Poll the body, and give it back to [`FanOut::drive`].
    Drive(Pin<Box<B>>),
    /// Come again with a clone of its waker.
    Clone,
    /// Wake itself: the body asked for a pause.
    Pause,
    /// It is parked, until somebody wakes it or this time has come.
    Wait(Option<Instant>),
}

/// What one poll of a reader has to park. It is made and dropped outside the lock.
#[derive(Default)]
pub(super) struct Wakers {
    /// What was parked before.
    parked: Option<Waker>,
    /// A clone of the current waker.
    cloned: Option<Waker>,
}

// ===== impl FanOut =====

impl<B> FanOut<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// Opens `body` to many readers. `promised` is how many bytes it should have, where its headers say so; `evicted`
    /// counts those that are given up as too slow.
    pub(crate) fn open(
        body: B,
        limits: Limits,
        promised: Option<u64>,
        evicted: Arc<AtomicU64>,
    ) -> Origin<B> {
        let (mut log, origin) = Log::new(limits, promised);
        let hint = body.size_hint();
        let (upstream, empty) = if body.is_end_stream() {
            // Nobody waits yet.
            log.finish(End::Clean, &mut After::default());
            (Upstream::Gone, Some(body))
        } else {
            (Upstream::Idle(Box::pin(body)), None)
        };
        drop(empty);
        let state = State {
            log,
            upstream,
            notified: true,
            hint,
        };
        Origin {
            shared: Arc::new(Self {
                state: Mutex::new(state),
                evicted,
            }),
            key: Some(origin),
        }
    }
}

impl<B> FanOut<B> {
    /// What the reader `key` is to do; it has `polled` the body in vain already, or not. `key` is gone with its end.
    pub(super) fn turn(
        &self,
        key: &mut Option<Key>,
        waker: &Waker,
        wakers: &mut Wakers,
        polled: bool,
    ) -> Turn<B> {
        let mut after = After::default();
        let mut state = self.lock();
        let turn = match &*key {
            Some(key) => state.turn(key, waker, wakers, polled, &self.evicted, &mut after),
            None => Turn::Over(End::Clean),
        };
        let body = match &turn {
            Turn::Over(_) => key.take().and_then(|key| state.leave(key, &mut after)),
            _ => None,
        };
        drop(state);
        after.run();
        drop(body);
        turn
    }

    /// A new claim beside `origin`.
    pub(super) fn join(&self, origin: &Key) -> Result<Key, Evicted> {
        self.lock().log.join(origin)
    }

    pub(super) fn leave(&self, key: Key) {
        let mut after = After::default();
        let mut state = self.lock();
        let body = state.leave(key, &mut after);
        drop(state);
        after.run();
        drop(body);
    }

    /// Whether nothing is left for `key`, not even trailers or an error, and how much it has to expect.
    pub(super) fn rest(&self, key: &Key) -> (bool, SizeHint) {
        let state = self.lock();
        let mut hint = SizeHint::new();
        let Some((any, ahead)) = state.log.ahead(key) else {
            return (false, hint);
        };
        match state.log.end() {
            None => {
                hint.set_lower(state.hint.lower().saturating_add(ahead));
                let upper = state.hint.upper();
                if let Some(upper) = upper.and_then(|upper| upper.checked_add(ahead)) {
                    hint.set_upper(upper);
                }
            }
            Some(End::Clean) => hint.set_exact(ahead),
            // A length found out late would have HTTP/1 announce it, and trailers go with chunks only.
            Some(End::Trailers(_)) if state.hint.exact().is_some() => hint.set_exact(ahead),
            // As for an error: a length would make what came before it look whole.
            Some(_) => hint.set_lower(ahead),
        }
        (!any && matches!(state.log.end(), Some(End::Clean)), hint)
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Send + 'static> Wake for FanOut<B> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut after = After::default();
        let mut state = self.lock();
        state.notified = true;
        state.settle(&mut after);
        drop(state);
        after.run();
    }
}

// ===== impl State =====

impl<B> State<B> {
    fn turn(
        &mut self,
        key: &Key,
        waker: &Waker,
        wakers: &mut Wakers,
        polled: bool,
        evicted: &AtomicU64,
        after: &mut After,
    ) -> Turn<B> {
        match self.log.next(key, clock::now, after) {
            Next::Chunk(bytes) => return Turn::Take(bytes),
            Next::Over(end) => return Turn::Over(end),
            Next::Nothing => {}
        }
        // From here on it is awake, until it is parked anew.
        if let Some(waker) = self.log.unpark(key) {
            wakers.parked = Some(waker);
        }
        let mut until = None;
        // Those that are last after them may hold as much.
        while self.log.is_full() {
            match self.log.stalled(clock::now(), after) {
                Stalled::Until(due) => {
                    until = due;
                    break;
                }
                Stalled::Evicted(readers) => {
                    evicted.fetch_add(readers, Ordering::Relaxed);
                }
            }
        }
        if self.runnable() {
            if polled {
                return Turn::Pause;
            }
            self.notified = false;
            if let Upstream::Idle(body) = std::mem::replace(&mut self.upstream, Upstream::Driven) {
                return Turn::Drive(body);
            }
        }
        match wakers.take(waker) {
            Some(waker) => {
                self.log.park(key, waker);
                Turn::Wait(until)
            }
            None => Turn::Clone,
        }
    }

    /// A poll of the body may bring something, and there is room for it.
    fn runnable(&self) -> bool {
        self.notified && matches!(self.upstream, Upstream::Idle(_)) && !self.log.is_full()
    }

    /// Wakes all who could poll the body, when that should be polled.
    fn settle(&mut self, after: &mut After) {
        if self.runnable() {
            self.log.wake_all(after);
        }
    }

    /// Gives `key` back, and the body out when it was the last.
    fn leave(&mut self, key: Key, after: &mut After) -> Option<Pin<Box<B>>> {
        self.log.leave(key, after);
        if !self.log.abandoned() {
            return None;
        }
        match std::mem::replace(&mut self.upstream, Upstream::Gone) {
            Upstream::Idle(body) => Some(body),
            Upstream::Driven | Upstream::Gone => None,
        }
    }
}

// ===== impl Wakers =====

impl Wakers {
    /// One to be parked for `current`, unless that has to be cloned first.
    fn take(&mut self, current: &Waker) -> Option<Waker> {
        let parked = || self.parked.take_if(|parked| parked.will_wake(current));
        self.cloned.take().or_else(parked)
    }

    pub(super) fn clone_from(&mut self, current: &Waker) {
        self.parked = None;
        self.cloned = Some(current.clone());
    }
}

#[cfg(all(test, tower_flow_loom))]
mod models;
#[cfg(all(test, not(tower_flow_loom)))]
mod tests;
