//! Limits for clients that have a pool of their own: over paused time, in memory, and on real sockets.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{Connect, Connected, Connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_flow::error::Reason;
use tower_flow::inspect::{Inspect, Value};
use tower_flow::pool::limit::{ConnLimit, LimitHandle, RequestLimit};
use tower_flow::{BoxError, Flow, Rejection};

use crate::support::{Steps, allocations, broken, classic, data, value};

// ===== connections that are counted from outside =====

/// How many there are now, and how many there were at most.
#[derive(Debug, Clone, Default)]
struct Peak(Arc<[AtomicUsize; 2]>);

impl Peak {
    fn enter(&self) -> Inside {
        let now = self.0[0].fetch_add(1, Relaxed) + 1;
        self.0[1].fetch_max(now, Relaxed);
        Inside(self.clone())
    }

    fn now(&self) -> usize {
        self.0[0].load(Relaxed)
    }

    fn most(&self) -> usize {
        self.0[1].load(Relaxed)
    }
}

#[derive(Debug)]
struct Inside(Peak);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0[0].fetch_sub(1, Relaxed);
    }
}

/// An IO that counts until it is dropped.
#[derive(Debug)]
struct Counted<IO> {
    io: IO,
    h2: bool,
    _inside: Vec<Inside>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<IO> Connection for Counted<IO> {
    fn connected(&self) -> Connected {
        match self.h2 {
            true => Connected::new().negotiated_h2(),
            false => Connected::new(),
        }
    }
}

/// What connections there are, dials included: in all, and by port.
#[derive(Debug, Clone, Default)]
struct Dialled {
    all: Peak,
    hosts: Arc<Mutex<HashMap<u16, Peak>>>,
    dials: Arc<AtomicUsize>,
}

impl Dialled {
    fn host(&self, port: u16) -> Peak {
        self.hosts.lock().unwrap().entry(port).or_default().clone()
    }

    fn enter(&self, to: &Uri) -> Vec<Inside> {
        self.dials.fetch_add(1, Relaxed);
        let port = to.port_u16().unwrap_or_default();
        vec![self.all.enter(), self.host(port).enter()]
    }

    async fn tcp(self, to: Uri) -> Result<TokioIo<Counted<TcpStream>>, BoxError> {
        let inside = self.enter(&to);
        let addr: SocketAddr = to.authority().unwrap().as_str().parse()?;
        let io = TcpStream::connect(addr).await?;
        Ok(TokioIo::new(Counted {
            io,
            h2: false,
            _inside: inside,
        }))
    }

    /// To a server in memory.
    async fn memory(self, to: Uri, h2: bool) -> Result<TokioIo<Counted<DuplexStream>>, BoxError> {
        let inside = self.enter(&to);
        let (io, peer) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(answer);
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(peer), service)
                .await;
        });
        tokio::task::yield_now().await;
        Ok(TokioIo::new(Counted {
            io,
            h2,
            _inside: inside,
        }))
    }
}

async fn answer<B>(req: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    match req.uri().path() {
        "/slow" => tokio::time::sleep(Duration::from_millis(2)).await,
        "/never" => std::future::pending().await,
        _ => tokio::task::yield_now().await,
    }
    let mut response = Response::new(Full::from("a body"));
    if req.uri().path() == "/close" && req.version() < http::Version::HTTP_2 {
        let close = http::HeaderValue::from_static("close");
        response.headers_mut().insert("connection", close);
    }
    Ok(response)
}

// ===== clients =====

type Body = Empty<Bytes>;
type Answered = Result<Bytes, BoxError>;

fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(Empty::new()).unwrap()
}

/// Asks and reads the answer to its end.
async fn ask<S, B>(client: S, uri: &str) -> Answered
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let response = client.oneshot(get(uri)).await.map_err(Into::into)?;
    let body = response.into_body().collect().await.map_err(Into::into)?;
    Ok(body.to_bytes())
}

fn rejection(error: &BoxError) -> Rejection {
    let found = Rejection::find(error.as_ref());
    found.unwrap_or_else(|| panic!("{error:?}")).clone()
}

fn refused<T: std::fmt::Debug>(result: Result<T, BoxError>) -> Reason {
    let rejection = rejection(&result.unwrap_err());
    assert_eq!(rejection.layer(), "pool");
    rejection.reason()
}

