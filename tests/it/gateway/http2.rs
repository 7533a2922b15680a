//! HTTP/2 without TLS: clients and upstreams of the `h2` crate.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use super::Gateway;
use super::forward::noise;
use super::raw::Conn;
use super::upstream::{Upstream, ok, response};

pub type Sender = h2::client::SendRequest<Bytes>;

/// An HTTP/2 connection to the gateway, which is driven beside the test.
pub async fn connect(addr: SocketAddr) -> Sender {
    let stream = TcpStream::connect(addr).await.unwrap();
    handshake(stream).await
}

pub async fn handshake<T>(io: T) -> Sender
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

pub fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("http://shop.example{path}"))
}

/// The response with its body and trailers.
pub async fn exchange(
    sender: &Sender,
    req: Request<()>,
    body: &[u8],
    trailers: Option<HeaderMap>,
) -> Result<(Response<Vec<u8>>, Option<HeaderMap>), h2::Error> {
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
pub async fn upstream<F, Fut>(serve: F) -> String
where
    F: Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> Fut
        + Clone
        + Send
        + Sync
        + 'static,
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
                let Ok(mut connection) = handshake.await else {
                    return;
                };
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
        response.headers_mut().append(
            http::HeaderName::try_from(format!("got-{name}")).unwrap(),
            value.clone(),
        );
    }
    let authority = parts
        .uri
        .authority()
        .map_or("", |authority| authority.as_str())
        .parse()
        .unwrap();
    response.headers_mut().insert("got-authority", authority);
    let Ok(mut stream) = respond.send_response(response, false) else {
        return;
    };
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

pub async fn gateway(upstream: &str, flags: &[&str]) -> Gateway {
    let (upstream, flags) = (
        upstream.to_owned(),
        flags
            .iter()
            .map(|&flag| flag.to_owned())
            .collect::<Vec<_>>(),
    );
    let start = move || {
        Gateway::start(
            &upstream,
            &flags.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };
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
        let req = request("POST", "/")
            .header("te", "trailers")
            .header("x-a", "1")
            .body(())
            .unwrap();
        let (response, got) = exchange(&sender, req, &body, Some(trailers.clone()))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["got-x-a"], "1");
        assert_eq!(response.headers()["got-te"], "trailers");
        assert!(*response.body() == body, "{length}");
        assert_eq!(got, Some(trailers));
        assert_eq!(response.headers()["got-x-forwarded-host"], "shop.example");
        assert_eq!(response.headers()["got-x-forwarded-for"], "127.0.0.1");
        assert!(
            response.headers()["got-via"]
                .to_str()
                .unwrap()
                .starts_with("2"),
            "{response:?}"
        );
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
    let req = request("POST", "/a?b")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(())
        .unwrap();
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
    assert!(
        head.get("got-connection").is_none() && head.get("got-host").is_none(),
        "{head:?}"
    );
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
    for (method, path, status) in [
        ("GET", "/204", 204),
        ("GET", "/304", 304),
        ("HEAD", "/head", 200),
    ] {
        let (response, _) = exchange(&sender, request(method, path).body(()).unwrap(), b"", None)
            .await
            .unwrap();
        assert_eq!(
            (response.status().as_u16(), response.body().len()),
            (status, 0)
        );
    }
    let (response, _) = exchange(
        &sender,
        request("HEAD", "/head").body(()).unwrap(),
        b"",
        None,
    )
    .await
    .unwrap();
    assert_eq!(response.headers()["content-length"], "98765");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_resets_the_stream_and_no_other() {
    let old = Upstream::scripted(|peer| {
        while let Some(request) = peer.request() {
            if request.head.target() == "/cut" {
                peer.conn
                    .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
                return;
            }
            peer.conn.send(ok(b"whole"));
        }
    });
    let front = gateway(&old.url(), &[]).await;
    let sender = connect(front.addr).await;
    let cut = exchange(&sender, request("GET", "/cut").body(()).unwrap(), b"", None).await;
    assert!(cut.is_err_and(|error| error.is_reset()), "a reset");
    let (response, _) = exchange(&sender, request("GET", "/").body(()).unwrap(), b"", None)
        .await
        .unwrap();
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
    let (response, mut stream) = sender
        .send_request(request("POST", "/").body(()).unwrap(), false)
        .unwrap();
    let response = response.await.unwrap();
    assert_eq!(heard.recv().await, Some(None));
    drop(response);
    stream.send_reset(h2::Reason::CANCEL);
    let reset = tokio::time::timeout(Duration::from_secs(5), heard.recv())
        .await
        .expect("it is told");
    assert_eq!(reset, Some(Some(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_the_same_statuses_over_http_2() {
    let refusing = super::faults::nobody();
    let silent = super::faults::silent();
    for (upstream, status) in [(refusing, 502), (silent.url(), 504)] {
        let front = gateway(&upstream, &["--timeout", "300ms"]).await;
        let sender = connect(front.addr).await;
        let (response, _) = exchange(&sender, request("GET", "/").body(()).unwrap(), b"", None)
            .await
            .unwrap();
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
        tokio::spawn(async move {
            exchange(&sender, request("GET", "/").body(()).unwrap(), b"", None).await
        })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    front.program.terminate();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let late = exchange(
        &sender,
        request("GET", "/late").body(()).unwrap(),
        b"",
        None,
    )
    .await;
    assert!(
        late.is_err(),
        "a stream after GOAWAY, which nobody has to serve"
    );
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
            let (response, _) =
                exchange(&sender, request("POST", "/").body(()).unwrap(), &body, None)
                    .await
                    .unwrap();
            assert_eq!(
                (
                    response.status().as_u16(),
                    String::from_utf8_lossy(response.body())
                ),
                (200, String::from_utf8_lossy(&body))
            );
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
        let (response, _) = exchange(
            &sender,
            request("POST", "/").body(()).unwrap(),
            b"small",
            None,
        )
        .await
        .unwrap();
        assert_eq!(
            (response.status().as_u16(), &**response.body()),
            (200, &b"small"[..]),
            "{n}"
        );
    }
}
