use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http_body::Body;
use hyper::client::conn::{http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tower_service::Service;

use super::core::{Limits, Version};
use super::crew::Crew;
use super::dial::Dial;
use super::events::PoolEvents;
use super::service::ConnPool;
use super::shared::{Http2Options, Options, Shared};
use crate::base::error::BoxError;
use crate::base::flow::Flow;

/// The options of a [`ConnPool`]; see [the module](crate::pool).
#[must_use = "a builder builds nothing until `build` is called"]
pub struct Builder<C> {
    connector: C,
    name: Arc<str>,
    limits: Limits,
    protocol: Protocol,
    connect_timeout: Duration,
    retries: u32,
    host_metrics: usize,
    timings: bool,
    events: Option<Arc<dyn PoolEvents>>,
    http1: http1::Builder,
    http2: Http2Options,
    flow: Option<Flow>,
}

/// What connections speak.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// What TLS negotiated (ALPN), HTTP/1 where nothing was. While that is not known of a host one dial goes ahead and
    /// the others wait for it.
    #[default]
    Auto,
    /// HTTP/1, whatever was negotiated.
    Http1,
    /// HTTP/2, whatever was negotiated: gRPC, and HTTP/2 without TLS.
    Http2,
}

impl Protocol {
    pub(super) fn version(self, connected: &Connected) -> Version {
        match self {
            Self::Http1 => Version::Http1,
            Self::Http2 => Version::Http2,
            Self::Auto if connected.is_negotiated_h2() => Version::Http2,
            Self::Auto => Version::Http1,
        }
    }

    /// What is known before the first dial.
    fn known(self) -> Option<Version> {
        match self {
            Self::Http1 => Some(Version::Http1),
            // How many streams a connection takes is not known before the first is there.
            Self::Http2 | Self::Auto => None,
        }
    }
}

impl<C> Builder<C> {
    pub(super) fn new(connector: C) -> Self {
        Self {
            connector,
            name: "pool".into(),
            limits: Limits {
                connections: 512,
                per_host: 64,
                draining_allowance: 0,
                idle: 100,
                idle_per_host: 50,
                min_idle: 0,
                idle_timeout: Duration::from_secs(90),
                lifetime: None,
                requests: u64::MAX,
                connecting: 8,
                pending: 1_024,
                acquire: Duration::from_secs(10),
                backoff: (Duration::from_millis(100), Duration::from_secs(10)),
                streams: usize::MAX,
                scale_at: 0.8,
                version: None,
                hosts: 10_000,
            },
            protocol: Protocol::Auto,
            connect_timeout: Duration::from_secs(5),
            retries: 2,
            host_metrics: 0,
            timings: true,
            events: None,
            http1: http1::Builder::new(),
            http2: Box::new(|_| {}),
            flow: None,
        }
    }

    /// Changes the connector.
    pub fn connector<D>(self, change: impl FnOnce(C) -> D) -> Builder<D> {
        Builder {
            connector: change(self.connector),
            name: self.name,
            limits: self.limits,
            protocol: self.protocol,
            connect_timeout: self.connect_timeout,
            retries: self.retries,
            host_metrics: self.host_metrics,
            timings: self.timings,
            events: self.events,
            http1: self.http1,
            http2: self.http2,
            flow: self.flow,
        }
    }

    /// `pool` (default) is its name among the pools of a flow.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// 512 connections (default) are open at most. A connection counts from the beginning of its dial until its socket
    /// is dropped, whatever happens in between. What the connector does within one dial is its own: happy eyeballs, as
    /// those of [`connect`](super::connect) do, try a second address while the first is silent, so that for a moment
    /// two sockets are connecting for one connection. hyper-util's `set_happy_eyeballs_timeout(None)` tries them in turn.
    ///
    /// # Panics
    ///
    /// When `max` is 0: nothing could be sent.
    pub fn max_connections(mut self, max: usize) -> Self {
        assert!(max > 0, "max_connections of 0 would let nothing through");
        self.limits.connections = max;
        self
    }

    /// 64 connections (default) are open to one host at most, counted likewise. Hosts are told apart by scheme, name and
    /// port.
    ///
    /// # Panics
    ///
    /// When `max` is 0: nothing could be sent.
    pub fn max_connections_per_host(mut self, max: usize) -> Self {
        assert!(
            max > 0,
            "max_connections_per_host of 0 would let nothing through"
        );
        self.limits.per_host = max;
        self
    }

    /// 0 (default) connections that drain, after a GOAWAY or at the end of their lifetimes, may exceed their host's
    /// limit. With 1 a host with a limit of 1 serves new requests while its old connection ends a long stream. The
    /// limit in total always holds.
    pub fn draining_allowance(mut self, allowance: usize) -> Self {
        self.limits.draining_allowance = allowance;
        self
    }

    /// 100 connections (default) are idle at most; beyond that the one used longest ago closes.
    pub fn max_idle(mut self, max: usize) -> Self {
        self.limits.idle = max;
        self
    }

    /// 50 connections (default) to one host are idle at most.
    pub fn max_idle_per_host(mut self, max: usize) -> Self {
        self.limits.idle_per_host = max;
        self
    }

    /// No idle connection (default) is kept in hand for a host that was asked for before; or so many are, as long as
    /// there is room: with HTTP/2, so many connections.
    pub fn min_idle_per_host(mut self, min: usize) -> Self {
        self.limits.min_idle = min;
        self
    }

