//! gRPC through it: Python's grpcio at either end, tonic, and answers of the gateway's own.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tonic::Code;
use tonic::transport::{Channel, Server, server::TcpIncoming};

use super::Gateway;
use super::flags::page;
use crate::interop::{
    self, EchoMetadata, Empty, Payload, ResponseParameters, SimpleRequest,
    StreamingOutputCallRequest, TestServiceClient,
};
use crate::support::programs::Program;
use crate::support::{run, script};

/// The server of `tests/interop` and where it is.
fn python_server(python: &str) -> (Program, String) {
    let mut command = Command::new(python);
    command.arg("-B").arg(script("server.py"));
    let program = Program::spawn(&mut command);
    let url = format!("h2c://{}", program.line("listening on "));
    (program, url)
}

/// What the client of `tests/interop` reports, if all its cases succeed.
fn python_client(python: &str, gateway: &Gateway, cases: Option<&str>) -> Value {
    let mut command = Command::new(python);
    command
        .arg("-B")
        .arg(script("client.py"))
        .args(["--target", &gateway.addr.to_string()]);
    if let Some(cases) = cases {
        command.args(["--cases", cases]);
    }
    let output = run(&mut command, b"");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A tonic server of the interop service.
async fn tonic_server() -> String {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap())
        .unwrap()
        .with_nodelay(Some(true));
    let url = format!("h2c://{}", incoming.local_addr().unwrap());
    let server = Server::builder()
        .layer(EchoMetadata)
        .add_service(interop::service());
    tokio::spawn(server.serve_with_incoming(incoming));
    url
}

async fn client(gateway: &Gateway) -> TestServiceClient<Channel> {
    let endpoint = Channel::builder(format!("http://{}", gateway.addr).parse().unwrap());
    TestServiceClient::new(endpoint.connect().await.unwrap())
}

fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

