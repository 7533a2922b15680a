//! Single requests, through the layer and an adapter.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::{Request, Response};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tower::{Layer, Service, ServiceExt};
use tower_flow::batch::{
    All, Batch, BatchLayer, Destinations, GrpcStreamError, HttpBatch, OnError,
};
use tower_flow::deadline::Deadline;
use tower_flow::error::{Reason, find};
use tower_flow::{BoxError, Rejection, clock};

use super::shelf::{Does, Get, Got, Shelf, channel, get, gets};
use super::stream::{by_id, ordered};
use super::unary::by_key;
use super::{eventually, http, ms};

/// Sends them all at once, each in a task of its own.
fn send_all<S, Req>(
    service: &S,
    reqs: impl IntoIterator<Item = Req>,
) -> Vec<JoinHandle<Result<S::Response, BoxError>>>
where
    S: Service<Req, Error = BoxError, Future: Send, Response: Send> + Clone + Send + 'static,
    Req: Send + 'static,
{
    let reqs = reqs.into_iter();
    reqs.map(|req| tokio::spawn(service.clone().oneshot(req)))
        .collect()
}

async fn results<T>(sent: Vec<JoinHandle<Result<T, BoxError>>>) -> Vec<Result<T, BoxError>> {
    let mut results = Vec::new();
    for sent in sent {
        let result = tokio::time::timeout(Duration::from_secs(20), sent).await;
        results.push(result.expect("it hangs").unwrap());
    }
    results
}

async fn assert_all_answered(sent: Vec<JoinHandle<Result<Got, BoxError>>>) {
    for (id, result) in results(sent).await.into_iter().enumerate() {
        assert_eq!(result.unwrap().id, id as u64);
    }
}

fn reason(error: &BoxError) -> Reason {
    let rejection = Rejection::find(error.as_ref());
    rejection.unwrap_or_else(|| panic!("{error}")).reason()
}

#[tokio::test]
async fn a_thousand_requests_are_few_calls() {
    let shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let layer = BatchLayer::new().max_items(100);
    let service = layer.layer(by_key(shelf.channel()));
    assert_all_answered(send_all(&service, gets(0..1_000))).await;
    let now = layer.handle().snapshot();
    assert_eq!(now.batches as usize, shelf.calls());
    assert!(shelf.calls() <= 20, "{} calls", shelf.calls());
    shelf.assert_once();
}

