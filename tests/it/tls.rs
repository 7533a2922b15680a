//! TLS for connectors, against real hyper servers with rustls.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{Connection, HttpConnector, HttpInfo};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tower::{Service, ServiceExt, service_fn};
use tower_flow::clock;
use tower_flow::error::find;
use tower_flow::phases::Phase;
use tower_flow::pool::connect::rustls::{self, CertificateError, HandshakeKind};
use tower_flow::pool::connect::{
    self, Alpn, Connect, Resolve, TlsConnector, TlsError, TlsErrorKind, TlsIo,
};

use crate::connect::dial;
use crate::support::certs::{Ca, serve};

type Sockets = TokioIo<tokio::net::TcpStream>;

/// A connector, for whom every name is this machine, that trusts `ca`.
fn trusting(
    ca: &Ca,
) -> TlsConnector<
    impl Service<Uri, Response = Sockets, Error = tower_flow::BoxError, Future: Send + Unpin>
    + Clone
    + Send
    + Sync
    + 'static,
> {
    let local = service_fn(async |_: Name| {
        Ok::<_, std::io::Error>(std::iter::once(SocketAddr::from(([127, 0, 0, 1], 0))))
    });
    let mut sockets = HttpConnector::new_with_resolver(Resolve::new(local));
    sockets.enforce_http(false);
    TlsConnector::new(Connect::new(sockets)).roots(ca.roots())
}

async fn local() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn to(name: &str, address: SocketAddr) -> Uri {
    format!("https://{name}:{}/", address.port())
        .parse()
        .unwrap()
}

async fn failure<C>(connector: C, to: Uri) -> TlsError
where
    C: Service<Uri, Response = TlsIo<Sockets>, Error = tower_flow::BoxError>,
{
    *connector.oneshot(to).await.unwrap_err().downcast().unwrap()
}

/// A request over `connector`: its version and what the server has to say of it.
async fn get<C>(connector: TlsConnector<C>, to: Uri) -> (Version, String)
where
    TlsConnector<C>: Service<Uri, Response = TlsIo<Sockets>, Error = tower_flow::BoxError>
        + Clone
        + Send
        + Sync
        + 'static,
    <TlsConnector<C> as Service<Uri>>::Future: Send + Unpin,
{
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let response = client.get(to).await.unwrap();
    let peer: &HttpInfo = response.extensions().get().unwrap();
    assert!(
        peer.remote_addr().ip().is_loopback(),
        "the inner connection's extras are kept"
    );
    let version = response.version();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (version, String::from_utf8(body.into()).unwrap())
}

#[tokio::test]
async fn a_server_that_can_speaks_http2() {
    let ca = Ca::new();
    let server = ca.certify(["stock.test"]).server(["h2", "http/1.1"]);
    let address = serve(local().await, server);
    let (version, body) = get(trusting(&ca), to("stock.test", address)).await;
    assert_eq!(version, Version::HTTP_2);
    assert_eq!(body, "HTTP/2.0 Full certified=false");
}

#[tokio::test]
async fn a_server_that_cannot_speaks_http1() {
    let ca = Ca::new();
    for alpn in [&["http/1.1"][..], &[]] {
        let mut server = ca.certify(["stock.test"]).server([]);
        server.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let address = serve(local().await, server);
        let to = to("stock.test", address);
        let io = trusting(&ca).oneshot(to.clone()).await.unwrap();
        assert!(!io.connected().is_negotiated_h2());
        let (version, body) = get(trusting(&ca), to.clone()).await;
        assert_eq!(version, Version::HTTP_11);
        assert!(body.starts_with("HTTP/1.1"), "{body}");
        let error = failure(trusting(&ca).alpn(Alpn::Http2), to).await;
        assert_eq!(error.kind(), TlsErrorKind::Protocol, "{error}");
    }
}

