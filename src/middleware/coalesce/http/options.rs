use std::time::Duration;

use http::HeaderName;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL};

use super::key::{Credentials, is_never_carried};

/// What key and share agree on.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// In the order of their names, each once.
    listed: Vec<HeaderName>,
    pub(super) max_buffer: usize,
    pub(super) stall: Duration,
    /// Whether failures of the layer are responses.
    pub(super) respond: bool,
}

// ===== impl Options =====

impl Options {
    pub(super) fn new() -> Self {
        let mut options = Self {
            listed: Vec::new(),
            max_buffer: 256 * 1024,
            stall: Duration::from_secs(5),
            respond: false,
        };
        // Codings are never mixed. What a request says of caching is what it asks for.
        options.list(ACCEPT_ENCODING);
        options.list(CACHE_CONTROL);
        options
    }

    pub(super) fn list(&mut self, name: HeaderName) {
        if let Err(place) = self.place(&name) {
            self.listed.insert(place, name);
        }
    }

    fn unlist(&mut self, name: &HeaderName) {
        if let Ok(place) = self.place(name) {
            self.listed.remove(place);
        }
    }

    pub(super) fn credentials(&mut self, name: HeaderName, credentials: Credentials) {
        match credentials {
            Credentials::Bypass => self.unlist(&name),
            Credentials::InKey => self.list(name),
        }
    }

    /// All values of these are in the key.
    pub(super) fn listed(&self) -> &[HeaderName] {
        &self.listed
    }

    pub(super) fn lists(&self, name: &HeaderName) -> bool {
        self.listed.contains(name)
    }

    /// Whether all requests that share a key agree on the header called `name`: it is in the key, or in none of them.
    pub(super) fn agrees(&self, name: &[u8]) -> bool {
        let listed = |listed: &HeaderName| name.eq_ignore_ascii_case(listed.as_str().as_bytes());
        self.listed.iter().any(listed)
            || name.eq_ignore_ascii_case(b"host")
            || is_never_carried(name)
    }

    fn place(&self, name: &HeaderName) -> Result<usize, usize> {
        self.listed
            .binary_search_by(|listed| listed.as_str().cmp(name.as_str()))
    }
}
