//! What HTTP and gRPC add: requests that say how urgent they are, bodies that hold their slot, answers that refuse.

use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::classify::{ByStatus, ClassifyResponse, Verdict};
use super::layer::ShedLayer;
use super::permit::Permit;
use super::protocol::{Held, Rules, guarded};
use super::refusal::Refusal;
use super::refused::Refused;
use super::reject::{AsHttp, Refuse, Reject};
use super::triage::HttpTriage;
use crate::base::body::{End, Observe, ObservedBody};
use crate::base::clock::{self, Instant, Moment};

/// How long a request holds its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Hold {
    /// Until its response's body has ended.
    #[default]
    Body,
    /// Until its response's headers are there.
    Headers,
}

/// The HTTP form: held until the body ends, judged by status, refused with a response.
#[derive(Debug, Clone, Copy, Default)]
pub struct Http<C = ByStatus, K = AsHttp> {
    pub(super) classify: C,
    pub(super) reject: Reject<K>,
    pub(super) hold: Hold,
}

// ===== impl ShedLayer =====

impl<C, K> ShedLayer<HttpTriage, Http<C, K>> {
    /// The health routes (default) and these pass by, counted. A path that ends in a slash stands for all below it.
    #[must_use]
    pub fn bypass<I: Into<String>>(mut self, paths: impl IntoIterator<Item = I>) -> Self {
        let paths = paths.into_iter().map(Into::into);
        self.triage.change(|rules| rules.bypass.extend(paths));
        self
    }

    /// No path (default), or these are long-lived streams: they hold slots of their own pool and are never samples.
    /// A path that ends in a slash stands for all below it.
    #[must_use]
    pub fn streaming<I: Into<String>>(mut self, paths: impl IntoIterator<Item = I>) -> Self {
        let paths = paths.into_iter().map(Into::into);
        self.triage.change(|rules| rules.streams.extend(paths));
        self
    }

    /// Priorities are taken from extensions alone (default), or from this header too. Whoever can set it can claim to
    /// be critical: name one that your edge overwrites.
    #[must_use]
    pub fn priority_header(mut self, name: HeaderName) -> Self {
        self.triage.change(|rules| rules.priority = Some(name));
        self
    }

    /// No header (default), or the one that names a request's [`partition`](Self::partition). Whoever can set it can use
    /// another's share: name one that your edge overwrites.
    #[must_use]
    pub fn partition_header(mut self, name: HeaderName) -> Self {
        self.triage.change(|rules| rules.partition = Some(name));
        self
    }

    /// At random (default), or by this header's value: whose requests are shed first when part of a priority is. Whoever
    /// can set it can try values until one is let in: name one that your edge overwrites.
    #[must_use]
    pub fn cohort_header(mut self, name: HeaderName) -> Self {
        self.triage.change(|rules| rules.cohort = Some(name));
        self
    }

    /// Only the deadlines that requests bring (default), or at most `timeout` for each.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.triage.change(|rules| rules.timeout = Some(timeout));
        self
    }

    /// To the end of the response's body (default), or only to its headers.
    #[must_use]
    pub fn hold(mut self, hold: Hold) -> Self {
        self.protocol.hold = hold;
        self
    }

    /// By status (default), or by a classifier of yours.
    pub fn classify_response<D: ClassifyResponse>(
        self,
        classify: D,
    ) -> ShedLayer<HttpTriage, Http<D, K>> {
        self.protocol(|Http { reject, hold, .. }| Http {
            classify,
            reject,
            hold,
        })
    }

    /// With a response (default), or in another way; see [`Reject`].
    pub fn reject<J>(self, reject: Reject<J>) -> ShedLayer<HttpTriage, Http<C, J>> {
        self.protocol(|Http { classify, hold, .. }| Http {
            classify,
            reject,
            hold,
        })
    }

    /// With a response (default), or with one of your making.
    pub fn reject_by<F>(self, answer: F) -> ShedLayer<HttpTriage, Http<C, F>>
    where
        F: Fn(&Refusal) -> Response<()>,
    {
        self.reject(Reject { kind: answer })
    }

    fn protocol<Q>(self, with: impl FnOnce(Http<C, K>) -> Q) -> ShedLayer<HttpTriage, Q> {
        self.map(|triage, protocol| (triage, with(protocol)))
    }
}

// ===== impl Http =====

