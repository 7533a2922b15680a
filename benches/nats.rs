//! What batched publishing to JetStream gains, and what a request costs beside async-nats' own.
//!
//! `cargo bench --features full --bench nats`
//!
//! A nats-server is started on a free port, with its store in a directory of its own. Variants take turns, round after
//! round; medians. Both ends and the server share the machine.

#![allow(missing_docs, unreachable_pub, missing_debug_implementations)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use async_nats::jetstream::{self, stream};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_flow::BoxError;
use tower_flow::batch::{Batch, BatchLayer};
use tower_flow::nats::{JetStreamPublish, NatsPool, NatsRequest, NatsService, Publish};

/// Bytes of a message.
const SIZE: usize = 256;
/// Who publish or ask at a time, where several do.
const CALLERS: usize = 100;

type Turn = Box<dyn Fn() -> BoxFuture<'static, Result<usize, BoxError>>>;

struct Server {
    child: Child,
    url: String,
    dir: PathBuf,
}

impl Server {
    fn start() -> Result<Self, BoxError> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let dir = std::env::temp_dir().join(format!("tower-flow-bench-{}", std::process::id()));
        let mut command = Command::new("nats-server");
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]);
        command
            .arg(&dir)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let log = child.stderr.take();
        let server = Self {
            child,
            url: format!("nats://127.0.0.1:{port}"),
            dir,
        };
        let mut log = BufReader::new(log.ok_or("it has no log")?).lines();
        let ready = log.any(|line| line.is_ok_and(|line| line.contains("Server is ready")));
        std::thread::spawn(move || log.for_each(drop));
        match ready {
            true => Ok(server),
            false => Err("it ended before it was ready".into()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn main() -> Result<(), BoxError> {
    let server = match Server::start() {
        Ok(server) => server,
        Err(error) => {
            println!("skipped: nats-server does not start: {error}");
            return Ok(());
        }
    };
    let rounds = std::env::var("TOWER_FLOW_ROUNDS")
        .map_or(15, |rounds| rounds.parse().expect("a number of rounds"));
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        publishing(&server, rounds).await?;
        requests(&server, rounds).await
    })
}

/// Messages a second of each variant, the median of all rounds.
async fn measure(
    title: &str,
    unit: &str,
    variants: Vec<(&str, Turn)>,
    rounds: usize,
) -> Result<(), BoxError> {
    for (_, turn) in &variants {
        turn().await?;
    }
    let mut rates = vec![Vec::new(); variants.len()];
    for round in 0..rounds {
        for place in 0..variants.len() {
            let which = (round + place) % variants.len();
            let start = Instant::now();
            let count = variants[which].1().await?;
            rates[which].push(count as f64 / start.elapsed().as_secs_f64());
        }
    }
    println!("### {title}\n\n| | {unit} a second, median | least | most | × the first |");
    println!("|---|---:|---:|---:|---:|");
    let mut first = None;
    for ((name, _), rates) in variants.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        let times = median / *first.get_or_insert(median);
        println!(
            "| {name} | {median:.0} | {:.0} | {:.0} | {times:.1} |",
            rates[0],
            rates[rates.len() - 1]
        );
    }
    println!();
    Ok(())
}

async fn publishing(server: &Server, rounds: usize) -> Result<(), BoxError> {
    let context = jetstream::new(async_nats::connect(&server.url).await?);
    for (name, storage) in [
        ("a stream in a file", stream::StorageType::File),
        ("a stream in memory", stream::StorageType::Memory),
    ] {
        let config = stream::Config {
            name: "ITEMS".into(),
            subjects: vec!["items".into()],
            storage,
            max_messages: 100_000,
            ..stream::Config::default()
        };
        context.create_stream(config).await?;
        let title = format!("Publishing {SIZE} bytes to {name}");
        measure(&title, "messages", publishers(&context), rounds).await?;
        context.delete_stream("ITEMS").await?;
    }
    Ok(())
}

