//! How often each layer allocates for a unary call, beyond what the bare service does.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tower::{Layer, Service};
use tower_flow::batch::{All, Batch, BatchLayer};
use tower_flow::coalesce::CoalesceLayer;
use tower_flow::connection::Connections;
use tower_flow::grpc::{GrpcServerLayer, GrpcType};
use tower_flow::phases::Timings;
use tower_flow::profile::ProfileLayer;
use tower_flow::shed::{Queue, ShedLayer};
use tower_flow::throttle::ThrottleLayer;
use tower_flow::timing::TimingLayer;
use tower_flow::{BoxError, Flow, preset};

use crate::support::{allocations, framed};

#[derive(Clone)]
struct Echo(Bytes);

impl<B> Service<Request<B>> for Echo {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let mut response = Response::new(Full::new(self.0.clone()));
        let status = http::HeaderValue::from_static("0");
        response.headers_mut().insert("grpc-status", status);
        std::future::ready(Ok(response))
    }
}

/// Allocations of a call beyond what the bare service makes, in the steady state.
fn counted<S, B>(service: S) -> u64
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    B: Body + Unpin,
{
    all(service) - all(echo())
}

fn all<S, B>(mut service: S) -> u64
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    B: Body + Unpin,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut count = 0;
    for _ in 0..100 {
        let mut req = Request::new(Full::from(framed(0, b"hello")));
        *req.uri_mut() = http::Uri::from_static("http://localhost/pkg.Svc/Method");
        let kind = http::HeaderValue::from_static("application/grpc");
        req.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        // A server clones its service for every request.
        let mut service = service.clone();
        let before = allocations();
        assert!(service.poll_ready(&mut cx).is_ready());
        let mut future = std::pin::pin!(service.call(req));
        let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else {
            panic!("not at once")
        };
        let mut body = response.into_body();
        while let Poll::Ready(Some(_)) = std::pin::Pin::new(&mut body).poll_frame(&mut cx) {}
        drop(body);
        count = allocations() - before;
    }
    assert!(service.poll_ready(&mut cx).is_ready());
    count
}

fn echo() -> Echo {
    Echo(Bytes::from(framed(0, b"hello")))
}

fn grpc() -> GrpcServerLayer {
    GrpcServerLayer::new().register("pkg.Svc", "Method", GrpcType::Unary)
}

#[test]
fn no_default_layer_allocates() {
    assert_eq!(counted(TimingLayer::new("t").layer(echo())), 0);
    assert_eq!(counted(TimingLayer::new("t").http().layer(echo())), 0);
    assert_eq!(counted(ProfileLayer::new("t").layer(echo())), 0);
    let routed = ProfileLayer::new("t").route_with(preset::ByPath);
    assert_eq!(counted(routed.delay_every(1).http().layer(echo())), 0);
    assert_eq!(counted(ProfileLayer::new("t").every(0).layer(echo())), 0);
    assert_eq!(counted(grpc().layer(echo())), 0);
    assert_eq!(counted(ThrottleLayer::new("t").layer(echo())), 0);
    assert_eq!(counted(ThrottleLayer::new("t").http().layer(echo())), 0);
    assert_eq!(counted(ThrottleLayer::new("t").grpc().layer(echo())), 0);
    assert_eq!(
        counted(preset::grpc_server_observed(&Flow::new("alloc")).layer(echo())),
        0
    );
    assert_eq!(
        counted(preset::grpc_server(&Flow::new("alloc")).layer(echo())),
        0
    );
    assert_eq!(
        counted(preset::http_server(&Flow::new("alloc")).layer(echo())),
        0
    );
    assert_eq!(
        counted(preset::http_client(&Flow::new("alloc")).layer(echo())),
        0
    );
    assert_eq!(
        counted(Connections::server("alloc").streams().layer(echo())),
        0
    );
}

/// Tells of its connection, as a pool would.
#[derive(Clone)]
struct Pooled(Echo, Timings);

impl<B> Service<Request<B>> for Pooled {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<B>) -> Self::Future {
        let mut response = self.0.call(req).into_inner();
        if let Ok(response) = &mut response {
            response.extensions_mut().insert(self.1.clone());
        }
        std::future::ready(response)
    }
}

#[test]
fn reading_timings_allocates_nothing() {
    let now = tower_flow::clock::now();
    let pooled = Pooled(echo(), Timings::new(now, now, now, None, None));
    let timed = all(TimingLayer::new("t").http().layer(pooled.clone()));
    assert_eq!(timed - all(pooled), 0);
    let before = allocations();
    let timings = Timings::new(now, now, now, None, None);
    assert_eq!(allocations() - before, 1, "one for all there is to tell");
    drop(timings);
}

