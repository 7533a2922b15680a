//! The live endpoint, and those who mean it ill.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::Empty;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_flow::Flow;
use tower_flow::admin::AdminError;
use tower_flow::grpc::{GrpcServerLayer, GrpcType};
use tower_flow::timing::TimingLayer;

use crate::http::{get, raw, send};

async fn serve() -> SocketAddr {
    let flow = Flow::new("orders </script>");
    let _grpc = GrpcServerLayer::new()
        .register("shop.Orders", "Place", GrpcType::Unary)
        .attach(&flow);
    let _timing = TimingLayer::new("stock").attach(&flow);
    let server = flow
        .admin()
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let addr = server.local_addr();
    tokio::spawn(server.run());
    addr
}

#[tokio::test]
async fn every_page_answers() {
    let addr = serve().await;
    let index = get(&format!("http://{addr}/"), "*/*").await;
    assert!(
        std::str::from_utf8(index.body())
            .unwrap()
            .contains("/snapshot.json")
    );
    let health = get(&format!("http://{addr}/healthz"), "*/*").await;
    assert_eq!(
        (health.status().as_u16(), &health.body()[..]),
        (200, &b"ok\n"[..])
    );
    let metrics = get(&format!("http://{addr}/metrics?any=thing"), "*/*").await;
    assert!(
        std::str::from_utf8(metrics.body())
            .unwrap()
            .contains("grpc_server_started_total{")
    );
    assert_eq!(metrics.headers()["cache-control"], "no-store");

    let snapshot = get(&format!("http://{addr}/snapshot.json"), "*/*").await;
    assert_eq!(snapshot.headers()["content-type"], "application/json");
    let text = std::str::from_utf8(snapshot.body()).unwrap();
    assert!(!text.contains('<'), "no name becomes markup: {text}");
    let snapshot: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(snapshot["service"], "orders </script>");
    assert_eq!(snapshot["layers"][0]["kind"], "grpc");
    assert_eq!(
        snapshot["layers"][0]["state"]["methods"][0]["method"],
        "Place"
    );
    assert_eq!(
        snapshot["layers"][1]["state"]["routes"][0]["route"],
        "stock"
    );
    assert_eq!(
        snapshot["layers"][1]["state"]["routes"][0]["window"]["count"],
        0
    );
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_what_there_is() {
    let addr = serve().await;
    let missing = get(&format!("http://{addr}/debug/../etc/passwd"), "*/*").await;
    assert_eq!(missing.status(), 404);
    assert!(
        std::str::from_utf8(missing.body())
            .unwrap()
            .contains("/metrics")
    );
    let post = Request::post(format!("http://{addr}/metrics"))
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let refused = send(post).await;
    assert_eq!(
        (
            refused.status().as_u16(),
            refused.headers()["allow"].to_str().unwrap()
        ),
        (405, "GET, HEAD")
    );
    let head = Request::head(format!("http://{addr}/metrics"))
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let head = send(head).await;
    assert_eq!((head.status().as_u16(), head.body().len()), (200, 0));
}

#[tokio::test]
async fn oversized_and_malformed_requests_are_refused() {
    let addr = serve().await;
    let huge = format!(
        "GET /metrics HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let answer = raw(addr, huge.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let many = format!(
        "GET / HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(1_000)
    );
    let answer = raw(addr, many.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let answer = raw(addr, b"\x16\x03\x01\x02\x00garbage\r\n\r\n").await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    // And it is still there.
    assert_eq!(
        get(&format!("http://{addr}/healthz"), "*/*").await.status(),
        200
    );
}

#[tokio::test]
async fn a_crowd_of_polite_or_slow_clients_shuts_nobody_out() {
    let addr = serve().await;
    let mut crowd = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // Half of them would stay for another request, half never read their answer.
        let path = if n % 2 == 0 { "/healthz" } else { "/metrics" };
        let asked = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n\r\n");
        stream.write_all(asked.as_bytes()).await.unwrap();
        crowd.push(stream);
    }
    let url = format!("http://{addr}/healthz");
    let health = tokio::time::timeout(Duration::from_secs(2), get(&url, "*/*")).await;
    assert_eq!(
        health
            .expect("at once, not when the crowd has gone")
            .status(),
        200
    );
}

#[tokio::test]
async fn a_large_body_is_not_read() {
    let addr = serve().await;
    let head = "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n";
    let flood = [head.as_bytes(), &vec![b'x'; 1 << 20]].concat();
    let answer = tokio::time::timeout(Duration::from_secs(5), raw(addr, &flood))
        .await
        .expect("closed");
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 405"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_slow_request_is_cut_off_and_many_of_them_hold_nothing() {
    let addr = serve().await;
    let started = Instant::now();
    // More connections than are let in at a time, none of which ever finishes its headers.
    let mut slow = Vec::new();
    for _ in 0..80 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost")
            .await
            .unwrap();
        slow.push(stream);
    }
    let url = format!("http://{addr}/healthz");
    let health = tokio::time::timeout(Duration::from_secs(15), get(&url, "*/*"));
    assert_eq!(
        health
            .await
            .expect("it answers once the slow ones are cut off")
            .status(),
        200
    );
    let mut end = Vec::new();
    let _ = slow[0].read_to_end(&mut end).await;
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn an_address_in_use_or_open_to_all_is_a_clear_error() {
    let flow = Flow::new("orders");
    let server = flow
        .admin()
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let taken = flow.admin().bind(server.local_addr()).await.unwrap_err();
    assert!(matches!(taken, AdminError::Bind(..)));
    let message = taken.to_string();
    assert!(
        message.contains(&server.local_addr().to_string())
            && message.contains("choose another port"),
        "{message}"
    );
    assert!(std::error::Error::source(&taken).is_some());

    let open = flow
        .admin()
        .serve("0.0.0.0:0".parse().unwrap())
        .await
        .unwrap_err();
    assert!(open.to_string().contains("no loopback address"), "{open}");
    let _open = flow
        .admin()
        .allow_remote()
        .bind("0.0.0.0:0".parse().unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn dropping_the_server_closes_everything() {
    let flow = Flow::new("orders");
    let server = flow
        .admin()
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let addr = server.local_addr();
    let running = tokio::spawn(server.run());
    let mut open = TcpStream::connect(addr).await.unwrap();
    get(&format!("http://{addr}/healthz"), "*/*").await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), open.read_to_end(&mut rest))
        .await
        .expect("closed");
    assert!(TcpStream::connect(addr).await.is_err());
}
