use futures_util::{StreamExt, stream};
use tonic::Code;

use super::*;
use crate::middleware::batch::grpc::GrpcBatch;
use crate::middleware::batch::results::All;

/// Adds up the items; the server says how much that is.
fn sums(local: &Local) -> impl Service<Batch<u64>, Response = All<u64>, Error = Status> + Clone {
    GrpcBatch::new(
        local.grpc(),
        "/test.Sums/Sum",
        ProstCodec::default(),
        |batch: Batch<u64>| (batch.iter().sum::<u64>(), batch.len()),
        |items: usize, sum: u64| match items {
            0 => Err(Status::failed_precondition("of nothing")),
            _ => Ok(All(sum)),
        },
    )
}

fn echo() -> Local {
    Local::new(|asked| asked)
}

fn never() -> Local {
    Local::new(|_| stream::pending())
}

#[tokio::test]
async fn a_batch_is_one_call() {
    let local = echo();
    let mut sums = sums(&local);
    assert_eq!(sums.call(Batch::new([1, 2, 4])).await.unwrap(), All(7));
    assert_eq!(local.calls(), 1);
    assert_eq!(*local.timeouts.lock().unwrap(), [None]);
    let error = sums.call(Batch::new([])).await.unwrap_err();
    assert_eq!(error.message(), "of nothing");
}

#[tokio::test(start_paused = true)]
async fn the_call_has_what_is_left_of_the_deadline() {
    let local = never();
    let mut sums = sums(&local);
    let (begun, due) = (clock::now(), clock::now() + ms(40));
    let error = sums.call(until(&[1, 2], due)).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.message().contains("2 items"), "{error}");
    assert_eq!(clock::now() - begun, ms(40));
    let timeout = local.timeouts.lock().unwrap()[0].clone().unwrap();
    assert_eq!(crate::base::deadline::grpc_timeout(&timeout), Some(ms(40)));
    assert_eq!(*local.deadlines.lock().unwrap(), [Some(Deadline::at(due))]);

    let error = sums.call(until(&[1], due)).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(local.calls(), 1, "nobody waits any more");
}

#[tokio::test(start_paused = true)]
async fn a_shorter_timeout_of_the_codec_stays() {
    let local = echo();
    let mut sums = GrpcBatch::new(
        local.grpc(),
        "/test.Sums/Sum",
        ProstCodec::<u64, _>::default(),
        |batch: Batch<u64>| {
            let mut request = tonic::Request::new(batch[0]);
            request.set_timeout(ms(30));
            request
                .metadata_mut()
                .insert("x-of", "a batch".parse().unwrap());
            (request, ())
        },
        |(), sum: u64| Ok(All(sum)),
    );
    for (due, timeout) in [(ms(20), ms(20)), (ms(40), ms(30))] {
        let batch = until(&[1], clock::now() + due);
        assert_eq!(sums.call(batch).await.unwrap(), All(1));
        let asked = local.timeouts.lock().unwrap().pop().unwrap().unwrap();
        assert_eq!(crate::base::deadline::grpc_timeout(&asked), Some(timeout));
    }
}

#[tokio::test]
async fn what_the_server_says_instead_is_the_error() {
    let busy = Local::new(|asked| asked.then(async |_| Err(Status::resource_exhausted("busy"))));
    let error = sums(&busy).call(Batch::new([1])).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::ResourceExhausted, "busy")
    );
    let empty = Local::new(|_| stream::empty());
    let error = sums(&empty).call(Batch::new([1])).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
}

#[test]
fn a_path_is_that_of_a_method() {
    for path in [
        "",
        "/",
        "Sum",
        "/Sum",
        "test.Sums/Sum",
        "/test.Sums/",
        "//Sum",
        "/a/b/c",
        "/a/b?c",
        "/a/b c",
    ] {
        let made = std::panic::catch_unwind(|| {
            GrpcBatch::new(
                echo().grpc(),
                path,
                ProstCodec::<u64, u64>::default(),
                |batch: Batch<u64>| (batch[0], ()),
                |(), sum| Ok(All(sum)),
            )
        });
        let panic = made.err().unwrap_or_else(|| panic!("{path:?} is taken"));
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("is no path of a method"), "{message}");
    }
}
