//! Which requests belong together: the route a layer keeps numbers of.

/// Names the route of a request. Any `Fn(&Req) -> &str` is one.
pub trait Route<Req> {
    /// The route's name; `None` for the only one of its layer.
    fn of<'a>(&self, req: &'a Req) -> Option<&'a str>;
}

/// Every request takes the same route, named after the layer.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct OneRoute;

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
