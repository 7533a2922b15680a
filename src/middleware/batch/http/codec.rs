use bytes::Bytes;
use http::{Request, Response};

use crate::base::error::BoxError;
use crate::middleware::batch::request::Batch;
use crate::middleware::batch::results::IntoResults;

/// How a batch becomes one HTTP request, and the response to it the answers of the items.
///
/// A pair of closures is one: what [`HttpBatch::new`](super::HttpBatch::new) takes. What a codec does runs in the batch's
/// own task, and a panic in it fails this batch alone.
pub trait HttpCodec<Req> {
    /// The body of the request.
    type Body;

    /// What is kept of the batch to read the response by: [`Keys`](crate::batch::Keys), say, or nothing.
    type Kept;

    /// The answers.
    type Results: IntoResults;

    /// Makes the request.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from it; the batch fails with it, unsent.
    fn encode(&self, batch: Batch<Req>) -> Result<(Request<Self::Body>, Self::Kept), BoxError>;

    /// Reads the response.
    ///
    /// # Errors
    ///
    /// Whatever makes it no answer to this batch; the batch fails with it.
    fn decode(
        &self,
        kept: Self::Kept,
        response: Response<Bytes>,
    ) -> Result<Self::Results, BoxError>;
}

// ===== impl HttpCodec =====

impl<Req, F, G, B, K, R> HttpCodec<Req> for (F, G)
where
    F: Fn(Batch<Req>) -> Result<(Request<B>, K), BoxError>,
    G: Fn(K, Response<Bytes>) -> Result<R, BoxError>,
    R: IntoResults,
{
    type Body = B;
    type Kept = K;
    type Results = R;

    fn encode(&self, batch: Batch<Req>) -> Result<(Request<B>, K), BoxError> {
        (self.0)(batch)
    }

    fn decode(&self, kept: K, response: Response<Bytes>) -> Result<R, BoxError> {
        (self.1)(kept, response)
    }
}
