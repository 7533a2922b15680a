use std::fmt::Display;

use http::Extensions;
use tower_layer::Layer;

use super::facts::Connection;
use crate::base::body::{End, Observe};
use crate::base::clock::Moment;
use crate::base::watch::{MakeWatch, Watch, Watched};

/// Counts requests on the connections they travel on; made by [`Connections::streams`](super::Connections::streams).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StreamsLayer;

/// A service whose requests are counted as streams of their connections.
pub type Streams<S> = Watched<S, StreamsWatch>;

/// What counts the streams of one [`Streams`].
#[derive(Debug, Clone)]
pub struct StreamsWatch {
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
        Watched::new(inner, self.watch())
    }
}

impl MakeWatch for StreamsLayer {
    type Watch = StreamsWatch;

    fn watch(&self) -> StreamsWatch {
        StreamsWatch { bound: None }
    }
}

// ===== impl StreamsWatch =====

impl StreamsWatch {
    pub(super) fn bound(connection: Connection) -> Self {
        Self {
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

impl<B> Watch<B> for StreamsWatch {
    type Observer = Stream;

    fn start(&mut self, req: &mut http::Request<B>, _: &Moment) -> Stream {
        Stream::on(self.connection(req.extensions_mut()))
    }
}

// ===== impl Stream =====

impl Stream {
    fn on(connection: Option<Connection>) -> Self {
        connection.iter().for_each(Connection::started);
        Self(connection)
    }
}

impl Observe for Stream {
    fn head<B>(&mut self, response: &http::Response<B>, _: &Moment) {
        // A client learns with the response which connection it came over.
        if self.0.is_none() {
            *self = Self::on(response.extensions().get().cloned());
        }
    }

    fn end<E: Display + 'static>(self, _: End<'_, E>, _: &Moment) {
        self.0.iter().for_each(Connection::ended);
    }
}
