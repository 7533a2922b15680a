//! Traffic of all kinds for long: nothing grows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Gateway;
use super::flags::page;

/// Callers at a time.
const CALLERS: usize = 16;
const BODY: usize = 64 * 1024;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    kib: u64,
    files: usize,
    tasks: u64,
}

/// For 3 s, or with `TOWER_FLOW_SOAK=1` until there were as many requests as a thousand a second make in an hour, or two
/// minutes are over.
#[tokio::test(flavor = "multi_thread")]
async fn traffic_of_all_kinds_for_long_leaves_nothing_behind() {
    let soak = std::env::var("TOWER_FLOW_SOAK").is_ok_and(|soak| soak == "1");
    let (length, wanted) = match soak {
        true => (Duration::from_secs(120), 3_600_000),
        false => (Duration::from_secs(3), u64::MAX),
    };
    let upstream = upstream().await;
    let flags =
        "--admin 127.0.0.1:0 --shed --limit 64 --coalesce --throttle --grpc-metrics --timeout 2s";
    let gateway = tokio::task::block_in_place(|| {
        Gateway::start(
            &format!("http://{upstream}"),
            &flags.split_whitespace().collect::<Vec<_>>(),
        )
    });
    let done = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (url, done) = (gateway.url.clone(), done.clone());
        callers.spawn(async move {
            let clients = [client(false), client(true)];
            for n in caller.. {
                if start.elapsed() > length || done.load(Relaxed) > wanted {
                    return;
                }
                call(&clients[n % 2], &url, n).await;
                done.fetch_add(1, Relaxed);
            }
        });
    }
    sleep(length / 3).await;
    let early = held(&gateway);
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    let late = held(&gateway);
    // Connections of callers that are gone end.
    let settled = async {
        loop {
            let now = held(&gateway);
            if now.tasks <= early.tasks && now.files <= early.files {
                return now;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let after = timeout(Duration::from_secs(10), settled).await;
    let done = done.load(Relaxed);
    println!("{done} requests; after a third {early:?}, at the end {late:?}, afterwards {after:?}");
    assert!(
        after.is_ok(),
        "{early:?}, and ten seconds after the end {:?}",
        held(&gateway)
    );
    // What an allocator keeps varies; what leaks grows by as much again and again.
    let room = early.kib / 5 + 8 * 1024;
    assert!(late.kib <= early.kib + room, "{early:?}, then {late:?}");
}

type Caller = Client<HttpConnector, Full<Bytes>>;

fn client(two: bool) -> Caller {
    Client::builder(TokioExecutor::new())
        .http2_only(two)
        .build_http()
}

/// One of the things that happen.
async fn call(client: &Caller, url: &str, n: usize) {
    let get = |path: &str| {
        let req = Request::get(format!("{url}{path}"));
        client.request(req.body(Full::default()).unwrap())
    };
    match n % 8 {
        0..=2 => whole(get(&format!("/small/{n}"))).await,
        // Equal ones.
        3 => whole(get("/small/same")).await,
        4 => {
            let body = Full::from(vec![b'x'; BODY]);
            let req = Request::post(format!("{url}/echo")).body(body).unwrap();
            whole(client.request(req)).await;
        }
        // Given up before the answer, or in the middle of it.
        5 => drop(timeout(Duration::from_millis(1), get("/slow")).await),
        6 => {
            if let Ok(answer) = get("/large").await {
                let _ = answer.into_body().frame().await;
            }
        }
        _ => whole(get("/breaks")).await,
    }
}

async fn whole(asked: impl Future<Output = Result<Response<Incoming>, impl std::fmt::Debug>>) {
    if let Ok(answer) = asked.await {
        // One that breaks off is an error of its body.
        let _ = answer.into_body().collect().await;
    }
}

async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .await;
            });
        }
    });
    addr
}

async fn answer(req: Request<Incoming>) -> Result<Response<Full<Bytes>>, BreaksOff> {
    let body = match req.uri().path() {
        "/slow" => {
            sleep(Duration::from_millis(20)).await;
            Bytes::new()
        }
        "/large" => vec![b'x'; 16 * BODY].into(),
        "/echo" => req
            .into_body()
            .collect()
            .await
            .map_err(|_| BreaksOff)?
            .to_bytes(),
        // An error ends the connection.
        "/breaks" => return Err(BreaksOff),
        _ => Bytes::from_static(b"small"),
    };
    Ok(Response::new(Full::from(body)))
}

/// Ends a connection.
#[derive(Debug)]
struct BreaksOff;

impl std::fmt::Display for BreaksOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the upstream breaks off")
    }
}

impl std::error::Error for BreaksOff {}

fn held(gateway: &Gateway) -> Held {
    let id = gateway.program.id();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let metrics = tokio::task::block_in_place(|| page(gateway, "/metrics"));
    let tasks = metrics
        .lines()
        .find(|line| line.starts_with("tower_flow_scheduler_tasks{"))
        .unwrap();
    Held {
        kib: resident.split_whitespace().next().unwrap().parse().unwrap(),
        files: std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count(),
        tasks: tasks.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64,
    }
}
