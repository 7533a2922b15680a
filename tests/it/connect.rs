//! Connectors that tell the phases of a dial.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tower::{ServiceExt, service_fn};
use tower_flow::clock;
use tower_flow::error::find;
use tower_flow::phases::{Dial, DialObserver, Phase};
use tower_flow::pool::connect::{self, Connect, NoHttps, Resolve, ResolveTimeout};

/// What happens in a dial, in the words of the phases.
#[derive(Default)]
pub struct Log(Mutex<Vec<String>>);

impl Log {
    pub fn told(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl DialObserver for Log {
    fn started(&self, phase: Phase) {
        self.0.lock().unwrap().push(format!("{phase} starts"));
    }

    fn ended(&self, phase: Phase, failed: bool) {
        let how = if failed { "fails" } else { "ends" };
        self.0.lock().unwrap().push(format!("{phase} {how}"));
    }
}

/// A dial, and the log of what is told of it.
pub fn dial() -> (Dial, Arc<Log>) {
    let log = Arc::new(Log::default());
    (Dial::observed(clock::now(), log.clone()), log)
}

type Answer = Result<std::iter::Once<SocketAddr>, std::io::Error>;

/// A connector for which every name is `address`, after `wait`.
fn known(
    address: SocketAddr,
    wait: Duration,
) -> Connect<
    HttpConnector<
        Resolve<
            impl tower::Service<
                Name,
                Response = std::iter::Once<SocketAddr>,
                Error = std::io::Error,
                Future: Send,
            > + Clone
            + Send
            + Sync
            + 'static,
        >,
    >,
> {
    let resolver = service_fn(move |_: Name| async move {
        tokio::time::sleep(wait).await;
        Answer::Ok(std::iter::once(address))
    });
    let resolver = Resolve::new(resolver).timeout(Duration::from_secs(2));
    Connect::new(HttpConnector::new_with_resolver(resolver))
}

fn uri(text: &str) -> Uri {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn dns_and_connect_are_told_one_after_the_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = known(listener.local_addr().unwrap(), Duration::from_millis(30));
    let (dial, log) = dial();
    let to = uri(&format!(
        "http://stock.test:{}/",
        listener.local_addr().unwrap().port()
    ));
    dial.scope(connector.oneshot(to)).await.unwrap();
    let expected = ["dns starts", "dns ends", "connect starts", "connect ends"];
    assert_eq!(log.told(), expected);
    assert!(dial.duration(Phase::Dns).unwrap() >= Duration::from_millis(30));
    assert!(dial.duration(Phase::Connect).is_some());
    assert_eq!(dial.phase(), None);
}

#[tokio::test]
async fn an_address_is_connected_to_at_once() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(at).await else {
            eprintln!("skipped: {at} cannot be bound");
            continue;
        };
        let (dial, log) = dial();
        let to = uri(&format!("http://{}/", listener.local_addr().unwrap()));
        let io = dial.scope(connect::http().oneshot(to)).await.unwrap();
        assert_eq!(log.told(), ["connect starts", "connect ends"]);
        assert!(io.inner().nodelay().unwrap());
    }
}

#[tokio::test]
async fn getaddrinfo_is_told_as_dns() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dial, log) = dial();
    let port = listener.local_addr().unwrap().port();
    let to = uri(&format!("http://localhost:{port}/"));
    dial.scope(connect::http().oneshot(to)).await.unwrap();
    let expected = ["dns starts", "dns ends", "connect starts", "connect ends"];
    assert_eq!(log.told(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_slow_lookup_ends_by_its_own_timeout() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let connector = known(nowhere, Duration::from_secs(60));
    let (dial, log) = dial();
    let start = clock::now();
    let error = dial
        .scope(connector.oneshot(uri("http://stock.test/")))
        .await
        .unwrap_err();
    let late: &ResolveTimeout = find(&*error).unwrap();
    assert_eq!(late.to_string(), "stock.test was not resolved within 2s");
    assert_eq!(clock::now() - start, Duration::from_secs(2));
    assert_eq!(log.told(), ["dns starts", "dns fails"]);
    assert_eq!(dial.phase(), Some(Phase::Dns));
}

#[tokio::test]
async fn failures_are_told_in_their_phase() {
    let broken = service_fn(async |_: Name| Answer::Err(std::io::Error::other("no such host")));
    let sockets = HttpConnector::new_with_resolver(Resolve::new(broken));
    let (failing, log) = dial();
    let connecting = Connect::new(sockets).oneshot(uri("http://stock.test/"));
    failing.scope(connecting).await.unwrap_err();
    assert_eq!(log.told(), ["dns starts", "dns fails"]);

    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = uri(&format!("http://{}/", free.local_addr().unwrap()));
    drop(free);
    let (refused, log) = dial();
    let error = refused
        .scope(connect::http().oneshot(to))
        .await
        .unwrap_err();
    assert_eq!(log.told(), ["connect starts", "connect fails"]);
    assert_eq!(refused.phase(), Some(Phase::Connect));
    let cause: &std::io::Error = find(&*error).unwrap();
    assert_eq!(cause.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_tells_nothing_is_connecting_from_the_start() {
    let silent = service_fn(async |_: Uri| {
        tokio::time::sleep(Duration::from_millis(40)).await;
        Ok::<_, std::io::Error>(())
    });
    let (dial, log) = dial();
    dial.scope(Connect::new(silent).oneshot(uri("http://stock.test/")))
        .await
        .unwrap();
    assert_eq!(log.told(), ["connect starts", "connect ends"]);
    assert_eq!(
        dial.duration(Phase::Connect),
        Some(Duration::from_millis(40))
    );
    // And outside of a dial nothing is marked.
    let silent = service_fn(async |_: Uri| Ok::<_, std::io::Error>(()));
    Connect::new(silent)
        .oneshot(uri("http://stock.test/"))
        .await
        .unwrap();
}

#[tokio::test]
async fn https_is_not_sent_in_the_clear() {
    let to = uri("https://127.0.0.1:1/");
    let error = connect::http().oneshot(to).await.unwrap_err();
    let refused: &NoHttps = find(&*error).unwrap();
    assert_eq!(refused.host, "127.0.0.1");
    let client: Client<_, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build(connect::http());
    let error = client.get(uri("https://127.0.0.1:1/")).await.unwrap_err();
    assert!(find::<NoHttps>(&error).is_some(), "{error:?}");
}
