use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::{StreamExt, stream};
use tokio_test::{assert_pending, assert_ready, task};
use tonic::Code;
use tower::limit::ConcurrencyLimit;

use super::*;
use crate::base::error::{BoxError, find};
use crate::middleware::batch::grpc::{GrpcStreamBatch, GrpcStreamError, Ordered};
use crate::middleware::batch::results::{self, IntoResults};

type Batches<T, G> = GrpcStreamBatch<T, ProstCodec<u64, u64>, Ordered<fn(u64) -> u64, G>>;
type Read = fn(u64) -> Result<u64, Status>;

/// Sends each item as it is; answers of 1,000 and more are failures.
fn items<T>(grpc: Grpc<T>) -> Batches<T, Read> {
    let read = |answer: u64| match answer {
        0..1_000 => Ok(answer),
        large => Err(Status::not_found(large.to_string())),
    };
    let ask = |item| item;
    GrpcStreamBatch::ordered(
        grpc,
        "/test.Items/Pass",
        ProstCodec::default(),
        ask as fn(_) -> _,
        read as Read,
    )
}

fn double() -> Local {
    Local::new(|asked| asked.map(|item| Ok(item? * 2)))
}

/// What the items get; 0 for an error.
fn values(answers: results::Answers<u64, BoxError>) -> Vec<(usize, u64)> {
    let results = answers.into_results(0);
    results
        .map(|(position, result)| (position, result.unwrap_or(0)))
        .collect()
}

#[tokio::test]
async fn batches_use_one_stream_after_the_other() {
    let local = double();
    let mut items = items(local.grpc());
    for _ in 0..3 {
        let answers = items.call(Batch::new([1, 500, 2])).await.unwrap();
        assert_eq!(values(answers), [(0, 2), (1, 0), (2, 4)]);
    }
    let mut clone = items.clone();
    clone.call(Batch::new([1])).await.unwrap();
    assert_eq!((local.calls(), items.opened(), items.idle()), (1, 1, 1));
    drop(items.call(Batch::new([1])));
    assert_eq!(items.idle(), 1, "nothing was begun");
}

#[tokio::test]
async fn an_empty_batch_needs_no_stream() {
    let local = double();
    let answers = items(local.grpc()).call(Batch::new([])).await.unwrap();
    assert_eq!((values(answers), local.calls()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn items_without_answer_fail_at_the_deadline() {
    let local = Local::new(|asked| asked.take(2).chain(stream::pending()));
    let mut items = items(local.grpc());
    let (begun, due) = (clock::now(), clock::now() + ms(40));
    let answers = items.call(until(&[7, 8, 9], due)).await.unwrap();
    assert_eq!(clock::now() - begun, ms(40));
    let mut results: Vec<_> = answers.into_results(3).collect();
    let (position, last) = results.pop().unwrap();
    let error = last.unwrap_err();
    let error = find::<GrpcStreamError>(error.as_ref()).unwrap();
    assert_eq!(error.status().code(), Code::DeadlineExceeded);
    assert_eq!((position, error.answered(), error.items()), (2, 2, 3));
    assert_eq!(results.len(), 2);
    assert_eq!(items.idle(), 0, "the answer may still come");

    let error = items.call(until(&[7], due)).await.unwrap_err();
    assert_eq!(error.status().code(), Code::DeadlineExceeded);
    assert_eq!(local.calls(), 1, "nobody waits any more");
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_when_it_is_old_or_not_used() {
    let local = double();
    let mut items = items(local.grpc()).idle_timeout(ms(100)).max_age(ms(250));
    for (pause, calls) in [
        (0, 1),
        (99, 1),
        (100, 2),
        (99, 2),
        (99, 2),
        (51, 2),
        (99, 3),
    ] {
        tokio::time::advance(ms(pause)).await;
        items.call(Batch::new([1])).await.unwrap();
        assert_eq!(local.calls(), calls, "after {pause}");
    }
    let mut items = items.max_idle(0);
    items.call(Batch::new([1])).await.unwrap();
    items.call(Batch::new([1])).await.unwrap();
    assert_eq!((local.calls(), items.idle()), (4, 0));
}

#[tokio::test]
async fn readiness_is_that_of_the_channel_unless_a_stream_is_idle() {
    let local = double();
    let channel = ConcurrencyLimit::new(local.clone(), 1);
    let mut holder = channel.clone();
    let mut items = items(Grpc::new(channel));
    let mut ready = task::spawn(std::future::poll_fn(|cx| holder.poll_ready(cx)));
    assert!(assert_ready!(ready.poll()).is_ok());

    let mut waiting = items.clone();
    let mut ready = task::spawn(std::future::poll_fn(|cx| waiting.poll_ready(cx)));
    assert_pending!(ready.poll());
    // One that is called all the same waits in its future.
    let mut calling = task::spawn(items.call(Batch::new([4])));
    assert_pending!(calling.poll());
    drop(holder);
    assert!(assert_ready!(ready.poll()).is_ok());
    drop(waiting);
    let answers = calling.await.unwrap();
    assert_eq!(values(answers), [(0, 8)]);

    let mut others = [items.clone(), items.clone()];
    for other in &mut others {
        let mut ready = task::spawn(std::future::poll_fn(|cx| other.poll_ready(cx)));
        assert!(assert_ready!(ready.poll()).is_ok(), "the stream is idle");
    }
}

#[tokio::test]
async fn a_closure_that_panics_costs_its_batch_and_its_stream() {
    let local = double();
    let mut items = GrpcStreamBatch::ordered(
        local.grpc(),
        "/test.Items/Pass",
        ProstCodec::default(),
        |item: u64| {
            assert!(item != 13, "asked to panic");
            item
        },
        |answer: u64| {
            assert!(answer != 200, "read a panic");
            Ok::<_, Status>(answer)
        },
    );
    items.call(Batch::new([1])).await.unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| items.call(Batch::new([1, 13]))));
    assert!(panic.is_err());
    assert_eq!(items.idle(), 1, "nothing was sent");
    let mut calling = task::spawn(items.call(Batch::new([1, 100, 2])));
    let panic = catch_unwind(AssertUnwindSafe(|| calling.poll().is_ready()));
    assert!(panic.is_err());
    drop(calling);
    assert_eq!(items.idle(), 0, "an answer is still to come");
    let answers = items.call(Batch::new([3])).await.unwrap();
    assert_eq!(values(answers), [(0, 6)]);
    assert_eq!(local.calls(), 2);
}
