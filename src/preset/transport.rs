use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_http::classify::SharedClassifier;
use tower_layer::Layer as _;
use tower_service::Service;

use super::ByPath;
use crate::Flow;
use crate::clock::{self, Instant};
use crate::deadline::Deadline;
use crate::error::Reason;
use crate::outcome::GrpcClassifier;
use crate::pool::connect;
use crate::pool::{Builder, ConnPool, Protocol, ResponseBody, ResponseFuture};
use crate::throttle::{HttpThrottle, HttpThrottleLayer, ThrottleLayer};
use crate::timing::{HttpTiming, HttpTimingLayer, TimingLayer};
use crate::{BoxError, Rejection};

/// The one place a program makes its HTTP clients from: they share a [`ConnPool`], whose limits then hold for all of
/// them together, a timing and a throttle.
///
/// Clones are the same transport.
///
/// ```
/// use http_body_util::{BodyExt, Empty};
/// use tower::{Service, ServiceExt};
/// use tower_flow::{Flow, preset::Transport};
///
/// # async fn fetch() -> Result<(), tower_flow::BoxError> {
/// let flow = Flow::new("shop");
/// let transport = Transport::tuned("backends").attach(&flow).build();
/// let mut client = transport.client();
///
/// let req = http::Request::get("http://stock.internal/items").body(Empty::<bytes::Bytes>::new())?;
/// let response = client.ready().await?.call(req).await?;
/// let items = response.into_body().collect().await?.to_bytes();
/// # let _ = items; Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Transport {
    pool: ConnPool<TransportBody>,
    timeout: Option<Duration>,
    http: (HttpTimingLayer, HttpThrottleLayer),
    grpc: (GrpcTiming, HttpThrottleLayer),
}

type GrpcTiming = super::GrpcTiming;

/// The options of a [`Transport`]; made by [`Transport::tuned`].
#[must_use = "a builder builds nothing until `build` is called"]
pub struct TransportBuilder<C = Connector> {
    name: String,
    pool: Builder<C>,
    request_timeout: Option<Duration>,
    flow: Option<Flow>,
}

/// The connector of a tuned [`Transport`]: TCP, with TLS where feature `tls` is on.
#[cfg(feature = "tls")]
pub type Connector = connect::Https;
/// The connector of a tuned [`Transport`]: TCP, with TLS where feature `tls` is on.
#[cfg(not(feature = "tls"))]
pub type Connector = connect::Tcp;

/// What [`Transport::client`] makes.
pub type TransportClient<B> = HttpTiming<HttpThrottle<TransportService<B>>>;

/// What [`Transport::grpc_client`] makes.
pub type TransportGrpcClient<B> =
    HttpTiming<HttpThrottle<TransportService<B>>, ByPath, SharedClassifier<GrpcClassifier>>;

/// The request bodies of all clients of a [`Transport`], whatever their types were.
pub type TransportBody = UnsyncBoxBody<Bytes, BoxError>;

/// The innermost service of a [`Transport`]: the pool, for requests with bodies `B`, within the request timeout.
pub struct TransportService<B> {
    pool: ConnPool<TransportBody>,
    timeout: Option<Duration>,
    body: PhantomData<fn(B)>,
}

pin_project! {
    /// The future of a [`TransportService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct TransportFuture {
        inner: ResponseFuture<TransportBody>,
        deadline: Option<Deadline>,
        start: Instant,
        #[pin]
        sleep: Option<Sleep>,
    }
}

// ===== impl Transport =====

impl Transport {
    /// A transport called `name`, tuned for services that call others: 100 idle connections in total and 50 to a host,
    /// kept for 90 s; 10 s to connect, TLS handshake included, and 15 s to wait for a connection; TCP keep-alive every
    /// 30 s; 30 s for a request to be answered. All of it can be set.
    pub fn tuned(name: impl Into<String>) -> TransportBuilder {
        #[cfg(feature = "tls")]
        let connector = connect::https();
        #[cfg(not(feature = "tls"))]
        let connector = connect::http();
        Self::over(name, connector)
    }

