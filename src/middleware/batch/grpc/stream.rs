use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Body;
use tonic::Status;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::Codec;
use tower_service::Service;

use super::error::GrpcStreamError;
use super::line::Line;
use super::lines::{Lines, Terms};
use super::method::Method;
use super::pairing::{ById, Ordered, Pairing};
use super::reading::Reading;
use super::talk::talk;
use crate::base::error::BoxError;
use crate::middleware::batch::request::Batch;
use crate::middleware::batch::results::Answers;
use crate::middleware::batch::sending::{Sending, in_time, is_late};

/// Sends each batch over a bidirectional gRPC stream, which is kept for the next: a service of batches over any gRPC
/// channel.
///
/// Each item is one message, and has one answer. An item so costs a message instead of a call, and the server sees the
/// items one by one. One batch at a time uses a stream; when several are in flight at once there are as many streams. A
/// stream is opened when a batch needs it and none is idle, and is no task of its own: the batch that uses it drives it.
///
/// ```
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # struct Write { #[prost(uint64, tag = "1")] seq: u64, #[prost(string, tag = "2")] text: String }
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # struct Written { #[prost(uint64, tag = "1")] seq: u64, #[prost(string, tag = "2")] refused: String }
/// # fn write(write: Write) -> Written {
/// #     let refused = if write.text.is_empty() { "it is empty" } else { "" };
/// #     Written { seq: write.seq, refused: refused.to_owned() }
/// # }
/// use tonic::{Status, client::Grpc};
/// use tonic_prost::ProstCodec;
/// use tower::{Service, ServiceExt, service_fn};
/// use tower_flow::batch::{Batch, GrpcStreamBatch, IntoResults};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_flow::BoxError> {
/// # use futures_util::StreamExt;
/// # let channel = service_fn(async |req: http::Request<tonic::body::Body>| {
/// #     let write_all = service_fn(async |req: tonic::Request<tonic::Streaming<Write>>| {
/// #         Ok(tonic::Response::new(req.into_inner().map(|asked| asked.map(write))))
/// #     });
/// #     let mut server = tonic::server::Grpc::new(ProstCodec::<Written, Write>::default());
/// #     Ok::<_, std::convert::Infallible>(server.streaming(write_all, req).await)
/// # });
/// // `channel` is tonic's `Channel`, or any other service of gRPC requests. Rows have numbers, and so have their answers.
/// let mut writes = GrpcStreamBatch::by_id(
///     Grpc::new(channel),
///     "/shop.Rows/Write",
///     ProstCodec::default(),
///     |(seq, text): (u64, String)| (seq, Write { seq, text }),
///     |answer: Written| match answer.refused.as_str() {
///         "" => (answer.seq, Ok(())),
///         why => (answer.seq, Err(Status::failed_precondition(why))),
///     },
/// );
/// for batch in [[(1, "tea"), (2, "")], [(3, "milk"), (4, "")]] {
///     let rows = batch.map(|(seq, text)| (seq, text.to_owned()));
///     let answers = writes.ready().await?.call(Batch::new(rows)).await?;
///     let written: Vec<_> = answers.into_results(2).map(|(at, result)| (at, result.is_ok())).collect();
///     assert_eq!(written, [(0, true), (1, false)]);
/// }
/// assert_eq!(writes.opened(), 1);
/// # Ok(()) }
/// ```
///
/// For one destination of several see [`Destinations`](crate::batch::Destinations).
///
/// # When streams end
///
/// A stream is looked at before it is used: one that has ended or failed since, or on which an answer came that nobody
/// asked for, is replaced, and nobody notices. Nothing is ever sent twice. So a batch whose stream breaks fails, or the
/// part of it that has no answer yet; one whose future is dropped takes its stream along, and so does one that got an
/// answer with an unknown id, since what comes next on such a stream might be taken for an answer to the next batch.
///
/// To the server a kept stream is a call in progress: one that shuts down gracefully must end it, and one that wants its
/// load spread ends it from time to time, after an answer. A batch that is sent at that very moment fails, so set
/// [`max_age`](Self::max_age) instead where you can. A stream nobody uses for [`idle_timeout`](Self::idle_timeout) is
/// dropped when the next batch comes, or with the last clone of this service. A batch that waits for room to open a stream
/// takes one that becomes idle meanwhile.
///
/// # Readiness
///
/// Ready when a stream is idle or the channel is ready. What the channel reserves is given back when no stream need be
/// opened.
///
/// # Deadline
///
/// When that of the batch passes ([`Batch::deadline`]), items without answer fail with `DEADLINE_EXCEEDED`, and the
/// stream is dropped. A batch without one waits for as long as the server lets it: put a timeout round this service.
///
/// # Errors
///
/// An item gets the error its own answer is read as; when the stream breaks, those without answer a [`GrpcStreamError`];
/// when it ends with status `OK` too early, or has answers with unknown ids instead of theirs,
/// [`Reason::Missing`](crate::error::Reason::Missing). A batch whose stream ends before any item was answered fails as a
/// whole.
///
/// # Cancellation
///
/// Dropping the future drops its stream: messages that were not yet sent never are.
///
/// # Cost
///
/// Three allocations for each batch, and with ids a hash map and two more, beside what tonic does; a stream costs as much as
/// a call. All messages of a batch are held until the server reads them.
pub struct GrpcStreamBatch<T, C: Codec, P> {
    method: Method<T, C>,
    pairing: Arc<P>,
    lines: Arc<Lines<Line<C::Encode, C::Decode>>>,
    terms: Terms,
}

// ===== impl GrpcStreamBatch =====

