//! Expositions read by programs nobody here wrote: promtool, Python's OpenMetrics parser, Prometheus itself.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use serde_json::Value;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_flow::batch::{Batch, BatchLayer};
use tower_flow::clock;
use tower_flow::coalesce::CoalesceLayer;
use tower_flow::connection::Connections;
use tower_flow::grpc::{GrpcClientLayer, GrpcServerLayer, RequestBody};
use tower_flow::metrics::Format;
use tower_flow::nats::{ErrorKind, NatsPool, NatsRequest};
use tower_flow::phases::{Dial, Phase, Timings};
use tower_flow::pool::{ConnPool, connect};
use tower_flow::preset::ByPath;
use tower_flow::shed::{Queue, ShedLayer};
use tower_flow::signal::{LagSignal, Pressure};
use tower_flow::throttle::ThrottleLayer;
use tower_flow::timing::TimingLayer;
use tower_flow::{BoxError, Flow};

use crate::support::{self, Steps, classic, grpc_request, grpc_response, message, trailers};
use crate::{http, support::scratch};

/// A flow with every layer, used a little, and names that try to break a format.
pub async fn busy() -> Flow {
    let flow = Flow::new("busy \"\\\n service");
    let fds = include_bytes!("../interop/gen/interop.fds");
    let server = GrpcServerLayer::new()
        .register_fds(fds)
        .unwrap()
        .both()
        .phases(true)
        .exemplars(|_, _| Some("4bf92f3577b34da6a3ce929d0e0e4736".into()))
        .attach(&flow);
    let client = GrpcClientLayer::new()
        .both()
        .target("dns:///x:1")
        .attach(&flow);
    let timing = TimingLayer::new("t \"\\\n")
        .route_with(ByPath)
        .attach(&flow)
        .http()
        .grpc();
    let connections = Connections::client("c").otel().attach(&flow);
    drop(connections.accept(std::io::empty()));
    let inner = service_fn(|_: ::http::Request<RequestBody<Steps>>| async {
        let start = clock::now();
        let dial = Dial::new(start);
        let looked_up = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, BoxError>(())
        };
        dial.scope(Phase::Dns.mark(looked_up)).await?;
        let mut response = grpc_response([message(b"hello"), trailers("0")]);
        let now = clock::now();
        let timings = Timings::new(start, now, now, None, Some(&dial));
        response.extensions_mut().insert(timings);
        Ok::<_, BoxError>(response)
    });
    for path in [
        "/grpc.testing.TestService/UnaryCall",
        "/hostile\"\\/M%0A",
        "/hostile\"\\/M%0A",
    ] {
        let mut served = timing.layer(server.layer(inner));
        read(
            served
                .ready()
                .await
                .unwrap()
                .call(grpc_request(path))
                .await
                .unwrap(),
        )
        .await;
        let mut asked = client.layer(inner);
        read(
            asked
                .ready()
                .await
                .unwrap()
                .call(grpc_request(path))
                .await
                .unwrap(),
        )
        .await;
    }
    let lag = LagSignal::new("lag \"\\\n");
    lag.push(5.0);
    let shed = ShedLayer::adaptive()
        .name("s \"\\\n")
        .queue(Queue::none())
        .partition("p \"\\\n", 0.5)
        .pressure(Pressure::new(lag).warn(1.0).critical(9.0))
        .attach(&flow);
    shed.handle().set_limit(1);
    let held = shed.layer(service_fn(|_: u8| {
        std::future::pending::<Result<(), BoxError>>()
    }));
    let mut first = tokio_test::task::spawn(held.clone().oneshot(1));
    assert!(first.poll().is_pending());
    held.oneshot(2).await.unwrap_err();
    drop(first);
    let throttle = ThrottleLayer::new("th \"\\\n").attach(&flow);
    let throttled = throttle.layer(service_fn(async |_: u8| Ok::<_, BoxError>(())));
    throttled.oneshot(1).await.unwrap();

    let coalesce = CoalesceLayer::new(|req: &u8| Some(*req).filter(|req| *req > 0))
        .name("co \"\\\n")
        .attach(&flow);
    let coalesced = coalesce.layer(service_fn(async |req: u8| {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok::<_, BoxError>(req)
    }));
    // One leads, one follows, one has no key, and one leads a flight that is left.
    let asked = [1, 1, 0].map(|req| coalesced.clone().oneshot(req));
    let answered = futures_util::future::try_join_all(asked).await.unwrap();
    assert_eq!(answered, [1, 1, 0]);
    let mut left = tokio_test::task::spawn(coalesced.oneshot(2));
    assert!(left.poll().is_pending());
    drop(left);
    let seen = coalesce.handle().snapshot();
    assert_eq!((seen.leaders, seen.followers, seen.shared), (2, 1, 1));

    let batch = BatchLayer::new()
        .name("ba \"\\\n")
        .dedup_by(|req: &u8| *req)
        .attach(&flow);
    let batched = batch.layer(service_fn(async |reqs: Batch<u8>| {
        tokio::time::sleep(Duration::from_millis(1)).await;
        // Nothing for the last.
        let results = (1..reqs.len()).map(|n| match n {
            1 => Ok(n),
            _ => Err(BoxError::from("not this one")),
        });
        Ok::<_, BoxError>(results.collect::<Vec<_>>())
    }));
    // Two ask for the same, one fails, one has no answer, and one leaves.
    let mut left = tokio_test::task::spawn(batched.clone().oneshot(4));
    assert!(left.poll().is_pending());
    drop(left);
    let asked = [1, 1, 2, 3].map(|req| batched.clone().oneshot(req));
    let answered = futures_util::future::join_all(asked).await;
    let answered: Vec<_> = answered.iter().map(Result::is_ok).collect();
    assert_eq!(answered, [true, true, false, false]);
    let seen = batch.handle().snapshot();
    assert_eq!((seen.items, seen.batches, seen.merged), (5, 1, 1));

    let pool = ConnPool::builder(connect::http())
        .name("p \"\\\n")
        .host_metrics(1)
        .backoff(Duration::ZERO, Duration::ZERO)
        .attach(&flow)
        .build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let served = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        let mut asked = [0; 1024];
        while tokio::io::AsyncReadExt::read(&mut socket, &mut asked)
            .await
            .unwrap()
            > 0
        {
            tokio::io::AsyncWriteExt::write_all(&mut socket, answer)
                .await
                .unwrap();
        }
    });
    for (uri, answered) in [
        (format!("http://{served}/"), true),
        ("http://127.0.0.1:1/".into(), false),
    ] {
        let req = ::http::Request::get(uri).body(http_body_util::Empty::<bytes::Bytes>::new());
        let response = pool.clone().oneshot(req.unwrap()).await;
        assert_eq!(response.is_ok(), answered);
    }
    // It stays open as long as the flow is read.
    std::mem::forget(pool);

    let nats = NatsPool::builder("nats://127.0.0.1:1")
        .name("n \"\\\n")
        .attach(&flow)
        .build();
    let refused = nats.oneshot(NatsRequest::new("nobody")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Connect);

    let own = Counter::<u64>::default();
    own.inc();
    let latency = Histogram::new([0.1, 1.0]);
    latency.observe(0.5);
    flow.register(|registry| {
        registry.register("own", "Own, \"quoted\"", own);
        registry.register("own_latency", "Latency", latency);
    });
    flow
}