#[test]
fn admission_allocates_nothing() {
    assert_eq!(counted(ShedLayer::fixed(64).layer(echo())), 0);
    assert_eq!(counted(ShedLayer::adaptive().layer(echo())), 0);
    assert_eq!(counted(ShedLayer::adaptive().http().layer(echo())), 0);
    assert_eq!(counted(ShedLayer::adaptive().grpc().layer(echo())), 0);
    let tenants = ShedLayer::adaptive()
        .partition("a", 0.5)
        .partition("b", 0.2);
    assert_eq!(counted(tenants.http().layer(echo())), 0);
}

/// Allocations of a request that waits, is granted a slot and runs.
#[tokio::test]
async fn waiting_allocates_nothing_once_the_queue_has_grown() {
    let held = ShedLayer::fixed(1).queue(Queue::fifo());
    let service = held.layer(tower::service_fn(|_: u8| {
        std::future::pending::<Result<(), BoxError>>()
    }));
    let ready = held.layer(tower::service_fn(|_: u8| {
        std::future::ready(Ok::<_, BoxError>(()))
    }));
    let mut count = 0;
    for _ in 0..20 {
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = Box::pin(service.clone().call(1));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        let before = allocations();
        {
            let mut second = std::pin::pin!(ready.clone().call(2));
            assert!(second.as_mut().poll(&mut cx).is_pending());
            let boxed = allocations();
            drop(first);
            let freed = allocations();
            assert!(second.as_mut().poll(&mut cx).is_ready());
            count = allocations() - freed + (boxed - before);
        }
    }
    assert_eq!(count, 0);
}

#[test]
fn a_method_nobody_registered_allocates_until_it_is_learned() {
    // The hundredth call is counted; by then it is.
    assert_eq!(counted(GrpcServerLayer::new().layer(echo())), 0);
    assert_eq!(counted(GrpcServerLayer::new().strict().layer(echo())), 0);
}

#[test]
fn opentelemetry_sizes_allocate_twice() {
    assert_eq!(counted(grpc().otel().layer(echo())), 2);
    assert_eq!(
        counted(grpc().otel().per_call_sizes(false).layer(echo())),
        0
    );
}

#[test]
fn an_exemplar_costs_its_text_and_its_labels() {
    let traced = grpc().exemplars(|_, _| Some("0123456789abcdef".to_owned()));
    assert_eq!(counted(traced.layer(echo())), 3);
}

/// Allocations of a flight of so many callers, whose call ends when all of them wait.
fn coalesced<K>(callers: usize, key: impl Fn(&u64) -> Option<K> + Send + Sync + 'static) -> u64
where
    K: std::hash::Hash + Eq + Send + 'static,
{
    let gate = Arc::new(Mutex::new((0, None::<Waker>)));
    let inner = gate.clone();
    let service = CoalesceLayer::new(key).layer(tower::service_fn(move |n: u64| {
        let gate = inner.clone();
        std::future::poll_fn(move |cx| {
            let mut gate = gate.lock().unwrap();
            if gate.0 == n {
                return Poll::Ready(Ok::<_, Infallible>(n));
            }
            gate.1 = Some(cx.waker().clone());
            Poll::Pending
        })
    }));
    let mut cx = Context::from_waker(Waker::noop());
    let mut count = 0;
    for round in 1..100 {
        let calls = (0..callers).map(|_| Box::pin(service.clone().call(round)));
        let mut calls: Vec<_> = calls.collect();
        let before = allocations();
        for call in &mut calls {
            assert!(call.as_mut().poll(&mut cx).is_pending());
        }
        let waker = {
            let mut gate = gate.lock().unwrap();
            gate.0 = round;
            gate.1.take()
        };
        waker.unwrap().wake();
        for call in &mut calls {
            let polled = call.as_mut().poll(&mut cx);
            assert!(matches!(polled, Poll::Ready(Ok(n)) if n == round));
        }
        count = allocations() - before;
    }
    count
}

#[test]
fn coalescing_allocates_only_what_many_share() {
    // One polled to its end at once, and one that waits.
    let layer = CoalesceLayer::new(|_: &u64| Some(7));
    let mut service = layer.layer(tower::service_fn(|n: u64| {
        std::future::ready(Ok::<_, Infallible>(n))
    }));
    let mut cx = Context::from_waker(Waker::noop());
    for n in 0..100 {
        let before = allocations();
        let mut call = pin!(service.call(n));
        assert!(call.as_mut().poll(&mut cx).is_ready());
        // The first makes what the others use again.
        assert!(n < 10 || allocations() == before, "alone, at once");
    }
    assert_eq!(coalesced(1, |_| Some(7)), 0, "alone, after a wait");
    assert_eq!(coalesced(1, |_| None::<u64>), 0, "without a key");
    let shared = "what is shared";
    assert_eq!(
        [2, 3].map(|n| coalesced(n, |_| Some(7))),
        [1, 1],
        "{shared}"
    );
    let many = [8, 16, 256].map(|n| coalesced(n, |_| Some(7)));
    assert_eq!(many, [2, 2, 2], "{shared}, and their seats");
}

/// Allocations of a request like these, answered at once.
fn steady<S, B>(mut service: S, make: fn() -> Request<Full<Bytes>>) -> u64
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    B: Body + Unpin,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut count = 0;
    for _ in 0..100 {
        let req = make();
        let before = allocations();
        assert!(service.poll_ready(&mut cx).is_ready());
        let mut call = pin!(service.call(req));
        let Poll::Ready(Ok(response)) = call.as_mut().poll(&mut cx) else {
            panic!("not at once")
        };
        let mut body = response.into_body();
        while let Poll::Ready(Some(_)) = std::pin::Pin::new(&mut body).poll_frame(&mut cx) {}
        count = allocations() - before;
    }
    count
}

