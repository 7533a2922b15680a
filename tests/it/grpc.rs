//! gRPC accounting: what naive implementations get wrong, each by name. What needs a real server is in `stack_tonic`.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use http_body::{Body, Frame};
use tower::{Layer, Service, service_fn};
use tower_flow::error::Reason;
use tower_flow::grpc::{
    GrpcClientLayer, GrpcHandle, GrpcServerLayer, GrpcType, MethodSnapshot, RequestBody,
};
use tower_flow::metrics::Format;
use tower_flow::outcome::Code;
use tower_flow::{BoxError, Flow, Rejection};

use crate::support::{
    Step, Steps, broken, classic, data, framed, grpc_request, grpc_response, message, sum,
    trailers, value,
};

type Answer = Result<Response<Steps>, BoxError>;

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn layer() -> GrpcServerLayer {
    GrpcServerLayer::new().register("pkg.Svc", "Method", GrpcType::Unary)
}

/// A service that reads its request and gives `answer`.
fn answering(
    answer: impl Fn() -> Answer + Clone,
) -> impl Service<
    Request<RequestBody<Steps>>,
    Response = Response<Steps>,
    Error = BoxError,
    Future = std::future::Ready<Answer>,
> + Clone {
    service_fn(move |req: Request<RequestBody<Steps>>| {
        let mut body = req.into_body();
        while let Poll::Ready(Some(_)) = Pin::new(&mut body).poll_frame(&mut cx()) {}
        std::future::ready(answer())
    })
}

/// Calls and reads the answer to its end, like a patient peer.
fn call<S, B>(service: &mut S, req: Request<Steps>)
where
    S: Service<Request<Steps>, Response = Response<B>, Error = BoxError>,
    B: Body<Error = BoxError> + Unpin,
{
    let mut future = Box::pin(service.call(req));
    let Poll::Ready(result) = future.as_mut().poll(&mut cx()) else {
        panic!("not at once")
    };
    let Ok(response) = result else { return };
    let mut body = response.into_body();
    for _ in 0..2_000_000 {
        if let Poll::Ready(None | Some(Err(_))) = Pin::new(&mut body).poll_frame(&mut cx()) {
            return;
        }
    }
    panic!("a body without end");
}

fn only(handle: &GrpcHandle) -> MethodSnapshot {
    let mut methods = handle.snapshot();
    assert_eq!(methods.len(), 1, "{methods:?}");
    methods.remove(0)
}

/// What one call that was answered so was handled as.
fn handled_as(answer: impl Fn() -> Answer + Clone) -> Vec<(Code, u64)> {
    let layer = layer();
    call(
        &mut layer.layer(answering(answer)),
        grpc_request("/pkg.Svc/Method"),
    );
    let method = only(&layer.handle());
    assert_eq!((method.started, method.in_flight), (1, 0));
    method.handled
}

// 1
#[test]
fn a_thousand_tiny_messages_in_few_frames_are_a_thousand() {
    let wire: Vec<u8> = (0..1000u32)
        .flat_map(|n| framed(0, &n.to_be_bytes()))
        .collect();
    let frames: Vec<Vec<u8>> = wire.chunks(wire.len() / 38).map(<[u8]>::to_vec).collect();
    assert!(frames.len() < 40);
    let layer = layer();
    let answer = move || {
        let steps = frames
            .iter()
            .map(|frame| data(frame))
            .chain([trailers("0")]);
        Ok(grpc_response(steps.collect::<Vec<_>>()))
    };
    call(
        &mut layer.layer(answering(answer)),
        grpc_request("/pkg.Svc/Method"),
    );
    let method = only(&layer.handle());
    assert_eq!((method.messages_sent, method.bytes_sent), (1000, 4000));
    assert_eq!((method.messages_received, method.bytes_received), (1, 8));

    let one = framed(0, &vec![7; 1 << 20]);
    let answer = move || {
        let steps = one.chunks(1).map(data).chain([trailers("0")]);
        Ok(grpc_response(steps.collect::<Vec<_>>()))
    };
    call(
        &mut layer.layer(answering(answer)),
        grpc_request("/pkg.Svc/Method"),
    );
    assert_eq!(
        only(&layer.handle()).messages_sent,
        1001,
        "a megabyte in one-byte frames is one"
    );
}

