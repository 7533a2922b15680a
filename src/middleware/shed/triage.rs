//! What HTTP requests say of themselves.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request};
use rustc_hash::FxHashSet;

use super::ask::{Ask, Triage};
use crate::base::deadline::{Deadline, grpc_timeout};
use crate::base::header;
use crate::base::priority::Priority;
use crate::base::stats::Lease;

/// What an HTTP request says of itself: its extensions, its headers, its path.
///
/// - A [`Priority`] and a [`Deadline`] among its extensions count;
/// - `grpc-timeout` and Envoy's `x-envoy-expected-rq-timeout-ms` say how long its caller will wait;
/// - listed paths pass by, others are streams.
///
/// What a header says that cannot be read counts as not said; such requests are counted.
#[derive(Debug, Clone)]
pub struct HttpTriage {
    pub(super) rules: Lease<PathRules>,
}

/// The rules of an [`HttpTriage`].
#[derive(Debug, Clone, Default)]
pub(super) struct PathRules {
    pub(super) bypass: Paths,
    pub(super) streams: Paths,
    pub(super) priority: Option<HeaderName>,
    pub(super) partition: Option<HeaderName>,
    pub(super) cohort: Option<HeaderName>,
    pub(super) timeout: Option<Duration>,
}

/// Some paths, and some that stand for all below them.
#[derive(Debug, Clone, Default)]
pub(super) struct Paths {
    exact: FxHashSet<String>,
    below: Vec<String>,
}

crate::leased!(PathRules);

/// In milliseconds, how long Envoy will wait for the answer.
const ENVOY_TIMEOUT: &str = "x-envoy-expected-rq-timeout-ms";

// ===== impl HttpTriage =====

impl HttpTriage {
    pub(super) fn change(&mut self, change: impl FnOnce(&mut PathRules)) {
        let mut rules = PathRules::clone(&self.rules);
        change(&mut rules);
        self.rules = Lease::new(rules.into());
    }
}

impl Default for HttpTriage {
    fn default() -> Self {
        Self {
            rules: Lease::new(PathRules::default().into()),
        }
    }
}

impl<B> Triage<Request<B>> for HttpTriage {
    #[inline]
    fn triage<'a>(&self, req: &'a Request<B>) -> Ask<'a> {
        let rules = &*self.rules;
        let path = req.uri().path();
        let mut ask = Ask::new();
        ask.bodiless = req.method() == Method::HEAD;
        if rules.bypass.has(path) {
            return ask.bypass();
        }
        if rules.streams.has(path) {
            ask = ask.stream();
        }
        let [grpc, envoy] = header::find(req.headers(), ["grpc-timeout", ENVOY_TIMEOUT]);
        let asked = grpc.and_then(grpc_timeout).or_else(|| milliseconds(envoy?));
        ask.malformed = asked.is_none() && (grpc.is_some() || envoy.is_some());
        ask.timeout = match (asked, rules.timeout) {
            (Some(asked), Some(granted)) => Some(asked.min(granted)),
            (asked, granted) => asked.or(granted),
        };
        if !req.extensions().is_empty() {
            ask.deadline = req.extensions().get::<Deadline>().copied();
            if let Some(priority) = req.extensions().get::<Priority>() {
                ask.priority = *priority;
            }
        }
        let text = |name: &Option<HeaderName>| req.headers().get(name.as_ref()?)?.to_str().ok();
        if rules.priority.is_some() && req.extensions().get::<Priority>().is_none() {
            let header = rules.priority.as_ref();
            let there = header.is_some_and(|name| req.headers().contains_key(name));
            let said = text(&rules.priority).and_then(|text| text.parse().ok());
            ask.malformed |= there && said.is_none();
            ask.priority = said.unwrap_or_default();
        }
        if rules.partition.is_some() {
            ask.partition = text(&rules.partition);
        }
        if rules.cohort.is_some() {
            ask.cohort = text(&rules.cohort).map(hash);
        }
        ask
    }

    #[inline]
    fn guarded<'a>(&self, req: &'a Request<B>) -> Ask<'a> {
        self.triage(req)
    }
}

fn milliseconds(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    // Eight digits are a day; more are a mistake.
    let plain = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok().map(Duration::from_millis))?
}

fn hash(text: &str) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault};
    BuildHasherDefault::<rustc_hash::FxHasher>::default().hash_one(text)
}

// ===== impl Paths =====

impl Paths {
    pub(super) fn extend(&mut self, paths: impl IntoIterator<Item = String>) {
        for path in paths {
            if path.ends_with('/') {
                self.below.push(path);
            } else {
                self.exact.insert(path);
            }
        }
    }

    #[inline]
    fn has(&self, path: &str) -> bool {
        let below = || {
            self.below
                .iter()
                .any(|known| path.starts_with(known.as_str()))
        };
        (!self.exact.is_empty() && self.exact.contains(path)) || below()
    }
}
