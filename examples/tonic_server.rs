//! A tonic server that is accounted, timed, and seen live: `cargo run --features full --example tonic_server`
//!
//! Then call it with `--example tonic_client`, and look at the address it prints.

#[path = "echo/mod.rs"]
mod echo;

use std::error::Error;
use std::time::Duration;

use echo::{Echo, EchoServer, FDS};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower_flow::Flow;
use tower_flow::connection::Connections;
use tower_flow::grpc::GrpcServerLayer;
use tower_flow::preset::ByPath;
use tower_flow::timing::TimingLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flow = Flow::new("echo");

    // What preset::grpc_server(&flow) does, with two options of our own: every method's type is known from the
    // descriptor set, and the server's time limit tells a deadline from a cancel.
    let timing = TimingLayer::new("grpc").route_with(ByPath).attach(&flow);
    let accounting = GrpcServerLayer::new()
        .register_fds(FDS)?
        .server_timeout(Duration::from_secs(10))
        .attach(&flow)
        .along(timing.http().grpc());
    let connections = Connections::server("grpc").attach(&flow);

    let admin = flow.admin().bind("127.0.0.1:9090".parse()?).await?;
    println!("live on http://{}/", admin.local_addr());
    tokio::spawn(admin.run());

    let incoming = TcpIncoming::bind("127.0.0.1:50051".parse()?)?.with_nodelay(Some(true));
    println!("serving on http://{}", incoming.local_addr()?);
    Server::builder()
        .timeout(Duration::from_secs(10))
        .layer(accounting)
        .layer(connections.streams())
        .add_service(EchoServer::new(Echo))
        .serve_with_incoming_shutdown(connections.incoming(incoming), async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
