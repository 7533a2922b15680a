//! Ten thousand streams at a time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::programs::{Program, example};

const STREAMS: usize = 10_000;
/// Of clients, of 500 streams each.
const CLIENTS: usize = 20;
/// Of the gateway to the upstream, which takes 1,000 streams on each.
const CONNECTIONS: usize = 16;

/// Answers nobody before the word is given.
#[derive(Clone)]
struct Upstream {
    streams: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    word: watch::Sender<bool>,
}

pub fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be had");
    runtime.block_on(async {
        let upstream = Upstream {
            streams: Arc::default(),
            connections: Arc::default(),
            most: Arc::default(),
            word: watch::Sender::new(false),
        };
        let addr = upstream.serve().await;
        let cap = CONNECTIONS.to_string();
        let upstream_url = format!("h2c://{addr}");
        let flags = ["--listen", "127.0.0.1:0", "--upstream", &upstream_url];
        let limits = ["--max-connections", &cap, "--acquire-timeout", "60s"];
        let gateway = Program::start(example("gateway"), flags.iter().chain(&limits));
        let url = gateway.line("listening on ");
        let to = url.strip_prefix("http://").expect("it speaks HTTP").parse().expect("it is an address");
        let before = resident(gateway.id());

        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(hold(to, STREAMS / CLIENTS));
        }
        let all = async {
            while upstream.streams.load(SeqCst) < STREAMS {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let there = timeout(Duration::from_secs(60), all).await;
        let held = upstream.streams.load(SeqCst);
        assert!(there.is_ok(), "{held} of {STREAMS} streams came through");
        let with = resident(gateway.id());
        upstream.word.send_replace(true);
        let mut answered = 0;
        while let Some(client) = clients.join_next().await {
            answered += client.expect("no client panics");
        }
        let most = upstream.most.load(SeqCst);
        println!(
            "{held} HTTP/2 streams at a time over {most} connections to the upstream ({CONNECTIONS} may be): {answered} \
             answered, {:.1} KiB of memory for each",
            (with - before) as f64 / STREAMS as f64
        );
        assert_eq!(answered, STREAMS);
        assert!(most <= CONNECTIONS);
    });
}

impl Upstream {
    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let addr = listener.local_addr().expect("it is bound");
        let this = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let open = this.connections.fetch_add(1, SeqCst) + 1;
                this.most.fetch_max(open, SeqCst);
                let this = this.clone();
                tokio::spawn(async move {
                    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.max_concurrent_streams(1_000);
                    let service = service_fn(|_| this.clone().answer());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    this.connections.fetch_sub(1, SeqCst);
                });
            }
        });
        addr
    }

    async fn answer(self) -> Result<Response<Full<Bytes>>, Infallible> {
        self.streams.fetch_add(1, SeqCst);
        let _ = self.word.subscribe().wait_for(|word| *word).await;
        Ok(Response::new(Full::from("at last")))
    }
}

/// Asks `streams` times at once, on one connection; how many answers were good.
async fn hold(to: SocketAddr, streams: usize) -> usize {
    let stream = TcpStream::connect(to).await.expect("the gateway listens");
    let connecting =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = connecting.await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let mut asked = JoinSet::new();
    for _ in 0..streams {
        let mut sender = sender.clone();
        asked.spawn(async move {
            let req = Request::get(format!("http://{to}/")).body(Empty::<Bytes>::new());
            sender.ready().await.expect("the connection stands");
            let answer: Response<Incoming> = sender
                .send_request(req.expect("it is a request"))
                .await
                .expect("an answer");
            usize::from(answer.status().is_success())
        });
    }
    asked.join_all().await.into_iter().sum()
}

/// Its memory in KiB.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("it has memory");
    line.split_whitespace()
        .next()
        .and_then(|n| n.parse().ok())
        .expect("it is a number")
}
