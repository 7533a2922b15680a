//! The tower contract: one suite that every layer passes.
//!
//! A layer joins by a [`Subject`]: the layer, how to prepare a request for it, and how to read from it how many
//! requests it believes started and are in flight.

use std::collections::VecDeque;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tower::{Layer, Service};
use tower_flow::batch::{Batch, BatchLayer};
use tower_flow::coalesce::CoalesceLayer;
use tower_flow::connection::{ConnectionState, Connections};
use tower_flow::error::Reason;
use tower_flow::grpc::{GrpcClientLayer, GrpcHandle, GrpcServerLayer};
use tower_flow::nats::{
    ErrorKind, JetStreamLag, JetStreamPublish, NatsPool, NatsRequest, NatsService, Publish,
};
use tower_flow::pool::limit::RequestLimit;
use tower_flow::preset::ByPath;
use tower_flow::profile::{ProfileHandle, ProfileLayer, Stage};
use tower_flow::shed::{AsError, Queue, Reject, ShedLayer};
use tower_flow::throttle::{ThrottleHandle, ThrottleLayer};
use tower_flow::timing::{TimingHandle, TimingLayer};
use tower_flow::{BoxError, Flow, Rejection, preset};

use crate::support::{Step, Steps, grpc_request, message, trailers};

// ===== what is inside =====

/// What the inner service does with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    /// Pending so many times, then answers.
    Answers(usize),
    Fails,
    PanicsInCall,
    PanicsInPoll,
}

/// The inner service: does as it is told, whatever the body of the request.
#[derive(Clone)]
struct Inner {
    does: Does,
    body: fn() -> Vec<Step>,
    known: bool,
    ready: Arc<Mutex<VecDeque<Poll<Result<(), BoxError>>>>>,
}

#[derive(Debug, PartialEq)]
struct Marked(&'static str);

impl Display for Marked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Marked {}

fn usual_body() -> Vec<Step> {
    vec![None, message(b"one"), None, message(b"two"), trailers("0")]
}

fn broken_body() -> Vec<Step> {
    vec![message(b"one"), Some(Err(Marked("body").into()))]
}

impl Inner {
    fn new(does: Does) -> Self {
        Self {
            does,
            body: usual_body,
            known: false,
            ready: Arc::default(),
        }
    }
}

impl<B: Body> Service<Request<B>> for Inner {
    type Response = Response<Steps>;
    type Error = BoxError;
    type Future = InnerFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.ready
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(Poll::Ready(Ok(())))
    }

    fn call(&mut self, req: Request<B>) -> InnerFuture {
        assert_ne!(self.does, Does::PanicsInCall, "told to");
        drop(req);
        let mut body = Steps::new((self.body)());
        body.known = self.known;
        body.hint = SizeHint::with_exact(16);
        InnerFuture {
            does: self.does,
            body: Some(body),
        }
    }
}

struct InnerFuture {
    does: Does,
    body: Option<Steps>,
}

impl Future for InnerFuture {
    type Output = Result<Response<Steps>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.does {
            Does::Answers(0) => {
                let response = Response::builder().header("content-type", "application/grpc");
                Poll::Ready(Ok(response.body(self.body.take().unwrap()).unwrap()))
            }
            Does::Answers(pending) => {
                *pending -= 1;
                Poll::Pending
            }
            Does::Fails => Poll::Ready(Err(Marked("call").into())),
            Does::PanicsInCall | Does::PanicsInPoll => panic!("told to"),
        }
    }
}

// ===== the suite =====

struct Subject<L> {
    layer: L,
    prepare: Box<dyn Fn(&mut Request<Steps>)>,
    started: Box<dyn Fn() -> u64>,
    in_flight: Box<dyn Fn() -> u64>,
}

impl<L> Subject<L> {
    fn service(&self, inner: Inner) -> L::Service
    where
        L: Layer<Inner>,
    {
        self.layer.layer(inner)
    }

    fn request(&self) -> Request<Steps> {
        let mut req = grpc_request("/pkg.Svc/Method");
        (self.prepare)(&mut req);
        req
    }

