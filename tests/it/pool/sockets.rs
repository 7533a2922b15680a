//! Real sockets on loopback, counted from outside: in `/proc/net/tcp`, where the kernel keeps both ends.

use std::collections::{HashSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tower::Service;
use tower_flow::BoxError;
use tower_flow::pool::ConnPool;

use super::storm::Dice;
use super::{Pool, ask, get, header, ms, named, secs, tasks};

// ===== the kernel's view =====

/// Open sockets of one port: those that dialled it, and those it accepted.
///
/// A client's socket is open until it is closed by us, so one whose peer has gone (CLOSE_WAIT) counts. A server's
/// counts while it is established, which ends with the client's FIN. The kernel shows a socket twice when others come and
/// go while the table is read, so they are told apart by their addresses.
fn sockets(port: u16) -> (usize, usize) {
    count(&std::fs::read_to_string("/proc/net/tcp").unwrap(), port)
}

fn count(table: &str, port: u16) -> (usize, usize) {
    let port = format!(":{port:04X}");
    let (mut dialled, mut accepted) = (HashSet::new(), HashSet::new());
    for line in table.lines().skip(1) {
        // `sl: local:port remote:port state`, each of fixed width but the first.
        let (_, socket) = line.split_once(": ").unwrap();
        let (local, remote, state) = (&socket[..13], &socket[14..27], &socket[28..30]);
        if remote.ends_with(&port) && matches!(state, "01" | "02" | "08") {
            dialled.insert(local);
        }
        if local.ends_with(&port) && state == "01" {
            accepted.insert(remote);
        }
    }
    (dialled.len(), accepted.len())
}

// ===== servers =====

/// A server on a port of its own.
struct Site {
    port: u16,
    h2: bool,
    state: Arc<SiteState>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct SiteState {
    /// Sockets the kernel had open at once, at most, seen at each accept: the client's, the server's.
    peaks: Mutex<(usize, usize)>,
    accepted: AtomicUsize,
    conns: Mutex<VecDeque<JoinHandle<()>>>,
    /// Accepts and never says a word.
    mute: std::sync::atomic::AtomicBool,
}

impl Site {
    async fn new(h2: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(SiteState::default());
        let accepting = tokio::spawn(accept(listener, h2, state.clone()));
        Self {
            port,
            h2,
            state,
            accepting,
        }
    }

    fn uri(&self, path: &str) -> Uri {
        format!("http://127.0.0.1:{}{path}", self.port)
            .parse()
            .unwrap()
    }

    /// Cuts one of its connections.
    fn cut(&self, dice: &mut Dice) {
        let mut conns = self.state.conns.lock().unwrap();
        conns.retain(|conn| !conn.is_finished());
        if !conns.is_empty() {
            let at = dice.roll(conns.len());
            conns[at].abort();
        }
    }

    fn close(self) {
        self.accepting.abort();
        self.state
            .conns
            .lock()
            .unwrap()
            .iter()
            .for_each(JoinHandle::abort);
    }
}

impl SiteState {
    fn look(&self, port: u16, cap: usize) {
        let mut now = sockets(port);
        // A FIN may be under way still: what the server has too many of must go by itself.
        for _ in 0..50 {
            if now.1 <= cap {
                break;
            }
            std::thread::sleep(ms(1));
            now.1 = sockets(port).1;
        }
        let mut peaks = self.peaks.lock().unwrap();
        *peaks = (peaks.0.max(now.0), peaks.1.max(now.1));
    }
}

/// Caps are those of the tests below.
const PER_SITE: usize = 8;
const TOTAL: usize = 20;

async fn accept(listener: TcpListener, h2: bool, state: Arc<SiteState>) {
    let port = listener.local_addr().unwrap().port();
    while let Ok((stream, _)) = listener.accept().await {
        let accepted = state.accepted.fetch_add(1, Ordering::SeqCst);
        // The table grows with every socket that ends, and its reading with it.
        if accepted < 50 || accepted.is_multiple_of(7) {
            state.look(port, PER_SITE);
        }
        let mute = state.mute.load(Ordering::SeqCst);
        let conn = tokio::spawn(async move {
            if mute {
                let _ = stream.readable().await;
                return std::future::pending().await;
            }
            let service = service_fn(answer);
            let io = TokioIo::new(stream);
            if h2 {
                let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server.max_concurrent_streams(5);
                let _ = server.serve_connection(io, service).await;
            } else {
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(io, service).await;
            }
        });
        state.conns.lock().unwrap().push_back(conn);
    }
}

async fn answer(req: Request<Incoming>) -> Result<Response<Full<Bytes>>, BoxError> {
    let id = req.headers().get("x-id").cloned();
    let mut response = Response::builder();
    if let Some(id) = id {
        response = response.header("x-id", id);
    }
    let path = req.uri().path();
    if path == "/close" && req.version() < http::Version::HTTP_2 {
        response = response.header("connection", "close");
    }
    let size = path
        .strip_prefix("/bytes/")
        .map_or(5, |size| size.parse().unwrap());
    // Lets others in.
    for _ in 0..size % 7 {
        tokio::task::yield_now().await;
    }
    Ok(response.body(Full::from(vec![b'x'; size]))?)
}

// ===== the connector =====

/// Plain TCP, which speaks HTTP/2 to the ports that do.
#[derive(Clone)]
struct Tcp(Arc<Vec<u16>>);

struct Socket(TokioIo<TcpStream>, bool);

impl Service<Uri> for Tcp {
    type Response = Socket;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Socket, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let port = uri.port_u16().unwrap();
        let h2 = self.0.contains(&port);
        Box::pin(async move {
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            Ok(Socket(TokioIo::new(TcpStream::connect(addr).await?), h2))
        })
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        if self.1 {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

// ===== tests =====

// One thread for all, so that nothing opens or closes while the kernel's table is read.

async fn sites(n: usize) -> (Vec<Site>, Tcp) {
    let mut sites = Vec::new();
    for at in 0..n {
        sites.push(Site::new(at % 2 == 1).await);
    }
    let h2 = sites.iter().filter(|site| site.h2).map(|site| site.port);
    let tcp = Tcp(Arc::new(h2.collect()));
    (sites, tcp)
}

/// Looks at the kernel's table now, and takes it all down.
async fn end(sites: Vec<Site>, pool: Pool) {
    for site in &sites {
        let (client, server) = *site.state.peaks.lock().unwrap();
        assert!(client <= PER_SITE, "{client} sockets of the client");
        assert!(server <= PER_SITE, "{server} sockets of the server");
    }
    let stats = pool.stats();
    assert_eq!(
        (stats.waiting, stats.active, stats.streams),
        (0, 0, 0),
        "{stats:?}"
    );
    let open: usize = sites.iter().map(|site| sockets(site.port).0).sum();
    assert_eq!(open as u64, stats.open, "the kernel agrees");
    drop(pool);
    let mut left = 1;
    for _ in 0..1_000 {
        left = sites.iter().map(|site| sockets(site.port).0).sum();
        if left == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(left, 0, "sockets are left");
    sites.into_iter().for_each(Site::close);
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tasks(), 0);
}

fn pool(tcp: &Tcp) -> Pool {
    ConnPool::builder(tcp.clone())
        .max_connections(TOTAL)
        .max_connections_per_host(PER_SITE)
        .max_idle_per_host(4)
        .connect_timeout(ms(50))
        .backoff(ms(1), ms(5))
        .build()
}

#[tokio::test]
async fn a_thousand_first_requests_open_no_socket_over_the_cap() {
    let (sites, tcp) = sites(2).await;
    let pool = pool(&tcp);
    for site in &sites {
        let asked: Vec<_> = (0..1_000)
            .map(|id| ask(&pool, named(id, site.uri(&format!("/bytes/{}", id % 100)))))
            .collect();
        for (id, asked) in asked.into_iter().enumerate() {
            let response = asked.response().await;
            assert_eq!(header(&response, "x-id"), id.to_string());
            assert_eq!(super::text(response).await.len(), id % 100);
        }
        let accepted = site.state.accepted.load(Ordering::SeqCst);
        assert!(
            (1..=PER_SITE).contains(&accepted),
            "{accepted} sockets for a thousand requests"
        );
    }
    settle().await;
    end(sites, pool).await;
}

async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_storm_on_loopback_opens_no_socket_over_the_cap() {
    let mut dice = Dice::new();
    let (sites, tcp) = sites(6).await;
    let pool = pool(&tcp);
    let mut flights = VecDeque::new();
    for id in 0..2_500 {
        let site = dice.pick(&sites);
        match dice.roll(20) {
            0 => site.cut(&mut dice),
            1 | 2 if !flights.is_empty() => {
                let at = dice.roll(flights.len());
                let flight: Option<JoinHandle<()>> = flights.swap_remove_back(at);
                flight.unwrap().abort();
            }
            3 => drop(pool.close_idle()),
            4 => drop(pool.refresh(&site.uri("/"))),
            5 => site.state.mute.store(dice.percent(5), Ordering::SeqCst),
            kind => {
                let path = match kind {
                    6 => "/close".to_owned(),
                    _ => format!("/bytes/{}", dice.roll(50_000)),
                };
                let (mut pool, req) = (pool.clone(), named(id, site.uri(&path)));
                let half = dice.percent(10);
                flights.push_back(tokio::spawn(async move {
                    let Ok(response) = pool.call(req).await else {
                        return;
                    };
                    assert_eq!(header(&response, "x-id"), id.to_string());
                    if !half {
                        let _ = http_body_util::BodyExt::collect(response.into_body()).await;
                    }
                }));
            }
        }
        for _ in 0..dice.roll(4) {
            tokio::task::yield_now().await;
        }
        if id % 20 == 0 {
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let of = |site: &Site| count(&table, site.port).0;
            let counts: Vec<_> = sites.iter().map(of).collect();
            let open: usize = counts.iter().sum();
            assert!(
                open <= TOTAL && counts.iter().all(|open| *open <= PER_SITE),
                "{counts:?}"
            );
        }
        while flights.len() > 100 {
            finish(flights.pop_front().unwrap(), &sites).await;
        }
    }
    for site in &sites {
        site.state.mute.store(false, Ordering::SeqCst);
    }
    for flight in flights {
        finish(flight, &sites).await;
    }
    for site in &sites {
        pool.refresh(&site.uri("/"));
    }
    tokio::time::timeout(secs(20), async {
        for site in &sites {
            while ask(&pool, get(site.uri("/"))).result().await.is_err() {
                tokio::task::yield_now().await;
            }
        }
    })
    .await
    .expect("every site serves again");
    settle().await;
    end(sites, pool).await;
}

/// A request sent to a mute server ends when the server goes.
async fn finish(mut flight: JoinHandle<()>, sites: &[Site]) {
    for _ in 0..200 {
        match tokio::time::timeout(ms(50), &mut flight).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {
                for site in sites {
                    site.state.mute.store(false, Ordering::SeqCst);
                    site.state
                        .conns
                        .lock()
                        .unwrap()
                        .iter()
                        .for_each(JoinHandle::abort);
                }
            }
        }
    }
    panic!("a request hangs");
}