// 2
#[test]
fn a_stream_that_fails_midway_is_not_ok() {
    let three = || [message(b"a"), message(b"b"), message(b"c")];
    let handled = handled_as(move || Ok(grpc_response(three().into_iter().chain([trailers("5")]))));
    assert_eq!(handled, [(Code::NotFound, 1)]);
    let handled = handled_as(move || {
        let status = tonic::Status::not_found("gone");
        Ok(grpc_response(three().into_iter().chain([broken(status)])))
    });
    assert_eq!(handled, [(Code::NotFound, 1)]);
}

// 3
#[test]
fn a_future_dropped_before_headers_is_cancelled() {
    let layer = layer();
    let pending = service_fn(|_: Request<RequestBody<Steps>>| std::future::pending::<Answer>());
    let mut service = layer.layer(pending);
    let mut future = Box::pin(service.call(grpc_request("/pkg.Svc/Method")));
    assert!(future.as_mut().poll(&mut cx()).is_pending());
    assert_eq!(only(&layer.handle()).in_flight, 1);
    drop(future);
    let method = only(&layer.handle());
    assert_eq!(
        (method.in_flight, method.handled),
        (0, vec![(Code::Cancelled, 1)])
    );
}

// 4, without a network; `stack_tonic` has it with one.
#[test]
fn a_half_read_stream_is_cancelled_once() {
    let layer = layer();
    let answer = || Ok(grpc_response([message(b"a"), message(b"b"), trailers("0")]));
    let mut service = layer.layer(answering(answer));
    let mut future = Box::pin(service.call(grpc_request("/pkg.Svc/Method")));
    let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx()) else {
        panic!("not at once")
    };
    let mut body = response.into_body();
    assert!(Pin::new(&mut body).poll_frame(&mut cx()).is_ready());
    drop(body);
    drop(future);
    let method = only(&layer.handle());
    assert_eq!(method.handled, [(Code::Cancelled, 1)]);
    assert_eq!(method.messages_sent, 1, "what was handed over, and no more");
}

// 5, under paused time; `stack_tonic` has it under tonic's own timeout.
#[tokio::test(start_paused = true)]
async fn a_deadline_is_told_from_a_cancel() {
    let layer = layer();
    let pending = service_fn(|_: Request<RequestBody<Steps>>| std::future::pending::<Answer>());
    let with_timeout = |text: &'static str| {
        let mut req = grpc_request("/pkg.Svc/Method");
        req.headers_mut()
            .insert("grpc-timeout", HeaderValue::from_static(text));
        req
    };
    let mut service = layer.layer(pending);
    for (timeout, wait) in [
        ("50m", 50),
        ("50m", 20),
        ("garbage", 500),
        ("999999999S", 500),
    ] {
        let future = service.call(with_timeout(timeout));
        let _ = tokio::time::timeout(Duration::from_millis(wait), future).await;
    }
    let handled = only(&layer.handle()).handled;
    assert_eq!(handled, [(Code::Cancelled, 3), (Code::DeadlineExceeded, 1)]);

    let layer = self::layer().server_timeout(Duration::from_millis(10));
    let mut service = layer.layer(pending);
    let future = service.call(grpc_request("/pkg.Svc/Method"));
    let _ = tokio::time::timeout(Duration::from_millis(10), future).await;
    assert_eq!(only(&layer.handle()).handled, [(Code::DeadlineExceeded, 1)]);

    // A server that gives up says CANCELLED; a client whose deadline has passed knows better.
    let layer = GrpcClientLayer::new().register("pkg.Svc", "Method", GrpcType::Unary);
    let slow = service_fn(async |_: Request<RequestBody<Steps>>| {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let mut response = grpc_response([]);
        response
            .headers_mut()
            .insert("grpc-status", HeaderValue::from_static("1"));
        response.body_mut().known = true;
        Ok::<_, BoxError>(response)
    });
    let mut service = layer.layer(slow);
    service.call(with_timeout("50m")).await.unwrap();
    service.call(with_timeout("100m")).await.unwrap();
    let handled = only(&layer.handle()).handled;
    assert_eq!(handled, [(Code::Cancelled, 1), (Code::DeadlineExceeded, 1)]);
}

