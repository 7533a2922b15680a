//! What who listens is told.

use std::time::Duration;

use tower::{Service, ServiceBuilder, service_fn};
use tower_flow::Flow;
use tower_flow::shed::ShedLayer;
use tower_flow::timing::TimingLayer;

use super::{loud, serve};

#[tokio::test(start_paused = true)]
async fn the_state_comes_first_then_all_then_what_changes() {
    let flow = Flow::new("orders");
    let shed = ShedLayer::fixed(8)
        .name("api")
        .partition("vip", 0.5)
        .attach(&flow);
    let served = serve(flow.admin()).await;
    let mut events = served.events().await;

    let state = events.expect("state").await;
    assert_eq!(
        (&state["service"], &state["period"]),
        (&"orders".into(), &1.into())
    );
    assert_eq!(
        (&state["knobs"], &state["token"]),
        (&false.into(), &false.into())
    );
    assert_eq!(state["profile"], true, "this is the same machine");
    let layer = &state["layers"][0];
    assert_eq!(
        (&layer["id"], &layer["kind"], &layer["name"]),
        (&0.into(), &"shed".into(), &"api".into())
    );
    assert_eq!(layer["knobs"][0]["name"], "limit");
    assert_eq!(layer["tables"][1]["title"], "partitions");
    assert_eq!(
        layer["tables"][1]["columns"][1],
        serde_json::json!(["in flight", "level"])
    );

    let tick = events.expect("tick").await;
    let (measures, values) = (&state["measures"], tick["values"].as_array().unwrap());
    assert_eq!(measures.as_array().unwrap().len(), values.len());
    assert_eq!(
        measures[0],
        serde_json::json!({"layer": 0, "key": "in_flight", "label": "in flight", "unit": "level"})
    );
    assert_eq!((&tick["values"][0], &tick["of"][0]), (&0.into(), &8.into()));
    assert_eq!(
        tick["knobs"],
        serde_json::json!([[0, 0, null], [0, 1, false], [0, 2, false]])
    );
    let rows = tick["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "all tables: {rows:?}");
    assert_eq!(rows[1], serde_json::json!([0, 1, [["vip", 0, 0.5]]]));
    assert!((tick["now"].as_f64().unwrap() - state["now"].as_f64().unwrap()).abs() < 60.0);

    let quiet = events.expect("tick").await;
    assert_eq!(
        (&quiet["knobs"], &quiet["rows"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
    shed.handle().set_limit(5);
    let turned = events.expect("tick").await;
    assert_eq!(turned["knobs"], serde_json::json!([[0, 0, 5]]));
    assert_eq!(turned["of"][0], 5);

    // One who comes later sees what went before, and who listened gets all again with it.
    let late = served.events().await.expect("state").await;
    let at = late["history"]["at"].as_array().unwrap();
    assert!((3..=6).contains(&at.len()), "{at:?}");
    assert_eq!(
        at.len(),
        late["history"]["values"][0].as_array().unwrap().len()
    );
    let limits = late["history"]["of"][0].as_array().unwrap();
    assert_eq!((limits.len(), &limits[0]), (at.len(), &8.into()));
    assert!(late["history"]["of"][1].is_null(), "nobody limits it");
    assert_eq!(
        events.expect("tick").await["rows"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test(start_paused = true)]
async fn numbers_move() {
    let flow = Flow::new("orders");
    let layer = TimingLayer::new("stock").attach(&flow);
    let mut service = ServiceBuilder::new()
        .layer(layer)
        .service(service_fn(async |()| {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<_, tower_flow::BoxError>(())
        }));
    let served = serve(flow.admin()).await;
    let mut events = served.events().await;
    let state = events.expect("state").await;
    let measures = state["measures"].as_array().unwrap();
    let place = |key: &str| measures.iter().position(|m| m["key"] == key).unwrap();
    events.expect("tick").await;
    for _ in 0..10 {
        service.call(()).await.unwrap();
    }
    let tick = events.expect("tick").await;
    assert_eq!(tick["values"][place("requests")], 10);
    let p50 = tick["values"][place("p50")].as_f64().unwrap();
    assert!((0.019..0.022).contains(&p50), "{p50}");
    assert_eq!(tick["values"][place("errors")], 0);
    let row = &tick["rows"][0][2][0];
    assert_eq!(
        (&row[0], &row[1]),
        (&"stock".into(), &serde_json::json!([10, 10]))
    );
    assert_eq!(events.expect("tick").await["values"][place("requests")], 0);
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_comes_later_is_told() {
    let (flow, _) = loud(1, 5);
    let served = serve(flow.admin()).await;
    let mut events = served.events().await;
    assert_eq!(
        events.expect("state").await["layers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    events.expect("tick").await;
    let _shed = ShedLayer::fixed(8).attach(&flow);
    let state = events.expect("state").await;
    assert_eq!(state["layers"].as_array().unwrap().len(), 2);
    let tick = events.expect("tick").await;
    assert_eq!(
        tick["values"].as_array().unwrap().len(),
        state["measures"].as_array().unwrap().len()
    );
    assert_eq!(tick["rows"].as_array().unwrap().len(), 4, "all of it");
    events.expect("tick").await;
}

#[tokio::test(start_paused = true)]
async fn no_name_is_markup_and_no_update_is_large() {
    let flow = Flow::new("<script>alert(1)</script>");
    let layer = TimingLayer::new("\"</script>")
        .route_by(|route: &String| route)
        .max_routes(200)
        .attach(&flow);
    let handle = layer.handle();
    for n in 0..200 {
        let route = format!(
            "<script>alert({n})</script>\u{2028}\"\\\n{}",
            "x".repeat(100)
        );
        handle.signal(&route, 0.5).unwrap();
    }
    flow.attach(super::Loud {
        rows: 500,
        width: 90,
        ..super::Loud::default()
    });
    let served = serve(flow.admin()).await;
    // The client looks for markup and at the size.
    let mut events = served.events().await;
    let state = events.expect("state").await;
    assert_eq!(state["service"], "<script>alert(1)</script>");
    for _ in 0..3 {
        let tick = events.expect("tick").await;
        let name = tick["rows"]
            .as_array()
            .unwrap()
            .iter()
            .find(|table| table[0] == 0);
        if let Some(name) = name.map(|table| table[2][0][0].as_str().unwrap()) {
            assert!(
                name.starts_with("<script>alert(0)</script>\u{2028}\"\\\nx"),
                "{name}"
            );
            assert!(
                tick["more"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|more| more[2].as_u64() > Some(130))
            );
        }
    }
    for path in ["/snapshot.json", "/debug/hot", "/debug/hot?format=json"] {
        let answer = served.get(path).await;
        assert!(!answer.body.contains("<script"), "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert!(answer.headers["content-security-policy"].starts_with("default-src 'none'"));
    }
}

#[tokio::test(start_paused = true)]
async fn who_listens_may_do_so_for_long() {
    let (flow, _) = loud(3, 5);
    let served = serve(flow.admin()).await;
    let mut events = served.events().await;
    events.expect("state").await;
    for _ in 0..60 {
        events.expect("tick").await;
    }
}

#[tokio::test]
async fn dropping_the_server_ends_every_stream() {
    let (flow, loud) = loud(3, 5);
    let served = serve(flow.admin()).await;
    let mut listening = Vec::new();
    for _ in 0..10 {
        let mut events = served.events().await;
        events.expect("state").await;
        listening.push(events);
    }
    let mut open = tokio::net::TcpStream::connect(served.addr).await.unwrap();
    served.running.abort();
    assert!(served.running.await.unwrap_err().is_cancelled());
    let ended = async {
        for events in &mut listening {
            while events.next().await.is_some() {}
        }
        super::rest(&mut open).await
    };
    tokio::time::timeout(Duration::from_secs(5), ended)
        .await
        .expect("closed");
    assert!(tokio::net::TcpStream::connect(served.addr).await.is_err());
    drop(flow);
    // What a task held is dropped when it next had its turn.
    let gone = async {
        while std::sync::Arc::strong_count(&loud.looks) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone)
        .await
        .expect("nothing is left");
}