    /// As [`tuned`](Self::tuned), over a connector of your own.
    pub fn over<C>(name: impl Into<String>, connector: C) -> TransportBuilder<C> {
        let name = name.into();
        TransportBuilder {
            pool: ConnPool::builder(connector)
                .name(name.clone())
                .max_idle(100)
                .max_idle_per_host(50)
                .max_connections_per_host(50)
                .idle_timeout(Duration::from_secs(90))
                .connect_timeout(Duration::from_secs(10))
                .acquire_timeout(Duration::from_secs(15)),
            name,
            request_timeout: Some(Duration::from_secs(30)),
            flow: None,
        }
    }

    /// A client for any HTTP, as [`http_client`](super::http_client) is one: timing outermost, then the throttle, the
    /// request timeout, the pool.
    pub fn client<B>(&self) -> TransportClient<B> {
        let (timing, throttle) = &self.http;
        timing.layer(throttle.layer(self.service()))
    }

    /// A client for gRPC, for a generated client's `with_origin`: timed by method, classified by `grpc-status`. The
    /// pool has to speak HTTP/2: by TLS, or set to [`Protocol::Http2`].
    pub fn grpc_client<B>(&self) -> TransportGrpcClient<B> {
        let (timing, throttle) = &self.grpc;
        timing.layer(throttle.layer(self.service()))
    }

    /// The pool all clients share.
    pub fn pool(&self) -> &ConnPool<TransportBody> {
        &self.pool
    }

    fn service<B>(&self) -> TransportService<B> {
        TransportService {
            pool: self.pool.clone(),
            timeout: self.timeout,
            body: PhantomData,
        }
    }
}

// ===== impl TransportBuilder =====

impl<C> TransportBuilder<C> {
    /// 100 idle connections (default) in total.
    pub fn max_idle(self, max: usize) -> Self {
        self.pool(|pool| pool.max_idle(max))
    }

    /// 50 idle connections (default) to one host.
    pub fn max_idle_per_host(self, max: usize) -> Self {
        self.pool(|pool| pool.max_idle_per_host(max))
    }

    /// 512 connections (default) in total.
    ///
    /// # Panics
    ///
    /// When `max` is 0.
    pub fn max_connections(self, max: usize) -> Self {
        self.pool(|pool| pool.max_connections(max))
    }

    /// 50 connections (default) to one host.
    ///
    /// # Panics
    ///
    /// When `max` is 0.
    pub fn max_connections_per_host(self, max: usize) -> Self {
        self.pool(|pool| pool.max_connections_per_host(max))
    }

    /// 90 seconds (default) without a request close a connection.
    pub fn idle_timeout(self, timeout: Duration) -> Self {
        self.pool(|pool| pool.idle_timeout(timeout))
    }