// 7
#[test]
fn a_body_dropped_after_its_trailers_is_ok_once() {
    let layer = layer();
    let answer = || Ok(grpc_response([message(b"a"), trailers("0")]));
    let mut service = layer.layer(answering(answer));
    // hyper's way: data, trailers, drop, without ever asking for more.
    let mut future = Box::pin(service.call(grpc_request("/pkg.Svc/Method")));
    let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx()) else {
        panic!("not at once")
    };
    let mut body = response.into_body();
    for _ in 0..2 {
        assert!(!body.is_end_stream(), "this body never says so");
        assert!(Pin::new(&mut body).poll_frame(&mut cx()).is_ready());
    }
    assert_eq!(only(&layer.handle()).handled, [(Code::Ok, 1)]);
    // Asking again adds nothing; nor does the drop.
    for _ in 0..3 {
        assert!(matches!(
            Pin::new(&mut body).poll_frame(&mut cx()),
            Poll::Ready(None)
        ));
    }
    drop(body);
    assert_eq!(only(&layer.handle()).handled, [(Code::Ok, 1)]);
}

// 9
#[test]
fn answers_without_a_grpc_status_are_never_ok() {
    let page = |status: u16, kind: &'static str, steps: Vec<Step>| {
        let response = Response::builder()
            .status(status)
            .header("content-type", kind);
        Ok(response.body(Steps::new(steps).known()).unwrap())
    };
    let html = |status| handled_as(move || page(status, "text/html", vec![data(b"<html>")]));
    assert_eq!(html(503), [(Code::Unavailable, 1)]);
    assert_eq!(html(404), [(Code::Unimplemented, 1)]);
    assert_eq!(html(401), [(Code::Unauthenticated, 1)]);
    assert_eq!(html(200), [(Code::Unknown, 1)]);
    let clean_end = || page(200, "application/grpc", vec![message(b"a")]);
    assert_eq!(handled_as(clean_end), [(Code::Unknown, 1)]);
    for garbage in ["abc", "99", "-1", "", "0 0", "00"] {
        let trailers = move || Ok(grpc_response([message(b"a"), trailers(garbage)]));
        let expected = if garbage == "00" {
            Code::Ok
        } else {
            Code::Unknown
        };
        assert_eq!(
            handled_as(trailers),
            [(expected, 1)],
            "{garbage:?} in trailers"
        );
    }
    // An error page whose reader stops early is still what its status says.
    let layer = layer();
    let unread = move || page(503, "text/html", vec![data(b"<html>"), data(b"</html>")]);
    let mut service = layer.layer(answering(unread));
    let mut future = Box::pin(service.call(grpc_request("/pkg.Svc/Method")));
    let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx()) else {
        panic!("not at once")
    };
    drop(response);
    assert_eq!(only(&layer.handle()).handled, [(Code::Unavailable, 1)]);
    assert_eq!(
        only(&layer.handle()).messages_sent,
        0,
        "a page holds no messages"
    );
}

