use std::time::Duration;

use http::header::{ACCEPT_ENCODING, CACHE_CONTROL};

use super::key::is_never_carried;
use crate::middleware::coalesce::known::is_known;
use crate::middleware::coalesce::listed::Listed;

/// What key and share agree on.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// All values of these are in the key.
    pub(super) listed: Listed,
    pub(super) max_buffer: usize,
    pub(super) stall: Duration,
}

// ===== impl Options =====

impl Options {
    pub(super) fn new() -> Self {
        Self {
            // Codings are never mixed. What a request says of caching is what it asks for.
            listed: Listed::new([ACCEPT_ENCODING, CACHE_CONTROL]),
            max_buffer: 256 * 1024,
            stall: Duration::from_secs(5),
        }
    }

    /// Whether all requests that share a key agree on the header called `name`: it is in the key, or in none of them.
    pub(super) fn agrees(&self, name: &[u8]) -> bool {
        self.listed.names(name)
            || name.eq_ignore_ascii_case(b"host")
            || is_never_carried(name)
            || is_known(name)
    }
}
