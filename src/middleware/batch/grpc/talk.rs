use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use http_body::Body;
use tonic::Status;
use tonic::client::GrpcService;
use tonic::codec::Codec;

use super::line::Line;
use super::lines::{Lines, Terms, Used};
use super::method::Method;
use super::outbox;
use super::pairing::Pairing;
use super::reading::Reading;
use crate::base::clock;
use crate::base::error::BoxError;

/// Sends `messages` over a stream, and reads until each has an answer or the stream ends.
pub(super) async fn talk<Req, T, C, P>(
    method: Method<T, C>,
    messages: VecDeque<C::Encode>,
    lines: &Lines<Line<C::Encode, C::Decode>>,
    terms: &Terms,
    reading: &mut Reading<P, P::Open, P::Response>,
) -> Result<(), Status>
where
    T: GrpcService<tonic::body::Body>,
    T::ResponseBody: Body + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<BoxError>,
    C: Codec,
    C::Encode: Sync,
    C::Decode: Sync,
    P: Pairing<Req, C::Decode>,
{
    if reading.is_done() {
        return Ok(());
    }
    let quiet = poll_fn(|cx| Poll::Ready(take_quiet(lines, terms, cx))).await;
    let mut used = match quiet {
        Some(used) => {
            used.line.send(messages);
            used
        }
        None => open(method, messages, lines, terms).await?,
    };
    while !reading.is_done() {
        match used.line.answer().await? {
            Some(answer) => reading.read(answer),
            None => return Ok(()),
        }
    }
    // On any other, what comes next might be an answer to this batch.
    if reading.is_clean() {
        lines.keep(used, clock::now(), terms);
    }
    Ok(())
}

/// A stream that was opened for `messages`, or one that became idle before the first of them could be sent.
///
/// There may be no room for another stream, on the server or in the channel, until one is dropped, and none is while it is
/// kept for somebody.
async fn open<T, C>(
    method: Method<T, C>,
    messages: VecDeque<C::Encode>,
    lines: &Lines<Line<C::Encode, C::Decode>>,
    terms: &Terms,
) -> Result<Used<Line<C::Encode, C::Decode>>, Status>
where
    T: GrpcService<tonic::body::Body>,
    T::ResponseBody: Body + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<BoxError>,
    C: Codec,
    C::Encode: Sync,
    C::Decode: Sync,
{
    let (outbox, outgoing) = outbox::new(messages);
    let watch = lines.watch();
    let mut opening = pin!(method.open(outgoing));
    let opened = poll_fn(|cx| {
        if let Poll::Ready(opened) = opening.as_mut().poll(cx) {
            return Poll::Ready(Err(opened));
        }
        if outbox.has_begun() {
            return Poll::Pending;
        }
        // First to be woken by the next that becomes idle, then to look.
        watch.poll(cx);
        let Some(used) = take_quiet(lines, terms, cx) else {
            return Poll::Pending;
        };
        match outbox.take_back() {
            Some(messages) => Poll::Ready(Ok((used, messages))),
            None => {
                // For another who waits.
                lines.keep(used, clock::now(), terms);
                Poll::Pending
            }
        }
    });
    match opened.await {
        Ok((used, messages)) => {
            used.line.send(messages);
            Ok(used)
        }
        Err(opened) => {
            let (answers, fault) = opened?;
            let line = Line::new(outbox, answers, fault);
            Ok(lines.begin(line, clock::now()))
        }
    }
}

/// A kept stream that can be used; those that cannot are dropped.
fn take_quiet<M, A>(
    lines: &Lines<Line<M, A>>,
    terms: &Terms,
    cx: &mut Context<'_>,
) -> Option<Used<Line<M, A>>> {
    let now = clock::now();
    loop {
        let mut used = lines.take(now, terms)?;
        if used.line.is_quiet(cx) {
            return Some(used);
        }
    }
}