// 10
#[test]
fn ten_thousand_random_paths_make_no_series() {
    let flow = Flow::new("attacked");
    let layer = GrpcServerLayer::new().max_methods(16).attach(&flow);
    let unimplemented = || {
        let mut response = grpc_response([]);
        response
            .headers_mut()
            .insert("grpc-status", HeaderValue::from_static("12"));
        response.body_mut().known = true;
        Ok(response)
    };
    let mut attacked = layer.layer(answering(unimplemented));
    let series = || {
        flow.families()
            .iter()
            .map(|family| family.series.len())
            .sum::<usize>()
    };
    call(&mut attacked, grpc_request("/first/One"));
    let before = series();
    for n in 1..10_000u64 {
        // A small generator of paths that look like anything.
        let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        call(
            &mut attacked,
            grpc_request(&format!("/svc{:x}/m{:x}", n >> 40, n & 0xffff)),
        );
    }
    assert_eq!(series(), before, "not one more");
    let other = only(&layer.handle());
    assert_eq!((&*other.service, other.started), ("other", 10_000));
    assert_eq!(other.handled, [(Code::Unimplemented, 10_000)]);

    // A method that exists is learned after its first call, billed to itself from then on.
    let mut honest = layer.layer(answering(|| Ok(grpc_response([trailers("0")]))));
    for _ in 0..3 {
        call(&mut honest, grpc_request("/pkg.Svc/Method"));
    }
    let families = flow.families();
    let started = |service| {
        value(
            &families,
            "grpc_server_started",
            &[("grpc_service", service)],
        )
    };
    assert_eq!(
        (started("other"), started("pkg.Svc")),
        (Some(10_001.0), Some(2.0))
    );

    // Nor is a path learned from an answer that a layer inside gives to whatever it does not know.
    let unauthenticated = || Ok(grpc_response([trailers("16")]));
    let mut guarded = layer.layer(answering(unauthenticated));
    for n in 0..100 {
        call(&mut guarded, grpc_request(&format!("/made.up/M{n}")));
    }
    assert_eq!(layer.handle().snapshot().len(), 2);

    // Methods beyond the bound stay other, whoever serves them.
    for n in 0..100 {
        call(&mut honest, grpc_request(&format!("/many/M{n}")));
        call(&mut honest, grpc_request(&format!("/many/M{n}")));
    }
    assert_eq!(layer.handle().snapshot().len(), 16 + 1);
    let families = flow.families();
    let started = sum(&families, "grpc_server_started", &[]);
    assert_eq!(
        (started, sum(&families, "grpc_server_handled", &[])),
        (10_303.0, 10_303.0)
    );
}

// 11; promtool reads it in `validators`.
#[test]
fn a_scrape_before_any_call_shows_every_series_at_zero() {
    let flow = Flow::new("fresh");
    let fds = include_bytes!("../interop/gen/interop.fds");
    let _layer = GrpcServerLayer::new()
        .register_fds(fds)
        .unwrap()
        .attach(&flow);
    let families = flow.families();
    let handled = families.get("grpc_server_handled").unwrap();
    assert_eq!(
        handled.series.len(),
        7 * 17,
        "seven methods, seventeen codes"
    );
    assert!(
        handled
            .series
            .iter()
            .all(|series| series.value.as_f64() == 0.0)
    );
    let kind = |method| {
        let family = families.get("grpc_server_started").unwrap();
        let mut found = family.series.iter().filter(|series| {
            series
                .labels
                .iter()
                .any(|label| label == ("grpc_method", method))
                && series
                    .labels
                    .iter()
                    .any(|label| label == ("grpc_service", "grpc.testing.TestService"))
        });
        let labels = found.next().unwrap().labels.clone();
        labels
            .iter()
            .find(|(name, _)| *name == "grpc_type")
            .unwrap()
            .1
            .to_owned()
    };
    assert_eq!(kind("UnaryCall"), "unary");
    assert_eq!(kind("StreamingInputCall"), "client_stream");
    assert_eq!(kind("StreamingOutputCall"), "server_stream");
    assert_eq!(kind("FullDuplexCall"), "bidi_stream");
    let text = classic(&flow);
    let help = "# HELP grpc_server_handled_total Total number of RPCs completed on the server, \
                regardless of success or failure.\n# TYPE grpc_server_handled_total counter\n";
    assert!(text.contains(help), "{text}");
    assert!(text.contains("grpc_server_handling_seconds_bucket{grpc_type=\"unary\",grpc_service=\"grpc.testing.TestService\",grpc_method=\"UnaryCall\",le=\"0.005\"} 0\n"));
}