impl<T, C: Codec, F, G> GrpcStreamBatch<T, C, Ordered<F, G>> {
    /// For a server that answers in order: streams through `grpc` to the method at `path`, such as `/shop.Rows/Write`.
    /// `ask` makes the message of an item, `read` what its caller gets of the answer.
    ///
    /// A server that gives two answers to one item would have the second taken for that of the next: use
    /// [`by_id`](Self::by_id) where there is an id.
    ///
    /// # Panics
    ///
    /// When `path` is not a slash, a service, a slash and a method.
    pub fn ordered<Req, R, E>(grpc: Grpc<T>, path: &str, codec: C, ask: F, read: G) -> Self
    where
        F: Fn(Req) -> C::Encode,
        G: Fn(C::Decode) -> Result<R, E>,
        E: Into<BoxError>,
    {
        Self::new(grpc, path, codec, Ordered::new(ask, read))
    }
}

impl<T, C: Codec, F, G> GrpcStreamBatch<T, C, ById<F, G>> {
    /// For a server that answers in any order: streams through `grpc` to the method at `path`, such as
    /// `/shop.Rows/Write`. `ask` makes the message of an item and the id its answer will have, `read` the id of an answer
    /// and what the item's caller gets.
    ///
    /// Where several items of a batch have the same id, the first answer with it is that of the first of them.
    ///
    /// # Panics
    ///
    /// When `path` is not a slash, a service, a slash and a method.
    pub fn by_id<Req, Id, R, E>(grpc: Grpc<T>, path: &str, codec: C, ask: F, read: G) -> Self
    where
        F: Fn(Req) -> (Id, C::Encode),
        G: Fn(C::Decode) -> (Id, Result<R, E>),
        E: Into<BoxError>,
    {
        Self::new(grpc, path, codec, ById::new(ask, read))
    }
}

impl<T, C: Codec, P> GrpcStreamBatch<T, C, P> {
    fn new(grpc: Grpc<T>, path: &str, codec: C, pairing: P) -> Self {
        Self {
            method: Method::new(grpc, path, codec),
            pairing: Arc::new(pairing),
            lines: Arc::new(Lines::new()),
            terms: Terms {
                max_idle: 5,
                idle_timeout: Duration::from_secs(90),
                max_age: None,
            },
        }
    }

    /// 5, as many as a layer has batches in flight by default: how many streams are kept that no batch uses. With 0 each
    /// batch has a stream of its own.
    #[must_use]
    pub fn max_idle(mut self, streams: usize) -> Self {
        self.terms.max_idle = streams;
        self
    }

    /// 90 s: for how long a stream is kept that no batch uses.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.terms.idle_timeout = timeout;
        self
    }

    /// Unlimited: how old a stream may be when a batch begins to use it. A stream stays with the server it was opened to, so
    /// that servers that were added get no load before streams are opened anew.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.terms.max_age = Some(age);
        self
    }

    /// How many streams this service and its clones have opened so far.
    pub fn opened(&self) -> u64 {
        self.lines.opened()
    }

    /// How many streams this service and its clones hold that no batch uses.
    pub fn idle(&self) -> usize {
        self.lines.idle()
    }
}

impl<Req, T, C, P> Service<Batch<Req>> for GrpcStreamBatch<T, C, P>
where
    T: GrpcService<tonic::body::Body> + Clone + Send + 'static,
    T::Future: Send,
    T::ResponseBody: Body + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<BoxError>,
    C: Codec + Clone + Send + 'static,
    C::Encode: Sync,
    C::Decode: Sync,
    P: Pairing<Req, C::Decode, Message = C::Encode> + Send + Sync + 'static,
    P::Response: Send + 'static,
    P::Open: Send + 'static,
{
    type Response = Answers<P::Response, BoxError>;
    type Error = GrpcStreamError;
    type Future = Sending<Self::Response, GrpcStreamError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), GrpcStreamError>> {
        if self.lines.idle() > 0 {
            return Poll::Ready(Ok(()));
        }
        let ready = self.method.poll_ready(cx);
        ready.map_err(|status| GrpcStreamError::new(status, 0, 0))
    }

    fn call(&mut self, batch: Batch<Req>) -> Self::Future {
        let (items, deadline) = (batch.len(), batch.deadline());
        if is_late(deadline) {
            return Sending::failed(GrpcStreamError::new(late(), 0, items));
        }
        let (messages, open) = self.pairing.ask(batch);
        let (method, terms) = (self.method.take(), self.terms);
        let (pairing, lines) = (self.pairing.clone(), self.lines.clone());
        Sending::new(async move {
            let mut reading = Reading::new(pairing, open, items);
            let talk = talk(method, messages, &lines, &terms, &mut reading);
            let end = in_time(deadline, talk).await;
            reading.finish(end.unwrap_or_else(|| Err(late())))
        })
    }
}

/// A clone has the same streams, and a clone of the channel, with nothing reserved.
impl<T: Clone, C: Codec + Clone, P> Clone for GrpcStreamBatch<T, C, P> {
    fn clone(&self) -> Self {
        Self {
            method: self.method.clone(),
            pairing: self.pairing.clone(),
            lines: self.lines.clone(),
            terms: self.terms,
        }
    }
}

impl<T, C: Codec, P> fmt::Debug for GrpcStreamBatch<T, C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcStreamBatch")
            .field("path", self.method.path())
            .field("opened", &self.opened())
            .field("idle", &self.idle())
            .finish_non_exhaustive()
    }
}

fn late() -> Status {
    Status::deadline_exceeded("the deadline of the last of the items has passed")
}
