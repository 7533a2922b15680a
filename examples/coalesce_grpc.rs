//! Equal calls of a gRPC method become one: `cargo run --features full --example coalesce_grpc`
//!
//! 100 callers at once say the same, which takes 20 ms: bare, coalesced by the client, coalesced by the server. The server
//! numbers the calls it handled in the trailers of its answers, so that every caller sees which call it was answered by.

mod echo;

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use echo::{Echo, EchoClient, EchoServer, Note};
use futures_util::future::try_join_all;
use http::{HeaderMap, HeaderName, Response};
use http_body_util::BodyExt;
use tonic::client::GrpcService;
use tonic::codegen::{Body, StdError};
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tower::ServiceBuilder;
use tower_flow::coalesce::{CoalesceHandle, CoalesceLayer};
use tower_flow::grpc::TonicBodyLayer;

/// What may be coalesced: unary, and without side effects. `register_fds` reads that from a descriptor set.
const READS: [&str; 1] = ["/tower_flow.example.v1.Echo/Say"];

static HANDLED: AtomicU64 = AtomicU64::new(0);

fn numbered(response: Response<tonic::body::Body>) -> Response<tonic::body::Body> {
    let number = HANDLED.fetch_add(1, Relaxed) + 1;
    let number = HeaderMap::from_iter([(HeaderName::from_static("x-call"), number.into())]);
    let trailers = std::future::ready(Some(Ok(number)));
    response.map(|body| tonic::body::Body::new(body.with_trailers(trailers)))
}

/// A server that coalesces calls of `methods`.
async fn serve(methods: &[&str]) -> Result<(Channel, CoalesceHandle), Box<dyn Error>> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let uri = format!("http://{}", incoming.local_addr()?);
    let coalesce = CoalesceLayer::grpc(methods.iter().copied());
    let books = coalesce.handle();
    let numbered = ServiceBuilder::new().map_response(numbered).into_inner();
    let server = Server::builder()
        .layer(coalesce)
        .layer(numbered)
        .add_service(EchoServer::new(Echo));
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok((Channel::from_shared(uri)?.connect().await?, books))
}

/// 100 callers at once: by how many calls they were answered, as their trailers say.
async fn ask<S>(what: &str, client: EchoClient<S>) -> Result<(), Box<dyn Error>>
where
    S: GrpcService<tonic::body::Body, Error: Into<StdError>> + Clone,
    S::ResponseBody: Body<Data = bytes::Bytes, Error: Into<StdError> + Send> + Send + 'static,
{
    let callers = (0..100).map(|_| {
        let mut client = client.clone();
        let note = Note {
            delay_ms: 20,
            ..Note::default()
        };
        async move { client.say(note).await }
    });
    let mut calls = BTreeSet::new();
    for answer in try_join_all(callers).await? {
        // tonic's clients put trailers beside the headers.
        let number = answer.metadata().get("x-call").ok_or("no trailer")?;
        calls.insert(number.to_str()?.parse::<u64>()?);
    }
    let (first, last) = (calls.first(), calls.last());
    let (first, last) = first.zip(last).ok_or("no answer")?;
    let count = calls.len();
    println!("{what}: 100 answers of {count} calls, the server's {first} to {last}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (channel, _) = serve(&[]).await?;
    ask("bare", EchoClient::new(channel.clone())).await?;

    let coalesce = CoalesceLayer::grpc(READS);
    let client = ServiceBuilder::new()
        .layer(&coalesce)
        .layer(TonicBodyLayer::new())
        .service(channel);
    ask("coalesced by the client", EchoClient::new(client)).await?;
    println!("  {} calls saved", coalesce.handle().snapshot().shared);

    let (channel, books) = serve(&READS).await?;
    ask("coalesced by the server", EchoClient::new(channel)).await?;
    println!("  {} calls saved", books.snapshot().shared);
    Ok(())
}