    fn assert_balanced(&self, started: u64, when: &str) {
        assert_eq!((self.started)(), started, "started, {when}");
        assert_eq!((self.in_flight)(), 0, "in flight, {when}");
    }
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn suite<L, B>(make: impl Fn() -> Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data = Bytes, Error = BoxError> + Unpin + Send + 'static,
{
    readiness_is_the_inner_services(make());
    the_rest(make);
}

/// All but readiness, which layers treat in one of two ways.
fn the_rest<L, B>(make: impl Fn() -> Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError> + Clone,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    errors_pass_through(make());
    a_clone_starts_fresh(make());
    bodies_pass_through(make());
    cancelling_anywhere_gives_back(make());
    a_panic_anywhere_gives_back(make());
    two_services_of_a_layer_share_state(make());
}

fn readiness_is_the_inner_services<L, B>(subject: Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
{
    let inner = Inner::new(Does::Answers(0));
    let failed = Poll::Ready(Err(Marked("ready").into()));
    *inner.ready.lock().unwrap() =
        [Poll::Pending, Poll::Pending, Poll::Ready(Ok(())), failed].into();
    let mut service = subject.service(inner.clone());
    assert!(service.poll_ready(&mut cx()).is_pending());
    assert!(service.poll_ready(&mut cx()).is_pending());
    assert!(matches!(service.poll_ready(&mut cx()), Poll::Ready(Ok(()))));
    let Poll::Ready(Err(error)) = service.poll_ready(&mut cx()) else {
        panic!("not passed through")
    };
    assert_eq!(error.downcast_ref(), Some(&Marked("ready")));
    // Polled ready and never called: nothing was taken.
    drop(service);
    subject.assert_balanced(0, "never called");
}

fn errors_pass_through<L, B>(subject: Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    let mut service = subject.service(Inner::new(Does::Fails));
    assert!(service.poll_ready(&mut cx()).is_ready());
    let mut future = Box::pin(service.call(subject.request()));
    let Poll::Ready(Err(error)) = future.as_mut().poll(&mut cx()) else {
        panic!("not passed through")
    };
    assert_eq!(error.downcast_ref(), Some(&Marked("call")));
    subject.assert_balanced(1, "the call failed, the future is still there");
    drop(future);

    let mut inner = Inner::new(Does::Answers(0));
    inner.body = broken_body;
    let mut body = answer(&mut subject.service(inner), &subject).into_body();
    assert!(matches!(
        Pin::new(&mut body).poll_frame(&mut cx()),
        Poll::Ready(Some(Ok(_)))
    ));
    let Poll::Ready(Some(Err(error))) = Pin::new(&mut body).poll_frame(&mut cx()) else {
        panic!("not passed")
    };
    assert_eq!(error.downcast_ref(), Some(&Marked("body")));
    subject.assert_balanced(2, "the body failed and is still there");
}

fn a_clone_starts_fresh<L, B>(subject: Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError> + Clone,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    let inner = Inner::new(Does::Answers(0));
    let mut service = subject.service(inner.clone());
    // Many clones that were polled ready and never called.
    let mut idle: Vec<_> = (0..100).map(|_| service.clone()).collect();
    for clone in &mut idle {
        assert!(clone.poll_ready(&mut cx()).is_ready());
    }
    drop(answer(&mut service, &subject));
    drop(answer(&mut service.clone(), &subject));
    drop(idle);
    subject.assert_balanced(2, "clones");
}

fn bodies_pass_through<L, B>(subject: Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    for known in [false, true] {
        let mut inner = Inner::new(Does::Answers(1));
        inner.known = known;
        let mut ours = answer(&mut subject.service(inner.clone()), &subject).into_body();
        let mut theirs = Steps::new(usual_body());
        theirs.known = known;
        for step in 0..7 {
            assert_eq!(ours.is_end_stream(), theirs.is_end_stream(), "step {step}");
            assert_eq!(ours.size_hint().exact(), Some(16), "step {step}");
            let ours = Pin::new(&mut ours).poll_frame(&mut cx());
            let theirs = Pin::new(&mut theirs).poll_frame(&mut cx());
            assert_eq!(shown(ours), shown(theirs), "step {step}");
        }
    }
    // An empty body that says so: one HEADERS frame and no more.
    let mut inner = Inner::new(Does::Answers(0));
    inner.known = true;
    inner.body = Vec::new;
    assert!(
        answer(&mut subject.service(inner), &subject)
            .body()
            .is_end_stream()
    );
    subject.assert_balanced(3, "bodies that ended");
}

fn shown(polled: Poll<Option<Result<Frame<Bytes>, BoxError>>>) -> String {
    format!("{polled:?}")
}

/// How far a request gets before it is dropped.
#[derive(Debug, Clone, Copy)]
enum Drops {
    Future { polls: usize },
    Body { polls: usize },
}

fn cancelling_anywhere_gives_back<L, B>(subject: Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    cancelling_from(subject, 0);
}

/// The same, for futures that were polled so often at least: some layers count from the first poll on.
fn cancelling_from<L, B>(subject: Subject<L>, first: usize)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    let futures = (first..4).map(|polls| Drops::Future { polls });
    let bodies = (0..8).map(|polls| Drops::Body { polls });
    for (n, drops) in futures.chain(bodies).enumerate() {
        let mut service = subject.service(Inner::new(Does::Answers(4)));
        assert!(service.poll_ready(&mut cx()).is_ready());
        let mut future = Box::pin(service.call(subject.request()));
        let counted = u64::from(first == 0);
        assert!((subject.in_flight)() == counted, "counted from the call on");
        match drops {
            Drops::Future { polls } => {
                for _ in 0..polls {
                    assert!(future.as_mut().poll(&mut cx()).is_pending());
                }
                drop(future);
            }
            Drops::Body { polls } => {
                let response = loop {
                    if let Poll::Ready(response) = future.as_mut().poll(&mut cx()) {
                        break response.unwrap();
                    }
                };
                let mut body = response.into_body();
                for _ in 0..polls {
                    let _ = Pin::new(&mut body).poll_frame(&mut cx());
                }
                drop(body);
            }
        }
        subject.assert_balanced(n as u64 + 1, &format!("{drops:?}"));
    }
}

fn a_panic_anywhere_gives_back<L, B>(subject: Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    for (n, does) in [Does::PanicsInCall, Does::PanicsInPoll]
        .into_iter()
        .enumerate()
    {
        let mut service = subject.service(Inner::new(does));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            assert!(service.poll_ready(&mut cx()).is_ready());
            let mut future = Box::pin(service.call(subject.request()));
            let _ = future.as_mut().poll(&mut cx());
        }));
        assert!(panicked.is_err(), "{does:?} is the caller's to see");
        subject.assert_balanced(n as u64 + 1, &format!("{does:?}"));
    }
    let mut service = subject.service(Inner::new(Does::Answers(0)));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut body = answer(&mut service, &subject).into_body();
        let _ = Pin::new(&mut body).poll_frame(&mut cx());
        panic!("the consumer panics");
    }));
    assert!(panicked.is_err());
    subject.assert_balanced(3, "a panic with the body in hand");
}

