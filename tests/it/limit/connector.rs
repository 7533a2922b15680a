//! The connector alone, over paused time.

use super::*;

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
