//! The standard gRPC interop service, as the Python client of `tests/interop` expects it.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use tonic::codec::CompressionEncoding;
use tonic::{Response, Status, Streaming};
use tower::{Layer, Service};

#[allow(unreachable_pub, missing_docs)]
mod proto {
    include!("../interop/gen/grpc.testing.rs");
}

pub use proto::test_service_client::TestServiceClient;
pub use proto::test_service_server::{TestService, TestServiceServer};
pub use proto::*;

#[derive(Debug, Default)]
pub struct Interop;

type Answers = Pin<Box<dyn Stream<Item = Result<StreamingOutputCallResponse, Status>> + Send>>;

pub fn service() -> TestServiceServer<Interop> {
    TestServiceServer::new(Interop)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
}

#[tonic::async_trait]
impl TestService for Interop {
    async fn empty_call(&self, _: tonic::Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }

    async fn unary_call(
        &self,
        req: tonic::Request<SimpleRequest>,
    ) -> Result<Response<SimpleResponse>, Status> {
        let req = req.into_inner();
        refused(req.response_status)?;
        let mut response = Response::new(SimpleResponse {
            payload: Some(payload(req.response_size)),
        });
        if !req.response_compressed.is_some_and(|wanted| wanted.value) {
            response.disable_compression();
        }
        Ok(response)
    }

    async fn streaming_input_call(
        &self,
        req: tonic::Request<Streaming<StreamingInputCallRequest>>,
    ) -> Result<Response<StreamingInputCallResponse>, Status> {
        let mut requests = req.into_inner();
        let mut size = 0;
        while let Some(request) = requests.message().await? {
            size += request.payload.map_or(0, |payload| payload.body.len()) as i32;
        }
        Ok(Response::new(StreamingInputCallResponse {
            aggregated_payload_size: size,
        }))
    }

    type StreamingOutputCallStream = Answers;

    async fn streaming_output_call(
        &self,
        req: tonic::Request<StreamingOutputCallRequest>,
    ) -> Result<Response<Answers>, Status> {
        Ok(Response::new(answers(req.into_inner())))
    }

    type FullDuplexCallStream = Answers;

    async fn full_duplex_call(
        &self,
        req: tonic::Request<Streaming<StreamingOutputCallRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let answers = req.into_inner().flat_map(|request| match request {
            Ok(request) => match refused(request.response_status.clone()) {
                Ok(()) => answers(request),
                Err(status) => stream::iter([Err(status)]).boxed(),
            },
            Err(status) => stream::iter([Err(status)]).boxed(),
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn unimplemented_call(
        &self,
        _: tonic::Request<Empty>,
    ) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("as it should be"))
    }
}

fn payload(size: i32) -> Payload {
    Payload {
        body: vec![0; size as usize],
        ..Payload::default()
    }
}

fn refused(status: Option<EchoStatus>) -> Result<(), Status> {
    match status {
        Some(status) if status.code != 0 => Err(Status::new(status.code.into(), status.message)),
        _ => Ok(()),
    }
}

fn answers(request: StreamingOutputCallRequest) -> Answers {
    let parameters = stream::iter(request.response_parameters);
    let answers = parameters.then(async |parameters: ResponseParameters| {
        let wait = u64::try_from(parameters.interval_us).unwrap_or(0);
        if wait > 0 {
            tokio::time::sleep(Duration::from_micros(wait)).await;
        }
        Ok(StreamingOutputCallResponse {
            payload: Some(payload(parameters.size)),
        })
    });
    Box::pin(answers)
}

// ===== metadata that is to come back =====

const INITIAL: &str = "x-grpc-test-echo-initial";
const TRAILING: &str = "x-grpc-test-echo-trailing-bin";

/// Echoes two headers, one in the headers and one in the trailers, which a tonic handler cannot do by itself.
#[derive(Debug, Clone, Copy)]
pub struct EchoMetadata;

#[derive(Debug, Clone)]
pub struct Echoing<S>(S);

impl<S> Layer<S> for EchoMetadata {
    type Service = Echoing<S>;
    fn layer(&self, inner: S) -> Echoing<S> {
        Echoing(inner)
    }
}

impl<S, B, R> Service<Request<B>> for Echoing<S>
where
    S: Service<Request<B>, Response = http::Response<R>, Future: Send + 'static>,
    R: http_body::Body<Data = Bytes, Error: Into<tower_flow::BoxError>> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, req: Request<B>) -> Self::Future {
        let initial = req.headers().get(INITIAL).cloned();
        let trailing = req.headers().get(TRAILING).cloned();
        let future = self.0.call(req);
        Box::pin(async move {
            let mut response = future.await?;
            if let Some(initial) = initial {
                response.headers_mut().insert(INITIAL, initial);
            }
            let at_end = response.body().is_end_stream();
            Ok(response.map(|body| match trailing {
                Some(trailing) if !at_end => {
                    tonic::body::Body::new(body.map_frame(
                        move |frame| match frame.into_trailers() {
                            Ok(mut trailers) => {
                                let trailers: &mut HeaderMap = &mut trailers;
                                trailers.insert(TRAILING, trailing.clone());
                                http_body::Frame::trailers(std::mem::take(trailers))
                            }
                            Err(frame) => frame,
                        },
                    ))
                }
                _ => tonic::body::Body::new(body),
            }))
        })
    }
}
