//! Controls: where hyper-util's own client fails what is asked of the pool. Should one of these fail some day, the
//! client has learned it, and the sentence in our docs that says otherwise must go.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;
use tower_flow::BoxError;

use super::network::{Connector, Dial, Network, Wire};
use super::{Payload, get, ms, named, rest, secs, tasks, text};

fn client(net: &Network) -> Client<Connector, Payload> {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build(net.connector())
}

// ===== 5 =====

#[tokio::test(start_paused = true)]
async fn c05_a_thousand_first_requests_make_a_thousand_dials() {
    for h2 in [true, false] {
        let net = Network::new();
        let host = net.host("a.test");
        host.dial(Dial::Takes(ms(10)));
        if h2 {
            host.http2(2_000);
        }
        let client = client(&net);
        let asked: Vec<_> = (0..1_000)
            .map(|_| tokio::spawn(client.request(get(host.uri("/")))))
            .collect();
        for response in asked {
            assert_eq!(text(response.await.unwrap().unwrap()).await, "hello");
        }
        assert_eq!(host.dialling.peak(), 1_000);
        assert!(host.alive.total() > 64, "{}", host.alive.total());
    }
}

// ===== 8 =====

// hyper#3199
#[tokio::test(start_paused = true)]
async fn c08_followers_fail_when_the_leader_of_an_h2_dial_is_cancelled() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(100).dial(Dial::Takes(ms(100)));
    let client: Client<_, Payload> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build(net.connector());
    let leader = tokio::spawn(client.request(get(host.uri("/"))));
    rest().await;
    let follower = tokio::spawn(client.request(get(host.uri("/"))));
    rest().await;
    leader.abort();
    let error = follower
        .await
        .unwrap()
        .expect_err("the dial goes on without its leader");
    assert!(error.is_connect(), "{error:?}");
}

// ===== 11 =====

/// A cap in the connector: the permit lives in the IO, as one would write it by hand.
#[derive(Clone)]
struct Capped(Connector, Arc<Semaphore>);

struct CappedWire(Wire, #[allow(dead_code)] OwnedSemaphorePermit);

impl Service<Uri> for Capped {
    type Response = CappedWire;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<CappedWire, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut this = self.clone();
        Box::pin(async move {
            let permit = this.1.acquire_owned().await?;
            Ok(CappedWire(this.0.call(uri).await?, permit))
        })
    }
}

impl Connection for CappedWire {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

impl Read for CappedWire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for CappedWire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn c11_each_wait_leaves_a_ghost_behind_a_capped_connector() {
    let net = Network::new();
    let host = net.host("a.test");
    let client: Client<_, Payload> = Client::builder(TokioExecutor::new())
        .build(Capped(net.connector(), Arc::new(Semaphore::new(1))));
    let mut running = tokio::spawn(client.request(named(0, host.uri("/hold"))));
    rest().await;
    let before = tasks();
    for id in 1..=100 {
        let next = tokio::spawn(client.request(named(id, host.uri("/hold"))));
        rest().await;
        host.release();
        assert_eq!(text(running.await.unwrap().unwrap()).await, "held");
        rest().await;
        running = next;
    }
    host.release();
    assert_eq!(text(running.await.unwrap().unwrap()).await, "held");
    rest().await;
    let ghosts = tasks().saturating_sub(before - 1);
    assert!(ghosts >= 100, "{ghosts} dials that nobody waits for");
    // They hold the client's pool, and with it the connection.
    drop(client);
    tokio::time::sleep(secs(3_600)).await;
    assert_eq!(host.alive.now(), 1, "nobody is left to use it");
}

// ===== the network itself =====

// A client that is known to work shows that the network does what its tests rely on.

#[tokio::test(start_paused = true)]
async fn the_network_changes_limits_and_sends_goaway_as_told() {
    let net = Network::new();
    let host = net.host("a.test");
    host.http2(5);
    let client = client(&net);
    let first = client.request(get(host.uri("/stream"))).await.unwrap();
    let old = host.conn();
    assert_eq!(old.wire.lock().unwrap().limit, 5);
    old.settings(1);
    rest().await;
    let next = tokio::spawn(client.request(named("next", host.uri("/stream"))));
    rest().await;
    // The client has no idea: its request sits in hyper's own queue, where nothing bounds it.
    assert_eq!((host.arrived(), host.open.total()), (1, 1));
    drop(host.stream());
    assert_eq!(text(first).await, "");
    let next = next.await.unwrap().unwrap();
    let (limit, peak, over, streams) = {
        let wire = old.wire.lock().unwrap();
        (wire.limit, wire.peak, wire.over, wire.streams())
    };
    assert_eq!((limit, peak, over, streams), (1, 1, 0, 1));

    old.goaway();
    rest().await;
    let response = client.request(get(host.uri("/"))).await.unwrap();
    assert_eq!((super::conn(&response), host.open.now()), (2, 2));
    text(response).await;
    drop(host.stream_of("next"));
    assert_eq!(text(next).await, "");
    rest().await;
    assert_eq!((host.open.now(), net.served.now()), (1, 1));

    // A stream above the last one named is not served.
    let long = client.request(get(host.uri("/stream"))).await.unwrap();
    let asked = tokio::spawn(client.request(named("cut off", host.uri("/"))));
    host.conn().goaway_after(3);
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(net.seen("cut off"), 0, "{error}");
    drop(host.stream());
    assert_eq!(text(long).await, "");
}
