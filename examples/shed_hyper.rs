//! A hyper server that sheds what it cannot do in time: `cargo run --features full --example shed_hyper`
//!
//! It has four desks and answers about 80 requests a second. Let 200 callers ask at once, and count the answers:
//!
//! ```console
//! seq 2000 | xargs -P 200 -I{} curl -s -o /dev/null -w '%{http_code} after %header{retry-after} s\n' \
//!     http://127.0.0.1:8080/ | sort | uniq -c
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::{Service, ServiceBuilder, service_fn};
use tower_flow::Flow;
use tower_flow::shed::ShedLayer;

async fn handle(desks: Arc<Semaphore>) -> Result<Response<Full<Bytes>>, Infallible> {
    let desk = desks.acquire().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(desk);
    Ok(Response::new(Full::from("hello\n")))
}

/// Whoever is refused gets a 503 with `Retry-After`, and no connection is cut: the service still cannot fail.
fn never_fails<S>(service: S) -> S
where
    S: Service<Request<Incoming>, Error = Infallible>,
{
    service
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flow = Flow::new("hello");
    let desks = Arc::new(Semaphore::new(4));
    let service = ServiceBuilder::new()
        .layer(ShedLayer::adaptive().http().attach(&flow))
        .service(service_fn(move |_: Request<Incoming>| {
            handle(desks.clone())
        }));
    let service = TowerToHyperService::new(never_fails(service));

    let admin = flow.admin().bind("127.0.0.1:9090".parse()?).await?;
    println!("live on http://{}/snapshot.json", admin.local_addr());
    tokio::spawn(admin.run());

    let listener = TcpListener::bind("127.0.0.1:8080").await?;
    println!("serving on http://{}/", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        // All connections share the layer's gate, and so one limit.
        let service = service.clone();
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is its client's loss; there is nobody to tell.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
