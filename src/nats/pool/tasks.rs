//! The pool's tasks: each lasts for as long as there is something to wait for.

use std::sync::Weak;
use std::time::Duration;

use super::super::line::Line;
use super::shared::Shared;
use crate::base::clock;
use crate::base::error::SharedError;

/// How often lines that lost their server are looked at while somebody waits for one.
const LOOK: Duration = Duration::from_millis(25);

/// Makes a connection.
pub(super) async fn dial(shared: Weak<Shared>, id: u64) {
    let (servers, options) = {
        let Some(shared) = shared.upgrade() else {
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
    let Some(shared) = shared.upgrade() else {
        return;
    };
    let mut state = shared.lock();
    state.dials.remove(&id);
    match dialled {
        Ok(client) => {
            // Whoever closed the pool meanwhile wants it no more.
            if state.core.dialled(id) {
                state.lines.insert(id, Line::new(client));
            }
        }
        Err(cause) => {
            state.cause = Some(cause);
            let tickets = state.core.dial_failed(clock::now(), id);
            shared.fail(&mut state, tickets, |state| state.unconnected(None));
        }
    }
    drop(state);
    shared.changed.notify_waiters();
    shared.pump();
}

/// Looks at lines that lost their server, for as long as somebody waits for one.
pub(super) async fn watch(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut state = shared.lock();
        state.refresh();
        state.watched = state.core.is_stranded() || !state.seats.is_empty();
        let goes_on = state.watched;
        drop(state);
        shared.changed.notify_waiters();
        shared.pump();
        if !goes_on {
            return;
        }
    }
}
