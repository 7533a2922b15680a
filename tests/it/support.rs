//! What the tests share: foreign programs, bodies, requests, and a counting allocator.

#[cfg(target_os = "linux")]
pub mod browser;
pub mod certs;
pub mod programs;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tower_flow::metrics::{Families, Format, Value};
use tower_flow::{BoxError, Flow};

// ===== foreign programs =====

/// Whether `program` runs here. When it does not, the test says so and passes, or fails under `TOWER_FLOW_REQUIRE`.
pub fn found(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        let required = std::env::var_os("TOWER_FLOW_REQUIRE").is_some();
        assert!(!required, "{program} is required here and was not found");
        eprintln!("skipped: {program} not found");
    }
    found
}

/// A Python with the packages of `tests/interop/requirements.txt`: the one named by `TOWER_FLOW_PYTHON`, or that of
/// `target/venv`.
pub fn python() -> Option<String> {
    let python = std::env::var("TOWER_FLOW_PYTHON").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python").to_owned()
    });
    found(&python).then_some(python)
}

/// A script of `tests/interop`.
pub fn script(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop")).join(name)
}

/// Runs a program with `input` on its standard input.
pub fn run(command: &mut Command, input: &[u8]) -> Output {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Beside the reading, so that neither pipe fills up.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// A fresh directory under the build's own.
pub fn scratch(name: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("{name}-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

// ===== bodies and requests =====

/// A body that yields its steps; `None` is one Pending. Says it is at its end only when `known`.
#[derive(Debug, Default)]
pub struct Steps {
    pub steps: VecDeque<Option<Result<Frame<Bytes>, BoxError>>>,
    pub known: bool,
    pub hint: SizeHint,
}

impl Steps {
    pub fn new(steps: impl IntoIterator<Item = Option<Result<Frame<Bytes>, BoxError>>>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Ends honestly: `is_end_stream` tells when nothing follows.
    pub fn known(mut self) -> Self {
        self.known = true;
        self
    }
}

impl Body for Steps {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.steps.pop_front() {
            Some(Some(step)) => Poll::Ready(Some(step)),
            Some(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.known && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

pub type Step = Option<Result<Frame<Bytes>, BoxError>>;

/// One gRPC message in a frame of its own.
pub fn message(payload: &[u8]) -> Step {
    data(&framed(0, payload))
}

pub fn framed(flag: u8, payload: &[u8]) -> Vec<u8> {
    [&[flag][..], &(payload.len() as u32).to_be_bytes(), payload].concat()
}

pub fn data(bytes: &[u8]) -> Step {
    Some(Ok(Frame::data(Bytes::copy_from_slice(bytes))))
}

pub fn trailers(status: &'static str) -> Step {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    Some(Ok(Frame::trailers(trailers)))
}

pub fn broken(error: impl Into<BoxError>) -> Step {
    Some(Err(error.into()))
}

pub fn grpc_request(path: &str) -> Request<Steps> {
    Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Steps::new([message(b"question")]).known())
        .unwrap()
}

pub fn grpc_response(steps: impl IntoIterator<Item = Step>) -> Response<Steps> {
    Response::builder()
        .header("content-type", "application/grpc")
        .body(Steps::new(steps))
        .unwrap()
}

// ===== metrics =====

/// The value of the series of `name` that has all of `labels`.
pub fn value(families: &Families, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let family = families.get(name)?;
    let has = |series: &&tower_flow::metrics::Series| {
        labels
            .iter()
            .all(|wanted| series.labels.iter().any(|label| label == *wanted))
    };
    let mut found = family.series.iter().filter(has);
    let first = found.next()?;
    assert!(
        found.next().is_none(),
        "{labels:?} name several series of {name}"
    );
    Some(match &first.value {
        Value::Histogram(histogram) => histogram.count() as f64,
        value => value.as_f64(),
    })
}

/// The sum of all series of `name` that have all of `labels`.
pub fn sum(families: &Families, name: &str, labels: &[(&str, &str)]) -> f64 {
    let series = families
        .get(name)
        .into_iter()
        .flat_map(|family| &family.series);
    series
        .filter(|series| {
            labels
                .iter()
                .all(|wanted| series.labels.iter().any(|label| label == *wanted))
        })
        .map(|series| series.value.as_f64())
        .sum()
}

pub fn classic(flow: &Flow) -> String {
    String::from_utf8(flow.encode(Format::Classic)).unwrap()
}

// ===== allocations =====

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: all work is done by the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        BYTES.set(BYTES.get() + layout.size() as i64);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - layout.size() as i64);
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread has allocated.
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// How many bytes this thread has allocated and not freed; below zero when it frees what others have allocated.
pub fn bytes() -> i64 {
    BYTES.get()
}
