use std::fmt::Display;
use std::task::{Context, Poll};

use http::Extensions;
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::facts::Connection;
use crate::base::body::{End, Observe, ObservedBody, ObservedFuture};

/// Counts requests on the connections they travel on; made by [`Connections::streams`](super::Connections::streams).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StreamsLayer;

/// A service whose requests are counted as streams of their connections.
#[derive(Debug, Clone)]
pub struct Streams<S> {
    inner: S,
    bound: Option<Connection>,
}

/// One stream: what the future and the response body carry. Its connection may be known only with the response.
#[derive(Debug)]
pub struct Stream(Option<Connection>);

// ===== impl StreamsLayer =====

impl StreamsLayer {
    pub(super) fn new() -> Self {
        Self
    }
}

impl<S> Layer<S> for StreamsLayer {
    type Service = Streams<S>;

    fn layer(&self, inner: S) -> Streams<S> {
        Streams { inner, bound: None }
    }
}

// ===== impl Streams =====

impl<S> Streams<S> {
    pub(super) fn bound(inner: S, connection: Connection) -> Self {
        Self {
            inner,
            bound: Some(connection),
        }
    }

    fn connection(&self, extensions: &mut Extensions) -> Option<Connection> {
        if let Some(connection) = &self.bound {
            extensions.insert(connection.clone());
            return self.bound.clone();
        }
        #[cfg(feature = "tonic")]
        if let Some(info) = extensions.get::<super::ConnectInfo>().cloned() {
            (info.restore)(extensions);
            extensions.insert(info.connection.clone());
            return Some(info.connection);
        }
        extensions.get::<Connection>().cloned()
    }
}

impl<S, B, ResBody> Service<http::Request<B>> for Streams<S>
where
    S: Service<http::Request<B>, Response = http::Response<ResBody>>,
    S::Error: Display + 'static,
    ResBody: Body,
{
    type Response = http::Response<ObservedBody<ResBody, Stream>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future, Stream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut req: http::Request<B>) -> Self::Future {
        let stream = Stream::on(self.connection(req.extensions_mut()));
        ObservedFuture::start(stream, || self.inner.call(req))
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for Streams<S> {
    const NAME: &'static str = S::NAME;
}

// ===== impl Stream =====

impl Stream {
    fn on(connection: Option<Connection>) -> Self {
        connection.iter().for_each(Connection::started);
        Self(connection)
    }
}

impl Observe for Stream {
    fn head<B>(&mut self, response: &http::Response<B>) {
        // A client learns with the response which connection it came over.
        if self.0.is_none() {
            *self = Self::on(response.extensions().get().cloned());
        }
    }

    fn end<E: Display + 'static>(self, _: End<'_, E>) {
        self.0.iter().for_each(Connection::ended);
    }
}
