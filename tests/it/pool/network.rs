//! A network in memory: hosts that do as a script says, a connector that dials them, and counters at the IO.
//!
//! What a connection costs is counted where it cannot be hidden: a dial from the connector's `call` to the end of its
//! future, a connection from there until the IO object is dropped. `open` is the sum of both, what a cap is about.

use std::collections::{HashMap, VecDeque};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::channel::{Channel, Sender};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tower::Service;
use tower_flow::BoxError;
use tower_flow::phases::{self, Phase};

pub type Answer = BoxBody<Bytes, BoxError>;
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

// ===== counters =====

/// How many there are, were at most, and have been.
#[derive(Debug, Default)]
pub struct Count {
    now: AtomicUsize,
    peak: AtomicUsize,
    total: AtomicUsize,
}

impl Count {
    pub fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::SeqCst)
    }

    pub fn total(&self) -> usize {
        self.total.load(Ordering::SeqCst)
    }

    fn up(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        self.total.fetch_add(1, Ordering::SeqCst);
    }

    fn down(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is counted of a host, and of all.
#[derive(Debug, Default)]
pub struct Counts {
    /// Dials that run, IO objects that are alive: what a cap is about.
    pub open: Count,
    pub dialling: Count,
    /// IO objects.
    pub alive: Count,
    /// The other side: connections a server holds.
    pub served: Count,
    /// Requests that reached a server.
    pub requests: AtomicUsize,
}

/// Counted up now, down when dropped, for the host and for all.
struct Counted {
    by: [Arc<Counts>; 2],
    what: fn(&Counts) -> &Count,
}

impl Counted {
    fn new(by: &[Arc<Counts>; 2], what: fn(&Counts) -> &Count) -> Self {
        by.iter().for_each(|counts| what(counts).up());
        let by = by.clone();
        Self { by, what }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.by.iter().for_each(|counts| (self.what)(counts).down());
    }
}

// ===== scripts =====

/// What a dial comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Dial {
    Connects,
    Takes(Duration),
    Refuses,
    /// Refuses after a while.
    Fails(Duration),
    /// Name service, SYN or TLS: no answer ever.
    Hangs(Phase),
    PanicsInCall,
    PanicsInPoll,
}

/// What a host speaks.
#[derive(Clone)]
pub enum Speak {
    Http1,
    Http2,
    Raw(Arc<dyn Fn(DuplexStream) -> Boxed<()> + Send + Sync>),
}

fn raw<F: Future<Output = ()> + Send + 'static>(
    script: impl Fn(DuplexStream) -> F + Send + Sync + 'static,
) -> Speak {
    Speak::Raw(Arc::new(move |io| Box::pin(script(io))))
}

/// Reads to the end.
async fn unheard(mut io: DuplexStream) {
    let mut bytes = [0; 1024];
    while io.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
}

impl Speak {
    /// Answers the first byte, and every following, with what is no HTTP at all.
    pub fn garbage() -> Self {
        raw(async |mut io| {
            let mut bytes = [0; 1024];
            while io.read(&mut bytes).await.is_ok_and(|n| n > 0) {
                // As the head of a frame it would be longer than any may be.
                if io
                    .write_all(b"\xff\xfe\xfd not http\r\n\r\n")
                    .await
                    .is_err()
                {
                    return;
                }
            }
        })
    }

    /// Sends what nobody asked for, on connect.
    pub fn stray() -> Self {
        raw(async |mut io| {
            let _ = io.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await;
            unheard(io).await
        })
    }

    /// Reads, and never says a word.
    pub fn silent() -> Self {
        raw(unheard)
    }

    pub fn closes_at_once() -> Self {
        raw(async |io| drop(io))
    }

    pub fn closes_at_first_byte() -> Self {
        raw(async |mut io| {
            let _ = io.read(&mut [0; 1]).await;
        })
    }

