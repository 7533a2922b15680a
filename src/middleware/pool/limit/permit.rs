use super::state::State;
use crate::base::stats::Lease;

/// A place of a host: a dial and then its connection, or a request. Dropped, it is free again.
#[derive(Debug)]
pub struct Permit {
    state: Lease<State>,
    host: usize,
    open: bool,
}

impl Permit {
    pub(super) fn new(state: Lease<State>, host: usize) -> Self {
        Self {
            state,
            host,
            open: false,
        }
    }

    /// The dial has become a connection.
    pub(super) fn open(&mut self) {
        self.open = true;
        self.state.lock().gate.opened(self.host);
    }

    /// The dial has failed.
    pub(super) fn failed(self) {
        self.state.lock().counts.failed += 1;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.state.release(self.host, self.open);
    }
}