// 12
#[test]
fn panics_and_boxed_errors_have_their_codes() {
    let layer = layer();
    let mut service = layer.layer(answering(|| panic!("told to")));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        call(&mut service, grpc_request("/pkg.Svc/Method"))
    }));
    assert!(panicked.is_err());
    let method = only(&layer.handle());
    assert_eq!(
        (method.in_flight, method.handled),
        (0, vec![(Code::Internal, 1)])
    );

    let failing = |error: fn() -> BoxError| handled_as(move || Err(error()));
    let connect = || tonic::ConnectError("no route".into()).into();
    assert_eq!(failing(connect), [(Code::Unavailable, 1)]);
    assert_eq!(
        failing(|| tonic::TimeoutExpired(()).into()),
        [(Code::DeadlineExceeded, 1)]
    );
    let refused =
        || std::io::Error::other(Rejection::new("shed", Reason::Quota, "share used up")).into();
    assert_eq!(failing(refused), [(Code::ResourceExhausted, 1)]);
    assert_eq!(failing(|| "who knows".into()), [(Code::Unknown, 1)]);
}

// 14
#[test]
fn garbage_details_and_labels_harm_nobody() {
    let flow = Flow::new("hostile \"\n\\ name");
    let layer = layer()
        .register("p\"k\\g.Svc", "M%0Aethod", GrpcType::Unary)
        .const_label("zone", "a\"b\n\\")
        .attach(&flow);
    let answer = || {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("9"));
        trailers.insert("grpc-message", HeaderValue::from_bytes(b"%zz\xff").unwrap());
        trailers.insert(
            "grpc-status-details-bin",
            HeaderValue::from_static("!!! no base64 !!!"),
        );
        Ok(grpc_response([Some(Ok(Frame::trailers(trailers)))]))
    };
    let mut service = layer.layer(answering(answer));
    call(&mut service, grpc_request("/pkg.Svc/Method"));
    call(&mut service, grpc_request("/p\"k\\g.Svc/M%0Aethod"));
    call(&mut service, grpc_request("/p\"k\\g.Svc/M%0Aethod"));
    let handled = sum(
        &flow.families(),
        "grpc_server_handled",
        &[("grpc_code", "FailedPrecondition")],
    );
    assert_eq!(handled, 3.0);
    for format in [Format::Classic, Format::OpenMetrics] {
        let text = String::from_utf8(flow.encode(format)).unwrap();
        assert!(text.contains(r#"zone="a\"b\n\\""#), "{text}");
        assert!(text.contains(r#"grpc_service="p\"k\\g.Svc""#), "{text}");
    }
}

// 15
#[test]
fn sixteen_threads_under_a_scraper_stay_consistent() {
    const THREADS: u64 = 16;
    let calls: u64 = std::env::var("TOWER_FLOW_CALLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_000);
    let flow = Flow::new("busy");
    let layer = layer().both().phases(true).attach(&flow);
    let seen = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let service = layer.layer(answering(|| {
                    Ok(grpc_response([message(b"a"), trailers("0")]))
                }));
                scope.spawn(move || {
                    for _ in 0..calls {
                        call(&mut service.clone(), grpc_request("/pkg.Svc/Method"));
                    }
                })
            })
            .collect();
        let scraper = scope.spawn(|| {
            let mut before = [0.0; 5];
            while !seen.load(std::sync::atomic::Ordering::Relaxed) {
                let text = classic(&flow);
                let number = |start: &str| {
                    let line = text.lines().find(|line| line.starts_with(start)).unwrap();
                    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
                };
                let inf = text.lines().find(|line| {
                    line.starts_with("grpc_server_handling_seconds_bucket")
                        && line.contains("le=\"+Inf\"")
                });
                let inf: f64 = inf.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
                let handled = text.lines().find(|line| {
                    line.starts_with("grpc_server_handled_total") && line.contains("\"OK\"")
                });
                let handled: f64 = handled
                    .unwrap()
                    .rsplit(' ')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap();
                let now = [
                    handled,
                    number("grpc_server_started_total"),
                    number("grpc_server_handling_seconds_count"),
                    number("grpc_server_handling_seconds_sum"),
                    number("grpc_server_msg_sent_total"),
                ];
                assert_eq!(inf, now[2], "+Inf is the count");
                assert!(handled <= now[1], "{handled} handled of {} started", now[1]);
                let ended = number("grpc_server_call_duration_seconds_count");
                let began = number("grpc_server_call_started_total");
                assert!(ended <= began, "{ended} ended of {began} started");
                for (before, now) in before.iter().zip(now) {
                    assert!(*before <= now, "{before} fell to {now}");
                }
                before = now;
            }
        });
        for thread in threads {
            thread.join().unwrap();
        }
        seen.store(true, std::sync::atomic::Ordering::Relaxed);
        scraper.join().unwrap();
    });
    let method = only(&layer.handle());
    let total = THREADS * calls;
    assert_eq!(
        (method.started, method.in_flight, method.handled),
        (total, 0, vec![(Code::Ok, total)])
    );
    assert_eq!(
        (method.messages_received, method.messages_sent),
        (total, total)
    );
}