fn two_services_of_a_layer_share_state<L, B>(subject: Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    for _ in 0..2 {
        drop(answer(
            &mut subject.service(Inner::new(Does::Answers(0))),
            &subject,
        ));
    }
    subject.assert_balanced(2, "two services");
}

fn answer<S, B, L>(service: &mut S, subject: &Subject<L>) -> Response<B>
where
    S: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
{
    assert!(matches!(service.poll_ready(&mut cx()), Poll::Ready(Ok(()))));
    let mut future = Box::pin(service.call(subject.request()));
    loop {
        if let Poll::Ready(response) = future.as_mut().poll(&mut cx()) {
            return response.unwrap();
        }
    }
}

// ===== the subjects =====

fn timing<L>(layer: L, handle: TimingHandle) -> Subject<L> {
    let read = handle.clone();
    Subject {
        layer,
        prepare: Box::new(|_| {}),
        started: Box::new(move || handle.snapshot().iter().map(|route| route.started).sum()),
        in_flight: Box::new(move || read.snapshot().iter().map(|route| route.in_flight).sum()),
    }
}

fn profile<L>(layer: L, handle: ProfileHandle) -> Subject<L> {
    // A call is counted when it is made; nothing is held until its end.
    let calls = move || {
        let routes = handle.snapshot();
        let stages = routes.iter().flat_map(|route| &route.stages);
        let calls = stages.filter(|stage| stage.stage == Stage::Call);
        calls.map(|stage| stage.polls).sum()
    };
    Subject {
        layer,
        prepare: Box::new(|_| {}),
        started: Box::new(calls),
        in_flight: Box::new(|| 0),
    }
}

