//! Coalescing of HTTP: what may be shared, what is read by many, and servers and clients over loopback.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, service_fn};
use tower_flow::coalesce::{CoalesceLayer, Credentials, HttpKey, HttpShare, SharedBody};
use tower_flow::deadline::Deadline;
use tower_flow::error::SharedError;
use tower_flow::error::{Reason, find};
use tower_flow::metrics::Families;
use tower_flow::{BoxError, Flow, ServiceBuilderExt as _, clock};

use super::{Asked, assert_quiet, bypassed, ended, go, ms, reason, rest, secs};
use crate::support::{Steps, data, trailers, value};

type Payload = BoxBody<Bytes, BoxError>;
type HttpLayer = CoalesceLayer<HttpKey, HttpShare>;

fn payload(bytes: impl Into<Bytes>) -> Payload {
    Full::new(bytes.into()).map_err(BoxError::from).boxed()
}

fn empty() -> Payload {
    Empty::new().map_err(BoxError::from).boxed()
}

fn get(uri: &str) -> Request<Payload> {
    Request::get(uri).body(empty()).unwrap()
}

/// With a header more.
fn with(mut req: Request<Payload>, name: &'static str, value: &'static str) -> Request<Payload> {
    req.headers_mut()
        .append(name, HeaderValue::from_static(value));
    req
}

async fn text<B: Body<Error: std::fmt::Debug>>(response: Response<B>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

// ===== 12 =====

const URI: &str = "http://a.test/page?q=1";

type Make = fn() -> Request<Payload>;

/// Two requests at once: how many calls, and whether each gets its own answer.
async fn met(
    layer: &HttpLayer,
    requests: [Request<Payload>; 2],
    respond: impl Fn() -> http::response::Builder + Clone + Send + Sync + 'static,
) -> (usize, [String; 2]) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let service = layer.layer(service_fn(move |req: Request<Payload>| {
        counted.fetch_add(1, Ordering::SeqCst);
        let response = respond();
        async move {
            tokio::time::sleep(ms(10)).await;
            // Says whom it is for.
            let whom = req.headers()["x-whom"].to_str().unwrap().to_owned();
            Ok::<_, BoxError>(response.body(payload(whom)).unwrap())
        }
    }));
    let [a, b] = requests;
    let asked = [with(a, "x-whom", "a"), with(b, "x-whom", "b")].map(|req| go(&service, req));
    let mut answers = Vec::new();
    for asked in asked {
        answers.push(text(asked.value().await).await);
    }
    let calls = calls.load(Ordering::SeqCst);
    (calls, answers.try_into().unwrap())
}

fn plain() -> HttpLayer {
    CoalesceLayer::http()
}

