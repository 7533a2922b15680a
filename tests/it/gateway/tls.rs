//! TLS at either end.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tower_flow::pool::connect::rustls::pki_types::{PrivateKeyDer, ServerName, pem::PemObject};
use tower_flow::pool::connect::rustls::{self, ClientConfig, ServerConfig, crypto};

use super::forward::noise;
use super::http2::{connect, exchange, gateway, handshake, request};
use super::raw::Conn;
use super::upstream::Upstream;
use crate::support::certs::{Ca, Identity};
use crate::support::scratch;

/// The files `--tls-cert` and `--tls-key` want.
fn files(identity: &Identity) -> (String, String) {
    let dir = scratch("gateway-tls");
    let write = |name: &str, label: &str, ders: &[&[u8]]| {
        let path = dir.join(name);
        let text: String = ders.iter().map(|der| pem(label, der)).collect();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let chain: Vec<&[u8]> = identity.chain.iter().map(|der| der.as_ref()).collect();
    (
        write("cert.pem", "CERTIFICATE", &chain),
        write("key.pem", "PRIVATE KEY", &[identity.key.secret_der()]),
    )
}

fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let bits = three
                .iter()
                .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - three.len()));
            for digit in 0..4 {
                let missing = digit > three.len();
                let index = (bits >> (18 - 6 * digit)) as usize & 63;
                text.push(if missing { '=' } else { DIGITS[index].into() });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// The file `--upstream-ca` wants.
fn ca_file(ca: &Ca) -> String {
    let path = scratch("gateway-ca").join("ca.pem");
    std::fs::write(&path, pem("CERTIFICATE", ca.der())).unwrap();
    path.to_str().unwrap().to_owned()
}

fn client_config(
    ca: &Ca,
    alpn: &[&str],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let ring = Arc::new(crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(ring)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(ca.roots())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

async fn tls(
    addr: SocketAddr,
    config: ClientConfig,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_clients_get_the_protocol_they_ask_for() {
    let ca = Ca::new();
    let identity = ca.certify(["localhost"]);
    let (cert, key) = files(&identity);
    PrivateKeyDer::from_pem_file(&key).expect("it is PEM");
    let upstream = Upstream::echo();
    let front = gateway(&upstream.url(), &["--tls-cert", &cert, "--tls-key", &key]).await;
    assert!(front.url.starts_with("https://"));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let body = noise(200_000);
        let io = tls(
            front.addr,
            client_config(&ca, &["h2", "http/1.1"], &[version]),
        )
        .await
        .unwrap();
        assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let sender = handshake(io).await;
        let req = Request::post("https://localhost/h2").body(()).unwrap();
        let (response, _) = exchange(&sender, req, &body, None).await.unwrap();
        assert!(*response.body() == body);

        for alpn in [&["http/1.1"][..], &[]] {
            let mut io = tls(front.addr, client_config(&ca, alpn, &[version]))
                .await
                .unwrap();
            assert_eq!(
                io.get_ref().1.alpn_protocol(),
                alpn.first().map(|name| name.as_bytes())
            );
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            io.write_all(b"POST /h1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
            let mut answer = Vec::new();
            // Without close_notify this fails: a body that ends so may have been cut.
            io.read_to_end(&mut answer).await.expect("an orderly end");
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
                "{answer}"
            );
        }
    }
    assert!(
        tls(
            front.addr,
            client_config(&ca, &["spdy/3"], &[&rustls::version::TLS13])
        )
        .await
        .is_err(),
        "a protocol nobody speaks"
    );
    let seen = upstream.requests();
    assert_eq!(seen.len(), 6);
    for request in seen {
        assert_eq!(request.head.get("x-forwarded-proto"), Some("https"));
        assert!(request.head.list("forwarded")[0].contains("proto=https"));
    }
    // One that does not speak TLS at all.
    let addr = front.addr;
    let plain = tokio::task::spawn_blocking(move || {
        let mut client = Conn::open(addr);
        client.send(super::get("/"));
        client.try_head().is_ok_and(|head| head.status() == 200)
    });
    assert!(!plain.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_upstreams_are_asked_by_the_protocol_they_choose() {
    for alpn in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
        let ca = Ca::new();
        let mut config: ServerConfig = ca.certify(["localhost", "127.0.0.1"]).server([]);
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = crate::support::certs::serve(listener, config);
        let trust = ca_file(&ca);
        let front = gateway(
            &format!("https://127.0.0.1:{}", addr.port()),
            &["--upstream-ca", &trust],
        )
        .await;
        let sender = connect(front.addr).await;
        let (response, _) = exchange(&sender, request("GET", "/").body(()).unwrap(), b"", None)
            .await
            .unwrap();
        let version = if alpn.contains(&"h2") {
            "HTTP/2.0"
        } else {
            "HTTP/1.1"
        };
        let told = String::from_utf8_lossy(response.body()).into_owned();
        assert!(
            response.status() == 200 && told.starts_with(version),
            "{alpn:?}: {response:?} {told}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_with_a_wrong_certificate_gets_nothing() {
    let ca = Ca::new();
    let other = Ca::new();
    let trust = ca_file(&ca);
    for (what, config) in [
        (
            "another name",
            ca.certify(["elsewhere.example"]).server(["http/1.1"]),
        ),
        ("expired", ca.expired(["127.0.0.1"]).server(["http/1.1"])),
        (
            "another authority",
            other.certify(["127.0.0.1"]).server(["http/1.1"]),
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let read = async {
                    use tokio::io::AsyncReadExt;
                    let mut io = acceptor.accept(socket).await.ok()?;
                    let mut some = [0; 100];
                    let read = io.read(&mut some).await.ok()?;
                    (read > 0).then(|| some[..read].to_vec())
                };
                if let Some(leaked) = read.await {
                    let _ = told.send(leaked);
                }
            }
        });
        let front = gateway(&format!("https://{addr}"), &["--upstream-ca", &trust]).await;
        let sender = connect(front.addr).await;
        let req = request("POST", "/secret")
            .header("authorization", "Bearer secret")
            .body(())
            .unwrap();
        let (response, _) = exchange(&sender, req, b"secret", None).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{what}");
        assert!(heard.try_recv().is_err(), "{what}: it got something");
        let text = String::from_utf8_lossy(response.body()).to_ascii_lowercase();
        assert!(
            !text.contains("certificate") && !text.contains("127.0.0.1"),
            "{what}: it tells of the inside: {text}"
        );
    }
}