    /// Half a SETTINGS frame, then the end.
    pub fn preface_cut_off() -> Self {
        raw(async |mut io| {
            let _ = io.write_all(&[0, 0, 6, 4, 0, 0]).await;
            let _ = io.read(&mut [0; 1]).await;
        })
    }

    /// The head of an HTTP/1 answer that is larger than anyone reads.
    pub fn oversize_headers() -> Self {
        raw(async |mut io| {
            let _ = io.read(&mut [0; 1024]).await;
            let line = format!("x-fill: {}\r\n", "x".repeat(4_000));
            let head = format!("HTTP/1.1 200 OK\r\n{}", line.repeat(400));
            let _ = io.write_all(head.as_bytes()).await;
            unheard(io).await
        })
    }

    /// Answers one request, and closes when the first byte of the next arrives.
    pub fn answers_once() -> Self {
        raw(async |mut io| {
            let _ = io.read(&mut [0; 1024]).await;
            let _ = io
                .write_all(b"HTTP/1.1 200 OK\r\nx-conn: 0\r\ncontent-length: 2\r\n\r\nok")
                .await;
            let _ = io.read(&mut [0; 1]).await;
        })
    }

    /// An answer that ends with the connection.
    pub fn http_1_0() -> Self {
        raw(async |mut io| {
            let _ = io.read(&mut [0; 1024]).await;
            let _ = io
                .write_all(b"HTTP/1.0 200 OK\r\n\r\nto the end of the connection")
                .await;
        })
    }

    /// Part of an answer, then the end.
    pub fn answer_cut_off() -> Self {
        raw(async |mut io| {
            let _ = io.read(&mut [0; 1024]).await;
            let _ = io
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                .await;
        })
    }
}

/// How a host behaves from the next dial on.
#[derive(Clone)]
pub struct Setup {
    pub dial: Dial,
    pub speak: Speak,
    /// What ALPN says: HTTP/2 or not. By default as spoken.
    pub alpn_h2: Option<bool>,
    /// The connector says that it went through a proxy.
    pub proxied: bool,
    /// How many streams a peer may open; `u32::MAX` says nothing of it. Live changes go through [`Served::settings`].
    pub max_streams: u32,
    /// What the first SETTINGS say instead of that.
    pub first_streams: Option<u32>,
    /// How long an HTTP/2 server thinks before its first SETTINGS.
    pub greets_after: Duration,
}

// ===== a host =====

/// A host of the network.
#[derive(Clone)]
pub struct Host(Arc<HostInner>);

struct HostInner {
    name: String,
    counts: [Arc<Counts>; 2],
    setup: Mutex<Setup>,
    conns: Mutex<Vec<Arc<Served>>>,
    desk: Mutex<Desk>,
    net: Weak<NetworkInner>,
}

/// Requests that wait for the test to say how they go on, oldest first.
#[derive(Default)]
struct Desk {
    held: VecDeque<(String, oneshot::Sender<()>)>,
    streams: VecDeque<(String, Sender<Bytes, BoxError>)>,
}

impl std::ops::Deref for Host {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.0.counts[0]
    }
}

impl Host {
    pub fn uri(&self, path: &str) -> Uri {
        format!("http://{}{path}", self.0.name).parse().unwrap()
    }

    pub fn set(&self, change: impl FnOnce(&mut Setup)) -> &Self {
        change(&mut self.0.setup.lock().unwrap());
        self
    }

    pub fn speaks(&self, speak: Speak) -> &Self {
        self.set(|setup| setup.speak = speak)
    }

    pub fn http2(&self, max_streams: u32) -> &Self {
        self.set(|setup| {
            setup.speak = Speak::Http2;
            setup.max_streams = max_streams;
        })
    }

    pub fn dial(&self, dial: Dial) -> &Self {
        self.set(|setup| setup.dial = dial)
    }

    /// Requests that were held at `/hold` and whose client still waits.
    pub fn held(&self) -> usize {
        let mut desk = self.0.desk.lock().unwrap();
        desk.held.retain(|(_, release)| !release.is_closed());
        desk.held.len()
    }