#[test]
fn grpc_web_trailers_in_the_body_are_the_status() {
    let layer = layer();
    let answer = || {
        let trailers = framed(0x80, b"grpc-status:7\r\n");
        let body = Steps::new([message(b"hello"), data(&trailers)]).known();
        Ok(Response::builder()
            .header("content-type", "application/grpc-web+proto")
            .body(body)
            .unwrap())
    };
    let mut req = grpc_request("/pkg.Svc/Method");
    let kind = HeaderValue::from_static("application/grpc-web+proto");
    req.headers_mut().insert("content-type", kind);
    call(&mut layer.layer(answering(answer)), req);
    let method = only(&layer.handle());
    assert_eq!(method.handled, [(Code::PermissionDenied, 1)]);
    assert_eq!((method.messages_sent, method.bytes_sent), (1, 5));
}

#[test]
fn what_is_no_grpc_passes_uncounted_and_is_told() {
    let layer = layer();
    let mut service = layer.layer(answering(|| Ok(Response::new(Steps::new([data(b"ok")])))));
    let mut req = grpc_request("/healthz");
    req.headers_mut().remove("content-type");
    call(&mut service, req);
    assert_eq!(only(&layer.handle()).started, 0);
    assert_eq!(layer.handle().foreign_calls(), 1);
}

#[test]
fn a_known_method_is_counted_whatever_its_content_type() {
    let layer = layer();
    let mut service = layer.layer(answering(|| Ok(grpc_response([trailers("0")]))));
    for kind in ["application/json", "APPLICATION/GRPC", ""] {
        let mut req = grpc_request("/pkg.Svc/Method");
        req.headers_mut()
            .insert("content-type", HeaderValue::from_static(kind));
        call(&mut service, req);
    }
    assert_eq!(only(&layer.handle()).handled, [(Code::Ok, 3)]);
}

#[test]
fn a_clients_origin_may_have_a_path() {
    let layer = GrpcClientLayer::new().register("pkg.Svc", "Method", GrpcType::Unary);
    let mut service = layer.layer(answering(|| Ok(grpc_response([trailers("0")]))));
    call(&mut service, grpc_request("/gateway/v1/pkg.Svc/Method"));
    assert_eq!(only(&layer.handle()).handled, [(Code::Ok, 1)]);
}

#[test]
fn a_panic_caught_outside_is_internal_at_once() {
    let layer = layer();
    let inner = service_fn(|_: Request<RequestBody<Steps>>| async { panic!("told to") as Answer });
    let mut future = Box::pin(layer.layer(inner).call(grpc_request("/pkg.Svc/Method")));
    let caught = catch_unwind(AssertUnwindSafe(|| {
        future.as_mut().poll(&mut cx()).is_ready()
    }));
    assert!(caught.is_err());
    let method = only(&layer.handle());
    assert_eq!(
        (method.in_flight, method.handled),
        (0, vec![(Code::Internal, 1)]),
        "the future is still held"
    );
    drop(future);
    assert_eq!(only(&layer.handle()).handled, [(Code::Internal, 1)]);
}