pub async fn read<B: http_body::Body<Error = BoxError> + Unpin>(response: ::http::Response<B>) {
    use http_body_util::BodyExt;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame
            .map_err(|error: BoxError| error.to_string())
            .map(drop)
            .unwrap();
    }
}

#[tokio::test]
async fn promtool_finds_nothing_to_say_about_the_classic_text() {
    if !support::found("promtool") {
        return;
    }
    let text = classic(&busy().await);
    let output = support::run(
        Command::new("promtool").args(["check", "metrics"]),
        text.as_bytes(),
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{said}\n{text}"
    );
}

#[tokio::test]
async fn pythons_parser_takes_the_openmetrics_text() {
    let Some(python) = support::python() else {
        return;
    };
    let text = busy().await.encode(Format::OpenMetrics);
    let output = support::run(
        Command::new(python).arg(support::script("openmetrics.py")),
        &text,
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{errors}\n{}",
        String::from_utf8_lossy(&text)
    );
    let families: Value = serde_json::from_slice(&output.stdout).unwrap();
    let family = |name: &str| {
        let mut found = families
            .as_array()
            .unwrap()
            .iter()
            .filter(|family| family["name"] == name);
        found.next().unwrap_or_else(|| panic!("no {name}")).clone()
    };
    assert_eq!(family("grpc_server_handled")["type"], "counter");
    assert_eq!(family("own")["type"], "counter");
    assert_eq!(
        family("tower_flow_timing_duration_seconds")["type"],
        "histogram"
    );
    let requests = family("tower_flow_coalesce_requests");
    assert_eq!(requests["type"], "counter");
    let samples = requests["samples"].as_array().unwrap();
    let counted = |role: &str| {
        let of = samples.iter().filter(|sample| sample[1]["role"] == role);
        of.map(|sample| sample[2].as_f64().unwrap()).sum::<f64>()
    };
    assert_eq!(
        ["leader", "follower", "bypass"].map(counted),
        [2.0, 1.0, 1.0]
    );
    assert_eq!(
        family("tower_flow_coalesce_wait_seconds")["type"],
        "histogram"
    );
    let items = family("tower_flow_batch_items");
    assert_eq!(items["type"], "counter");
    let samples = items["samples"].as_array().unwrap();
    let counted = |result: &str| {
        let of = samples
            .iter()
            .filter(|sample| sample[1]["result"] == result);
        of.map(|sample| sample[2].as_f64().unwrap()).sum::<f64>()
    };
    assert_eq!(
        ["ok", "error", "missing", "cancelled"].map(counted),
        [2.0, 1.0, 1.0, 1.0]
    );
    for (kind, names) in [
        (
            "histogram",
            ["size", "weight", "wait_seconds", "seconds"].as_slice(),
        ),
        ("counter", &["flush", "items", "merged", "split", "unknown"]),
        ("gauge", &["in_flight", "shards", "queued"]),
    ] {
        for name in names {
            let name = format!("tower_flow_batch_{name}");
            assert_eq!(family(&name)["type"], kind, "{name}");
        }
    }
    let handling = family("grpc_server_handling_seconds");
    let exemplars = handling["samples"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|sample| !sample[3].is_null());
    assert!(exemplars.count() > 0, "the exemplar is read");
    let labels = handling["samples"].to_string();
    assert!(
        labels.contains(r#"hostile\"\\"#),
        "labels come back as they were: {labels}"
    );
}

#[tokio::test]
async fn pythons_parser_takes_our_layers_from_a_registry_of_the_users() {
    let Some(python) = support::python() else {
        return;
    };
    let flow = busy().await;
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(flow.collector()));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let output = support::run(
        Command::new(python).arg(support::script("openmetrics.py")),
        text.as_bytes(),
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{text}");
    assert!(!text.contains("..\n"), "no sentence ends twice: {text}");
    // The same series as the flow's own exposition, the user's registry left out.
    let families: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = families
        .as_array()
        .unwrap()
        .iter()
        .map(|family| family["name"].as_str().unwrap())
        .collect();
    for family in flow
        .families()
        .iter()
        .filter(|family| !family.name.starts_with("own"))
    {
        let name = &*family.name;
        assert!(
            names.contains(&name) || name == "tower_flow",
            "no {name} in {names:?}"
        );
    }
}

/// The two alerts of etcd's monitoring mixin that read gRPC, their expressions as published.
const ETCD_RULES: &str = r#"
groups:
- name: etcd
  rules:
  - alert: etcdHighNumberOfFailedGRPCRequests
    expr: |
      100 * sum(rate(grpc_server_handled_total{job=~".*etcd.*", grpc_code=~"Unknown|FailedPrecondition|ResourceExhausted|Internal|Unavailable|DataLoss|DeadlineExceeded"}[5m])) without (grpc_type, grpc_code)
        /
      sum(rate(grpc_server_handled_total{job=~".*etcd.*"}[5m])) without (grpc_type, grpc_code)
        > 5
    for: 5m
  - alert: etcdGRPCRequestsSlow
    expr: |
      histogram_quantile(0.99, sum(rate(grpc_server_handling_seconds_bucket{job=~".*etcd.*", grpc_method!="Defragment", grpc_type="unary"}[5m])) without(grpc_type))
        > 0.15
    for: 10m
"#;

#[tokio::test(start_paused = true)]
async fn etcds_alerts_fire_over_our_series_and_only_when_they_should() {
    if !support::found("promtool") {
        return;
    }
    let sick = captured(Duration::from_millis(300), "14").await;
    let well = captured(Duration::from_millis(3), "0").await;
    let labels = "grpc_method: UnaryCall\n            grpc_service: grpc.testing.TestService\n            job: etcd";
    let fires = |name: &str| {
        format!(
            "  - eval_time: 20m\n    alertname: {name}\n    exp_alerts:\n      - exp_labels:\n            {labels}\n"
        )
    };
    let quiet =
        |name: &str| format!("  - eval_time: 20m\n    alertname: {name}\n    exp_alerts: []\n");
    let both = ["etcdHighNumberOfFailedGRPCRequests", "etcdGRPCRequestsSlow"];
    let dir = scratch("alerts");
    std::fs::write(dir.join("rules.yml"), ETCD_RULES).unwrap();
    let test = |series: &str, expected: Vec<String>| {
        format!(
            "- interval: 1m\n  input_series:\n{series}  alert_rule_test:\n{}",
            expected.concat()
        )
    };
    let tests = format!(
        "rule_files: [rules.yml]\nevaluation_interval: 1m\ntests:\n{}{}",
        test(&sick, both.map(fires).to_vec()),
        test(&well, both.map(quiet).to_vec()),
    );
    std::fs::write(dir.join("test.yml"), &tests).unwrap();
    let output = Command::new("promtool")
        .current_dir(&dir)
        .args(["test", "rules", "test.yml"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("SUCCESS"), "{said}");
}

/// What `/metrics` shows every minute for twenty minutes of calls that take `time`, one in four ending in `code`.
async fn captured(time: Duration, code: &'static str) -> String {
    let flow = Flow::new("etcd");
    let fds = include_bytes!("../interop/gen/interop.fds");
    let layer = GrpcServerLayer::new()
        .register_fds(fds)
        .unwrap()
        .attach(&flow);
    let mut admin = flow.admin().service();
    let mut service = layer.layer(service_fn(
        move |req: ::http::Request<RequestBody<Steps>>| async move {
            tokio::time::sleep(time).await;
            let fails = req.headers().contains_key("fails");
            Ok::<_, BoxError>(grpc_response([trailers(if fails { code } else { "0" })]))
        },
    ));
    let mut series: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..=20 {
        let scraped = admin
            .call(
                ::http::Request::get("http://localhost/metrics")
                    .body(http_body_util::Empty::<bytes::Bytes>::new())
                    .unwrap(),
            )
            .await
            .unwrap();
        let text = http_body_util::BodyExt::collect(scraped.into_body())
            .await
            .unwrap()
            .to_bytes();
        for line in std::str::from_utf8(&text).unwrap().lines() {
            if line.starts_with("grpc_server_handl") {
                let (name, value) = line.rsplit_once(' ').unwrap();
                series
                    .entry(name.replacen('{', "{job=\"etcd\",", 1))
                    .or_default()
                    .push(value.to_owned());
            }
        }
        for n in 0..8 {
            let mut req = grpc_request("/grpc.testing.TestService/UnaryCall");
            if n % 4 == 0 {
                req.headers_mut()
                    .insert("fails", ::http::HeaderValue::from_static("1"));
            }
            read(service.ready().await.unwrap().call(req).await.unwrap()).await;
        }
    }
    series
        .into_iter()
        .fold(String::new(), |mut yaml, (name, values)| {
            writeln!(
                yaml,
                "  - series: '{name}'\n    values: '{}'",
                values.join(" ")
            )
            .unwrap();
            yaml
        })
}

#[tokio::test]
async fn prometheus_itself_scrapes_every_format() {
    if !support::found("prometheus") {
        return;
    }
    let flow = busy().await;
    let server = flow
        .admin()
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let target = server.local_addr();
    tokio::spawn(server.run());

    // Once with native histograms, for which it asks for protobuf, and once without, for which it asks for OpenMetrics.
    for features in ["exemplar-storage,native-histograms", "exemplar-storage"] {
        let dir = scratch("prometheus");
        let config = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n\
             - job_name: flow\n  static_configs: [{{targets: ['{target}']}}]\n"
        );
        std::fs::write(dir.join("p.yml"), config).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut prometheus = Command::new("prometheus")
            .arg("--config.file=p.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg(format!("--enable-feature={features}"))
            .current_dir(&dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let asked = ask(port, features.contains("native")).await;
        prometheus.kill().unwrap();
        prometheus.wait().unwrap();
        asked.unwrap_or_else(|problem| panic!("{features}: {problem}"));
    }
}

async fn ask(port: u16, native: bool) -> Result<(), String> {
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http();
    let api = async |path: &str| -> Option<Value> {
        let url = format!("http://127.0.0.1:{port}/api/v1/{path}");
        let req = ::http::Request::get(url)
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap();
        let body = client.request(req).await.ok()?.into_body();
        let body = http_body_util::BodyExt::collect(body)
            .await
            .ok()?
            .to_bytes();
        serde_json::from_slice(&body).ok()
    };
    let query = async |query: &str| {
        api(&format!("query?query={query}"))
            .await
            .map(|answer| answer["data"]["result"].clone())
    };
    let mut problem = String::from("it did not start");
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Some(targets) = api("targets").await else {
            continue;
        };
        let target = &targets["data"]["activeTargets"][0];
        problem = format!("{target}");
        if target["health"] != "up" {
            continue;
        }
        let Some(started) =
            query("grpc_server_started_total%7Bgrpc_method=%22UnaryCall%22%7D").await
        else {
            continue;
        };
        if started.as_array().is_none_or(Vec::is_empty) {
            continue;
        }
        assert_eq!(started[0]["value"][1], "1", "{started}");
        assert_eq!(started[0]["metric"]["grpc_type"], "unary", "{started}");
        let own = query("own_total").await.unwrap();
        assert_eq!(own[0]["value"][1], "1", "{own}");
        let counts = query("histogram_count(tower_flow_timing_duration_seconds)")
            .await
            .unwrap();
        let counted = counts.as_array().map_or(0, Vec::len);
        assert_eq!(
            counted > 0,
            native,
            "native histograms come by protobuf: {counts}"
        );
        if native {
            let slowest = query(
                "histogram_quantile(1,tower_flow_timing_duration_seconds%7Broute=%22other%22%7D)",
            )
            .await
            .unwrap();
            let seconds: f64 = slowest[0]["value"][1].as_str().unwrap().parse().unwrap();
            assert!((0.001..1.0).contains(&seconds), "{slowest}");
        }
        return Ok(());
    }
    Err(problem)
}

#[tokio::test]
async fn the_endpoint_negotiates() {
    let flow = busy().await;
    let server = flow
        .admin()
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let url = format!("http://{}/metrics", server.local_addr());
    tokio::spawn(server.run());
    let kind = async |accept: &str| {
        let response = http::get(&url, accept).await;
        response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        kind("*/*").await,
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let openmetrics = kind("application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert_eq!(
        openmetrics,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let asked = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    assert!(
        kind(asked)
            .await
            .starts_with("application/vnd.google.protobuf")
    );
}
