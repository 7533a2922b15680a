//! HTTP/2 and TLS: clients and upstreams of the `h2` crate, and frames by hand where no client would send such.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tower_flow::pool::connect::rustls::pki_types::{PrivateKeyDer, ServerName, pem::PemObject};
use tower_flow::pool::connect::rustls::{self, ClientConfig, ServerConfig, crypto};

use super::Gateway;
use super::forward::noise;
use super::raw::Conn;
use super::upstream::{Upstream, ok, response};
use crate::support::certs::{Ca, Identity};
use crate::support::scratch;

type Sender = h2::client::SendRequest<Bytes>;

/// An HTTP/2 connection to the gateway, which is driven beside the test.
async fn connect(addr: SocketAddr) -> Sender {
    let stream = TcpStream::connect(addr).await.unwrap();
    handshake(stream).await
}

async fn handshake<T>(io: T) -> Sender
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let builder = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 22)
        .data_frame_budget(1 << 22)
        .handshake(io)
        .await;
    let (sender, connection) = builder.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}

fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://shop.example{path}"))
}

/// The response with its body and trailers.
async fn exchange(sender: &Sender, req: Request<()>, body: &[u8], trailers: Option<HeaderMap>) -> Result<(Response<Vec<u8>>, Option<HeaderMap>), h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let alone = body.is_empty() && trailers.is_none();
    let (response, mut stream) = sender.send_request(req, alone)?;
    if !alone {
        let sending = body.to_vec();
        tokio::spawn(async move {
            for part in sending.chunks(16_000) {
                stream.reserve_capacity(part.len());
                let mut part = Bytes::copy_from_slice(part);
                while !part.is_empty() {
                    match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                        Some(Ok(some)) => {
                            let some = part.split_to(some.min(part.len()));
                            if stream.send_data(some, false).is_err() {
                                return;
                            }
                        }
                        _ => return,
                    }
                }
            }
            match trailers {
                Some(trailers) => drop(stream.send_trailers(trailers)),
                None => drop(stream.send_data(Bytes::new(), true)),
            }
        });
    }
    let (head, mut body) = response.await?.into_parts();
    let mut data = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        let _ = body.flow_control().release_capacity(part.len());
        data.extend_from_slice(&part);
    }
    let trailers = body.trailers().await?;
    Ok((Response::from_parts(head, data), trailers))
}

/// An HTTP/2 upstream: what it does with a stream.
async fn upstream<F, Fut>(serve: F) -> String
where
    F: Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("h2c://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = serve.clone();
            tokio::spawn(async move {
                // Hundreds of small bodies at once are no attack here.
                let mut builder = h2::server::Builder::new();
                let handshake = builder.data_frame_budget(1 << 22).handshake(stream);
                let Ok(mut connection) = handshake.await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve(request, respond));
                }
            });
        }
    });
    url
}

/// Echoes body and trailers.
async fn echo(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let mut response = Response::new(());
    for (name, value) in &parts.headers {
        response.headers_mut().append(http::HeaderName::try_from(format!("got-{name}")).unwrap(), value.clone());
    }
    let authority = parts.uri.authority().map_or("", |authority| authority.as_str()).parse().unwrap();
    response.headers_mut().insert("got-authority", authority);
    let Ok(mut stream) = respond.send_response(response, false) else { return };
    while let Some(Ok(part)) = body.data().await {
        let _ = body.flow_control().release_capacity(part.len());
        // An empty part that is not the last is an oddity some peers count (h2 allows a connection a hundred).
        if part.is_empty() {
            continue;
        }
        stream.reserve_capacity(part.len());
        if stream.send_data(part, false).is_err() {
            return;
        }
    }
    match body.trailers().await {
        Ok(Some(trailers)) => drop(stream.send_trailers(trailers)),
        Ok(None) => drop(stream.send_data(Bytes::new(), true)),
        Err(_) => stream.send_reset(h2::Reason::CANCEL),
    }
}

