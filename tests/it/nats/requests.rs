//! `NatsService` against a real server.

use std::task::Poll;
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use futures_util::StreamExt;
use tokio_test::{assert_pending, task};
use tower::{Service, ServiceExt};
use tower_flow::Rejection;
use tower_flow::clock;
use tower_flow::deadline::Deadline;
use tower_flow::error::Reason;
use tower_flow::nats::{ErrorKind, NatsRequest, NatsService};

use super::server::{Server, listen, soon, until};

/// Answers each request on `echo` with its payload and its header `Key`.
async fn echo(client: Client) {
    let mut asked = listen(&client, "echo").await;
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let mut headers = HeaderMap::new();
            if let Some(key) = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get("Key"))
            {
                headers.insert("Key", key.as_str());
            }
            let reply = message.reply.unwrap();
            let answered = client.publish_with_headers(reply, headers, message.payload);
            answered.await.unwrap();
        }
    });
}

#[tokio::test]
async fn an_answer_comes_with_its_payload_and_headers() {
    let Some(server) = Server::start("") else {
        return;
    };
    echo(server.client().await).await;
    let service = NatsService::new(server.client().await);
    let req = NatsRequest::new("echo")
        .payload("hello")
        .header("Key", "value");
    let answer = soon(service.clone().oneshot(req)).await.unwrap();
    assert_eq!(answer.payload().as_ref(), b"hello");
    let key = answer.headers().and_then(|headers| headers.get("Key"));
    assert_eq!(key.map(|key| key.as_str()), Some("value"));
    // Many at a time, each with its own answer.
    let many = (0..500).map(|n| {
        let req = NatsRequest::new("echo").payload(n.to_string());
        service.clone().oneshot(req)
    });
    let answers = soon(futures_util::future::join_all(many)).await;
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(
            answer.unwrap().into_payload().as_ref(),
            n.to_string().as_bytes()
        );
    }
    assert_eq!(service.late_answers(), 0);
}

#[tokio::test]
async fn what_cannot_be_answered_is_told_by_its_kind() {
    let Some(server) = Server::start("max_payload: 1024") else {
        return;
    };
    let client = server.client().await;
    let _silent = listen(&client, "silent").await;
    let service = NatsService::new(server.client().await).timeout(Duration::from_millis(100));
    let fail = async |req: NatsRequest| soon(service.clone().oneshot(req)).await.unwrap_err();
    let reason = |error: &_| Rejection::find(error).map(Rejection::reason);

    let error = fail(NatsRequest::new("nobody")).await;
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::NoResponders, true)
    );

    let error = fail(
        NatsRequest::new("silent")
            .header("A", "b")
            .payload(vec![0; 1024]),
    )
    .await;
    let size = 1024 + "NATS/1.0\r\nA: b\r\n\r\n".len();
    assert_eq!(error.kind(), ErrorKind::TooLarge { size, max: 1024 });
    assert_eq!(reason(&error), Some(Reason::TooLarge));

    let error = fail(NatsRequest::new("silent")).await;
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(reason(&error), Some(Reason::Timeout));

    let start = clock::now();
    let soonest = Deadline::at(start + Duration::from_millis(20));
    let error = fail(
        NatsRequest::new("silent")
            .timeout(soon_enough())
            .deadline(soonest),
    )
    .await;
    assert_eq!(
        (error.kind(), reason(&error)),
        (ErrorKind::Deadline, Some(Reason::Deadline))
    );
    let error = fail(NatsRequest::new("silent").deadline(Deadline::at(start))).await;
    assert!(
        error.to_string().contains("before anything was sent"),
        "{error}"
    );

    for bad in ["", "a b"] {
        assert_eq!(
            fail(NatsRequest::new(bad)).await.kind(),
            ErrorKind::Malformed
        );
    }
}

fn soon_enough() -> Duration {
    super::server::SOON
}

