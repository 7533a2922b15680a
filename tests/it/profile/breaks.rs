//! What fresh readers broke, and what was mended.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Body, Frame};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_flow::profile::{CpuUsage, ProfileHandle, ProfileLayer, SchedulerUsage, Stage};
use tower_flow::{BoxError, Flow};

use super::{MS, compute};

fn busy(handle: &ProfileHandle, stage: Stage) -> Duration {
    let all = handle.snapshot();
    all.iter()
        .flat_map(|route| &route.stages)
        .filter(|found| found.stage == stage)
        .map(|found| found.busy)
        .sum()
}

#[tokio::test(start_paused = true)]
async fn time_is_billed_once_when_the_call_was_made_in_another_task() {
    let outer = ProfileLayer::new("outer");
    let inner = ProfileLayer::new("inner").every(16);
    let (of_outer, of_inner) = (outer.handle(), inner.handle());
    let inner = inner.layer(service_fn(async |_: u32| {
        compute(MS);
        Ok::<_, BoxError>(())
    }));
    // What tower's Buffer does: a worker calls, the caller polls the future it gets back.
    let buffered = service_fn(move |n: u32| {
        let mut inner = inner.clone();
        async move {
            let (future, called) = tokio::sync::oneshot::channel();
            tokio::spawn(async move { future.send(inner.call(n)).ok() });
            called.await.unwrap().await
        }
    });
    let service = outer.layer(buffered);
    let calls = 4_000u32;
    for n in 0..calls {
        service.clone().oneshot(n).await.unwrap();
    }
    let (a, b) = (
        busy(&of_outer, Stage::Future),
        busy(&of_inner, Stage::Future),
    );
    let all = (a + b).as_secs_f64() / (f64::from(calls) * 1e-3);
    assert!(
        (0.8..1.2).contains(&all),
        "billed {all:.2} times: outer {a:?}, inner {b:?}"
    );
}

#[test]
fn a_share_is_no_more_than_all() {
    let layer = ProfileLayer::new("t");
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |_: u8| {
        let end = std::time::Instant::now() + 60 * MS;
        while std::time::Instant::now() < end {}
        std::thread::sleep(500 * MS);
        Ok::<_, BoxError>(())
    }));
    service.oneshot(1).now_or_never().unwrap().unwrap();
    let share = handle.hot()[0].share.unwrap();
    assert!(share <= 1.1, "{share}");
}

#[test]
fn usage_attached_twice_is_not_twice_the_usage() {
    let number = |flow: &Flow, name: &str| -> f64 {
        let text = String::from_utf8(flow.encode(tower_flow::metrics::Format::Classic)).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let flow = Flow::new("t");
    let (_a, _b) = (CpuUsage::new().attach(&flow), CpuUsage::new().attach(&flow));
    let of = || SchedulerUsage::of("main", runtime.handle()).attach(&flow);
    let (_c, _d) = (of(), of());
    runtime.spawn(async { std::thread::sleep(Duration::from_secs(1)) });
    std::thread::sleep(400 * MS);
    let _first = flow.encode(tower_flow::metrics::Format::Classic);
    std::thread::sleep(200 * MS);
    let cores = number(&flow, "tower_flow_cpu_available_cores ");
    let busy = number(&flow, "tower_flow_scheduler_busy_ratio{");
    let real = std::thread::available_parallelism().unwrap().get() as f64;
    assert!(
        cores <= real && busy <= 1.0,
        "{cores} of {real} cores, {busy} busy"
    );
}

#[tokio::test]
async fn a_body_that_is_kept_keeps_no_task() {
    struct Task;
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let layer = ProfileLayer::new("t").delay_every(1);
    let service = layer.http().layer(service_fn(async |_: http::Request<()>| {
        tokio::task::yield_now().await;
        Ok::<_, BoxError>(http::Response::new(http_body_util::Full::new(Bytes::from(
            "x",
        ))))
    }));
    let task = Arc::new(Task);
    let waker = Waker::from(task.clone());
    let mut call = Box::pin(service.oneshot(http::Request::new(())));
    let response = loop {
        match call.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(response) => break response.unwrap(),
            Poll::Pending => tokio::task::yield_now().await,
        }
    };
    drop((call, waker));
    tokio::task::yield_now().await;
    assert_eq!(
        Arc::strong_count(&task),
        1,
        "held by the body: {response:?}"
    );
}

