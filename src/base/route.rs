//! Which requests belong together: the route a layer keeps numbers of.

use super::stats::Names;

/// Where calls to unknown routes, or to more routes than there is room for, are counted.
pub(crate) const OTHER: &str = "other";

/// Longer names never become routes.
const LONGEST: usize = 256;

/// Names the route of a request. Any `Fn(&Req) -> &str` is one.
pub trait Route<Req> {
    /// The route's name; `None` for the layer's own, which is called as the layer is.
    fn of<'a>(&self, req: &'a Req) -> Option<&'a str>;
}

/// Every request takes the same route, named after the layer.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct OneRoute;

/// The routes of one layer, and what it keeps of each.
///
/// A name becomes a route when somebody [`admit`](Self::admit)s it, after a call that was served. Until then, and when
/// there is no more room, its calls are billed to `other`, so whoever sends names cannot make routes of them.
#[derive(Debug)]
pub(crate) struct Routes<M> {
    /// Whether requests name their routes; else there is the one.
    routed: bool,
    /// Where requests name theirs, that of those that name none.
    only: M,
    other: M,
    names: Names<M>,
}

/// Which route a call is billed to.
#[derive(Debug)]
pub(crate) enum Place {
    /// The layer's own route, mostly its only one.
    Only,
    /// A route by its place among the names.
    Known(usize),
    /// None yet: with a name that may become a route.
    Other(Option<Box<str>>),
}

// ===== impl Route =====

impl<Req, F: Fn(&Req) -> &str> Route<Req> for F {
    fn of<'a>(&self, req: &'a Req) -> Option<&'a str> {
        Some(self(req))
    }
}

impl<Req> Route<Req> for OneRoute {
    #[inline]
    fn of<'a>(&self, _: &'a Req) -> Option<&'a str> {
        None
    }
}

// ===== impl Routes =====

impl<M> Routes<M> {
    /// One route, or as many as `max` if requests name them.
    pub(crate) fn new(routed: bool, max: usize, make: impl Fn() -> M) -> Self {
        Self {
            routed,
            only: make(),
            other: make(),
            names: Names::new(max),
        }
    }

    #[inline]
    pub(crate) fn place(&self, name: Option<&str>) -> Place {
        match name {
            None => Place::Only,
            Some(name) => match self.names.find(name) {
                Some(place) => Place::Known(place),
                None => self.unknown(name),
            },
        }
    }

    #[cold]
    fn unknown(&self, name: &str) -> Place {
        let learnable = name.len() <= LONGEST && !self.names.is_full();
        Place::Other(learnable.then(|| name.into()))
    }

    #[inline]
    pub(crate) fn at(&self, place: &Place) -> &M {
        match place {
            Place::Only => &self.only,
            Place::Known(place) => self.names.at(*place),
            Place::Other(_) => &self.other,
        }
    }

    /// Makes `name` a route if there is room. Calls that named it before stay billed where they started.
    pub(crate) fn admit(&self, name: &str, make: impl FnOnce() -> M) -> Option<&M> {
        let place = self.names.admit(name, make)?;
        Some(self.names.at(place))
    }

    /// The only route; `None` when requests name theirs.
    #[cfg(feature = "timing")]
    pub(crate) fn only(&self) -> Option<&M> {
        (!self.routed).then_some(&self.only)
    }

    /// All routes by name: the layer's own first, called `own`, and `other` last, each where it is of interest.
    pub(crate) fn all<'a>(
        &'a self,
        own: &'a str,
        used: impl Fn(&M) -> bool,
    ) -> Vec<(&'a str, &'a M)> {
        let mut all = self.names.sorted();
        // The only route of its layer is shown before its first call too.
        if !self.routed || used(&self.only) {
            all.insert(0, (own, &self.only));
        }
        if used(&self.other) {
            all.push((OTHER, &self.other));
        }
        all
    }
}
