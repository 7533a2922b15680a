use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap};

use super::method::{Detail, GrpcType, Method};
use crate::base::cost::Cost;
use crate::base::metrics::Labels;
use crate::base::stats::{Names, Striped};

/// Longer paths never become methods.
const LONGEST: usize = 256;

/// Which end of the call the layer sits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Server,
    Client,
}

/// Finds the trace a request belongs to.
pub(super) type TraceId = Arc<dyn Fn(&HeaderMap, &Extensions) -> Option<String> + Send + Sync>;

/// Everything a layer can be told.
#[derive(Clone)]
pub(super) struct Options {
    pub(super) side: Side,
    pub(super) go: bool,
    pub(super) otel: bool,
    pub(super) methods: Vec<(String, String, GrpcType)>,
    pub(super) max_learned: usize,
    pub(super) detail: Detail,
    pub(super) sizes: bool,
    pub(super) trace_id: Option<TraceId>,
    pub(super) timeout: Option<Duration>,
    pub(super) labels: Labels,
    pub(super) target: String,
}

/// What one layer knows.
pub(super) struct State {
    pub(super) options: Options,
    methods: Names<Method>,
    other: Method,
    /// Requests that are no gRPC.
    foreign: Striped,
    pub(super) cost: Cost,
}

/// Which [`Method`] a call is billed to: `None` is `other`.
pub(super) type Place = Option<usize>;

crate::leased!(State);

// ===== impl State =====

impl State {
    pub(super) fn new(options: Options) -> Self {
        let methods = Names::new(options.methods.len() + options.max_learned);
        for (service, name, kind) in &options.methods {
            methods.admit(&format!("/{service}/{name}"), || {
                Method::new(service, name, *kind, true, &options.detail)
            });
        }
        Self {
            other: Method::new("other", "other", GrpcType::Unknown, false, &options.detail),
            cost: Cost::new(),
            methods,
            foreign: Striped::new(1),
            options,
        }
    }

    #[inline]
    pub(super) fn find(&self, path: &str) -> Place {
        self.methods.find(path)
    }

    /// The path, if it may become a method once a call of it was answered with OK.
    #[cold]
    pub(super) fn learnable(&self, path: &str) -> Option<Box<str>> {
        let learnable = path.len() <= LONGEST && split(path).is_some() && !self.methods.is_full();
        learnable.then(|| path.into())
    }

    /// Makes `path` a method if there is room.
    pub(super) fn admit(&self, path: &str) -> Place {
        let (service, name) = split(path)?;
        self.methods.admit(path, || {
            Method::new(
                service,
                name,
                GrpcType::Unknown,
                false,
                &self.options.detail,
            )
        })
    }

    #[inline]
    pub(super) fn method(&self, place: Place) -> &Method {
        match place {
            Some(place) => self.methods.at(place),
            None => &self.other,
        }
    }

    pub(super) fn foreign(&self) {
        self.foreign.local().add(0, 1);
    }

    pub(super) fn foreign_calls(&self) -> u64 {
        self.foreign.sum(0)
    }

    /// All methods that are registered or were called, by path; `other` last, once it was called.
    pub(super) fn all(&self) -> Vec<&Method> {
        let mut all: Vec<_> = self
            .methods
            .sorted()
            .into_iter()
            .map(|(_, method)| method)
            .collect();
        if self.other.started() > 0 {
            all.push(&self.other);
        }
        all
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("side", &self.options.side)
            .field("methods", &self.methods.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("side", &self.side)
            .finish_non_exhaustive()
    }
}

// ===== impl Side =====

impl Side {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// "/pkg.Service/Method" into its two names.
fn split(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let whole = !service.is_empty() && !method.is_empty() && !method.contains('/');
    whole.then_some((service, method))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn only_two_names_make_a_method() {
        assert_eq!(split("/pkg.Svc/Method"), Some(("pkg.Svc", "Method")));
        for path in ["", "/", "//", "/a", "/a/", "//b", "a/b", "/a/b/c"] {
            assert_eq!(split(path), None, "{path}");
        }
    }
}
