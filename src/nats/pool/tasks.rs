//! The pool's tasks: each lasts for as long as there is something to wait for.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::super::line::Line;
use super::shared::Shared;
use crate::base::clock;
use crate::base::error::SharedError;

/// How often lines that lost their server are looked at while somebody waits for one.
pub(super) const LOOK: Duration = Duration::from_millis(25);

/// A dial that has failed if it is dropped: callbacks of the application run within, and may panic.
pub(super) struct Dialling {
    shared: Weak<Shared>,
    id: u64,
    ended: bool,
}

/// That somebody looks; nobody does once it is dropped.
pub(super) struct Watched(pub(super) Weak<Shared>);

impl Dialling {
    pub(super) fn new(shared: &Arc<Shared>, id: u64) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            id,
            ended: false,
        }
    }

    fn failed(&mut self, cause: SharedError) {
        self.ended = true;
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut state = shared.lock();
        if state.dials.remove(&self.id).is_none() {
            // The pool was closed meanwhile.
            return;
        }
        state.cause = Some(cause);
        let tickets = state.core.dial_failed(clock::now(), self.id);
        let told: Vec<_> = state
            .leaving(tickets)
            .into_iter()
            .map(|sender| (sender, state.unconnected(None)))
            .collect();
        drop(state);
        for (sender, error) in told {
            drop(sender.send(Err(error)));
        }
        shared.changed.notify_waiters();
        shared.pump();
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        if !self.ended {
            let why =
                "the dial did not end: a callback of its options panicked, or its runtime is gone";
            self.failed(SharedError::new(why));
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.lock().watched = false;
        }
    }
}

/// Makes a connection.
pub(super) async fn dial(mut dialling: Dialling) {
    let (servers, options) = {
        let Some(shared) = dialling.shared.upgrade() else {
            return;
        };
        (
            shared.options.servers.clone(),
            shared.options.connect.clone(),
        )
    };
    let dialled = match servers {
        Ok(servers) => options.connect(servers).await.map_err(SharedError::new),
        Err(why) => Err(SharedError::new(why)),
    };
    let client = match dialled {
        Ok(client) => client,
        Err(cause) => return dialling.failed(cause),
    };
    dialling.ended = true;
    let Some(shared) = dialling.shared.upgrade() else {
        return;
    };
    let mut state = shared.lock();
    state.dials.remove(&dialling.id);
    // Whoever closed the pool meanwhile wants it no more.
    if state.core.dialled(dialling.id) {
        state.lines.insert(dialling.id, Line::new(client));
    }
    drop(state);
    shared.changed.notify_waiters();
    shared.pump();
}

/// Looks at lines that lost their server, for as long as somebody waits for one.
pub(super) async fn watch(watched: Watched) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(shared) = watched.0.upgrade() else {
            return;
        };
        let mut state = shared.lock();
        state.refresh();
        let goes_on = state.core.is_stranded() || !state.seats.is_empty();
        drop(state);
        shared.changed.notify_waiters();
        shared.pump();
        if !goes_on {
            break;
        }
    }
    let Some(shared) = watched.0.upgrade() else {
        return;
    };
    drop(watched);
    // Somebody may have come since who relied on this task.
    shared.pump();
}
