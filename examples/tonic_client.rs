//! A tonic client that knows what its calls did: `cargo run --features full --example tonic_client`
//!
//! It calls the server of `--example tonic_server`, or the address given as its argument.

#[path = "echo/mod.rs"]
mod echo;

use std::error::Error;
use std::time::Duration;

use echo::{EchoClient, Note};
use tonic::transport::Endpoint;
use tower::ServiceBuilder;
use tower_flow::{Flow, preset};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().nth(1);
    let server = server.unwrap_or_else(|| "http://127.0.0.1:50051".to_owned());

    let flow = Flow::new("caller");
    let channel = Endpoint::from_shared(server)?.connect().await?;
    let mut client = EchoClient::new(
        ServiceBuilder::new()
            .layer(preset::grpc_client(&flow))
            .service(channel),
    );

    for n in 0..100 {
        let note = Note {
            body: vec![0; n * 100],
            fail: if n % 10 == 0 { 5 } else { 0 },
            ..Note::default()
        };
        let mut request = tonic::Request::new(note);
        request.set_timeout(Duration::from_secs(1));
        // A tenth of them is asked to fail; the books below will say so.
        let _ = client.say(request).await;
    }
    let notes = (0..50).map(|_| Note::default());
    client.gather(tokio_stream::iter(notes)).await?;

    for layer in flow.attached() {
        println!("{} {}: {}", layer.kind(), layer.name(), layer.snapshot());
    }
    Ok(())
}
