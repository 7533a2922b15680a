//! Poll times, hot paths, and what the process uses: the layer in whole stacks, and over a real server.

mod breaks;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Request;
use http_body_util::BodyExt;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_flow::inspect::{Inspect, Role, Value};
use tower_flow::preset::ByPath;
use tower_flow::profile::{
    CpuUsage, PollsSnapshot, ProfileHandle, ProfileLayer, SchedulerUsage, Stage,
};
use tower_flow::signal::Signal;
use tower_flow::{BoxError, Flow, clock};

use crate::interop::{
    Empty, ResponseParameters, StreamingOutputCallRequest, TestServiceClient, service,
};
use crate::support::{grpc_request, grpc_response, message, trailers};

const MS: Duration = Duration::from_millis(1);

/// Moves the paused clock within a poll, as if it had computed.
fn compute(time: Duration) {
    let _moved = tokio::time::advance(time).now_or_never();
}

fn route(handle: &ProfileHandle, name: &str) -> PollsSnapshot {
    let all = handle.snapshot();
    let found = all.iter().find(|route| route.route == name);
    found
        .unwrap_or_else(|| panic!("no route {name}: {all:?}"))
        .clone()
}

/// Busy and total time of one stage.
fn times(handle: &ProfileHandle, name: &str, stage: Stage) -> (u64, Duration, Duration) {
    let route = route(handle, name);
    let found = route.stages.iter().find(|found| found.stage == stage);
    found.map_or((0, Duration::ZERO, Duration::ZERO), |found| {
        (found.polls, found.busy, found.total)
    })
}

#[tokio::test(start_paused = true)]
async fn each_layer_is_billed_what_it_took_itself() {
    let flow = Flow::new("t");
    let server = ProfileLayer::new("server").attach(&flow);
    let handler = ProfileLayer::new("handler").attach(&flow);
    let (outer, inner) = (server.handle(), handler.handle());
    let service = service_fn(async |_: u8| {
        compute(3 * MS);
        tokio::task::yield_now().await;
        compute(5 * MS);
        Ok::<_, BoxError>(())
    });
    let mut service = ServiceBuilder::new()
        .layer(server)
        .map_future(|future| async move {
            compute(7 * MS);
            future.await
        })
        .layer(handler)
        .service(service);
    service.ready().await.unwrap().call(1).await.unwrap();
    assert_eq!(times(&inner, "handler", Stage::Future), (2, 8 * MS, 8 * MS));
    assert_eq!(times(&outer, "server", Stage::Future), (2, 7 * MS, 15 * MS));
    let calls = times(&outer, "server", Stage::Call);
    assert_eq!(calls, (1, Duration::ZERO, Duration::ZERO));
    // The handler took more than what is round it.
    let hot = inner.hot();
    assert_eq!((&*hot[0].layer, hot[0].stage), ("handler", "future"));
    assert_eq!(hot[0].busy, 8 * MS);
    assert_eq!(hot[0].max, 5 * MS);
}

#[tokio::test(start_paused = true)]
async fn slow_polls_are_named() {
    let layer = ProfileLayer::new("api")
        .route_by(|name: &&'static str| name)
        .slow(10 * MS);
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |name: &'static str| {
        compute(if name == "report" { 40 * MS } else { 10 * MS });
        Ok::<_, BoxError>(())
    }));
    for _ in 0..2 {
        for name in ["list", "report"] {
            service.clone().oneshot(name).await.unwrap();
        }
    }
    // The first was no route yet, and had the name all the same.
    let slow = handle.slow_polls();
    let routes: Vec<_> = slow.iter().map(|poll| (&*poll.route, poll.took)).collect();
    assert_eq!(routes, [("report", 40 * MS), ("report", 40 * MS)]);
    let stage = route(&handle, "report").stages[1].clone();
    assert_eq!((stage.slow, stage.max), (1, 40 * MS));
    assert_eq!(route(&handle, "list").stages[1].slow, 0);
    // They are kept in bounds.
    for _ in 0..100 {
        service.clone().oneshot("report").await.unwrap();
    }
    assert_eq!(handle.slow_polls().len(), 32);
}

