use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use tower::{Service, service_fn};

use super::*;
use crate::base::clock;
use crate::base::deadline::Deadline;
use crate::base::error::{BoxError, Reason, Rejection, find};
use crate::middleware::batch::request::{Batch, Facts, Flush};
use crate::middleware::batch::results::{All, IntoResults};

type Body = BoxBody<Bytes, io::Error>;

/// Asks for what the items say, and takes the text of the response for each of them.
fn encode(batch: Batch<&str>) -> Result<(Request<String>, usize), BoxError> {
    let path = batch.into_vec().join("/");
    Ok((Request::get(format!("/{path}")).body(path)?, 0))
}

fn decode(_: usize, response: Response<Bytes>) -> Result<All<String>, BoxError> {
    let text = str::from_utf8(response.body())?;
    Ok(All(format!("{} {text}", response.status().as_u16())))
}

fn frames(frames: impl IntoIterator<Item = Result<Frame<Bytes>, io::Error>>) -> Body {
    let frames: Vec<_> = frames.into_iter().collect();
    BodyExt::boxed(StreamBody::new(stream::iter(frames)))
}

fn data(text: &'static str) -> Result<Frame<Bytes>, io::Error> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn full(text: &'static str) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed()
}

type Encode = fn(Batch<&'static str>) -> Result<(Request<String>, usize), BoxError>;
type Decode = fn(usize, Response<Bytes>) -> Result<All<String>, BoxError>;
type Sut = HttpBatch<Once, (Encode, Decode)>;

/// Sends one batch to a server that answers with `status` and `body`.
async fn send(status: u16, body: Body, with: fn(Sut) -> Sut) -> Result<String, BoxError> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let codec = (encode as Encode, decode as Decode);
    let mut service = with(HttpBatch::with_codec(Once(Some(response)), codec));
    let All(text) = service.call(Batch::new(["a", "b"])).await?;
    Ok(text)
}

/// Answers once.
struct Once(Option<Response<Body>>);

impl Service<Request<String>> for Once {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<String>) -> Self::Future {
        assert_eq!(req.uri().path(), "/a/b");
        std::future::ready(Ok(self.0.take().unwrap()))
    }
}

fn typed(error: &BoxError) -> &HttpBatchError {
    find(error.as_ref()).expect("it is typed")
}

#[tokio::test]
async fn a_batch_is_one_request_and_its_response_is_read_whole() {
    assert_eq!(send(200, full("yes"), |s| s).await.unwrap(), "200 yes");
    let body = frames([
        data("one "),
        data(""),
        data("two"),
        Ok(Frame::trailers(HeaderMap::new())),
    ]);
    assert_eq!(send(206, body, |s| s).await.unwrap(), "206 one two");
    assert_eq!(send(204, frames([]), |s| s).await.unwrap(), "204 ");
}