fn publishers(context: &jetstream::Context) -> Vec<(&'static str, Turn)> {
    let one_by_one: Turn = {
        let context = context.clone();
        Box::new(move || {
            let context = context.clone();
            Box::pin(async move {
                for _ in 0..500 {
                    context
                        .publish("items", vec![0; SIZE].into())
                        .await?
                        .await?;
                }
                Ok(500)
            })
        })
    };
    let each_awaited: Turn = {
        let context = context.clone();
        Box::new(move || {
            let context = context.clone();
            Box::pin(async move {
                let callers = (0..CALLERS).map(|_| {
                    let context = context.clone();
                    tokio::spawn(async move {
                        for _ in 0..50 {
                            context
                                .publish("items", vec![0; SIZE].into())
                                .await?
                                .await?;
                        }
                        Ok::<_, BoxError>(50)
                    })
                });
                sum(callers).await
            })
        })
    };
    let layered: Turn = {
        let publish = JetStreamPublish::new(context.clone());
        let service = ServiceBuilder::new()
            .layer(BatchLayer::new())
            .service(publish);
        Box::new(move || {
            let service = service.clone();
            Box::pin(async move {
                let callers = (0..CALLERS).map(|_| {
                    let mut service = service.clone();
                    tokio::spawn(async move {
                        for _ in 0..50 {
                            let publish = Publish::new("items", vec![0; SIZE]);
                            service.ready().await?.call(publish).await?;
                        }
                        Ok::<_, BoxError>(50)
                    })
                });
                sum(callers).await
            })
        })
    };
    let batches: Turn = {
        let service = JetStreamPublish::new(context.clone());
        Box::new(move || {
            let mut service = service.clone();
            Box::pin(async move {
                for _ in 0..20 {
                    let items = (0..500).map(|_| Publish::new("items", vec![0; SIZE]));
                    let batch = items.collect::<Batch<_>>();
                    for answer in service.ready().await?.call(batch).await? {
                        answer?;
                    }
                }
                Ok(10_000)
            })
        })
    };
    vec![
        ("one by one, each awaited", one_by_one),
        ("100 callers, each awaits its own", each_awaited),
        ("100 callers under `BatchLayer::new()`", layered),
        ("`JetStreamPublish`, batches of 500", batches),
    ]
}

async fn requests(server: &Server, rounds: usize) -> Result<(), BoxError> {
    let responder = async_nats::connect(&server.url).await?;
    let mut asked = responder.subscribe("echo").await?;
    // The server has read the subscription once it answers what came after it.
    let inbox = responder.new_inbox();
    let mut own = responder.subscribe(inbox.clone()).await?;
    responder.publish(inbox, Default::default()).await?;
    own.next().await;
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            if let Some(reply) = message.reply {
                let _ = responder.publish(reply, message.payload).await;
            }
        }
    });
    let client = async_nats::connect(&server.url).await?;
    let service = NatsService::new(client.clone());
    let pool = NatsPool::builder(server.url.as_str())
        .max_connections(2)
        .build();
    pool.warm(2).await?;
    let own: Turn = Box::new(move || {
        let client = client.clone();
        Box::pin(async move {
            let callers = (0..CALLERS).map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    for _ in 0..50 {
                        client.request("echo", vec![0; SIZE].into()).await?;
                    }
                    Ok::<_, BoxError>(50)
                })
            });
            sum(callers).await
        })
    });
    let variants = vec![
        ("`async_nats::Client::request`", own),
        ("`NatsService`", asking(service)),
        ("`NatsPool`, 2 connections", asking(pool)),
    ];
    let title = format!("Requests of {SIZE} bytes from {CALLERS} callers");
    measure(&title, "requests", variants, rounds).await
}

fn asking<S>(service: S) -> Turn
where
    S: Service<NatsRequest, Error = tower_flow::nats::Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Response: Send,
{
    Box::new(move || {
        let service = service.clone();
        Box::pin(async move {
            let callers = (0..CALLERS).map(|_| {
                let mut service = service.clone();
                tokio::spawn(async move {
                    for _ in 0..50 {
                        let req = NatsRequest::new("echo").payload(vec![0; SIZE]);
                        service.ready().await?.call(req).await?;
                    }
                    Ok::<_, BoxError>(50)
                })
            });
            sum(callers).await
        })
    })
}

async fn sum(
    callers: impl Iterator<Item = tokio::task::JoinHandle<Result<usize, BoxError>>>,
) -> Result<usize, BoxError> {
    let mut sum = 0;
    for caller in join_all(callers).await {
        sum += caller??;
    }
    Ok(sum)
}
