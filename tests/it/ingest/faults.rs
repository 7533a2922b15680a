//! A NATS server that is down, forgets, refuses.

use super::server::Server;
use super::*;

/// Sends until it is accepted; what it was told before that.
async fn persist(client: &Client, id: &str) -> Vec<Status> {
    let (mut told, late) = (Vec::new(), Instant::now() + PATIENCE);
    loop {
        match send(client, id).await {
            Ok(_) => return told,
            Err(status) => told.push(status),
        }
        assert!(Instant::now() < late, "{told:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_is_named_and_waited_for() {
    let Some(mut server) = Server::prepare("") else {
        return;
    };
    let (output, url) = (scratch().join("output"), server.url());
    let ingest = Ingest::start(&["--store", &url, "--output", text(&output)]);
    let client = ingest.client().await;
    let told = |status: &Status| {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(
            status
                .message()
                .contains(&format!("NATS at {url} cannot be reached")),
            "{status}"
        );
        assert!(pushed_back(status));
    };
    let status = send(&client, "early").await.unwrap_err();
    told(&status);
    assert!(status.message().contains("refused"), "the cause: {status}");
    server.up();
    persist(&client, "early").await;
    until("it is processed", || processed(&output).len() == 1);

    server.kill();
    until("it is noticed", || {
        let status = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(send(&client, "lost"))
        });
        status.is_err_and(|status| status.message().contains("cannot be reached"))
    });
    server.up();
    persist(&client, "late").await;
    until("it is processed", || {
        processed(&output).contains_key("late")
    });
    assert_eq!(ingest.end(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_or_consumer_that_is_deleted_is_made_again() {
    let Some(server) = Server::start("") else {
        return;
    };
    let (output, url) = (scratch().join("output"), server.url());
    let ingest = Ingest::start(&["--store", &url, "--output", text(&output)]);
    let client = ingest.client().await;
    let jetstream = server.jetstream().await;
    persist(&client, "first").await;
    until("it is processed", || processed(&output).len() == 1);
    let stream = jetstream.get_stream("INGEST").await.unwrap();
    stream.delete_consumer("workers").await.unwrap();
    persist(&client, "without a consumer").await;
    until("it is processed", || processed(&output).len() == 2);
    jetstream.delete_stream("INGEST").await.unwrap();
    for status in persist(&client, "without a stream").await {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(
            status.message().contains("no stream has the subject"),
            "{status}"
        );
    }
    until("it is processed", || processed(&output).len() == 3);
    assert_eq!(ingest.end(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_too_large_is_refused_alone() {
    let Some(server) = Server::start("max_payload: 2048") else {
        return;
    };
    let output = scratch().join("output");
    let ingest = Ingest::start(&["--store", &server.url(), "--output", text(&output)]);
    let mut client = ingest.client().await;
    persist(&client, "ready").await;
    let items = ["before", "large", "behind"].map(|id| IngestRequest {
        payload: vec![0; if id == "large" { 3000 } else { 10 }],
        ..item(id)
    });
    let status = client.ingest_stream(stream::iter(items)).await.unwrap_err();
    assert_eq!(
        (status.code(), accepted(&status)),
        (Code::InvalidArgument, 1),
        "{status}"
    );
    let message = status.message();
    assert!(
        message.contains("30") && message.contains("2048"),
        "its size and the server's: {message}"
    );
    until("what is before it is processed", || {
        processed(&output).contains_key("before")
    });
    assert_eq!(ingest.end(), 0);
}

#[test]
fn wrong_credentials_end_the_program() {
    let Some(server) = Server::start("authorization { user: a, password: b }") else {
        return;
    };
    let url = server.url().replace("nats://", "nats://a:wrong@");
    let program = Program::start(
        example("ingest"),
        ["--listen", "127.0.0.1:0", "--store", &url],
    );
    assert_eq!(program.wait(PATIENCE).code(), Some(1));
    let told = program.stderr();
    assert!(
        told.contains("does not let us in") && told.contains("authorization violation"),
        "{told}"
    );
    let url = server.url().replace("nats://", "nats://a:b@");
    let ingest = Ingest::start(&["--store", &url]);
    assert_eq!(ingest.end(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_stream_refuses_and_a_foreign_one_is_left_alone() {
    let Some(server) = Server::start("") else {
        return;
    };
    let url = server.url();
    let flags = [
        "--store",
        &url,
        "--queue",
        "20",
        "--workers",
        "1",
        "--work-time",
        "20ms",
    ];
    let ingest = Ingest::start(&flags);
    let mut refused = None;
    let client = ingest.client().await;
    persist(&client, "ready").await;
    for n in 0..200 {
        let mut req = tonic::Request::new(item(&n.to_string()));
        req.metadata_mut()
            .insert("x-priority", "critical".parse().unwrap());
        if let Err(status) = client.clone().ingest(req).await {
            refused = Some(status);
            break;
        }
    }
    let status = refused.unwrap();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(
        status.message().contains("no more than 20 items") && pushed_back(&status),
        "{status}"
    );
    assert_eq!(ingest.end(), 0);

    let jetstream = server.jetstream().await;
    let theirs = async_nats::jetstream::stream::Config {
        name: "THEIRS".to_owned(),
        subjects: vec!["theirs".to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(theirs).await.unwrap();
    let ingest = Ingest::start(&["--store", &url, "--stream", "THEIRS"]);
    let status = send(&ingest.client().await, "x").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    until("it is explained", || {
        ingest.program.stderr().contains("is no work queue")
    });
    assert_eq!(ingest.end(), 0);
}