#[tokio::test(start_paused = true)]
async fn the_wait_between_wake_up_and_poll_is_told() {
    let layer = ProfileLayer::new("t").delay_every(1);
    let handle = layer.handle();
    let notify = Arc::new(tokio::sync::Notify::new());
    let waits = notify.clone();
    let mut call = tokio_test::task::spawn(
        layer
            .layer(service_fn(move |_: u8| {
                let waits = waits.clone();
                async move {
                    waits.notified().await;
                    Ok::<_, BoxError>(())
                }
            }))
            .oneshot(1),
    );
    assert!(call.poll().is_pending());
    tokio::time::advance(100 * MS).await;
    assert!(!call.is_woken());
    notify.notify_waiters();
    assert!(call.is_woken(), "the wake-up is passed on");
    tokio::time::advance(25 * MS).await;
    assert!(call.poll().is_ready());
    let t = route(&handle, "t");
    assert_eq!(
        (t.wake_delay, t.max_wake_delay),
        (Some(25 * MS), Some(25 * MS))
    );
}

#[tokio::test(start_paused = true)]
async fn one_in_so_many_is_an_estimate_without_bias() {
    let outer = ProfileLayer::new("outer").every(16);
    let inner = ProfileLayer::new("inner").every(3);
    let (of_outer, of_inner) = (outer.handle(), inner.handle());
    let service = ServiceBuilder::new()
        .layer(outer)
        .layer(inner)
        .service(service_fn(async |_: u32| {
            compute(MS);
            Ok::<_, BoxError>(())
        }));
    let calls = 40_000;
    for n in 0..calls {
        service.clone().oneshot(n).await.unwrap();
    }
    let (polls, own, total) = times(&of_outer, "outer", Stage::Future);
    // The standard deviation is sqrt(16 * 40,000) = 800.
    assert!((36_000..44_000).contains(&polls), "{polls}");
    assert_eq!(
        (own, total),
        (Duration::ZERO, MS * u32::try_from(polls).unwrap())
    );
    let inside = times(&of_inner, "inner", Stage::Future);
    assert_eq!(
        (inside.0, inside.1),
        (polls, total),
        "they look at the same calls"
    );
}

#[tokio::test(start_paused = true)]
async fn off_is_off_and_the_knob_turns_it_on() {
    let layer = ProfileLayer::new("t").every(0);
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |_: u8| Ok::<_, BoxError>(())));
    service.clone().oneshot(1).await.unwrap();
    assert_eq!(times(&handle, "t", Stage::Future).0, 0);
    handle.turn("every", &Value::from(1u64)).unwrap();
    service.clone().oneshot(1).await.unwrap();
    assert_eq!(times(&handle, "t", Stage::Future).0, 1);
    for (name, to) in [
        ("every", Value::Null),
        ("every", Value::from(1u64 << 40)),
        ("every", Value::from(1.5)),
        ("else", Value::from(1u64)),
    ] {
        let refused = handle.turn(name, &to).unwrap_err().to_string();
        assert!(refused.len() > 10, "{refused}");
    }
    assert_eq!(handle.knobs()[0].value, Value::from(1u64));
}

