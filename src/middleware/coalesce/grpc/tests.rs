use super::*;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody};
use tower::util::BoxCloneService;
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer as _;

use crate::base::clock;
use crate::base::deadline::{GRPC_TIMEOUT, grpc_timeout};
use crate::base::error::{BoxError, Reason, Rejection};
use crate::base::outcome::{Code, GRPC_STATUS};
use crate::middleware::coalesce::layer::CoalesceLayer;
use crate::middleware::coalesce::listed::Credentials;

type Frames = http_body_util::combinators::BoxBody<Bytes, BoxError>;
type Answer = Result<Response<GrpcBody<Frames>>, BoxError>;
type Calls = BoxCloneService<Request<Frames>, Response<GrpcBody<Frames>>, BoxError>;
/// What the backend was asked: the `grpc-timeout`, and how long the message was.
type Asked = Arc<Mutex<Vec<(Option<Duration>, usize)>>>;

const PATH: &str = "/shop.Stock/Get";

fn frames(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> Frames {
    Frames::new(SyncBody(StreamBody::new(stream::iter(frames))))
}

/// A stream of frames nobody looks at from two threads.
struct SyncBody<B>(B);

impl<B: Body + Unpin> Body for SyncBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }
}

fn status(code: Code) -> HeaderMap {
    let code = code.index().to_string().parse().unwrap();
    HeaderMap::from_iter([(GRPC_STATUS, code)])
}

/// A backend that takes 100 ms and answers with `size` bytes, who asked, and `code`.
fn backend(layer: &GrpcCoalesceLayer, size: usize, code: Code) -> (Calls, Asked) {
    let asked = Asked::default();
    let kept = asked.clone();
    let service = layer.layer(service_fn(move |req: Request<GrpcBody<Frames>>| {
        let kept = kept.clone();
        async move {
            let (head, body) = req.into_parts();
            let read = match body.collect().await {
                Ok(read) => read.to_bytes().len(),
                Err(error) => return Err(error),
            };
            let timeout = head.headers.get(GRPC_TIMEOUT).and_then(grpc_timeout);
            kept.lock().unwrap().push((timeout, read));
            tokio::time::sleep(Duration::from_millis(100)).await;
            let sent = frames(vec![
                Ok(Frame::data(vec![7; size].into())),
                Ok(Frame::trailers(status(code))),
            ]);
            let mut response = Response::new(sent);
            if let Some(user) = head.headers.get(AUTHORIZATION) {
                response.headers_mut().insert("user", user.clone());
            }
            Ok::<_, BoxError>(response)
        }
    }));
    (BoxCloneService::new(service), asked)
}

fn call(message: &'static str, headers: &[(&str, &str)]) -> Request<Frames> {
    let body = Full::from(message).map_err(|never: Infallible| match never {});
    let mut req = Request::post(PATH).body(Frames::new(body)).unwrap();
    let given = [("content-type", "application/grpc")];
    for (name, value) in given.iter().chain(headers) {
        let name: HeaderName = name.parse().unwrap();
        req.headers_mut().append(name, value.parse().unwrap());
    }
    req
}

async fn all(service: &Calls, reqs: impl IntoIterator<Item = Request<Frames>>) -> Vec<Answer> {
    join_all(reqs.into_iter().map(|req| service.clone().oneshot(req))).await
}

async fn read(answer: Answer) -> (usize, Code) {
    let body = answer.unwrap().into_body().collect().await.unwrap();
    let code = Code::from_headers(body.trailers().unwrap()).unwrap();
    (body.to_bytes().len(), code)
}

#[tokio::test(start_paused = true)]
async fn equal_calls_become_one_and_share_trailers() {
    let layer = CoalesceLayer::grpc([PATH]);
    let (service, asked) = backend(&layer, 10, Code::NotFound);
    for answer in all(&service, (0..10).map(|_| call("x", &[]))).await {
        assert_eq!(read(answer).await, (10, Code::NotFound));
    }
    assert_eq!(*asked.lock().unwrap(), [(None, 1)]);
    assert_eq!(layer.handle().snapshot().shared, 9);
}

