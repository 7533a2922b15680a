//! The one place to make clients from, on loopback.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tower::{Service, ServiceExt};
use tower_flow::error::Reason;
use tower_flow::phases::Timings;
use tower_flow::pool::{self, ErrorKind};
use tower_flow::preset::Transport;
use tower_flow::{Flow, Rejection, error};

use crate::support::certs::{self, Ca};

/// Answers with the version it was asked in; `/slow` never.
async fn serve() -> Uri {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let answer = hyper::service::service_fn(async |req: Request<Incoming>| {
        if req.uri().path() == "/slow" {
            std::future::pending::<()>().await;
        }
        let version = format!("{:?}", req.version());
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(version))))
    });
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let server = auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move {
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    uri.parse().unwrap()
}

fn get(uri: &Uri, path: &str) -> Request<Empty<Bytes>> {
    let uri = format!("{}{path}", uri.to_string().trim_end_matches('/'));
    Request::get(uri).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn clients_of_one_transport_share_its_pool_its_timing_and_its_throttle() {
    let uri = serve().await;
    let flow = Flow::new("caller");
    let transport = Transport::tuned("backends").attach(&flow).build();
    for _ in 0..3 {
        let mut client = transport.client();
        let response = client.ready().await.unwrap().call(get(&uri, "/")).await;
        let response = response.unwrap();
        let timings = response.extensions().get::<Timings>().unwrap().clone();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "HTTP/1.1");
        assert!(timings.end().is_some());
    }
    // Another type of body, the same connection.
    let req = get(&uri, "/").map(|_| Full::new(Bytes::from("hello")));
    let response = transport.clone().client().oneshot(req).await.unwrap();
    response.into_body().collect().await.unwrap();
    let stats = transport.pool().stats();
    assert_eq!((stats.peak_open, stats.requests, stats.reused), (1, 4, 3));

    let kinds: Vec<_> = flow.attached().iter().map(|layer| layer.kind()).collect();
    assert_eq!(kinds, ["timing", "timing", "throttle", "pool"]);
    let timed = flow.attached()[0].snapshot().to_string();
    assert!(timed.contains(r#""started":4"#), "{timed}");
    assert!(timed.contains(r#""reused":3"#), "{timed}");
}

#[tokio::test]
async fn a_request_nobody_answers_ends_with_its_timeout_and_says_so() {
    let uri = serve().await;
    let transport = Transport::tuned("backends")
        .request_timeout(Duration::from_millis(50))
        .build();
    let failed = transport.client().oneshot(get(&uri, "/slow")).await;
    let failed = failed.unwrap_err();
    let rejection = Rejection::find(failed.as_ref()).unwrap();
    assert_eq!(rejection.reason(), Reason::Deadline);
    assert!(failed.to_string().contains("50ms"), "{failed}");
    // Its connection closed with it, and the slot is free.
    transport
        .pool()
        .shutdown(Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(transport.pool().stats().open, 0);
}

#[tokio::test]
async fn over_tls_it_speaks_what_was_negotiated_and_trusts_whom_it_is_told() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = ca.certify(["localhost"]).server(["h2", "http/1.1"]);
    let server = certs::serve(listener, config);
    let uri: Uri = format!("https://localhost:{}", server.port())
        .parse()
        .unwrap();

    let stranger = Transport::tuned("backends").build();
    let failed = stranger.client().oneshot(get(&uri, "/")).await.unwrap_err();
    let failed: &pool::Error = error::find(failed.as_ref()).unwrap();
    assert_eq!(failed.kind(), ErrorKind::Connect);
    assert!(failed.to_string().contains("certificate"), "{failed}");

    let transport = Transport::tuned("backends").roots(ca.roots()).build();
    let response = transport.client().oneshot(get(&uri, "/")).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    let timings = response.extensions().get::<Timings>().unwrap();
    assert!(timings.tls().is_some() && timings.handshake().is_some());
    let stats = transport.pool().stats();
    let told = |name: &str| stats.phases.iter().find(|told| told.phase == name);
    for phase in ["wait", "dns", "connect", "tls", "handshake", "total"] {
        let told = told(phase).unwrap_or_else(|| panic!("{phase} of {:?}", stats.phases));
        assert_eq!(told.count, 1, "{phase}");
    }
    assert!(told("total").unwrap().mean >= timings.tls().unwrap());
}
