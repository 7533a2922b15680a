use std::error::Error;
use std::fmt;

use crate::base::error::{BoxError, Rejection, SharedError};

/// How one result becomes the result of many.
///
/// No method runs under a lock. A flight nobody else waits for goes through [`alone`](Self::alone) and nothing else.
pub trait Share<Res, Err> {
    /// What callers get.
    type Response;

    /// A result made fit for many.
    type Shared: Send + Sync + 'static;

    /// Whether the others may have `result` too.
    fn admit(&self, result: &Result<Res, Err>) -> Admit;

    /// The result of a caller that nobody shared with, untouched.
    fn alone(&self, result: Result<Res, Err>) -> Result<Self::Response, BoxError>;

    /// Makes a result fit for many.
    fn split(&self, result: Result<Res, Err>) -> Self::Shared;

    /// The result of one of them. With [`Gone`] for an error a caller that followed sends its own request after all.
    fn join(&self, shared: &Self::Shared) -> Result<Self::Response, BoxError>;

    /// The result of the last of them. Default: as any other's.
    fn last(&self, shared: Self::Shared) -> Result<Self::Response, BoxError> {
        self.join(&shared)
    }

    /// What a caller gets whose flight ended without a result, or took longer than its deadline. Default: the error.
    fn fail(&self, rejection: Rejection) -> Result<Self::Response, BoxError> {
        Err(rejection.into())
    }
}

/// A policy whose results can be had again and again, for a [grace](crate::coalesce::CoalesceLayer::grace).
///
/// A policy that shares something which is read once, such as a body, is none.
#[diagnostic::on_unimplemented(
    message = "what `{Self}` shares is gone once it is read, and cannot be kept for a grace",
    note = "implement `Keep` for a policy of your own whose results can be had again and again"
)]
pub trait Keep {}

impl Keep for ArcError {}
impl Keep for CloneResult {}
impl<P: Keep, F> Keep for When<P, F> {}

/// Who may have a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// All who wait for it.
    Share,
    /// The caller whose request it answers. The others send their own requests, side by side, and the key is remembered:
    /// for a while its requests go alone from the start.
    LeaderOnly,
    /// The caller whose request it answers, by an accident that says nothing of the key. The others send their own
    /// requests, side by side.
    Retry,
}

/// A shared result can be had no more: its beginning was let go of before this caller asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gone;

/// Clones responses, and shares errors as [`SharedError`]s: what a layer does unless told otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct ArcError;

/// Clones responses and errors.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneResult;

/// A policy that asks a function first; see [`ShareExt::when`].
#[derive(Debug, Clone, Copy)]
pub struct When<P, F> {
    policy: P,
    admit: F,
}

/// What can be done with a policy.
pub trait ShareExt: Sized {
    /// Shares what `admit` admits.
    ///
    /// ```
    /// use tower_flow::coalesce::{Admit, ArcError, CoalesceLayer, ShareExt as _};
    ///
    /// // Errors stay with the request that met them.
    /// let policy = ArcError.when(|result: &Result<u32, std::io::Error>| match result {
    ///     Ok(_) => Admit::Share,
    ///     Err(_) => Admit::Retry,
    /// });
    /// let layer = CoalesceLayer::new(|id: &u32| Some(*id)).share(policy);
    /// # let _ = layer;
    /// ```
    fn when<Res, Err, F>(self, admit: F) -> When<Self, F>
    where
        F: Fn(&Result<Res, Err>) -> Admit,
    {
        When {
            policy: self,
            admit,
        }
    }
}

impl ShareExt for ArcError {}
impl ShareExt for CloneResult {}

// ===== impl ArcError =====

impl<Res, Err> Share<Res, Err> for ArcError
where
    Res: Clone + Send + Sync + 'static,
    Err: Into<BoxError>,
{
    type Response = Res;
    type Shared = Result<Res, SharedError>;

    fn admit(&self, _: &Result<Res, Err>) -> Admit {
        Admit::Share
    }

    #[inline]
    fn alone(&self, result: Result<Res, Err>) -> Result<Res, BoxError> {
        result.map_err(Into::into)
    }

    fn split(&self, result: Result<Res, Err>) -> Self::Shared {
        result.map_err(SharedError::new)
    }

    fn join(&self, shared: &Self::Shared) -> Result<Res, BoxError> {
        match shared {
            Ok(response) => Ok(response.clone()),
            Err(error) => Err(error.clone().into()),
        }
    }

    fn last(&self, shared: Self::Shared) -> Result<Res, BoxError> {
        shared.map_err(Into::into)
    }
}

// ===== impl CloneResult =====

impl<Res, Err> Share<Res, Err> for CloneResult
where
    Res: Clone + Send + Sync + 'static,
    Err: Clone + Into<BoxError> + Send + Sync + 'static,
{
    type Response = Res;
    type Shared = Result<Res, Err>;

    fn admit(&self, _: &Result<Res, Err>) -> Admit {
        Admit::Share
    }

    #[inline]
    fn alone(&self, result: Result<Res, Err>) -> Result<Res, BoxError> {
        result.map_err(Into::into)
    }

    fn split(&self, result: Result<Res, Err>) -> Self::Shared {
        result
    }

    fn join(&self, shared: &Self::Shared) -> Result<Res, BoxError> {
        shared.clone().map_err(Into::into)
    }

    fn last(&self, shared: Self::Shared) -> Result<Res, BoxError> {
        shared.map_err(Into::into)
    }
}

// ===== impl When =====

impl<P, F> ShareExt for When<P, F> {}

impl<Res, Err, P, F> Share<Res, Err> for When<P, F>
where
    P: Share<Res, Err>,
    F: Fn(&Result<Res, Err>) -> Admit,
{
    type Response = P::Response;
    type Shared = P::Shared;

    fn admit(&self, result: &Result<Res, Err>) -> Admit {
        match (self.admit)(result) {
            Admit::Share => self.policy.admit(result),
            other => other,
        }
    }

    #[inline]
    fn alone(&self, result: Result<Res, Err>) -> Result<P::Response, BoxError> {
        self.policy.alone(result)
    }

    fn split(&self, result: Result<Res, Err>) -> P::Shared {
        self.policy.split(result)
    }

    fn join(&self, shared: &P::Shared) -> Result<P::Response, BoxError> {
        self.policy.join(shared)
    }

    fn last(&self, shared: P::Shared) -> Result<P::Response, BoxError> {
        self.policy.last(shared)
    }

    fn fail(&self, rejection: Rejection) -> Result<P::Response, BoxError> {
        self.policy.fail(rejection)
    }
}

// ===== impl Gone =====

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the beginning of a shared answer was let go of before this caller asked for it; ask again")
    }
}

impl Error for Gone {}
