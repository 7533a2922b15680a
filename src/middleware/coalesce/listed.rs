use http::{HeaderMap, HeaderName};

use super::exact::Writer;

/// What is done with a request that carries `Authorization` or `Cookie`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Credentials {
    /// It goes alone.
    #[default]
    Bypass,
    /// It is equal to requests with the same credentials, byte for byte.
    ///
    /// RFC 9111 §3.5 forbids a shared cache to answer others with what was sent to somebody who was authorized. Here
    /// nobody is another: the server cannot tell those who share from each other.
    InKey,
}

/// The headers that are in a key, in the order of their names, each once.
#[derive(Debug, Clone)]
pub(super) struct Listed(Vec<HeaderName>);

// ===== impl Listed =====

impl Listed {
    pub(super) fn new(names: impl IntoIterator<Item = HeaderName>) -> Self {
        let mut listed = Self(Vec::new());
        names.into_iter().for_each(|name| listed.add(name));
        listed
    }

    pub(super) fn add(&mut self, name: HeaderName) {
        if let Err(place) = self.place(&name) {
            self.0.insert(place, name);
        }
    }

    pub(super) fn credentials(&mut self, name: HeaderName, credentials: Credentials) {
        match (credentials, self.place(&name)) {
            (Credentials::InKey, _) => self.add(name),
            (Credentials::Bypass, Ok(place)) => drop(self.0.remove(place)),
            (Credentials::Bypass, Err(_)) => {}
        }
    }

    pub(super) fn contains(&self, name: &HeaderName) -> bool {
        self.0.contains(name)
    }

    /// The same, of a name in any case.
    pub(super) fn names(&self, name: &[u8]) -> bool {
        let mut listed = self.0.iter();
        listed.any(|listed| name.eq_ignore_ascii_case(listed.as_str().as_bytes()))
    }

    /// Bytes written of headers whose values take `values` bytes, frames included.
    pub(super) fn room(&self, values: usize) -> usize {
        self.0.len() + values
    }

    /// All values of each.
    pub(super) fn write(&self, headers: &HeaderMap, to: &mut Writer) {
        for name in &self.0 {
            to.values(headers, name);
        }
    }

    fn place(&self, name: &HeaderName) -> Result<usize, usize> {
        self.0
            .binary_search_by(|listed| listed.as_str().cmp(name.as_str()))
    }
}
