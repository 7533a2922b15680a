//! What is served, and what not.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use tower::{Service, ServiceExt};
use tower_flow::Flow;
use tower_flow::admin::AdminError;
use tower_flow::grpc::{GrpcServerLayer, GrpcType};
use tower_flow::shed::ShedLayer;
use tower_flow::timing::TimingLayer;

use super::{Events, Served, serve};

async fn orders() -> Served {
    let flow = Flow::new("orders </script>");
    let _grpc = GrpcServerLayer::new()
        .register("shop.Orders", "Place", GrpcType::Unary)
        .attach(&flow);
    let _timing = TimingLayer::new("stock").attach(&flow);
    let _shed = ShedLayer::fixed(8).name("api").attach(&flow);
    serve(flow.admin()).await
}

#[tokio::test]
async fn every_page_answers() {
    let served = orders().await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/?x=y", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/healthz", "text/plain; charset=utf-8"),
        (
            "/metrics?any=thing",
            "text/plain; version=0.0.4; charset=utf-8",
        ),
        ("/snapshot.json", "application/json"),
        ("/debug/hot", "text/plain; charset=utf-8"),
        ("/debug/hot?format=json", "application/json"),
        ("/hdr/stock.log", "text/plain; charset=utf-8"),
    ] {
        let answer = served.get(path).await;
        assert_eq!(
            (answer.status, &*answer.headers["content-type"]),
            (200, kind),
            "{path}"
        );
        assert!(!answer.body.is_empty(), "{path}");
        let head = served.ask(&format!("HEAD {path}"), &[], "").await;
        assert_eq!((head.status, &*head.body), (200, ""), "{path}");
    }
    assert_eq!(served.get("/healthz").await.body, "ok\n");
    assert!(
        served
            .get("/metrics")
            .await
            .body
            .contains("grpc_server_started_total{")
    );
}