/// 12, by what the requests are.
#[tokio::test(start_paused = true)]
async fn requests_that_are_not_the_same_never_meet() {
    let in_key: fn() -> HttpLayer = || {
        CoalesceLayer::http()
            .authorization(Credentials::InKey)
            .cookie(Credentials::InKey)
    };
    let languages: fn() -> HttpLayer = || CoalesceLayer::http().header(header::ACCEPT_LANGUAGE);
    let cases: &[(&str, fn() -> HttpLayer, Make, Make, bool)] = &[
        ("the same", plain, || get(URI), || get(URI), true),
        (
            "a host in other letters",
            plain,
            || get(URI),
            || get("http://A.TEST/page?q=1"),
            true,
        ),
        (
            "both gzip",
            plain,
            || with(get(URI), "accept-encoding", "gzip"),
            || with(get(URI), "accept-encoding", "gzip"),
            true,
        ),
        (
            "agents",
            plain,
            || with(get(URI), "user-agent", "x"),
            || with(get(URI), "user-agent", "y"),
            true,
        ),
        (
            "traces",
            plain,
            || with(get(URI), "traceparent", "x"),
            || with(get(URI), "traceparent", "y"),
            true,
        ),
        (
            "both HEAD",
            plain,
            || method(Method::HEAD),
            || method(Method::HEAD),
            true,
        ),
        (
            "one language",
            languages,
            || with(get(URI), "accept-language", "de"),
            || with(get(URI), "accept-language", "de"),
            true,
        ),
        (
            "one user, in the key",
            in_key,
            || with(get(URI), "authorization", "x"),
            || with(get(URI), "authorization", "x"),
            true,
        ),
        (
            "one session, in the key",
            in_key,
            || with(get(URI), "cookie", "x"),
            || with(get(URI), "cookie", "x"),
            true,
        ),
        (
            "gzip and identity",
            plain,
            || with(get(URI), "accept-encoding", "gzip"),
            || with(get(URI), "accept-encoding", "identity"),
            false,
        ),
        (
            "gzip and nothing",
            plain,
            || with(get(URI), "accept-encoding", "gzip"),
            || get(URI),
            false,
        ),
        (
            "HEAD and GET",
            plain,
            || method(Method::HEAD),
            || get(URI),
            false,
        ),
        (
            "GET and HEAD",
            plain,
            || get(URI),
            || method(Method::HEAD),
            false,
        ),
        (
            "paths",
            plain,
            || get(URI),
            || get("http://a.test/Page?q=1"),
            false,
        ),
        (
            "queries",
            plain,
            || get(URI),
            || get("http://a.test/page?q=2"),
            false,
        ),
        (
            "hosts",
            plain,
            || get(URI),
            || get("http://b.test/page?q=1"),
            false,
        ),
        (
            "ports",
            plain,
            || get(URI),
            || get("http://a.test:81/page?q=1"),
            false,
        ),
        (
            "schemes",
            plain,
            || get(URI),
            || get("https://a.test/page?q=1"),
            false,
        ),
        (
            "hosts in the header",
            plain,
            || with(get("/page"), "host", "a.test"),
            || with(get("/page"), "host", "b.test"),
            false,
        ),
        (
            "two languages",
            languages,
            || with(get(URI), "accept-language", "de"),
            || with(get(URI), "accept-language", "en"),
            false,
        ),
        (
            "a language and none",
            languages,
            || with(get(URI), "accept-language", "de"),
            || get(URI),
            false,
        ),
        (
            "one language twice",
            languages,
            || with(get(URI), "accept-language", "de"),
            || {
                with(
                    with(get(URI), "accept-language", "de"),
                    "accept-language",
                    "de",
                )
            },
            false,
        ),
        (
            "one language in two ways",
            languages,
            || with(get(URI), "accept-language", "de, en"),
            || {
                with(
                    with(get(URI), "accept-language", "de"),
                    "accept-language",
                    "en",
                )
            },
            false,
        ),
        (
            "one user",
            plain,
            || with(get(URI), "authorization", "x"),
            || with(get(URI), "authorization", "x"),
            false,
        ),
        (
            "a user and nobody",
            plain,
            || with(get(URI), "authorization", "x"),
            || get(URI),
            false,
        ),
        (
            "nobody and a user",
            plain,
            || get(URI),
            || with(get(URI), "authorization", "x"),
            false,
        ),
        (
            "two users, in the key",
            in_key,
            || with(get(URI), "authorization", "x"),
            || with(get(URI), "authorization", "y"),
            false,
        ),
        (
            "a user and nobody, in the key",
            in_key,
            || with(get(URI), "authorization", "x"),
            || get(URI),
            false,
        ),
        (
            "one session",
            plain,
            || with(get(URI), "cookie", "x"),
            || with(get(URI), "cookie", "x"),
            false,
        ),
        (
            "two sessions, in the key",
            in_key,
            || with(get(URI), "cookie", "x"),
            || with(get(URI), "cookie", "y"),
            false,
        ),
        (
            "a session moved into a user",
            in_key,
            || with(get(URI), "cookie", "x"),
            || with(get(URI), "authorization", "x"),
            false,
        ),
        (
            "a user of a proxy",
            plain,
            || with(get(URI), "proxy-authorization", "x"),
            || with(get(URI), "proxy-authorization", "x"),
            false,
        ),
        (
            "a user in the authority",
            plain,
            || get("http://x:y@a.test/page"),
            || get("http://x:y@a.test/page"),
            false,
        ),
        (
            "POST",
            plain,
            || method(Method::POST),
            || method(Method::POST),
            false,
        ),
        (
            "PUT",
            plain,
            || method(Method::PUT),
            || method(Method::PUT),
            false,
        ),
        (
            "PATCH",
            plain,
            || method(Method::PATCH),
            || method(Method::PATCH),
            false,
        ),
        (
            "DELETE",
            plain,
            || method(Method::DELETE),
            || method(Method::DELETE),
            false,
        ),
        (
            "OPTIONS",
            plain,
            || method(Method::OPTIONS),
            || method(Method::OPTIONS),
            false,
        ),
        (
            "a GET with a body",
            plain,
            || get(URI).map(|_| payload("x")),
            || get(URI).map(|_| payload("x")),
            false,
        ),
        (
            "a method in a header",
            plain,
            || with(get(URI), "x-http-method-override", "DELETE"),
            || with(get(URI), "x-http-method-override", "DELETE"),
            false,
        ),
        (
            "a range",
            plain,
            || with(get(URI), "range", "bytes=0-9"),
            || with(get(URI), "range", "bytes=0-9"),
            false,
        ),
        (
            "a range and all",
            plain,
            || with(get(URI), "range", "bytes=0-9"),
            || get(URI),
            false,
        ),
        (
            "if-none-match",
            plain,
            || with(get(URI), "if-none-match", "x"),
            || with(get(URI), "if-none-match", "x"),
            false,
        ),
        (
            "if-match",
            plain,
            || with(get(URI), "if-match", "x"),
            || with(get(URI), "if-match", "x"),
            false,
        ),
        (
            "if-modified-since",
            plain,
            || with(get(URI), "if-modified-since", "x"),
            || get(URI),
            false,
        ),
        (
            "if-range",
            plain,
            || with(get(URI), "if-range", "x"),
            || with(get(URI), "if-range", "x"),
            false,
        ),
        (
            "an upgrade",
            plain,
            || with(get(URI), "upgrade", "websocket"),
            || with(get(URI), "upgrade", "websocket"),
            false,
        ),
        (
            "an expectation",
            plain,
            || with(get(URI), "expect", "100-continue"),
            || with(get(URI), "expect", "100-continue"),
            false,
        ),
        (
            "no-cache",
            plain,
            || with(get(URI), "cache-control", "no-cache"),
            || with(get(URI), "cache-control", "no-cache"),
            false,
        ),
        (
            "no-store",
            plain,
            || with(get(URI), "cache-control", "max-stale, No-Store"),
            || get(URI),
            false,
        ),
        (
            "max-age=0",
            plain,
            || with(get(URI), "cache-control", "max-age=0"),
            || with(get(URI), "cache-control", "max-age=0"),
            false,
        ),
        (
            "pragma",
            plain,
            || with(get(URI), "pragma", "no-cache"),
            || with(get(URI), "pragma", "no-cache"),
            false,
        ),
    ];
    for (what, make, a, b, shared) in cases {
        for [a, b] in [[a, b], [b, a]] {
            let layer = make();
            let (calls, [first, second]) = met(&layer, [a(), b()], Response::builder).await;
            let expected = if *shared {
                (1, "a", "a")
            } else {
                (2, "a", "b")
            };
            assert_eq!((calls, &*first, &*second), expected, "{what}");
            assert_quiet(&layer.handle());
        }
    }
}