    /// 10 seconds (default) is what a dial may take in all.
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.pool(|pool| pool.connect_timeout(timeout))
    }

    /// What connections speak: what TLS negotiated (default), or [`Protocol::Http2`] without TLS.
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.pool(|pool| pool.protocol(protocol))
    }

    /// Any other option of the pool.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_flow::preset::Transport;
    ///
    /// let transport = Transport::tuned("stock")
    ///     .pool(|pool| pool.max_lifetime(Duration::from_secs(600), 0.1).max_pending_per_host(64))
    ///     .build();
    /// # let _ = transport;
    /// ```
    pub fn pool(mut self, set: impl FnOnce(Builder<C>) -> Builder<C>) -> Self {
        self.pool = set(self.pool);
        self
    }

    /// 30 seconds (default) is how long a request may take to be answered, waiting and connecting included; `None` is
    /// for ever. A [`Deadline`] among its extensions, or its `grpc-timeout`, counts where it is earlier. A body may take as
    /// long as it likes: streams do.
    pub fn request_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.request_timeout = timeout.into();
        self
    }

    /// Shows pool, timing and throttle in `flow`, all under the transport's name.
    pub fn attach(mut self, flow: &Flow) -> Self {
        self.pool = self.pool.attach(flow);
        self.flow = Some(flow.clone());
        self
    }

    /// The transport. Nothing is dialled before somebody asks.
    pub fn build(self) -> Transport
    where
        C: Service<Uri> + Clone + Send + 'static,
        C::Response: Read + Write + Connection + Unpin + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
    {
        let mut timing = TimingLayer::new(self.name.clone());
        let mut methods = TimingLayer::new(format!("{}_grpc", self.name))
            .route_with(ByPath)
            .max_routes(512);
        let mut throttle = ThrottleLayer::new(self.name);
        if let Some(flow) = &self.flow {
            timing = timing.attach(flow);
            methods = methods.attach(flow);
            throttle = throttle.attach(flow);
        }
        Transport {
            pool: self.pool.build(),
            timeout: self.request_timeout,
            http: (timing.http(), throttle.clone().http()),
            grpc: (methods.http().grpc(), throttle.grpc()),
        }
    }
}

impl TransportBuilder {
    /// Mozilla's roots (default), or whom else to trust.
    #[cfg(feature = "tls")]
    pub fn roots(self, roots: connect::rustls::RootCertStore) -> Self {
        self.connector(|connector| connector.roots(roots))
    }

    /// Everything of TLS.
    #[cfg(feature = "tls")]
    pub fn tls(self, config: connect::rustls::ClientConfig) -> Self {
        self.connector(|connector| connector.config(config))
    }

    /// 10 seconds (default) is how long a TLS handshake may take, within what the dial may.
    #[cfg(feature = "tls")]
    pub fn handshake_timeout(self, timeout: Duration) -> Self {
        self.connector(|connector| connector.handshake_timeout(timeout))
    }

    /// TCP keep-alive every 30 seconds (default), or whatever else the connector can.
    pub fn connector(mut self, set: impl FnOnce(Connector) -> Connector) -> Self {
        self.pool = self.pool.connector(set);
        self
    }
}

impl<C> fmt::Debug for TransportBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportBuilder")
            .field("name", &self.name)
            .field("pool", &self.pool)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}

// ===== impl TransportService =====

impl<B> Service<Request<B>> for TransportService<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = BoxError;
    type Future = TransportFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<B>) -> TransportFuture {
        let start = clock::now();
        let deadline = Deadline::of(&req, start, self.timeout);
        let req = req.map(|body| body.map_err(Into::into).boxed_unsync());
        TransportFuture {
            inner: self.pool.call(req),
            deadline,
            start,
            sleep: None,
        }
    }
}

impl<B> Clone for TransportService<B> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            ..*self
        }
    }
}

impl<B> fmt::Debug for TransportService<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportService")
            .field("pool", &self.pool)
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl Future for TransportFuture {
    type Output = Result<Response<ResponseBody>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(result) = Pin::new(this.inner).poll(cx) {
            return Poll::Ready(result.map_err(Into::into));
        }
        let Some(deadline) = *this.deadline else {
            return Poll::Pending;
        };
        if this.sleep.is_none() {
            let left = deadline.left(clock::now());
            this.sleep.set(Some(tokio::time::sleep(left)));
        }
        if let Some(sleep) = this.sleep.as_pin_mut() {
            ready!(sleep.poll(cx));
        }
        let within = deadline.left(*this.start);
        let message = format!(
            "no answer within {within:?}; raise request_timeout or the deadline, or give the request less to do"
        );
        let rejection = Rejection::new("transport", Reason::Deadline, message);
        Poll::Ready(Err(rejection.into()))
    }
}

impl fmt::Debug for TransportFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportFuture")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