#[test]
fn a_trace_function_that_panics_loses_no_count() {
    let flow = Flow::new("t");
    let timing = tower_flow::timing::TimingLayer::new("t");
    let times = timing.handle();
    let layer = layer()
        .exemplars(|headers, _| Some(headers["x-short"].to_str().ok()?[3..35].to_owned()))
        .attach(&flow)
        .along(timing.http());
    let mut service = layer.layer(answering(|| Ok(grpc_response([trailers("0")]))));
    for _ in 0..3 {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            drop(service.call(grpc_request("/pkg.Svc/Method")))
        }));
        assert!(panicked.is_err());
    }
    assert_eq!(
        (
            only(&layer.handle()).in_flight,
            times.snapshot()[0].in_flight
        ),
        (0, 0)
    );
}

#[test]
#[should_panic(expected = "max_methods of 18446744073709551615 is beyond 65,536")]
fn a_bound_that_bounds_nothing_is_refused() {
    let _ = GrpcServerLayer::new().max_methods(usize::MAX);
}

#[test]
fn truncated_streams_are_told() {
    let layer = layer();
    let half = framed(0, b"hello")[..7].to_vec();
    let mut service = layer.layer(answering(move || {
        Ok(grpc_response([data(&half), trailers("0")]))
    }));
    call(&mut service, grpc_request("/pkg.Svc/Method"));
    let method = only(&layer.handle());
    assert_eq!(
        (method.truncated, method.messages_sent, method.bytes_sent),
        (1, 0, 2)
    );
}

#[test]
fn an_early_answer_leaves_the_request_unread_and_the_call_whole() {
    let layer = layer();
    // Answers without reading a byte of the request.
    let early = service_fn(|_: Request<RequestBody<Steps>>| async {
        Ok::<_, BoxError>(grpc_response([message(b"early"), trailers("0")]))
    });
    call(&mut layer.layer(early), grpc_request("/pkg.Svc/Method"));
    let method = only(&layer.handle());
    assert_eq!(
        (
            method.messages_received,
            method.messages_sent,
            method.truncated
        ),
        (0, 1, 0)
    );
    assert_eq!(method.handled, [(Code::Ok, 1)]);
}

