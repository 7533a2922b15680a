//! What HTTP and gRPC add: requests that say how urgent they are, bodies that hold their slot, answers that refuse.

use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use rustc_hash::FxHashSet;

use super::ask::{Ask, Triage};
use super::classify::{ByStatus, ClassifyResponse, Verdict};
use super::protocol::{Held, Rules, guarded};
use super::refusal::Refusal;
use super::reject::{AsHttp, Refuse, Reject};
use super::state::Permit;
use crate::base::body::{End, Observe, ObservedBody};
use crate::base::clock::{self, Instant, Moment};
use crate::base::deadline::{Deadline, grpc_timeout};
use crate::base::header;
use crate::base::priority::Priority;
use crate::base::stats::Lease;

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

/// What an HTTP request says of itself: its extensions, its headers, its path.
///
/// - A [`Priority`] and a [`Deadline`] among its extensions count;
/// - `grpc-timeout` and Envoy's `x-envoy-expected-rq-timeout-ms` say how long its caller will wait;
/// - listed paths pass by, others are streams.
///
/// What a header says that cannot be read counts as not said.
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
            let said = text(&rules.priority).and_then(|text| text.parse().ok());
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
        let answer = self.reject.kind.refuse(&refusal);
        let (parts, body) = req.into_parts();
        // On HTTP/1 whatever is left of the request stands between this answer and the next request.
        let rest = parts.version < Version::HTTP_2 && !body.is_end_stream();
        Refused {
            answer: Some(answer.map(|response| response.map(|()| ResponseBody::refused()))),
            rest: rest.then_some(body),
            patience: None,
            left: MOST_DRAINED,
        }
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
        let verdict = verdict.unwrap_or_else(|()| Some(permit.hook_panicked()));
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
    fn refused() -> Self {
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

// ===== the answer to a refused request =====

/// So much of a refused HTTP/1 request's body is read so that the connection can be used again.
const MOST_DRAINED: usize = 64 * 1024;

/// And for so long.
const PATIENCE: Duration = Duration::from_millis(250);

pin_project! {
    /// The answer to a refused request. On HTTP/1 it first reads what is left of the request's body, at most 64 KiB
    /// and 250 ms; when that is not all, it asks for the connection to be closed.
    pub struct Refused<B, ResBody: Body, C: ClassifyResponse, E> {
        answer: Option<Result<Response<ResponseBody<ResBody, C>>, E>>,
        #[pin]
        rest: Option<B>,
        #[pin]
        patience: Option<tokio::time::Sleep>,
        left: usize,
    }
}

impl<B, ResBody, C, E> Future for Refused<B, ResBody, C, E>
where
    B: Body,
    ResBody: Body,
    C: ClassifyResponse,
{
    type Output = Result<Response<ResponseBody<ResBody, C>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut close = false;
        if let Some(mut rest) = this.rest.as_mut().as_pin_mut() {
            loop {
                let frame = match rest.as_mut().poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => frame,
                    Poll::Ready(None) => break,
                    Poll::Ready(Some(Err(_))) => {
                        close = true;
                        break;
                    }
                    Poll::Pending => {
                        if this.patience.is_none() {
                            this.patience.set(Some(tokio::time::sleep(PATIENCE)));
                        }
                        if let Some(patience) = this.patience.as_mut().as_pin_mut() {
                            ready!(patience.poll(cx));
                        }
                        close = true;
                        break;
                    }
                };
                let read = frame.data_ref().map_or(0, Buf::remaining);
                *this.left = this.left.saturating_sub(read);
                if *this.left == 0 && !rest.is_end_stream() {
                    close = true;
                    break;
                }
            }
        }
        let mut answer = this
            .answer
            .take()
            .expect("a refusal is answered once and not polled again");
        if close && let Ok(response) = &mut answer {
            let headers = response.headers_mut();
            headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(answer)
    }
}

impl<B, ResBody: Body, C: ClassifyResponse, E> std::fmt::Debug for Refused<B, ResBody, C, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refused").finish_non_exhaustive()
    }
}