#[tokio::test]
async fn what_is_offered_can_be_chosen() {
    let ca = Ca::new();
    let server = ca.certify(["stock.test"]).server(["h2", "http/1.1"]);
    let address = serve(local().await, server);
    let chosen = async |connector: TlsConnector<_>| {
        let io = connector.oneshot(to("stock.test", address)).await.unwrap();
        let alpn = io.session().unwrap().alpn_protocol().unwrap().to_vec();
        assert_eq!(io.connected().is_negotiated_h2(), alpn == b"h2");
        String::from_utf8(alpn).unwrap()
    };
    assert_eq!(chosen(trusting(&ca)).await, "h2");
    assert_eq!(chosen(trusting(&ca).alpn(Alpn::Http2)).await, "h2");
    assert_eq!(chosen(trusting(&ca).alpn(Alpn::Http1)).await, "http/1.1");
    // A configuration's own list stays, whichever way round it is said.
    let config = || {
        let mut config = connect::client_config()
            .with_root_certificates(ca.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    };
    assert_eq!(chosen(trusting(&ca).config(config())).await, "http/1.1");
    let both = trusting(&ca).alpn(Alpn::Http2).config(config());
    assert_eq!(chosen(both).await, "h2");
}

#[tokio::test]
async fn the_second_connection_resumes_the_first_ones_session() {
    let ca = Ca::new();
    let server = ca.certify(["stock.test"]).server(["http/1.1"]);
    let address = serve(local().await, server);
    let connector = trusting(&ca);
    // Each client has connections of its own; the clones of a connector have the sessions in common. The first one
    // reads an answer, and with it the tickets.
    let (_, first) = get(connector.clone(), to("stock.test", address)).await;
    let (_, second) = get(connector.clone(), to("stock.test", address)).await;
    assert_eq!(first, "HTTP/1.1 Full certified=false");
    assert_eq!(second, "HTTP/1.1 Resumed certified=false");
    let io = connector.oneshot(to("stock.test", address)).await.unwrap();
    let kind = io.session().unwrap().handshake_kind();
    assert_eq!(kind, Some(HandshakeKind::Resumed), "the client knows too");
    let (_, other) = get(trusting(&ca), to("stock.test", address)).await;
    assert_eq!(
        other, "HTTP/1.1 Full certified=false",
        "another connector knows nothing"
    );
}

#[tokio::test]
async fn a_certificate_not_to_be_trusted_is_an_error_that_says_why() {
    let ca = Ca::new();
    let good = serve(local().await, ca.certify(["stock.test"]).server([]));
    let stale = serve(local().await, ca.expired(["stock.test"]).server([]));
    let why = |error: &TlsError| {
        assert_eq!(error.kind(), TlsErrorKind::Certificate);
        let Some(rustls::Error::InvalidCertificate(why)) = find(error) else {
            panic!("{error:?}")
        };
        why.clone()
    };
    let wrong_name = failure(trusting(&ca), to("other.test", good)).await;
    assert_eq!(wrong_name.host(), "other.test");
    assert!(matches!(
        why(&wrong_name),
        CertificateError::NotValidForNameContext { .. }
    ));
    let unknown = failure(trusting(&Ca::new()), to("stock.test", good)).await;
    assert_eq!(why(&unknown), CertificateError::UnknownIssuer);
    // By default the world's authorities are trusted, and this is none.
    let usual = connect::https();
    let by_name = to(
        "localhost",
        serve(local().await, ca.certify(["localhost"]).server([])),
    );
    let unknown = failure(usual, by_name).await;
    assert_eq!(why(&unknown), CertificateError::UnknownIssuer);
    let expired = failure(trusting(&ca), to("stock.test", stale)).await;
    assert!(matches!(
        why(&expired),
        CertificateError::ExpiredContext { .. }
    ));
    assert_eq!(
        expired.to_string(),
        "the certificate of stock.test is not to be trusted"
    );
}

#[tokio::test]
async fn the_phases_of_a_dial_are_told_in_order() {
    let ca = Ca::new();
    let address = serve(local().await, ca.certify(["stock.test"]).server([]));
    let (connecting, log) = dial();
    let io = connecting
        .scope(trusting(&ca).oneshot(to("stock.test", address)))
        .await
        .unwrap();
    assert!(io.session().is_some());
    let expected = [
        "dns starts",
        "dns ends",
        "connect starts",
        "connect ends",
        "tls starts",
        "tls ends",
    ];
    assert_eq!(log.told(), expected);
    let (failing, log) = dial();
    failing
        .scope(trusting(&ca).oneshot(to("other.test", address)))
        .await
        .unwrap_err();
    assert_eq!(log.told().last().unwrap(), "tls fails");
    assert_eq!(failing.phase(), Some(Phase::Tls));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up_on_in_phase_tls() {
    let ca = Ca::new();
    let listener = local().await;
    let address = listener.local_addr().unwrap();
    // It takes connections and says nothing.
    let silent = tokio::spawn(async move {
        let mut taken = Vec::new();
        loop {
            taken.push(listener.accept().await.unwrap());
        }
    });
    let (connecting, log) = dial();
    let start = clock::now();
    let error = connecting
        .scope(trusting(&ca).oneshot(to("stock.test", address)))
        .await
        .unwrap_err();
    let error: &TlsError = find(&*error).unwrap();
    let limit = Duration::from_secs(10);
    assert_eq!(clock::now() - start, limit);
    assert_eq!(error.kind(), TlsErrorKind::Timeout(limit));
    assert_eq!(
        error.to_string(),
        "stock.test did not finish its TLS handshake within 10s"
    );
    assert_eq!(connecting.phase(), Some(Phase::Tls));
    assert_eq!(connecting.duration(Phase::Tls), Some(limit));
    assert_eq!(log.told().last().unwrap(), "tls fails");

    // Somebody with less patience gives up from outside.
    let (abandoned, log) = dial();
    let dialling = abandoned.scope(trusting(&ca).oneshot(to("stock.test", address)));
    tokio::time::timeout(Duration::from_secs(1), dialling)
        .await
        .unwrap_err();
    assert_eq!(abandoned.phase(), Some(Phase::Tls));
    assert_eq!(log.told().last().unwrap(), "tls fails");
    silent.abort();
}

#[tokio::test]
async fn a_server_without_tls_is_found_out() {
    let listener = local().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = hyper::service::service_fn(async |_| {
                Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
            });
            let io = TokioIo::new(socket);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    let ca = Ca::new();
    let error = failure(trusting(&ca), to("stock.test", address)).await;
    assert_eq!(error.kind(), TlsErrorKind::NotTls, "{error:?}");
    // And by its own name it is served in plain.
    let plain: Uri = format!("http://stock.test:{}/", address.port())
        .parse()
        .unwrap();
    let (connecting, log) = dial();
    let io = connecting
        .scope(trusting(&ca).oneshot(plain.clone()))
        .await
        .unwrap();
    assert!(io.session().is_none() && !io.connected().is_negotiated_h2());
    assert!(!log.told().iter().any(|told| told.starts_with("tls")));
    let (version, body) = get(trusting(&ca), plain).await;
    assert_eq!((version, &*body), (Version::HTTP_11, ""));
}

#[tokio::test]
async fn an_address_is_certified_like_a_name() {
    let ca = Ca::new();
    for host in ["127.0.0.1", "[::1]"] {
        let Ok(listener) = TcpListener::bind(format!("{host}:0")).await else {
            eprintln!("skipped: {host} cannot be bound");
            continue;
        };
        let bare = host.trim_matches(['[', ']']);
        let address = serve(listener, ca.certify([bare]).server(["h2"]));
        let (version, _) = get(trusting(&ca), to(host, address)).await;
        assert_eq!(version, Version::HTTP_2);
    }
    // A certificate for a name is none for its address.
    let address = serve(local().await, ca.certify(["stock.test"]).server([]));
    let error = failure(trusting(&ca), to("127.0.0.1", address)).await;
    assert_eq!(error.kind(), TlsErrorKind::Certificate);
}

#[tokio::test]
async fn a_client_shows_its_certificate() {
    let ca = Ca::new();
    let server = ca.certify(["stock.test"]).mutual(&ca);
    let address = serve(local().await, server);
    let client = ca.certify(["client.test"]);
    let config = connect::client_config()
        .with_root_certificates(ca.roots())
        .with_client_auth_cert(client.chain, client.key)
        .unwrap();
    let (version, body) = get(trusting(&ca).config(config), to("stock.test", address)).await;
    assert_eq!(version, Version::HTTP_2, "the usual protocols are offered");
    assert_eq!(body, "HTTP/2.0 Full certified=true");
}

#[tokio::test]
async fn what_cannot_be_connected_to_is_refused_before_it_is() {
    let ca = Ca::new();
    let ftp = failure(trusting(&ca), "ftp://stock.test/".parse().unwrap()).await;
    assert_eq!(ftp.kind(), TlsErrorKind::Scheme);
    let path = failure(trusting(&ca), "/only/a/path".parse().unwrap()).await;
    assert_eq!(path.kind(), TlsErrorKind::Scheme);
    let name = failure(trusting(&ca), "https://-.-/".parse().unwrap()).await;
    assert_eq!(name.kind(), TlsErrorKind::Name);
    let reset = local().await;
    let address = reset.local_addr().unwrap();
    tokio::spawn(async move { drop(reset.accept().await) });
    let error = failure(trusting(&ca), to("stock.test", address)).await;
    assert_eq!(error.kind(), TlsErrorKind::Handshake);
    assert!(find::<std::io::Error>(&error).is_some(), "{error:?}");
}
