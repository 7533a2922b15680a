//! A place on a connection, held by one request.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::core::{CloseReason, Reused, Version};
use super::shared::{Connection, Sender};
use crate::base::clock;
use crate::base::error::BoxError;

pub(super) type Answer<B> =
    Pin<Box<dyn Future<Output = Result<Response<Incoming>, TrySendError<Request<B>>>> + Send>>;

/// Gives its place back when dropped, whatever became of the request by then.
pub(super) struct Lease<B: Send + 'static> {
    pub(super) connection: Arc<Connection<B>>,
    pub(super) reused: Option<Reused>,
    version: Version,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was sent: the connection is as it was.
    Unsent,
    /// Sent, and no answer yet.
    Sent,
    /// The answer's head is here.
    Answered,
}

/// Whatever is held until a body ends.
pub(super) trait Held: Send + Sync {}

impl<B: Send + 'static> Held for Lease<B> {}

impl<B: Send + 'static> Lease<B> {
    pub(super) fn new(connection: Arc<Connection<B>>, reused: Option<Reused>) -> Self {
        let made = connection.made.get();
        Self {
            version: made.map_or(Version::Http1, |made| made.version),
            connection,
            reused,
            stage: Stage::Unsent,
        }
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Sends `req`, unless the connection is gone by now: then it comes back as it is, large or not.
    #[allow(clippy::result_large_err)]
    #[inline]
    pub(super) fn send(&mut self, req: Request<B>) -> Result<Answer<B>, Request<B>>
    where
        B: Body + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let mut unsent = Some(req);
        let answer = self.connection.link.with(|sender| {
            let req = unsent.take()?;
            let answer: Answer<B> = match sender {
                Sender::Http1(sender) => Box::pin(sender.try_send_request(req)),
                Sender::Http2(sender) => Box::pin(sender.try_send_request(req)),
            };
            Some(answer)
        });
        match (answer.flatten(), unsent) {
            (Some(answer), _) => {
                self.stage = Stage::Sent;
                Ok(answer)
            }
            (None, Some(req)) => Err(req),
            (None, None) => unreachable!("a request that was taken was sent"),
        }
    }

    /// The head is here. What is to be held until the body ends.
    #[inline]
    pub(super) fn answered(mut self) -> Option<Box<dyn Held>> {
        self.stage = Stage::Answered;
        match self.version {
            // The connection itself knows when it is free.
            Version::Http1 => None,
            Version::Http2 => Some(Box::new(self)),
        }
    }

    /// The request came back: the connection takes no more, though its driver may not know yet.
    pub(super) fn refused(self) {
        let now = clock::now();
        let reason = match self.version {
            Version::Http1 => CloseReason::Peer,
            Version::Http2 => CloseReason::GoAway,
        };
        let connection = &self.connection;
        connection
            .shared
            .event(|core| core.leave(now, connection.id, reason));
    }
}

impl<B: Send + 'static> Drop for Lease<B> {
    fn drop(&mut self) {
        match (self.stage, self.version) {
            (Stage::Unsent, _) => self.connection.free(false),
            (_, Version::Http2) => self.connection.free(true),
            (stage, Version::Http1) => {
                if stage == Stage::Sent {
                    self.connection.ends(CloseReason::Cancelled);
                }
                if self.connection.link.answered() {
                    self.connection.ends(CloseReason::Peer);
                    self.connection.free(true);
                }
            }
        }
    }
}
