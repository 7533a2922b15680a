//! What generated code for a service with one unary method comes to.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use http_body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{BoxFuture, StdError};
use tonic::server::{NamedService, UnaryService};
use tonic::{GrpcMethod, Request, Response, Status};
use tonic_prost::ProstCodec;
use tower_service::Service;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone)]
pub struct EchoServer;

impl NamedService for EchoServer {
    const NAME: &'static str = "bench.Echo";
}

impl<B> Service<http::Request<B>> for EchoServer
where
    B: Body<Error: Into<StdError> + Send> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(grpc.unary(Say, req).await)
        })
    }
}

struct Say;

impl UnaryService<Text> for Say {
    type Response = Text;
    type Future = Ready<Result<Response<Text>, Status>>;

    fn call(&mut self, req: Request<Text>) -> Self::Future {
        ready(Ok(Response::new(req.into_inner())))
    }
}

#[derive(Clone)]
pub struct Client<T>(tonic::client::Grpc<T>);

impl<T> Client<T>
where
    T: GrpcService<tonic::body::Body, Error: Into<StdError>>,
    T::ResponseBody: Body<Data = bytes::Bytes, Error: Into<StdError> + Send> + Send + 'static,
{
    pub fn new(channel: T) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    /// # Panics
    ///
    /// When the answer is not the question.
    pub async fn say(&mut self, text: &str) {
        let mut req = Request::new(Text { text: text.into() });
        req.extensions_mut()
            .insert(GrpcMethod::new("bench.Echo", "Say"));
        if let Err(error) = self.0.ready().await {
            panic!("{}", error.into());
        }
        let path = PathAndQuery::from_static("/bench.Echo/Say");
        let codec = ProstCodec::<Text, Text>::default();
        let answer = self.0.unary(req, path, codec).await.expect("an answer");
        assert_eq!(answer.get_ref().text, text);
    }
}
