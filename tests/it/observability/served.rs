//! What `nats` exports once it has a server. Not every machine has one, so that it is written down, and compared with
//! what is exported where there is one.

use std::time::Duration;

use async_nats::{ConnectOptions, jetstream};
use futures_util::StreamExt;
use tower::ServiceExt;
use tower_flow::Flow;
use tower_flow::nats::{ErrorKind, JetStreamLag, NatsPool, NatsRequest};

use super::series::{Series, scraped};
use crate::nats::server::{Server, items, listen, soon, until, workers};
use crate::support::classic;

/// All but the histograms, which are there from the beginning.
const SERVED: &str = r#"
tower_flow_nats_connections{name="orders",state="dialling"} 0
tower_flow_nats_connections{name="orders",state="up"} 2
tower_flow_nats_connections{name="orders",state="down"} 0
tower_flow_nats_max_connections{name="orders"} 4
tower_flow_nats_in_flight{name="orders"} 3
tower_flow_nats_waiting{name="orders"} 0
tower_flow_nats_utilisation{name="orders"} 0.01
tower_flow_nats_requests_total{name="orders",result="ok"} 900
tower_flow_nats_requests_total{name="orders",result="cancelled"} 1
tower_flow_nats_requests_total{name="orders",result="timed_out"} 1
tower_flow_nats_requests_total{name="orders",result="overloaded"} 1
tower_flow_nats_requests_total{name="orders",result="acquire_timeout"} 1
tower_flow_nats_connects_total{name="orders",result="ok"} 2
tower_flow_nats_connects_total{name="orders",result="error"} 0
tower_flow_nats_acquired_total{name="orders"} 902
tower_flow_nats_released_total{name="orders"} 899
tower_flow_nats_queued_total{name="orders"} 5
tower_flow_nats_lost_total{name="orders"} 0
tower_flow_nats_closed_total{name="orders"} 0
tower_flow_nats_lag{name="workers"} 40
tower_flow_nats_lag_pending{name="workers"} 30
tower_flow_nats_lag_ack_pending{name="workers"} 10
tower_flow_nats_lag_saturation{name="workers"} 0.1
tower_flow_nats_lag_age_seconds{name="workers"} 0.2
tower_flow_nats_lag_state{name="workers",state="unknown"} 0
tower_flow_nats_lag_state{name="workers",state="idle"} 0
tower_flow_nats_lag_state{name="workers",state="flowing"} 1
tower_flow_nats_lag_state{name="workers",state="starving"} 0
tower_flow_nats_lag_state{name="workers",state="saturated"} 0
tower_flow_nats_lag_state{name="workers",state="stuck"} 0
tower_flow_nats_lag_state{name="workers",state="consumer_missing"} 0
tower_flow_nats_lag_state{name="workers",state="stream_missing"} 0
tower_flow_nats_lag_state{name="workers",state="away"} 0
tower_flow_nats_lag_polls_total{name="workers",result="ok"} 9
tower_flow_nats_lag_polls_total{name="workers",result="error"} 0
tower_flow_nats_lag_observed_total{name="workers"} 900
tower_flow_nats_lag_corrected_total{name="workers"} 0
"#;

fn same(one: &Series, other: &Series) -> bool {
    one.metric == other.metric && one.labels == other.labels
}

/// Attaches a lag that has no server: its kind is known then.
pub async fn lag(flow: &Flow) {
    let options = ConnectOptions::new().retry_on_initial_connect();
    let client = options.connect("nats://127.0.0.1:1").await.unwrap();
    let context = jetstream::new(client);
    let _lag = JetStreamLag::builder(context, "ITEMS", "workers")
        .attach(flow)
        .build();
}

/// `series` as they were with a server.
pub fn with_server(mut series: Vec<Series>) -> Vec<Series> {
    let served = scraped(SERVED);
    series.retain(|one| !served.iter().any(|other| same(one, other)));
    series.extend(served);
    series
}

#[tokio::test]
async fn nats_exports_what_is_written_down() {
    let Some(server) = Server::start("") else {
        return;
    };
    let flow = Flow::new("served");
    let context = server.jetstream().await;
    let client = context.client();
    workers(&items(&context).await, 100).await;
    let lag = JetStreamLag::builder(context, "ITEMS", "workers")
        .attach(&flow)
        .build();
    until(|| lag.snapshot().saturation.is_some()).await;

    let pool = NatsPool::builder(server.url())
        .name("orders")
        .max_connections(1)
        .max_in_flight(1)
        .max_waiting(1)
        .acquire_timeout(Duration::from_millis(50))
        .attach(&flow)
        .build();
    soon(pool.warm(1)).await.unwrap();
    let _silent = listen(&client, "silent").await;
    let mut asked = listen(&client, "echo").await;
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let reply = message.reply.unwrap();
            client.publish(reply, message.payload).await.unwrap();
        }
    });
    let ask = |subject: &str| pool.clone().oneshot(NatsRequest::new(subject));
    soon(ask("echo")).await.unwrap();
    let mut left = tokio_test::task::spawn(ask("silent"));
    assert!(left.poll().is_pending());
    drop(left);
    // One has the connection, one waits for it, and there is no room for a third.
    let silent = NatsRequest::new("silent").timeout(Duration::from_millis(500));
    let first = pool.clone().oneshot(silent);
    let ended = soon(futures_util::future::join3(first, ask("echo"), ask("echo"))).await;
    let ended = [ended.0, ended.1, ended.2].map(|ended| ended.unwrap_err().kind());
    assert_eq!(
        ended,
        [
            ErrorKind::TimedOut,
            ErrorKind::AcquireTimeout,
            ErrorKind::Overloaded
        ]
    );

    let exported = scraped(&classic(&flow));
    let served = scraped(SERVED);
    let missing = |all: &[Series], of: &[Series]| -> Vec<Series> {
        let is_there = |one: &&Series| all.iter().any(|other| same(one, other));
        of.iter().filter(|one| !is_there(one)).cloned().collect()
    };
    assert!(missing(&exported, &served).is_empty(), "{exported:#?}");
    let mut more = missing(&served, &exported);
    more.retain(|one| {
        one.metric.starts_with("tower_flow_nats") && !one.metric.contains("_seconds_")
    });
    assert!(more.is_empty(), "{more:#?}");
}