fn method(method: Method) -> Request<Payload> {
    let mut req = get(URI);
    *req.method_mut() = method;
    req
}

/// 12, by what the response says.
#[tokio::test(start_paused = true)]
async fn responses_for_one_are_for_one() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum For {
        All,
        One,
        OneNow,
    }
    let cases: &[(u16, &[(&str, &str)], For)] = &[
        (200, &[], For::All),
        (200, &[("cache-control", "public, max-age=60")], For::All),
        (200, &[("cache-control", "max-age=0")], For::All),
        (200, &[("vary", "Accept-Encoding")], For::All),
        (
            200,
            &[("vary", "accept-encoding, cookie, authorization")],
            For::All,
        ),
        (404, &[], For::All),
        (500, &[], For::All),
        (503, &[("retry-after", "1")], For::All),
        (200, &[("cache-control", "private")], For::One),
        (200, &[("cache-control", "Private=\"x\"")], For::One),
        (
            200,
            &[("cache-control", "public"), ("cache-control", "private")],
            For::One,
        ),
        (200, &[("cache-control", "no-store")], For::One),
        (200, &[("cache-control", "no-cache")], For::One),
        (200, &[("set-cookie", "session=1")], For::One),
        (
            200,
            &[
                ("cache-control", "public, max-age=60"),
                ("set-cookie", "session=1"),
            ],
            For::One,
        ),
        (404, &[("set-cookie", "session=1")], For::One),
        (200, &[("vary", "*")], For::One),
        (200, &[("vary", "accept-encoding, user-agent")], For::One),
        (
            200,
            &[("vary", "accept-encoding"), ("vary", "Accept-Language")],
            For::One,
        ),
        (200, &[("vary", "accept encoding")], For::One),
        (503, &[("set-cookie", "session=1")], For::OneNow),
        (206, &[], For::OneNow),
        (304, &[], For::OneNow),
        (401, &[], For::OneNow),
        (401, &[("cache-control", "public")], For::OneNow),
        (403, &[], For::OneNow),
        (407, &[], For::OneNow),
        (408, &[], For::OneNow),
        (416, &[], For::OneNow),
        (421, &[], For::OneNow),
        (425, &[], For::OneNow),
        (429, &[("retry-after", "1")], For::OneNow),
        (511, &[], For::OneNow),
        (302, &[("location", "/login?for=you")], For::One),
        (301, &[("location", "/there")], For::All),
    ];
    for (status, headers, whose) in cases {
        let (status, headers, whose) = (*status, *headers, *whose);
        let what = format!("{status} {headers:?}");
        let layer = plain();
        let respond = move || {
            let response = Response::builder().status(status);
            headers.iter().fold(response, |response, (name, value)| {
                response.header(*name, *value)
            })
        };
        let (calls, [a, b]) = met(&layer, [get(URI), get(URI)], respond).await;
        let expected = match whose {
            For::All => (1, "a", "a"),
            For::One | For::OneNow => (2, "a", "b"),
        };
        assert_eq!((calls, &*a, &*b), expected, "{what}");
        let handle = layer.handle();
        let how = match whose {
            For::All => "shared",
            For::One => "unshareable",
            For::OneNow => "retry",
        };
        assert_eq!(
            ended(&handle, how),
            1,
            "{what}: {:?}",
            handle.snapshot().ends
        );
        // What is known to be for one is not waited for again.
        let known = u64::from(whose == For::One);
        assert_eq!(handle.snapshot().remembered, known, "{what}");
        assert_quiet(&handle);
    }
}