    /// Answers the oldest held request whose client still waits.
    pub fn release(&self) -> Option<String> {
        let mut desk = self.0.desk.lock().unwrap();
        while let Some((id, release)) = desk.held.pop_front() {
            if release.send(()).is_ok() {
                return Some(id);
            }
        }
        None
    }

    /// Bodies that were begun at `/stream` and whose writer is still here.
    pub fn streams(&self) -> usize {
        self.0.desk.lock().unwrap().streams.len()
    }

    /// The writer of the oldest body; dropping it ends the body.
    pub fn stream(&self) -> Sender<Bytes, BoxError> {
        let mut desk = self.0.desk.lock().unwrap();
        desk.streams.pop_front().expect("a body was begun").1
    }

    /// The writer of the body of that request.
    pub fn stream_of(&self, id: &str) -> Sender<Bytes, BoxError> {
        let mut desk = self.0.desk.lock().unwrap();
        let at = desk.streams.iter().position(|(of, _)| of == id);
        let at = at.unwrap_or_else(|| panic!("{id} has begun no body"));
        desk.streams.remove(at).unwrap().1
    }

    /// The connections the host holds, oldest first.
    pub fn conns(&self) -> Vec<Arc<Served>> {
        let mut conns = self.0.conns.lock().unwrap();
        conns.retain(|conn| !conn.gone.load(Ordering::SeqCst));
        conns.clone()
    }

    pub fn conn(&self) -> Arc<Served> {
        let mut conns = self.conns();
        assert_eq!(conns.len(), 1, "one connection");
        conns.remove(0)
    }

    /// All requests that arrived here.
    pub fn arrived(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A connection, seen from the server.
pub struct Served {
    pub id: u64,
    pub requests: AtomicUsize,
    /// Streams on the wire, HTTP/2 only.
    pub wire: Mutex<Wired>,
    orders: mpsc::UnboundedSender<Order>,
    gone: AtomicBool,
}

enum Order {
    Close,
    Goaway,
    Frame(Bytes),
}

impl Served {
    /// Closes at once, whatever runs.
    pub fn close(&self) {
        let _ = self.orders.send(Order::Close);
    }

    /// Closes when what runs has ended: GOAWAY, or the end of keep-alive.
    pub fn goaway(&self) {
        let _ = self.orders.send(Order::Goaway);
    }

    /// A GOAWAY that names the last stream, without warning; nothing above it is served.
    pub fn goaway_after(&self, last: u32) {
        let [a, b, c, d] = last.to_be_bytes();
        self.frame(&[0, 0, 8, 7, 0, 0, 0, 0, 0, a, b, c, d, 0, 0, 0, 0]);
    }

    /// From now on a peer may have so many streams.
    pub fn settings(&self, max_streams: u32) {
        let [a, b, c, d] = max_streams.to_be_bytes();
        self.frame(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, a, b, c, d]);
    }

    /// A frame of its own making, between those of the server.
    pub fn frame(&self, bytes: &[u8]) {
        let _ = self
            .orders
            .send(Order::Frame(Bytes::copy_from_slice(bytes)));
    }
}

// ===== the network =====

#[derive(Clone)]
pub struct Network(Arc<NetworkInner>);

struct NetworkInner {
    counts: Arc<Counts>,
    hosts: Mutex<HashMap<String, Host>>,
    /// The `x-id` of every request in the order they reached a server.
    log: Mutex<Vec<String>>,
    seen: Mutex<HashMap<String, usize>>,
    next: AtomicU64,
}

impl std::ops::Deref for Network {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.0.counts
    }
}

impl Default for Network {
    fn default() -> Self {
        Self(Arc::new(NetworkInner {
            counts: Arc::default(),
            hosts: Mutex::default(),
            log: Mutex::default(),
            seen: Mutex::default(),
            next: AtomicU64::new(1),
        }))
    }
}

impl Network {
    pub fn new() -> Self {
        Self::default()
    }