#[test]
fn profile_keeps_it() {
    fn all<L, B>(make: impl Fn() -> Subject<L>)
    where
        L: Layer<Inner>,
        L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError> + Clone,
        B: Body<Data = Bytes, Error = BoxError> + Unpin,
    {
        readiness_is_the_inner_services(make());
        errors_pass_through(make());
        a_clone_starts_fresh(make());
        bodies_pass_through(make());
        a_panic_anywhere_gives_back(make());
        two_services_of_a_layer_share_state(make());
    }
    all(|| {
        let layer = ProfileLayer::new("t");
        let handle = layer.handle();
        profile(layer, handle)
    });
    all(|| {
        let layer = ProfileLayer::new("t").route_with(ByPath).delay_every(1);
        let handle = layer.handle();
        profile(layer.http(), handle)
    });
}

fn grpc<L>(layer: L, handle: GrpcHandle) -> Subject<L> {
    let read = handle.clone();
    Subject {
        layer,
        prepare: Box::new(|_| {}),
        started: Box::new(move || handle.snapshot().iter().map(|method| method.started).sum()),
        in_flight: Box::new(move || read.snapshot().iter().map(|method| method.in_flight).sum()),
    }
}

#[test]
fn timing_keeps_it() {
    // The generic form ends with the response, so what happens to bodies is not its concern: the suite's counts hold
    // all the same, since a body never keeps it in flight.
    suite_of_generic(|| {
        let layer = TimingLayer::new("t");
        let handle = layer.handle();
        timing(layer, handle)
    });
}