/// 12, as it hurts: fifty users at once, each with a private page and a cookie of his own.
#[tokio::test(start_paused = true)]
async fn private_pages_never_cross_and_are_not_queued_for() {
    let layer = plain();
    let handle = layer.handle();
    let users = Arc::new(AtomicU64::new(0));
    let service = layer.layer(service_fn(move |req: Request<Payload>| {
        let user = users.fetch_add(1, Ordering::SeqCst);
        let whom = req.headers()["x-whom"].clone();
        async move {
            tokio::time::sleep(ms(100)).await;
            let response = Response::builder()
                .header("set-cookie", format!("session={user}"))
                .header("x-whom", &whom);
            Ok::<_, BoxError>(response.body(payload(whom.as_bytes().to_vec())).unwrap())
        }
    }));
    let mut sessions = HashSet::new();
    for round in 0..2 {
        let begun = Instant::now();
        let asked: Vec<_> = (0..50u64)
            .map(|user| {
                let mut req = get(URI);
                let whom = HeaderValue::from(round * 50 + user);
                req.headers_mut().insert("x-whom", whom);
                go(&service, req)
            })
            .collect();
        for (user, asked) in asked.into_iter().enumerate() {
            let response = asked.value().await;
            let whom = (round * 50 + user as u64).to_string();
            assert_eq!(response.headers()["x-whom"], *whom);
            let session = response.headers()["set-cookie"].clone();
            assert!(sessions.insert(session), "a session for two");
            assert_eq!(text(response).await, whom);
        }
        let elapsed = begun.elapsed();
        let most = if round == 0 { ms(203) } else { ms(101) };
        assert!(elapsed <= most, "round {round}: {elapsed:?}");
    }
    assert_eq!(handle.snapshot().shared, 0);
    assert_eq!(bypassed(&handle, "unshareable"), 50);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_client_reaches_all_and_alone_is_what_it_was() {
    let layer = plain();
    let service = layer.layer(service_fn(async |_: Request<Payload>| {
        tokio::time::sleep(ms(10)).await;
        Err::<Response<Payload>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
    }));
    let asked: Vec<_> = (0..3).map(|_| go(&service, get(URI))).collect();
    for asked in asked {
        let error = asked.error().await;
        assert!(error.is::<SharedError>());
        let cause = find::<std::io::Error>(error.as_ref()).unwrap();
        assert_eq!(cause.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let error = go(&service, get(URI)).error().await;
    assert!(error.is::<std::io::Error>());
}

// ===== 13 =====

/// A body of so many chunks, which counts how far it is ahead of its readers.
struct Upstream {
    left: usize,
    fails: bool,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    produced: AtomicUsize,
    /// What each reader has read.
    read: Mutex<Vec<Arc<AtomicUsize>>>,
    /// The greatest distance to the slowest reader, of those that are not left behind.
    ahead: AtomicUsize,
    dropped: AtomicUsize,
}

const CHUNK: usize = 64 * 1024;

static ZEROS: [u8; CHUNK] = [0; CHUNK];

impl Body for Upstream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            if self.fails {
                let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                return Poll::Ready(Some(Err(reset.into())));
            }
            return Poll::Ready(None);
        }
        self.left -= 1;
        let produced = self.wire.produced.fetch_add(CHUNK, Ordering::SeqCst) + CHUNK;
        let read = self.wire.read.lock().unwrap();
        let slowest = read.iter().map(|read| read.load(Ordering::SeqCst)).min();
        let ahead = produced - slowest.unwrap_or(0);
        self.wire.ahead.fetch_max(ahead, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS)))))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.wire.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

/// A service that answers with a body of `chunks`.
fn serving(
    layer: &HttpLayer,
    chunks: usize,
    fails: bool,
) -> (
    impl Service<
        Request<Payload>,
        Response = Response<SharedBody<Upstream>>,
        Error = BoxError,
        Future: Send + 'static,
    > + Clone
    + use<>,
    Arc<Wire>,
) {
    let wire = Arc::new(Wire::default());
    let upstream = wire.clone();
    let service = layer.layer(service_fn(move |_: Request<Payload>| {
        let wire = upstream.clone();
        async move {
            tokio::time::sleep(ms(10)).await;
            let body = Upstream {
                left: chunks,
                fails,
                wire,
            };
            let length = if fails { chunks + 1 } else { chunks } * CHUNK;
            let response = Response::builder().header(header::CONTENT_LENGTH, length);
            Ok::<_, BoxError>(response.body(body).unwrap())
        }
    }));
    (service, wire)
}

