use super::*;

use std::convert::Infallible;
use std::sync::Mutex;

use bytes::Bytes;
use http::header::{HeaderValue, SET_COOKIE};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use tower::util::BoxCloneService;
use tower::{ServiceExt as _, service_fn};
use tower_layer::Layer as _;

use crate::base::clock;
use crate::base::deadline::Deadline;
use crate::base::error::{BoxError, Reason, Rejection};
use crate::middleware::coalesce::CoalesceHandle;
use crate::middleware::coalesce::body::SharedBody;

type Req = Request<Empty<Bytes>>;
type Layer = CoalesceLayer<HttpKey, HttpShare>;
type Calls = BoxCloneService<Req, Response<SharedBody<Full<Bytes>>>, BoxError>;
type Answer = Result<Response<SharedBody<Full<Bytes>>>, BoxError>;

/// A backend that takes 100 ms, says who asked, and keeps what it was asked.
fn backend(
    layer: &Layer,
    headers: &'static [(&'static str, &'static str)],
) -> (Calls, Arc<Mutex<Vec<Req>>>) {
    let asked = Arc::<Mutex<Vec<Req>>>::default();
    let kept = asked.clone();
    let service = layer.layer(service_fn(move |req: Req| {
        let user = req.headers().get(AUTHORIZATION).cloned();
        let user = user.unwrap_or(HeaderValue::from_static("anybody"));
        kept.lock().unwrap().push(req);
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut response = Response::new(Full::new(Bytes::copy_from_slice(user.as_bytes())));
            *response.headers_mut() = headers
                .iter()
                .map(|(name, value)| {
                    (
                        HeaderName::from_static(name),
                        HeaderValue::from_static(value),
                    )
                })
                .collect::<HeaderMap>();
            Ok::<_, Infallible>(response)
        }
    }));
    (BoxCloneService::new(service), asked)
}

fn get(user: Option<&'static str>) -> Req {
    let mut req = Request::new(Empty::new());
    *req.uri_mut() = "http://a/b".parse().unwrap();
    if let Some(user) = user {
        req.headers_mut()
            .insert(AUTHORIZATION, HeaderValue::from_static(user));
    }
    req
}

async fn text(answer: Answer) -> Bytes {
    answer
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes()
}

async fn all(service: &Calls, reqs: impl IntoIterator<Item = Req>) -> Vec<Answer> {
    let calls = reqs.into_iter().map(|req| service.clone().oneshot(req));
    futures_util::future::join_all(calls).await
}

fn calls_saved(handle: &CoalesceHandle) -> u64 {
    handle.snapshot().shared
}

#[tokio::test(start_paused = true)]
async fn equal_requests_become_one_and_all_read_its_body() {
    let layer = CoalesceLayer::http();
    let (service, asked) = backend(&layer, &[]);
    for answer in all(&service, (0..10).map(|_| get(None))).await {
        assert_eq!(text(answer).await, "anybody");
    }
    assert_eq!(asked.lock().unwrap().len(), 1);
    assert_eq!(calls_saved(&layer.handle()), 9);
}

#[tokio::test(start_paused = true)]
async fn users_are_never_crossed() {
    let reqs = || {
        [
            get(Some("one")),
            get(Some("two")),
            get(Some("one")),
            get(None),
        ]
    };
    for (layer, calls) in [
        (CoalesceLayer::http(), 4),
        (CoalesceLayer::http().authorization(Credentials::InKey), 3),
    ] {
        let (service, asked) = backend(&layer, &[]);
        let mut got = Vec::new();
        for answer in all(&service, reqs()).await {
            got.push(text(answer).await);
        }
        assert_eq!(got, ["one", "two", "one", "anybody"]);
        assert_eq!(asked.lock().unwrap().len(), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_private_is_asked_for_side_by_side_and_remembered() {
    for headers in [
        &[("set-cookie", "a=b")][..],
        &[("cache-control", "private")],
        &[("vary", "*")],
    ] {
        let layer = CoalesceLayer::http();
        let (service, asked) = backend(&layer, headers);
        let start = clock::now();
        let answers = all(&service, (0..10).map(|_| get(None))).await;
        assert!(answers.iter().all(Result::is_ok));
        // One waits for its own answer, the others for that and then for theirs.
        assert_eq!(start.elapsed(), Duration::from_millis(200));
        assert_eq!(asked.lock().unwrap().len(), 10);
        let again = all(&service, (0..10).map(|_| get(None))).await;
        assert_eq!(again.len(), 10);
        assert_eq!(start.elapsed(), Duration::from_millis(300));
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.shared, snapshot.remembered), (0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn head_and_get_are_two_and_bodies_go_alone() {
    let layer = CoalesceLayer::http()
        .header(SET_COOKIE)
        .cookie(Credentials::InKey);
    let (service, asked) = backend(&layer, &[]);
    let method = |method| {
        let mut req = get(None);
        *req.method_mut() = method;
        req
    };
    let methods = [Method::GET, Method::HEAD, Method::POST, Method::POST];
    all(&service, methods.map(method)).await;
    assert_eq!(asked.lock().unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_its_own_wait_only() {
    let layer = CoalesceLayer::http();
    let (service, asked) = backend(&layer, &[]);
    let until = |millis| {
        let mut req = get(None);
        let deadline = Deadline::at(clock::now() + Duration::from_millis(millis));
        req.extensions_mut().insert(deadline);
        req
    };
    let flight = Deadline::after(clock::now(), Duration::from_secs(30));
    let mut answers = all(&service, [until(10), until(1000)]).await;
    let second = answers.pop().unwrap();
    assert_eq!(text(second).await, "anybody");
    let first = answers.pop().unwrap().unwrap_err();
    let reason = Rejection::find(first.as_ref()).unwrap().reason();
    assert_eq!(reason, Reason::Deadline);
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].extensions().get().copied(), flight);
}
