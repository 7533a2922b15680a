//! Those who are slow, large or many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_flow::Flow;

use super::{TOKEN, loud, rest, serve};
use crate::http::raw;

async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(seconds);
    tokio::time::timeout(limit, future).await.expect("in time")
}

#[tokio::test]
async fn oversized_and_malformed_requests_are_refused() {
    let served = serve(Flow::new("orders").admin()).await;
    let many = format!(
        "GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n",
        "a: b\r\n".repeat(1_000)
    );
    let huge = format!(
        "GET /metrics HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let target = format!(
        "GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "y".repeat(1 << 17)
    );
    for (bytes, statuses) in [
        (many.as_bytes(), &["431"][..]),
        (huge.as_bytes(), &["431"]),
        (target.as_bytes(), &["431", "414"]),
        (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", &["400"]),
        (b"GET / HTTP/9.9\r\n\r\n", &["400", "505"]),
        // What speaks that would not understand an answer.
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[""]),
    ] {
        let answer = within(5, raw(served.addr, bytes)).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        // What is still on its way when the connection closes may take the answer with it.
        let lost = bytes.len() > 100_000 && answer.is_empty();
        assert!(lost || statuses.contains(&status), "{statuses:?}: {answer}");
        assert_eq!(served.get("/healthz").await.status, 200);
    }
}

#[tokio::test]
async fn large_bodies_are_not_read() {
    let served = serve(Flow::new("orders").admin().token(TOKEN)).await;
    for (line, statuses) in [
        ("POST /metrics", ["405"; 2]),
        ("PUT /knobs/0/x", ["413", "401"]),
        ("POST /session", ["413"; 2]),
    ] {
        let head =
            format!("{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n");
        let answer = within(5, raw(served.addr, head.as_bytes())).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(statuses.contains(&status), "{line}: {answer}");
        // What is on its way when the connection closes may take the answer with it.
        let flood = [head.as_bytes(), &vec![b'x'; 1 << 20]].concat();
        within(5, raw(served.addr, &flood)).await;
        assert_eq!(served.get("/healthz").await.status, 200);
    }
    // Nor one that does not say how large it is.
    let chunked = "POST /session HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("800\r\n{}\r\n", "x".repeat(0x800));
    let answer = within(
        5,
        raw(
            served.addr,
            format!("{chunked}{}", chunk.repeat(3)).as_bytes(),
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(
        served
            .ask("POST /session", &[], &"x".repeat(4096))
            .await
            .status,
        401
    );
    assert_eq!(
        served
            .ask("POST /session", &[], &"x".repeat(4097))
            .await
            .status,
        413
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_takes_its_time_is_not_waited_for() {
    let served = serve(Flow::new("orders").admin().token(TOKEN)).await;
    let started = tokio::time::Instant::now();
    let slow = b"POST /session HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20\r\n\r\n0123";
    let answer = raw(served.addr, slow).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_crowd_shuts_nobody_out() {
    let (flow, _) = loud(3, 5);
    let served = serve(flow.admin()).await;
    // Somebody listens meanwhile, and is not what is closed for the others.
    let mut events = served.events().await;
    events.expect("state").await;
    let mut crowd = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(served.addr).await.unwrap();
        // Some would stay for another request, some never read their answer, some never finish asking.
        let asked = match n % 3 {
            0 => "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: keep-alive\r\n\r\n",
            1 => "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n",
            _ => "GET /metrics HTTP/1.1\r\nhost",
        };
        stream.write_all(asked.as_bytes()).await.unwrap();
        crowd.push(stream);
    }
    assert_eq!(within(2, served.get("/healthz")).await.status, 200);
    for _ in 0..3 {
        within(5, events.expect("tick")).await;
    }
}

#[tokio::test]
async fn many_who_listen_may_come_at_once() {
    let (flow, _) = loud(3, 5);
    let served = Arc::new(serve(flow.admin()).await);
    // As after a restart, when every page that was open comes again.
    let coming: Vec<_> = (0..100)
        .map(|_| {
            let served = served.clone();
            tokio::spawn(async move {
                let mut events = served.events().await;
                events.expect("state").await;
                events.expect("tick").await;
            })
        })
        .collect();
    for come in coming {
        within(20, come).await.unwrap();
    }
}

#[tokio::test]
async fn a_slow_request_is_cut_off() {
    let served = serve(Flow::new("orders").admin()).await;
    let started = Instant::now();
    let mut slow = TcpStream::connect(served.addr).await.unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nhost")
        .await
        .unwrap();
    rest(&mut slow).await;
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_cut_off() {
    let (flow, _) = loud(5_000, 1_000);
    let served = serve(flow.admin()).await;
    let mut slow = served.ignore("/snapshot.json").await;
    tokio::time::sleep(Duration::from_secs(16)).await;
    let got = rest(&mut slow).await;
    let head = String::from_utf8_lossy(&got[..1_000]).to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    assert!(
        length > 5_000_000 && got.len() < length / 4,
        "{} of {length}",
        got.len()
    );
}

#[tokio::test(start_paused = true)]
async fn so_many_may_listen_and_no_more() {
    let (flow, _) = loud(3, 5);
    let served = serve(flow.admin()).await;
    let mut all = Vec::new();
    for _ in 0..128 {
        let mut events = served.events().await;
        events.expect("state").await;
        all.push(events);
    }
    let refused = served.get("/events").await;
    assert_eq!(
        (refused.status, &*refused.headers["retry-after"]),
        (503, "10")
    );
    assert!(refused.body.contains("128 clients"), "{}", refused.body);
    // Those who listen do so still, and one who leaves makes room.
    for events in &mut all {
        events.expect("tick").await;
    }
    all.pop();
    let again = async {
        while served.ignore("/events").await.read_u64().await.unwrap()
            != u64::from_be_bytes(*b"HTTP/1.1")
            || served.get("/healthz").await.status != 200
        {}
    };
    within(60, again).await;
    let none = serve(flow.admin().max_events(0)).await;
    assert_eq!(none.get("/events").await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn who_listens_but_does_not_read_is_put_out() {
    // All updates are as large as they get.
    let (flow, _) = loud(200, 400);
    let served = serve(flow.admin().max_events(2)).await;
    let mut good = served.events().await;
    good.expect("state").await;
    let mut slow = served.ignore("/events").await;
    let mut ticks = 0;
    // Longer than what the kernel holds for it, and the time it has then.
    for _ in 0..60 {
        good.expect("tick").await;
        ticks += 1;
    }
    assert_eq!(ticks, 60);
    // Its place is free; and it has got but what the kernel held.
    let mut next = served.events().await;
    next.expect("state").await;
    let got = rest(&mut slow).await;
    assert!(got.starts_with(b"HTTP/1.1 200"));
    assert!(got.len() < 30 * 20_000, "{}", got.len());
}