/// The part of the suite that fits a layer which ends with the response future.
fn suite_of_generic<L>(make: impl Fn() -> Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<Steps>, Error = BoxError>
        + Clone
        + Send
        + Sync
        + 'static,
{
    readiness_is_the_inner_services(make());
    errors_pass_through(make());
    a_clone_starts_fresh(make());
    bodies_pass_through(make());
    cancelling_anywhere_gives_back(make());
    a_panic_anywhere_gives_back(make());
    two_services_of_a_layer_share_state(make());
}

#[test]
fn http_timing_keeps_it() {
    suite(|| {
        let layer = TimingLayer::new("t").route_with(ByPath);
        let handle = layer.handle();
        timing(layer.http(), handle)
    });
    suite(|| {
        let layer = TimingLayer::new("t");
        let handle = layer.handle();
        timing(layer.http().grpc(), handle)
    });
}

#[test]
fn grpc_keeps_it() {
    suite(|| {
        let layer = GrpcServerLayer::new();
        let handle = layer.handle();
        grpc(layer, handle)
    });
    suite(|| {
        let layer = GrpcClientLayer::new()
            .both()
            .phases(true)
            .exemplars(|_, _| Some("t".into()));
        let handle = layer.handle();
        grpc(layer, handle)
    });
}

fn shed<T, P>(layer: ShedLayer<T, P>) -> Subject<ShedLayer<T, P>> {
    let (handle, read) = (layer.handle(), layer.handle());
    Subject {
        layer,
        prepare: Box::new(|_| {}),
        started: Box::new(move || handle.snapshot().admitted.iter().sum()),
        in_flight: Box::new(move || read.snapshot().in_flight as u64),
    }
}

/// Shedding is always ready and awaits its service's readiness in the future; all else is as it is for others.
#[test]
fn shed_keeps_it() {
    suite_of_ready(|| shed(ShedLayer::adaptive()));
    suite_of_ready(|| shed(ShedLayer::adaptive().http()));
    suite_of_ready(|| shed(ShedLayer::fixed(1).queue(Queue::none()).http()));
    suite_of_ready(|| shed(ShedLayer::adaptive().grpc()));
    suite_of_ready(|| {
        shed(
            ShedLayer::adaptive()
                .grpc()
                .reject(Reject::<AsError>::error()),
        )
    });
}

/// The suite for a layer that holds its slots to the end of the body.
fn suite_of_ready<L, B>(make: impl Fn() -> Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data = Bytes, Error = BoxError> + Unpin + Send + 'static,
{
    readiness_is_awaited_inside(make());
    the_rest(make);
}

fn readiness_is_awaited_inside<L, B>(subject: Subject<L>)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
{
    let inner = Inner::new(Does::Answers(0));
    let failed = Poll::Ready(Err(Marked("ready").into()));
    *inner.ready.lock().unwrap() = [Poll::Pending, Poll::Ready(Ok(())), failed].into();
    let mut service = subject.service(inner.clone());
    assert!(matches!(service.poll_ready(&mut cx()), Poll::Ready(Ok(()))));
    let polls = inner.ready.lock().unwrap().len();
    assert_eq!(polls, 3, "the inner service was not asked");
    let mut future = Box::pin(service.call(subject.request()));
    assert!(future.as_mut().poll(&mut cx()).is_pending());
    assert_eq!((subject.in_flight)(), 1);
    assert!(matches!(
        future.as_mut().poll(&mut cx()),
        Poll::Ready(Ok(_))
    ));
    drop(future);
    let mut future = Box::pin(service.call(subject.request()));
    let Poll::Ready(Err(error)) = future.as_mut().poll(&mut cx()) else {
        panic!("not passed through")
    };
    assert_eq!(error.downcast_ref(), Some(&Marked("ready")));
    subject.assert_balanced(2, "not ready is an end too, with the future still there");
}

/// Limited requests wait as shed ones do, in their futures.
#[test]
fn request_limits_keep_it() {
    suite_of_ready(|| {
        let layer = RequestLimit::new(1);
        let (handle, read) = (layer.handle(), layer.handle());
        Subject {
            layer,
            prepare: Box::new(|_| {}),
            started: Box::new(move || handle.snapshot().granted),
            in_flight: Box::new(move || read.snapshot().held as u64),
        }
    });
}

#[test]
fn the_shedding_presets_keep_it() {
    suite_of_ready(|| {
        let accounting = GrpcServerLayer::new();
        let handle = accounting.handle();
        let flow = Flow::new("contract");
        let shed = ShedLayer::adaptive().grpc();
        grpc(preset::grpc_server_with(accounting, shed, &flow), handle)
    });
}

#[test]
fn the_server_preset_keeps_it() {
    suite(|| {
        let layer = preset::grpc_server_observed(&Flow::new("contract"));
        let handle = layer.handle();
        grpc(layer, handle)
    });
}

#[test]
fn the_client_preset_keeps_it() {
    suite(|| {
        let layer = GrpcClientLayer::new();
        let handle = layer.handle();
        let flow = Flow::new("contract");
        let throttle = ThrottleLayer::new("contract");
        grpc(preset::grpc_client_with(layer, throttle, &flow), handle)
    });
}

fn throttle<L>(layer: L, handle: ThrottleHandle) -> Subject<L> {
    let read = handle.clone();
    Subject {
        layer,
        prepare: Box::new(|_| {}),
        started: Box::new(move || {
            let all = handle.snapshot();
            all.iter()
                .map(|backend| backend.requests + backend.pending)
                .sum()
        }),
        in_flight: Box::new(move || read.snapshot().iter().map(|backend| backend.pending).sum()),
    }
}

#[test]
fn throttle_keeps_it() {
    suite_of_generic(|| {
        let layer = ThrottleLayer::new("t");
        let handle = layer.handle();
        throttle(layer, handle)
    });
}

#[test]
fn http_throttle_keeps_it() {
    suite(|| {
        let layer = ThrottleLayer::new("t");
        let handle = layer.handle();
        throttle(layer.http(), handle)
    });
}

#[test]
fn grpc_throttle_keeps_it() {
    suite(|| {
        let layer = ThrottleLayer::new("t");
        let handle = layer.handle();
        throttle(layer.grpc(), handle)
    });
}

#[test]
fn connection_streams_keep_it() {
    suite(|| {
        let connections = Connections::server("contract");
        let layer = connections.streams();
        let open = Arc::new(connections.accept(std::io::empty()));
        let connection = open.connection().clone();
        let (started, in_flight) = (connection.clone(), connection.clone());
        Subject {
            layer,
            prepare: Box::new(move |req| {
                let _ = &open;
                req.extensions_mut().insert(connection.clone());
            }),
            started: Box::new(move || started.streams()),
            in_flight: Box::new(move || match in_flight.state() {
                ConnectionState::Active(open) => open,
                _ => 0,
            }),
        }
    });
}

/// Coalescing is always ready too, and a request is in a flight from its first poll to its response. One that nobody
/// follows is as if the layer were not there.
#[test]
fn coalesce_keeps_it() {
    let subject = || {
        let layer = CoalesceLayer::http();
        let (handle, read) = (layer.handle(), layer.handle());
        Subject {
            layer,
            prepare: Box::new(|req| {
                *req.method_mut() = http::Method::GET;
                *req.body_mut() = Steps::default().known();
            }),
            started: Box::new(move || handle.snapshot().leaders),
            in_flight: Box::new(move || read.snapshot().flights),
        }
    };
    readiness_is_awaited_inside(subject());
    errors_pass_through(subject());
    a_clone_starts_fresh(subject());
    bodies_pass_through(subject());
    cancelling_from(subject(), 1);
    a_panic_anywhere_gives_back(subject());
    two_services_of_a_layer_share_state(subject());
}

/// Batches of one, each done by what is inside.
struct InBatches(BatchLayer<Request<Steps>>);

/// Unlike what is inside it wakes: batches are polled when they are woken, not with those who wait for them.
struct Woken<T>(T);

impl Layer<Inner> for InBatches {
    type Service = <BatchLayer<Request<Steps>> as Layer<Woken<Inner>>>::Service;

    fn layer(&self, inner: Inner) -> Self::Service {
        self.0.layer(Woken(inner))
    }
}

impl Clone for Woken<Inner> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

fn woken<T>(poll: Poll<T>, cx: &mut Context<'_>) -> Poll<T> {
    if poll.is_pending() {
        cx.waker().wake_by_ref();
    }
    poll
}

impl Service<Batch<Request<Steps>>> for Woken<Inner> {
    type Response = Vec<Result<Response<Steps>, BoxError>>;
    type Error = BoxError;
    type Future = Woken<InnerFuture>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let ready = Service::<Request<Steps>>::poll_ready(&mut self.0, cx);
        woken(ready, cx)
    }

    fn call(&mut self, reqs: Batch<Request<Steps>>) -> Self::Future {
        assert_eq!(reqs.len(), 1);
        let req = reqs.into_iter().next().unwrap();
        Woken(self.0.call(req))
    }
}

impl Future for Woken<InnerFuture> {
    type Output = Result<Vec<Result<Response<Steps>, BoxError>>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.0).poll(cx);
        woken(polled, cx).map_ok(|response| vec![Ok(response)])
    }
}