#[tokio::test]
async fn a_thousand_requests_go_over_one_stream() {
    let shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let layer = BatchLayer::new().max_items(100);
    let service = layer.layer(ordered(shelf.channel()));
    assert_all_answered(send_all(&service, gets(0..1_000))).await;
    assert_eq!((shelf.streams(), shelf.ids().len()), (1, 1_000));
    let now = layer.handle().snapshot();
    assert!(now.batches <= 20, "{now:?}");
    shelf.assert_once();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_as_many_streams_as_batches_in_flight() {
    let shelf = Shelf::start(|_, at, _| match at % 16 {
        15 => Does::Waits(5),
        _ => Does::Answers,
    })
    .await;
    let layer = BatchLayer::new().max_items(16).max_in_flight(4, 4);
    let service = layer.layer(by_id(shelf.channel()));
    assert_all_answered(send_all(&service, gets(0..1_000))).await;
    assert!((2..=4).contains(&shelf.streams()), "{}", shelf.streams());
    shelf.assert_once();
}

/// A stream that is kept counts as one on the server: whoever waits to open another gets it instead.
#[tokio::test]
async fn a_server_that_allows_fewer_streams_than_batches_serves_them_all() {
    let mut shelf = Shelf::start(|_, _, _| Does::Waits(1)).await;
    shelf.kill().await;
    shelf.max_streams = Some(1);
    shelf.restart().await;
    let inner = ordered(shelf.channel());
    // Connects, so that the limit is known.
    inner
        .clone()
        .oneshot(Batch::new(gets([999])))
        .await
        .unwrap();
    let layer = BatchLayer::new().max_items(2).max_in_flight(4, 4);
    let service = layer.layer(inner);
    assert_all_answered(send_all(&service, gets(0..100))).await;
    assert_eq!(shelf.streams(), 1);
    shelf.assert_once();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_shard_goes_to_its_destination() {
    let mut shelves = Vec::new();
    for _ in 0..3 {
        shelves.push(Shelf::start(|_, _, _| Does::Answers).await);
    }
    let addrs: Vec<_> = shelves.iter().map(|shelf| shelf.addr).collect();
    let shelf_of = |get: &Get| get.id % 3;
    let destinations = Destinations::new(shelf_of, move |shelf: &u64| {
        Ok(by_id(channel(addrs[*shelf as usize])))
    });
    let layer = BatchLayer::new().shard_by(shelf_of);
    let service = layer.layer(destinations.clone());
    assert_all_answered(send_all(&service, gets(0..999))).await;
    for (shelf, n) in shelves.iter().zip(0..) {
        assert_eq!((shelf.streams(), shelf.ids().len()), (1, 333));
        assert!(shelf.ids().iter().all(|id| id % 3 == n));
    }
    assert_eq!(destinations.len(), 3);
}

#[tokio::test]
async fn a_thousand_requests_are_few_posts() {
    let books = http::Books::default();
    let layer = BatchLayer::new().max_items(100);
    let service = layer.layer(http::lines(http::serve(&books).await, "/"));
    let results = results(send_all(&service, 0..1_000)).await;
    for (n, result) in results.into_iter().enumerate() {
        assert_eq!(result.unwrap(), n as u64);
    }
    let batches = layer.handle().snapshot().batches as usize;
    assert_eq!((books.requests(), books.lines()), (batches, 1_000));
    assert!(batches <= 20, "{batches} batches");
}

#[tokio::test]
async fn requests_without_answer_are_missing() {
    let shelf = Shelf::start(|stream, at, _| match (stream, at) {
        (0, 2) => Does::Ends,
        _ => Does::Answers,
    })
    .await;
    let layer = BatchLayer::new().max_items(4).max_delay(ms(1_000));
    let service = layer.layer(ordered(shelf.channel()));
    let results = results(send_all(&service, gets(0..4))).await;
    assert_eq!(results[1].as_ref().unwrap().id, 1);
    for result in &results[2..] {
        assert_eq!(reason(result.as_ref().unwrap_err()), Reason::Missing);
    }
}

#[tokio::test]
async fn requests_on_a_stream_that_breaks_have_its_status() {
    let shelf = Shelf::start(|stream, at, _| match (stream, at) {
        (0, 2) | (1, 0) => Does::Fails(Code::Aborted),
        _ => Does::Answers,
    })
    .await;
    let layer = BatchLayer::new().max_items(4).max_delay(ms(1_000));
    let service = layer.layer(ordered(shelf.channel()));
    for answered in [2, 0] {
        let results = results(send_all(&service, gets(0..4))).await;
        for (at, result) in results.iter().enumerate() {
            assert_eq!(result.is_ok(), at < answered);
            if let Err(error) = result {
                let stream = find::<GrpcStreamError>(error.as_ref()).unwrap();
                assert_eq!((stream.answered(), stream.items()), (answered, 4));
                let status = find::<Status>(error.as_ref()).unwrap();
                assert_eq!(status.code(), Code::Aborted);
            }
        }
    }
}

#[tokio::test]
async fn a_poison_is_found_among_sixty_four() {
    let shelf = Shelf::start(|_, _, get| match get.id {
        36 => Does::Fails(Code::InvalidArgument),
        _ => Does::Answers,
    })
    .await;
    let layer = BatchLayer::new()
        .max_delay(ms(1_000))
        .on_error(OnError::Bisect);
    let service = layer.layer(by_key(shelf.channel()));
    let results = results(send_all(&service, gets(0..64))).await;
    for (id, result) in results.iter().enumerate() {
        assert_eq!(result.is_ok(), id != 36);
    }
    assert_eq!(shelf.calls(), 13);
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_the_stream() {
    let shelf = Shelf::start(|stream, at, _| match (stream, at) {
        (0, 1) => Does::Waits(60_000),
        _ => Does::Answers,
    })
    .await;
    let until = |get: &Get| {
        let patience = ms(if get.id == 0 { 100 } else { 300 });
        Deadline::after(clock::now(), patience)
    };
    let layer = BatchLayer::new()
        .max_items(3)
        .max_delay(ms(50))
        .deadline(until, Duration::ZERO);
    let inner = ordered(shelf.channel());
    let service = layer.layer(inner.clone());
    let begun = clock::now();
    let results = results(send_all(&service, gets([7, 0, 8]))).await;
    assert!(clock::now() - begun < ms(2_000));
    assert_eq!(reason(results[1].as_ref().unwrap_err()), Reason::Deadline);
    assert!(results[2].is_err());
    eventually("the stream goes", || shelf.open() == 0).await;
    assert_eq!(inner.idle(), 0);
    let again = service.clone().oneshot(get(9)).await.unwrap();
    assert_eq!(again.id, 9);
    shelf.assert_once();
}

#[tokio::test]
async fn a_codec_that_panics_fails_its_batch_alone() {
    let books = http::Books::default();
    let addr = http::serve(&books).await;
    let panics = Arc::new(AtomicBool::new(true));
    for panics_in in ["encode", "decode"] {
        let (encodes, decodes) = (panics.clone(), panics.clone());
        let inner = HttpBatch::new(
            http::lines(addr, "/").into_inner(),
            move |batch: Batch<u64>| {
                let panics = panics_in == "encode" && encodes.load(Ordering::SeqCst);
                assert!(!panics, "no such word");
                let req = Request::post(format!("http://{addr}/"));
                Ok((req.body(batch.len().to_string().into())?, ()))
            },
            move |(), response: Response<bytes::Bytes>| {
                let panics = panics_in == "decode" && decodes.load(Ordering::SeqCst);
                assert!(!panics, "no such word");
                Ok(All(response.into_body()))
            },
        );
        let service = BatchLayer::new().layer(inner);
        panics.store(true, Ordering::SeqCst);
        for result in results(send_all(&service, 0..3)).await {
            let error = result.unwrap_err();
            assert_eq!(reason(&error), Reason::Panicked);
            assert!(error.to_string().contains("no such word"), "{error}");
        }
        panics.store(false, Ordering::SeqCst);
        for result in results(send_all(&service, 0..3)).await {
            result.unwrap();
        }
    }
}

#[tokio::test]
async fn those_who_leave_do_not_disturb_the_others() {
    let shelf = Shelf::start(|_, at, _| match at {
        5 => Does::WaitsAtDoor,
        _ => Does::Answers,
    })
    .await;
    let layer = BatchLayer::new().max_items(10).max_delay(ms(1_000));
    let service = layer.layer(ordered(shelf.channel()));
    let mut sent = send_all(&service, gets(0..10));
    eventually("it waits", || shelf.ids().len() >= 6).await;
    let stay = sent.split_off(5);
    for gone in sent {
        gone.abort();
    }
    shelf.open_door();
    for result in results(stay).await {
        result.unwrap();
    }
    assert_eq!((shelf.streams(), shelf.ids().len()), (1, 10));
}

/// Whatever becomes of the server, everybody has an answer, and nothing is sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_under_load_leaves_nobody_waiting() {
    let mut shelf = Shelf::start(|_, at, _| match at % 50 {
        49 => Does::Waits(1),
        _ => Does::Answers,
    })
    .await;
    let layer = BatchLayer::new().max_items(20).max_in_flight(4, 4);
    let service = layer.layer(by_id(shelf.channel()));
    let mut sent = Vec::new();
    for round in 0..8 {
        sent.extend(send_all(&service, gets(round * 500..(round + 1) * 500)));
        tokio::time::sleep(ms(10)).await;
        shelf.kill().await;
        shelf.restart().await;
    }
    let results = results(sent).await;
    let answered = results.iter().filter(|result| result.is_ok()).count();
    for (id, result) in results.iter().enumerate() {
        match result {
            Ok(got) => assert_eq!(got.id, id as u64),
            Err(error) => assert!(find::<GrpcStreamError>(error.as_ref()).is_some(), "{error}"),
        }
    }
    assert!(answered > 0);
    shelf.assert_once();
    assert_eq!(service.oneshot(get(99_999)).await.unwrap().id, 99_999);
    eventually("it is quiet", || {
        let now = layer.handle().snapshot();
        (now.in_flight, now.queued) == (0, 0)
    })
    .await;
}
