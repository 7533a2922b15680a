//! Connection tracking under paused time; `stack_tonic` and `stack_hyper` have it on real sockets.

use std::time::Duration;

use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::{Layer, ServiceExt, service_fn};
use tower_flow::connection::{Connection, ConnectionState, Connections};
use tower_flow::{BoxError, Flow};

use crate::support::{Steps, data, value};

#[tokio::test(start_paused = true)]
async fn age_activity_state_and_bytes_are_told() {
    let flow = Flow::new("t");
    let connections = Connections::server("t").attach(&flow);
    let (mut peer, io) = tokio::io::duplex(1024);
    let mut io = connections.accept_from(io, "somebody");
    let connection = io.connection().clone();
    let seconds = Duration::from_secs;

    tokio::time::advance(seconds(5)).await;
    peer.write_all(b"hello").await.unwrap();
    io.read_exact(&mut [0; 5]).await.unwrap();
    io.write_all(b"hi").await.unwrap();
    tokio::time::advance(seconds(3)).await;
    assert_eq!(
        (connection.age(), connection.quiet()),
        (seconds(8), seconds(3))
    );
    assert_eq!(
        (connection.bytes_read(), connection.bytes_written()),
        (5, 2)
    );
    assert_eq!(connection.state(), ConnectionState::Idle);

    let inner = service_fn(async |req: Request<()>| {
        assert!(
            req.extensions().get::<Connection>().is_some(),
            "a handler can ask for it"
        );
        Ok::<_, BoxError>(Response::new(Steps::new([data(b"a")])))
    });
    let response = connection
        .service(inner)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    assert_eq!(
        connection.state(),
        ConnectionState::Active(1),
        "until the body ends"
    );
    drop(response);
    assert_eq!(
        (connection.state(), connection.streams()),
        (ConnectionState::Idle, 1)
    );

    let listed = connections.snapshot().connections;
    assert_eq!((listed.len(), listed[0].peer.as_str()), (1, "somebody"));
    drop(io);
    let after = connections.snapshot();
    assert_eq!((after.opened, after.closed, after.open), (1, 1, 0));
    assert_eq!(
        (after.bytes_read, after.bytes_written, after.streams),
        (5, 2, 1),
        "what closed is not forgotten"
    );
    let ages = value(
        &flow.families(),
        "tower_flow_connections_age_seconds",
        &[("name", "t")],
    );
    assert_eq!(ages, Some(1.0));
}

#[tokio::test]
async fn ids_rise_and_a_request_without_a_connection_passes() {
    let connections = Connections::server("t");
    let ids: Vec<_> = (0..10)
        .map(|_| connections.accept(()).connection().id())
        .collect();
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
    assert_eq!(connections.snapshot().closed, 10);
    let inner =
        service_fn(async |_: Request<()>| Ok::<_, BoxError>(Response::new(Steps::default())));
    connections
        .streams()
        .layer(inner)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    assert_eq!(connections.snapshot().streams, 0);
}