/// Batching is ready while there is room to wait, and an item is in flight from the call to its answer. One that is alone in
/// its batch is as if the layer were not there, but for two things: who leaves a batch that was sent is in flight no more,
/// while the batch is; and a panic is an answer, since a batch is nobody's own.
#[test]
fn batch_keeps_it() {
    let subject = || {
        let layer = BatchLayer::new().caller_driven();
        let (handle, read) = (layer.handle(), layer.handle());
        Subject {
            layer: InBatches(layer),
            prepare: Box::new(|_| {}),
            started: Box::new(move || handle.snapshot().items),
            in_flight: Box::new(move || {
                let now = read.snapshot();
                now.items - now.results.iter().map(|(_, count)| count).sum::<u64>()
            }),
        }
    };
    readiness_is_awaited_inside(subject());
    errors_pass_through(subject());
    a_clone_starts_fresh(subject());
    bodies_pass_through(subject());
    let left = subject();
    let handle = left.layer.0.handle();
    cancelling_anywhere_gives_back(left);
    let now = handle.snapshot();
    assert_eq!(
        (now.queued, now.in_flight),
        (0, 0),
        "later callers drove what was left"
    );
    two_services_of_a_layer_share_state(subject());
    for does in [Does::PanicsInCall, Does::PanicsInPoll] {
        let subject = subject();
        let mut service = subject.service(Inner::new(does));
        assert!(service.poll_ready(&mut cx()).is_ready());
        let mut future = Box::pin(service.call(subject.request()));
        let Poll::Ready(Err(error)) = future.as_mut().poll(&mut cx()) else {
            panic!("{does:?} is an answer")
        };
        let rejection = Rejection::find(&*error).unwrap();
        assert_eq!(rejection.reason(), Reason::Panicked, "{does:?}");
        subject.assert_balanced(1, &format!("{does:?}"));
    }
}