impl<C, K, B, ResBody, E> Rules<Request<B>, Response<ResBody>, E> for Http<C, K>
where
    C: ClassifyResponse + Clone,
    K: Refuse<E> + Clone,
    B: Body,
    ResBody: Body,
    ResBody::Error: Display + 'static,
    E: 'static,
{
    type Response = Response<ResponseBody<ResBody, C>>;
    type Error = K::Error;
    type Refused = Refused<B, ResBody, C, K::Error>;

    fn refuse(&self, req: Request<B>, refusal: Refusal) -> Self::Refused {
        Refused::new(req, self.reject.kind.refuse(&refusal))
    }

    #[inline]
    fn finish(
        &self,
        result: Result<Response<ResBody>, E>,
        held: &mut Held,
    ) -> Result<Self::Response, K::Error> {
        let Some(permit) = &mut held.0 else {
            return match result {
                Ok(response) => Ok(response.map(ResponseBody::free)),
                Err(error) => Err(self.reject.kind.pass(error)),
            };
        };
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                let verdict = guarded(permit, || self.classify.error(&error));
                permit.end(verdict, None, clock::now);
                return Err(self.reject.kind.pass(error));
            }
        };
        let verdict = self.classify.guarded_head(&response);
        let verdict = verdict.unwrap_or_else(|| Some(permit.hook_panicked()));
        let over = self.hold == Hold::Headers || permit.bodiless || response.body().is_end_stream();
        if over {
            let verdict = verdict.unwrap_or_else(|| {
                let said = self.classify.guarded_end(Some(response.headers()));
                said.unwrap_or_else(|| permit.hook_panicked())
            });
            permit.end(verdict, None, clock::now);
            return Ok(response.map(ResponseBody::free));
        }
        let head = permit.is_timed().then(clock::now);
        let slot = Slot {
            permit: held.0.take(),
            classify: self.classify.clone(),
            verdict,
            head,
            frames: 0,
        };
        Ok(response.map(|body| ResponseBody::held(body, slot)))
    }
}

// ===== the response's body =====

pin_project! {
    /// The body of a response that went through [`Shed`](super::Shed): the inner one, which holds its slot to its
    /// end, or nothing.
    #[derive(Debug)]
    pub struct ResponseBody<B: Body, C: ClassifyResponse = ByStatus> {
        #[pin]
        inner: Option<ObservedBody<B, Slot<C>>>,
    }
}

/// Holds a slot until a body ends; what [`ResponseBody`] carries.
#[derive(Debug)]
pub struct Slot<C> {
    permit: Option<Permit>,
    classify: C,
    verdict: Option<Verdict>,
    head: Option<Instant>,
    frames: u32,
}

impl<B: Body, C: ClassifyResponse> ResponseBody<B, C> {
    pub(super) fn refused() -> Self {
        Self { inner: None }
    }

    fn free(inner: B) -> Self {
        Self {
            inner: Some(ObservedBody::passed(inner)),
        }
    }

    fn held(inner: B, slot: Slot<C>) -> Self {
        Self {
            inner: Some(ObservedBody::observed(inner, slot)),
        }
    }
}

/// Empty, as the body of a refusal is.
impl<B: Body, C: ClassifyResponse> Default for ResponseBody<B, C> {
    fn default() -> Self {
        Self::refused()
    }
}

impl<B, C> Body for ResponseBody<B, C>
where
    B: Body,
    B::Error: Display + 'static,
    C: ClassifyResponse,
{
    type Data = B::Data;
    type Error = B::Error;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project().inner.as_pin_mut() {
            Some(inner) => inner.poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Some(inner) => inner.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl<C: ClassifyResponse> Observe for Slot<C> {
    #[inline]
    fn data<D: Buf>(&mut self, _: &D, _: &Moment) {
        self.frames = self.frames.saturating_add(1);
    }

    #[inline]
    fn end<E: Display + 'static>(mut self, end: End<'_, E>, at: &Moment) {
        let Some(mut permit) = self.permit.take() else {
            return;
        };
        let said = self.verdict;
        let ended = |trailers: Option<&HeaderMap>| {
            said.or_else(|| self.classify.guarded_end(trailers))
                .unwrap_or_else(|| permit.hook_panicked())
        };
        let verdict = match end {
            End::Complete => ended(None),
            End::Trailers(trailers) => ended(Some(trailers)),
            End::Error(error) => guarded(&permit, || self.classify.error(error)),
            // The permit's own drop knows what going away means.
            End::Dropped => return drop(permit),
        };
        let stream = self.frames > 1
            && self
                .head
                .is_some_and(|head| permit.is_stream(head, at.now()));
        let verdict = match verdict {
            Verdict::Success if stream => Verdict::Ignore,
            verdict => verdict,
        };
        permit.end(verdict, self.head, || at.now());
    }
}
