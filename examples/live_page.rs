//! A server with everything the live page can show: `cargo run --release --features full --example live_page`
//!
//! Open the address it prints. With `ADMIN_TOKEN` set to sixteen characters or more the page turns knobs: set the shed
//! layer's limit to 2 there, and see what is refused. `hyper_client`, or `wrk http://127.0.0.1:8080/hello`, makes load.

use std::convert::Infallible;
use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};
use tower_flow::profile::{CpuUsage, ProfileLayer, SchedulerUsage};
use tower_flow::shed::ShedLayer;
use tower_flow::{Flow, ServiceBuilderExt as _};

/// `/hello` waits for something; whatever ends in `/report` computes, and so keeps its worker from everybody else.
async fn handle(req: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if req.uri().path().ends_with("/report") {
        black_box((0..2_000_000u64).fold(0, |sum, n| sum ^ n.rotate_left(7)));
    } else {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(Response::new(Full::from("hello\n")))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flow = Flow::new("hello");
    let _cpu = CpuUsage::new().attach(&flow);
    let _runtime = SchedulerUsage::new("main").attach(&flow);
    let handlers = ProfileLayer::new("handlers")
        .route_by(|req: &Request<Incoming>| req.uri().path())
        .attach(&flow);
    let service = ServiceBuilder::new()
        .http_timing("http", &flow)
        .layer(ShedLayer::adaptive().name("inbound").attach(&flow).http())
        .layer(handlers.http())
        .service(service_fn(handle));

    let mut admin = flow.admin();
    let token = std::env::var("ADMIN_TOKEN");
    if let Ok(token) = &token {
        admin = admin.token(token);
    }
    let admin = admin.bind("127.0.0.1:9090".parse()?).await?;
    match token {
        // What follows the # is the browser's own business: it is sent nowhere but to the page's script.
        Ok(token) => println!("live on http://{}/#token={token}", admin.local_addr()),
        Err(_) => println!("live on http://{}/", admin.local_addr()),
    }
    tokio::spawn(admin.run());

    let listener = TcpListener::bind("127.0.0.1:8080").await?;
    println!("serving on http://{}/hello", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is nobody's business here.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