#[test]
fn a_task_nobody_can_wake_is_dropped() {
    type Queue = Arc<Mutex<VecDeque<Arc<Task>>>>;
    struct Task {
        future: Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>,
        queue: Queue,
    }
    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            let queue = self.queue.clone();
            queue.lock().unwrap().push_back(self);
        }
    }
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    for delays in [0, 1] {
        let dropped = Arc::new(AtomicUsize::new(0));
        let layer = ProfileLayer::new("t").delay_every(delays);
        let guard = Dropped(dropped.clone());
        let service = layer.layer(service_fn(move |_: u8| {
            let dropped = dropped_of(&guard);
            async move {
                let _guard = dropped;
                std::future::pending::<()>().await;
                Ok::<_, BoxError>(())
            }
        }));
        fn dropped_of(guard: &Dropped) -> Dropped {
            Dropped(guard.0.clone())
        }
        let queue = Queue::default();
        let call = service.oneshot(1).map(drop);
        let task = Arc::new(Task {
            future: Mutex::new(Box::pin(call)),
            queue: queue.clone(),
        });
        task.wake();
        loop {
            let Some(task) = queue.lock().unwrap().pop_front() else {
                break;
            };
            let waker = Waker::from(task.clone());
            let _polled = task
                .future
                .lock()
                .unwrap()
                .as_mut()
                .poll(&mut Context::from_waker(&waker));
        }
        // The guard of the future, and the one in the service.
        assert_eq!(
            dropped.load(Ordering::Relaxed),
            2,
            "delay_every({delays}): the task is leaked"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_its_time_is_no_wake_delay() {
    struct Late(bool);
    impl Body for Late {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Ready(
                (!std::mem::replace(&mut self.0, true)).then(|| Ok(Frame::data(Bytes::from("x")))),
            )
        }
    }
    let layer = ProfileLayer::new("t").delay_every(1);
    let handle = layer.handle();
    let service = layer.http().layer(service_fn(|_: http::Request<()>| {
        std::future::poll_fn(|cx| {
            // As FuturesUnordered, select and cooperative budgets do.
            cx.waker().wake_by_ref();
            Poll::Ready(Ok::<_, BoxError>(http::Response::new(Late(false))))
        })
    }));
    let response = service.oneshot(http::Request::new(())).await.unwrap();
    tokio::time::advance(Duration::from_secs(30)).await;
    http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap();
    let delay = handle.snapshot()[0].max_wake_delay;
    assert!(
        delay.is_none_or(|delay| delay < Duration::from_secs(1)),
        "{delay:?}"
    );
}

#[test]
fn a_slow_poll_costs_the_same_with_many_routes() {
    let mut costs = Vec::new();
    for routes in [1, 4096] {
        let layer = ProfileLayer::new("t")
            .route_by(|name: &String| name.as_str())
            .max_routes(routes)
            .slow(Duration::ZERO);
        let mut service = layer.layer(service_fn(|_: String| {
            std::future::ready(Ok::<_, BoxError>(()))
        }));
        for n in 0..routes {
            service
                .call(format!("/route/{n}"))
                .now_or_never()
                .unwrap()
                .unwrap();
        }
        let start = std::time::Instant::now();
        for _ in 0..200 {
            service
                .call("/route/0".to_owned())
                .now_or_never()
                .unwrap()
                .unwrap();
        }
        costs.push(start.elapsed() / 400);
    }
    assert!(
        costs[1] < 5 * costs[0],
        "a poll takes {costs:?} with 1 and 4,096 routes"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_no_wake_delay() {
    struct Ticks(tokio::sync::mpsc::Receiver<Bytes>);
    impl Body for Ticks {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0
                .poll_recv(cx)
                .map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }
    let layer = ProfileLayer::new("t").delay_every(1);
    let handle = layer.handle();
    let (send, receive) = tokio::sync::mpsc::channel(8);
    let receive = Mutex::new(Some(Ticks(receive)));
    let service = layer.http().layer(service_fn(move |_: http::Request<()>| {
        let body = receive.lock().unwrap().take().unwrap();
        async move { Ok::<_, BoxError>(http::Response::new(body)) }
    }));
    let response = service.oneshot(http::Request::new(())).await.unwrap();
    let mut body = Box::pin(response.into_body());
    // The consumer asks for a frame, and there is none.
    assert!(
        futures_util::poll!(std::future::poll_fn(|cx| body.as_mut().poll_frame(cx))).is_pending()
    );
    send.send(Bytes::from("x")).await.unwrap();
    // Its task runs at once, and has no window for the next 30 s.
    tokio::time::advance(Duration::from_secs(30)).await;
    let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
    assert!(frame.is_some());
    let delay = handle.snapshot()[0].max_wake_delay;
    assert!(
        delay.is_none_or(|delay| delay < Duration::from_secs(1)),
        "{delay:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_route_that_is_never_served_has_a_name() {
    let layer = ProfileLayer::new("t")
        .route_by(|name: &&'static str| name)
        .slow(MS);
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |_: &'static str| {
        compute(100 * MS);
        Err::<(), BoxError>("it always fails".into())
    }));
    for _ in 0..5 {
        service.clone().oneshot("report").await.unwrap_err();
    }
    let routes: Vec<_> = handle
        .slow_polls()
        .into_iter()
        .map(|poll| poll.route)
        .collect();
    assert!(
        routes.iter().any(|route| **route == *"report"),
        "{routes:?}"
    );
}
