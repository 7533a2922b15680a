//! What a `NatsPool` shows of itself, and what can be changed while it runs.

use std::process::Command;

use tower::ServiceExt;
use tower_flow::Flow;
use tower_flow::inspect::Value;
use tower_flow::nats::{NatsPool, NatsRequest};

use super::pool::{echo, pool, worker};
use super::server::{Server, soon, until};
use crate::support::{self, classic};

#[tokio::test]
async fn its_knobs_take_effect_at_once() {
    let Some(server) = Server::start("") else {
        return;
    };
    let (mut comes, go) = worker(server.client().await).await;
    let flow = Flow::new("test");
    let pool = pool(&server)
        .max_connections(1)
        .max_in_flight(1)
        .attach(&flow)
        .build();
    let handle = pool.handle();
    let shown = flow.attached().remove(0);
    let turn = |knob, to| shown.turn(knob, &Value::Whole(to)).unwrap();
    let ask = |pool: &NatsPool| tokio::spawn(pool.clone().oneshot(NatsRequest::new("work")));
    let mut requests: Vec<_> = (0..4).map(|_| ask(&pool)).collect();
    soon(comes.recv()).await.unwrap();
    until(|| handle.stats().waiting == 3).await;
    // Who waits goes on, without anything else happening.
    turn("max_in_flight", 2);
    assert_eq!((handle.stats().in_flight, handle.stats().waiting), (2, 2));
    turn("max_connections", 2);
    until(|| handle.stats().in_flight == 4).await;
    assert_eq!((handle.stats().up, handle.stats().waiting), (2, 0));
    // One too many takes no more, and is closed after what it carries.
    turn("max_connections", 1);
    requests.push(ask(&pool));
    until(|| handle.stats().waiting == 1).await;
    assert_eq!(handle.stats().up, 2, "each carries two");
    for _ in 0..5 {
        go.send(()).unwrap();
    }
    for request in requests {
        soon(request).await.unwrap().unwrap();
    }
    let now = handle.stats();
    assert_eq!((now.up, now.closed, now.created), (1, 1, 2));
    turn("max_connections", 3);
    soon(pool.warm(3)).await.unwrap();
    // What is idle goes at once.
    turn("max_connections", 1);
    assert_eq!(handle.stats().size, 1);
}

#[tokio::test]
async fn what_it_shows_is_bounded_and_takes_its_knobs() {
    let Some(server) = Server::start("") else {
        return;
    };
    echo(server.client().await).await;
    let flow = Flow::new("test");
    let pool = pool(&server).name("n \"\\\n").attach(&flow).build();
    for n in 0..50 {
        let subject = ["echo".to_owned(), format!("nobody.{n}")];
        for subject in subject {
            let _ = soon(pool.clone().oneshot(NatsRequest::new(subject))).await;
        }
    }
    let shown = flow.attached().remove(0);
    assert_eq!(shown.kind(), "nats");
    let snapshot = shown.snapshot();
    let Some(Value::List(connections)) = snapshot.get("connections") else {
        panic!("{snapshot}");
    };
    assert_eq!(
        connections[0].get("requests"),
        Some(&Value::Whole(100)),
        "{snapshot}"
    );
    shown.turn("max_connections", &Value::Whole(7)).unwrap();
    assert!(shown.turn("max_connections", &Value::Whole(0)).is_err());
    assert!(shown.turn("max_in_flight", &Value::Flag(true)).is_err());
    assert_eq!(shown.knobs()[0].value, Value::Whole(7));
    assert!(!shown.vitals().is_empty());
    let text = classic(&flow);
    let series = text
        .lines()
        .filter(|line| line.contains("nats_requests_total"));
    assert_eq!(
        series.filter(|line| !line.starts_with('#')).count(),
        2,
        "{text}"
    );
    if support::found("promtool") {
        let mut promtool = Command::new("promtool");
        let output = support::run(promtool.args(["check", "metrics"]), text.as_bytes());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.trim().is_empty(),
            "{said}\n{text}"
        );
    }
}