#[test]
fn the_names_of_opentelemetry_hold_for_both_sides() {
    let flow = Flow::new("otel");
    let server = layer().otel().attach(&flow);
    let client = GrpcClientLayer::new()
        .otel()
        .target("dns:///stock")
        .register("pkg.Svc", "Method", GrpcType::Unary)
        .attach(&flow);
    let answer = || Ok(grpc_response([message(b"hello"), trailers("5")]));
    call(
        &mut server.layer(answering(answer)),
        grpc_request("/pkg.Svc/Method"),
    );
    call(
        &mut client.layer(answering(answer)),
        grpc_request("/pkg.Svc/Method"),
    );
    let families = flow.families();
    let method = ("grpc_method", "pkg.Svc/Method");
    let status = ("grpc_status", "NOT_FOUND");
    let target = ("grpc_target", "dns:///stock");
    let of = |name, labels: &[_]| value(&families, name, labels);
    assert_eq!(of("grpc_server_call_started", &[method]), Some(1.0));
    assert_eq!(
        of("grpc_server_call_duration_seconds", &[method, status]),
        Some(1.0)
    );
    assert_eq!(
        of("grpc_client_attempt_started", &[method, target]),
        Some(1.0)
    );
    assert_eq!(
        of(
            "grpc_client_attempt_duration_seconds",
            &[method, target, status]
        ),
        Some(1.0)
    );
    assert_eq!(
        of(
            "grpc_client_call_duration_seconds",
            &[method, target, status]
        ),
        Some(1.0)
    );
    assert!(
        families.get("grpc_server_started").is_none(),
        "only the names that were asked for"
    );

    let text = classic(&flow);
    for line in [
        "grpc_server_call_sent_total_compressed_message_size_bytes_sum{grpc_method=\"pkg.Svc/Method\",grpc_status=\"NOT_FOUND\"} 5\n",
        "grpc_server_call_rcvd_total_compressed_message_size_bytes_sum{grpc_method=\"pkg.Svc/Method\",grpc_status=\"NOT_FOUND\"} 8\n",
        "grpc_client_attempt_sent_total_compressed_message_size_bytes_sum{grpc_method=\"pkg.Svc/Method\",grpc_target=\"dns:///stock\",grpc_status=\"NOT_FOUND\"} 8\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn exemplars_stand_in_openmetrics_only() {
    let flow = Flow::new("traced");
    let layer = layer()
        .exemplars(|headers, _| Some(headers.get("x-trace")?.to_str().ok()?.to_owned()))
        .attach(&flow);
    let mut service = layer.layer(answering(|| Ok(grpc_response([trailers("0")]))));
    let traced = |id: String| {
        let mut req = grpc_request("/pkg.Svc/Method");
        req.headers_mut()
            .insert("x-trace", HeaderValue::try_from(id).unwrap());
        req
    };
    call(&mut service, traced("abc".into()));
    call(&mut service, traced("x".repeat(500)));
    let text = String::from_utf8(flow.encode(Format::OpenMetrics)).unwrap();
    assert!(
        text.contains(" 2 # {trace_id=\"abc\"} 0."),
        "the one that is too long is left out: {text}"
    );
    assert!(!classic(&flow).contains("trace_id"));
}

#[tokio::test(start_paused = true)]
async fn stalls_are_told_by_who_made_them() {
    let flow = Flow::new("stalls");
    let layer = layer().phases(true).attach(&flow);
    let answer = || {
        Ok(grpc_response([
            message(b"a"),
            None,
            message(b"b"),
            trailers("0"),
        ]))
    };
    let mut service = layer.layer(answering(answer));
    let response = service.call(grpc_request("/pkg.Svc/Method")).await.unwrap();
    let mut body = response.into_body();
    let ms = Duration::from_millis;
    let _ = Pin::new(&mut body).poll_frame(&mut cx());
    tokio::time::advance(ms(100)).await; // the consumer does not ask
    assert!(Pin::new(&mut body).poll_frame(&mut cx()).is_pending());
    tokio::time::advance(ms(30)).await; // the producer has nothing
    while let Poll::Ready(Some(_)) = Pin::new(&mut body).poll_frame(&mut cx()) {}
    let families = flow.families();
    let stall = |who| {
        value(
            &families,
            "tower_flow_grpc_stream_stall_seconds",
            &[("stall", who)],
        )
    };
    assert_eq!(
        (stall("consumer"), stall("producer")),
        (Some(0.1), Some(0.03))
    );
}

#[test]
fn an_infallible_service_keeps_its_error() {
    fn infallible<S: Service<Request<Steps>, Error = Infallible>>(_: &S) {}
    let router = service_fn(async |_: Request<RequestBody<Steps>>| {
        Ok::<_, Infallible>(Response::new(Steps::default()))
    });
    infallible(&layer().layer(router));
}

#[test]
#[should_panic(expected = "set options before its handle")]
fn an_option_after_the_handle_is_refused() {
    let layer = GrpcServerLayer::new();
    let _handle = layer.handle();
    let _ = layer.max_methods(1);
}

#[test]
#[should_panic(expected = "the label \"grpc_code\" belongs to the gRPC layer")]
fn a_label_of_the_layers_own_is_refused() {
    let _ = GrpcServerLayer::new().const_label("grpc_code", "x");
}

#[test]
fn bytes_that_are_no_descriptor_set_are_refused() {
    let error = GrpcServerLayer::new()
        .register_fds(b"\x0a\x7fnot one")
        .unwrap_err()
        .to_string();
    assert!(error.contains("not a FileDescriptorSet"), "{error}");
}
