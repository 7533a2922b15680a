//! The clients: requests that arrive by themselves, however those before them fare, and are given up after a second.
//!
//! They are many for a small machine, so HTTP is written by hand: a request is one write and, as a rule, one read.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::random::Random;

/// How long a client waits.
pub(crate) const DEADLINE: Duration = Duration::from_secs(1);

/// A request that has not been sent by then was not sent in time: the machine is too small, or busy with other things.
const LATE: Duration = Duration::from_millis(50);

/// What arrives, span by span.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) target: SocketAddr,
    pub(crate) seed: u64,
    /// Requests a second, and for how long.
    pub(crate) spans: Vec<(f64, Duration)>,
    /// The share of requests that say they are critical, if any say what they are.
    pub(crate) critical: Option<f64>,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Good,
    /// 503.
    Refused,
    /// No answer within the deadline.
    Left,
    /// Another status, or a connection that broke.
    Broken,
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// From the start of the load to when it was due.
    pub(crate) due: Duration,
    /// From when it was due to its end.
    pub(crate) took: Duration,
    pub(crate) end: End,
    pub(crate) critical: bool,
    /// It was sent much later than it was due.
    pub(crate) late: bool,
}

/// All that became of a load.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) all: Vec<Answer>,
    /// The first of the errors, if any.
    pub(crate) problem: Option<String>,
}

/// What the clients of a load share.
#[derive(Default)]
struct Shared {
    idle: RefCell<Vec<TcpStream>>,
    answers: RefCell<Vec<Answer>>,
    problem: RefCell<Option<String>>,
}

/// Sends the load from this thread, beginning at `start`.
pub(crate) fn send(load: &Load, start: Instant) -> io::Result<Answers> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shared = Rc::new(Shared::default());
    let local = LocalSet::new();
    local.block_on(&runtime, arrive(load, start, &shared));
    Ok(Answers {
        all: shared.answers.take(),
        problem: shared.problem.take(),
    })
}

async fn arrive(load: &Load, start: Instant, shared: &Rc<Shared>) {
    let mut random = Random(load.seed);
    let mut due = start;
    let mut end = start;
    let mut callers = tokio::task::JoinSet::new();
    for (rate, long) in &load.spans {
        end += *long;
        due += random.gap(*rate);
        while due < end {
            if due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            } else {
                // Those that are due together still let the answers in between.
                tokio::task::yield_now().await;
            }
            let critical = load.critical.map(|share| random.happens(share));
            callers.spawn_local(call(load.target, critical, start, due, shared.clone()));
            while callers.try_join_next().is_some() {}
            due += random.gap(*rate);
        }
        due = end;
    }
    while callers.join_next().await.is_some() {}
}

async fn call(
    target: SocketAddr,
    critical: Option<bool>,
    start: Instant,
    due: Instant,
    shared: Rc<Shared>,
) {
    let late = due.elapsed() > LATE;
    let request: &[u8] = match critical {
        None => b"GET / HTTP/1.1\r\nhost: backend\r\n\r\n",
        Some(true) => b"GET / HTTP/1.1\r\nhost: backend\r\nx-priority: critical\r\n\r\n",
        Some(false) => b"GET / HTTP/1.1\r\nhost: backend\r\nx-priority: default\r\n\r\n",
    };
    let mut used = None;
    let answer = exchange(target, request, &shared, &mut used);
    let end = match tokio::time::timeout_at((due + DEADLINE).into(), answer).await {
        Ok(Ok((200, keep))) => reuse(&shared, used, keep, End::Good),
        Ok(Ok((503, keep))) => reuse(&shared, used, keep, End::Refused),
        Ok(Ok((status, _))) => broken(&shared, format!("status {status}")),
        Ok(Err(error)) => broken(&shared, error.to_string()),
        Err(_) => {
            // A reset: nothing waits for the rest, and no port is kept for it.
            if let Some(stream) = used {
                let _ = stream.set_zero_linger();
            }
            End::Left
        }
    };
    shared.answers.borrow_mut().push(Answer {
        due: due - start,
        took: due.elapsed(),
        end,
        critical: critical == Some(true),
        late,
    });
}

fn reuse(shared: &Shared, used: Option<TcpStream>, keep: bool, end: End) -> End {
    if keep {
        shared.idle.borrow_mut().extend(used);
    }
    end
}

fn broken(shared: &Shared, problem: String) -> End {
    shared.problem.borrow_mut().get_or_insert(problem);
    End::Broken
}

/// The status of the answer, and whether the connection, which is left in `used`, can be used again.
async fn exchange(
    target: SocketAddr,
    request: &[u8],
    shared: &Shared,
    used: &mut Option<TcpStream>,
) -> io::Result<(u16, bool)> {
    loop {
        let idle = shared.idle.borrow_mut().pop();
        let again = idle.is_some();
        let stream = match idle {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(target).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        match answer(used.insert(stream), request).await {
            // It was closed while it was idle.
            Ok(None) | Err(_) if again => {}
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Some(answer)) => return Ok(answer),
            Err(error) => return Err(error),
        }
    }
}

/// None when the connection ends before anything has come.
async fn answer(stream: &mut TcpStream, request: &[u8]) -> io::Result<Option<(u16, bool)>> {
    stream.write_all(request).await?;
    let mut buffer = [0; 1024];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 && filled == 0 {
            return Ok(None);
        }
        filled += read;
        let head = parse(&buffer[..filled]);
        match head {
            Some(head) => {
                let mut missing = (head.whole).saturating_sub(filled);
                while missing > 0 {
                    let some = missing.min(buffer.len());
                    let read = stream.read(&mut buffer[..some]).await?;
                    if read == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    missing -= read;
                }
                return Ok(Some((head.status, head.keep)));
            }
            None if read == 0 || filled == buffer.len() => {
                return Err(io::Error::other("not an answer these clients understand"));
            }
            None => {}
        }
    }
}

struct Head {
    status: u16,
    keep: bool,
    /// The head and the body.
    whole: usize,
}

/// None until the head is whole. An answer without a length is as good as a broken one here.
fn parse(bytes: &[u8]) -> Option<Head> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut keep = true;
    let mut length = None;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse::<usize>().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            keep &= !value.eq_ignore_ascii_case("close");
        }
    }
    let whole = end + 4 + length?;
    Some(Head {
        status,
        keep,
        whole,
    })
}