#[tokio::test]
async fn a_layer_that_is_off_asks_for_no_route() {
    let asked = AtomicUsize::new(0);
    let layer = ProfileLayer::new("t")
        .every(0)
        .route_by(|name: &&'static str| {
            asked.fetch_add(1, Ordering::Relaxed);
            name
        });
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |_: &'static str| Ok::<_, BoxError>(())));
    service.clone().oneshot("a").await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    handle.set_every(1);
    service.clone().oneshot("a").await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_scanner_makes_no_routes() {
    let layer = ProfileLayer::new("api").route_with(ByPath).max_routes(3);
    let handle = layer.handle();
    let http = layer.http();
    let service = http.layer(service_fn(async |req: Request<_>| {
        let known = req.uri().path().starts_with("/pkg.Svc/");
        let mut response = grpc_response([message(b"x"), trailers("0")]);
        if !known {
            // Unimplemented is told in the headers.
            response
                .headers_mut()
                .insert("grpc-status", "12".parse().unwrap());
        }
        Ok::<_, BoxError>(response)
    }));
    for n in 0..1000 {
        let answer = service.clone().oneshot(grpc_request(&format!("/scan/{n}")));
        answer.await.unwrap();
    }
    assert_eq!(handle.snapshot().len(), 1, "only other");
    for n in 0..10 {
        for _ in 0..2 {
            let answer = service
                .clone()
                .oneshot(grpc_request(&format!("/pkg.Svc/M{n}")));
            answer.await.unwrap();
        }
    }
    let routes: Vec<_> = handle
        .snapshot()
        .into_iter()
        .map(|route| route.route)
        .collect();
    assert_eq!(
        routes,
        ["/pkg.Svc/M0", "/pkg.Svc/M1", "/pkg.Svc/M2", "other"]
    );
}

#[tokio::test]
async fn a_real_server_shows_its_streams() {
    let flow = Flow::new("t");
    let layer = ProfileLayer::new("server").route_with(ByPath).attach(&flow);
    let handle = layer.handle();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = incoming.local_addr().unwrap();
    let server = Server::builder().layer(layer.http()).add_service(service());
    tokio::spawn(server.serve_with_incoming(incoming));
    let mut client = TestServiceClient::connect(format!("http://{addr}"))
        .await
        .unwrap();
    for _ in 0..3 {
        client.empty_call(Empty {}).await.unwrap();
        let size = |size| ResponseParameters {
            size,
            ..Default::default()
        };
        let request = StreamingOutputCallRequest {
            response_parameters: vec![size(1), size(2), size(3)],
            ..Default::default()
        };
        let mut stream = client
            .streaming_output_call(request)
            .await
            .unwrap()
            .into_inner();
        while stream.message().await.unwrap().is_some() {}
    }
    let unary = route(&handle, "/grpc.testing.TestService/EmptyCall");
    let stages: Vec<_> = unary
        .stages
        .iter()
        .map(|stage| (stage.stage, stage.polls))
        .collect();
    assert_eq!(stages[0], (Stage::Call, 2));
    assert!(
        unary.stages.iter().all(|stage| !stage.busy.is_zero()),
        "{unary:?}"
    );
    let streamed = route(&handle, "/grpc.testing.TestService/StreamingOutputCall");
    let body = streamed
        .stages
        .iter()
        .find(|stage| stage.stage == Stage::Body);
    assert!(body.unwrap().polls >= 2 * 2, "{streamed:?}");
    let text = String::from_utf8(flow.encode(tower_flow::metrics::Format::Classic)).unwrap();
    let series = "tower_flow_profile_polls_total{name=\"server\",route=\"/grpc.testing.TestService/EmptyCall\",stage=\"call\"} 2";
    assert!(text.contains(series), "{text}");
}

