use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::Codec;
use tonic::{IntoRequest, Request, Status};
use tower_service::Service;

use super::method::Method;
use crate::base::clock;
use crate::base::deadline::{Deadline, GRPC_TIMEOUT, grpc_timeout};
use crate::base::error::BoxError;
use crate::middleware::batch::request::Batch;
use crate::middleware::batch::results::IntoResults;
use crate::middleware::batch::sending::{Sending, in_time, is_late};

/// Sends each batch as one unary gRPC call of a method that takes many: a service of batches over any gRPC channel.
///
/// One closure makes the call's message of a batch, and what is to be kept of it; the other makes the answers of the items
/// of the latter and the message that comes back. The channel is tonic's [`Grpc`], as generated clients have it inside:
/// origin, compression and limits of messages are set there. The codec is any of tonic's.
///
/// ```
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # struct GetPrices { #[prost(uint32, repeated, tag = "1")] ids: Vec<u32> }
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # struct Price { #[prost(uint32, tag = "1")] id: u32, #[prost(uint64, tag = "2")] cents: u64 }
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # struct Prices { #[prost(message, repeated, tag = "1")] prices: Vec<Price> }
/// use tonic::client::Grpc;
/// use tonic_prost::ProstCodec;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_flow::batch::{Batch, BatchLayer, GrpcBatch, Keys};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_flow::BoxError> {
/// # let channel = service_fn(async |req: http::Request<tonic::body::Body>| {
/// #     let get_many = service_fn(async |req: tonic::Request<GetPrices>| {
/// #         let ids = req.into_inner().ids.into_iter();
/// #         let prices = ids.map(|id| Price { id, cents: 100 * u64::from(id) }).collect();
/// #         Ok(tonic::Response::new(Prices { prices }))
/// #     });
/// #     let mut server = tonic::server::Grpc::new(ProstCodec::<Prices, GetPrices>::default());
/// #     Ok::<_, std::convert::Infallible>(server.unary(get_many, req).await)
/// # });
/// // `channel` is tonic's `Channel`, or any other service of gRPC requests.
/// let batches = GrpcBatch::new(
///     Grpc::new(channel),
///     "/shop.Prices/GetMany",
///     ProstCodec::default(),
///     |batch: Batch<u32>| {
///         let ids = batch.iter().copied().collect();
///         (GetPrices { ids }, batch.keys(|id| *id))
///     },
///     |asked: Keys<u32>, found: Prices| {
///         Ok(asked.answer(found.prices.into_iter().map(|price| (price.id, price.cents))))
///     },
/// );
/// let prices = BatchLayer::new().layer(batches);
/// assert_eq!(prices.oneshot(7).await?, 700);
/// # Ok(()) }
/// ```
///
/// Metadata goes with the call when the first closure makes a [`Request`] of the message; the codec then names the type of
/// the message: `ProstCodec::<GetPrices, _>::default()`.
///
/// # Deadline
///
/// When the batch has one ([`Batch::deadline`]) the call has it as its `grpc-timeout`, unless the closure asks for a
/// shorter one, and is dropped when it passes: nobody waits for it any more.
///
/// # Errors
///
/// The call's [`Status`], the second closure's, that of the channel when it is not ready, and `DEADLINE_EXCEEDED`.
///
/// # Cancellation
///
/// Dropping the future drops the call, which resets its stream. The server may have done any part of the batch.
///
/// # Cost
///
/// Two allocations for each batch, beside what tonic does.
pub struct GrpcBatch<T, C, F> {
    method: Method<T, C>,
    /// Makes the message, and the answers.
    wire: Arc<F>,
}

// ===== impl GrpcBatch =====

impl<T, C: Codec, F, G> GrpcBatch<T, C, (F, G)> {
    /// Sends batches through `grpc` to the unary method at `path`, such as `/shop.Prices/GetMany`. `encode` makes the
    /// message, or a request with metadata, and what is to be kept of the batch; `decode` the answers of both the latter
    /// and the message that comes back.
    ///
    /// # Panics
    ///
    /// When `path` is not a slash, a service, a slash and a method.
    pub fn new<Req, M, K, R>(grpc: Grpc<T>, path: &str, codec: C, encode: F, decode: G) -> Self
    where
        F: Fn(Batch<Req>) -> (M, K),
        M: IntoRequest<C::Encode>,
        G: Fn(K, C::Decode) -> Result<R, Status>,
        R: IntoResults,
    {
        Self {
            method: Method::new(grpc, path, codec),
            wire: Arc::new((encode, decode)),
        }
    }
}

impl<Req, T, C, F, G, M, K, R> Service<Batch<Req>> for GrpcBatch<T, C, (F, G)>
where
    T: GrpcService<tonic::body::Body> + Clone + Send + 'static,
    T::Future: Send,
    T::ResponseBody: Body + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<BoxError>,
    C: Codec + Clone + Send + 'static,
    C::Encode: Sync,
    C::Decode: Sync,
    F: Fn(Batch<Req>) -> (M, K) + Send + Sync + 'static,
    M: IntoRequest<C::Encode>,
    K: Send + 'static,
    G: Fn(K, C::Decode) -> Result<R, Status> + Send + Sync + 'static,
    R: IntoResults + Send + 'static,
{
    type Response = R;
    type Error = Status;
    type Future = Sending<R, Status>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.method.poll_ready(cx)
    }

    fn call(&mut self, batch: Batch<Req>) -> Self::Future {
        let (items, deadline) = (batch.len(), batch.deadline());
        if is_late(deadline) {
            return Sending::failed(late(items));
        }
        let (message, kept) = (self.wire.0)(batch);
        let mut request = message.into_request();
        if let Some(deadline) = deadline {
            limit(&mut request, deadline);
        }
        let (method, wire) = (self.method.take(), self.wire.clone());
        Sending::new(async move {
            let call = in_time(deadline, method.unary(request)).await;
            let answer = call.unwrap_or_else(|| Err(late(items)))?;
            (wire.1)(kept, answer)
        })
    }
}

/// A clone has the same closures, and a clone of the channel, with nothing reserved.
impl<T: Clone, C: Clone, F> Clone for GrpcBatch<T, C, F> {
    fn clone(&self) -> Self {
        Self {
            method: self.method.clone(),
            wire: self.wire.clone(),
        }
    }
}

impl<T, C, F> fmt::Debug for GrpcBatch<T, C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcBatch")
            .field("path", self.method.path())
            .finish_non_exhaustive()
    }
}

fn late(items: usize) -> Status {
    Status::deadline_exceeded(format!(
        "batch: the deadline of the last of {items} items has passed"
    ))
}

/// Gives the call what is left of the deadline, unless it asks for less.
fn limit<M>(request: &mut Request<M>, deadline: Deadline) {
    let left = deadline.left(clock::now());
    let headers = request.metadata().as_ref();
    let asked = headers.get(GRPC_TIMEOUT).and_then(grpc_timeout);
    if asked.is_none_or(|asked| left < asked) {
        request.set_timeout(left);
    }
    request.extensions_mut().insert(deadline);
}