async fn gateway(upstream: &str, flags: &[&str]) -> Gateway {
    let (upstream, flags) = (upstream.to_owned(), flags.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>());
    let start = move || Gateway::start(&upstream, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(start).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_trailers_are_the_same_over_http_2() {
    let gateway = gateway(&upstream(echo).await, &[]).await;
    let sender = connect(gateway.addr).await;
    for length in [0, 1, 65_535, 1_000_000] {
        let body = noise(length);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", length.to_string().parse().unwrap());
        let req = request("POST", "/").header("te", "trailers").header("x-a", "1").body(()).unwrap();
        let (response, got) = exchange(&sender, req, &body, Some(trailers.clone())).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["got-x-a"], "1");
        assert_eq!(response.headers()["got-te"], "trailers");
        assert!(*response.body() == body, "{length}");
        assert_eq!(got, Some(trailers));
        assert_eq!(response.headers()["got-x-forwarded-host"], "shop.example");
        assert_eq!(response.headers()["got-x-forwarded-for"], "127.0.0.1");
        assert!(response.headers()["got-via"].to_str().unwrap().starts_with("2"), "{response:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_in_front_of_http_1_and_back() {
    let old = Upstream::answering(|request| {
        let fields = "connection: keep-alive, x-secret\r\nkeep-alive: timeout=5\r\nx-secret: 1\r\nx-kept: 2\r\n";
        response("200 OK", fields, &request.body.data)
    });
    let front = gateway(&old.url(), &[]).await;
    let sender = connect(front.addr).await;
    let body = noise(300_000);
    // Cookies may come in pieces (RFC 9113 8.2.3); HTTP/1 has them in one.
    let req = request("POST", "/a?b").header("cookie", "a=1").header("cookie", "b=2").body(()).unwrap();
    let (response, _) = exchange(&sender, req, &body, None).await.unwrap();
    assert!(*response.body() == body);
    assert_eq!(response.headers()["x-kept"], "2");
    for name in ["connection", "keep-alive", "x-secret", "transfer-encoding"] {
        assert!(!response.headers().contains_key(name), "{response:?}");
    }
    let seen = old.request().head;
    assert_eq!((seen.method(), seen.target()), ("POST", "/a?b"));
    assert_eq!(seen.get("cookie"), Some("a=1; b=2"));
    assert_eq!(seen.all("host").len(), 1);

    // And HTTP/1 in front of HTTP/2.
    let front = gateway(&upstream(echo).await, &[]).await;
    let addr = front.addr;
    let (head, echoed) = tokio::task::spawn_blocking(move || {
        let mut client = Conn::open(addr);
        client.send("POST / HTTP/1.1\r\nhost: shop.example\r\nconnection: x-secret\r\nx-secret: 1\r\ncontent-length: 5\r\n\r\nhello");
        client.response()
    })
    .await
    .unwrap();
    assert_eq!((head.status(), &*echoed.data), (200, &b"hello"[..]));
    assert_eq!(head.get("got-x-secret"), None);
    assert_eq!(head.get("got-content-length"), Some("5"));
    assert!(head.get("got-connection").is_none() && head.get("got-host").is_none(), "{head:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_and_statuses_without_bodies_have_none_over_http_2() {
    let old = Upstream::answering(|request| match request.head.target() {
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 98765\r\n\r\n".to_vec(),
    });
    let gateway = gateway(&old.url(), &[]).await;
    let sender = connect(gateway.addr).await;
    for (method, path, status) in [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/head", 200)] {
        let (response, _) = exchange(&sender, request(method, path).body(()).unwrap(), b"", None).await.unwrap();
        assert_eq!((response.status().as_u16(), response.body().len()), (status, 0));
    }
    let (response, _) = exchange(&sender, request("HEAD", "/head").body(()).unwrap(), b"", None).await.unwrap();
    assert_eq!(response.headers()["content-length"], "98765");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_resets_the_stream_and_no_other() {
    let old = Upstream::scripted(|peer| {
        while let Some(request) = peer.request() {
            if request.head.target() == "/cut" {
                peer.conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
                return;
            }
            peer.conn.send(ok(b"whole"));
        }
    });
    let front = gateway(&old.url(), &[]).await;
    let sender = connect(front.addr).await;
    let cut = exchange(&sender, request("GET", "/cut").body(()).unwrap(), b"", None).await;
    assert!(cut.is_err_and(|error| error.is_reset()), "a reset");
    let (response, _) = exchange(&sender, request("GET", "/").body(()).unwrap(), b"", None).await.unwrap();
    assert_eq!(response.body(), b"whole", "on the same connection");

    // A stream that an upstream resets is no whole answer to an HTTP/1 client.
    let resetting = upstream(|_, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        let _ = stream.send_data(Bytes::from_static(b"hello"), false);
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.send_reset(h2::Reason::INTERNAL_ERROR);
    });
    let front = gateway(&resetting.await, &[]).await;
    let addr = front.addr;
    let whole = tokio::task::spawn_blocking(move || {
        let mut client = Conn::open(addr);
        client.send(super::get("/"));
        let head = client.head();
        client.body(&head).is_ok()
    });
    assert!(!whole.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_the_client_resets_is_reset_upstream() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let url = upstream(move |_, mut respond| {
        let told = told.clone();
        async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            told.send(None).unwrap();
            let reason = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            told.send(Some(reason.is_ok())).unwrap();
        }
    })
    .await;
    let front = gateway(&url, &[]).await;
    let sender = connect(front.addr).await;
    let mut sender = sender.ready().await.unwrap();
    let (response, mut stream) = sender.send_request(request("POST", "/").body(()).unwrap(), false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(heard.recv().await, Some(None));
    drop(response);
    stream.send_reset(h2::Reason::CANCEL);
    let reset = tokio::time::timeout(Duration::from_secs(5), heard.recv()).await.expect("it is told");
    assert_eq!(reset, Some(Some(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_the_same_statuses_over_http_2() {
    let refusing = super::faults::nobody();
    let silent = super::faults::silent();
    for (upstream, status) in [(refusing, 502), (silent.url(), 504)] {
        let front = gateway(&upstream, &["--timeout", "300ms"]).await;
        let sender = connect(front.addr).await;
        let (response, _) = exchange(&sender, request("GET", "/").body(()).unwrap(), b"", None).await.unwrap();
        assert_eq!(response.status(), status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_says_goaway_and_finishes_the_streams() {
    let url = upstream(|_, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let _ = stream.send_data(Bytes::from_static(b"tick"), false);
        }
        let _ = stream.send_data(Bytes::new(), true);
    })
    .await;
    let front = gateway(&url, &[]).await;
    let sender = connect(front.addr).await;
    let first = {
        let sender = sender.clone();
        tokio::spawn(async move { exchange(&sender, request("GET", "/").body(()).unwrap(), b"", None).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    front.program.terminate();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let late = exchange(&sender, request("GET", "/late").body(()).unwrap(), b"", None).await;
    assert!(late.is_err(), "a stream after GOAWAY, which nobody has to serve");
    let (response, _) = first.await.unwrap().unwrap();
    assert_eq!(response.body().len(), 24);
    let status = tokio::task::spawn_blocking(move || front.program.wait(Duration::from_secs(5)));
    assert_eq!(status.await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_share_few_connections() {
    let url = upstream(echo).await;
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    let front = gateway(&url, &["--max-connections", "2"]).await;
    let sender = connect(front.addr).await;
    let all = (0..200).map(|n| {
        let sender = sender.clone();
        tokio::spawn(async move {
            let body = format!("body {n}").into_bytes();
            let (response, _) = exchange(&sender, request("POST", "/").body(()).unwrap(), &body, None).await.unwrap();
            assert_eq!((response.status().as_u16(), String::from_utf8_lossy(response.body())), (200, String::from_utf8_lossy(&body)));
        })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    assert!((1..=2).contains(&super::layers::established(&[port])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_end_with_an_empty_frame_do_not_wear_a_connection_out() {
    // gRPC clients end their requests so. Passed on as a frame that is not the last, it is one of those that h2 counts
    // over the life of a connection: after a hundred it says ENHANCE_YOUR_CALM.
    let front = gateway(&upstream(echo).await, &["--max-connections", "1"]).await;
    let sender = connect(front.addr).await;
    for n in 0..250 {
        let (response, _) = exchange(&sender, request("POST", "/").body(()).unwrap(), b"small", None).await.unwrap();
        assert_eq!((response.status().as_u16(), &**response.body()), (200, &b"small"[..]), "{n}");
    }
}

// ===== by hand =====

/// A frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals that are never indexed, which need neither tables nor Huffman.
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            bytes.push(text.len() as u8);
            bytes.extend(text.bytes());
        }
    }
    bytes
}

/// What comes back for these frames on stream 1: a status as bytes, a reset, or the end of the connection.
#[derive(Debug, PartialEq)]
enum Told {
    Answered(Vec<u8>),
    Reset,
    Ended,
}

fn by_hand(addr: SocketAddr, frames: &[Vec<u8>]) -> Told {
    let mut conn = Conn::open(addr);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frames.concat());
    let _ = conn.try_send(bytes);
    loop {
        let Ok(head) = conn.exactly(9) else { return Told::Ended };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let Ok(payload) = conn.exactly(length) else { return Told::Ended };
        match (head[3], stream) {
            (1, 1) => return Told::Answered(payload),
            (3, 1) => return Told::Reset,
            (7, _) => return Told::Ended,
            _ => {}
        }
    }
}

#[test]
fn streams_that_would_smuggle_are_reset() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let base = [(":method", "POST"), (":scheme", "http"), (":path", "/evil"), (":authority", "a")];
    let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    // END_HEADERS is 4, END_STREAM 1.
    let body = |text: &str| frame(0, 1, 1, text.as_bytes());
    for (heads, data) in [
        // Lengths that do not match what comes (RFC 9113 8.1.1).
        (with(&[("content-length", "3")]), Some("hello")),
        (with(&[("content-length", "9")]), Some("hello")),
        (with(&[("content-length", "5"), ("content-length", "6")]), Some("hello")),
        (with(&[("content-length", "five")]), Some("hello")),
        (with(&[("content-length", "5")]), None),
        // What belongs to connections (8.2.2).
        (with(&[("transfer-encoding", "chunked")]), Some("0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")),
        (with(&[("connection", "close")]), None),
        (with(&[("proxy-connection", "keep-alive")]), None),
        (with(&[("keep-alive", "x")]), None),
        (with(&[("upgrade", "websocket")]), None),
        (with(&[("te", "gzip")]), None),
        // What is no name or value (8.2.1).
        (with(&[("x", "a\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")]), None),
        (with(&[("x", "a\nb")]), None),
        (with(&[("x", "a\0b")]), None),
        (with(&[("x y", "a")]), None),
        (with(&[("x: a\r\ny", "a")]), None),
        (with(&[("X-Upper", "a")]), None),
        (with(&[("", "a")]), None),
        // Pseudo-fields that are wrong, many or missing (8.3).
        (with(&[(":path", "/other")]), None),
        (with(&[(":nonsense", "a")]), None),
        (vec![(":method", "GET"), (":scheme", "http"), (":authority", "a")], None),
        (vec![(":scheme", "http"), (":path", "/evil"), (":authority", "a")], None),
        (vec![(":method", "GET"), (":scheme", "http"), (":path", ""), (":authority", "a")], None),
        (vec![(":method", "GET"), (":scheme", "http"), (":path", "/evil HTTP/1.1\r\nx: y"), (":authority", "a")], None),
        (vec![(":method", "GET"), (":scheme", "http"), (":path", "/evil x"), (":authority", "a")], None),
        (vec![(":method", "GET /x HTTP/1.1\r\n"), (":scheme", "http"), (":path", "/evil"), (":authority", "a")], None),
        (vec![(":method", "GET"), (":scheme", "http"), (":path", "/evil"), (":authority", "a\r\nx: y")], None),
        (vec![(":method", "GET"), ("x", "y"), (":scheme", "http"), (":path", "/evil"), (":authority", "a")], None),
        (vec![(":method", "GET"), (":scheme", "http"), (":path", "/evil"), (":authority", "a"), ("host", "b")], None),
        (vec![(":method", "CONNECT"), (":authority", "other.example:443")], None),
    ] {
        let flags = if data.is_some() { 4 } else { 5 };
        let mut frames = vec![frame(1, flags, 1, &fields(&heads))];
        frames.extend(data.map(body));
        let told = by_hand(gateway.addr, &frames);
        let evil = upstream.requests();
        match &told {
            Told::Reset | Told::Ended => {}
            // An answer is one that refuses. Entries 8 to 11 of the static table are statuses from 200 to 304, and all others
            // below 400 are nothing a gateway says.
            Told::Answered(block) => assert!(!matches!(block[0], 0x88..=0x8b), "{heads:?}: {block:?}"),
        }
        assert!(evil.is_empty(), "{heads:?} went through: {evil:?} {told:?}");
    }
    // A good one by the same hand.
    let good = frame(1, 5, 1, &fields(&base));
    assert_eq!(by_hand(gateway.addr, &[good]), by_hand(gateway.addr, &[frame(1, 5, 1, &fields(&base))]));
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn rapid_resets_and_floods_do_not_end_it() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let head = fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]);
    let mut conn = Conn::open(gateway.addr);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for n in 0..5_000_u32 {
        bytes.extend(frame(1, 5, 2 * n + 1, &head));
        bytes.extend(frame(3, 0, 2 * n + 1, &8_u32.to_be_bytes()));
    }
    let _ = conn.try_send(bytes);
    // Headers without an end.
    let mut endless = Conn::open(gateway.addr);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 1, 1, &head));
    let more = fields(&[("x", &"y".repeat(100))]).repeat(100);
    for _ in 0..1_000 {
        bytes.extend(frame(9, 0, 1, &more));
    }
    let _ = endless.try_send(bytes);
    assert!(endless.closed());
    assert_eq!(gateway.ask(super::get("/fine")).0.status(), 200);
    assert!(gateway.program.ended().is_none());
}

// ===== TLS =====

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
    (write("cert.pem", "CERTIFICATE", &chain), write("key.pem", "PRIVATE KEY", &[identity.key.secret_der()]))
}

fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
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

fn client_config(ca: &Ca, alpn: &[&str], versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let ring = Arc::new(crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(ring)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(ca.roots())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

async fn tls(addr: SocketAddr, config: ClientConfig) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
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
        let io = tls(front.addr, client_config(&ca, &["h2", "http/1.1"], &[version])).await.unwrap();
        assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let sender = handshake(io).await;
        let req = Request::post("https://localhost/h2").body(()).unwrap();
        let (response, _) = exchange(&sender, req, &body, None).await.unwrap();
        assert!(*response.body() == body);

        for alpn in [&["http/1.1"][..], &[]] {
            let mut io = tls(front.addr, client_config(&ca, alpn, &[version])).await.unwrap();
            assert_eq!(io.get_ref().1.alpn_protocol(), alpn.first().map(|name| name.as_bytes()));
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            io.write_all(b"POST /h1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
            let mut answer = Vec::new();
            // Without close_notify this fails: a body that ends so may have been cut.
            io.read_to_end(&mut answer).await.expect("an orderly end");
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
        }
    }
    assert!(tls(front.addr, client_config(&ca, &["spdy/3"], &[&rustls::version::TLS13])).await.is_err(), "a protocol nobody speaks");
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
        let front = gateway(&format!("https://127.0.0.1:{}", addr.port()), &["--upstream-ca", &trust]).await;
        let sender = connect(front.addr).await;
        let (response, _) = exchange(&sender, request("GET", "/").body(()).unwrap(), b"", None).await.unwrap();
        let version = if alpn.contains(&"h2") { "HTTP/2.0" } else { "HTTP/1.1" };
        let told = String::from_utf8_lossy(response.body()).into_owned();
        assert!(response.status() == 200 && told.starts_with(version), "{alpn:?}: {response:?} {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_with_a_wrong_certificate_gets_nothing() {
    let ca = Ca::new();
    let other = Ca::new();
    let trust = ca_file(&ca);
    for (what, config) in [
        ("another name", ca.certify(["elsewhere.example"]).server(["http/1.1"])),
        ("expired", ca.expired(["127.0.0.1"]).server(["http/1.1"])),
        ("another authority", other.certify(["127.0.0.1"]).server(["http/1.1"])),
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
        let req = request("POST", "/secret").header("authorization", "Bearer secret").body(()).unwrap();
        let (response, _) = exchange(&sender, req, b"secret", None).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{what}");
        assert!(heard.try_recv().is_err(), "{what}: it got something");
        let text = String::from_utf8_lossy(response.body()).to_ascii_lowercase();
        assert!(!text.contains("certificate") && !text.contains("127.0.0.1"), "{what}: it tells of the inside: {text}");
    }
}
