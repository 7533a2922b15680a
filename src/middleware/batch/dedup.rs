use std::convert::Infallible;
use std::hash::Hash;

/// Which requests are the same, so that one of them is sent for all; and how its answer becomes theirs.
pub trait Dedup<Req, Res>: Send + Sync + 'static {
    /// What the same requests have in common.
    type Key: Hash + Eq + Send + 'static;

    /// The key of `req`; `None` for one that is like no other.
    fn key(&self, req: &Req) -> Option<Self::Key>;

    /// The answer again, for another of them.
    fn copy(&self, answer: &Res) -> Res;
}

/// No two requests are the same: what a layer holds unless told otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct Distinct;

/// Requests are the same when a function says the same of them: see [`BatchLayer::dedup_by`](super::BatchLayer::dedup_by).
#[derive(Debug, Clone, Copy)]
pub struct DedupBy<F>(pub(super) F);

impl<Req, Res> Dedup<Req, Res> for Distinct {
    type Key = Infallible;

    #[inline]
    fn key(&self, _: &Req) -> Option<Infallible> {
        None
    }

    fn copy(&self, _: &Res) -> Res {
        unreachable!("no request is the same as another")
    }
}

impl<Req, Res, Q, F> Dedup<Req, Res> for DedupBy<F>
where
    F: Fn(&Req) -> Q + Send + Sync + 'static,
    Q: Hash + Eq + Send + 'static,
    Res: Clone,
{
    type Key = Q;

    fn key(&self, req: &Req) -> Option<Q> {
        Some((self.0)(req))
    }

    fn copy(&self, answer: &Res) -> Res {
        answer.clone()
    }
}
