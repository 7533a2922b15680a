//! What callers see.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_counted_known_again_and_checked() {
    let output = scratch().join("output");
    let ingest = Ingest::start(&["--output", text(&output)]);
    let client = ingest.client().await;
    let answer = |accepted, duplicates| IngestResponse {
        accepted,
        duplicates,
    };
    assert_eq!(send(&client, "a").await.unwrap(), answer(1, 0));
    assert_eq!(send(&client, "a").await.unwrap(), answer(1, 1));
    // Those without an id are all different.
    for _ in 0..2 {
        assert_eq!(send(&client, "").await.unwrap(), answer(1, 0));
    }
    let ids: Vec<_> = (0..1000).map(|n| format!("{}", n % 900)).collect();
    assert_eq!(send_all(&client, &ids).await.unwrap(), answer(1000, 100));
    for bad in ["a\nb", " a", &"x".repeat(257)] {
        let status = send(&client, bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let mut ids = ids[..3].to_vec();
    ids.extend(["\0".to_owned(), "behind".to_owned()]);
    let status = send_all(&client, &ids).await.unwrap_err();
    assert_eq!(
        (status.code(), accepted(&status)),
        (Code::InvalidArgument, 3)
    );
    assert_eq!(ingest.end(), 0);
    let processed = processed(&output);
    assert_eq!(
        processed.len(),
        902,
        "900 numbers, a, and those without an id"
    );
    assert!(
        processed
            .iter()
            .all(|(id, count)| *count == 1 + usize::from(id.is_empty()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_processes_what_was_acknowledged() {
    let output = scratch().join("output");
    let flags = [
        "--work-time",
        "5ms",
        "--workers",
        "2",
        "--output",
        text(&output),
    ];
    let ingest = Ingest::start(&flags);
    let client = ingest.client().await;
    let ids: Vec<_> = (0..200).map(|n| n.to_string()).collect();
    assert_eq!(send_all(&client, &ids).await.unwrap().accepted, 200);
    assert!(processed(&output).len() < 200, "it takes half a second");
    assert_eq!(ingest.end(), 0);
    assert_eq!(processed(&output).len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_an_end_is_answered_when_the_server_ends() {
    let output = scratch().join("output");
    let ingest = Ingest::start(&["--grace", "500ms", "--output", text(&output)]);
    let mut client = ingest.client().await;
    let (items, stream) = mpsc::channel(16);
    let answer =
        tokio::spawn(async move { client.ingest_stream(ReceiverStream::new(stream)).await });
    for n in 0..10 {
        items.send(item(&n.to_string())).await.unwrap();
    }
    until("ten are processed", || processed(&output).len() == 10);
    ingest.program.terminate();
    let status = answer.await.unwrap().unwrap_err();
    assert_eq!(
        (status.code(), accepted(&status)),
        (Code::Unavailable, 10),
        "{status}"
    );
    assert!(
        status.message().contains("accepted 10") && pushed_back(&status),
        "{status}"
    );
    assert_eq!(ingest.program.wait(PATIENCE).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_ends_in_time_is_finished_while_the_server_ends() {
    let ingest = Ingest::start(&[]);
    let mut client = ingest.client().await;
    let (items, stream) = mpsc::channel(16);
    let answer =
        tokio::spawn(async move { client.ingest_stream(ReceiverStream::new(stream)).await });
    items.send(item("before")).await.unwrap();
    send(&ingest.client().await, "it is there").await.unwrap();
    ingest.program.terminate();
    until("nothing more is accepted", || {
        let address = ingest.url.strip_prefix("http://").unwrap();
        std::net::TcpStream::connect(address).is_err()
    });
    items.send(item("after")).await.unwrap();
    drop(items);
    assert_eq!(answer.await.unwrap().unwrap().into_inner().accepted, 2);
    assert_eq!(ingest.program.wait(PATIENCE).code(), Some(0));
}

/// Three times what the workers can do. What is refused is told so, the lag stays within the queue, and what is accepted is
/// processed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_shed_by_the_lag() {
    let output = scratch().join("output");
    let flags = ["--queue", "100", "--workers", "2", "--work-time", "10ms"];
    let flags = [&flags[..], &["--output", text(&output)]].concat();
    let ingest = Ingest::start(&flags);
    let load = [
        "--load",
        &ingest.url,
        "--json",
        "--rate",
        "600",
        "--seconds",
        "1.5",
        "--unary",
    ];
    let load = Program::start(example("ingest"), load);
    let report: serde_json::Value = serde_json::from_str(&load.line("")).unwrap();
    let number = |name: &str| report[name].as_u64().unwrap() as usize;
    // 200 a second, and those that wait at the end; a timer is late by a millisecond or two.
    assert_eq!(
        number("offered"),
        number("acknowledged") + number("refused"),
        "{report}"
    );
    assert!((150..=400).contains(&number("acknowledged")), "{report}");
    let refused = &report["refused_by"]["Unavailable"];
    assert_eq!(
        refused["items"].as_u64().unwrap() as usize,
        number("refused"),
        "{report}"
    );
    assert!(
        refused["message"].as_str().unwrap().contains("pressure"),
        "{report}"
    );
    // Neither does it wait for the workers.
    assert!(report["p95_ms"].as_f64().unwrap() < 400.0, "{report}");

    // Who does not let itself be shed finds the queue full.
    let client = ingest.client().await;
    let mut refused = None;
    for n in 0..200 {
        let mut req = tonic::Request::new(item(&format!("urgent {n}")));
        req.metadata_mut()
            .insert("x-priority", "critical".parse().unwrap());
        if let Err(status) = client.clone().ingest(req).await {
            refused = Some(status);
            break;
        }
    }
    let status = refused.unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("100 of 100 items") && pushed_back(&status),
        "{status}"
    );
    // A stream is refused at the item it has come to, and knows at which.
    let ids: Vec<_> = (0..300).map(|n| format!("stream {n}")).collect();
    let status = send_all(&client, &ids).await.unwrap_err();
    assert!(pushed_back(&status) && accepted(&status) < 300, "{status}");
    let accepted = accepted(&status);
    assert_eq!(ingest.end(), 0);
    let processed = processed(&output);
    assert!(ids[..accepted].iter().all(|id| processed.contains_key(id)));
}

#[test]
fn wrong_flags_are_explained() {
    for flags in [
        &["--queue", "0"][..],
        &["--store", "redis://"],
        &["--work-time", "5"],
        &["--store", "nats://127.0.0.1:1", "--wal", "x"],
    ] {
        let program = Program::start(example("ingest"), flags);
        assert_eq!(program.wait(PATIENCE).code(), Some(2), "{flags:?}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let program = Program::start(example("ingest"), ["--listen", &address]);
    assert_eq!(program.wait(PATIENCE).code(), Some(1));
    assert!(
        program.stderr().contains("cannot listen on"),
        "{}",
        program.stderr()
    );
}
