//! A place on a connection, held by one request.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Request;
use http_body::Body;

use super::connection::Connection;
use super::core::{CloseReason, Reused, Version};
use super::sender::{Answered, Kit};
use crate::base::clock::{self, Moment};
use crate::base::error::BoxError;
use crate::base::phases::Timings;

/// Gives its place back when dropped, whatever became of the request by then.
pub(super) struct Lease<B: Send + 'static> {
    pub(super) connection: Arc<Connection<B>>,
    pub(super) reused: Option<Reused>,
    version: Version,
    stage: Stage<B>,
}

enum Stage<B> {
    /// Nothing was sent: the connection is as it was.
    Unsent,
    /// Sent, and no answer yet.
    Sent(Kit<B>),
    /// It is given back, or somebody else's to give back.
    Over,
}

/// An answer whose head is here and which is not yet over, and its number: over when dropped.
pub(super) struct Stream(Arc<dyn Streams>, u64);

/// A connection of whatever request bodies.
trait Streams: Send + Sync {
    fn ended(&self, answer: u64);
}

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
    pub(super) fn send(&mut self, req: Request<B>) -> Result<(), Request<B>>
    where
        B: Body + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let sent = self
            .connection
            .link
            .with(req, |sender, req| sender.send(req));
        sent.map(|kit| self.stage = Stage::Sent(kit))
    }

    /// The answer to what was sent.
    #[inline]
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answered<B>> {
        match &mut self.stage {
            Stage::Sent(kit) => kit.answer.as_mut().poll(cx),
            Stage::Unsent | Stage::Over => unreachable!("it was sent"),
        }
    }

    /// The timings of a request before, if there are any.
    #[inline]
    pub(super) fn spare(&mut self) -> Option<Timings> {
        match &mut self.stage {
            Stage::Sent(kit) => kit.timings.take(),
            Stage::Unsent | Stage::Over => None,
        }
    }

    /// The head is here, since `now`. What is to be held until the body ends.
    #[inline]
    pub(super) fn answered(mut self, now: &Moment, timings: Option<&Timings>) -> Option<Stream> {
        let Stage::Sent(mut kit) = mem::replace(&mut self.stage, Stage::Over) else {
            unreachable!("it was sent");
        };
        kit.timings = timings.cloned();
        let connection = &self.connection;
        match self.version {
            // The connection itself knows when it is free: often by now.
            Version::Http1 => {
                let Some(answer) = connection.link.answered(|sender| sender.keep(kit)) else {
                    connection.free_at(now.now(), true);
                    return None;
                };
                Some(Stream(connection.clone(), answer))
            }
            Version::Http2 => {
                let _ = connection.link.with(kit, |sender, kit| sender.keep(kit));
                Some(Stream(connection.clone(), 0))
            }
        }
    }

    fn given_up(&self) {
        let connection = &self.connection;
        match self.version {
            Version::Http2 => connection.free(true),
            Version::Http1 => {
                connection.ends(CloseReason::Cancelled);
                let answer = connection.link.answered(|_| {});
                if let Some(answer) = answer {
                    connection.link.ended(answer);
                } else {
                    connection.ends(CloseReason::Peer);
                    connection.free(true);
                }
            }
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
        match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Over => {}
            Stage::Unsent => self.connection.free(false),
            Stage::Sent(kit) => {
                // hyper hears first that nobody wants the answer.
                drop(kit);
                self.given_up();
            }
        }
    }
}

impl<B: Send + 'static> Streams for Connection<B> {
    fn ended(&self, answer: u64) {
        if !self.multiplexed() {
            self.link.ended(answer);
        } else if self.link.working() {
            self.trail();
        } else {
            self.free(true);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.ended(self.1);
    }
}
