//! What the server and the service know of one connection.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::serve::LIFETIME;
use crate::base::clock::Instant;

/// One connection of the endpoint's own server; the service finds it among a request's extensions.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Both ends are on this machine, and the endpoint is bound to nothing else.
    pub(super) local: bool,
    state: AtomicU8,
    bell: Notify,
    /// Since when its client takes nothing of what is there for it.
    stuck: Mutex<Option<Instant>>,
}

/// One request and its answer, within the lifetime.
const ORDINARY: u8 = 0;
/// It lasts as long as it takes.
const HELD: u8 = 1;
/// It is over.
const CLOSED: u8 = 2;

/// Keeps a connection open beyond its lifetime, which begins anew when this is dropped.
#[derive(Debug)]
pub(super) struct Held(Arc<Link>);

impl Link {
    pub(super) fn new(local: bool) -> Arc<Self> {
        Arc::new(Self {
            local,
            ..Self::default()
        })
    }

    /// Lets the connection last.
    pub(super) fn hold(self: &Arc<Self>) -> Held {
        self.pass(ORDINARY, HELD);
        Held(self.clone())
    }

    pub(super) fn is_held(&self) -> bool {
        self.state.load(Ordering::Relaxed) == HELD
    }

    /// Something was written, or could not be: it has no room for it.
    pub(super) fn wrote(&self, something: bool, now: Instant) {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        *stuck = match something {
            true => None,
            false => stuck.or(Some(now)),
        };
    }

    /// Until the connection has to end.
    pub(super) async fn over(&self) {
        loop {
            let rung = timeout(LIFETIME, self.bell.notified()).await.is_ok();
            match self.state.load(Ordering::Relaxed) {
                CLOSED => return,
                // A connection carries one request, so this begins anew at most once.
                ORDINARY if !rung => return,
                _ => {}
            }
        }
    }

    /// Nothing but the state itself is passed on, so no ordering matters.
    fn pass(&self, from: u8, to: u8) {
        let passed = self
            .state
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        if passed.is_ok() {
            self.bell.notify_one();
        }
    }
}

impl Held {
    /// Since when the client takes nothing of what is there for it.
    pub(super) fn stuck(&self) -> Option<Instant> {
        *self.0.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection at once, whatever it is in the middle of.
    pub(super) fn close(&self) {
        self.0.pass(HELD, CLOSED);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.pass(HELD, ORDINARY);
    }
}
