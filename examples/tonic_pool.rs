//! A tonic client over a pool, without a `Channel`: `cargo run --features full --example tonic_pool`
//!
//! The server takes ten streams on a connection. Over one connection fifty calls of 50 ms queue up five deep; the pool
//! opens as many connections as they need, up to its limit, and counts every stream to the end of its body.

mod echo;

use std::error::Error;
use std::time::{Duration, Instant};

use echo::{Echo, EchoClient, EchoServer, Note};
use futures_util::future::try_join_all;
use http::Uri;
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tower_flow::pool::{ConnPool, Protocol, connect};
use tower_flow::{Flow, phases::Timings};

const CALLS: usize = 50;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let uri: Uri = format!("http://{}", incoming.local_addr()?).parse()?;
    tokio::spawn(
        Server::builder()
            .max_concurrent_streams(10)
            .add_service(EchoServer::new(Echo))
            .serve_with_incoming(incoming),
    );

    let channel = Channel::builder(uri.clone()).connect().await?;
    let mut client = EchoClient::new(channel);
    // Before its first answer a Channel does not know how many streams it may open, and calls beyond that fail.
    client.say(Note::default()).await?;
    let alone = fifty(client).await?;
    println!("a Channel, one connection: {CALLS} calls of 50 ms took {alone:?}");

    let flow = Flow::new("caller");
    let pool: ConnPool<tonic::body::Body> = ConnPool::builder(connect::http())
        .name("echo")
        .protocol(Protocol::Http2)
        .max_connections_per_host(8)
        .attach(&flow)
        .build();
    pool.warm(&uri, 5).await?;
    let pooled = fifty(EchoClient::with_origin(pool.clone(), uri.clone())).await?;
    let stats = pool.stats();
    println!(
        "a ConnPool, {} connections: {CALLS} calls of 50 ms took {pooled:?}, reuse ratio {:.2}",
        stats.open,
        stats.reuse_ratio(),
    );
    assert!(stats.peak_open > 1 && stats.peak_open <= 8, "{stats:?}");
    assert!(
        pooled < alone,
        "{pooled:?} over several, {alone:?} over one"
    );

    let mut client = EchoClient::with_origin(pool.clone(), uri.clone());
    let response = client.say(Note::default()).await?;
    if let Some(timings) = response.extensions().get::<Timings>() {
        println!("one call: {}", timings.to_value());
    }
    println!("{}", flow.snapshot());
    pool.shutdown(Duration::from_secs(5)).await?;
    println!("after shutdown {} connections are open", pool.stats().open);
    Ok(())
}

/// Fifty calls at once.
async fn fifty<S>(client: EchoClient<S>) -> Result<Duration, Box<dyn Error>>
where
    S: tonic::client::GrpcService<tonic::body::Body> + Clone,
    S::Error: Into<tonic::codegen::StdError>,
    S::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <S::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    let start = Instant::now();
    let calls = (0..CALLS).map(|_| {
        let mut client = client.clone();
        async move {
            let note = Note {
                delay_ms: 50,
                ..Note::default()
            };
            client.say(note).await
        }
    });
    try_join_all(calls).await?;
    Ok(start.elapsed())
}
