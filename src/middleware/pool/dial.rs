//! The life of a connection: dialled, driven, dropped.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use http::Uri;
use http_body::Body;
use hyper::client::conn::{http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection as Connects;
use hyper_util::rt::TokioTimer;
use tower_service::Service;

use super::Protocol;
use super::connection::{Connection, Made, Slot};
use super::core::{Cause, Version};
use super::crew::Crew;
use super::driver::{Http1, Http2, unless_stopped};
use super::error::Plain;
use super::io::Held;
use super::sender::Sender;
use super::shared::Dialler;
use crate::base::clock;
use crate::base::error::BoxError;
use crate::base::phases::Phase;

/// Dials with a connector of any type.
pub(super) struct Dial<C> {
    connector: Arc<Mutex<C>>,
    protocol: Protocol,
}

/// A connection with its driver, ready for the first request.
enum Driver<T, B>
where
    T: Read + Write + Unpin + Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    Http1(http1::SendRequest<B>, Upgradeable),
    Http2(
        http2::SendRequest<B>,
        Http2<http2::Connection<Held<T, Slot>, B, Crew>>,
        usize,
    ),
}

/// hyper's connection with upgrades, whose type has no name.
type Upgradeable = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

impl<C> Dial<C> {
    pub(super) fn new(connector: C, protocol: Protocol) -> Self {
        Self {
            connector: Arc::new(Mutex::new(connector)),
            protocol,
        }
    }
}

impl<C, B> Dialler<B> for Dial<C>
where
    C: Service<Uri> + Clone + Send + 'static,
    C::Response: Read + Write + Connects + Unpin + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    fn run(&self, connection: Arc<Connection<B>>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        // Made here, so that it goes even when the task never runs.
        let slot = connection.slot();
        let connector = self.connector.clone();
        let protocol = self.protocol;
        Box::pin(async move {
            // In the task, which may panic.
            let connector = connector
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let limit = connection.shared.options.connect_timeout;
            let (driver, made) = {
                let dialled = tokio::time::timeout(limit, async {
                    let scope = connection.dial.scope(connect(connector, &connection));
                    let io = scope.await?;
                    let connected = io.connected();
                    let made = Made {
                        version: protocol.version(&connected),
                        proxied: connected.is_proxied(),
                        connected,
                    };
                    let io = Held::new(io, slot.clone());
                    let driver = handshake(io, &connection, made.version).await?;
                    Ok::<_, BoxError>((driver, made))
                });
                let cause = match unless_stopped(&connection, dialled).await {
                    None => return,
                    Some(Ok(Ok(made))) => Ok(made),
                    Some(Ok(Err(error))) => Err(Cause::failed(stood(&connection), error)),
                    Some(Err(_)) => Err(Cause::timed_out(stood(&connection), limit)),
                };
                match cause {
                    Ok(made) => made,
                    Err(cause) => {
                        let now = clock::now();
                        let shared = &connection.shared;
                        shared.measures.dialled(&connection.dial, now, Err(&cause));
                        shared.event(|core| core.failed(now, connection.id, cause));
                        return;
                    }
                }
            };
            let shared = &connection.shared;
            shared
                .measures
                .dialled(&connection.dial, clock::now(), Ok(()));
            let _ = connection.made.set(made);
            drive(driver, connection).await;
        })
    }
}

/// Where the dial is, or failed.
fn stood<B>(connection: &Connection<B>) -> Phase {
    connection.dial.phase().unwrap_or(Phase::Connect)
}

async fn connect<C, B>(
    mut connector: C,
    connection: &Connection<B>,
) -> Result<C::Response, BoxError>
where
    C: Service<Uri>,
    C::Error: Into<BoxError>,
{
    poll_fn(|cx| connector.poll_ready(cx))
        .await
        .map_err(Into::into)?;
    let began = clock::now();
    let io = connector.call(connection.origin.uri.clone()).await;
    let dial = &connection.dial;
    if dial.phase().is_none() && dial.duration(Phase::Connect).is_none() {
        // A connector that tells nothing of its phases: all of it is connecting.
        dial.enter(Phase::Connect, began);
        match io {
            Ok(_) => dial.leave(Phase::Connect, clock::now()),
            Err(_) => dial.fail(Phase::Connect, clock::now()),
        }
    }
    io.map_err(Into::into)
}

async fn handshake<T, B>(
    io: Held<T, Slot>,
    connection: &Connection<B>,
    version: Version,
) -> Result<Driver<T, B>, BoxError>
where
    T: Read + Write + Unpin + Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let options = &connection.shared.options;
    match version {
        Version::Http1 => {
            let (mut sender, conn) = options.http1.handshake(io).await?;
            let mut conn: Upgradeable = Box::pin(conn.with_upgrades());
            // The first poll makes hyper want a request, or finds the connection closed.
            poll_fn(|cx| {
                if let Poll::Ready(ended) = conn.as_mut().poll(cx) {
                    return Poll::Ready(Err(ended.err().map_or_else(closed, BoxError::from)));
                }
                sender.poll_ready(cx).map_err(BoxError::from)
            })
            .await?;
            Ok(Driver::Http1(sender, conn))
        }
        Version::Http2 => {
            let span = connection.dial.span(Phase::Handshake);
            let crew = Crew::default();
            let mut builder = http2::Builder::new(crew.clone());
            builder.timer(TokioTimer::new());
            (options.http2)(&mut builder);
            // None until the peer's SETTINGS say how many.
            builder.initial_max_send_streams(0);
            let (sender, conn) = builder.handshake(io).await?;
            let mut conn = Http2::new(conn, crew);
            let room = poll_fn(|cx| conn.poll_settings(cx, |conn| conn.current_max_send_streams()))
                .await
                .map_err(BoxError::from)?;
            if room == 0 {
                return Err(closed());
            }
            span.done();
            Ok(Driver::Http2(sender, conn, room))
        }
    }
}

fn closed() -> BoxError {
    Plain("the peer closed the connection before the first request".into()).into()
}

/// Hands the connection to the pool and keeps it going.
async fn drive<T, B>(driver: Driver<T, B>, connection: Arc<Connection<B>>)
where
    T: Read + Write + Unpin + Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let id = connection.id;
    match driver {
        Driver::Http1(sender, conn) => {
            connection.link.open(Sender::http1(sender));
            let now = clock::now();
            connection
                .shared
                .event(|core| core.connected(now, id, Version::Http1, 1));
            Http1::new(connection, conn).await;
        }
        Driver::Http2(sender, mut conn, mut room) => {
            connection.link.open(Sender::http2(sender));
            let now = clock::now();
            connection
                .shared
                .event(|core| core.connected(now, id, Version::Http2, room));
            poll_fn(|cx| {
                conn.poll_drive(cx, &connection, &mut room, |conn| {
                    conn.current_max_send_streams()
                })
            })
            .await;
        }
    }
}
