//! hyper-util's client, in memory.

use super::*;

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
