//! A batch as one HTTP request, over hyper's client and server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tower_flow::BoxError;
use tower_flow::batch::{Answers, Batch, HttpBatch, HttpBatchError, Keys};
use tower_flow::error::find;

use super::{eventually, ms, send};
use crate::support::Steps;

/// What was asked for, what was answered.
#[derive(Clone, Default)]
pub struct Books {
    requests: Arc<AtomicUsize>,
    lines: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

struct Open(Books);

/// A line for each line, `n` for `n`; a path says what else is to happen.
pub async fn serve(books: &Books) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let books = books.clone();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let books = books.clone();
            let service = service_fn(move |req| answer(books.clone(), req));
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(io), service);
            tokio::spawn(serving);
        }
    });
    addr
}

async fn answer(books: Books, req: Request<Incoming>) -> Result<Response<Steps>, Infallible> {
    let _open = Open::new(&books);
    books.requests.fetch_add(1, Ordering::SeqCst);
    let path = req.uri().path().to_owned();
    let asked = req.into_body().collect().await.unwrap().to_bytes();
    let asked = String::from_utf8(asked.to_vec()).unwrap();
    books
        .lines
        .fetch_add(asked.lines().count(), Ordering::SeqCst);
    let reversed: Vec<_> = asked.lines().rev().collect();
    let data = |text: String| Some(Ok(Frame::data(Bytes::from(text))));
    let mut response = Response::new(Steps::default());
    let steps = match path.as_str() {
        "/garbage" => vec![data("\u{1}\u{2}".into())],
        "/short" => vec![data(reversed[1..].join("\n"))],
        "/long" => vec![data(format!("{asked}\n77\n78"))],
        "/large" => (0..100).map(|_| data("7".repeat(65_536))).collect(),
        "/breaks" => vec![data(asked), None, Some(Err("broken".into()))],
        "/busy" => {
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            vec![data("come back later".into())]
        }
        "/never" => std::future::pending().await,
        _ => vec![data(reversed.join("\n"))],
    };
    *response.body_mut() = Steps::new(steps);
    Ok(response)
}

/// A service that sends lines to `path`.
pub fn lines(
    addr: SocketAddr,
    path: &'static str,
) -> HttpBatch<
    Client<HttpConnector, Full<Bytes>>,
    (
        impl Fn(Batch<u64>) -> Result<(Request<Full<Bytes>>, Keys<u64>), BoxError>
        + Send
        + Sync
        + 'static,
        impl Fn(Keys<u64>, Response<Bytes>) -> Result<Answers<u64>, BoxError> + Send + Sync + 'static,
    ),
> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    HttpBatch::new(
        client,
        move |batch: Batch<u64>| {
            let lines: Vec<_> = batch.iter().map(u64::to_string).collect();
            let req = Request::post(format!("http://{addr}{path}"));
            Ok((req.body(Full::from(lines.join("\n")))?, batch.keys(|n| *n)))
        },
        |asked: Keys<u64>, response| {
            let lines = std::str::from_utf8(response.body())?.lines();
            let numbers = lines.map(|line| Ok((line.parse()?, line.parse()?)));
            Ok(asked.answer(numbers.collect::<Result<Vec<(u64, u64)>, BoxError>>()?))
        },
    )
}

fn typed(error: &BoxError) -> &HttpBatchError {
    find(error.as_ref()).unwrap_or_else(|| panic!("{error}"))
}

// ===== impl Books =====

impl Books {
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn lines(&self) -> usize {
        self.lines.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Open {
    fn new(books: &Books) -> Self {
        books.open.fetch_add(1, Ordering::SeqCst);
        Self(books.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_batch_is_one_request() {
    let books = Books::default();
    let service = lines(serve(&books).await, "/");
    for batch in 0..3 {
        let range = batch * 100..(batch + 1) * 100;
        let answers = send(&service, range.clone()).await.unwrap().all();
        assert_eq!(answers, range.collect::<Vec<_>>());
    }
    assert_eq!((books.requests(), books.lines()), (3, 300));
}

#[tokio::test]
async fn an_answer_of_the_wrong_length_is_missed_where_it_is() {
    let addr = serve(&Books::default()).await;
    let sent = send(&lines(addr, "/short"), 0..5).await.unwrap();
    assert_eq!((sent.outline().as_str(), sent.unknown), ("aaaa-", 0));
    let sent = send(&lines(addr, "/long"), 0..5).await.unwrap();
    assert_eq!((sent.outline().as_str(), sent.unknown), ("aaaaa", 2));
}

#[tokio::test]
async fn garbage_is_an_error_of_the_batch() {
    let addr = serve(&Books::default()).await;
    let error = send(&lines(addr, "/garbage"), 0..5).await.err().unwrap();
    assert!(matches!(
        typed(&error),
        HttpBatchError::Decode { items: 5, .. }
    ));
    assert!(find::<std::num::ParseIntError>(error.as_ref()).is_some());
}

#[tokio::test]
async fn a_body_that_is_too_large_is_not_read() {
    let addr = serve(&Books::default()).await;
    let error = send(&lines(addr, "/large"), 0..5).await.err().unwrap();
    let HttpBatchError::TooLarge { bytes, max, .. } = typed(&error) else {
        panic!("{error}");
    };
    assert!(*bytes > 4 << 20 && *bytes < 5 << 20, "{bytes}");
    assert_eq!(*max, 4 << 20);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_of_the_batch() {
    let addr = serve(&Books::default()).await;
    let error = send(&lines(addr, "/breaks"), 0..5).await.err().unwrap();
    assert!(
        matches!(typed(&error), HttpBatchError::Body { bytes: 9, .. }),
        "{error}"
    );
    assert!(find::<hyper::Error>(error.as_ref()).is_some());
}

#[tokio::test]
async fn a_busy_server_says_so() {
    let addr = serve(&Books::default()).await;
    let error = send(&lines(addr, "/busy"), 0..5).await.err().unwrap();
    let HttpBatchError::Status { response, .. } = typed(&error) else {
        panic!("{error}");
    };
    assert_eq!(
        (response.status().as_u16(), &response.body()[..]),
        (503, &b"come back later"[..])
    );
    let error = send(&lines(addr, "/busy").any_status(), 0..5)
        .await
        .err()
        .unwrap();
    assert!(matches!(typed(&error), HttpBatchError::Decode { .. }));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_the_clients_error() {
    let addr = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let error = send(&lines(addr, "/"), 0..5).await.err().unwrap();
    assert!(error.is::<hyper_util::client::legacy::Error>(), "{error}");
}

#[tokio::test]
async fn a_batch_that_is_given_up_is_dropped_by_the_server_too() {
    let books = Books::default();
    let addr = serve(&books).await;
    let service = lines(addr, "/never");
    let waiting = tokio::time::timeout(ms(100), send(&service, 0..5));
    assert!(waiting.await.is_err());
    assert_eq!(books.requests(), 1);
    eventually("the server lets go", || books.open() == 0).await;
}
