use std::mem;
use std::pin::pin;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use http_body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::{Codec, Streaming};
use tonic::{Request, Response, Status};

use super::guard::{Fault, Guarded};
use super::outbox::Outgoing;
use crate::base::error::BoxError;

/// A method, the channel to it, and the codec of its messages.
#[derive(Debug, Clone)]
pub(super) struct Method<T, C> {
    grpc: Grpc<T>,
    path: PathAndQuery,
    codec: C,
}

// ===== impl Method =====

impl<T, C> Method<T, C> {
    /// Panics when `path` is not a slash, a service, a slash and a method.
    pub(super) fn new(grpc: Grpc<T>, path: &str, codec: C) -> Self {
        let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        let whole = parts.is_some_and(|(service, method)| {
            !service.is_empty() && !method.is_empty() && !method.contains(['/', '?', '#'])
        });
        let path = match path.parse() {
            Ok(path) if whole => path,
            _ => panic!("{path:?} is no path of a method; write it as \"/package.Service/Method\""),
        };
        Self { grpc, path, codec }
    }

    pub(super) fn path(&self) -> &PathAndQuery {
        &self.path
    }

    /// The one that was polled ready, for a call; what stays has nothing reserved.
    pub(super) fn take(&mut self) -> Self
    where
        Self: Clone,
    {
        let next = self.clone();
        mem::replace(self, next)
    }
}

impl<T, C> Method<T, C>
where
    T: GrpcService<tonic::body::Body>,
    T::ResponseBody: Body + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<BoxError>,
    C: Codec,
    C::Encode: Sync,
    C::Decode: Sync,
{
    /// Whether the channel is ready. `Grpc` asks it in a future, which keeps nothing from poll to poll.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let ready = pin!(self.grpc.ready()).poll(cx);
        ready.map_err(|error| Status::from_error(error.into()))
    }

    pub(super) async fn unary(mut self, request: Request<C::Encode>) -> Result<C::Decode, Status> {
        let (codec, fault) = Guarded::new(self.codec);
        let answer = self.grpc.unary(request, self.path, codec).await;
        answer
            .map(Response::into_inner)
            .map_err(|status| fault.or(status))
    }

    /// Opens a stream of `messages`: a server may answer the call only once it has read the first. A channel that was
    /// polled ready is so still.
    pub(super) async fn open(
        mut self,
        messages: Outgoing<C::Encode>,
    ) -> Result<(Streaming<C::Decode>, Fault), Status> {
        let ready = self.grpc.ready().await;
        ready.map_err(|error| Status::from_error(error.into()))?;
        let (codec, fault) = Guarded::new(self.codec);
        let request = Request::new(messages);
        let opened = self.grpc.streaming(request, self.path, codec).await;
        let opened = opened.map_err(|status| fault.or(status))?;
        // A status in the head is all there is.
        if opened.metadata().contains_key("grpc-status") {
            return Err(Status::unavailable("the server ended the stream at once"));
        }
        Ok((opened.into_inner(), fault))
    }
}
