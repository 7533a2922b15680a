//! `JetStreamPublish` against a real server.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use tokio_test::{assert_pending, task};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_flow::batch::{Batch, BatchLayer};
use tower_flow::error::find;
use tower_flow::nats::{Error, ErrorKind, JetStreamPublish, Publish};

use super::server::{Server, items, soon};

fn kinds<T>(answers: &[Result<T, Error>]) -> Vec<Option<ErrorKind>> {
    let kind = |answer: &Result<T, Error>| answer.as_ref().err().map(Error::kind);
    answers.iter().map(kind).collect()
}

#[tokio::test]
async fn under_the_batch_layer_each_message_has_its_own_acknowledgement() {
    let Some(server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    let mut stream = items(&context).await;
    let layer = BatchLayer::new();
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .service(JetStreamPublish::new(context));
    let publish = |n: usize| {
        let publish = Publish::new(format!("items.{n}"), format!("item {n}"));
        service.clone().oneshot(publish.message_id(n.to_string()))
    };
    let acks = soon(futures_util::future::join_all((0..1_000).map(publish))).await;
    let mut sequences = HashSet::new();
    for ack in acks {
        let ack = ack.unwrap();
        assert_eq!((ack.stream.as_str(), ack.duplicate), ("ITEMS", false));
        assert!(sequences.insert(ack.sequence));
    }
    assert!(
        layer.handle().snapshot().batches < 500,
        "they went together"
    );
    let again = soon(publish(7)).await.unwrap();
    assert!(again.duplicate);
    assert_eq!(soon(stream.info()).await.unwrap().state.messages, 1_000);
}

#[tokio::test]
async fn what_fails_fails_alone_and_says_why() {
    let Some(server) = Server::start("max_payload: 1024") else {
        return;
    };
    let context = server.jetstream().await;
    let mut stream = items(&context).await;
    let mut service = JetStreamPublish::new(context);
    soon(service.ready()).await.unwrap();
    let answers = soon(service.call(Batch::new([
        Publish::new("items.1", "first"),
        Publish::new("items.2", vec![0; 2_000]),
        Publish::new("nobodys.3", "no stream has it"),
        Publish::new("items.4", "another stream's").expect_stream("OTHER"),
        Publish::new("items 5", "no subject"),
        Publish::new("items.6", "no header").message_id("a\nb"),
        Publish::new("items.7", "last").expect_stream("ITEMS"),
    ])))
    .await
    .unwrap();
    let code = ErrorCode::STREAM_NOT_MATCH.0;
    let expected = [
        None,
        Some(ErrorKind::TooLarge {
            size: 2_000,
            max: 1_024,
        }),
        Some(ErrorKind::NoStream),
        Some(ErrorKind::Refused { code }),
        Some(ErrorKind::Malformed),
        Some(ErrorKind::Malformed),
        None,
    ];
    assert_eq!(kinds(&answers), expected);
    let told = answers[1].as_ref().unwrap_err().to_string();
    assert!(told.contains("2000") && told.contains("1024"), "{told}");
    assert_eq!(answers[6].as_ref().unwrap().sequence, 2);
    assert_eq!(soon(stream.info()).await.unwrap().state.messages, 2);
    let none = soon(service.call(Batch::new([]))).await.unwrap();
    assert!(none.is_empty());
}

#[tokio::test]
async fn few_may_wait_and_all_are_stored_in_order() {
    let Some(server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    items(&context).await;
    let mut service = JetStreamPublish::new(context).max_in_flight(3);
    let mut batch = |name: &str| {
        let publish = (0..100).map(|n| Publish::new(format!("items.{name}.{n}"), "x"));
        service.call(publish.collect::<Batch<_>>())
    };
    let (one, two) = (batch("a"), batch("b"));
    let (one, two) = soon(async { tokio::join!(one, two) }).await;
    for answers in [one.unwrap(), two.unwrap()] {
        let sequences: Vec<_> = answers
            .into_iter()
            .map(|ack| ack.unwrap().sequence)
            .collect();
        assert!(sequences.is_sorted(), "{sequences:?}");
        assert_eq!(sequences.len(), 100);
    }
    // What is dropped gives its permits back, at each point.
    for n in 0..9 {
        let publish = (0..10).map(|m| Publish::new(format!("items.c.{n}.{m}"), "x"));
        let mut future = task::spawn(service.call(publish.collect()));
        if n > 0 {
            assert_pending!(future.poll());
        }
    }
    let last = service.call(Batch::new([Publish::new("items.d", "x")]));
    assert!(soon(last).await.unwrap()[0].is_ok());
}

#[tokio::test]
async fn a_stream_that_is_deleted_is_told_and_one_made_anew_takes_more() {
    let Some(server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    items(&context).await;
    let mut service = JetStreamPublish::new(context.clone());
    let mut publish = || service.call(Batch::new([Publish::new("items.1", "x")]));
    assert!(soon(publish()).await.unwrap()[0].is_ok());
    soon(context.delete_stream("ITEMS")).await.unwrap();
    let answers = soon(publish()).await.unwrap();
    assert_eq!(kinds(&answers), [Some(ErrorKind::NoStream)]);
    assert!(answers[0].as_ref().unwrap_err().is_retryable());
    items(&context).await;
    assert_eq!(
        soon(publish()).await.unwrap()[0].as_ref().unwrap().sequence,
        1
    );
}

#[tokio::test]
async fn killed_again_and_again_it_loses_nothing_acknowledged_and_stores_nothing_twice() {
    const ITEMS: usize = 3_000;
    let Some(mut server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    items(&context).await;
    let service = ServiceBuilder::new()
        .layer(BatchLayer::new().max_items(50))
        .service(JetStreamPublish::new(context.clone()).ack_timeout(Duration::from_secs(2)));
    let (acked, mut acks) = tokio::sync::mpsc::unbounded_channel();
    let callers: Vec<_> = (0..100)
        .map(|caller| {
            let (service, acked) = (service.clone(), acked.clone());
            tokio::spawn(async move {
                for n in (caller..ITEMS).step_by(100) {
                    loop {
                        let publish = Publish::new(format!("items.{n}"), n.to_string());
                        let publish = publish.message_id(n.to_string());
                        match service.clone().oneshot(publish).await {
                            Ok(ack) => break acked.send(ack.sequence).unwrap(),
                            // Again, with the same id, until it is stored.
                            Err(error) => {
                                let kind = find::<Error>(&*error).expect("one of ours").kind();
                                let known = matches!(
                                    kind,
                                    ErrorKind::Disconnected { .. }
                                        | ErrorKind::NoStream
                                        | ErrorKind::TimedOut
                                        | ErrorKind::Refused { .. }
                                );
                                assert!(known, "{error}");
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                        }
                    }
                }
            })
        })
        .collect();
    drop(acked);
    let mut sequences = Vec::new();
    while let Some(sequence) = soon(acks.recv()).await {
        sequences.push(sequence);
        if [500, 1_300, 2_100].contains(&sequences.len()) {
            server.kill();
            server.up();
        }
    }
    for caller in callers {
        soon(caller).await.unwrap();
    }
    assert_eq!(sequences.len(), ITEMS);
    let mut stream = soon(context.get_stream("ITEMS")).await.unwrap();
    let state = soon(stream.info()).await.unwrap().state.clone();
    assert_eq!(state.messages, ITEMS as u64, "each once");
    let mut seen = HashSet::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = soon(stream.get_raw_message(sequence)).await.unwrap();
        assert!(seen.insert(message.payload), "{sequence} is there twice");
    }
    assert!(
        sequences
            .iter()
            .all(|sequence| *sequence <= state.last_sequence)
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_that_does_not_answer_costs_the_timeout() {
    let Some(mut server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    items(&context).await;
    let mut service = JetStreamPublish::new(context).ack_timeout(Duration::from_millis(100));
    soon(service.ready()).await.unwrap();
    let batch = || {
        (0..3)
            .map(|n| Publish::new(format!("items.{n}"), "x"))
            .collect::<Batch<_>>()
    };
    server.freeze(true);
    let answers = soon(service.call(batch())).await;
    server.freeze(false);
    assert_eq!(kinds(&answers.unwrap()), [Some(ErrorKind::TimedOut); 3]);
    // What there is no room for says so, and was not sent.
    let mut narrow = service.clone().max_in_flight(2);
    server.freeze(true);
    let answers = soon(narrow.call(batch())).await;
    server.freeze(false);
    let answers = answers.unwrap();
    let expected = [ErrorKind::TimedOut, ErrorKind::TimedOut, ErrorKind::Slow];
    assert_eq!(kinds(&answers), expected.map(Some));
    let told = answers[2].as_ref().unwrap_err();
    assert!(
        told.is_retryable() && told.to_string().contains("2 messages wait"),
        "{told}"
    );
    // Without a connection there is one error for all, and it says that nothing was sent.
    server.kill();
    let mut ready = task::spawn(service.clone());
    super::server::until(|| {
        ready
            .enter(|cx, mut service| service.poll_ready(cx))
            .is_pending()
    })
    .await;
    let error = soon(service.call(batch())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected { sent: false });
    server.up();
    soon(service.ready()).await.unwrap();
}