#[tokio::test]
async fn dropped_requests_leave_nothing_to_answer_to() {
    let Some(server) = Server::start("") else {
        return;
    };
    let client = server.client().await;
    let mut asked = listen(&client, "slow").await;
    let mut service = NatsService::new(server.client().await);
    soon(service.ready()).await.unwrap();
    let mut given_up = Vec::new();
    for n in 0..200 {
        let mut future = task::spawn(service.call(NatsRequest::new("slow")));
        // At each point it may stand at: never polled, polled once, sent.
        if n % 3 > 0 {
            assert_pending!(future.poll());
        }
        given_up.push(future);
        // One task may do only so much at a stretch.
        tokio::task::yield_now().await;
    }
    let sent = 200 - 67;
    let mut replies = Vec::new();
    while replies.len() < sent {
        replies.push(soon(asked.next()).await.unwrap().reply.unwrap());
    }
    drop(given_up);
    for reply in replies {
        client.publish(reply, "late".into()).await.unwrap();
    }
    until(|| service.late_answers() == sent as u64).await;
}

#[tokio::test]
async fn a_lost_server_is_not_ready_and_fails_what_was_sent() {
    let Some(mut server) = Server::start("") else {
        return;
    };
    let client = server.client().await;
    let mut asked = listen(&client, "silent").await;
    let mut service = NatsService::new(server.client().await);
    soon(service.ready()).await.unwrap();
    let sent = tokio::spawn(service.call(NatsRequest::new("silent")));
    soon(asked.next()).await.unwrap();

    server.kill();
    let error = soon(sent).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected { sent: true });
    assert!(!error.is_retryable(), "somebody may have seen it");
    let mut other = service.clone();
    let mut ready = task::spawn(async move { service.ready().await.map(|_| ()) });
    assert_pending!(ready.poll());
    let error = soon(other.call(NatsRequest::new("silent")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected { sent: false });
    // One who asked and went away is not woken, and holds nothing.
    let mut gone = task::spawn(other.clone());
    assert!(
        gone.enter(|cx, mut service| service.poll_ready(cx))
            .is_pending()
    );
    drop(gone);

    server.up();
    echo(server.client().await).await;
    soon(ready).await.unwrap();
    soon(other.ready()).await.unwrap();
    let req = NatsRequest::new("echo").payload("back");
    assert_eq!(
        soon(other.call(req)).await.unwrap().payload().as_ref(),
        b"back"
    );
}

#[tokio::test]
async fn a_drained_client_is_closed_for_good() {
    let Some(server) = Server::start("") else {
        return;
    };
    let client = server.client().await;
    let mut silent = listen(&server.client().await, "silent").await;
    let mut service = NatsService::new(client.clone());
    soon(service.ready()).await.unwrap();
    let waits = service.call(NatsRequest::new("silent"));
    let waits = tokio::spawn(waits);
    soon(silent.next()).await.unwrap();
    client.drain().await.unwrap();
    let error = soon(waits).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    let error = soon(service.ready()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(
        Rejection::find(&error).map(Rejection::reason),
        Some(Reason::Closed)
    );
    let mut polled = task::spawn(service);
    assert!(matches!(
        polled.enter(|cx, mut service| service.poll_ready(cx)),
        Poll::Ready(Err(_))
    ));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_frozen_server_costs_the_timeout_and_no_more() {
    let Some(server) = Server::start("") else {
        return;
    };
    echo(server.client().await).await;
    let service = NatsService::new(server.client().await).timeout(Duration::from_millis(100));
    soon(service.clone().oneshot(NatsRequest::new("echo")))
        .await
        .unwrap();
    server.freeze(true);
    let error = soon(service.clone().oneshot(NatsRequest::new("echo")))
        .await
        .unwrap_err();
    server.freeze(false);
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let req = NatsRequest::new("echo").timeout(soon_enough());
    soon(service.clone().oneshot(req)).await.unwrap();
    until(|| service.late_answers() == 1).await;
}
