//! A hyper server that is timed to the end of every body: `cargo run --features full --example hyper_server`
//!
//! Then `curl http://127.0.0.1:8080/hello`, and look at the address it prints.

use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};
use tower_flow::Flow;
use tower_flow::connection::Connections;
use tower_flow::timing::TimingLayer;

async fn handle(req: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::from(format!("you asked for {}\n", req.uri().path())));
    if !req.uri().path().starts_with("/hello") {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    Ok(response)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flow = Flow::new("hello");
    let timing = TimingLayer::new("http")
        .route_by(|req: &Request<Incoming>| match req.uri().path() {
            path if path.starts_with("/hello") => "/hello",
            path => path,
        })
        .attach(&flow);
    let service = ServiceBuilder::new()
        .layer(timing.http())
        .service(service_fn(handle));
    let connections = Connections::server("http").attach(&flow);

    let admin = flow.admin().bind("127.0.0.1:9090".parse()?).await?;
    println!("live on http://{}/", admin.local_addr());
    tokio::spawn(admin.run());

    let listener = TcpListener::bind("127.0.0.1:8080").await?;
    println!("serving on http://{}/hello", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept().await?;
        let io = connections.accept_from(stream, peer);
        let service = TowerToHyperService::new(io.connection().service(service.clone()));
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is counted; there is nobody to tell.
            let _ = server.serve_connection(TokioIo::new(io), service).await;
        });
    }
}
