use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE};

use super::options::Options;
use super::{HttpKey, HttpShare};
use crate::middleware::coalesce::layer::CoalesceLayer;
use crate::middleware::coalesce::listed::Credentials;

impl CoalesceLayer<HttpKey, HttpShare> {
    /// A layer for HTTP: equal `GET` and `HEAD` requests, as [`HttpKey`] says, become one, and its response is shared as
    /// far as [`HttpShare`] allows.
    ///
    /// ```
    /// use http::header::ACCEPT_LANGUAGE;
    /// use tower_flow::{Flow, coalesce::{CoalesceLayer, Credentials}};
    ///
    /// let flow = Flow::new("shop");
    /// let layer = CoalesceLayer::http()
    ///     .header(ACCEPT_LANGUAGE)
    ///     .authorization(Credentials::InKey)
    ///     .name("pages")
    ///     .attach(&flow);
    /// # let _ = layer;
    /// ```
    pub fn http() -> Self {
        let options = Arc::new(Options::new());
        let key = HttpKey::new(options.clone());
        Self::with(key, HttpShare::new(options, Arc::default(), false)).set_http(|_| {})
    }

    /// Only `Accept-Encoding`, `Cache-Control` and what proxies say of the target (default) are in the key, or the
    /// header `name` too: all its values, in their order. List whatever answers depend on. What a response says it
    /// [varies](HttpShare) by and is not listed is not shared; [some headers](HttpKey) that say who asks make a request
    /// go alone until they are listed.
    #[must_use]
    pub fn header(self, name: HeaderName) -> Self {
        self.set_http(|options| options.listed.add(name))
    }

    /// Requests with `Authorization` go alone (default), or are equal to those with the same.
    #[must_use]
    pub fn authorization(self, credentials: Credentials) -> Self {
        self.set_http(|options| options.listed.credentials(AUTHORIZATION, credentials))
    }

    /// Requests with `Cookie` go alone (default), or are equal to those with the same.
    #[must_use]
    pub fn cookie(self, credentials: Credentials) -> Self {
        self.set_http(|options| options.listed.credentials(COOKIE, credentials))
    }

    /// 256 KiB (default) of a shared body, and one chunk beyond it, are held for readers that are behind the first.
    #[must_use]
    pub fn max_buffer(self, bytes: usize) -> Self {
        self.set_http(|options| options.max_buffer = bytes)
    }

    /// For 5 seconds (default) in all a full buffer waits for the slowest reader to take as much as the buffer holds. One
    /// that took less gets an error, and the others go on; so a steady reader of 52 KiB/s and more is safe.
    #[must_use]
    pub fn stall(self, stall: Duration) -> Self {
        self.set_http(|options| options.stall = stall)
    }

    /// Failures of the layer, not of what is inside, are errors (default), or responses, as a server wants them: 504 when
    /// a flight or a caller ran out of time, 508 for a request that would wait for itself, 500 after a panic, 503 with
    /// `retry-after: 1` for one given up by another. `x-coalesce-reason` says why.
    #[must_use]
    pub fn respond(self, respond: bool) -> Self {
        self.set_rules(|_| {}, Some(respond))
    }

    /// As [`respond`](Self::respond) with `true`, of a layer that may be in use, and of all its clones then.
    #[cfg(all(feature = "grpc", feature = "shed", feature = "timing"))]
    pub(crate) fn answer(self) -> Self {
        self.policy().answer();
        self
    }

    fn set_http(self, set: impl FnOnce(&mut Options)) -> Self {
        self.set_rules(set, None)
    }

    fn set_rules(self, set: impl FnOnce(&mut Options), respond: Option<bool>) -> Self {
        let evicted = self.evicted().clone();
        self.map_rules(|key, share| {
            let mut options = key.options().clone();
            set(&mut options);
            let options = Arc::new(options);
            let respond = respond.unwrap_or_else(|| share.responds());
            (
                HttpKey::new(options.clone()),
                HttpShare::new(options, evicted, respond),
            )
        })
    }
}

#[cfg(test)]
mod tests;
