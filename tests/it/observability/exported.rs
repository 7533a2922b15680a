//! What the layers export.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tower::{Layer, ServiceExt, service_fn};
use tower_flow::pool::limit::ConnLimit;
use tower_flow::profile::{CpuUsage, ProfileLayer, SchedulerUsage};
use tower_flow::{BoxError, Flow};

use super::series::{Series, scraped};
use super::{faults, served};
use crate::support::classic;
use crate::validators::busy;

/// What Prometheus adds to each scrape.
const SCRAPE: &str = "up 1\nscrape_duration_seconds 0.004\n";

/// Exported by `CpuUsage` and `SchedulerUsage`: added where it is missing, since some of it needs a second sample, and
/// some a kernel that tells.
const PROCESS: &str = r#"
tower_flow_cpu_seconds_total{thread="tokio-rt-worker"} 3.5
tower_flow_run_queue_seconds_total{thread="tokio-rt-worker"} 0.02
tower_flow_threads{thread="tokio-rt-worker"} 4
tower_flow_cpu_ratio 0.2
tower_flow_cpu_available_cores 4
tower_flow_cpu_throttled_ratio 0
tower_flow_psi_ratio{resource="cpu"} 0.01
tower_flow_psi_ratio{resource="memory"} 0
tower_flow_psi_ratio{resource="io"} 0
tower_flow_scheduler_busy_ratio{name="main"} 0.3
tower_flow_scheduler_wake_delay_seconds{name="main"} 0.001
tower_flow_scheduler_tasks{name="main"} 12
tower_flow_scheduler_queue_depth{name="main"} 0
tower_flow_scheduler_busy_seconds_total{name="main",worker="0"} 1.5
tower_flow_scheduler_parks_total{name="main",worker="0"} 700
"#;

/// A scrape of a flow with every layer, each of which has done something, and the kinds of its layers.
pub fn everything() -> (Vec<Series>, BTreeSet<String>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        let flow: Flow = busy().await;
        let _limit = ConnLimit::new(8).name("legacy").attach(&flow);
        profiled(&flow).await;
        served::lag(&flow).await;
        let kinds = flow
            .attached()
            .into_iter()
            .map(|layer| layer.kind().to_owned());
        let kinds: BTreeSet<_> = kinds.collect();
        let mut series = scraped(&classic(&flow));
        series.extend(scraped(SCRAPE));
        let told: BTreeSet<_> = series.iter().map(|one| one.metric.clone()).collect();
        let process = scraped(PROCESS).into_iter();
        series.extend(process.filter(|one| !told.contains(&one.metric)));
        (served::with_server(series), kinds)
    })
}

/// Measures a little of what `busy` does not.
async fn profiled(flow: &Flow) {
    CpuUsage::new().attach(flow);
    SchedulerUsage::new("main").attach(flow);
    let layer = ProfileLayer::new("handlers").delay_every(1).attach(flow);
    let service = layer.layer(service_fn(async |()| {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok::<_, BoxError>(())
    }));
    for _ in 0..4 {
        service.clone().oneshot(()).await.unwrap();
    }
}

/// The labels of each metric and the values they take, with those that Prometheus adds.
pub type Known = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

pub fn known(series: &[Series]) -> Known {
    let mut all = Known::new();
    for series in series {
        let labels = all.entry(series.metric.clone()).or_default();
        for (label, value) in &series.labels {
            labels
                .entry(label.clone())
                .or_default()
                .insert(value.clone());
        }
        labels.extend(any(["job", "instance"]));
    }
    let alerts = any([
        "alertname",
        "alertstate",
        "severity",
        "job",
        "instance",
        "name",
    ]);
    all.insert("ALERTS".into(), alerts.collect());
    all
}

/// Labels that take any value.
pub fn any<T: ToString>(
    labels: impl IntoIterator<Item = T>,
) -> impl Iterator<Item = (String, BTreeSet<String>)> {
    labels
        .into_iter()
        .map(|label| (label.to_string(), BTreeSet::new()))
}

/// A scrape of everything, and of an adaptive limit that knows its floor: what a metric needs time for is there too.
pub fn in_time() -> Vec<Series> {
    let mut series = everything().0;
    let [floor, ..] = faults::left_switched();
    let [_, grpc, _] = faults::grpc_failing_late_and_cut();
    for more in floor.into_iter().chain(grpc) {
        let known = |known: &Series| known.metric == more.metric && known.labels == more.labels;
        if !series.iter().any(known) {
            series.push(more);
        }
    }
    series
}