/// Computes, so that a clock of CPU time moves.
fn burn(time: Duration) -> u64 {
    let end = clock::now() + time;
    let mut n = 0u64;
    while clock::now() < end {
        n = n.wrapping_mul(31).wrapping_add(7);
    }
    n
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_and_its_threads_are_seen_to_work() {
    let usage = CpuUsage::new();
    let before = usage.snapshot();
    let worker = std::thread::Builder::new().name("burner-3".into());
    let thread = worker.spawn(|| burn(400 * MS)).unwrap();
    std::thread::sleep(300 * MS);
    let now = usage.snapshot();
    let burner = now.threads.iter().find(|group| group.name == "burner");
    let burner = burner.unwrap_or_else(|| panic!("{now:?}"));
    assert_eq!(burner.threads, 1);
    // On a machine that has something else to do as well.
    assert!(
        burner.cpu + burner.waited.unwrap_or_default() > 150 * MS,
        "{burner:?}"
    );
    assert!(burner.cores.unwrap() <= 1.1, "{burner:?}");
    assert!(now.used >= before.used && now.used.is_some());
    assert!(now.available.unwrap() > 0.0);
    assert!(
        usage
            .run_queue()
            .sample()
            .is_some_and(|waiting| waiting >= 0.0)
    );
    thread.join().unwrap();
    let roles: Vec<_> = usage.vitals().iter().map(|vital| vital.role).collect();
    assert!(roles.contains(&Role::RunQueue), "{roles:?}");
}

#[tokio::test]
async fn everything_of_it_is_in_the_snapshot_and_in_the_metrics() {
    let flow = Flow::new("t");
    let _cpu = CpuUsage::new().attach(&flow);
    let scheduler = SchedulerUsage::new("main").attach(&flow);
    tokio::time::sleep(150 * MS).await;
    let shown = flow.snapshot().to_string();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let [cpu, runtime] = [&shown["layers"][0], &shown["layers"][1]];
    assert_eq!(
        (&cpu["kind"], &runtime["kind"]),
        (&"cpu".into(), &"scheduler".into())
    );
    assert!(runtime["state"]["workers"].as_array().unwrap().len() == 1);
    assert!(scheduler.snapshot().tasks >= 1);
    let text = String::from_utf8(flow.encode(tower_flow::metrics::Format::Classic)).unwrap();
    for name in [
        "tower_flow_scheduler_busy_seconds_total{name=\"main\",worker=\"0\"}",
        "tower_flow_scheduler_wake_delay_seconds{name=\"main\"}",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_billed_and_leaves_nothing_behind() {
    let layer = ProfileLayer::new("t");
    let handle = layer.handle();
    let count = AtomicUsize::new(0);
    let service = layer.layer(service_fn(|_: u8| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        async move {
            compute(MS);
            assert!(n > 0, "told to");
            Ok::<_, BoxError>(())
        }
    }));
    let call = std::panic::AssertUnwindSafe(service.clone().oneshot(1));
    assert!(call.catch_unwind().await.is_err());
    service.clone().oneshot(1).await.unwrap();
    assert_eq!(times(&handle, "t", Stage::Future), (2, 2 * MS, 2 * MS));
}

#[tokio::test]
async fn layers_tell_what_they_cost_and_where_they_are() {
    use tower_flow::shed::ShedLayer;
    use tower_flow::timing::TimingLayer;
    let flow = Flow::new("t");
    let mut service = ServiceBuilder::new()
        .layer(TimingLayer::new("http").attach(&flow).http())
        .layer(ShedLayer::adaptive().name("api").attach(&flow).http())
        .layer(ProfileLayer::new("handler").attach(&flow).http())
        .service(service_fn(
            async |_: Request<http_body_util::Empty<Bytes>>| {
                // A slow service is nobody's cost.
                burn(Duration::from_micros(200));
                Ok::<_, BoxError>(http::Response::new(http_body_util::Full::<Bytes>::from(
                    "hello",
                )))
            },
        ));
    assert_eq!(flow.overhead(), []);
    for _ in 0..4000 {
        let req = Request::new(http_body_util::Empty::new());
        let answer = service.ready().await.unwrap().call(req).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    let seen = flow.overhead();
    let inside: Vec<_> = seen
        .iter()
        .map(|layer| (layer.layer, layer.inside))
        .collect();
    assert_eq!(inside, [(0, None), (1, Some(0)), (2, Some(1))]);
    for layer in seen {
        assert!(layer.sampled > 10, "{layer:?}");
        assert!(layer.per_call < Duration::from_micros(100), "{layer:?}");
    }
}
