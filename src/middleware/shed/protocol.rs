use super::classify::{ByError, Classify, Verdict};
use super::permit::Permit;
use super::refusal::Refusal;
use crate::base::clock;
use crate::base::error::BoxError;

/// How a kind of service is held, judged and refused. Sealed: [`Plain`] and [`Http`](super::Http) are the two there
/// are.
pub trait Protocol<Req, T, E>: Clone + Rules<Req, T, E> {}

impl<Req, T, E, P: Clone + Rules<Req, T, E>> Protocol<Req, T, E> for P {}

pub(super) mod sealed {
    use super::*;

    /// What a protocol does; its types are the service's.
    #[allow(missing_debug_implementations)]
    pub trait Rules<Req, T, E> {
        type Response;
        type Error;
        /// What a refused request becomes.
        type Refused: Future<Output = Result<Self::Response, Self::Error>>;

        fn refuse(&self, req: Req, refusal: Refusal) -> Self::Refused;

        /// The service answered: ends the permit, or ties it to the body.
        fn finish(
            &self,
            result: Result<T, E>,
            held: &mut Held,
        ) -> Result<Self::Response, Self::Error>;
    }

    /// A permit, which is nobody's business outside; `None` once it has gone on.
    #[derive(Debug)]
    pub struct Held(pub(in super::super) Option<Permit>);
}

pub(super) use sealed::{Held, Rules};

/// Any service: held until the future completes, refused with an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain<C = ByError> {
    pub(super) classify: C,
}

impl<C, Req, T, E> Rules<Req, T, E> for Plain<C>
where
    C: Classify<T, E>,
    E: Into<BoxError>,
{
    type Response = T;
    type Error = BoxError;
    type Refused = std::future::Ready<Result<T, BoxError>>;

    fn refuse(&self, _: Req, refusal: Refusal) -> Self::Refused {
        std::future::ready(Err(refusal.rejection().into()))
    }

    #[inline]
    fn finish(&self, result: Result<T, E>, held: &mut Held) -> Result<T, BoxError> {
        if let Some(permit) = &mut held.0 {
            let verdict = self.classify.guarded(result.as_ref());
            let verdict = verdict.unwrap_or_else(|| permit.hook_panicked());
            permit.end(verdict, None, clock::now);
        }
        result.map_err(Into::into)
    }
}

/// Asks a hook of the user. One that panics is counted, and says nothing.
#[inline]
pub(super) fn guarded(permit: &Permit, hook: impl FnOnce() -> Verdict) -> Verdict {
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(hook));
    asked.unwrap_or_else(|_| permit.hook_panicked())
}