#[tokio::test(start_paused = true)]
async fn what_the_caller_is_told_is_told_to_it_alone() {
    for code in [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Unauthenticated,
    ] {
        let layer = CoalesceLayer::grpc([PATH]);
        let (service, asked) = backend(&layer, 0, code);
        let start = clock::now();
        for answer in all(&service, (0..5).map(|_| call("x", &[]))).await {
            assert_eq!(read(answer).await, (0, code));
        }
        assert_eq!(start.elapsed(), Duration::from_millis(200), "side by side");
        assert_eq!(asked.lock().unwrap().len(), 5);
        assert_eq!(layer.handle().snapshot().remembered, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn timeouts_are_their_callers_own() {
    let layer = CoalesceLayer::grpc([PATH]);
    let (service, asked) = backend(&layer, 10, Code::Ok);
    let timeouts = ["10m", "1S", "500m"];
    let reqs = timeouts.map(|timeout| call("x", &[("grpc-timeout", timeout)]));
    let start = clock::now();
    let mut answers = all(&service, reqs).await;
    assert_eq!(start.elapsed(), Duration::from_millis(100));
    for answer in answers.drain(1..) {
        assert_eq!(read(answer).await, (10, Code::Ok));
    }
    let late = answers.remove(0).unwrap_err();
    let reason = Rejection::find(late.as_ref()).unwrap().reason();
    assert_eq!(reason, Reason::Deadline);
    let flight = Duration::from_secs(30);
    assert_eq!(*asked.lock().unwrap(), [(Some(flight), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_runs_while_the_request_is_read() {
    let layer = CoalesceLayer::grpc([PATH]);
    let (service, asked) = backend(&layer, 10, Code::Ok);
    let slow = stream::once(async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        Ok(Frame::data(Bytes::from_static(b"x")))
    });
    let body = Frames::new(SyncBody(StreamBody::new(Box::pin(slow))));
    let req = call("", &[("grpc-timeout", "50m")]).map(|_| body);
    let start = clock::now();
    assert!(service.oneshot(req).await.is_err());
    assert_eq!(start.elapsed(), Duration::from_millis(50));
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn users_are_never_crossed() {
    let layer = || CoalesceLayer::grpc([PATH]);
    let in_key = layer().authorization(Credentials::InKey);
    for (layer, calls) in [(layer(), 4), (in_key, 3)] {
        let (service, asked) = backend(&layer, 0, Code::Ok);
        let users = [Some("one"), Some("two"), Some("one"), None];
        let reqs = users.map(|user| match user {
            Some(user) => call("x", &[("authorization", user)]),
            None => call("x", &[]),
        });
        for (answer, user) in all(&service, reqs).await.into_iter().zip(users) {
            let user = user.map(HeaderValue::from_static);
            assert_eq!(answer.unwrap().headers().get("user"), user.as_ref());
        }
        assert_eq!(asked.lock().unwrap().len(), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn long_requests_go_alone_and_whole() {
    let layer = CoalesceLayer::grpc([PATH]).max_key_bytes(4);
    let (service, asked) = backend(&layer, 10, Code::Ok);
    let long = || {
        let parts =
            ["abc", "def", "g"].map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes()))));
        call("", &[]).map(|_| frames(parts.into()))
    };
    for answer in all(&service, [long(), long()]).await {
        assert_eq!(read(answer).await, (10, Code::Ok));
    }
    assert_eq!(*asked.lock().unwrap(), [(None, 7), (None, 7)]);
    let bypassed = layer.handle().snapshot().bypassed;
    assert_eq!(bypassed[0], ("no_key", 2));
}

#[tokio::test(start_paused = true)]
async fn long_responses_are_their_leaders_and_remembered() {
    let layer = CoalesceLayer::grpc([PATH]).max_message(9);
    let (service, asked) = backend(&layer, 10, Code::Ok);
    for answer in all(&service, (0..3).map(|_| call("x", &[]))).await {
        assert_eq!(read(answer).await, (10, Code::Ok));
    }
    assert_eq!(asked.lock().unwrap().len(), 3);
    assert_eq!(layer.handle().snapshot().remembered, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_breaks_off_breaks_off_for_itself() {
    let layer = CoalesceLayer::grpc([PATH]);
    let (service, asked) = backend(&layer, 10, Code::Ok);
    let cut = vec![Ok(Frame::data(Bytes::from_static(b"x"))), Err("cut".into())];
    let cut = call("", &[]).map(|_| frames(cut));
    let mut answers = all(&service, [cut, call("x", &[])]).await;
    assert_eq!(read(answers.remove(1)).await, (10, Code::Ok));
    assert_eq!(answers.remove(0).unwrap_err().to_string(), "cut");
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn streams_are_not_collected() {
    let layer = CoalesceLayer::grpc(["/shop.Stock/Other"]);
    let endless = service_fn(|req: Request<GrpcBody<Frames>>| async move {
        // The request is still coming when the response begins.
        let first = req.into_body().frame().await.unwrap().unwrap();
        let rest = stream::pending::<Result<Frame<Bytes>, BoxError>>();
        let body = stream::iter([Ok(first)]).chain(rest);
        Ok::<_, BoxError>(Response::new(Frames::new(SyncBody(StreamBody::new(body)))))
    });
    let service = layer.layer(endless);
    let asking = stream::iter([Ok(Frame::data(Bytes::from_static(b"x")))]).chain(stream::pending());
    let req = call("", &[]).map(|_| Frames::new(SyncBody(StreamBody::new(asking))));
    let mut response = service.oneshot(req).await.unwrap();
    let first = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn what_was_reserved_is_not_waited_for() {
    use crate::middleware::coalesce::Readiness;
    let layer = CoalesceLayer::grpc([PATH]).with(|layer| layer.readiness(Readiness::Eager));
    let inner = service_fn(|_: Request<GrpcBody<Frames>>| async {
        let trailers = vec![Ok(Frame::trailers(status(Code::Ok)))];
        Ok::<_, BoxError>(Response::new(frames(trailers)))
    });
    let limited = tower::limit::ConcurrencyLimit::new(inner, 1);
    let mut service = layer.layer(limited);
    for _ in 0..3 {
        let ready = ServiceExt::<Request<Frames>>::ready(&mut service)
            .await
            .unwrap();
        let answer = ready.call(call("x", &[])).await;
        assert_eq!(read(answer).await, (0, Code::Ok));
    }
}

#[test]
fn methods_without_side_effects_are_listed() {
    // package p; service S { rpc A: NO_SIDE_EFFECTS; rpc B; rpc C: NO_SIDE_EFFECTS, stream }
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
    let level = field(4, &[0x90, 0x02, 1]);
    let method = |name: &[u8], rest: &[u8]| field(2, &[&field(1, name), rest].concat());
    let stream = [&level[..], &[6 << 3, 1]].concat();
    let methods = [
        method(b"A", &level),
        method(b"B", &[]),
        method(b"C", &stream),
    ]
    .concat();
    let file = [
        field(2, b"p"),
        field(6, &[field(1, b"S"), methods].concat()),
    ]
    .concat();
    let layer = CoalesceLayer::grpc([PATH])
        .register_fds(&field(1, &file))
        .unwrap();
    assert_eq!(layer.methods(), ["/p.S/A", PATH]);
    assert!(layer.register_fds(b"\x0f").is_err());
}

#[test]
#[should_panic(expected = "write it as \"/package.Service/Method\"")]
fn a_path_is_a_path() {
    let _ = CoalesceLayer::grpc(["shop.Stock/Get"]);
}

#[test]
#[should_panic(expected = "no part of a key")]
fn a_timeout_is_never_in_the_key() {
    let _ = CoalesceLayer::grpc([PATH]).metadata(GRPC_TIMEOUT);
}