/// Reads to the end or to an error; how many bytes, and which.
fn read<B>(mut body: B, read: Arc<AtomicUsize>) -> JoinHandle<(usize, Option<BoxError>)>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    bytes += frame.data_ref().map_or(0, Bytes::len);
                    read.store(bytes, Ordering::SeqCst);
                    // Readers take turns at random distances.
                    tokio::task::yield_now().await;
                }
                Err(error) => return (bytes, Some(error)),
            }
        }
        (bytes, None)
    })
}

/// 13.
#[tokio::test(start_paused = true)]
async fn a_stalled_reader_of_a_hundred_is_put_out_and_the_others_finish() {
    const SIZE: usize = 64 * 1024 * 1024;
    const BUFFER: usize = 256 * 1024;
    let layer = plain();
    let handle = layer.handle();
    let (service, wire) = serving(&layer, SIZE / CHUNK, false);
    let asked: Vec<_> = (0..100).map(|_| go(&service, get(URI))).collect();
    let mut bodies = Vec::new();
    for asked in asked {
        let response = asked.value().await;
        assert_eq!(
            response.headers()[header::CONTENT_LENGTH],
            *SIZE.to_string()
        );
        assert_eq!(response.body().size_hint().exact(), None);
        bodies.push(response.into_body());
        wire.read.lock().unwrap().push(Arc::default());
    }
    let counts = wire.read.lock().unwrap().clone();
    // One reads a chunk, and no more.
    let mut stalled = bodies.pop().unwrap();
    let first = stalled.frame().await.unwrap().unwrap();
    counts[99].store(first.data_ref().unwrap().len(), Ordering::SeqCst);
    let begun = Instant::now();
    let readers: Vec<_> = bodies
        .into_iter()
        .zip(&counts)
        .map(|(body, count)| read(body, count.clone()))
        .collect();
    tokio::time::sleep(ms(4_900)).await;
    let held = wire.produced.load(Ordering::SeqCst);
    assert!(held <= 2 * CHUNK + BUFFER, "{held} while one is stalled");
    assert_eq!(handle.snapshot().evicted, 0);
    // From now on he is not who the body waits for.
    wire.read.lock().unwrap().pop();
    for reader in readers {
        let (bytes, error) = tokio::time::timeout(secs(60), reader)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((bytes, error.map(|error| error.to_string())), (SIZE, None));
    }
    let elapsed = begun.elapsed();
    assert!((ms(4_990)..=ms(5_100)).contains(&elapsed), "{elapsed:?}");
    let ahead = wire.ahead.load(Ordering::SeqCst);
    assert!(
        ahead <= BUFFER + 2 * CHUNK,
        "{ahead} bytes ahead of the slowest"
    );
    assert_eq!(handle.snapshot().evicted, 1);
    // He is told, and not by an end that looks clean.
    let mut frames = 0;
    let error = loop {
        match stalled.frame().await {
            Some(Ok(_)) => frames += 1,
            Some(Err(error)) => break error,
            None => panic!("a clean end after {frames} frames"),
        }
    };
    assert!(
        frames <= 1 + BUFFER / CHUNK,
        "what was lost is not held: {frames}"
    );
    assert!(
        tower_flow::Rejection::find(error.as_ref()).is_some(),
        "{error:?}"
    );
    drop(stalled);
    assert_eq!(wire.dropped.load(Ordering::SeqCst), 1);
    assert_eq!(
        (handle.snapshot().shared, ended(&handle, "shared")),
        (99, 1)
    );
}