    /// A host that speaks HTTP/1 until told otherwise.
    pub fn host(&self, name: &str) -> Host {
        let mut hosts = self.0.hosts.lock().unwrap();
        let host = hosts.entry(name.to_owned()).or_insert_with(|| {
            Host(Arc::new(HostInner {
                name: name.to_owned(),
                counts: [Arc::default(), self.0.counts.clone()],
                setup: Mutex::new(Setup {
                    dial: Dial::Connects,
                    speak: Speak::Http1,
                    alpn_h2: None,
                    proxied: false,
                    max_streams: 100,
                    first_streams: None,
                    greets_after: Duration::ZERO,
                }),
                conns: Mutex::default(),
                desk: Mutex::default(),
                net: Arc::downgrade(&self.0),
            }))
        });
        host.clone()
    }

    pub fn connector(&self) -> Connector {
        Connector(self.clone())
    }

    /// How often the request of that id reached a server.
    pub fn seen(&self, id: &str) -> usize {
        let seen = self.0.seen.lock().unwrap();
        seen.get(id).copied().unwrap_or_default()
    }

    /// The ids that reached servers more than once.
    pub fn seen_twice(&self) -> Vec<String> {
        let seen = self.0.seen.lock().unwrap();
        let twice = seen.iter().filter(|(_, times)| **times > 1);
        twice.map(|(id, _)| id.clone()).collect()
    }

    /// The ids in the order their requests reached a server.
    pub fn log(&self) -> Vec<String> {
        self.0.log.lock().unwrap().clone()
    }
}

impl NetworkInner {
    /// A request has reached a server, in whole or in part.
    fn reached(&self, id: &str) {
        *self.seen.lock().unwrap().entry(id.to_owned()).or_default() += 1;
        self.log.lock().unwrap().push(id.to_owned());
    }
}

/// Dials the hosts of a network.
#[derive(Clone)]
pub struct Connector(Network);

impl Service<Uri> for Connector {
    type Response = Wire;
    type Error = BoxError;
    type Future = Boxed<Result<Wire, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let name = uri.host().unwrap_or_default();
        let Some(host) = self.0.0.hosts.lock().unwrap().get(name).cloned() else {
            let unknown = format!("no such host: {uri}");
            return Box::pin(async move { Err(unknown.into()) });
        };
        let dial = host.0.setup.lock().unwrap().dial;
        assert!(dial != Dial::PanicsInCall, "told to panic in call");
        let open = Counted::new(&host.0.counts, |counts| &counts.open);
        let dialling = Counted::new(&host.0.counts, |counts| &counts.dialling);
        Box::pin(async move {
            match dial {
                Dial::Connects => {}
                Dial::Takes(time) => tokio::time::sleep(time).await,
                Dial::Refuses => return Err("connection refused".into()),
                Dial::Fails(time) => {
                    tokio::time::sleep(time).await;
                    return Err("host unreachable".into());
                }
                Dial::Hangs(phase) => {
                    let _span = phases::Dial::current().map(|dial| dial.span(phase));
                    std::future::pending().await
                }
                Dial::PanicsInCall | Dial::PanicsInPoll => panic!("told to panic in poll"),
            }
            drop(dialling);
            Ok(host.accept(open))
        })
    }
}

