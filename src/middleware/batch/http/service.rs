use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::codec::HttpCodec;
use super::collect::{Stopped, Why, collect};
use super::error::HttpBatchError;
use crate::base::error::{BoxError, Reason, Rejection};
use crate::middleware::batch::request::Batch;
use crate::middleware::batch::results::IntoResults;
use crate::middleware::batch::sending::{Sending, in_time, is_late};

/// How much is kept of the body of a response that is no success.
const EXCERPT: usize = 8 * 1024;

/// Sends each batch as one HTTP request: a service of batches over any HTTP client.
///
/// An [`HttpCodec`], or two closures, say what the request is and how the response is read. They get the body whole, up to
/// [`max_body`](Self::max_body) bytes of it. What they answer is told apart by [`IntoResults`]: too few, too many and
/// answers of the wrong items harm nobody but the items that have none.
///
/// ```
/// # use bytes::Bytes;
/// # use http::{Request, Response};
/// # use tower::{Service, ServiceExt, service_fn};
/// use tower_flow::batch::{Batch, HttpBatch, IntoResults, Keys};
/// use tower_flow::BoxError;
///
/// // Asks for `/prices?ids=3,7`, and reads lines such as `3 120`.
/// fn encode(batch: Batch<u32>) -> Result<(Request<String>, Keys<u32>), BoxError> {
///     let ids: Vec<_> = batch.iter().map(u32::to_string).collect();
///     let uri = format!("http://shop.example/prices?ids={}", ids.join(","));
///     Ok((Request::get(uri).body(String::new())?, batch.keys(|id| *id)))
/// }
///
/// fn line(line: &str) -> Result<(u32, u64), BoxError> {
///     let (id, price) = line.split_once(' ').ok_or("a line without a price")?;
///     Ok((id.parse()?, price.parse()?))
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
/// # let client = service_fn(|req: Request<String>| async move {
/// #     assert_eq!(req.uri().query(), Some("ids=3,7"));
/// #     Ok::<_, std::io::Error>(Response::new(String::from("7 95\n3 120\n")))
/// # });
/// // `client` is hyper's, the pool of this crate, or any other.
/// let mut prices = HttpBatch::new(client, encode, |ids: Keys<u32>, response| {
///     let lines = std::str::from_utf8(response.body())?.lines().map(line);
///     Ok(ids.answer(lines.collect::<Result<Vec<_>, _>>()?))
/// });
/// let answers = prices.ready().await?.call(Batch::new([3, 7])).await?;
/// let mut answers: Vec<_> = answers.into_results(2).collect();
/// answers.sort();
/// assert_eq!(answers, [(0, Ok(120)), (1, Ok(95))]);
/// # Ok(()) }
/// ```
///
/// # Deadline
///
/// When the batch has one ([`Batch::deadline`]), the request carries it as an extension, for the layers below, and is
/// dropped when it passes: nobody waits for it any more.
///
/// # Errors
///
/// Those of the client, as they are; [`HttpBatchError`]; a [`Rejection`] for [`Reason::Deadline`].
///
/// # Cancellation
///
/// Dropping the future drops the client's future, or the body of the response: HTTP/1 closes the connection, HTTP/2 resets
/// the stream. The server may have done any part of the batch.
///
/// # Cost
///
/// One allocation for each batch, beside what the codec and the client do. A body that comes in one frame is not copied.
pub struct HttpBatch<S, C> {
    inner: S,
    codec: Arc<C>,
    max_body: usize,
    any_status: bool,
}

// ===== impl HttpBatch =====

impl<S, F, G> HttpBatch<S, (F, G)> {
    /// Sends batches through `inner`. `encode` makes the request and what is to be kept of the batch, `decode` the answers
    /// of both the latter and the response.
    pub fn new<Req, B, K, R>(inner: S, encode: F, decode: G) -> Self
    where
        F: Fn(Batch<Req>) -> Result<(Request<B>, K), BoxError>,
        G: Fn(K, Response<Bytes>) -> Result<R, BoxError>,
        R: IntoResults,
    {
        Self::with_codec(inner, (encode, decode))
    }
}

impl<S, C> HttpBatch<S, C> {
    /// Sends batches through `inner`, in the words of `codec`.
    pub fn with_codec(inner: S, codec: C) -> Self {
        Self {
            inner,
            codec: Arc::new(codec),
            max_body: 4 * 1024 * 1024,
            any_status: false,
        }
    }

    /// 4 MiB: how many bytes the body of a response may have. What is larger fails with [`HttpBatchError::TooLarge`].
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Lets the codec read every response. Without it those that are no success fail with [`HttpBatchError::Status`].
    #[must_use]
    pub fn any_status(mut self) -> Self {
        self.any_status = true;
        self
    }

    /// The client.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The client.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<Req, S, C, B> Service<Batch<Req>> for HttpBatch<S, C>
where
    S: Service<Request<C::Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    C: HttpCodec<Req> + Send + Sync + 'static,
    C::Kept: Send + 'static,
    C::Results: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = C::Results;
    type Error = BoxError;
    type Future = Sending<C::Results, BoxError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, batch: Batch<Req>) -> Self::Future {
        let (items, deadline) = (batch.len(), batch.deadline());
        if is_late(deadline) {
            return Sending::failed(late(items));
        }
        let (mut request, kept) = match self.codec.encode(batch) {
            Ok(encoded) => encoded,
            Err(error) => {
                return Sending::failed(HttpBatchError::Encode { items, error }.into());
            }
        };
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        let calling = self.inner.call(request);
        let (codec, max, any_status) = (self.codec.clone(), self.max_body, self.any_status);
        Sending::new(async move {
            let read = async {
                let (head, body) = calling.await.map_err(Into::into)?.into_parts();
                let refused = !any_status && !head.status.is_success();
                let body = match collect(body, if refused { EXCERPT } else { max }).await {
                    Ok(body) => body,
                    Err(stopped) if refused => stopped.read,
                    Err(stopped) => return Err(stopped.error(items, max).into()),
                };
                let response = Response::from_parts(head, body);
                if refused {
                    let response = Box::new(response);
                    return Err(HttpBatchError::Status { items, response }.into());
                }
                Ok(response)
            };
            let read = in_time(deadline, read).await;
            let response = read.unwrap_or_else(|| Err(late(items)))?;
            let results = codec.decode(kept, response);
            results.map_err(|error| HttpBatchError::Decode { items, error }.into())
        })
    }
}

fn late(items: usize) -> BoxError {
    let message = format!("the deadline of the last of {items} items has passed");
    Rejection::new("batch", Reason::Deadline, message).into()
}

/// A clone has the same codec, and a clone of the client, with nothing reserved.
impl<S: Clone, C> Clone for HttpBatch<S, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            codec: self.codec.clone(),
            ..*self
        }
    }
}

impl<S: fmt::Debug, C> fmt::Debug for HttpBatch<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBatch")
            .field("inner", &self.inner)
            .field("max_body", &self.max_body)
            .field("any_status", &self.any_status)
            .finish_non_exhaustive()
    }
}

// ===== impl Stopped =====

impl Stopped {
    fn error(self, items: usize, max: usize) -> HttpBatchError {
        let read = self.read.len();
        match self.why {
            Why::TooLarge(bytes) => HttpBatchError::TooLarge { items, bytes, max },
            Why::Broken(error) => HttpBatchError::Body {
                items,
                bytes: read,
                error,
            },
        }
    }
}
