//! Limits of requests.

use super::sockets::Server;
use super::*;

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
