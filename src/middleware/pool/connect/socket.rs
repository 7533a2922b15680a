use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::resolve::Resolve;
use crate::base::clock::{self, Instant};
use crate::base::error::BoxError;
use crate::base::phases::{Dial, Phase, Span};

/// A connector that marks [`Phase::Connect`]; see [the module](crate::pool::connect).
///
/// The phase begins when DNS has ended, or at once when the host is an address or nobody marks DNS, and ends when there
/// is a socket. Put it round what makes sockets and inside TLS.
#[derive(Debug, Clone)]
pub struct Connect<C> {
    inner: C,
    plain: bool,
}

/// What [`tcp`] and [`http()`] make.
pub type Tcp<R = GaiResolver> = Connect<HttpConnector<Resolve<R>>>;

pin_project! {
    /// The future of a [`Connect`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Connecting<F> {
        #[pin]
        inner: Option<F>,
        refused: Option<NoHttps>,
        at: At,
    }
}

/// Where a dial is, as far as this connector can tell.
#[derive(Debug)]
enum At {
    Start {
        address: bool,
    },
    /// Not connecting yet, for all one knows, since the first poll.
    Before(Dial, Instant),
    Connecting(Span),
    /// Nobody listens.
    Unmarked,
}

/// A connector without TLS was asked for `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoHttps {
    /// Whom it should have connected to.
    pub host: String,
}

/// Sockets for `http` and `https` alike, as TLS is put on top of: looked up by `getaddrinfo`, connected by happy
/// eyeballs, without delay, with TCP's keep-alive every 30 s, and without a time limit of their own.
///
/// Change more through [`Connect::get_mut`].
pub fn tcp() -> Tcp {
    let mut sockets = HttpConnector::new_with_resolver(Resolve::new(GaiResolver::new()));
    sockets.enforce_http(false);
    sockets.set_nodelay(true);
    sockets.set_keepalive(Some(Duration::from_secs(30)));
    sockets.set_keepalive_interval(Some(Duration::from_secs(30)));
    Connect::new(sockets)
}

/// [`tcp`] for clients without TLS: `https` is refused, with [`NoHttps`].
pub fn http() -> Tcp {
    tcp().plain()
}

// ===== impl Connect =====

impl<C> Connect<C> {
    /// Marks the connecting of `inner`.
    pub fn new(inner: C) -> Self {
        Self {
            inner,
            plain: false,
        }
    }

    /// Connects for any scheme (default), or refuses `https`: nothing that looks safe is sent in the clear.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// The wrapped connector.
    pub fn get_ref(&self) -> &C {
        &self.inner
    }

    /// The wrapped connector.
    pub fn get_mut(&mut self) -> &mut C {
        &mut self.inner
    }

    /// The wrapped connector.
    pub fn into_inner(self) -> C {
        self.inner
    }
}

impl<C> Service<Uri> for Connect<C>
where
    C: Service<Uri, Error: Into<BoxError>>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Connecting<C::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let host = bare_host(&to);
        let refused = (self.plain && to.scheme() == Some(&Scheme::HTTPS)).then(|| NoHttps {
            host: host.to_owned(),
        });
        let address = host.parse::<IpAddr>().is_ok();
        Connecting {
            inner: refused.is_none().then(|| self.inner.call(to)),
            refused,
            at: At::Start { address },
        }
    }
}

/// The host, without the brackets of an IPv6 address.
pub(super) fn bare_host(uri: &Uri) -> &str {
    let host = uri.host().unwrap_or_default();
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

impl<F, T, E> Future for Connecting<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(refused) = this.refused.take() {
            return Poll::Ready(Err(refused.into()));
        }
        let inner = this
            .inner
            .as_pin_mut()
            .expect("there is an inner future unless it was refused, and then it is over");
        this.at.polled();
        let polled = inner.poll(cx);
        this.at.went_on();
        let result = ready!(polled);
        if let (Ok(_), At::Connecting(span)) = (&result, std::mem::replace(this.at, At::Unmarked)) {
            span.done();
        }
        Poll::Ready(result.map_err(Into::into))
    }
}

impl At {
    /// Before the inner connector is polled.
    fn polled(&mut self) {
        if let Self::Start { address } = *self {
            *self = match Dial::current() {
                None => Self::Unmarked,
                Some(dial) if address => Self::Connecting(dial.span(Phase::Connect)),
                Some(dial) => Self::Before(dial, clock::now()),
            };
        }
    }

    /// After it was polled: it may have looked up the name by now.
    fn went_on(&mut self) {
        let Self::Before(dial, start) = self else {
            return;
        };
        // It looks up the name still, or failed to.
        if dial.phase().is_some() {
            return;
        }
        // The moment was noted when it came, even if that was in the midst of the poll.
        let since = dial.ended(Phase::Dns).unwrap_or(*start);
        *self = Self::Connecting(dial.span_since(Phase::Connect, since));
    }
}

// ===== impl NoHttps =====

impl fmt::Display for NoHttps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host } = self;
        write!(
            f,
            "https to {host} refused by a connector without TLS; use connect::https(), or tcp() inside TlsConnector"
        )
    }
}

impl Error for NoHttps {}