/// 13.
#[tokio::test(start_paused = true)]
async fn an_upstream_that_breaks_reaches_every_reader() {
    let layer = plain();
    let (service, wire) = serving(&layer, 20, true);
    let asked: Vec<_> = (0..10).map(|_| go(&service, get(URI))).collect();
    let mut readers = Vec::new();
    for asked in asked {
        readers.push(read(asked.value().await.into_body(), Arc::default()));
    }
    for reader in readers {
        let (bytes, error) = reader.await.unwrap();
        assert_eq!(bytes, 20 * CHUNK);
        let error = error.expect("never a clean end");
        let cause = find::<std::io::Error>(error.as_ref()).unwrap();
        assert_eq!(cause.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(wire.dropped.load(Ordering::SeqCst), 1);
}

/// 13: an end before the length that was promised is no end.
#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_short_is_an_error_for_all_who_share_it() {
    let layer = plain();
    let service = layer.layer(service_fn(async |_: Request<Payload>| {
        tokio::time::sleep(ms(10)).await;
        let body = Steps::new([data(b"hello")]);
        let response = Response::builder().header(header::CONTENT_LENGTH, 10);
        Ok::<_, BoxError>(response.body(body).unwrap())
    }));
    let asked: Vec<_> = (0..3).map(|_| go(&service, get(URI))).collect();
    for asked in asked {
        let body = asked.value().await.into_body();
        assert!(body.collect().await.is_err());
    }
}

/// 13: whoever leaves is waited for no longer, and with the last the body goes.
#[tokio::test(start_paused = true)]
async fn a_reader_that_leaves_frees_the_others_and_the_last_drops_the_body() {
    let layer = plain();
    let (service, wire) = serving(&layer, 64, false);
    let asked: Vec<_> = (0..4).map(|_| go(&service, get(URI))).collect();
    let mut bodies = Vec::new();
    for asked in asked {
        bodies.push(asked.value().await.into_body());
    }
    let stalled = bodies.pop().unwrap();
    let readers: Vec<_> = bodies
        .into_iter()
        .map(|body| read(body, Arc::default()))
        .collect();
    rest().await;
    assert!(!readers.iter().any(JoinHandle::is_finished));
    let begun = Instant::now();
    drop(stalled);
    for reader in readers {
        let (bytes, error) = reader.await.unwrap();
        assert_eq!((bytes, error.is_some()), (64 * CHUNK, false));
    }
    assert!(begun.elapsed() <= ms(1));
    assert_eq!(wire.dropped.load(Ordering::SeqCst), 1);

    let asked: Vec<_> = (0..3).map(|_| go(&service, get(URI))).collect();
    let mut bodies = Vec::new();
    for asked in asked {
        bodies.push(asked.value().await.into_body());
    }
    bodies[0].frame().await.unwrap().unwrap();
    drop(bodies.pop());
    drop(bodies.pop());
    assert_eq!(wire.dropped.load(Ordering::SeqCst), 1);
    drop(bodies);
    assert_eq!(wire.dropped.load(Ordering::SeqCst), 2);
}

/// 13: a reader that is parked with the body's turn stalls nobody.
#[tokio::test(start_paused = true)]
async fn a_reader_that_is_polled_once_and_parked_holds_nobody_up() {
    let layer = plain();
    let gate = Arc::new(Notify::new());
    let opened = gate.clone();
    let service = layer.layer(service_fn(move |_: Request<Payload>| {
        let gate = opened.clone();
        async move {
            tokio::time::sleep(ms(10)).await;
            let frames = futures_util::stream::once(async move {
                gate.notified().await;
                Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"hello")))
            });
            Ok::<_, BoxError>(Response::new(BodyExt::boxed_unsync(StreamBody::new(
                frames,
            ))))
        }
    }));
    let pair = [0, 1].map(|_| go(&service, get(URI)));
    let mut bodies = Vec::new();
    for asked in pair {
        bodies.push(asked.value().await.into_body());
    }
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut bodies[0]).poll_frame(&mut cx).is_pending());
    let other = tokio::spawn(bodies.pop().unwrap().collect());
    rest().await;
    gate.notify_one();
    let read = tokio::time::timeout(secs(1), other).await;
    assert_eq!(read.unwrap().unwrap().unwrap().to_bytes(), "hello");
    let late = bodies.pop().unwrap().collect().await.unwrap();
    assert_eq!(late.to_bytes(), "hello");
}