#[tokio::test]
async fn the_snapshot_has_every_layer_its_knobs_and_its_cost() {
    let served = orders().await;
    let answer = served.get("/snapshot.json").await;
    assert!(
        !answer.body.contains('<'),
        "no name becomes markup: {}",
        answer.body
    );
    let snapshot = answer.json();
    assert_eq!(snapshot["service"], "orders </script>");
    let [grpc, timing, shed] = [0, 1, 2].map(|n| &snapshot["layers"][n]);
    assert_eq!((&grpc["id"], &grpc["kind"]), (&0.into(), &"grpc".into()));
    assert_eq!(grpc["state"]["methods"][0]["method"], "Place");
    assert_eq!(timing["state"]["routes"][0]["route"], "stock");
    assert_eq!(timing["state"]["routes"][0]["window"]["count"], 0);
    assert_eq!(timing["state"]["routes"][0]["failed"], 0);
    assert_eq!(timing["knobs"], serde_json::json!([]));
    assert_eq!(
        (&shed["name"], &shed["knobs"][0]["name"]),
        (&"api".into(), &"limit".into())
    );
    assert!(shed["knobs"][0]["value"].is_null() && shed["overhead"].is_null());
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_what_there_is() {
    let served = orders().await;
    for path in [
        "/debug/../etc/passwd",
        "/Metrics",
        "/metrics/",
        "/page.css/",
        "//",
        "/debug",
        "/index.html",
        "/snapshot.json/x",
        "/%6detrics",
        "*",
    ] {
        let missing = served.get(path).await;
        assert_eq!(missing.status, 404, "{path}");
        assert!(
            missing.body.contains("/metrics") && missing.body.len() < 300,
            "{path}"
        );
    }
    for (line, allowed) in [
        ("POST /metrics", "GET, HEAD"),
        ("PUT /", "GET, HEAD"),
        ("DELETE /healthz", "GET, HEAD"),
        ("BREW /snapshot.json", "GET, HEAD"),
        ("POST /events", "GET"),
        ("HEAD /events", "GET"),
        ("HEAD /debug/profile", "GET"),
        ("GET /knobs/0/limit", "PUT"),
        ("GET /session", "POST, DELETE"),
        ("OPTIONS /knobs/0/limit", "PUT"),
    ] {
        let refused = served.ask(line, &[], "").await;
        assert_eq!(
            (refused.status, &*refused.headers["allow"]),
            (405, allowed),
            "{line}"
        );
    }
}

#[tokio::test]
async fn logs_are_found_by_their_routes() {
    let flow = Flow::new("orders");
    let _grpc = GrpcServerLayer::new().attach(&flow);
    let timing = TimingLayer::new("a")
        .route_by(|req: &&'static str| req)
        .attach(&flow);
    for route in ["/shop.Orders/Place", "<b> 100%"] {
        timing.handle().signal(route, 0.5).unwrap();
    }
    let served = serve(flow.admin()).await;
    for path in [
        "/hdr//shop.Orders/Place.log",
        "/hdr/%2Fshop.Orders%2FPlace.log",
        "/hdr//shop.Orders/Place.log?layer=1",
        "/hdr/%3Cb%3E%20100%25.log",
    ] {
        let log = served.get(path).await;
        assert_eq!(log.status, 200, "{path}");
        assert!(log.body.starts_with("#[StartTime"), "{}", log.body);
    }
    for (path, status) in [
        ("/hdr/none.log", 404),
        ("/hdr/.log", 404),
        ("/hdr//shop.Orders/Place.log?layer=0", 404),
        ("/hdr//shop.Orders/Place.log?layer=2", 400),
        ("/hdr//shop.Orders/Place.log?layer=-1", 400),
        ("/hdr//shop.Orders/Place.log?layer=1&layer=1", 400),
        ("/hdr//shop.Orders/Place.log?route=1", 400),
        ("/hdr//shop.Orders/Place.log?layer=%ff", 400),
        ("/hdr//shop.Orders/Place", 400),
        ("/hdr/", 400),
        ("/hdr/%ff.log", 400),
        ("/hdr/%zz.log", 400),
        ("/hdr/%.log", 400),
    ] {
        let refused = served.get(path).await;
        assert_eq!(refused.status, status, "{path}");
        assert!(
            refused.body.len() < 120 && refused.body.ends_with('\n'),
            "{path}"
        );
    }
    assert_eq!(served.get("/debug/hot?format=xml").await.status, 400);
    assert_eq!(served.get("/debug/hot?format=json&x=y").await.status, 400);
}

#[tokio::test]
async fn absurd_profiles_are_refused_with_the_bounds() {
    let served = orders().await;
    for query in [
        "seconds=0",
        "seconds=61",
        "seconds=-1",
        "seconds=1.5",
        "seconds=1e1",
        "seconds=",
        "seconds",
        "seconds=ten",
        "seconds=99999999999999999999",
        "seconds=+5",
        "seconds=%205",
        "seconds=5&seconds=5",
        "hz=0",
        "hz=1000",
        "hz=NaN",
        "hz=9%0a",
        "format=png",
        "format=",
        "format=SVG",
        "second=5",
        "seconds=5&&&x",
        "seconds=%ff",
        "seconds=5&hz=100000",
        "format=svg&format=pb",
    ] {
        let refused = served.get(&format!("/debug/profile?{query}")).await;
        assert_eq!(refused.status, 400, "{query}");
        assert!(
            refused.body.contains("1 to 60") && refused.body.contains("1 to 999"),
            "{query}"
        );
    }
}

#[tokio::test]
async fn it_is_a_service_for_any_router() {
    let (flow, _) = super::loud(3, 5);
    let service = flow.admin().service();
    let ask = |path: &str| {
        let req = Request::get(format!("http://localhost{path}"));
        service
            .clone()
            .oneshot(req.body(Empty::<Bytes>::new()).unwrap())
    };
    // What is left of a prefix may be nothing but a query.
    for path in ["/healthz", "/metrics", "/", ""] {
        let response = ask(path).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!body.is_empty());
    }
    assert_eq!(
        ask("/debug/profile").await.unwrap().status(),
        403,
        "nobody knows from where"
    );
    let mut events = Events::of(ask("/events").await.unwrap().into_body());
    assert_eq!(events.expect("state").await["profile"], false);
}

#[tokio::test(start_paused = true)]
async fn a_nested_service_looks_only_while_somebody_listens() {
    let (flow, loud) = super::loud(3, 5);
    let mut service = flow.admin().service();
    let looks = || loud.looks.load(std::sync::atomic::Ordering::Relaxed);
    let sleep = |secs| tokio::time::sleep(Duration::from_secs(secs));
    sleep(5).await;
    assert_eq!(looks(), 0);
    for _ in 0..3 {
        let before = looks();
        let req = Request::get("http://localhost/events");
        let req = req.body(Empty::<Bytes>::new()).unwrap();
        let response = service.call(req).await.unwrap();
        let mut events = Events::of(response.into_body());
        let mut ticks = 0;
        while ticks < 5 {
            ticks += u64::from(events.next().await.unwrap().0 == "tick");
        }
        assert!((5..=6).contains(&(looks() - before)));
        drop(events);
        sleep(2).await;
        let after = looks();
        sleep(60).await;
        assert_eq!(looks(), after, "nobody listens");
    }
    drop((service, flow));
    assert_eq!(std::sync::Arc::strong_count(&loud.looks), 1, "all is gone");
}

#[tokio::test]
async fn an_address_in_use_or_open_to_all_is_a_clear_error() {
    let flow = Flow::new("orders");
    let server = flow
        .admin()
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let taken = flow.admin().bind(server.local_addr()).await.unwrap_err();
    assert!(matches!(taken, AdminError::Bind(..)));
    let message = taken.to_string();
    assert!(
        message.contains(&server.local_addr().to_string())
            && message.contains("choose another port"),
        "{message}"
    );
    assert!(std::error::Error::source(&taken).is_some());

    let open = flow
        .admin()
        .serve("0.0.0.0:0".parse().unwrap())
        .await
        .unwrap_err();
    assert!(open.to_string().contains("no loopback address"), "{open}");
    let _open = flow
        .admin()
        .allow_remote()
        .bind("0.0.0.0:0".parse().unwrap())
        .await
        .unwrap();
    let six = flow.admin().bind("[::1]:0".parse().unwrap()).await;
    assert!(six.is_ok() || !std::path::Path::new("/proc/net/if_inet6").exists());
}