#[test]
fn a_foreign_client_and_a_foreign_server_notice_nothing() {
    let Some(python) = crate::support::python() else {
        return;
    };
    let (_server, url) = python_server(&python);
    let descriptors = script("gen/interop.fds");
    let flags = [
        "--grpc-metrics",
        "--descriptor-set",
        descriptors.to_str().unwrap(),
        "--admin",
        "127.0.0.1:0",
    ];
    let gateway = Gateway::start(&url, &flags);
    // grpcio's server ignores what its clients say of compression; all else it does.
    let cases = "empty_unary,large_unary,client_streaming,server_streaming,ping_pong,empty_stream,status_code_and_message,\
                 special_status_message,unimplemented_method,unimplemented_service,custom_metadata,cancel_after_begin,\
                 cancel_after_first_response,timeout_on_sleeping_server,client_compressed_unary,server_compressed_unary,\
                 server_compressed_streaming";
    let told = python_client(&python, &gateway, Some(cases));
    assert_eq!(told["cases"].as_array().unwrap().len(), 17, "{told}");
    // And what was counted between them.
    let metrics = page(&gateway, "/metrics");
    let count = |method: &str, code: &str| -> u64 {
        let has = |line: &&str| {
            line.starts_with("grpc_server_handled_total{")
                && line.contains(&format!("grpc_method=\"{method}\""))
                && line.contains(&format!("grpc_code=\"{code}\""))
        };
        let values = metrics
            .lines()
            .filter(has)
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        values.sum::<f64>() as u64
    };
    let codes = |method: &str, code: &str| {
        let key = format!("grpc.testing.TestService/{method}");
        ["methods", "uncertain"]
            .map(|what| told[what][&key]["codes"][code].as_u64().unwrap_or(0))
            .iter()
            .sum::<u64>()
    };
    for (method, code, spelled) in [
        ("EmptyCall", "OK", "OK"),
        ("UnaryCall", "OK", "OK"),
        ("UnaryCall", "UNKNOWN", "Unknown"),
        ("StreamingInputCall", "OK", "OK"),
        ("StreamingOutputCall", "OK", "OK"),
        ("FullDuplexCall", "OK", "OK"),
        ("FullDuplexCall", "UNKNOWN", "Unknown"),
    ] {
        assert!(codes(method, code) > 0, "{told}");
        assert_eq!(
            count(method, spelled),
            codes(method, code),
            "{method} {code}: {metrics}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_client_and_tonic_notice_nothing() {
    let Some(python) = crate::support::python() else {
        return;
    };
    let url = tonic_server().await;
    let told = blocking(move || {
        let gateway = Gateway::start(&url, &[]);
        python_client(&python, &gateway, None)
    });
    assert_eq!(told.await.unwrap()["cases"].as_array().unwrap().len(), 18);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_flow_at_once() {
    let url = tonic_server().await;
    let gateway = blocking(move || {
        Gateway::start(
            &url,
            &["--shed", "--coalesce", "--throttle", "--grpc-metrics"],
        )
    })
    .await
    .unwrap();
    let (ask, asked) = tokio::sync::mpsc::channel(1);
    let mut client = client(&gateway).await;
    let requests = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut answers = client
        .full_duplex_call(requests)
        .await
        .unwrap()
        .into_inner();
    for size in [1, 100_000, 7] {
        let parameters = ResponseParameters {
            size,
            ..Default::default()
        };
        let request = StreamingOutputCallRequest {
            response_parameters: vec![parameters],
            payload: Some(Payload {
                body: vec![1; 50_000],
                ..Default::default()
            }),
            ..Default::default()
        };
        ask.send(request).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.payload.unwrap().body.len(), size as usize);
    }
    drop(ask);
    assert!(answers.message().await.unwrap().is_none());
    assert!(answers.trailers().await.unwrap().is_some());
}

/// The status of an empty call through a gateway with these flags.
async fn status(upstream: &str, flags: &'static [&'static str]) -> tonic::Status {
    let upstream = upstream.to_owned();
    let gateway = blocking(move || Gateway::start(&upstream, flags))
        .await
        .unwrap();
    client(&gateway)
        .await
        .empty_call(Empty {})
        .await
        .unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_refuses_is_unavailable() {
    let refusing = super::faults::nobody().replace("http:", "h2c:");
    let status = status(&refusing, &[]).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        !status.message().contains("127.0.0.1"),
        "it tells of the inside: {status:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_unavailable() {
    // It speaks, but no HTTP/2.
    let upstream = super::upstream::Upstream::scripted(|peer| {
        let _ = peer.conn.try_send("SSH-2.0-OpenSSH_9.6\r\n");
        peer.conn.closed();
    });
    let url = upstream.url().replace("http:", "h2c:");
    assert_eq!(status(&url, &[]).await.code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_deadline_exceeded() {
    let upstream = super::faults::silent();
    let url = upstream.url().replace("http:", "h2c:");
    let status = status(&url, &["--timeout", "300ms"]).await;
    // A peer that does not even begin to speak HTTP/2 may count as one that is not there.
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_not_answered_is_deadline_exceeded() {
    let url = tonic_server().await;
    let gateway = blocking(move || Gateway::start(&url, &["--timeout", "300ms"]))
        .await
        .unwrap();
    let mut client = client(&gateway).await;
    let wait = |interval_us| StreamingOutputCallRequest {
        response_parameters: vec![
            ResponseParameters {
                size: 5,
                ..Default::default()
            },
            ResponseParameters {
                size: 5,
                interval_us,
                ..Default::default()
            },
        ],
        ..Default::default()
    };
    // Silence amid a stream of answers: the call ends, and not well.
    let mut answers = client
        .streaming_output_call(wait(5_000_000))
        .await
        .unwrap()
        .into_inner();
    assert!(answers.message().await.unwrap().is_some());
    let status = answers.message().await.unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::DeadlineExceeded
                | Code::Unavailable
                | Code::Internal
                | Code::Unknown
                | Code::Cancelled
        ),
        "{status:?}"
    );
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    // And one that is merely slow.
    let mut answers = client
        .streaming_output_call(wait(100_000))
        .await
        .unwrap()
        .into_inner();
    let mut count = 0;
    while answers.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_and_a_full_pool_are_statuses() {
    for flags in [
        &["--shed", "--limit", "1", "--queue", "0"][..],
        &["--max-connections", "1", "--acquire-timeout", "100ms"],
    ] {
        // One connection, one stream at a time.
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("h2c://{}", incoming.local_addr().unwrap());
        let server = Server::builder()
            .max_concurrent_streams(1)
            .add_service(interop::service());
        tokio::spawn(server.serve_with_incoming(incoming));
        let gateway = blocking(move || Gateway::start(&url, flags)).await.unwrap();
        let mut first = client(&gateway).await;
        let slow = ResponseParameters {
            size: 1,
            interval_us: 2_000_000,
            ..Default::default()
        };
        let quick = ResponseParameters {
            size: 1,
            ..Default::default()
        };
        let request = StreamingOutputCallRequest {
            response_parameters: vec![quick, slow],
            ..Default::default()
        };
        let mut answers = first
            .streaming_output_call(request)
            .await
            .unwrap()
            .into_inner();
        answers.message().await.unwrap();
        let status = client(&gateway)
            .await
            .unary_call(SimpleRequest::default())
            .await
            .unwrap_err();
        assert!(
            matches!(status.code(), Code::Unavailable | Code::ResourceExhausted),
            "{flags:?}: {status:?}"
        );
        answers.message().await.unwrap();
        assert!(answers.message().await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_finishes_calls() {
    let url = tonic_server().await;
    let gateway = blocking(move || Gateway::start(&url, &[])).await.unwrap();
    let mut client = client(&gateway).await;
    let slow = ResponseParameters {
        size: 3,
        interval_us: 150_000,
        ..Default::default()
    };
    let request = StreamingOutputCallRequest {
        response_parameters: vec![slow; 5],
        ..Default::default()
    };
    let mut answers = client
        .streaming_output_call(request)
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap();
    gateway.program.terminate();
    let mut count = 1;
    while answers.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 5);
    assert!(answers.trailers().await.unwrap().is_some());
    let status = blocking(move || gateway.program.wait(Duration::from_secs(5)));
    assert_eq!(status.await.unwrap().code(), Some(0));
}