#[tokio::test(start_paused = true)]
async fn trailers_are_everybodys() {
    let layer = plain();
    let service = layer.layer(service_fn(async |_: Request<Payload>| {
        tokio::time::sleep(ms(10)).await;
        let body = Steps::new([data(b"hello"), None, trailers("0")]);
        Ok::<_, BoxError>(Response::new(body))
    }));
    let asked: Vec<_> = (0..5).map(|_| go(&service, get(URI))).collect();
    for asked in asked {
        let read = asked.value().await.into_body().collect().await.unwrap();
        assert_eq!(read.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(read.to_bytes(), "hello");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_in_the_extensions_ends_one_wait() {
    let layer = plain();
    let handle = layer.handle();
    let (service, _) = serving(&layer, 1, false);
    let until = |timeout| {
        let mut req = get(URI);
        let deadline = Deadline::after(clock::now(), timeout).unwrap();
        req.extensions_mut().insert(deadline);
        req
    };
    let leader: Asked<_> = go(&service, until(ms(5)));
    let follower = go(&service, until(secs(1)));
    let error = leader.task.await.unwrap().map(drop).unwrap_err();
    assert_eq!(reason(&error), Reason::Deadline);
    assert_eq!(follower.value().await.status(), StatusCode::OK);
    assert_quiet(&handle);
}

// ===== over loopback =====

/// What the servers of these tests do, by path; counts the calls of each.
#[derive(Clone, Default)]
struct Site {
    calls: Arc<AtomicUsize>,
    gate: Arc<Gate>,
}

/// Holds the calls until so many callers wait at the layer, so that nothing depends on the speed of the machine.
#[derive(Default)]
struct Gate {
    open: tokio::sync::watch::Sender<bool>,
}

impl Gate {
    async fn pass(&self) {
        let mut open = self.open.subscribe();
        let _ = open.wait_for(|open| *open).await;
    }
}

impl Site {
    async fn page(self, req: Request<()>) -> Result<Response<Payload>, Infallible> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let gzip = req
            .headers()
            .get("accept-encoding")
            .is_some_and(|coding| coding == "gzip");
        let path = req.uri().path().to_owned();
        let whom = req.headers().get("x-whom").cloned();
        self.gate.pass().await;
        let response = Response::builder().header("x-call", call);
        let response = match &*path {
            "/private" => response
                .header("set-cookie", format!("session={call}"))
                .header("x-whom", whom.unwrap())
                .body(payload("secret")),
            "/coded" if gzip => response
                .header("content-encoding", "gzip")
                .header("vary", "accept-encoding")
                .body(payload("zipped")),
            "/coded" => response
                .header("vary", "accept-encoding")
                .body(payload("plain")),
            "/large" => response.body(payload(vec![7; 3 << 20])),
            _ => response.body(payload("hello")),
        };
        Ok(response.unwrap())
    }

    fn open(&self) {
        self.gate.open.send_replace(true);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Service<Request<Incoming>> for Site {
    type Response = Response<Payload>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Payload>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<Incoming>) -> Self::Future {
        Box::pin(self.clone().page(req.map(drop)))
    }
}

/// Serves each connection with a product of its own of `layer`.
async fn serve<L, B>(layer: L, site: Site) -> SocketAddr
where
    L: Layer<Site>,
    L: Send + 'static,
    L::Service: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = layer.layer(site.clone());
            let io = TokioIo::new(stream);
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server
                    .serve_connection(io, TowerToHyperService::new(service))
                    .await;
            });
        }
    });
    addr
}

fn client(h2: bool) -> Client<HttpConnector, Payload> {
    Client::builder(TokioExecutor::new())
        .http2_only(h2)
        .build_http()
}

/// Waits until `count` callers are in flights or alone: then they may be answered.
async fn wait_for(what: &str, done: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if done() {
            return;
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(ms(2)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn a_server_runs_its_handler_once_for_equal_requests_of_many_connections() {
    for h2 in [false, true] {
        let layer = plain();
        let handle = layer.handle();
        let site = Site::default();
        let addr = serve(layer, site.clone()).await;
        let client = client(h2);
        let asked: Vec<_> = (0..20)
            .map(|_| tokio::spawn(client.request(get(&format!("http://{addr}/large")))))
            .collect();
        wait_for("twenty wait", || handle.snapshot().waiters == 20).await;
        site.open();
        // Side by side, as clients read: who does not is put out.
        let read = asked.into_iter().map(async |asked| {
            let response = asked.await.unwrap().unwrap();
            assert_eq!(response.version() == Version::HTTP_2, h2);
            assert_eq!(response.headers()["x-call"], "1");
            let length = (3 << 20).to_string();
            assert_eq!(response.headers()["content-length"], length);
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.to_bytes().len(), 3 << 20);
        });
        let read = tokio::time::timeout(secs(20), join_all(read));
        read.await.expect("they end");
        assert_eq!(
            (site.calls(), handle.snapshot().shared),
            (1, 19),
            "h2: {h2}"
        );
        assert_quiet(&handle);
    }
}

#[tokio::test]
async fn a_client_sends_equal_requests_once() {
    let site = Site::default();
    let addr = serve(tower::layer::util::Identity::new(), site.clone()).await;
    for h2 in [false, true] {
        site.gate.open.send_replace(false);
        site.calls.store(0, Ordering::SeqCst);
        let flow = Flow::new("client");
        let layer = plain().name("web");
        let handle = layer.handle();
        let service = ServiceBuilder::new()
            .layer(layer.attach(&flow))
            .service(client(h2));
        let asked: Vec<_> = (0..20)
            .map(|_| go(&service, get(&format!("http://{addr}/large"))))
            .collect();
        wait_for("the leader's call", || {
            site.calls() == 1 && handle.snapshot().waiters == 20
        })
        .await;
        site.open();
        let read = asked.into_iter().map(async |asked| {
            let response = asked.value().await;
            assert_eq!(response.headers()["x-call"], "1");
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.to_bytes().len(), 3 << 20);
        });
        let read = tokio::time::timeout(secs(20), join_all(read));
        read.await.expect("they end");
        let families: Families = flow.families();
        let shared = value(&families, "tower_flow_coalesce_shared", &[("name", "web")]);
        assert_eq!((site.calls(), shared), (1, Some(19.0)));
    }
}

#[tokio::test]
async fn heads_codings_and_private_pages_are_told_apart_on_a_server() {
    let layer = plain();
    let handle = layer.handle();
    let site = Site::default();
    let addr = serve(layer, site.clone()).await;
    let client = client(false);
    let uri = |path: &str| format!("http://{addr}{path}");
    let mut asked = Vec::new();
    for n in 0..12 {
        let req = match n % 4 {
            0 => with(get(&uri("/coded")), "accept-encoding", "gzip"),
            1 => with(get(&uri("/coded")), "accept-encoding", "identity"),
            2 => {
                let mut head = with(get(&uri("/coded")), "accept-encoding", "identity");
                *head.method_mut() = Method::HEAD;
                head
            }
            _ => {
                let mut private = get(&uri("/private"));
                private.headers_mut().insert("x-whom", HeaderValue::from(n));
                private
            }
        };
        asked.push(tokio::spawn(client.request(req)));
    }
    wait_for("twelve wait", || handle.snapshot().waiters == 12).await;
    assert_eq!(handle.snapshot().flights, 4);
    site.open();
    let mut sessions = HashSet::new();
    for (n, asked) in asked.into_iter().enumerate() {
        let response = asked.await.unwrap().unwrap();
        let headers: HeaderMap = response.headers().clone();
        let body = text(response).await;
        match n % 4 {
            0 => assert_eq!(
                (&headers["content-encoding"], &*body),
                (&HeaderValue::from_static("gzip"), "zipped")
            ),
            1 => assert_eq!((headers.get("content-encoding"), &*body), (None, "plain")),
            2 => assert_eq!(
                (&headers["content-length"], &*body),
                (&HeaderValue::from_static("5"), "")
            ),
            _ => {
                assert_eq!(headers["x-whom"], *n.to_string());
                assert!(
                    sessions.insert(headers["set-cookie"].clone()),
                    "a session for two"
                );
            }
        }
    }
    assert_eq!(site.calls(), 3 + 3, "and each private page its own");
    assert_quiet(&handle);
}

/// A server that promises more than it sends, then resets the connection.
async fn breaking() -> (SocketAddr, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let cut = Arc::new(Notify::new());
    let told = cut.clone();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await.unwrap();
        told.notified().await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n";
        stream.write_all(head).await.unwrap();
        stream.write_all(&[7; 1_000]).await.unwrap();
        stream.flush().await.unwrap();
        told.notified().await;
        stream.set_zero_linger().unwrap();
        drop(stream);
    });
    (addr, cut)
}

