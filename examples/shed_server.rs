//! A tonic server that sheds what it cannot do in time: `cargo run --features full --example shed_server`
//!
//! Its database answers about 80 queries a second. Let 200 callers ask at once, and count what they are told:
//!
//! ```console
//! printf '\0\0\0\0\0' >empty
//! seq 2000 | xargs -P 200 -I{} curl -s -o /dev/null -D - --http2-prior-knowledge --data-binary @empty \
//!     -H 'content-type: application/grpc' -H 'grpc-timeout: 2S' -H 'x-priority: sheddable' \
//!     http://127.0.0.1:50051/tower_flow.example.v1.Echo/Say | grep grpc-status | sort | uniq -c
//! ```

#[path = "echo/mod.rs"]
mod echo;

use std::error::Error;
use std::time::Duration;

use echo::Bounded;
use http::HeaderName;
use tonic::transport::Server;
use tower_flow::Flow;
use tower_flow::shed::ShedLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flow = Flow::new("echo");

    // Nothing here says how much the database bears: the layer finds out. Who is critical is let in first and refused
    // last; callers tell, since all of them are ours.
    let shed = ShedLayer::adaptive()
        .grpc()
        .priority_header(HeaderName::from_static("x-priority"))
        .attach(&flow);

    let admin = flow.admin().bind("127.0.0.1:9090".parse()?).await?;
    println!("live on http://{}/snapshot.json", admin.local_addr());
    tokio::spawn(admin.run());

    println!("serving on http://127.0.0.1:50051");
    Server::builder()
        .layer(shed)
        .add_service(Bounded::new(4, Duration::from_millis(50)).server())
        .serve_with_shutdown("127.0.0.1:50051".parse()?, async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