// ===== clients, which have nothing inside =====

/// `service` is not ready, and a call without readiness, a clone, and whatever is dropped leave it as it was.
async fn a_client_that_is_not_connected_keeps_it<S, R>(service: S, req: impl Fn() -> R)
where
    S: Service<R, Error = tower_flow::nats::Error> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    let mut polled = service.clone();
    assert!(polled.poll_ready(&mut cx()).is_pending());
    let mut clone = polled.clone();
    assert!(clone.poll_ready(&mut cx()).is_pending(), "it starts fresh");
    drop(polled);
    // Never polled, and polled once: before it could be sent.
    drop(clone.call(req()));
    let mut once = Box::pin(clone.call(req()));
    assert!(once.as_mut().poll(&mut cx()).is_pending());
    drop(once);
    let Err(error) = tokio::spawn(clone.call(req())).await.unwrap() else {
        panic!("there is no connection");
    };
    let kind = error.kind();
    assert_eq!(kind, ErrorKind::Disconnected { sent: false });
    assert!(error.is_retryable() && !error.to_string().is_empty());
    assert!(clone.poll_ready(&mut cx()).is_pending(), "as it was");
}

/// What a real server does to them is in `nats/`.
#[tokio::test]
async fn nats_clients_keep_it() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<JetStreamLag>();
    // Nobody listens on port 1.
    let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
    let client = options.connect("nats://127.0.0.1:1").await.unwrap();
    let request = || NatsRequest::new("nobody");
    a_client_that_is_not_connected_keeps_it(NatsService::new(client.clone()), request).await;
    let publish = JetStreamPublish::new(async_nats::jetstream::new(client));
    let batch = || Batch::new([Publish::new("nobody", "x")]);
    a_client_that_is_not_connected_keeps_it(publish, batch).await;

    let mut pool = NatsPool::builder("nats://127.0.0.1:1").build();
    let handle = pool.handle();
    for polls in 0..3 {
        assert!(pool.poll_ready(&mut cx()).is_ready(), "it will connect");
        let mut clone = pool.clone();
        assert!(clone.poll_ready(&mut cx()).is_ready());
        let mut future = Box::pin(clone.call(request()));
        for _ in 0..polls {
            let _ = future.as_mut().poll(&mut cx());
        }
        drop(future);
        let now = handle.stats();
        assert_eq!(
            (now.acquired, now.in_flight, now.waiting),
            (now.released, 0, 0)
        );
        assert_eq!(now.results, [("cancelled", polls + 1)]);
    }
    let error = tokio::spawn(pool.call(request())).await.unwrap();
    let error = error.expect_err("there is no server");
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(
        std::error::Error::source(&error).is_some(),
        "with its cause"
    );
}