#[tokio::test]
async fn a_connection_that_is_reset_in_mid_body_is_an_error_for_every_reader() {
    let (addr, cut) = breaking().await;
    let layer = plain();
    let handle = layer.handle();
    let service = layer.layer(client(false));
    let asked: Vec<_> = (0..10)
        .map(|_| go(&service, get(&format!("http://{addr}/"))))
        .collect();
    wait_for("ten wait", || handle.snapshot().waiters == 10).await;
    cut.notify_one();
    let mut bodies = Vec::new();
    for asked in asked {
        let mut body = asked.value().await.into_body();
        let mut bytes = 0;
        while bytes < 1_000 {
            bytes += body
                .frame()
                .await
                .unwrap()
                .unwrap()
                .data_ref()
                .unwrap()
                .len();
        }
        bodies.push(body);
    }
    cut.notify_one();
    for mut body in bodies {
        let end = body.frame().await.expect("never a clean end");
        assert!(find::<hyper::Error>(end.unwrap_err().as_ref()).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn the_builder_makes_the_http_form() {
    let flow = Flow::new("built");
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let service = ServiceBuilder::new()
        .http_coalesce("pages", &flow)
        .service(service_fn(move |_: Request<Payload>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(ms(10)).await;
                Ok::<_, BoxError>(Response::new(payload("hello")))
            }
        }));
    let asked: Vec<_> = (0..4).map(|_| go(&service, get(URI))).collect();
    for asked in asked {
        assert_eq!(text(asked.value().await).await, "hello");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let saved = value(
        &flow.families(),
        "tower_flow_coalesce_shared",
        &[("name", "pages")],
    );
    assert_eq!(saved, Some(3.0));
}

/// Failures of the layer as a server answers them.
#[tokio::test(start_paused = true)]
async fn what_fails_here_can_be_a_response() {
    let layer = plain().respond(true).flight_timeout(secs(1));
    let service = layer.layer(service_fn(|_: Request<Payload>| {
        std::future::pending::<Result<Response<Payload>, BoxError>>()
    }));
    let asked: Vec<_> = (0..2).map(|_| go(&service, get(URI))).collect();
    for asked in asked {
        let response = asked.value().await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(response.headers()["x-coalesce-reason"], "timeout");
    }
}