/// The client's end of a connection.
pub struct Wire {
    io: TokioIo<DuplexStream>,
    h2: bool,
    proxied: bool,
    _alive: Counted,
    _open: Counted,
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.proxied);
        if self.h2 {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// ===== servers =====

const PIPE: usize = 16 * 1024;

impl Host {
    fn accept(&self, open: Counted) -> Wire {
        let (near, far) = tokio::io::duplex(PIPE);
        let setup = self.0.setup.lock().unwrap().clone();
        let (orders, received) = mpsc::unbounded_channel();
        let net = self.0.net.upgrade();
        let served = Arc::new(Served {
            id: net.map_or(0, |net| net.next.fetch_add(1, Ordering::Relaxed)),
            requests: AtomicUsize::new(0),
            wire: Mutex::new(Wired {
                limit: u32::MAX,
                first: setup.first_streams,
                ..Wired::default()
            }),
            orders,
            gone: AtomicBool::new(false),
        });
        let here = Here {
            served: served.clone(),
            _count: Counted::new(&self.0.counts, |counts| &counts.served),
        };
        self.0.conns.lock().unwrap().push(served);
        let h2 = setup.alpn_h2.unwrap_or(matches!(setup.speak, Speak::Http2));
        let proxied = setup.proxied;
        tokio::spawn(serve(self.clone(), here, setup, far, received));
        Wire {
            io: TokioIo::new(near),
            h2,
            proxied,
            _alive: Counted::new(&self.0.counts, |counts| &counts.alive),
            _open: open,
        }
    }
}

/// A connection is here until this is dropped.
struct Here {
    served: Arc<Served>,
    _count: Counted,
}

impl Drop for Here {
    fn drop(&mut self) {
        self.served.gone.store(true, Ordering::SeqCst);
    }
}

async fn serve(
    host: Host,
    here: Here,
    setup: Setup,
    io: DuplexStream,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let served = here.served.clone();
    let service = {
        let (host, served) = (host.clone(), served.clone());
        service_fn(move |req| answer(host.clone(), served.clone(), req))
    };
    match setup.speak {
        Speak::Raw(script) => {
            let mut script = script(io);
            loop {
                tokio::select! {
                    biased;
                    Some(order) = orders.recv() => if matches!(order, Order::Close) {
                        return;
                    },
                    () = script.as_mut() => return,
                }
            }
        }
        Speak::Http1 => {
            let mut builder = http1::Builder::new();
            let io = TokioIo::new(io);
            let mut conn = pin!(
                builder
                    .half_close(false)
                    .serve_connection(io, service)
                    .with_upgrades()
            );
            loop {
                tokio::select! {
                    biased;
                    Some(order) = orders.recv() => match order {
                        Order::Close => return,
                        Order::Goaway => conn.as_mut().graceful_shutdown(),
                        Order::Frame(_) => {}
                    },
                    _ = conn.as_mut() => return,
                }
            }
        }
        Speak::Http2 => {
            if !setup.greets_after.is_zero() {
                tokio::time::sleep(setup.greets_after).await;
            }
            let (near, far) = tokio::io::duplex(PIPE);
            let (frames, injected) = mpsc::unbounded_channel();
            let mut builder = http2::Builder::new(TokioExecutor::new());
            let limit = (setup.max_streams < u32::MAX).then_some(setup.max_streams);
            builder.max_concurrent_streams(limit);
            let conn = builder.serve_connection(TokioIo::new(near), service);
            let mut conn = Some(Box::pin(conn));
            let mut relay = pin!(relay(io, far, served, injected));
            loop {
                tokio::select! {
                    biased;
                    Some(order) = orders.recv() => match (order, &mut conn) {
                        (Order::Close, _) => return,
                        (Order::Goaway, Some(conn)) => conn.as_mut().graceful_shutdown(),
                        (Order::Goaway, None) => {}
                        (Order::Frame(frame), _) => drop(frames.send(frame)),
                    },
                    // Dropped when it ends: the relay carries its last words and ends with them.
                    _ = async { conn.as_mut().unwrap().as_mut().await }, if conn.is_some() => conn = None,
                    () = relay.as_mut() => return,
                }
            }
        }
    }
}

/// What a server says, by the path:
/// `/hold` waits for [`Host::release`], `/stream` begins a body for [`Host::stream`], `/bytes/N` and `/sleep/MS` as
/// they say, `/close` closes after it, `/upgrade` and CONNECT echo, `/echo` sends the body back, `/early` answers and
/// leaves the body unread, `/head/N` has headers of that size.
async fn answer(
    host: Host,
    served: Arc<Served>,
    mut req: Request<Incoming>,
) -> Result<Response<Answer>, BoxError> {
    let id = req.headers().get("x-id").cloned();
    let id = id.map_or(String::new(), |id| id.to_str().unwrap().to_owned());
    served.requests.fetch_add(1, Ordering::SeqCst);
    for counts in &host.0.counts {
        counts.requests.fetch_add(1, Ordering::SeqCst);
    }
    if let (Some(net), false) = (host.0.net.upgrade(), id.is_empty()) {
        net.reached(&id);
    }
    let mut response = Response::builder()
        .header("x-conn", served.id)
        .header("x-id", &id)
        .header("x-uri", req.uri().to_string());
    for (name, from) in [
        ("x-host", header::HOST),
        ("x-connection", header::CONNECTION),
    ] {
        if let Some(value) = req.headers().get(from) {
            response = response.header(name, value);
        }
    }
    let path = req.uri().path().to_owned();
    let mut parts = path[1.min(path.len())..].split('/');
    let number = |part: Option<&str>| {
        part.unwrap_or_default()
            .parse::<usize>()
            .unwrap_or_default()
    };
    let body = match parts.next().unwrap_or_default() {
        _ if req.method() == http::Method::CONNECT => {
            tokio::spawn(echo(hyper::upgrade::on(&mut req)));
            full("")
        }
        "hold" => {
            let (release, released) = oneshot::channel();
            host.0.desk.lock().unwrap().held.push_back((id, release));
            let _ = released.await;
            full("held")
        }
        "stream" => {
            let (writer, body) = Channel::new(8);
            host.0.desk.lock().unwrap().streams.push_back((id, writer));
            body.boxed()
        }
        "bytes" => full(vec![b'x'; number(parts.next())]),
        "sleep" => {
            tokio::time::sleep(Duration::from_millis(number(parts.next()) as u64)).await;
            full("slept")
        }
        "close" => {
            response = response.header(header::CONNECTION, "close");
            full("last")
        }
        "upgrade" => {
            response = response
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, "echo");
            tokio::spawn(echo(hyper::upgrade::on(&mut req)));
            full("")
        }
        "echo" => full(req.into_body().collect().await?.to_bytes()),
        "early" => {
            // The rest of the body stays unread while the answer is out.
            let (writer, body) = Channel::new(8);
            host.0.desk.lock().unwrap().streams.push_back((id, writer));
            tokio::spawn(async move {
                let _body = req.into_body().collect().await;
            });
            body.boxed()
        }
        "head" => {
            response = response.header("x-fill", "x".repeat(number(parts.next())));
            full("")
        }
        _ => full("hello"),
    };
    Ok(response.body(body)?)
}

