//! One long body for a hundred readers, one of whom stops reading: what is held of it, and whom that holds up. In a
//! process of its own, so that what others freed does not hide what this takes.

use std::convert::Infallible;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty};
use tower_flow::coalesce::CoalesceLayer;
use tower_layer::Layer;
use tower_service::Service;

use crate::support::yes;

const LENGTH: usize = 64 << 20;
const CHUNK: usize = 64 << 10;
const READERS: usize = 100;
const STALL: Duration = Duration::from_millis(300);
const BUFFER: usize = 256 << 10;

pub fn print() {
    let [shared, each] = ["shared", "each"].map(run);
    println!(
        "A body of {} MiB in chunks of {} KiB, {READERS} readers on two threads, one of whom stops after the first chunk. It is \
         given {} ms, and {} KiB may be held for it. Each in a process of its own.\n",
        LENGTH >> 20,
        CHUNK >> 10,
        STALL.as_millis(),
        BUFFER >> 10
    );
    println!(
        "| body | backend calls | bytes made, MiB | memory, MiB more at most | the others done after, ms | who stopped |"
    );
    println!("|---|---:|---:|---:|---:|---|");
    for (name, result) in [("coalesce", &shared), ("each its own", &each)] {
        println!(
            "| {name} | {} | {} | {:.1} | {:.0} | {} |",
            result.calls,
            result.made >> 20,
            result.grown as f64 / 1024.0,
            result.others,
            result.stalled
        );
    }
    println!();
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| one call | {}: {} |",
        yes(shared.calls == 1),
        shared.calls
    );
    println!(
        "| all others have it whole | {}: {} of {} |",
        yes(shared.whole == READERS - 1),
        shared.whole,
        READERS - 1
    );
    println!(
        "| at most 4 MiB more: the buffer, and the tasks | {}: {:.1} MiB |",
        yes(shared.grown <= 4096),
        shared.grown as f64 / 1024.0
    );
    println!(
        "| held up for the stall and no longer: done in 1 s | {}: {:.0} ms |",
        yes(shared.others <= 1000.0),
        shared.others
    );
    println!(
        "| who stopped is told | {}: {} |",
        yes(!shared.stalled.is_empty() && !shared.stalled.starts_with("read")),
        shared.stalled
    );
}

struct Result {
    calls: u64,
    made: u64,
    /// KiB.
    grown: u64,
    /// Milliseconds.
    others: f64,
    whole: usize,
    stalled: String,
}

fn run(how: &str) -> Result {
    let this = std::env::current_exe().expect("it runs");
    let child = Command::new(this).args(["child", "body", how]).output();
    let child = child.expect("it starts");
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    let mut lines = text.lines();
    let mut line = || lines.next().expect("a line for each").to_owned();
    Result {
        calls: line().parse().expect("a number"),
        made: line().parse().expect("a number"),
        grown: line().parse().expect("a number"),
        others: line().parse().expect("a number"),
        whole: line().parse().expect("a number"),
        stalled: line(),
    }
}

/// What the child does.
pub fn child(shared: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    let backend = Backend::default();
    let layer = CoalesceLayer::http().max_buffer(BUFFER).stall(STALL);
    let before = resident();
    let most = Arc::new((AtomicU64::new(before), AtomicBool::new(false)));
    let watcher = std::thread::spawn({
        let most = most.clone();
        move || {
            while !most.1.load(Relaxed) {
                most.0.fetch_max(resident(), Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let (others, whole, stalled) = if shared {
        runtime.block_on(readers(&layer.layer(backend.clone())))
    } else {
        runtime.block_on(readers(&backend))
    };
    most.1.store(true, Relaxed);
    watcher.join().expect("it only watches");
    let calls = backend.calls.load(Relaxed);
    println!("{calls}\n{}", backend.made.load(Relaxed));
    println!("{}\n{others}", most.0.load(Relaxed) - before);
    println!("{whole}\n{}", stalled.replace('\n', " "));
}

/// When all but one were done, in milliseconds, how many of them had all of it, and what the one was told.
async fn readers<S, B>(service: &S) -> (f64, usize, String)
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: std::fmt::Debug,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    let start = Instant::now();
    let ask = || {
        let mut service = service.clone();
        async move {
            let mut req = Request::new(Empty::new());
            *req.uri_mut() = "http://shop.example.com/film".parse().expect("a URI");
            std::future::poll_fn(|cx| service.poll_ready(cx))
                .await
                .expect("it is ready");
            service.call(req).await.expect("an answer").into_body()
        }
    };
    let one = tokio::spawn({
        let asked = ask();
        async move {
            let mut body = asked.await;
            let first = body.frame().await.expect("a frame");
            let mut read = first.map_or(0, |frame| length(&frame));
            tokio::time::sleep(4 * STALL).await;
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => read += length(&frame),
                    Err(error) => return error.to_string(),
                }
            }
            format!("read {} MiB", read >> 20)
        }
    });
    let others: Vec<_> = (1..READERS)
        .map(|_| {
            let asked = ask();
            tokio::spawn(async move {
                let mut body = asked.await;
                let mut read = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    read += length(&frame);
                }
                read == LENGTH
            })
        })
        .collect();
    let mut whole = 0;
    for other in others {
        whole += usize::from(other.await.expect("it only reads"));
    }
    let took = start.elapsed().as_secs_f64() * 1e3;
    (took, whole, one.await.expect("it only reads"))
}

fn length(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}

/// KiB of the process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[derive(Clone, Default)]
struct Backend {
    calls: Arc<AtomicU64>,
    made: Arc<AtomicU64>,
}

impl Service<Request<Empty<Bytes>>> for Backend {
    type Response = Response<Long>;
    type Error = Infallible;
    type Future =
        Pin<Box<dyn Future<Output = std::result::Result<Response<Long>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        self.calls.fetch_add(1, Relaxed);
        let made = self.made.clone();
        Box::pin(async move {
            // Long enough for all to ask.
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Response::new(Long { left: LENGTH, made }))
        })
    }
}

/// Makes each chunk when it is asked for.
struct Long {
    left: usize,
    made: Arc<AtomicU64>,
}

impl Body for Long {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= CHUNK;
        self.made.fetch_add(CHUNK as u64, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(vec![7; CHUNK].into()))))
    }
}
