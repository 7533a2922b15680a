//! An axum server that is timed by route, sheds and is seen live: `cargo run --features full --example axum_server`
//!
//! Then `curl http://127.0.0.1:8080/hello/you`, and look at the address it prints: `/hello/{name}` is one route there,
//! whoever is greeted. After Ctrl-C it answers what it has begun.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Path, Request};
use axum::routing::get;
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tower_flow::connection::{Connections, Tracked};
use tower_flow::profile::{CpuUsage, SchedulerUsage};
use tower_flow::route::Route;
use tower_flow::shed::ShedLayer;
use tower_flow::timing::TimingLayer;
use tower_flow::{Flow, preset};

/// The pattern a request matched, not the path somebody sent.
#[derive(Clone)]
struct Matched;

impl Route<Request> for Matched {
    fn of<'a>(&self, req: &'a Request) -> Option<&'a str> {
        req.extensions().get().map(MatchedPath::as_str)
    }
}

/// A listener whose connections are known.
struct Watched(TcpListener, Connections);

impl Listener for Watched {
    type Io = Tracked<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let (stream, peer) = Listener::accept(&mut self.0).await;
        (self.1.accept_from(stream, peer), peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

async fn greet(Path(name): Path<String>) -> String {
    tokio::time::sleep(Duration::from_millis(5)).await;
    format!("hello, {name}\n")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flow = Flow::new("hello");
    let (_cpu, _runtime) = (
        CpuUsage::new().attach(&flow),
        SchedulerUsage::new("main").attach(&flow),
    );
    // One layer for all routes: they share the machine, and so one limit. Unknown paths are timed too, as `web`.
    let timing = TimingLayer::new("web").route_with(Matched);
    let shed = ShedLayer::adaptive().name("web").http();
    let app = Router::new()
        .route("/hello", get(async || "hello\n"))
        .route("/hello/{name}", get(greet))
        .layer(preset::http_server_with(timing, shed, &flow));

    let admin = flow.admin().bind("127.0.0.1:9090".parse()?).await?;
    println!("live on http://{}/", admin.local_addr());
    tokio::spawn(admin.run());

    let listener = TcpListener::bind("127.0.0.1:8080").await?;
    println!("serving on http://{}/hello", listener.local_addr()?);
    let connections = Connections::server("web").attach(&flow);
    axum::serve(Watched(listener, connections), app)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
