//! Several upstreams, and which is asked.

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::Instant;
use tower::Service;
use tower_flow::error::find;
use tower_flow::pool::{self, ErrorKind};
use tower_flow::{BoxError, Rejection};

use crate::erased::{self, Answering, Forward};
use crate::fields::Client;
use crate::upload::{Upload, UploadError};

/// One that was named on the command line.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    /// HTTP/2 without TLS.
    pub(crate) h2c: bool,
}

/// Sends each request to the upstream with the fewest. Clones are the same.
#[derive(Clone)]
pub(crate) struct Balance<S> {
    client: S,
    upstreams: Arc<[Upstream]>,
    /// Who is looked at first, so that equals take turns.
    turn: Arc<AtomicUsize>,
}

struct Upstream {
    target: Target,
    host: HeaderValue,
    in_flight: Arc<AtomicUsize>,
    health: Mutex<Health>,
}

/// Whether an upstream is to be asked.
#[derive(Debug, Default)]
struct Health {
    /// In a row.
    failures: u32,
    /// Until when it is left alone.
    until: Option<Instant>,
}

/// A request at an upstream.
struct InFlight(Arc<AtomicUsize>);

/// A body that counts for its upstream until it has ended.
struct Counted<B> {
    body: B,
    _in_flight: InFlight,
}

/// So many failures in a row, and an upstream is left alone.
const FAILURES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);

// ===== impl Target =====

