//! A small HTTP client for the tests.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_flow::BoxError;

/// GETs `url`.
pub async fn get(url: &str, accept: &str) -> Response<Bytes> {
    let req = Request::get(url)
        .header("accept", accept)
        .body(Empty::<Bytes>::new())
        .unwrap();
    send(req).await
}

/// Sends a request.
pub async fn send<B>(req: Request<B>) -> Response<Bytes>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let client = Client::builder(TokioExecutor::new()).build_http();
    let (parts, body) = client.request(req).await.unwrap().into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

/// Writes `bytes` to a connection and reads what comes back until it closes.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // A server may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
