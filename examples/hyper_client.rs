//! A hyper client that is timed and knows its connections: `cargo run --features full --example hyper_client`
//!
//! It asks the server of `--example hyper_server`, or the URL given as its argument.

use std::error::Error;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_flow::connection::Connections;
use tower_flow::timing::TimingLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.unwrap_or_else(|| "http://127.0.0.1:8080/hello".to_owned());

    let connections = Connections::client("hello");
    let connector = ServiceBuilder::new()
        .layer(connections.connector())
        .service(HttpConnector::new());
    let timing = TimingLayer::new("hello");
    let handle = timing.handle();
    let mut client = ServiceBuilder::new()
        .layer(timing.http())
        .layer(connections.streams())
        .service(Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(connector));

    for _ in 0..100 {
        let req = Request::get(&url).body(Empty::new())?;
        let response = client.ready().await?.call(req).await?;
        // Timed until here, not until the headers.
        response.into_body().collect().await?;
    }

    let hello = &handle.snapshot()[0];
    let seen = connections.snapshot();
    println!(
        "{} requests over {} connections, p50 {:?}, p99 {:?}, first byte after {:?}",
        hello.started, seen.opened, hello.window.p50, hello.window.p99, hello.first_byte,
    );
    Ok(())
}