fn legacy() -> legacy::Builder {
    Client::builder(TokioExecutor::new())
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Until what the tasks beside this one do has settled.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Waits, not for long, until `done`.
async fn until(done: impl Fn() -> bool, what: &str) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

// ===== the connector alone, over paused time =====

fn uri(host: &str) -> Uri {
    format!("http://{host}/").parse().unwrap()
}

/// A connector whose connections are units.
fn units() -> impl Service<Uri, Response = (), Error = Infallible, Future: Send> + Clone {
    service_fn(async |_: Uri| Ok::<_, Infallible>(()))
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_held_until_the_connection_is_dropped() {
    let limit = ConnLimit::new(1);
    let handle = limit.handle();
    let connector = limit.connector_layer().layer(units());
    let first = connector.clone().oneshot(uri("a.test")).await.unwrap();
    let now = handle.snapshot();
    assert_eq!(
        (now.held, now.open, now.dialling, now.waiting),
        (1, 1, 0, 0)
    );
    let mut second = pin!(connector.clone().oneshot(uri("a.test")));
    assert!(second.as_mut().poll(&mut cx()).is_pending());
    assert_eq!(handle.snapshot().waiting, 1);
    drop(first);
    let second = second.await.unwrap();
    let now = handle.snapshot();
    assert_eq!(
        (now.held, now.waiting, now.granted, now.waited),
        (1, 0, 2, 1)
    );
    drop(second);
    assert_eq!(handle.snapshot().held, 0);
}

/// Notes how many permits are held when it is dropped.
struct Socket(LimitHandle, Arc<Mutex<Vec<usize>>>);

impl Drop for Socket {
    fn drop(&mut self) {
        self.1.lock().unwrap().push(self.0.snapshot().held);
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_is_closed_before_its_place_is_free() {
    let limit = ConnLimit::new(1);
    let (handle, seen) = (limit.handle(), Arc::<Mutex<Vec<_>>>::default());
    let (read, noted) = (handle.clone(), seen.clone());
    let connector = limit.connector_layer().layer(service_fn(move |to: Uri| {
        let socket = Socket(read.clone(), noted.clone());
        async move {
            match to.host() {
                Some("fails") => Err(io::Error::other("told to")),
                Some("hangs") => std::future::pending().await,
                _ => Ok(socket),
            }
        }
    }));
    drop(connector.clone().oneshot(uri("opens")).await.unwrap());
    let _failed = connector.clone().oneshot(uri("fails")).await;
    assert!(connector.oneshot(uri("hangs")).now_or_never().is_none());
    assert_eq!(*seen.lock().unwrap(), [1, 1, 1]);
    assert_eq!(handle.snapshot().held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_in_time_and_leaves_nothing() {
    let limit = ConnLimit::new(9)
        .max_connections_per_host(1)
        .acquire_timeout(Duration::from_secs(3));
    let handle = limit.handle();
    let connector = limit.connector_layer().layer(units());
    let held = connector.clone().oneshot(uri("a.test")).await.unwrap();
    let began = tokio::time::Instant::now();
    let error = connector.clone().oneshot(uri("a.test")).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    let found = rejection(&error);
    assert_eq!(found.reason(), Reason::QueueTimeout);
    let told = found.to_string();
    assert!(
        told.contains("http://a.test came free in 3s: 1 of its 1 and 1 of 9"),
        "{told}"
    );
    let now = handle.snapshot();
    assert_eq!((now.waiting, now.timeouts, now.held), (0, 1, 1));
    drop(held);
    connector.oneshot(uri("a.test")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let limit = ConnLimit::new(1).max_pending_per_host(2);
    let handle = limit.handle();
    let connector = limit.connector_layer().layer(units());
    let _held = connector.clone().oneshot(uri("a.test")).await.unwrap();
    let mut waiting: Vec<_> = (0..2)
        .map(|_| Box::pin(connector.clone().oneshot(uri("a.test"))))
        .collect();
    for future in &mut waiting {
        assert!(future.as_mut().poll(&mut cx()).is_pending());
    }
    let third = connector.clone().oneshot(uri("a.test")).now_or_never();
    assert_eq!(refused(third.unwrap()), Reason::QueueFull);
    // Another host has a queue of its own.
    let other = connector.clone().oneshot(uri("b.test")).now_or_never();
    assert!(other.is_none());
    let now = handle.snapshot();
    assert_eq!((now.full, now.abandoned, now.waiting), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_grant_nobody_takes_goes_to_the_next() {
    let limit = ConnLimit::new(1);
    let handle = limit.handle();
    let connector = limit.connector_layer().layer(units());
    let held = connector.clone().oneshot(uri("a.test")).await.unwrap();
    let mut first = Box::pin(connector.clone().oneshot(uri("a.test")));
    let mut second = tokio_test::task::spawn(connector.clone().oneshot(uri("a.test")));
    assert!(first.as_mut().poll(&mut cx()).is_pending());
    assert!(second.poll().is_pending());
    drop(held);
    assert!(!second.is_woken(), "it is the first one's");
    drop(first);
    assert!(second.is_woken());
    assert!(second.poll().is_ready());
    assert_eq!(handle.snapshot().held, 0, "the connection is dropped");
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_fails_is_cancelled_or_panics_gives_its_permit_back() {
    let limit = ConnLimit::new(1);
    let handle = limit.handle();
    let inner = service_fn(async |to: Uri| match to.host() {
        Some("fails") => Err::<(), BoxError>("no route".into()),
        Some("panics") => panic!("told to"),
        _ => std::future::pending().await,
    });
    let connector = limit.connector_layer().layer(inner);
    let error = connector.clone().oneshot(uri("fails")).await.unwrap_err();
    assert_eq!(error.to_string(), "no route");
    assert_eq!((handle.snapshot().held, handle.snapshot().failed), (0, 1));

    let panicking = AssertUnwindSafe(connector.clone().oneshot(uri("panics")));
    assert!(panicking.catch_unwind().await.is_err());
    assert_eq!(handle.snapshot().held, 0);

    let mut hanging = Box::pin(connector.clone().oneshot(uri("hangs")));
    assert!(hanging.as_mut().poll(&mut cx()).is_pending());
    let now = handle.snapshot();
    assert_eq!((now.held, now.open, now.dialling), (1, 0, 1));
    drop(hanging);
    assert_eq!(handle.snapshot().held, 0);
}

/// What hyper-util's client does with a dial it needs no more: it becomes a task of its own.
#[tokio::test(start_paused = true)]
async fn a_dial_left_by_its_request_ends_and_gives_a_grant_to_the_next() {
    let limit = ConnLimit::new(1);
    let handle = limit.handle();
    let connector = limit.connector_layer().layer(units());
    let held = connector.clone().oneshot(uri("a.test")).await.unwrap();
    let dials = connector.clone();
    let client = limit.request_layer().layer(service_fn(move |()| {
        let mut dial = Box::pin(dials.clone().oneshot(uri("a.test")));
        async move {
            assert!((&mut dial).now_or_never().is_none());
            Ok::<_, Infallible>(tokio::spawn(dial))
        }
    }));
    let left = client.clone().oneshot(()).await.unwrap();
    let granted = client.oneshot(()).await.unwrap();
    let next = tokio::spawn(connector.oneshot(uri("a.test")));
    assert_eq!(handle.snapshot().waiting, 2, "the tasks have not run");
    drop(held);
    for ghost in [left, granted] {
        assert_eq!(refused(ghost.await.unwrap()), Reason::Closed);
    }
    next.await.unwrap().unwrap();
    let now = handle.snapshot();
    assert_eq!(
        (now.ghosts, now.abandoned, now.held, now.waiting),
        (2, 0, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn hosts_that_starve_take_turns_and_each_is_first_come_first_served() {
    let limit = ConnLimit::new(1).acquire_timeout(Duration::from_secs(3_600));
    let served = Arc::new(Mutex::new(Vec::new()));
    let connector = limit.connector_layer().layer(units());
    let tasks: Vec<_> = ["a", "a", "a", "b", "b", "b", "c"]
        .into_iter()
        .enumerate()
        .map(|(n, host)| {
            let (connector, served) = (connector.clone(), served.clone());
            tokio::spawn(async move {
                let held = connector.oneshot(uri(host)).await.unwrap();
                served.lock().unwrap().push(format!("{host}{n}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(held);
            })
        })
        .collect();
    join_all(tasks).await;
    assert_eq!(
        *served.lock().unwrap(),
        ["a0", "a1", "b3", "c6", "a2", "b4", "b5"],
    );
}

#[tokio::test(start_paused = true)]
async fn a_closed_limit_refuses_who_waits_and_who_comes() {
    let limit = ConnLimit::new(1);
    let handle = limit.handle();
    let connector = limit.connector_layer().layer(units());
    let held = connector.clone().oneshot(uri("a.test")).await.unwrap();
    let waiting = tokio::spawn(connector.clone().oneshot(uri("a.test")));
    settle().await;
    handle.close();
    assert_eq!(refused(waiting.await.unwrap()), Reason::Closed);
    drop(held);
    assert_eq!(
        refused(connector.oneshot(uri("a.test")).await),
        Reason::Closed
    );
    assert_eq!((handle.snapshot().held, handle.snapshot().closed), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn it_is_seen_and_tuned_while_it_runs() {
    let flow = Flow::new("t");
    let limit = ConnLimit::new(1).name("stock").attach(&flow);
    let handle = limit.handle();
    let connector = limit.connector_layer().layer(units());
    let _first = connector.clone().oneshot(uri("a.test")).await.unwrap();
    let mut second = tokio_test::task::spawn(connector.clone().oneshot(uri("me:secret@b.test:81")));
    assert!(second.poll().is_pending());

    let labels = [("name", "stock"), ("of", "connections")];
    let read = |name: &str| value(&flow.families(), name, &labels);
    assert_eq!(read("tower_flow_pool_limit_held"), Some(1.0));
    assert_eq!(read("tower_flow_pool_limit_waiting"), Some(1.0));
    assert_eq!(read("tower_flow_pool_limit_max"), Some(1.0));
    assert_eq!(read("tower_flow_pool_limit_hosts"), Some(2.0));
    assert_eq!(read("tower_flow_pool_limit_granted"), Some(1.0));
    let shown = flow.snapshot().to_string();
    assert!(shown.contains(r#""host":"http://b.test:81","held":0,"open":0,"waiting":1"#));
    assert!(!shown.contains("secret") && !classic(&flow).contains("secret"));

    handle.turn("max", &Value::Whole(2)).unwrap();
    assert!(second.is_woken());
    assert!(second.poll().is_ready());
    assert_eq!(Inspect::knobs(&handle)[0].value, Value::Whole(2));
    for (name, to) in [("max", Value::Whole(0)), ("min", Value::Whole(1))] {
        let told = handle.turn(name, &to).unwrap_err().to_string();
        assert!(told.contains("it has max and max_per_host"), "{told}");
    }
}

#[test]
#[should_panic(expected = "set options before")]
fn options_after_use_are_refused() {
    let limit = ConnLimit::new(1);
    let _ = limit.connector_layer();
    let _ = limit.max_connections(2);
}

#[test]
#[should_panic(expected = "max_connections_per_host must be at least 1, not 0")]
fn nothing_at_all_is_refused() {
    let _ = ConnLimit::new(1).max_connections_per_host(0);
}

// ===== hyper-util's client =====

/// A client over connections in memory.
fn in_memory(
    limit: &ConnLimit,
    dialled: &Dialled,
    h2: bool,
) -> Client<impl Connect + Clone + Send + Sync + 'static, Body> {
    let dialled = dialled.clone();
    let inner = service_fn(move |to| Box::pin(dialled.clone().memory(to, h2)));
    legacy().build(limit.connector_layer().layer(inner))
}

fn alive() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

/// Two callers at one connection: whenever one is answered, the other's wait ends.
async fn take_turns<S, B>(client: S, rounds: usize)
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let turns = (0..2).map(|_| async {
        for _ in 0..rounds {
            ask(client.clone(), "http://a.test/").await.unwrap();
        }
    });
    join_all(turns).await;
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_waits_leave_no_dial_and_no_task_behind() {
    let limit = ConnLimit::new(1);
    let (handle, dialled) = (limit.handle(), Dialled::default());
    let client = in_memory(&limit, &dialled, false);
    let paired = limit.request_layer().layer(client);
    ask(paired.clone(), "http://a.test/").await.unwrap();
    settle().await;
    let before = alive();
    take_turns(paired.clone(), 10_000).await;
    let now = handle.snapshot();
    assert!(now.ghosts >= 10_000, "{now:?}");
    assert_eq!((now.waiting, now.held, now.timeouts), (0, 1, 0), "{now:?}");
    assert_eq!(alive(), before, "tasks");
    assert_eq!((dialled.all.most(), dialled.dials.load(Relaxed)), (1, 1));
    drop(paired);
    settle().await;
    assert_eq!((handle.snapshot().held, dialled.all.now()), (0, 0));
}

/// Why there is a layer for requests.
#[tokio::test(start_paused = true)]
async fn without_the_request_layer_every_wait_leaves_a_ghost() {
    let limit = ConnLimit::new(1).max_pending_per_host(usize::MAX);
    let (handle, dialled) = (limit.handle(), Dialled::default());
    let client = in_memory(&limit, &dialled, false);
    ask(client.clone(), "http://a.test/").await.unwrap();
    settle().await;
    let before = alive();
    take_turns(client.clone(), 1_000).await;
    let left = handle.snapshot().waiting;
    assert!(left >= 1_000, "{left}");
    assert_eq!(alive() - before, left, "each is a task of its own");
    // They hold the pool, which holds the connection they wait for.
    drop(client);
    settle().await;
    assert_eq!(
        (handle.snapshot().held, handle.snapshot().waiting),
        (1, left)
    );
    // Which ends when they have waited long enough.
    tokio::time::sleep(Duration::from_secs(6)).await;
    settle().await;
    let now = handle.snapshot();
    assert_eq!((now.held, now.waiting, now.timeouts), (0, 0, left as u64));
}

/// Of many first requests to a server that turns out to speak HTTP/2 one dials; the others share its connection.
#[tokio::test(start_paused = true)]
async fn a_stampede_to_an_http2_server_ends_with_the_first_dial() {
    for paired in [true, false] {
        let limit = ConnLimit::new(1);
        let (handle, dialled) = (limit.handle(), Dialled::default());
        let client = in_memory(&limit, &dialled, true);
        let all = (0..100).map(|_| match paired {
            true => ask(
                limit.request_layer().layer(client.clone()),
                "http://a.test/",
            )
            .boxed(),
            false => ask(client.clone(), "http://a.test/").boxed(),
        });
        for answered in join_all(all).await {
            answered.unwrap();
        }
        settle().await;
        assert_eq!((dialled.all.most(), dialled.dials.load(Relaxed)), (1, 1));
        let now = handle.snapshot();
        let left = if paired { (0, 99) } else { (99, 0) };
        assert_eq!((now.waiting, now.ghosts), left, "{paired}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_in_the_clients_error() {
    let limit = ConnLimit::new(1).acquire_timeout(Duration::from_secs(1));
    let client = in_memory(&limit, &Dialled::default(), false);
    let client = limit.request_layer().layer(client);
    let mut first = pin!(ask(client.clone(), "http://a.test/never"));
    assert!(first.as_mut().now_or_never().is_none());
    let waited = ask(client, "http://a.test/").await;
    assert_eq!(refused(waited), Reason::QueueTimeout);
}

/// Nobody outside can close an idle connection of the client's, so a host may find the total taken by another's.
#[tokio::test(start_paused = true)]
async fn a_reserve_lets_a_host_past_the_idle_connections_of_another() {
    for reserve in [0, 1] {
        let limit = ConnLimit::new(2).reserve_per_host(reserve);
        let (handle, dialled) = (limit.handle(), Dialled::default());
        let client = in_memory(&limit, &dialled, false);
        let client = limit.request_layer().layer(client);
        let both = (0..2).map(|_| ask(client.clone(), "http://a.test/"));
        join_all(both).await;
        settle().await;
        assert_eq!(handle.snapshot().open, 2, "both idle");
        let other = ask(client.clone(), "http://b.test/").await;
        match reserve {
            0 => assert_eq!(refused(other), Reason::QueueTimeout),
            _ => drop(other.unwrap()),
        }
        assert_eq!(dialled.all.most(), 2 + reserve);
    }
}

#[tokio::test(start_paused = true)]
async fn limits_inside_one_another_end_their_own_ghosts() {
    let (outer, inner) = (ConnLimit::new(1), ConnLimit::new(9));
    let dialled = Dialled::default();
    let connector = service_fn(move |to| Box::pin(dialled.clone().memory(to, false)));
    let connector = inner.connector_layer().layer(connector);
    let client = legacy().build::<_, Body>(outer.connector_layer().layer(connector));
    let client = inner.request_layer().layer(client);
    let client = outer.request_layer().layer(client);
    take_turns(client, 100).await;
    let now = (outer.handle().snapshot(), inner.handle().snapshot());
    assert_eq!((now.0.waiting, now.1.waiting), (0, 0));
    assert!(now.0.ghosts >= 100);
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_place() {
    let limit = ConnLimit::new(1);
    let handle = limit.handle();
    let inner = service_fn(|_: Uri| {
        Box::pin(async {
            let (io, peer) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(async |req: Request<Incoming>| {
                    tokio::spawn(hyper::upgrade::on(req));
                    let response = Response::builder().status(101).header("upgrade", "x");
                    Ok::<_, Infallible>(response.body(Body::new()).unwrap())
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(peer), service)
                    .with_upgrades()
                    .await;
            });
            Ok::<_, BoxError>(TokioIo::new(Counted {
                io,
                h2: false,
                _inside: Vec::new(),
            }))
        })
    });
    let client = legacy().build::<_, Body>(limit.connector_layer().layer(inner));
    let client = limit.request_layer().layer(client);
    let mut req = get("http://a.test/");
    req.headers_mut()
        .insert("connection", "upgrade".parse().unwrap());
    req.headers_mut().insert("upgrade", "x".parse().unwrap());
    let response = client.oneshot(req).await.unwrap();
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    settle().await;
    assert_eq!(handle.snapshot().open, 1);
    drop(upgraded);
    settle().await;
    assert_eq!(handle.snapshot().open, 0);
}

// ===== real sockets =====

/// A server that counts the sockets it has, those left out whose other end has closed them.
struct Server {
    addr: SocketAddr,
    live: Arc<Mutex<Vec<Arc<std::net::TcpStream>>>>,
    most: Arc<AtomicUsize>,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(Duration::MAX).await
    }

    /// One that sends its clients away, the first of ten after `age`.
    async fn start_with(age: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            addr: listener.local_addr().unwrap(),
            live: Arc::default(),
            most: Arc::default(),
        };
        let (live, most) = (server.live.clone(), server.most.clone());
        tokio::spawn(async move {
            let mut turn = 0;
            loop {
                let stream = listener.accept().await.unwrap().0.into_std().unwrap();
                let copy = Arc::new(stream.try_clone().unwrap());
                let now = {
                    let mut live = live.lock().unwrap();
                    live.retain(|stream| is_open(stream));
                    live.push(copy.clone());
                    live.len()
                };
                most.fetch_max(now, Relaxed);
                let io = TokioIo::new(TcpStream::from_std(stream).unwrap());
                let live = live.clone();
                let age = age.saturating_mul(1 + turn % 10);
                turn += 1;
                tokio::spawn(async move {
                    serve(io, age).await;
                    live.lock()
                        .unwrap()
                        .retain(|stream| !Arc::ptr_eq(stream, &copy));
                });
            }
        });
        server
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    fn now(&self) -> usize {
        let mut live = self.live.lock().unwrap();
        live.retain(|stream| is_open(stream));
        live.len()
    }
}

/// Whether the other end may still write.
fn is_open(stream: &std::net::TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(bytes) => bytes > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Serves a connection, and sends its client away after a while.
async fn serve(io: TokioIo<TcpStream>, age: Duration) {
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = hyper::service::service_fn(answer);
    let mut connection = pin!(builder.serve_connection(io, service));
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = tokio::time::sleep(age) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Numbers without a pattern, the same in each run.
fn draw(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Hundreds of requests to two servers, some given up at any moment, over connections that servers close at any.
async fn storm<S>(client: S, servers: &[Server], handle: &LimitHandle) -> usize
where
    S: Service<Request<Body>, Response = Response<Incoming>, Future: Send> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
{
    let answered = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..32u64)
        .map(|n| {
            let client = client.clone();
            let urls: Vec<_> = servers
                .iter()
                .flat_map(|server| ["/", "/slow", "/close"].map(|path| server.url(path)))
                .collect();
            let answered = answered.clone();
            tokio::spawn(async move {
                let mut seed = 0x9e37_79b9 + n;
                for _ in 0..25 {
                    let url = &urls[draw(&mut seed) as usize % urls.len()];
                    let asked = ask(client.clone(), url);
                    let patience = match draw(&mut seed) % 4 {
                        0 => Duration::from_micros(draw(&mut seed) % 3_000),
                        _ => Duration::from_secs(60),
                    };
                    match tokio::time::timeout(patience, asked).await {
                        Ok(Ok(_)) => drop(answered.fetch_add(1, Relaxed)),
                        Ok(Err(error)) => {
                            let found = Rejection::find(error.as_ref());
                            assert!(found.is_none(), "{error:?}");
                        }
                        Err(_) => {}
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    drop(client);
    until(
        || handle.snapshot().held == 0,
        "all connections are given back",
    )
    .await;
    until(
        || servers.iter().all(|server| server.now() == 0),
        "the servers are alone",
    )
    .await;
    assert_eq!(handle.snapshot().waiting, 0);
    answered.load(Relaxed)
}

async fn never_over_the_cap(h2: bool) {
    let age = Duration::from_millis(9);
    let servers = [Server::start_with(age).await, Server::start_with(age).await];
    let (limit, most) = match h2 {
        false => (ConnLimit::new(6).max_connections_per_host(4), (6, 4)),
        true => (ConnLimit::new(3).max_connections_per_host(2), (3, 2)),
    };
    let limit = limit.acquire_timeout(Duration::from_secs(30));
    let (handle, dialled) = (limit.handle(), Dialled::default());
    let counted = dialled.clone();
    let inner = service_fn(move |to| Box::pin(counted.clone().tcp(to)));
    let client = legacy()
        .http2_only(h2)
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_millis(100))
        .build::<_, Body>(limit.connector_layer().layer(inner));
    let answered = storm(limit.request_layer().layer(client), &servers, &handle).await;
    assert!(answered > 400, "{answered}");
    assert_eq!(dialled.all.now(), 0);
    assert!(dialled.all.most() <= most.0, "{}", dialled.all.most());
    for server in &servers {
        let client_side = dialled.host(server.addr.port()).most();
        let server_side = server.most.load(Relaxed);
        assert!(
            client_side <= most.1 && server_side <= most.1,
            "{client_side}, {server_side}"
        );
    }
    let dials = dialled.dials.load(Relaxed);
    assert!(dials > 2 * most.0, "{dials} dials");
    assert_eq!(dialled.all.most(), most.0, "the cap was worth something");
}

#[tokio::test]
async fn an_http1_client_is_never_over_the_cap() {
    never_over_the_cap(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_client_on_many_threads_is_never_over_the_cap() {
    never_over_the_cap(false).await;
}

#[tokio::test]
async fn an_http2_client_is_never_over_the_cap() {
    never_over_the_cap(true).await;
}

/// The advice in circulation: it caps how many dials run at once, not how many connections there are.
#[tokio::test]
async fn a_concurrency_limit_in_the_connectors_place_caps_nothing() {
    let server = Server::start().await;
    let (limit, paired) = (Dialled::default(), Dialled::default());
    let counted = limit.clone();
    let inner = service_fn(move |to| Box::pin(counted.clone().tcp(to)));
    let connector = tower::limit::ConcurrencyLimitLayer::new(2).layer(inner);
    let connector = connector.map_future(Box::pin);
    let client = legacy().build::<_, Body>(connector);
    at_once(&client, &server, 16).await;
    assert_eq!(limit.all.most(), 16, "one for each request");
    assert_eq!(server.most.load(Relaxed), 16, "as the server sees it too");

    let ours = ConnLimit::new(2);
    let counted = paired.clone();
    let inner = service_fn(move |to| Box::pin(counted.clone().tcp(to)));
    let client = legacy().build::<_, Body>(ours.connector_layer().layer(inner));
    at_once(&ours.request_layer().layer(client), &server, 16).await;
    assert_eq!(paired.all.most(), 2);
}

async fn at_once<S, B>(client: &S, server: &Server, requests: usize)
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let url = server.url("/slow");
    let all = (0..requests).map(|_| ask(client.clone(), &url));
    for answered in join_all(all).await {
        answered.unwrap();
    }
}

#[tokio::test]
async fn tonic_channels_share_a_cap() {
    let server = Server::start().await;
    let limit = ConnLimit::new(2).acquire_timeout(Duration::from_millis(50));
    let (handle, dialled) = (limit.handle(), Dialled::default());
    let counted = dialled.clone();
    let inner = service_fn(move |to| Box::pin(counted.clone().tcp(to)));
    let connector = limit.connector_layer().layer(inner);
    let endpoint = tonic::transport::Endpoint::from_shared(server.url("/")).unwrap();
    let call = |channel: tonic::transport::Channel| {
        let req = Request::post(server.url("/slow")).body(tonic::body::Body::empty());
        channel.oneshot(req.unwrap())
    };

    let first = endpoint
        .connect_with_connector(connector.clone())
        .await
        .unwrap();
    let second = endpoint
        .connect_with_connector(connector.clone())
        .await
        .unwrap();
    call(first.clone()).await.unwrap();
    let third = endpoint.connect_with_connector(connector.clone()).await;
    let third: BoxError = third.unwrap_err().into();
    assert_eq!(rejection(&third).reason(), Reason::QueueTimeout);

    // A lazy one fails its calls until there is room, and then connects.
    let lazy = endpoint.connect_with_connector_lazy(connector.clone());
    let error: BoxError = call(lazy.clone()).await.unwrap_err().into();
    assert_eq!(rejection(&error).reason(), Reason::QueueTimeout);
    drop(second);
    until(|| handle.snapshot().held == 1, "the second is gone").await;
    call(lazy).await.unwrap();
    assert_eq!((dialled.all.most(), server.most.load(Relaxed)), (2, 2));
    assert_eq!(handle.snapshot().ghosts, 0);
}

#[tokio::test]
async fn a_tonic_channel_that_is_sent_away_reconnects_within_the_cap() {
    let server = Server::start_with(Duration::from_millis(3)).await;
    let limit = ConnLimit::new(2);
    let dialled = Dialled::default();
    let counted = dialled.clone();
    let inner = service_fn(move |to| Box::pin(counted.clone().tcp(to)));
    let connector = limit.connector_layer().layer(inner);
    let endpoint = tonic::transport::Endpoint::from_shared(server.url("/")).unwrap();
    let channel = endpoint.connect_with_connector_lazy(connector);
    for _ in 0..100 {
        let req = Request::post(server.url("/slow")).body(tonic::body::Body::empty());
        // Some are lost with their connection, which is tonic's affair.
        let _ = channel.clone().oneshot(req.unwrap()).await;
    }
    assert!(dialled.dials.load(Relaxed) > 4, "it did reconnect");
    assert!(dialled.all.most() <= 2 && server.most.load(Relaxed) <= 2);
}

// ===== requests =====

type Requests = Request<Steps>;

/// Answers with a body of two frames, or as the host says.
async fn bodies(req: Requests) -> Result<Response<Steps>, BoxError> {
    match req.uri().host() {
        Some("fails") => Err("told to".into()),
        Some("panics") => panic!("told to"),
        Some("empty") => Ok(Response::new(Steps::new([]).known())),
        Some("breaks") => Ok(Response::new(Steps::new([data(b"a"), broken("told to")]))),
        _ => Ok(Response::new(
            Steps::new([data(b"a"), None, data(b"b")]).known(),
        )),
    }
}

fn to(host: &str) -> Requests {
    let req = Request::get(format!("http://{host}/"));
    req.body(Steps::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_requests_permit_ends_with_the_body() {
    let limit = RequestLimit::new(9);
    let handle = limit.handle();
    let service = limit.layer(service_fn(bodies));
    let held = || handle.snapshot().held;

    let response = service.clone().oneshot(to("a.test")).await.unwrap();
    assert_eq!(held(), 1, "headers are no end");
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(held(), 1);
    body.frame().await.unwrap().unwrap();
    assert_eq!(held(), 0, "nothing follows, though nobody has asked");

    let response = service.clone().oneshot(to("breaks")).await.unwrap();
    assert_eq!(held(), 1);
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(held(), 0);

    let empty = service.clone().oneshot(to("empty")).await.unwrap();
    assert_eq!(held(), 0, "no body, no wait for its end");
    drop(empty);
    let dropped = service.clone().oneshot(to("a.test")).await.unwrap();
    drop(dropped);
    assert!(service.clone().oneshot(to("fails")).await.is_err());
    let panics = AssertUnwindSafe(service.oneshot(to("panics")));
    assert!(panics.catch_unwind().await.is_err());
    assert_eq!((held(), handle.snapshot().granted), (0, 6));
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_their_host_and_for_the_total() {
    let limit = RequestLimit::new(3)
        .max_requests_per_host(2)
        .max_pending_per_host(1)
        .acquire_timeout(Duration::from_secs(2));
    let handle = limit.handle();
    let service = limit.layer(service_fn(bodies));
    let start = |host: &str| service.clone().oneshot(to(host));

    let first = start("a").await.unwrap();
    let _second = start("a").await.unwrap();
    let mut third = tokio_test::task::spawn(start("a"));
    assert!(third.poll().is_pending(), "two are the host's");
    let full = start("a").await.unwrap_err();
    let told = rejection(&full).to_string();
    assert!(
        told.contains("1 of 1 places to wait for requests to http://a"),
        "{told}"
    );
    let _other = start("b").await.unwrap();
    let mut another = tokio_test::task::spawn(start("c"));
    assert!(another.poll().is_pending(), "three are all");
    drop(first);
    assert!(
        another.is_woken() && !third.is_woken(),
        "the host that has none is first"
    );
    let _another = another.await.unwrap();
    assert_eq!(refused(third.await), Reason::QueueTimeout);
    let now = handle.snapshot();
    assert_eq!(
        (now.held, now.waiting, now.full, now.timeouts),
        (3, 0, 1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_permit_of_ones_own_is_held_to_the_bodys_end() {
    let limit = RequestLimit::new(1);
    let handle = limit.handle();
    let permit = limit.acquire(&uri("a.test")).await.unwrap();
    let to_a = uri("a.test");
    let waiting = limit.acquire(&to_a);
    let mut waiting = tokio_test::task::spawn(waiting);
    assert!(waiting.poll().is_pending());
    let response = permit.hold(bodies(to("a.test")).await.unwrap());
    assert!(!waiting.is_woken());
    response.into_body().collect().await.unwrap();
    assert!(waiting.is_woken());
    drop(waiting);
    assert_eq!(handle.snapshot().held, 0);
    drop(limit.acquire(&uri("a.test")));
    assert_eq!(
        handle.snapshot().granted,
        1,
        "a future nobody polls asks for nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_finds_a_permit_allocates_nothing() {
    let limit = RequestLimit::new(9);
    let acquire = async || drop(limit.acquire(&uri("a.test")).await.unwrap());
    acquire().await;
    let before = allocations();
    let to = uri("a.test");
    let uris = allocations() - before;
    drop(to);
    let before = allocations();
    for _ in 0..100 {
        acquire().await;
    }
    assert_eq!(allocations() - before, 100 * uris);
}

/// reqwest's connections cannot be capped, but what they are for can be.
#[tokio::test]
async fn reqwest_is_held_to_so_many_requests() {
    let server = Server::start().await;
    let limit = RequestLimit::new(4);
    let handle = limit.handle();
    let running = Peak::default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let counted = running.clone();
    let adapted = service_fn(move |req: Request<reqwest::Body>| {
        let (client, inside) = (client.clone(), counted.enter());
        async move {
            let response = client.execute(req.try_into()?).await?;
            drop(inside);
            Ok::<http::Response<reqwest::Body>, reqwest::Error>(response.into())
        }
    });
    let service = limit.layer(adapted);
    let all = (0..200).map(|_| {
        let req = Request::get(server.url("/slow")).body(reqwest::Body::default());
        let answered = service.clone().oneshot(req.unwrap());
        async move { answered.await.unwrap().into_body().collect().await.unwrap() }
    });
    join_all(all).await;
    assert_eq!((running.most(), handle.snapshot().held), (4, 0));
    // Not strict: a body ends before its connection is idle again.
    let most = server.most.load(Relaxed);
    assert!((4..50).contains(&most), "{most} connections");
}
