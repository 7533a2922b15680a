//! The end: nothing new is accepted, and what was is finished.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::watch;

/// Shared by all who have something to finish. Clones are the same.
#[derive(Clone)]
pub(crate) struct Drain(Arc<Inner>);

struct Inner {
    ending: watch::Sender<bool>,
    open: AtomicUsize,
}

/// Something that has to be finished: a connection, a tunnel.
pub(crate) struct Open(Drain);

impl Drain {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            ending: watch::Sender::new(false),
            open: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn begin(&self) {
        self.0.ending.send_replace(true);
    }

    pub(crate) fn ending(&self) -> bool {
        *self.0.ending.borrow()
    }

    /// Ends when [`begin`](Self::begin) is called.
    pub(crate) async fn begun(&self) {
        let mut ending = self.0.ending.subscribe();
        // The sender is here.
        let _ = ending.wait_for(|ending| *ending).await;
    }

    pub(crate) fn hold(&self) -> Open {
        self.0.open.fetch_add(1, SeqCst);
        Open(self.clone())
    }

    pub(crate) fn open(&self) -> usize {
        self.0.open.load(SeqCst)
    }

    /// Ends once nothing is open any more.
    pub(crate) async fn emptied(&self) {
        let mut changed = self.0.ending.subscribe();
        while self.open() > 0 {
            let _ = changed.changed().await;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let drain = &self.0.0;
        if drain.open.fetch_sub(1, SeqCst) == 1 {
            // Wakes whoever waits for it.
            drain.ending.send_modify(|_| ());
        }
    }
}

/// SIGTERM and Ctrl-C, from when it is made on.
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    /// Ends when the next one comes.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}