impl Target {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or("http://, https:// or h2c:// is wanted in front")?;
        let (scheme, port, h2c) = match &*scheme.to_ascii_lowercase() {
            "http" => (Scheme::HTTP, 80, false),
            "h2c" => (Scheme::HTTP, 80, true),
            "https" => (Scheme::HTTPS, 443, false),
            other => return Err(format!("{other} is unknown; there are http, https and h2c")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let authority: Authority = authority
            .parse()
            .map_err(|error| format!("{authority:?} is no host with a port: {error}"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(format!("{authority:?} is no host with a port"));
        }
        // A port that goes without saying is not said: not to the pool, nor in `Host` or `:authority`.
        let bare = authority.as_str().len() == authority.host().len();
        let authority = match authority.port_u16() {
            None if !bare => return Err(format!("{authority} has no port that can be")),
            Some(0) => return Err("nobody has port 0".into()),
            Some(own) if own == port => authority.host().parse().map_err(|_| "it has no host")?,
            _ => authority,
        };
        Ok(Self {
            scheme,
            authority,
            h2c,
        })
    }

    /// The `Host` of requests to it.
    fn host(&self) -> HeaderValue {
        HeaderValue::from_str(self.authority.as_str()).expect("an authority is a header's value")
    }

    /// One that is there already and spoken to in another way.
    pub(crate) fn ambiguous(targets: &[Self]) -> Option<&Self> {
        let differ = |a: &Self, b: &Self| {
            a.scheme == b.scheme && a.authority == b.authority && a.h2c != b.h2c
        };
        targets
            .iter()
            .find(|target| targets.iter().any(|other| differ(target, other)))
    }

    /// Where those are that speak HTTP/2 without TLS.
    pub(crate) fn h2c(targets: &[Self]) -> HashSet<Authority> {
        let h2c = targets.iter().filter(|target| target.h2c);
        h2c.map(|target| target.authority.clone()).collect()
    }
}

// ===== impl Balance =====

impl<S> Balance<S> {
    pub(crate) fn new(client: S, targets: &[Target]) -> Self {
        let upstreams = targets.iter().map(|target| Upstream {
            host: target.host(),
            target: target.clone(),
            in_flight: Arc::default(),
            health: Mutex::default(),
        });
        Self {
            client,
            upstreams: upstreams.collect(),
            turn: Arc::default(),
        }
    }

    /// The one with the fewest requests of those that are well; of those that are not when there is none. Never one that
    /// was `tried`, unless all were.
    fn pick(&self, tried: &[usize], now: Instant) -> usize {
        let count = self.upstreams.len();
        if count == 1 {
            return 0;
        }
        let turn = self.turn.fetch_add(1, Relaxed);
        let order = (0..count).map(|n| (turn.wrapping_add(n)) % count);
        let rank = |n: &usize| {
            let upstream = &self.upstreams[*n];
            let left_alone = upstream.health().left_alone(now);
            (
                tried.contains(n),
                left_alone,
                upstream.in_flight.load(Relaxed),
            )
        };
        order.min_by_key(rank).unwrap_or(0)
    }
}

impl<S, B> Forward for Balance<S>
where
    S: Service<Request<Upload>, Response = Response<B>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data = Bytes, Error = BoxError> + Unpin + Send + 'static,
{
    fn forward(&self, req: Request<Upload>) -> Answering {
        let this = self.clone();
        Box::pin(async move { this.send(req).await })
    }
}

impl<S, B> Balance<S>
where
    S: Service<Request<Upload>, Response = Response<B>, Error = BoxError> + Clone,
    B: Body<Data = Bytes, Error = BoxError> + Unpin + Send + 'static,
{
    async fn send(mut self, req: Request<Upload>) -> Result<Response<erased::Body>, BoxError> {
        let (mut head, mut upload) = req.into_parts();
        head.version = Version::HTTP_11;
        if let Some(client) = head.extensions.remove::<Arc<Client>>() {
            client.tell(&mut head.headers);
        }
        let path = head.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut tried = Vec::new();
        loop {
            let n = self.pick(&tried, Instant::now());
            let upstream = &self.upstreams[n];
            let again = upload.again();
            let mut attempt = Request::from_parts(head.clone(), upload);
            upstream.address(&mut attempt, path.clone());
            let in_flight = InFlight::new(&upstream.in_flight);
            std::future::poll_fn(|cx| self.client.poll_ready(cx)).await?;
            let error = match self.client.call(attempt).await {
                Ok(response) => {
                    upstream.health().answered(Instant::now());
                    return Ok(response.map(|body| Counted::boxed(body, in_flight)));
                }
                Err(error) => error,
            };
            upstream.failed(&error);
            tried.push(n);
            match again.and_then(|upload| upload.again()) {
                Some(again) if self.may_retry(&error, &head.method, &again, &tried) => {
                    upload = again
                }
                _ => return Err(error),
            }
        }
    }

    /// What was not sent may go to another; what may have been, once, if twice does no harm.
    fn may_retry(
        &self,
        error: &BoxError,
        method: &Method,
        upload: &Upload,
        tried: &[usize],
    ) -> bool {
        let others = tried.len() < self.upstreams.len();
        match find::<pool::Error>(error.as_ref()).map(|error| (error.kind(), error.is_retryable()))
        {
            Some((ErrorKind::Send { sent: true }, false)) => {
                method.is_idempotent() && upload.is_end_stream() && tried.len() == 1
            }
            // It was turned away: by a connection that ends, say, and the next one may take it.
            Some((ErrorKind::Send { .. }, true)) => tried.len() <= self.upstreams.len(),
            // The pool has tried what there is to try at this one.
            Some((_, true)) => others,
            Some((_, false)) => false,
            // A layer that refuses for this upstream.
            None => {
                others && Rejection::find(error.as_ref()).is_some_and(|it| it.layer() == "throttle")
            }
        }
    }
}

// ===== impl Upstream =====

impl Upstream {
    /// Makes `req` one to this upstream.
    fn address(&self, req: &mut Request<Upload>, path: PathAndQuery) {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.target.scheme.clone());
        uri.authority = Some(self.target.authority.clone());
        uri.path_and_query = Some(path);
        *req.uri_mut() = Uri::from_parts(uri).expect("a scheme, an authority and a path are a URI");
        let headers = req.headers_mut();
        if self.target.h2c {
            headers.remove(header::HOST);
        } else {
            headers.insert(header::HOST, self.host.clone());
            // HTTP/1 wants it named, and HTTP/2 would take out what is: whoever negotiates may speak either.
            let plain = self.target.scheme == Scheme::HTTP;
            if plain
                && headers.contains_key(header::TE)
                && !headers.contains_key(header::CONNECTION)
            {
                headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
            }
        }
    }

    fn failed(&self, error: &BoxError) {
        // What the client did, or what is full here, is no fault of the upstream's.
        let error = error.as_ref();
        if find::<UploadError>(error).is_some() {
            return;
        }
        let now = Instant::now();
        match find::<pool::Error>(error).map(pool::Error::kind) {
            Some(ErrorKind::Connect | ErrorKind::ConnectTimeout | ErrorKind::BackingOff) => {
                self.health().unreachable(now);
            }
            Some(ErrorKind::Send { .. }) => self.health().failed(now),
            Some(_) => {}
            None => {
                let silent = Rejection::find(error).is_some_and(|it| it.layer() == "gateway");
                if silent {
                    self.health().failed(now);
                }
            }
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ===== impl Health =====

impl Health {
    fn left_alone(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// What was asked before it failed says nothing of it now.
    fn answered(&mut self, now: Instant) {
        if !self.left_alone(now) {
            *self = Self::default();
        }
    }

    /// It broke off, or was silent: some do now and then.
    fn failed(&mut self, now: Instant) {
        // One pause for all who find out at the same time.
        if self.left_alone(now) {
            return;
        }
        self.failures += 1;
        if self.failures >= FAILURES {
            let doubled = 1 << (self.failures - FAILURES).min(16);
            self.until = Some(now + (PAUSE * doubled).min(LONGEST));
        }
    }

    /// It is not there.
    fn unreachable(&mut self, now: Instant) {
        self.failures = self.failures.max(FAILURES - 1);
        self.failed(now);
    }
}

// ===== impl Counted =====

impl InFlight {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin + Send + 'static> Counted<B> {
    fn boxed(body: B, in_flight: InFlight) -> erased::Body {
        let counted = Self {
            body,
            _in_flight: in_flight,
        };
        counted.boxed_unsync()
    }
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.h2c {
            "h2c"
        } else {
            self.scheme.as_str()
        };
        write!(f, "{scheme}://{}", self.authority)
    }
}