fn full(bytes: impl Into<Bytes>) -> Answer {
    Full::new(bytes.into()).map_err(BoxError::from).boxed()
}

async fn echo(upgrade: hyper::upgrade::OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

// ===== HTTP/2 on the wire =====

/// The streams of an HTTP/2 connection, read off its frames.
#[derive(Debug, Default)]
pub struct Wired {
    /// By stream: whether the client, the server has ended it.
    open: HashMap<u32, [bool; 2]>,
    pub peak: usize,
    /// The limit the client has acknowledged.
    pub limit: u32,
    /// Streams that were opened over the limit.
    pub over: usize,
    /// SETTINGS under way to the client: whether they are ours, and the limit they bring.
    settings: VecDeque<(bool, Option<u32>)>,
    /// What the first SETTINGS say of the limit, instead of what the server says.
    first: Option<u32>,
    /// The last stream a GOAWAY of ours lets through.
    last: Option<u32>,
}

impl Wired {
    pub fn streams(&self) -> usize {
        self.open.len()
    }

    /// Whether the frame goes on to the server.
    fn client_sends(&mut self, frame: &[u8]) -> bool {
        let (kind, flags, stream) = head(frame);
        if let Some(last) = self.last
            && stream > last
        {
            return false;
        }
        match kind {
            1 => {
                if !self.open.contains_key(&stream) {
                    self.over += usize::from(self.open.len() >= self.limit as usize);
                    self.open.insert(stream, [false; 2]);
                    self.peak = self.peak.max(self.open.len());
                }
                self.ended(stream, 0, flags & 1 != 0);
            }
            0 => self.ended(stream, 0, flags & 1 != 0),
            3 => drop(self.open.remove(&stream)),
            4 if flags & 1 != 0 => {
                let (ours, limit) = self.settings.pop_front().unwrap_or_default();
                self.limit = limit.unwrap_or(self.limit);
                return !ours;
            }
            _ => {}
        }
        true
    }

    /// The frame as the client gets it.
    fn server_sends(&mut self, frame: &[u8], ours: bool) -> Vec<u8> {
        let mut frame = frame.to_vec();
        let (kind, flags, stream) = head(&frame);
        match kind {
            0 | 1 => self.ended(stream, 1, flags & 1 != 0),
            3 => drop(self.open.remove(&stream)),
            4 if flags & 1 == 0 => {
                let mut limit = None;
                for setting in frame[9..].chunks_exact_mut(6) {
                    if setting[..2] == [0, 3] {
                        if let Some(first) = self.first.take() {
                            setting[2..].copy_from_slice(&first.to_be_bytes());
                        }
                        limit = Some(u32::from_be_bytes(setting[2..].try_into().unwrap()));
                    }
                }
                self.settings.push_back((ours, limit));
            }
            7 if ours => self.last = Some(u32::from_be_bytes(frame[9..13].try_into().unwrap())),
            _ => {}
        }
        frame
    }

    fn ended(&mut self, stream: u32, side: usize, end: bool) {
        if end && let Some(ends) = self.open.get_mut(&stream) {
            ends[side] = true;
            if *ends == [true; 2] {
                self.open.remove(&stream);
            }
        }
    }
}

/// Type, flags and stream of a frame.
fn head(frame: &[u8]) -> (u8, u8, u32) {
    let stream = u32::from_be_bytes(frame[5..9].try_into().unwrap()) & 0x7fff_ffff;
    (frame[3], frame[4], stream)
}

/// The next frame in the buffer, if it is there as a whole.
fn frame(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = buffer.get(..3)?;
    let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize + 9;
    (buffer.len() >= length).then(|| buffer.split_to(length).freeze())
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Carries frames both ways, with those of the test in between.
async fn relay(
    client: DuplexStream,
    server: DuplexStream,
    served: Arc<Served>,
    mut injected: mpsc::UnboundedReceiver<Bytes>,
) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let up = async {
        let mut buffer = BytesMut::new();
        let mut greeted = false;
        while from_client.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
            if !greeted {
                if !PREFACE.starts_with(&buffer[..buffer.len().min(PREFACE.len())]) {
                    // No HTTP/2: the server may say so.
                    let _ = to_server.write_all(&buffer).await;
                    buffer.clear();
                    continue;
                }
                if buffer.len() < PREFACE.len() {
                    continue;
                }
                let _ = to_server.write_all(PREFACE).await;
                buffer.advance(PREFACE.len());
                greeted = true;
            }
            while let Some(frame) = frame(&mut buffer) {
                let passes = served.wire.lock().unwrap().client_sends(&frame);
                if passes {
                    // A server that has gone may have said its last words; they are still under way.
                    let _ = to_server.write_all(&frame).await;
                }
            }
        }
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            tokio::select! {
                biased;
                Some(frame) = injected.recv() => {
                    let frame = served.wire.lock().unwrap().server_sends(&frame, true);
                    if to_client.write_all(&frame).await.is_err() {
                        return;
                    }
                }
                read = from_server.read_buf(&mut buffer) => {
                    if !read.is_ok_and(|n| n > 0) {
                        return;
                    }
                    while let Some(frame) = frame(&mut buffer) {
                        let frame = served.wire.lock().unwrap().server_sends(&frame, false);
                        if to_client.write_all(&frame).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
