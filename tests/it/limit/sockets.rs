//! Real sockets, counted on both sides.

use super::*;

/// A server that counts the sockets it has, those left out whose other end has closed them.
pub(super) struct Server {
    addr: SocketAddr,
    live: Arc<Mutex<Vec<Arc<std::net::TcpStream>>>>,
    pub(super) most: Arc<AtomicUsize>,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::start_with(Duration::MAX).await
    }

    /// One that sends its clients away, the first of ten after `age`.
    pub(super) async fn start_with(age: Duration) -> Self {
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

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub(super) fn now(&self) -> usize {
        let mut live = self.live.lock().unwrap();
        live.retain(|stream| is_open(stream));
        live.len()
    }
}

/// Whether the other end may still write. What it wrote before may still be unread.
#[cfg(target_os = "linux")]
fn is_open(stream: &std::net::TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut asked = [PollFd::new(stream, gone)];
    poll(&mut asked, Some(&Timespec::default())).unwrap();
    !asked[0].revents().intersects(gone)
}

/// Whether the other end may still write, as far as what it wrote was read.
#[cfg(not(target_os = "linux"))]
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