    /// 90 seconds (default) without a request close a connection.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.limits.idle_timeout = timeout;
        self
    }

    /// Connections live as long as they are used (default), or for `lifetime`, less a part of it up to `jitter` that
    /// chance decides for each, so that those made together do not end together. Then an idle one closes and a busy one
    /// drains. What replaces it is looked up anew: with a lifetime a pool follows changes in DNS.
    ///
    /// # Panics
    ///
    /// When `jitter` is not within 0 and 1.
    pub fn max_lifetime(mut self, lifetime: Duration, jitter: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&jitter),
            "jitter of {jitter} is not within 0 and 1"
        );
        self.limits.lifetime = Some((lifetime, jitter));
        self
    }

    /// Any number of requests (default), or at most so many, are sent on one connection.
    ///
    /// # Panics
    ///
    /// When `max` is 0.
    pub fn max_requests_per_connection(mut self, max: u64) -> Self {
        assert!(
            max > 0,
            "max_requests_per_connection of 0 would let nothing through"
        );
        self.limits.requests = max;
        self
    }

    /// 8 dials (default) to one host go on at a time.
    ///
    /// # Panics
    ///
    /// When `max` is 0.
    pub fn max_connecting_per_host(mut self, max: usize) -> Self {
        assert!(
            max > 0,
            "max_connecting_per_host of 0 would let nothing through"
        );
        self.limits.connecting = max;
        self
    }

    /// 5 seconds (default) is what a dial may take in all: DNS, TCP, TLS, and with HTTP/2 the peer's SETTINGS.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// 100 ms to 10 s (default) is how long a host is left alone after a dial to it failed, doubling with each failure.
    /// Requests meanwhile fail at once unless an open connection can serve them, and then one dial goes ahead of the
    /// others. With a `first` of zero a request that nothing else can serve dials again at once.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.limits.backoff = (first, longest.max(first));
        self
    }

    /// 1,024 requests (default) for one host may wait for a connection, beside those for whom one is being made.
    pub fn max_pending_per_host(mut self, max: usize) -> Self {
        self.limits.pending = max;
        self
    }

    /// 10 seconds (default) is how long a request waits for a connection; one that is tried again waits anew.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.limits.acquire = timeout;
        self
    }

    /// [`Protocol::Auto`] (default) is what connections speak.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// As many streams as the peer allows at the moment (default), and at most so many, run on one HTTP/2 connection.
    ///
    /// # Panics
    ///
    /// When `max` is 0.
    pub fn max_streams_per_connection(mut self, max: usize) -> Self {
        assert!(
            max > 0,
            "max_streams_per_connection of 0 would let nothing through"
        );
        self.limits.streams = max;
        self
    }

    /// 0.8 (default) of the streams of all HTTP/2 connections of a host in use, and another is opened.
    ///
    /// # Panics
    ///
    /// When `share` is not within 0 and 1.
    pub fn scale_at(mut self, share: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&share),
            "scale_at of {share} is not within 0 and 1"
        );
        self.limits.scale_at = share;
        self
    }

    /// 2 (default) is how often a request is tried again that provably was never sent: its connection closed first.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// 10,000 hosts (default) are remembered that have nothing open: what they speak, and whether they failed.
    pub fn max_hosts(mut self, max: usize) -> Self {
        self.limits.hosts = max.max(1);
        self
    }

    /// No host (default), or the first so many, have series of their own in `http_client_open_connections`; the rest is
    /// `other`.
    ///
    /// # Panics
    ///
    /// When `max` is beyond 65,536.
    pub fn host_metrics(mut self, max: usize) -> Self {
        assert!(
            max <= 65_536,
            "host_metrics of {max} is beyond 65,536: each is series to scrape"
        );
        self.host_metrics = max;
        self
    }

    /// Responses carry [`Timings`](crate::phases::Timings) in their extensions (default), or not, which saves a few
    /// allocations.
    pub fn timings(mut self, timings: bool) -> Self {
        self.timings = timings;
        self
    }

    /// Nobody (default), or `events`, is told what the pool does.
    pub fn events(mut self, events: impl PoolEvents) -> Self {
        self.events = Some(Arc::new(events));
        self
    }

    /// How HTTP/1 is spoken: hyper's own options.
    pub fn http1(mut self, options: http1::Builder) -> Self {
        self.http1 = options;
        self
    }

    /// How HTTP/2 is spoken: a function that sets hyper's own options. How many streams may begin before the peer says
    /// so is the pool's to set: none.
    pub fn http2(
        mut self,
        options: impl Fn(&mut http2::Builder<Crew>) + Send + Sync + 'static,
    ) -> Self {
        self.http2 = Box::new(options);
        self
    }

    /// Shows the pool in `flow`.
    pub fn attach(mut self, flow: &Flow) -> Self {
        self.flow = Some(flow.clone());
        self
    }

    /// The pool. Nothing is dialled before somebody asks.
    ///
    /// Its requests are to be sent within a tokio runtime that has time and IO.
    pub fn build<B>(self) -> ConnPool<B>
    where
        C: Service<Uri> + Clone + Send + 'static,
        C::Response: Read + Write + Connection + Unpin + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let protocol = self.protocol;
        let (connector, options, limits, flow) = self.settled();
        let dialler = Box::new(Dial::new(connector, protocol));
        let shared = Arc::new(Shared::new(options, limits, dialler));
        if let Some(flow) = flow {
            flow.attach(super::PoolHandle::new(shared.clone()));
        }
        ConnPool::new(shared)
    }

    pub(super) fn settled(self) -> (C, Options, Limits, Option<Flow>) {
        let mut limits = self.limits;
        limits.version = self.protocol.known();
        let options = Options {
            name: self.name,
            connect_timeout: self.connect_timeout,
            retries: self.retries,
            host_metrics: self.host_metrics,
            timings: self.timings,
            events: self.events,
            http1: self.http1,
            http2: self.http2,
        };
        (self.connector, options, limits, self.flow)
    }
}

impl<C> std::fmt::Debug for Builder<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .field("protocol", &self.protocol)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}
