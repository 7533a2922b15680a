//! `JetStreamLag` against a real server.

use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::{Context, consumer};
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tower_flow::Flow;
use tower_flow::nats::{JetStreamLag, LagBuilder, LagState};
use tower_flow::signal::Signal;

use super::server::{Server, eager, items, soon, until, workers};
use crate::support::{classic, found, run};

/// It looks often: a test does not wait for seconds.
fn lag(context: Context) -> LagBuilder {
    JetStreamLag::builder(context, "ITEMS", "workers")
        .every(Duration::from_millis(100))
        .slowest(Duration::from_millis(100))
}

async fn publish(context: &Context, count: usize) {
    for n in 0..count {
        let ack = soon(context.publish(format!("items.{n}"), "x".into())).await;
        soon(ack.unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn it_counts_what_waits_and_what_is_not_acknowledged() {
    let Some(server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    let stream = items(&context).await;
    let consumer = workers(&stream, 4).await;
    let flow = Flow::new("test");
    let lag = lag(context.clone()).name("n \"\\").attach(&flow).build();
    until(|| lag.snapshot().state == LagState::Idle).await;
    assert_eq!(lag.sample(), Some(0.0));
    publish(&context, 10).await;
    until(|| lag.sample() == Some(10.0)).await;
    until(|| lag.snapshot().state == LagState::Starving).await;

    let mut messages = soon(consumer.fetch().max_messages(4).messages())
        .await
        .unwrap();
    let mut held = Vec::new();
    while let Some(message) = soon(messages.next()).await {
        let message = message.unwrap();
        lag.observe(&message);
        held.push(message);
        // Known at once, without a question.
        assert_eq!(lag.snapshot().pending, 10 - held.len() as u64);
    }
    assert_eq!((held.len(), lag.snapshot().observed), (4, 4));
    until(|| lag.snapshot().ack_pending == 4).await;
    until(|| lag.snapshot().state == LagState::Saturated).await;
    assert_eq!(
        (lag.sample(), lag.snapshot().saturation),
        (Some(10.0), Some(1.0))
    );
    for message in &held {
        soon(message.double_ack()).await.unwrap();
    }
    until(|| lag.sample() == Some(6.0)).await;
    let text = classic(&flow);
    assert!(
        text.contains("tower_flow_nats_lag{name=\"n \\\"\\\\\"} 6"),
        "{text}"
    );
    assert_eq!(text.matches("tower_flow_nats_lag_state{").count(), 9);
    promtool(&text);
    // Another's message is no news.
    let other = soon(stream.get_or_create_consumer("others", Default::default())).await;
    let other: async_nats::jetstream::consumer::PullConsumer = other.unwrap();
    let mut messages = soon(other.fetch().max_messages(1).messages())
        .await
        .unwrap();
    lag.observe(&soon(messages.next()).await.unwrap().unwrap());
    assert_eq!((lag.snapshot().foreign, lag.snapshot().observed), (1, 4));
}

#[tokio::test]
async fn a_consumer_or_stream_that_is_not_there_is_told_and_heals() {
    let Some(server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    let lag = lag(context.clone()).build();
    until(|| lag.snapshot().state == LagState::StreamMissing).await;
    assert_eq!(lag.sample(), None);
    let stream = items(&context).await;
    until(|| lag.snapshot().state == LagState::ConsumerMissing).await;
    publish(&context, 3).await;
    workers(&stream, 100).await;
    until(|| lag.sample() == Some(3.0)).await;
    soon(stream.delete_consumer("workers")).await.unwrap();
    until(|| lag.snapshot().state == LagState::ConsumerMissing).await;
    assert!(lag.snapshot().last_error.is_some());
    workers(&stream, 100).await;
    until(|| lag.snapshot().state == LagState::Starving).await;
    soon(context.delete_stream("ITEMS")).await.unwrap();
    until(|| lag.snapshot().state == LagState::StreamMissing).await;
    let stream = items(&context).await;
    workers(&stream, 100).await;
    until(|| lag.snapshot().state == LagState::Idle).await;
    assert_eq!((lag.sample(), lag.snapshot().last_error), (Some(0.0), None));
}

#[tokio::test]
async fn while_the_server_is_away_the_last_value_counts_until_it_is_too_old() {
    let Some(mut server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    let stream = items(&context).await;
    workers(&stream, 100).await;
    publish(&context, 5).await;
    let short = lag(context.clone())
        .max_age(Duration::from_millis(400))
        .build();
    let long = lag(context.clone()).build();
    until(|| short.sample() == Some(5.0) && long.sample() == Some(5.0)).await;
    server.kill();
    until(|| long.snapshot().state == LagState::Away).await;
    until(|| short.sample().is_none()).await;
    assert_eq!(long.sample(), Some(5.0), "with its age: {:?}", long.age());
    let age = long.age().unwrap();
    assert!(age >= Duration::from_millis(200), "{age:?}");
    assert!(short.age().unwrap() > Duration::from_millis(400));
    server.up();
    until(|| short.sample() == Some(5.0) && long.snapshot().state == LagState::Starving).await;
    assert!(long.age().unwrap() < Duration::from_secs(5));
}

fn promtool(text: &str) {
    if !found("promtool") {
        return;
    }
    let mut promtool = Command::new("promtool");
    let output = run(promtool.args(["check", "metrics"]), text.as_bytes());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{said}\n{text}"
    );
}

#[tokio::test]
async fn workers_who_hold_all_they_may_and_finish_none_are_stuck() {
    let Some(server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    let stream = items(&context).await;
    let config = consumer::pull::Config {
        durable_name: Some("workers".into()),
        max_ack_pending: 2,
        ack_wait: Duration::from_millis(300),
        ..consumer::pull::Config::default()
    };
    let consumer = soon(stream.create_consumer(config)).await.unwrap();
    publish(&context, 10).await;
    let lag = lag(context.clone()).build();
    let mut messages = soon(consumer.messages()).await.unwrap();
    let observed = lag.clone();
    // It takes whatever it is given, again and again, and acknowledges none of it until it is told to.
    let (go, goes) = tokio::sync::watch::channel(false);
    let worker = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(message) = messages.next().await {
            let message = message.unwrap();
            observed.observe(&message);
            let may = *goes.borrow();
            match may {
                true => message.ack().await.unwrap(),
                false => held.push(message),
            }
        }
    });
    until(|| lag.snapshot().state == LagState::Saturated).await;
    until(|| lag.snapshot().state == LagState::Stuck).await;
    until(|| lag.snapshot().observed > 4 && lag.snapshot().state == LagState::Stuck).await;
    go.send(true).unwrap();
    until(|| lag.snapshot().state == LagState::Idle).await;
    assert_eq!(lag.sample(), Some(0.0));
    worker.abort();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_question_that_is_never_answered_is_given_up_and_asked_anew() {
    let Some(mut server) = Server::start("") else {
        return;
    };
    // Its own requests wait for ever.
    let options = eager().request_timeout(None);
    let client = options.connect(server.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let stream = items(&context).await;
    workers(&stream, 100).await;
    publish(&context, 5).await;
    let lag = lag(context).build();
    until(|| lag.sample() == Some(5.0)).await;
    server.freeze(true);
    // The connection stays, and nothing comes.
    until(|| lag.snapshot().state == LagState::Away).await;
    let why = lag.snapshot().last_error.unwrap();
    assert!(
        why.contains("CONSUMER.INFO.ITEMS.workers within 1s"),
        "{why}"
    );
    assert_eq!(lag.sample(), Some(5.0), "with its age");
    let polls = lag.snapshot().polls;
    server.freeze(false);
    until(|| lag.snapshot().polls > polls && lag.snapshot().state == LagState::Starving).await;
    // The connection goes while it is asked.
    server.freeze(true);
    let failures = lag.snapshot().failures;
    server.kill();
    until(|| lag.snapshot().failures > failures).await;
    server.up();
    let polls = lag.snapshot().polls;
    until(|| lag.snapshot().polls > polls && lag.sample() == Some(5.0)).await;
}

#[tokio::test]
async fn its_task_ends_with_the_last_handle() {
    let Some(server) = Server::start("") else {
        return;
    };
    let context = server.jetstream().await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let flow = Flow::new("test");
    let lag = lag(context.clone()).attach(&flow).build();
    let clone = lag.clone();
    // One polls, and one hands out what it is answered.
    until(|| clone.snapshot().failures > 0).await;
    assert_eq!(tasks(), before + 2);
    drop(lag);
    until(|| clone.snapshot().failures > 1).await;
    assert_eq!(tasks(), before + 2);
    drop(clone);
    until(|| tasks() == before).await;
    assert_eq!(flow.attached().len(), 1, "its numbers stay");
}