#[tokio::test]
async fn a_body_may_be_as_large_as_it_may_and_no_larger() {
    for body in [full("12345"), frames([data("12"), data("345")])] {
        assert_eq!(
            send(200, body, |s| s.max_body(5)).await.unwrap(),
            "200 12345"
        );
    }
    for body in [full("12345"), frames([data("12"), data("345"), data("6")])] {
        let error = send(200, body, |s| s.max_body(4)).await.unwrap_err();
        let HttpBatchError::TooLarge { items, bytes, max } = typed(&error) else {
            panic!("{error}");
        };
        assert_eq!((*items, *bytes, *max), (2, 5, 4));
        assert_eq!(
            error.to_string(),
            "the response to 2 items has at least 5 bytes, of 4 it may have; raise max_body or have fewer items in a batch"
        );
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_answer() {
    let body = frames([data("half"), Err(io::ErrorKind::ConnectionReset.into())]);
    let error = send(200, body, |s| s).await.unwrap_err();
    assert!(matches!(
        typed(&error),
        HttpBatchError::Body { bytes: 4, .. }
    ));
    let source = find::<io::Error>(error.as_ref()).unwrap();
    assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_is_no_success_fails_with_status_and_body() {
    let error = send(503, full("busy"), |s| s).await.unwrap_err();
    let HttpBatchError::Status { response, items: 2 } = typed(&error) else {
        panic!("{error}");
    };
    assert_eq!(response.status(), 503);
    assert_eq!(response.body(), "busy");
    assert_eq!(
        error.to_string(),
        "the server answered 2 items with 503 Service Unavailable; any_status lets the codec read it"
    );

    // Of a body that is too large or breaks off there is what came first.
    let large = "0123456789".repeat(1_000).leak();
    let broken = frames([data("half"), Err(io::ErrorKind::ConnectionReset.into())]);
    for (body, length) in [(frames([data(large)]), 8_192), (broken, 4)] {
        let error = send(500, body, |s| s).await.unwrap_err();
        let HttpBatchError::Status { response, .. } = typed(&error) else {
            panic!("{error}");
        };
        assert_eq!(response.body().len(), length);
    }
}

#[tokio::test]
async fn a_codec_may_read_every_status() {
    let text = send(404, full("none"), |s| s.any_status()).await.unwrap();
    assert_eq!(text, "404 none");
}

#[tokio::test]
async fn a_codec_that_fails_fails_the_batch() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let client = service_fn(move |_: Request<String>| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok::<_, Infallible>(Response::new(full("?"))))
    });
    let mut service = HttpBatch::new(
        client,
        |batch: Batch<u32>| match batch[0] {
            0 => Err("no zeros".into()),
            _ => Ok((Request::new(String::new()), ())),
        },
        |(), _| Err::<HashMap<usize, Result<u32, Infallible>>, _>("gibberish".into()),
    );
    let error = service.call(Batch::new([0])).await.err().unwrap();
    assert!(matches!(
        typed(&error),
        HttpBatchError::Encode { items: 1, .. }
    ));
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    let error = service.call(Batch::new([1, 2])).await.err().unwrap();
    assert!(matches!(
        typed(&error),
        HttpBatchError::Decode { items: 2, .. }
    ));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_codec_that_panics_leaves_the_service_usable() {
    let client = service_fn(|_: Request<String>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(full("7"))))
    });
    let service = HttpBatch::new(
        client,
        |batch: Batch<u32>| {
            assert!(batch[0] != 0, "panics in encode");
            let first = batch[0];
            Ok((Request::new(String::new()), first))
        },
        |first, response| {
            assert!(first != 1, "panics in decode");
            Ok(All(response.into_body()))
        },
    );
    for (first, panics) in [(0, "encode"), (1, "decode")] {
        let mut service = service.clone();
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let mut calling = tokio_test::task::spawn(service.call(Batch::new([first])));
            calling.poll().is_ready()
        }))
        .unwrap_err();
        let message = panic.downcast_ref::<&str>().unwrap();
        assert!(message.contains(panics));
        let All(body) = service.call(Batch::new([2])).await.unwrap();
        assert_eq!(body, "7");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_the_deadline() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let client = service_fn(move |req: Request<String>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let deadline = req.extensions().get::<Deadline>().copied();
        assert!(deadline.is_some(), "the layers below see it");
        std::future::pending::<Result<Response<Body>, Infallible>>()
    });
    let mut service = HttpBatch::new(client, encode, decode);
    let begun = clock::now();
    let batch = |deadline| {
        let facts = Facts {
            weight: 1,
            flush: Flush::Full,
            deadline: Some(Deadline::at(deadline)),
        };
        Batch::of(vec!["a"], facts)
    };
    let due = begun + Duration::from_millis(50);
    let error = service.call(batch(due)).await.unwrap_err();
    assert_eq!(clock::now() - begun, Duration::from_millis(50));
    let reason = Rejection::find(error.as_ref()).unwrap().reason();
    assert_eq!(
        (reason, calls.load(Ordering::Relaxed)),
        (Reason::Deadline, 1)
    );
    let error = service.call(batch(due)).await.unwrap_err();
    let reason = Rejection::find(error.as_ref()).unwrap().reason();
    assert_eq!(
        (reason, calls.load(Ordering::Relaxed)),
        (Reason::Deadline, 1)
    );
}

#[test]
fn a_dropped_batch_drops_its_request() {
    let held = Arc::new(());
    let kept = held.clone();
    let client = service_fn(move |_: Request<String>| {
        let kept = kept.clone();
        async move {
            std::future::pending::<()>().await;
            drop(kept);
            Ok::<_, Infallible>(Response::new(full("")))
        }
    });
    let mut service = HttpBatch::new(client, encode, decode);
    let mut calling = tokio_test::task::spawn(service.call(Batch::new(["a"])));
    assert!(calling.poll().is_pending());
    assert_eq!(Arc::strong_count(&held), 3);
    drop(calling);
    assert_eq!(Arc::strong_count(&held), 2);
}

#[test]
fn too_few_and_too_many_answers_are_told_apart_by_their_positions() {
    let results = vec![Ok::<_, Infallible>(1), Ok(2), Ok(3)];
    let positions: Vec<_> = results.into_results(2).map(|(at, _)| at).collect();
    assert_eq!(positions, [0, 1, 2], "the third is nobody's");
}
