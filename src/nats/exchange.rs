//! A request, sent and answered.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::StatusCode;
use tokio::time::{Instant, timeout_at};

use super::error::Error;
use super::line::Line;
use super::message::{NatsRequest, NatsResponse};
use crate::base::clock;

/// The answer of a [`NatsService`](super::NatsService) or a [`NatsPool`](super::NatsPool).
///
/// Dropped before it is ready it leaves nothing behind; what was sent already is the server's.
#[must_use = "nothing is sent before it is polled"]
pub struct ResponseFuture(
    Pin<Box<dyn Future<Output = Result<NatsResponse, Error>> + Send + 'static>>,
);

/// How far a request got.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Opening,
    Sending,
    Sent,
}

impl ResponseFuture {
    pub(super) fn new(
        future: impl Future<Output = Result<NatsResponse, Error>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(future))
    }
}

impl Future for ResponseFuture {
    type Output = Result<NatsResponse, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Sends `req` on `line`, begun at `start`.
pub(super) async fn exchange(
    line: Arc<Line>,
    req: NatsRequest,
    start: Instant,
    timeout: Duration,
) -> Result<NatsResponse, Error> {
    let (until, is_deadline) = req.until(start, timeout);
    let timeout = req.timeout.unwrap_or(timeout);
    if is_deadline && until <= Some(clock::now()) {
        return Err(Error::deadline(&req.parts.subject, false));
    }
    req.parts.check(line.max_payload())?;
    let subject = req.parts.subject.clone();
    let mut stage = Stage::Opening;
    let answer = async {
        line.seat().opened().await?;
        if !line.is_up() {
            return Err(Error::disconnected(false));
        }
        // The entry comes first: an answer may be back before `send` is.
        let (tickets, answer) = line.expect_one()?;
        stage = Stage::Sending;
        line.send(req.parts, tickets.id(0)).await?;
        stage = Stage::Sent;
        match answer.await {
            Ok(message) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                Err(Error::no_responders(&subject))
            }
            Ok(message) => Ok(NatsResponse::of(message)),
            Err(_) if line.is_closed() => Err(Error::closed()),
            Err(_) => Err(Error::disconnected(true)),
        }
    };
    let Some(until) = until else {
        return answer.await;
    };
    if let Ok(answer) = timeout_at(until, answer).await {
        return answer;
    }
    Err(match stage {
        _ if is_deadline => Error::deadline(&subject, stage == Stage::Sent),
        Stage::Sent => Error::timed_out(&subject, timeout),
        _ if line.is_up() => Error::slow(timeout),
        _ => Error::disconnected(false),
    })
}
