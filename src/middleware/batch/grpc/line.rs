use std::collections::VecDeque;
use std::pin::Pin;
use std::task::Context;

use futures_core::Stream;
use tonic::Status;
use tonic::codec::Streaming;

use super::guard::Fault;
use super::outbox::Outbox;

/// An open stream: messages go out, answers come in.
///
/// Dropped, it takes what is not sent with it, ends the requests and resets the stream.
pub(super) struct Line<M, A> {
    outbox: Outbox<M>,
    answers: Streaming<A>,
    fault: Fault,
}

// ===== impl Line =====

impl<M, A> Line<M, A> {
    pub(super) fn new(outbox: Outbox<M>, answers: Streaming<A>, fault: Fault) -> Self {
        Self {
            outbox,
            answers,
            fault,
        }
    }

    pub(super) fn send(&self, messages: VecDeque<M>) {
        self.outbox.send(messages);
    }

    /// The next answer; `None` when the server has ended the stream with `OK`.
    pub(super) async fn answer(&mut self) -> Result<Option<A>, Status> {
        let answer = self.answers.message().await;
        let answer = answer.map_err(|status| self.fault.or(status))?;
        // To tonic an end that says nothing is a good one.
        if answer.is_none() && self.answers.trailers().await?.is_none() {
            return Err(Status::unknown("the stream broke off without a status"));
        }
        Ok(answer)
    }

    /// Whether nothing has come since the last answer: no end, no error, and no answer nobody asked for.
    pub(super) fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        Pin::new(&mut self.answers).poll_next(cx).is_pending()
    }
}
