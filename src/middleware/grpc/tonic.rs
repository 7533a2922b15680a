use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

/// Turns any request body into tonic's own, the only one its `Channel` takes.
///
/// It belongs between a [`GrpcClientLayer`](super::GrpcClientLayer) and a `Channel`, and costs an allocation a call.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TonicBodyLayer;

/// The service of [`TonicBodyLayer`].
#[derive(Debug, Clone)]
pub struct TonicBody<S>(S);

impl TonicBodyLayer {
    /// The layer.
    pub fn new() -> Self {
        Self
    }
}

impl<S> Layer<S> for TonicBodyLayer {
    type Service = TonicBody<S>;

    fn layer(&self, inner: S) -> TonicBody<S> {
        TonicBody(inner)
    }
}

impl<S, B> Service<http::Request<B>> for TonicBody<S>
where
    S: Service<http::Request<tonic::body::Body>>,
    B: Body<Data = Bytes, Error: Into<crate::BoxError>> + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, req: http::Request<B>) -> S::Future {
        self.0.call(req.map(tonic::body::Body::new))
    }
}