#[test]
fn the_key_of_a_read_is_an_allocation_and_a_grpc_call_has_three() {
    let get = || {
        let mut req = Request::new(Full::default());
        *req.uri_mut() = http::Uri::from_static("http://localhost/page");
        req
    };
    let bare = steady(echo(), get);
    assert_eq!(steady(CoalesceLayer::http().layer(echo()), get) - bare, 1);
    let post = || {
        // Clones of it cost nothing, as those of what comes from a socket.
        let mut req = Request::new(Full::from(Bytes::from_static(b"\0\0\0\0\x05hello")));
        *req.method_mut() = http::Method::POST;
        *req.uri_mut() = http::Uri::from_static("http://localhost/pkg.Svc/Method");
        let kind = http::HeaderValue::from_static("application/grpc");
        req.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        req
    };
    let bare = steady(echo(), post);
    let listed = CoalesceLayer::grpc(["/pkg.Svc/Method"]);
    assert_eq!(steady(listed.layer(echo()), post) - bare, 3);
    let others = CoalesceLayer::grpc(["/pkg.Svc/Other"]);
    let others = steady(others.layer(echo()), post) - bare;
    assert_eq!(others, 0, "not even looked at");
}

/// Allocations of so many items that are accepted together, to their last answer, in the steady state; those of the test
/// are left out.
async fn batched<D>(layer: BatchLayer<u64, (), D>, items: u64) -> u64
where
    D: tower_flow::batch::Dedup<u64, ()>,
{
    let layer = layer.max_items(1_000).queue(2_000, None);
    let mut service = layer.layer(tower::service_fn(|_: Batch<u64>| {
        std::future::ready(Ok::<_, Infallible>(All(())))
    }));
    let mut calls = Vec::with_capacity(items as usize);
    let mut count = 0;
    for _ in 0..10 {
        let before = allocations();
        for item in 0..items {
            std::future::poll_fn(|cx| service.poll_ready(cx))
                .await
                .unwrap();
            calls.push(service.call(item));
        }
        // All of them wait, and are woken.
        std::future::poll_fn(|cx| {
            calls.retain_mut(|call| match pin!(call).poll(cx) {
                Poll::Ready(answer) => answer.is_err(),
                Poll::Pending => true,
            });
            match calls.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        count = allocations() - before;
    }
    let seen = layer.handle().snapshot();
    assert_eq!((seen.items, seen.batches), (10 * items, 10));
    count
}

/// Those of a batch are its task and tokio's, a list of its items, one of who waits for them, one of the parts it is sent
/// in, two of its answers, and three of what is woken and dropped when the lock is given back, which grow with the batch.
#[tokio::test]
async fn batching_allocates_for_the_batch_and_hardly_for_its_items() {
    let mut seen = Vec::new();
    for items in [1, 10, 100, 1_000] {
        let tasks = batched(BatchLayer::new(), items).await;
        let callers = batched(BatchLayer::new().caller_driven(), items).await;
        let distinct = batched(BatchLayer::new().dedup_by(|item: &u64| *item), items).await;
        seen.push((items, [tasks, callers, distinct]));
    }
    assert_eq!(
        seen,
        [
            (1, [11, 11, 12]),
            (10, [11, 11, 14]),
            (100, [11, 11, 17]),
            (1_000, [11, 11, 30]),
        ]
    );
}
